"""A reward in a person's place: of two texts the one that it scores higher wins, within a margin it is a tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayrlhf.preferences.compare import BlindComparison
from rayrlhf.preferences.records import Best, Item
from rayrlhf.reward_contract import example_trajectory
from rayrlhf.reward_process import RewardProcess
from rayrlhf.types import Trajectory

_PAIRS_AT_ONCE = 32


def judge_all(comparison: BlindComparison, process: RewardProcess, name: str, margin: float) -> None:
    """Judges all pairs that wait. name: of the reward, kept as the rater.

    Raises:
        RewardError: the reward fails on a text.
    """
    waiting = comparison.waiting()
    for start in range(0, len(waiting), _PAIRS_AT_ONCE):
        batch = waiting[start : start + _PAIRS_AT_ONCE]
        scores = score(process, [item for pair in batch for item in pair.items])
        for pair, first, second in zip(batch, scores[::2], scores[1::2], strict=True):
            comparison.save(pair, verdict(first, second, margin), "judge", name, reason=f"{first:g} against {second:g}")


def verdict(first: float, second: float, margin: float) -> Best:
    return "tie" if abs(first - second) <= margin else int(second > first)


def score(process: RewardProcess, items: Sequence[Item]) -> list[float]:
    """The reward's total of each text as the only response to its prompt."""
    return [float(scored.total.sum()) for scored in process.score([trajectory_of(item) for item in items])]


def trajectory_of(item: Item) -> Trajectory:
    """The item as an episode of one turn; token ids are made up where they are not known, log-probabilities always."""
    trajectory = example_trajectory(item.prompt, item.text)
    if item.prompt_ids is None or item.text_ids is None:
        return trajectory
    logprobs = np.full(len(item.text_ids), -1.0, np.float32)
    turn = replace(
        trajectory.turns[0],
        prompt_ids=np.array(item.prompt_ids, np.int64),
        response_ids=np.array(item.text_ids, np.int64),
        logprobs=logprobs,
        filtered_logprobs=logprobs,
        reference_logprobs=logprobs,
    )
    return replace(trajectory, turns=(turn,))
