"""The rules of `response_config.py`: finds stops in sampled responses, and penalises the scores of those without one.

A rollout worker marks each response (`ResponseRules`), a driver scores what the marks leave (`ResponseScorer`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rayrlhf.ends import end_set
from rayrlhf.errors import ConfigError
from rayrlhf.response_config import MissingStopConfig, ResponseConfig
from rayrlhf.shares import share_of
from rayrlhf.types import EpisodeScore, IntArray, Trajectory, Turn

PART = "missing_stop"
"""Name of the penalty among an episode's unweighted parts: how many of its responses were penalised."""


@dataclass(frozen=True, slots=True)
class Stop:
    """What ends a response."""

    text: str | None  # None: the EOS token
    after_tokens: int  # index of the first response token that may be it


def penalised_stop(config: ResponseConfig) -> Stop:
    """The stop whose absence is penalised: the penalty's own, what it leaves open taken from truncation; else EOS."""
    missing, truncation = config.missing_stop, config.truncation
    text = missing.text or (truncation.text if truncation is not None else None)
    if missing.after_tokens is not None:
        return Stop(text, missing.after_tokens)
    return Stop(text, truncation.after_tokens if truncation is not None else 0)


class StopFinder:
    """Finds one stop in the ids of responses."""

    def __init__(self, stop: Stop, decode: Callable[[IntArray], str], eos_token_id: int | Collection[int]):
        """`decode`: response ids as text without special tokens. `eos_token_id`: one end, or all of the model's."""
        self.stop = stop
        self._decode = decode
        self._ends = end_set(eos_token_id)
        self._may_complete = functools.cache(self._judge)

    def completed(self, ids: IntArray) -> bool:
        """Whether the last of these response ids [t] completes the stop: the text ends with it, and did not before."""
        if len(ids) <= self.stop.after_tokens:
            return False
        if self.stop.text is None:
            return int(ids[-1]) in self._ends
        if not self._may_complete(int(ids[-1])):
            return False
        text = self._decode(ids)
        return text.endswith(self.stop.text) and text != self._decode(ids[:-1])

    def tokens(self, ids: IntArray) -> int | None:
        """Tokens of the response up to its first stop, that included; None where it has none."""
        lengths = range(self.stop.after_tokens + 1, len(ids) + 1)
        return next((length for length in lengths if self.completed(ids[:length])), None)

    def _judge(self, token: int) -> bool:
        """Spares most tokens the text before them: this one alone does not end as the stop does. Blank ones and parts
        of a character may read otherwise in their place."""
        piece = self._decode(np.array([token]))
        return not piece.strip() or piece.endswith("\ufffd") or piece[-1] == (self.stop.text or "")[-1:]


@dataclass(frozen=True, slots=True)
class Marks:
    """What the rules say of one response."""

    shown_tokens: int | None = None  # rewards are shown its first so many tokens; None: all of them
    missing_stop: bool = False  # it is penalised


class ResponseRules:
    """The rules of a run, for the tokenizer of its policy."""

    def __init__(self, config: ResponseConfig, decode: Callable[[IntArray], str], eos_token_id: int | Collection[int]):
        truncation = config.truncation
        self._ends = end_set(eos_token_id)
        self._truncation: StopFinder | None = None
        self._penalised: StopFinder | None = None
        if truncation is not None:
            self._truncation = StopFinder(Stop(truncation.text, truncation.after_tokens), decode, eos_token_id)
        if config.missing_stop.mode != "none":
            self._penalised = StopFinder(penalised_stop(config), decode, eos_token_id)
        self.active = self._truncation is not None or self._penalised is not None
        self.stops_sampling = truncation is not None and not truncation.train_after_stop

    def ends(self, ids: IntArray) -> bool:
        """Whether response ids [t] end with their last one, where the rules stop the sampler: at EOS or at the stop."""
        assert self._truncation is not None
        return int(ids[-1]) in self._ends or self._truncation.completed(ids)

    def marks(self, ids: IntArray) -> Marks:
        """Of a whole response [T]."""
        shown = None
        if self._truncation is not None and not self.stops_sampling:
            shown = self._truncation.tokens(ids)
        missing = self._penalised is not None and self._penalised.tokens(ids[:shown]) is None
        return Marks(shown, missing)


class Scorer(Protocol):
    """Scores episodes, in order; `RewardProcess` and `RewardMixture` do."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of its parts."""
        ...

    def score(self, trajectories: Sequence[Trajectory]) -> list[EpisodeScore]: ...


class ResponseScorer:
    """Rewards that see responses as the run's rules leave them, with the penalty for missing stops."""

    def __init__(self, rewards: Scorer, config: ResponseConfig, max_new_tokens: int):
        """Raises ConfigError where a reward has the penalty's name."""
        if config.missing_stop.mode != "none" and PART in rewards.keys:
            raise ConfigError(
                f"a reward is named {PART}, as the penalty of response.missing_stop is: rename the reward"
            )
        self._rewards = rewards
        self._config = config
        self._max_new_tokens = max_new_tokens

    def score(self, trajectories: Sequence[Trajectory]) -> list[EpisodeScore]:
        """One score a trajectory, in order. Raises RewardError as the rewards do."""
        scores = self._rewards.score([as_shown(trajectory) for trajectory in trajectories])
        return [penalised(*pair, self._config.missing_stop) for pair in zip(scores, trajectories, strict=True)]

    def check_stops(self, trajectories: Sequence[Trajectory]) -> None:
        """Raises ConfigError where more than the share allowed of a run's first episodes is penalised (SPEC LMHP-17)."""
        missing = sum(any(turn.missing_stop for turn in trajectory.turns) for trajectory in trajectories)
        if missing > share_of(self._config.missing_stop.refuse_share, len(trajectories)):
            raise ConfigError(_refusal(missing, len(trajectories), self._config, self._max_new_tokens))


def as_shown(trajectory: Trajectory) -> Trajectory:
    """The episode that rewards see: where training goes on after the stop, each response ends with its stop."""
    if all(turn.shown_tokens is None for turn in trajectory.turns):
        return trajectory
    return replace(trajectory, turns=tuple(_cut(turn) for turn in trajectory.turns))


def _cut(turn: Turn) -> Turn:
    if turn.shown_tokens is None:
        return turn
    kept = slice(turn.shown_tokens)
    return replace(
        turn,
        response_ids=turn.response_ids[kept],
        logprobs=turn.logprobs[kept],
        filtered_logprobs=turn.filtered_logprobs[kept],
        reference_logprobs=turn.reference_logprobs[kept],
        vocabulary_kl=turn.vocabulary_kl[kept],
        finish="stop",
    )


def penalised(score: EpisodeScore, trajectory: Trajectory, config: MissingStopConfig) -> EpisodeScore:
    """The score of an episode with the penalty: `fixed` replaces the score of each turn whose response lacks its stop,
    of a single answer the whole score (SPEC LMHP-15); `add` adds to it. The parts stay, and the penalty is one more."""
    if config.mode == "none":
        return score
    missing = np.array([turn.missing_stop for turn in trajectory.turns])
    worth = config.value if config.mode == "fixed" else score.total + np.float32(config.value)
    total = np.where(missing, worth, score.total).astype(np.float32)
    return EpisodeScore(total, {**score.parts, PART: float(missing.sum())})


def _refusal(missing: int, episodes: int, config: ResponseConfig, max_new_tokens: int) -> str:
    stop, rule = penalised_stop(config), config.missing_stop
    name = "end with no EOS token" if stop.text is None else f"hold no stop {stop.text!r}"
    done = f"replaces their score by {rule.value:g}" if rule.mode == "fixed" else f"adds {rule.value:g} to their score"
    longer = "raise rollout.max_new_tokens"
    if stop.after_tokens:
        source = "missing_stop" if rule.after_tokens is not None else "truncation"
        longer += f", lower response.{source}.after_tokens"
    return (
        f"{missing} of the first {episodes} episodes ({missing / episodes:.0%}) {name} among their response tokens "
        f"{stop.after_tokens} to {max_new_tokens - 1} (after_tokens {stop.after_tokens}, rollout.max_new_tokens "
        f"{max_new_tokens}), so response.missing_stop {done}. More than response.missing_stop.refuse_share "
        f"{rule.refuse_share:g} of them are penalised: the reward itself would hardly be learnt. Either {longer}, give "
        "another stop with response.missing_stop.text, or leave the penalty out with response.missing_stop.mode=none; "
        "to train against it all the same, response.missing_stop.refuse_share=1"
    )
