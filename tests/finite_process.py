"""One rank of a learner whose updates are poisoned one way after another; test_not_finite.py compares what this records.

Two ranks: `python -m tests.finite_process FOLDER RANK WORLD` each, with MASTER_ADDR and MASTER_PORT set. FOLDER holds
the model `llama`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrlhf.algorithm_config import AdamWConfig, SeparateValueConfig, ValueConfig
from rayrlhf.errors import LearnerError
from rayrlhf.learner import Learner
from rayrlhf.losses import Objective, PolicyGradientLoss, ValueObjective
from rayrlhf.types import TrainingBatch, TrainingSequence
from tests.learner_process import MARKER, STAGES, build, main, make_sequences


@dataclass(frozen=True)
class MarkedLoss(PolicyGradientLoss):
    """Not finite on tokens whose advantage is MARKER, NaN or infinite by its sign; the gradient stays finite."""

    importance_cap: float | None = None

    def __call__(self, logprobs: Tensor, behaviour: Tensor, advantages: Tensor) -> Tensor:
        losses = super().__call__(logprobs, behaviour, advantages)
        losses = losses + torch.where(advantages == MARKER, torch.nan, 0.0)
        return losses + torch.where(advantages == -MARKER, torch.inf, 0.0)


def sequences(seed: int, valued: bool) -> list[TrainingSequence]:
    """Nine, uneven over two ranks; with what a value network is fitted to where there is one."""
    made = make_sequences(9, seed)
    if not valued:
        return made
    return [
        replace(one, values=np.zeros_like(one.weights), returns=one.advantages, value_weights=one.weights)
        for one in made
    ]


def poisoned(valued: bool, array: str, value: float) -> list[TrainingSequence]:
    """With one number replaced in the last token of the longest sequence, which one rank alone holds."""
    made = sequences(1, valued)
    longest = max(made, key=len)
    getattr(longest, array)[-1] = value
    return made


def state_of(learner: Learner) -> list[bytes]:
    """This rank's share of all weights and optimizers, bit by bit."""
    tensors: list[Tensor] = []
    for engine in learner._engines.values():
        tensors += [getattr(parameter, "ds_tensor", parameter).detach() for parameter in engine.module.parameters()]
        optimizer = engine._engine.basic_optimizer
        for group in optimizer.param_groups:
            tensors += [parameter.detach() for parameter in group["params"]]
        for values in optimizer.state.values():
            tensors += [value for value in values.values() if isinstance(value, Tensor)]
    return [tensor.cpu().numpy().tobytes() for tensor in tensors]


def refusal(learner: Learner, made: list[TrainingSequence]) -> str:
    """The error of an update, by its class and message; the learner may be asked again afterwards."""
    learner._stopped = False
    try:
        learner.update(TrainingBatch.one_step(made), 1)
    except LearnerError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@contextlib.contextmanager
def poisoned_gradient(learner: Learner, network: str, bad: float) -> Iterator[None]:
    """One parameter's gradient, at the last rank alone, is `bad`."""
    parameter = next(learner._engines[network].module.parameters())
    last = learner.rank == learner.world - 1
    hook = parameter.register_hook(lambda gradient: gradient + bad) if last else None
    yield
    if hook is not None:
        hook.remove()


def faults(model: str, rank: int, world: int, stage: int, value: ValueConfig | None) -> dict[str, Any]:
    """After one good update, each fault in turn: what is raised, and whether any bit of this rank's state moved.

    One gradient is poisoned, after what is refused before any gradient is taken, and before the losses, which are refused
    before the gradients are looked at: no fault leaves anything behind that the next would meet.
    """
    objective = Objective(MarkedLoss(), value=ValueObjective(clip_range=None, coef=0.5) if value else None)
    learner = build(model, rank, world, stage, loss=objective, value=value, tokens_per_micro_batch=60)
    valued = value is not None
    learner.update(TrainingBatch.one_step(sequences(0, valued)), 0)
    before = state_of(learner)
    results: dict[str, Any] = {}

    def take(name: str, made: list[TrainingSequence]) -> None:
        message = refusal(learner, made)
        results[name] = (message, state_of(learner) == before)

    take("log-probability nan", poisoned(valued, "behaviour_logprobs", np.nan))
    take("log-probability inf", poisoned(valued, "behaviour_logprobs", -np.inf))
    take("reward nan", poisoned(valued, "advantages", np.nan))
    take("reward inf", poisoned(valued, "advantages", np.inf))
    name, bad = ("value", torch.inf) if valued else ("policy", torch.nan)
    with poisoned_gradient(learner, name, bad):
        take(f"{name} gradient {bad}", sequences(1, valued))
    take("loss nan", poisoned(valued, "advantages", MARKER))
    take("loss inf", poisoned(valued, "advantages", -MARKER))
    learner.close()
    return results


def refused_save(folder: Path, model: str, rank: int, world: int, stage: int) -> dict[str, Any]:
    """An infinite gradient; then a weight of the last rank is NaN: what saving raises, and whether it wrote anything."""
    learner = build(model, rank, world, stage)
    before = state_of(learner)
    with poisoned_gradient(learner, "policy", torch.inf):
        message = refusal(learner, sequences(1, False))
    results: dict[str, Any] = {"policy gradient inf": (message, state_of(learner) == before)}
    if rank == world - 1:
        parameter = next(learner._network.parameters())
        getattr(parameter, "ds_tensor", parameter).data.view(-1)[0] = torch.nan
    target = folder / f"poisoned-{world}-{stage}"
    message = "no error"
    try:
        learner.save_model(target)
    except LearnerError as error:
        message = f"{type(error).__name__}: {error}"
    learner.close()
    return results | {"save": (message, target.exists())}


def run(folder: Path, rank: int, world: int) -> dict[Any, Any]:
    gc.freeze()  # ZeRO stage 3 collects garbage whenever it is built
    model = str(folder / "llama")
    separate = SeparateValueConfig(optimizer=AdamWConfig(lr=1e-3))
    results: dict[Any, Any] = {}
    for stage in STAGES:
        results["alone", stage] = faults(model, rank, world, stage, None)
        if world == 2:
            results["with value", stage] = faults(model, rank, world, stage, separate)
        results["save", stage] = refused_save(folder, model, rank, world, stage)
    return results


if __name__ == "__main__":
    from tests import finite_process  # so that what is pickled has a module of that name, not __main__

    main(finite_process.run)
