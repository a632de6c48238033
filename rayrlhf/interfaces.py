"""The contracts that plugins and parts implement: environments, rewards, actors, sampling engines, algorithms.

Plugins import this module and `types.py`; the core never imports a plugin by name (`plugins.py` loads them).
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from rayrlhf.types import (
    Action,
    EpisodeScore,
    FloatArray,
    GameState,
    Generation,
    IntArray,
    Situation,
    StepResult,
    TrainingBatch,
    Trajectory,
    Turn,
    ValueQuery,
)


class Environment(Protocol):
    """Gymnasium's contract with text for observations and actions (`gymnasium.Env[str, str]` satisfies it).

    `reset(seed=n)` starts the n-th episode: equal seeds start equal episodes. `info` may say more, each key with the
    meaning of the field of that name of `types.GameState`: commands, score, max_score, won, lost, valid, objective,
    solution, key.
    """

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


class Environments(Protocol):
    """Many episodes played side by side, each in a slot of its own; slots are numbered 0, 1, ... by `reset`.

    `Environment` is one game for one player; this is what a rollout plays with. Equal seeds and actions give equal
    results whatever else is played beside.
    """

    def reset(self, seeds: Sequence[int]) -> list[StepResult]:
        """Starts len(seeds) episodes anew, slot i with seeds[i], and forgets all that were under way."""
        ...

    def step(self, actions: Mapping[int, str]) -> dict[int, StepResult]:
        """Takes one action in each of the slots named. Raises EpisodeError that names the slot's fault."""
        ...

    def counts(self) -> Mapping[str, float]:
        """Counters since the last call, under env/* names (steps, memo hits, retries by cause, seconds)."""
        ...

    def close(self) -> None: ...


class Prompter(Protocol):
    """The agent's text: what the policy is shown at each turn, token in, token out (SPEC TW-6, TW-7)."""

    def prompt(self, turns: Sequence[Turn], observation: str, state: GameState) -> IntArray:
        """Prompt ids [P], P >= 1, of the decision that is due after `turns`."""
        ...

    def command_ids(self, command: str) -> IntArray:
        """The response [T] that stands for a command, its closing token included; the same ids at every turn."""
        ...

    def decode(self, ids: IntArray) -> str:
        """Response ids [T] as text without special tokens."""
        ...


class Actor(Protocol):
    """Whoever plays: the policy in training, a baseline, a person at the keyboard."""

    def act(self, situations: Sequence[Situation]) -> list[Action]:
        """One action for each situation, in order; called with all running episodes of a batch at once."""
        ...


class Sampler(Protocol):
    """A policy that continues token sequences."""

    def sample(self, prompts: Sequence[IntArray], seeds: Sequence[int]) -> list[Generation]:
        """One generation for each (prompt ids [P], seed); equal prompts share their prefill.

        The result is a function of the weights and of this call's arguments alone, and its last bits depend on the
        batch as a whole: callers that need the same bits again repeat the same call.
        """
        ...


class Algorithm(Protocol):
    """Turns scored episodes into what the learner fits, and says which objective the learner minimises over it."""

    objective: Any  # a losses.Objective

    def value_queries(self, trajectories: Sequence[Trajectory]) -> list[ValueQuery]:
        """Which values the algorithm needs of the value network before `prepare`; none where it has no such network."""
        ...

    def prepare(
        self,
        trajectories: Sequence[Trajectory],
        scores: Sequence[EpisodeScore],
        values: Sequence[FloatArray],
        seed: int,
    ) -> tuple[TrainingBatch, Mapping[str, float]]:
        """The update's batch and metrics under SPEC X-10 names.

        `values` answer `value_queries`, [S] each; `seed` decides how minibatches are drawn.
        """
        ...

    def updated(self, objective: Mapping[str, float], episodes: int) -> None:
        """Called after each update with the metrics that `prepare` gave and the number of its episodes."""
        ...

    def multiply_kl(self, factor: float) -> None:
        """Raises or lowers the KL coefficients from now on."""
        ...

    def turn_values(
        self, trajectories: Sequence[Trajectory], values: Sequence[FloatArray]
    ) -> list[Sequence[float] | None]:
        """Of each episode the value of the state before each turn, for the log; None without a value network."""
        ...

    def shaped_rewards(self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]) -> NDArray[np.float64]:
        """What is maximised of each episode, [N]: its score minus its KL penalty (SPEC X-4)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state that a resumed run needs (a moving average, a controller)."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
