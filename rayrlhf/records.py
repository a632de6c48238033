"""What one iteration leaves in the records: metrics of its episodes and workers, and a line for each episode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayrlhf.kl import turn_kl
from rayrlhf.metrics import SampleRecord, turn_records
from rayrlhf.rollout import rollout_metrics
from rayrlhf.text_statistics import text_metrics
from rayrlhf.types import EpisodeScore, Trajectory
from rayrlhf.worker import PlayedBatch


def episode_metrics(trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]) -> dict[str, float]:
    """reward/*, rollout/* and text/* metrics of one iteration."""
    parts = {f"reward/{name}": float(np.mean([score.parts[name] for score in scores])) for name in scores[0].parts}
    lengths = [trajectory.response_tokens for trajectory in trajectories]
    responses = ["".join(turn.action for turn in trajectory.turns) for trajectory in trajectories]
    texts = text_metrics([trajectory.text for trajectory in trajectories], lengths, responses)
    return {**parts, **rollout_metrics(trajectories), **texts}


def worker_times(played: Sequence[PlayedBatch], wall: float, workers: int) -> dict[str, float]:
    """Where the workers' time went, in seconds a worker: they waited for whatever of `wall` is not in the parts."""
    load = sum(batch.load_seconds for batch in played) / workers
    sampling = sum(batch.sampling_seconds for batch in played) / workers
    environment = sum(batch.environment_seconds for batch in played) / workers
    reference = sum(batch.reference_seconds for batch in played) / workers
    return {
        "time/worker_load": load,
        "time/worker_sampling": sampling,
        "time/worker_environment": environment,
        "time/worker_reference": reference,
        "time/worker_waiting": wall - load - sampling - environment - reference,
    }


def environment_counts(played: Sequence[PlayedBatch]) -> dict[str, float]:
    """env/* counters of all batches of an iteration; their waiting is time/worker_environment."""
    totals: dict[str, float] = {}
    for batch in played:
        for name, count in batch.environment_counts.items():
            totals[name] = totals.get(name, 0.0) + count
    return {name: count for name, count in totals.items() if name != "env/wait_seconds"}


def evaluation_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """eval/* of held-out games: the share won, the mean score (of the game's maximum where it is known), turns."""
    ends = [trajectory.turns[-1].after for trajectory in trajectories]
    return {
        "eval/episodes": float(len(trajectories)),
        "eval/won": float(np.mean([end.won for end in ends])),
        "eval/score": float(np.mean([end.score / (end.max_score or 1.0) for end in ends])),
        "eval/turns": float(np.mean([len(trajectory.turns) for trajectory in trajectories])),
    }


def sample_record(
    run: str,
    iteration: int,
    trajectory: Trajectory,
    score: EpisodeScore,
    shaped: float,
    values: Sequence[float] | None,
) -> SampleRecord:
    """The line of `samples.jsonl` for one episode."""
    kl = float(sum(turn_kl(turn, False).sum(dtype=np.float64) for turn in trajectory.turns))
    return SampleRecord(
        run=run,
        iteration=iteration,
        index=trajectory.index,
        group=trajectory.group,
        prompt=trajectory.turns[0].observation,
        response=trajectory.text[len(trajectory.turns[0].observation) :],
        score=float(score.total.sum(dtype=np.float64)),
        parts=dict(score.parts),
        kl=kl,
        total=float(shaped),
        logprob_sum=float(sum(turn.logprobs.sum(dtype=np.float64) for turn in trajectory.turns)),
        reference_logprob_sum=float(sum(turn.reference_logprobs.sum(dtype=np.float64) for turn in trajectory.turns)),
        length=trajectory.response_tokens,
        finish=trajectory.turns[-1].finish,
        weights_version=trajectory.weights_version,
        turns=turn_records(trajectory, values),
    )
