"""The DeepSpeed strategies of Lightning, usable on a CPU as well: one code path from a laptop to a cluster.

`FabricDeepSpeed` serves the RL learner; `ray_deepspeed()` builds the one for supervised training inside Ray Train.
On a GPU both are Lightning's own classes, unchanged. Call `prepare_environment()` first, in every process.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning_fabric.strategies.deepspeed import DeepSpeedStrategy
from torch import nn

from rayrlhf.errors import InstallationError

if TYPE_CHECKING:
    import pytorch_lightning.strategies

Device = Literal["cpu", "cuda"]
_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def prepare_environment(device: Device | None = None) -> None:
    """Readies this process for DeepSpeed on `device` (None: a GPU where there is one); call it as often as you like.

    On a CPU, DeepSpeed must be told so before its first import, and it would compile a shared-memory all-reduce with
    g++ and ninja for two minutes, or fail without them; gloo alone gives the same numbers.

    Raises:
        InstallationError: `device` is cuda and there is none, or DeepSpeed already chose the other device here.
    """
    cuda = torch.cuda.is_available()
    if device is None:
        device = "cuda" if cuda else "cpu"
    if device == "cuda" and not cuda:
        raise InstallationError(
            "device cuda was asked for, but PyTorch sees no GPU here: set `device: cpu`, give the learner ranks a GPU "
            "with `learner.gpus_per_rank: 1`, or install a CUDA build of PyTorch"
        )
    os.environ["DS_ACCELERATOR"] = device
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    chosen = get_accelerator().device_name()
    if chosen != device:
        raise InstallationError(f"DeepSpeed already runs on {chosen} in this process: use a new process for {device}")
    if device == "cpu":
        # The dictionary of operators that may be compiled. DeepSpeed would fill it by running compilers and linkers,
        # whose errors reach the terminal; it is made here instead, with the one operator that is ever looked up.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


BUCKET_ELEMENTS = 200_000_000  # DeepSpeed's default


class CpuCapable:
    """Mixin in front of a Lightning DeepSpeed strategy that lifts its three obstacles to a CPU.

    1. `setup_environment` refuses any accelerator but CUDA; 2. the devices' indices are compared with local ranks and
    3. handed to DeepSpeed as an integer, while a CPU device has index None. Index 0 satisfies both, and tensors sent
    there are ordinary CPU tensors. Only `torch.device` values of type "cpu" are touched.
    """

    vendor: ClassVar[Any]  # the Lightning class that checks the accelerator; what it inherits does the setting up

    @property
    def root_device(self) -> torch.device:
        return _with_index(super().root_device)  # type: ignore[misc]

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        devices: list[torch.device] | None = super().parallel_devices  # type: ignore[misc]
        return None if devices is None else [_with_index(device) for device in devices]

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device] | None) -> None:
        self._parallel_devices = devices

    def setup_environment(self) -> None:
        if self.root_device.type == "cpu":
            super(self.vendor, self).setup_environment()  # type: ignore[misc]
        else:
            super().setup_environment()  # type: ignore[misc]


def _with_index(device: torch.device) -> torch.device:
    return torch.device("cpu", 0) if device.type == "cpu" else device


class FabricDeepSpeed(CpuCapable, DeepSpeedStrategy):
    """Fabric's DeepSpeed strategy on CPU (gloo) and CUDA (NCCL)."""

    vendor = DeepSpeedStrategy


@functools.cache
def _ray_deepspeed_class() -> type:
    import pytorch_lightning.strategies
    from ray.train.lightning import RayDeepSpeedStrategy

    class RayDeepSpeed(CpuCapable, RayDeepSpeedStrategy):
        vendor = pytorch_lightning.strategies.DeepSpeedStrategy

    return RayDeepSpeed


def bucket_elements(module: nn.Module) -> int:
    """Size of DeepSpeed's communication buckets for a network: they are allocated whole at every step, 800 MB each in
    fp32 by default, however small the network. DeepSpeed wants an even size."""
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return min(BUCKET_ELEMENTS, parameters + parameters % 2)


def ray_deepspeed(stage: int = 2, **options: Any) -> pytorch_lightning.strategies.DeepSpeedStrategy:
    """The strategy of a Lightning `Trainer` inside Ray Train's `TorchTrainer`, on CPU (gloo) and CUDA (NCCL).

    `stage` is the ZeRO stage 0-3, `options` are those of `pytorch_lightning.strategies.DeepSpeedStrategy`. Ray and
    Lightning's Trainer are imported here so that the RL learner does not need them. Mind that the Trainer divides the
    loss twice under `accumulate_grad_batches`: multiply it back, or do not accumulate.
    """
    options = {"logging_level": logging.ERROR, "logging_batch_size_per_gpu": 1, **options}
    return _ray_deepspeed_class()(stage=stage, **options)


@contextlib.contextmanager
def known_types_only() -> Iterator[None]:
    """DeepSpeed's checkpoints are pickles, which could run anything, and it loads them without asking PyTorch to refuse.
    PyTorch's own switch overrules that; what is left to name is the types that DeepSpeed writes."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[_WEIGHTS_ONLY]
        else:
            os.environ[_WEIGHTS_ONLY] = before
