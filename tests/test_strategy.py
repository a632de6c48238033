"""The strategies run on a CPU and leave the GPU path alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from lightning_fabric.strategies.deepspeed import DeepSpeedStrategy as FabricVendor
from pytorch_lightning.strategies import DeepSpeedStrategy as TrainerVendor

from rayrlhf.errors import InstallationError
from rayrlhf.strategy import CpuCapable, FabricDeepSpeed, prepare_environment, ray_deepspeed

TRAIN = """
import sys
import torch
from lightning_fabric import Fabric
from rayrlhf.strategy import FabricDeepSpeed, prepare_environment

prepare_environment("cpu")
strategy = FabricDeepSpeed(stage=int(sys.argv[1]), logging_batch_size_per_gpu=1)
strategy.config["gradient_clipping"] = 0.0
fabric = Fabric(accelerator="cpu", devices=1, num_nodes=1, strategy=strategy)
fabric.launch()
torch.manual_seed(0)
layer = torch.nn.Linear(3, 1, bias=False)
start = layer.weight.detach().clone()
engine, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
fabric.backward(engine(torch.ones(1, 3)).sum(), model=engine)
engine._forward_module.step()
import deepspeed
with deepspeed.zero.GatheredParameters(list(layer.parameters())):
    torch.testing.assert_close(layer.weight.detach(), start - 1)
print("device", strategy.root_device, "backend", torch.distributed.get_backend())
"""


@pytest.mark.parametrize("stage", [0, 3])
def test_a_training_step_on_a_cpu_needs_no_compiler(stage: int) -> None:
    """X-8: the DeepSpeed path runs where there is neither a GPU nor ninja nor a C++ compiler on the PATH."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DS_ACCELERATOR", "CXX")}
    environment.update(PATH="/nonexistent", OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(stage)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "device cpu:0 backend gloo" in done.stdout


def test_cuda_devices_pass_untouched() -> None:
    strategy = FabricDeepSpeed(stage=2, parallel_devices=[torch.device("cuda", 0), torch.device("cuda", 1)])
    assert strategy.parallel_devices == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(RuntimeError, match="only supported on CUDA"):  # the vendor's own check stays in force there
        strategy.setup_environment()


def test_both_strategies_are_lightnings_own_with_the_mixin_in_front() -> None:
    assert FabricDeepSpeed.__mro__[1:3] == (CpuCapable, FabricVendor)
    strategy = ray_deepspeed(stage=3, overlap_comm=False)
    assert isinstance(strategy, CpuCapable)
    assert isinstance(strategy, TrainerVendor)
    assert strategy.config["zero_optimization"]["stage"] == 3  # type: ignore[index]
    assert strategy.config["zero_optimization"]["overlap_comm"] is False  # type: ignore[index]


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants a machine without a GPU, or `CUDA_VISIBLE_DEVICES=`")
def test_cuda_without_a_gpu_is_named() -> None:
    with pytest.raises(InstallationError, match="no GPU here: set `device: cpu`"):
        prepare_environment("cuda")


def _free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
