"""One network in one DeepSpeed engine, through Fabric: forward, backward, step, gather, save, load.

A learner has an engine a network, a value network of its own too: an engine that skips a part of its parameters in a
step applies their stale gradients at ZeRO stage 3. A frozen network needs none: it stays a plain module.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from rayrlhf.algorithm_config import OptimizerConfig
from rayrlhf.errors import CheckpointError, LearnerError
from rayrlhf.strategy import Device, FabricDeepSpeed, bucket_elements, known_types_only, prepare_environment


def launch_fabric(zero_stage: int, precision: str, device: Device, rank: int, world: int) -> Fabric:
    """Joins this process to the learner's ranks as rank `rank` of `world`: one node with one device.

    The ranks meet at MASTER_ADDR:MASTER_PORT (a lone rank at a free port of its own) and stay joined as long as the
    process lives. `precision` is Fabric's: 32-true or bf16-mixed.

    Raises:
        LearnerError: no meeting point is set, or this process already belongs to another group of ranks.
        InstallationError: the device is not there.
    """
    if world > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise LearnerError(
            "learner ranks meet at MASTER_ADDR:MASTER_PORT: set both, the same in the process of each rank"
        )
    if dist.is_initialized() and (dist.get_rank(), dist.get_world_size()) != (rank, world):
        raise LearnerError(
            f"this process is rank {dist.get_rank()} of {dist.get_world_size()} already and cannot be rank {rank} of "
            f"{world}: start each learner rank in a process of its own"
        )
    prepare_environment(device)
    logging.getLogger("lightning_fabric.utilities").setLevel(logging.WARNING)
    # Two a micro-batch at stage 3: DeepSpeed calls what newer PyTorch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    os.environ.update(NODE_RANK=str(rank), LOCAL_RANK="0")
    strategy = FabricDeepSpeed(stage=zero_stage, logging_level=logging.ERROR, logging_batch_size_per_gpu=1)
    if precision == "bf16-mixed" and zero_stage >= 2:  # stage 1 would get another optimizer class, 0 has no choice
        strategy.config["data_types"] = {"grad_accum_dtype": "fp32"}  # type: ignore[index]
    fabric = Fabric(
        accelerator=device,
        devices=1,
        num_nodes=world,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
        plugins=[LightningEnvironment()],  # not what a SLURM or MPI job around us would suggest
    )
    fabric.launch()
    return fabric


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """PyTorch's own optimizer: DeepSpeed's are compiled on first use, and equal it."""
    if config.name == "adamw":
        return torch.optim.AdamW(
            module.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
    return torch.optim.SGD(module.parameters(), lr=config.lr, momentum=config.momentum)


class Engine:
    """A network, its optimizer, and the rules of DeepSpeed that fail silently when broken.

    An update is `begin`, then for each micro-batch `forward`, `backward` and `next_micro_batch`, or after the last one
    `grad_norm` and `finish`. Every rank makes the same calls.
    """

    def __init__(self, fabric: Fabric, module: nn.Module, optimizer: OptimizerConfig, option: str = "optimizer"):
        """`module` is whole and initialised: built under ZeRO stage 3's own context its weights would be lost.

        `option` is the optimizer's name in the config, for messages.
        """
        self._fabric = fabric
        self.option = option
        config = fabric.strategy.config  # type: ignore[attr-defined]
        config["gradient_clipping"] = optimizer.max_grad_norm or 0.0  # unset, DeepSpeed clips to 1.0
        bucket = bucket_elements(module)
        config["zero_optimization"].update(reduce_bucket_size=bucket, allgather_bucket_size=bucket)
        self._wrapped, self._optimizer = fabric.setup(module, build_optimizer(optimizer, module))
        self._engine: Any = self._wrapped._forward_module
        self.module = module

    def begin(self, lr: float, micro_batches: int) -> None:
        """Starts an update of `micro_batches` on each rank."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.set_train_batch_size(micro_batches * self._fabric.world_size)
        # The engine counts micro-batches over its whole life and steps where the count divides by their number:
        # with another number it would step too early or too late.
        self._engine.micro_steps = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output; through the wrapper, without which stage 3 overwrites what it has accumulated."""
        return self._wrapped(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's `loss` to the update's: the sum over micro-batches and ranks.

        DeepSpeed averages over ranks, so each rank's share counts `world_size` times; it is asked not to divide by
        the number of micro-batches. Both are exact in floating point where `world_size` is a power of two.
        """
        self._fabric.backward(loss * self._fabric.world_size, model=self._wrapped, scale_wrt_gas=False)

    def next_micro_batch(self) -> None:
        """Tells the engine that a micro-batch is over, as it must hear of every one; weights stay as they are."""
        if self._engine.is_gradient_accumulation_boundary():
            raise RuntimeError("the last micro-batch of an update ends with `finish`")
        self._engine.step()

    def grad_norm(self) -> float:
        """The global norm of the update's gradients, before clipping and before `finish`; inf where one is not finite.

        Collective, and the same at every rank. DeepSpeed takes the norm in its step, where it is too late for another
        engine to hold back; its own functions are asked here, on what they are asked there.
        """
        self._check_complete()
        optimizer, stage = self._engine.optimizer, self._engine.zero_optimization_stage()
        if stage == 3:
            from deepspeed.runtime.utils import combine_grad_norm_groups

            norm = float(combine_grad_norm_groups(optimizer._get_norm_groups())) / optimizer.loss_scale
        elif stage > 0:
            norm = float(optimizer.scaled_global_norm()) / optimizer.loss_scale
        else:  # the reduced gradients lie whole on the parameters
            gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
            norm = float(torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]).norm())
        return norm if math.isfinite(norm) and norm >= 0 else math.inf

    def finish(self) -> None:
        """Clips and steps the optimizer, which ends the update. Every engine's `grad_norm` must be finite."""
        self._check_complete()
        self._engine.step()

    def _check_complete(self) -> None:
        if not self._engine.is_gradient_accumulation_boundary():
            raise RuntimeError("`finish` ends an update, and micro-batches that `begin` announced are missing")

    def finite_weights(self) -> bool:
        """Whether this rank's share of the weights holds no NaN and no infinity."""
        shares = [getattr(parameter, "ds_tensor", parameter).detach() for parameter in self.module.parameters()]
        ends = [end for share in shares for end in share.aminmax()]  # NaN is both; a tenth of the time of `isfinite`
        return bool(torch.stack(ends).isfinite().all())

    def gather(self, part: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Name and whole value of each parameter of a part of the network, tied ones once, valid until the next is
        asked for.

        Collective: at stage 3 every rank holds one gathered parameter at a time, so all must iterate to the end.
        """
        import deepspeed

        sharded = self._engine.zero_optimization_partition_weights()
        for name, parameter in part.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
                yield name, parameter.detach()

    def save(self, folder: Path) -> None:
        """Writes weights, optimizer and counters, sharded as they are; collective, into a folder all ranks see."""
        self._fabric.save(folder, {"network": self._wrapped, "optimizer": self._optimizer})

    def load(self, folder: Path) -> None:
        """Takes up, bit for bit, where `save` left off; collective, with the same world size, stage and precision.

        Raises:
            CheckpointError: the files are damaged, or hold anything but tensors and the few types DeepSpeed writes.
        """
        try:
            with known_types_only():
                self._fabric.load(folder, {"network": self._wrapped, "optimizer": self._optimizer})
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"the learner state in {folder} cannot be loaded: {error}. Resume from an earlier checkpoint."
            ) from error

    def close(self) -> None:
        """Removes DeepSpeed's hooks and buffers; the process stays joined to the other ranks."""
        self._engine.destroy()
