"""One rank of a learner with a KL loss; test_kl_learner.py compares what this records.

Two ranks: `python -m tests.kl_process FOLDER RANK WORLD` each, with MASTER_ADDR and MASTER_PORT set. FOLDER holds the
models `llama` and `gpt2`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayrlhf.algorithm_config import HeadValueConfig, SeparateValueConfig, SGDConfig, ValueConfig
from rayrlhf.kl_estimators import KLLoss
from rayrlhf.losses import Objective
from rayrlhf.types import TrainingBatch
from tests.learner_process import arrays_of, build, main
from tests.ppo_process import OBJECTIVE, ppo_sequences

KL_COEF = 3.0
LATER = 20  # iteration of the update that is looked at: by then the learning rate has risen to 1
SGD = SGDConfig(lr=1.0, warmup_iterations=LATER, max_grad_norm=None)


@dataclass(frozen=True)
class Case:
    """A small update without a KL coefficient, which moves the policy off the reference, and one with it."""

    loss: KLLoss | None
    stage: int
    model: str = "llama"
    constrained: bool = True  # by ranges of none to four tokens, none standing for the whole vocabulary
    value: ValueConfig | None = None
    temperature: float = 1.0

    @property
    def objective(self) -> Objective:
        return replace(OBJECTIVE, kl=self.loss, value=OBJECTIVE.value if self.value is not None else None)

    def batch(self, kl_coef: float) -> TrainingBatch:
        return replace(TrainingBatch.one_step(ppo_sequences(self.constrained)), kl_coef=kl_coef)


FULL, FORWARD = KLLoss("full"), KLLoss("forward")
CASES = {  # each kind of estimator at each ZeRO stage
    "full": Case(FULL, 2),
    "forward": Case(FORWARD, 0),
    "k1": Case(KLLoss("k1"), 1),
    "k2": Case(KLLoss("k2"), 3),
    "k3": Case(KLLoss("k3"), 0),
    "forward_sampled": Case(KLLoss("forward_sampled"), 1),
    "k1 bare": Case(KLLoss("k1", correction=False), 3),
    "k3 bare": Case(KLLoss("k3", correction=False), 2),
    "full, free": Case(FULL, 3, constrained=False, temperature=0.7),
    "forward, free": Case(FORWARD, 1, constrained=False),
    "full, gpt2": Case(FULL, 0, model="gpt2"),
    "full, head": Case(FULL, 3, value=HeadValueConfig(detach=True)),
    "full, value network": Case(FULL, 1, value=SeparateValueConfig(optimizer=SGD)),
}


def options_of(case: Case) -> dict[str, Any]:
    return {
        "loss": case.objective, "value": case.value, "optimizer": SGD, "tokens_per_micro_batch": 60,
        "temperature": case.temperature,
    }  # fmt: skip


def updates(folder: Path, rank: int, world: int, name: str) -> dict[str, Any]:
    """The policy before and after the update with the KL loss, and what both updates report."""
    case = CASES[name]
    learner = build(str(folder / case.model), rank, world, case.stage, **options_of(case))
    first = learner.update(case.batch(0.0), 0).metrics
    before = arrays_of(learner.weights())
    learner.save_state(folder / f"{name}-{world}")
    metrics = learner.update(case.batch(KL_COEF), LATER).metrics
    after = arrays_of(learner.weights())
    learner.close()
    return {"first": first, "before": before, "after": after, "metrics": metrics}


def resumed(folder: Path, rank: int, world: int, name: str) -> dict[str, Any]:
    """The second update again, by a learner that takes up the state between them."""
    case = CASES[name]
    learner = build(str(folder / case.model), rank, world, case.stage, **options_of(case))
    learner.load_state(folder / f"{name}-{world}")
    metrics = learner.update(case.batch(KL_COEF), LATER).metrics
    after = arrays_of(learner.weights())
    learner.close()
    return {"metrics": metrics, "after": after}


def untouched(folder: Path, rank: int, world: int, loss: KLLoss | None) -> dict[str, Any]:
    """One update of a policy that is its reference, over the whole vocabulary."""
    case = Case(loss, stage=2, constrained=False)
    learner = build(str(folder / case.model), rank, world, case.stage, **options_of(case))
    metrics = learner.update(case.batch(KL_COEF), 0).metrics
    after = arrays_of(learner.weights())
    learner.close()
    return {"metrics": metrics, "after": after}


def run(folder: Path, rank: int, world: int) -> dict[Any, Any]:
    """Everything that is compared, by name; collective."""
    gc.freeze()  # ZeRO stage 3 collects garbage whenever it is built
    results: dict[Any, Any] = {name: updates(folder, rank, world, name) for name in CASES}
    for name in ("full", "full, free"):
        results["resumed", name] = resumed(folder, rank, world, name)
    for loss in (FULL, FORWARD, None):
        results["untouched", loss and loss.estimator] = untouched(folder, rank, world, loss)
    return results


if __name__ == "__main__":
    main(run)
