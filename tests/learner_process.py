"""One rank of a learner and of the bare PyTorch loop it is held against; test_learner.py compares what this records.

Two ranks: `python -m tests.learner_process FOLDER RANK WORLD` each, with MASTER_ADDR and MASTER_PORT set. FOLDER holds
the models `llama` and `gpt2`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import gc
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from rayrlhf.algorithm_config import AdamWConfig, OptimizerConfig, SGDConfig
from rayrlhf.config import LearnerConfig
from rayrlhf.errors import LearnerError
from rayrlhf.learner import Learner
from rayrlhf.losses import ClippedLoss, Objective, PolicyGradientLoss, PolicyLoss, selected_logprobs
from rayrlhf.micro_batches import MicroBatch, collate, plan_micro_batches
from rayrlhf.packed_sequences import Limits, pack_sequences
from rayrlhf.types import Minibatch, TrainingBatch, TrainingSequence, UpdateReport, Weights

STAGES = (0, 1, 2, 3)
Recordings = dict[int, list[dict[Any, Any]]]
UNCHECKED = 1e6  # a log-probability gap that never stops: these sequences come from no sampler
MARKER = 777.0
LOSSES: dict[str, PolicyLoss] = {
    "policy gradient": PolicyGradientLoss(importance_cap=None),
    "truncated importance": PolicyGradientLoss(importance_cap=1.05),
    "clipped": ClippedLoss(clip_range=0.1),
}
GRADIENTS = (  # loss, tokens a micro-batch: from one sequence each to all at once
    ("policy gradient", 10), ("policy gradient", 50), ("policy gradient", 4096),
    ("truncated importance", 50), ("clipped", 50),
)  # fmt: skip


def make_sequences(count: int, seed: int, whole: bool = False, behaviour: float = -5.76) -> list[TrainingSequence]:
    """Random sequences of uneven lengths; with `whole` all tokens but the first are scored. The behaviour's
    log-probabilities lie about the tiny model's own (-log 320 = -5.77), so that ratios fall on both sides of a clip."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(count):
        length = int(rng.integers(4, 30))
        start = 1 if whole else int(rng.integers(1, length))
        scored = length - start
        sequences.append(
            TrainingSequence(
                input_ids=rng.integers(0, 300, length),
                start=start,
                advantages=rng.normal(size=scored).astype(np.float32),
                behaviour_logprobs=rng.normal(behaviour, 0.15, scored).astype(np.float32),
                weights=rng.uniform(0.5, 1.5, scored).astype(np.float32) / count,
            )
        )
    return sequences


class ExplodingLoss(PolicyGradientLoss):
    """Infinite on tokens whose advantage is MARKER: only the rank that holds such a sequence sees it."""

    def __call__(self, logprobs: torch.Tensor, behaviour: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        losses = super().__call__(logprobs, behaviour, advantages)
        return losses + torch.where(advantages == MARKER, torch.inf, 0.0)  # the gradient stays finite


@dataclass(frozen=True)
class Case:
    """Updates of a learner and of the loop: update i takes `counts[i]` sequences."""

    optimizer: OptimizerConfig
    counts: tuple[int, ...]
    budget: int = 4096
    loss: PolicyLoss = LOSSES["policy gradient"]
    whole: bool = False
    model: str = "llama"

    def batches(self) -> list[list[TrainingSequence]]:
        return [make_sequences(count, seed=number, whole=self.whole) for number, count in enumerate(self.counts)]


@dataclass
class Recorded:
    start: dict[str, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    grad_norms: list[float] = field(default_factory=list)
    micro_batches: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


CASES = {
    "accumulation and clip": Case(AdamWConfig(lr=1e-3, max_grad_norm=0.01), counts=(24,) * 5, budget=120),
    "neither": Case(AdamWConfig(lr=1e-3, max_grad_norm=None), counts=(8,) * 5, whole=True),
    "neither, gpt2": Case(AdamWConfig(lr=1e-3, max_grad_norm=None), counts=(8,) * 5, whole=True, model="gpt2"),
    "changing accumulation": Case(SGDConfig(lr=0.01, max_grad_norm=None), counts=(24, 12, 4, 12, 2), budget=120),
}


def build(model: str, rank: int, world: int, stage: int, **options: Any) -> Learner:
    settings: dict[str, Any] = {
        "loss": LOSSES["policy gradient"],
        "value": None,
        "optimizer": AdamWConfig(lr=1e-3),
        "tokens_per_micro_batch": 4096,
        "max_logprob_gap": UNCHECKED,
        "temperature": 1.0,
    } | options
    config = LearnerConfig(
        ranks=world,
        zero_stage=stage,  # type: ignore[arg-type]
        tokens_per_micro_batch=settings["tokens_per_micro_batch"],
        max_logprob_gap=settings["max_logprob_gap"],
    )
    objective = settings["loss"] if isinstance(settings["loss"], Objective) else Objective(settings["loss"])
    optimizer, temperature = settings["optimizer"], settings["temperature"]
    return Learner(
        model, objective, optimizer, config, temperature, 10, "cpu", rank, world, value=settings["value"]
    )  # fmt: skip


def step(learner: Learner, sequences: list[TrainingSequence], iteration: int) -> UpdateReport:
    """An update of one optimizer step over all of them."""
    return learner.update(TrainingBatch.one_step(sequences), iteration)


def one_batch(sequences: list[TrainingSequence]) -> MicroBatch:
    """All of them in one micro-batch."""
    everything = Minibatch(tuple(range(len(sequences))))
    packed = pack_sequences(sequences, Limits(vocabulary=320, context=None), with_values=False)
    return collate(packed, everything.indices, everything)


def learner_run(case: Case, model: str, rank: int, world: int, stage: int) -> Recorded:
    learner = build(
        model, rank, world, stage, loss=case.loss, optimizer=case.optimizer, tokens_per_micro_batch=case.budget
    )
    recorded = Recorded(start=arrays_of(learner.weights()))
    for iteration, sequences in enumerate(case.batches()):
        metrics = step(learner, sequences, iteration).metrics
        recorded.grad_norms.append(metrics["learner/grad_norm"])
        recorded.micro_batches.append(int(metrics["learner/micro_batches"]))
        recorded.tokens.append(int(metrics["learner/tokens"]))
    recorded.arrays = arrays_of(learner.weights())
    learner.close()
    return recorded


def loop_run(case: Case, model: str, rank: int, world: int) -> Recorded:
    """The same updates in a bare loop of PyTorch's DistributedDataParallel."""
    policy = load_policy_plain(model)
    ddp = DistributedDataParallel(policy)
    settings = case.optimizer
    optimizer = (
        torch.optim.AdamW(policy.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        if isinstance(settings, AdamWConfig)
        else torch.optim.SGD(policy.parameters(), lr=settings.lr)
    )
    recorded = Recorded()
    for sequences in case.batches():
        plan = plan_micro_batches([len(s) for s in sequences], world, case.budget)
        shard = plan.ranks[rank]
        for number, indices in enumerate(shard, start=1):
            batch = one_batch([sequences[i] for i in indices])
            with contextlib.nullcontext() if number == len(shard) else ddp.no_sync():
                logits = ddp(batch.input_ids, use_cache=False, return_dict=False, logits_to_keep=batch.columns)[0]
                logprobs = selected_logprobs(logits, batch.targets, 1.0)
                losses = case.loss(logprobs, batch.behaviour_logprobs, batch.advantages)
                ((batch.weights * losses).sum() * world).backward()
        limit = settings.max_grad_norm or float("inf")
        recorded.grad_norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), limit)))
        optimizer.step()
        optimizer.zero_grad()
    recorded.arrays = {name: value.detach().numpy().copy() for name, value in policy.named_parameters()}
    return recorded


def load_policy_plain(model: str) -> torch.nn.Module:
    """The layers of any model's folder, a reward model's too, without anything of ours."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for part in policy.modules():
        if isinstance(part, torch.nn.Embedding):
            part.padding_idx = None
    return policy


def gradients(model: str, rank: int, world: int, stage: int) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """(loss, budget) -> the gradient that SGD with learning rate 1 took away. Five sequences: uneven on two ranks."""
    taken = {}
    start = arrays_of_module(load_policy_plain(model))
    for name, budget in GRADIENTS:
        case = Case(SGDConfig(lr=1.0, max_grad_norm=None), counts=(5,), budget=budget, loss=LOSSES[name])
        recorded = learner_run(case, model, rank, world, stage)
        taken[name, budget] = {key: start[key] - value for key, value in recorded.arrays.items()}
    return taken


def resume(folder: Path, model: str, rank: int, world: int, stage: int) -> dict[str, Any]:
    """Two updates, save, two more; and a new learner that loads and makes the last two."""
    batches = [make_sequences(12, seed) for seed in range(4)]
    learner = build(model, rank, world, stage, tokens_per_micro_batch=120)
    for iteration in (0, 1):
        step(learner, batches[iteration], iteration)
    state = folder / f"state-{world}-{stage}"
    learner.save_state(state)
    saved_random = torch.get_rng_state()
    learner.save_model(folder / f"model-{world}-{stage}")
    at_save = arrays_of(learner.weights())
    reports = [step(learner, batches[iteration], iteration) for iteration in (2, 3)]
    straight = learner.weights()
    learner.close()

    resumed = build(model, rank, world, stage, tokens_per_micro_batch=120)
    torch.manual_seed(99)
    resumed.load_state(state)
    same_random = torch.equal(torch.get_rng_state(), saved_random)
    again = [step(resumed, batches[iteration], iteration) for iteration in (2, 3)]
    weights = resumed.weights()
    resumed.close()
    return {
        "at save": at_save,
        "straight": straight,
        "resumed": weights,
        "same metrics": [report.metrics for report in reports] == [report.metrics for report in again],
        "same random": same_random,
    }


def refused_update(model: str, rank: int, world: int, stage: int, loss: PolicyLoss, mark: float) -> dict[str, Any]:
    """One good update, then one whose last and longest sequence is marked: what is raised, and what the weights do."""
    learner = build(model, rank, world, stage, loss=loss, tokens_per_micro_batch=60)
    step(learner, make_sequences(9, seed=0), 0)
    before = arrays_of(learner.weights())
    sequences = make_sequences(9, seed=1)
    longest = max(range(9), key=lambda i: len(sequences[i]))
    sequences[longest].advantages[-1] = mark
    message = again = ""
    try:
        step(learner, sequences, 1)
    except LearnerError as error:
        message = str(error)
    try:
        step(learner, make_sequences(9, seed=2), 2)
    except LearnerError as error:
        again = str(error)
    after = arrays_of(learner.weights())
    learner.close()
    same = all(np.array_equal(before[name], after[name]) for name in before)
    return {"message": message, "again": again, "unchanged": same, "version": learner.version}


def arrays_of(weights: Weights | None) -> dict[str, np.ndarray]:
    return dict(weights.arrays) if weights is not None else {}


def arrays_of_module(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in module.named_parameters()}


def run(folder: Path, rank: int, world: int) -> dict[Any, Any]:
    """Everything that is compared, by name; collective."""
    gc.freeze()  # ZeRO stage 3 collects garbage whenever it is built
    results: dict[Any, Any] = {}
    model = str(folder / "llama")
    for stage in STAGES:
        for name, case in CASES.items():
            results[name, stage] = learner_run(case, str(folder / case.model), rank, world, stage)
        results["gradients", stage] = gradients(model, rank, world, stage)
        results["resume", stage] = resume(folder, model, rank, world, stage)
        exploding = ExplodingLoss(importance_cap=None)
        results["infinite loss", stage] = refused_update(model, rank, world, stage, exploding, MARKER)
    results["nan advantage"] = refused_update(model, rank, world, 2, LOSSES["clipped"], float("nan"))
    for name, case in CASES.items():  # after the learners: the process group is theirs
        results[name, "loop"] = loop_run(case, str(folder / case.model), rank, world)
    return results


def main(record: Callable[[Path, int, int], dict[Any, Any]]) -> None:
    """One rank, as the command line says; what it records goes to rank-RANK.pickle in the folder."""
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    (folder / f"rank-{rank}.pickle").write_bytes(pickle.dumps(record(folder, rank, world)))


def run_ranks(folder: Path, record: Callable[[Path, int, int], dict[Any, Any]]) -> Recordings:
    """World size -> what each rank recorded: one rank here, two in processes of their own, which run its module."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", record.__module__, str(folder)]
    root = Path(__file__).parents[1]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(rank), "2"], cwd=root, env=environment, **pipes) for rank in range(2)]
    try:
        results = {1: [record(folder, 0, 1)]}
        errors = [process.communicate(timeout=200)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)[-4000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    results[2] = [pickle.loads((folder / f"rank-{rank}.pickle").read_bytes()) for rank in range(2)]
    return results


if __name__ == "__main__":
    from tests import learner_process  # so that what is pickled has a module of that name, not __main__

    main(learner_process.run)
