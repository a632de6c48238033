"""From turns to what the learner is handed: token sequences, weights that encode the reduction, and minibatches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from rayrlhf.advantages import whitening
from rayrlhf.algorithm_config import LossReduction
from rayrlhf.types import (
    AllowedTokens,
    FloatArray,
    IntArray,
    Minibatch,
    TrainingBatch,
    TrainingSequence,
    Trajectory,
    Turn,
    ValueQuery,
)


@dataclass(frozen=True, slots=True)
class TurnTarget:
    """What the loss is to do with one turn; its tokens are [T], or [P-1+T] where the prompt counts too."""

    advantages: FloatArray
    weights: FloatArray  # 0 where a token carries no policy loss
    values: FloatArray  # of the value network at the rollout; [0] without one
    returns: FloatArray  # [0] without a value network
    value_weights: FloatArray  # [0] without a value network


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive turns of an episode that one token sequence holds, as each prompt goes on from what was before it."""

    input_ids: IntArray  # [L]
    turns: tuple[int, ...]  # positions in the episode
    starts: tuple[int, ...]  # index of each turn's first response token

    def query(self) -> ValueQuery:
        return ValueQuery(self.input_ids, self.starts[0])


def segments(trajectory: Trajectory) -> list[Segment]:
    """The fewest sequences that hold all turns; a transcript that only grows is one."""
    found: list[Segment] = []
    for position, turn in enumerate(trajectory.turns):
        ids, start = np.concatenate([turn.prompt_ids, turn.response_ids]), len(turn.prompt_ids)
        last = found[-1].input_ids if found else None
        if last is not None and len(last) <= start and np.array_equal(ids[: len(last)], last):
            found[-1] = Segment(ids, (*found[-1].turns, position), (*found[-1].starts, start))
        else:
            found.append(Segment(ids, (position,), (start,)))
    return found


def training_sequence(
    segment: Segment, turns: Sequence[Turn], targets: Sequence[TurnTarget], with_reference: bool
) -> TrainingSequence:
    """The sequence of a segment, from all turns of its episode and their targets; `with_reference` says whether its loss
    takes the reference's log-probabilities.

    A target longer than its turn's response reaches back into the prompt; that takes a segment of one turn.
    """
    own = [(turns[i], targets[i]) for i in segment.turns]
    reach = len(own[0][1].weights) - len(own[0][0].response_ids)  # prompt tokens that count
    start = segment.starts[0] - reach
    places = [
        slice(begin - start - reach, begin - start + len(turn.response_ids))
        for begin, (turn, _) in zip(segment.starts, own, strict=True)
    ]
    scored = len(segment.input_ids) - start

    def spread(pieces: Sequence[FloatArray]) -> FloatArray:
        """Pieces of the turns at their places among the scored tokens, 0 between them; [0] where there are none."""
        if not any(len(piece) for piece in pieces):
            return np.zeros(0, np.float32)
        values = np.zeros(scored, np.float32)
        for place, piece in zip(places, pieces, strict=True):
            values[place] = piece
        return values

    behaviour = [np.concatenate([turn.prompt_logprobs, turn.logprobs]) if reach else turn.logprobs for turn, _ in own]
    reference = [
        np.concatenate([turn.prompt_reference_logprobs, turn.reference_logprobs]) if reach else turn.reference_logprobs
        for turn, _ in own
    ]
    return TrainingSequence(
        input_ids=segment.input_ids,
        start=start,
        advantages=spread([target.advantages for _, target in own]),
        behaviour_logprobs=spread(behaviour),
        weights=spread([target.weights for _, target in own]),
        allowed=_allowed([turn for turn, _ in own], places, scored),
        reference_logprobs=spread(reference if with_reference else ()),
        values=spread([target.values for _, target in own]),
        returns=spread([target.returns for _, target in own]),
        value_weights=spread([target.value_weights for _, target in own]),
    )


def _allowed(turns: Sequence[Turn], places: Sequence[slice], scored: int) -> AllowedTokens | None:
    sets = [turn.allowed for turn in turns]
    if all(allowed is None for allowed in sets):
        return None
    counts = np.zeros(scored, np.int64)
    for allowed, place in zip(sets, places, strict=True):
        if allowed is not None:
            counts[place.stop - len(allowed.counts) : place.stop] = allowed.counts
    held = [allowed for allowed in sets if allowed is not None]
    return AllowedTokens(
        ids=np.concatenate([allowed.ids for allowed in held]),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        logprobs=np.concatenate([allowed.logprobs for allowed in held]),
        reference_logprobs=np.concatenate([allowed.reference_logprobs for allowed in held]),
    )


def token_weights(tokens: Sequence[int], reduction: LossReduction) -> list[float]:
    """The weight of each token's loss in each of N episodes of `tokens` scored tokens, so that losses only add."""
    if reduction == "sequence_sum":
        return [1.0 / len(tokens)] * len(tokens)
    if reduction == "token_mean":
        return [1.0 / max(sum(tokens), 1)] * len(tokens)
    if reduction == "sequence_mean":
        return [1.0 / (len(tokens) * max(count, 1)) for count in tokens]
    if reduction == "group_sum":
        return [1.0 / max(count, 1) for count in tokens]
    raise ValueError(f"loss_reduction {reduction!r} is none of {get_args(LossReduction)}")


def split_into_minibatches(
    sequences: Sequence[TrainingSequence], reduction: LossReduction, epochs: int, minibatches: int, seed: int
) -> list[list[Minibatch]]:
    """For each epoch its minibatches, with the scales that make their losses stand for the whole batch's.

    All of an epoch's sequences come in one order drawn from the seed, cut into even parts: each is as likely as any other
    to be in a step. So N sequences over the minibatch's n is the factor without bias for losses that add up by sequences
    or episodes. `token_mean` is the mean over the minibatch's own tokens, of the policy's loss over those that carry it
    and of the value loss over its own: its tokens' part of all tokens is the factor's inverse.
    """
    if minibatches == 1:
        return [[Minibatch(tuple(range(len(sequences))))]] * epochs
    if reduction == "token_mean":
        of_policy = [int(np.count_nonzero(sequence.weights)) for sequence in sequences]
        of_values = [int(np.count_nonzero(sequence.value_weights)) for sequence in sequences]
    else:
        of_policy = of_values = [1] * len(sequences)
    rng = np.random.default_rng(seed)
    cuts = [np.array_split(rng.permutation(len(sequences)), minibatches) for _ in range(epochs)]
    return [
        [
            Minibatch(tuple(sorted(part.tolist())), _scale(of_policy, part), value_scale=_scale(of_values, part))
            for part in cut
            if len(part)
        ]
        for cut in cuts
    ]


def _scale(counts: Sequence[int], part: IntArray) -> float:
    """All of the counts over those of the part; 1 where these are 0, as there is no loss to scale."""
    own = sum(counts[i] for i in part)
    return sum(counts) / own if own else 1.0


def training_batch(
    sequences: Sequence[TrainingSequence],
    reduction: LossReduction,
    epochs: int,
    minibatches: int,
    target_kl: float | None,
    seed: int,
    whiten: bool = False,
    kl_coef: float = 0.0,
) -> TrainingBatch:
    """The update's optimizer steps; with `whiten` each minibatch's advantages get mean 0 and deviation 1. `kl_coef` is
    that of the KL loss, per nat."""
    steps = [
        step for epoch in split_into_minibatches(sequences, reduction, epochs, minibatches, seed) for step in epoch
    ]
    if whiten:
        steps = [_whitened(step, sequences) for step in steps]
    return TrainingBatch(tuple(sequences), tuple(steps), kl_coef=kl_coef, target_kl=target_kl)


def _whitened(minibatch: Minibatch, sequences: Sequence[TrainingSequence]) -> Minibatch:
    own = [sequences[i] for i in minibatch.indices]
    trained = [sequence.advantages[sequence.weights != 0].astype(np.float64) for sequence in own]
    shift, factor = whitening(np.concatenate(trained))
    return replace(minibatch, advantage_shift=shift, advantage_scale=factor)


def constant(turn: Turn, advantage: float, weight: float, include_prompt: bool) -> TurnTarget:
    """One advantage and weight for all tokens of a turn that the policy chose, and with `include_prompt` the prompt's."""
    counted = counted_tokens(turn, include_prompt)
    none = np.zeros(0, np.float32)
    return TurnTarget(
        advantages=np.where(counted, advantage, 0).astype(np.float32),
        weights=np.where(counted, weight, 0).astype(np.float32),
        values=none,
        returns=none,
        value_weights=none,
    )


def counted_tokens(turn: Turn, include_prompt: bool) -> NDArray[np.bool_]:
    """[T], or [P-1+T] with `include_prompt`: tokens that carry loss."""
    if not include_prompt:
        return turn.choices
    return np.concatenate([np.full(len(turn.prompt_ids) - 1, not turn.example), turn.choices])
