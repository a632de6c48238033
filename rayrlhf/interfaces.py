"""The contracts that plugins implement: environments, rewards, sampling engines, algorithms.

Plugins import this module and `types.py`; the core never imports a plugin by name (`plugins.py` loads them).
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from rayrlhf.types import EpisodeScore, Generation, IntArray, TrainingSequence, Trajectory


class Environment(Protocol):
    """Gymnasium's contract with text for observations and actions (`gymnasium.Env[str, str]` satisfies it)."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]: ...

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """Returns observation, reward of this step, terminated, truncated, info."""
        ...


RewardValues = Sequence[float | Sequence[float]]
"""One entry an episode: a number for the whole episode, or one number a turn."""


class Reward(Protocol):
    """Scores whole trajectories, a batch at a time.

    `__call__` returns one entry a trajectory, in order: a finite number for the whole episode (credited to its last
    turn) or a sequence of one finite number a turn. It may be a coroutine function. Its constructor's keyword
    arguments are its parameters: `{name: letter_count, letter: e}` calls `LetterCount(letter="e")`. It must be
    deterministic, and a batch must score as its trajectories do one by one.
    """

    def __call__(self, trajectories: Sequence[Trajectory]) -> RewardValues | Awaitable[RewardValues]: ...


class Sampler(Protocol):
    """A policy that continues token sequences."""

    def sample(self, prompts: Sequence[IntArray], seeds: Sequence[int]) -> list[Generation]:
        """One generation for each (prompt ids [P], seed); equal prompts share their prefill.

        The result is a function of the weights and of this call's arguments alone, and its last bits depend on the
        batch as a whole: callers that need the same bits again repeat the same call.
        """
        ...


class Algorithm(Protocol):
    """Turns scored episodes into training sequences, and says which loss the learner minimises over them."""

    def prepare(
        self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]
    ) -> tuple[list[TrainingSequence], Mapping[str, float]]:
        """Returns one training sequence a turn and metrics under SPEC X-10 names."""
        ...

    def shaped_rewards(self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]) -> NDArray[np.float64]:
        """What is maximised of each episode, [N]: its score minus its KL penalty (SPEC X-4)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state that a resumed run needs (a moving average, a controller)."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
