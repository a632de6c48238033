"""Episodes of several turns with made-up numbers, for tests of algorithms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayrlhf.types import AllowedTokens, EpisodeScore, GameState, IntArray, Trajectory, Turn


def sets(sizes: Sequence[int], rng: np.random.Generator, reference: bool = True) -> AllowedTokens:
    """Allowed tokens 0 .. size - 1 at each token (0: the whole vocabulary), with random distributions over them."""
    logprobs, other = [], []
    for size in sizes:
        for values in (logprobs, other):
            scores = rng.normal(size=size)
            values.append(scores - np.log(np.exp(scores).sum()) if size else scores)
    return AllowedTokens(
        ids=np.concatenate([np.arange(size) for size in sizes]).astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        logprobs=np.concatenate(logprobs).astype(np.float32),
        reference_logprobs=np.concatenate(other if reference else logprobs).astype(np.float32),
    )


def turn(
    response: int,
    prompt: Sequence[int] = (1, 2, 3),
    reward: float = 0.0,
    kl: float = 0.0,
    sizes: Sequence[int] | None = None,
    ids: IntArray | None = None,
    example: bool = False,
    won: bool = False,
    seed: int = 0,
) -> Turn:
    """A turn of `response` tokens of log-probability -1, `kl` nats above the reference, or constrained to `sizes`."""
    allowed = None if sizes is None else sets(sizes, np.random.default_rng(seed))
    logprobs = np.full(response, -1.0, np.float32)
    reference = logprobs - np.float32(kl)
    if allowed is not None:  # token 0 was taken at each
        logprobs, reference = allowed.logprobs[allowed.offsets[:-1]], allowed.reference_logprobs[allowed.offsets[:-1]]
    none = np.zeros(0, np.float32)
    return Turn(
        observation="o", action="a", prompt_ids=np.array(prompt, np.int64),
        response_ids=np.zeros(response, np.int64) if ids is None else ids, logprobs=logprobs, filtered_logprobs=logprobs,
        reference_logprobs=reference, prompt_logprobs=none, prompt_reference_logprobs=none, reward=reward, finish="eos",
        allowed=allowed, after=GameState(won=won), example=example,
    )  # fmt: skip


def episode(turns: Sequence[Turn], terminated: bool = True, group: int = 0, index: int = 0) -> Trajectory:
    after = np.zeros(0, np.int64) if terminated else np.array([7, 8], np.int64)
    return Trajectory(group, index, 0, 0, 0, tuple(turns), terminated, not terminated, "end", after)


def score_of(trajectory: Trajectory) -> EpisodeScore:
    """The environment's own rewards as the score."""
    total = np.array([turn.reward for turn in trajectory.turns], np.float32)
    return EpisodeScore(total=total, parts={"game_score": float(total.sum())})
