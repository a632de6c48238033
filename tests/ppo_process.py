"""One rank of a learner that does PPO with a value network; test_ppo_learner.py compares what this records.

Two ranks: `python -m tests.ppo_process FOLDER RANK WORLD` each, with MASTER_ADDR and MASTER_PORT set. FOLDER holds the
policy `llama`, the reward model `reward` and another language model `other`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.algorithm_config import AdamWConfig, HeadValueConfig, SeparateValueConfig, SGDConfig, ValueConfig
from rayrlhf.errors import LearnerError
from rayrlhf.learner import Learner
from rayrlhf.losses import Objective, ValueObjective
from rayrlhf.types import AllowedTokens, Minibatch, TrainingBatch, TrainingSequence, ValueQuery
from rayrlhf.weights import checksum, to_array
from tests.learner_process import LOSSES, MARKER, STAGES, ExplodingLoss, arrays_of, build, main

OBJECTIVE = Objective(LOSSES["clipped"], entropy_coef=0.05, value=ValueObjective(clip_range=0.1, coef=0.5))
EXPLODING = replace(OBJECTIVE, policy=ExplodingLoss(importance_cap=None))
COUNT = 7  # sequences: uneven on two ranks
MINIBATCHES = (  # two epochs of two, each of whose losses has a scale of its own, as have its advantages
    Minibatch((4, 0, 2), 7 / 3, 0.1, 1.5, 2.0), Minibatch((1, 3, 6, 5), 7 / 4, -0.2, 0.5, 2.5),
    Minibatch((6, 5, 4), 7 / 3, 0.0, 1.0, 1.5), Minibatch((3, 2, 1, 0), 7 / 4, 0.3, 2.0, 1.0),
)  # fmt: skip


def allowed_tokens(ids: np.ndarray, rng: np.random.Generator) -> AllowedTokens:
    """For each token of `ids` none to four allowed ones, itself among them; none stands for the whole vocabulary."""
    ranges = []
    for token in ids:
        others = np.delete(np.arange(300), token)
        count = int(rng.integers(0, 5))
        ranges.append(rng.permutation([token, *rng.choice(others, count - 1, replace=False)]) if count else [])
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in ranges])])
    flat = np.concatenate([np.asarray(one, np.int64) for one in ranges])
    return AllowedTokens(flat, offsets, np.zeros(len(flat), np.float32), np.zeros(len(flat), np.float32))


def ppo_sequences(constrained: bool, seed: int = 0, count: int = COUNT) -> list[TrainingSequence]:
    """Ragged sequences. Behaviour log-probabilities lie about those of a nearly uniform policy, and old values about
    0, so that ratios and values fall on both sides of their clips. Some tokens carry one loss alone."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(count):
        length = int(rng.integers(4, 30))
        start = int(rng.integers(1, length))
        scored = length - start
        ids = rng.integers(0, 300, length)
        allowed = allowed_tokens(ids[start:], rng) if constrained else None
        counts = allowed.counts if allowed is not None else np.zeros(scored)
        uniform = np.where(counts > 0, -np.log(np.maximum(counts, 1)), -np.log(320))

        def numbers(deviation: float, n: int = scored) -> np.ndarray:
            return rng.normal(0, deviation, n).astype(np.float32)

        weights = rng.uniform(0.5, 1.5, (2, scored)).astype(np.float32) / count
        weights[0] *= rng.random(scored) < 0.8
        weights[1] *= rng.random(scored) < 0.8
        behaviour = (uniform + np.where(counts == 1, 0, numbers(0.15))).astype(np.float32)
        reference = (2 * uniform - behaviour).astype(np.float32)  # as far from uniform, on the other side
        sequences.append(
            TrainingSequence(
                ids, start, numbers(1), behaviour, weights[0], allowed, reference, numbers(0.2), numbers(1), weights[1]
            )
        )
    return sequences


def value_configs(folder: Path, lr: float) -> dict[str, ValueConfig]:
    sgd = SGDConfig(lr=lr, max_grad_norm=None)
    return {
        "reward model": SeparateValueConfig(init=str(folder / "reward"), optimizer=sgd),
        "own start": SeparateValueConfig(optimizer=sgd, head="mlp"),
        "head": HeadValueConfig(),
        "mlp head": HeadValueConfig(head="mlp"),
        "detached head": HeadValueConfig(detach=True),
    }


def ppo_learner(folder: Path, rank: int, world: int, stage: int, value: ValueConfig, **options: Any) -> Learner:
    settings = {"loss": OBJECTIVE, "optimizer": SGDConfig(lr=1.0, max_grad_norm=None), "tokens_per_micro_batch": 60}
    return build(str(folder / "llama"), rank, world, stage, value=value, **settings | options)


def value_arrays(learner: Learner) -> dict[str, np.ndarray]:
    """The value network's parameters, or the head's."""
    part = learner._critic or learner._network.head
    engine = learner._engines["value" if learner._critic else "policy"]
    assert part is not None
    return {name: to_array(tensor) for name, tensor in engine.gather(part)}


def queries(sequences: list[TrainingSequence]) -> list[ValueQuery]:
    return [ValueQuery(sequence.input_ids, sequence.start) for sequence in sequences]


def taken(
    folder: Path, rank: int, world: int, stage: int, name: str, lr: float, batch: TrainingBatch
) -> dict[str, Any]:
    """One update by plain gradient steps: parameters before and after, values before and after, metrics; what is saved
    lies in a folder of its own."""
    value = value_configs(folder, lr)[name]
    learner = ppo_learner(folder, rank, world, stage, value, optimizer=SGDConfig(lr=lr, max_grad_norm=None))
    asked = queries(list(batch.sequences))
    before = {"policy": arrays_of(learner.weights()), "value": value_arrays(learner), "values": learner.values(asked)}
    report = learner.update(batch, 0)
    after = {"policy": arrays_of(learner.weights()), "value": value_arrays(learner), "values": learner.values(asked)}
    saved = folder / f"saved-{name.replace(' ', '-')}-{world}-{stage}-{len(batch.minibatches)}"
    learner.save_model(saved / "model")
    learner.save_value(saved / "value")
    learner.close()
    return {"before": before, "after": after, "metrics": report.metrics, "version": report.version, "saved": saved}


def resume(folder: Path, rank: int, world: int, stage: int, value: ValueConfig) -> dict[str, Any]:
    """Two updates of two steps, save, two more; and a new learner that loads and makes the last two."""
    halves = (Minibatch(tuple(range(6))), Minibatch(tuple(range(6, 12))))
    batches = [TrainingBatch(tuple(ppo_sequences(True, seed, 12)), halves) for seed in range(4)]
    optimizer = AdamWConfig(lr=1e-3, warmup_iterations=3)
    outcome = []
    for resumed in (False, True):
        learner = ppo_learner(folder, rank, world, stage, value, optimizer=optimizer, tokens_per_micro_batch=120)
        state = folder / f"state-{value.kind}-{world}-{stage}"
        if resumed:
            learner.load_state(state)
        reports = []
        for iteration in range(2 if resumed else 0, 4):
            if iteration == 2 and not resumed:
                learner.save_state(state)
            reports.append(learner.update(batches[iteration], iteration).metrics)
        values = learner.values(queries(list(batches[0].sequences)))
        outcome.append((reports[-2:], arrays_of(learner.weights()), value_arrays(learner), values, learner.version))
        learner.close()
    return {"straight": outcome[0], "resumed": outcome[1]}


def stopped(folder: Path, rank: int, world: int, minibatches: int, target_kl: float | None) -> dict[str, Any]:
    """An update of so many equal steps."""
    sequences = tuple(ppo_sequences(True))
    batch = TrainingBatch(sequences, (Minibatch(tuple(range(COUNT))),) * minibatches, target_kl=target_kl)
    sgd = SGDConfig(lr=0.1, max_grad_norm=None)
    learner = ppo_learner(folder, rank, world, 2, value_configs(folder, 0.01)["own start"], optimizer=sgd)
    report = learner.update(batch, 0)
    result = {"metrics": report.metrics, "policy": arrays_of(learner.weights()), "value": value_arrays(learner)}
    learner.close()
    return result


def exploding(folder: Path, rank: int, world: int) -> str:
    """What is said where a loss is infinite in the second of two steps."""
    sequences = ppo_sequences(True)
    marked = int(np.argmax([len(sequence) for sequence in sequences]))
    sequences[marked].advantages[-1] = MARKER
    sequences[marked].weights[-1] = 1.0
    others = tuple(i for i in range(COUNT) if i != marked)
    batch = TrainingBatch(tuple(sequences), (Minibatch(others), Minibatch((marked,))))
    learner = ppo_learner(folder, rank, world, 2, value_configs(folder, 0.1)["own start"], loss=EXPLODING)
    try:
        learner.update(batch, 0)
    except LearnerError as error:
        return str(error)
    finally:
        learner.close()
    return ""


def later_minibatch_off(folder: Path, rank: int, world: int, stage: int, kind: str) -> dict[str, Any]:
    """What is said, and what becomes of the weights, where one token that the third of four steps trains on was sampled
    with a log-probability 5 nats off and 3 are allowed."""
    sequences = ppo_sequences(True)
    token = int(np.flatnonzero(sequences[5].weights)[0])
    sequences[5].behaviour_logprobs[token] += 5
    steps = (Minibatch((0, 1)), Minibatch((2, 3)), Minibatch((4, 5)), Minibatch((6,)))
    value = value_configs(folder, 0.1)[kind]
    learner = ppo_learner(folder, rank, world, stage, value, max_logprob_gap=3.0)
    before = checksum(arrays_of(learner.weights())), checksum(value_arrays(learner))
    try:
        learner.update(TrainingBatch(tuple(sequences), steps), 0)
        message = ""
    except LearnerError as error:
        message = str(error)
    after = checksum(arrays_of(learner.weights())), checksum(value_arrays(learner))
    learner.close()
    return {"message": message, "unchanged": before == after}


def run(folder: Path, rank: int, world: int) -> dict[Any, Any]:
    """Everything that is compared, by name; collective."""
    gc.freeze()  # ZeRO stage 3 collects garbage whenever it is built
    results: dict[Any, Any] = {}
    constrained, free = tuple(ppo_sequences(True)), tuple(ppo_sequences(False))
    steps = TrainingBatch(constrained, MINIBATCHES)
    for stage in STAGES:
        one = TrainingBatch.one_step(constrained)
        results["gradient", stage] = taken(folder, rank, world, stage, "reward model", 1.0, one)
        for name in ("reward model", "mlp head"):
            results[name, stage] = taken(folder, rank, world, stage, name, 0.05, steps)
        own = SeparateValueConfig(optimizer=AdamWConfig(lr=1e-2, max_grad_norm=0.01))
        results["resume", "separate", stage] = resume(folder, rank, world, stage, own)
        for kind in ("own start", "head"):
            results["later minibatch off", kind, stage] = later_minibatch_off(folder, rank, world, stage, kind)
    results["resume", "head", 3] = resume(folder, rank, world, 3, HeadValueConfig())
    results["gradient, free"] = taken(folder, rank, world, 2, "reward model", 1.0, TrainingBatch.one_step(free))
    for name in ("own start", "head", "detached head"):
        results[name, 2] = taken(folder, rank, world, 2, name, 0.05, steps)
    results["unlimited"] = stopped(folder, rank, world, 5, None)
    results["limited"] = stopped(folder, rank, world, 5, results["unlimited"]["metrics"]["policy/approxkl"] / 2)
    results["that many"] = stopped(folder, rank, world, int(results["limited"]["metrics"]["policy/steps"]), None)
    results["exploding"] = exploding(folder, rank, world)
    return results


if __name__ == "__main__":
    main(run)
