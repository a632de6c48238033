"""Token sequences end to end in flat arrays: checked once an update, cut into micro-batches without a loop over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayrlhf.errors import LearnerError, NotFiniteError
from rayrlhf.types import AllowedTokens, FloatArray, IntArray, TrainingBatch, TrainingSequence, ValueQuery

PER_TOKEN = ("advantages", "behaviour_logprobs", "weights")
OF_VALUES = ("values", "returns", "value_weights")
OF_REFERENCE = ("reference_logprobs",)
OF_MINIBATCH = ("scale", "advantage_shift", "advantage_scale", "value_scale")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model takes."""

    vocabulary: int  # token ids are below
    context: int | None  # most tokens; None: as many as one likes


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """n sequences of L_i tokens, of which the last S_i = L_i - start_i are scored."""

    ids: IntArray  # [sum of L]
    offsets: IntArray  # [n+1] where each sequence begins in `ids`
    starts: IntArray  # [n]
    scored_offsets: IntArray  # [n+1] where the scored tokens of each begin in arrays of all scored tokens

    @property
    def lengths(self) -> IntArray:
        return np.diff(self.offsets)

    def padded(self, indices: IntArray) -> IntArray:
        """[B, longest] ids of the sequences at `indices`, zeros on the right; one row of two zeros where there are none."""
        lengths = self.lengths[indices]
        ids = np.zeros((max(1, len(indices)), int(lengths.max(initial=2))), np.int64)
        rows, places = ragged(lengths)
        ids[rows, places] = self.ids[self.offsets[indices][rows] + places]
        return ids

    def scored(self, indices: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Of each scored token of the sequences at `indices`, [N] each: its row, the column whose output speaks of it
        (SPEC X-1: that of the token before), and its index among all scored tokens."""
        rows, places = ragged(np.diff(self.scored_offsets)[indices])
        return rows, self.starts[indices][rows] - 1 + places, self.scored_offsets[indices][rows] + places


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """All training sequences of an update; S = scored tokens of all of them."""

    tokens: PackedTokens
    advantages: FloatArray  # [S]
    behaviour_logprobs: FloatArray  # [S] nats
    weights: FloatArray  # [S]
    reference_logprobs: FloatArray  # [S] nats; zeros without a KL loss that takes them
    values: FloatArray  # [S]; zeros without a value network, as the two below
    returns: FloatArray  # [S]
    value_weights: FloatArray  # [S]
    allowed_ids: IntArray  # [A]
    allowed_offsets: IntArray  # [S+1]; an empty range stands for the whole vocabulary
    chosen: IntArray  # [S] the scored token's place in its range; 0 where that is empty


def pack_tokens(sequences: Sequence[TrainingSequence | ValueQuery], name: str, limits: Limits) -> PackedTokens:
    """Lays sequences end to end; `name` is what a message calls one.

    Raises:
        LearnerError: names the first malformed one. What one rank alone would trip over leaves the others waiting.
    """
    starts = np.array([sequence.start for sequence in sequences], np.int64)
    lengths = np.array([len(sequence.input_ids) for sequence in sequences], np.int64)
    for i in _faults((starts < 1) | (starts >= lengths)):
        raise _error(name, i, len(starts), f"start {starts[i]} must lie in 1 .. {lengths[i] - 1}, its tokens less one")
    for i in _faults(lengths > (limits.context or np.inf)):
        fault = f"its {lengths[i]} tokens are more than the {limits.context} that the model takes"
        raise _error(name, i, len(starts), fault)
    ids = np.concatenate([sequence.input_ids for sequence in sequences])
    offsets = _offsets(lengths)
    for i in _faults((ids < 0) | (ids >= limits.vocabulary)):
        number, _ = _place(offsets, i)
        fault = f"token id {ids[i]} lies outside the model's vocabulary of {limits.vocabulary}"
        raise _error(name, number, len(starts), fault)
    return PackedTokens(ids, offsets, starts, _offsets(lengths - starts))


def pack_sequences(
    sequences: Sequence[TrainingSequence], limits: Limits, with_values: bool, with_reference: bool = False
) -> PackedSequences:
    """Lays training sequences end to end; `with_values` says whether there is a value network to fit, `with_reference`
    whether there is a KL loss that takes the reference's log-probabilities.

    Raises:
        LearnerError: names the first malformed sequence and what is wrong with it.
    """
    tokens = pack_tokens(sequences, "training sequence", limits)
    scored = np.diff(tokens.scored_offsets)
    optional = (OF_VALUES if with_values else ()) + (OF_REFERENCE if with_reference else ())
    names = (*PER_TOKEN, *optional)
    for number, sequence in enumerate(sequences):
        fault = _shape_fault(sequence, int(scored[number]), names)
        if fault:
            raise _error("training sequence", number, len(sequences), fault)
    flat = {name: np.concatenate([getattr(sequence, name) for sequence in sequences]) for name in names}
    for name, values in flat.items():
        for i in _faults(~np.isfinite(values)):
            number, token = _place(tokens.scored_offsets, i)
            fault = f"{name} is not finite at scored token {token}"
            raise NotFiniteError(str(_error("training sequence", number, len(sequences), fault)))
    missing = {
        name: np.zeros(int(scored.sum()), np.float32) for name in (*OF_VALUES, *OF_REFERENCE) if name not in flat
    }
    rows, columns, _ = tokens.scored(np.arange(len(sequences)))
    ids, offsets, chosen = _pack_allowed(sequences, tokens, tokens.ids[tokens.offsets[rows] + columns + 1], limits)
    return PackedSequences(tokens=tokens, **flat, **missing, allowed_ids=ids, allowed_offsets=offsets, chosen=chosen)


def check_minibatches(batch: TrainingBatch) -> None:
    """Raises LearnerError where a batch's minibatches are not steps over its sequences, or its kl_coef is no number."""
    if not batch.sequences:
        raise LearnerError("no training sequences: an update needs at least one")
    if not batch.minibatches:
        raise LearnerError("no minibatches: an update needs at least one optimizer step")
    if not np.isfinite(batch.kl_coef):
        raise LearnerError(f"kl_coef must be finite, not {batch.kl_coef}; no weight was changed")
    for i, minibatch in enumerate(batch.minibatches):
        indices = np.asarray(minibatch.indices, np.int64)
        if not len(indices) or indices.min() < 0 or indices.max() >= len(batch.sequences):
            fault = f"its indices must be one or more of 0 .. {len(batch.sequences) - 1}"
            raise _error("minibatch", i, len(batch.minibatches), fault)
        numbers = {name: getattr(minibatch, name) for name in OF_MINIBATCH}
        if not np.isfinite(list(numbers.values())).all():
            fault = f"{', '.join(OF_MINIBATCH)} must be finite, not {numbers}"
            raise _error("minibatch", i, len(batch.minibatches), fault)


def unseen_in_first(batch: TrainingBatch) -> list[int]:
    """The sequences with a policy loss that the first minibatch leaves to later ones, rising."""
    first, *later = (minibatch.indices for minibatch in batch.minibatches)
    return [i for i in sorted(set().union(*later) - set(first)) if batch.sequences[i].weights.any()]


def _shape_fault(sequence: TrainingSequence, scored: int, names: Sequence[str]) -> str | None:
    for name in names:
        if getattr(sequence, name).shape != (scored,):
            return f"{name} has shape {getattr(sequence, name).shape} for {scored} scored tokens"
    allowed = sequence.allowed
    if allowed is not None:
        counts = allowed.counts
        if len(counts) != scored or allowed.offsets[0] or allowed.offsets[-1] != len(allowed.ids) or counts.min() < 0:
            return (
                f"allowed.offsets must rise from 0 to its {len(allowed.ids)} ids in {scored} ranges, one a scored "
                f"token, not {len(counts)}"
            )
    return None


def _pack_allowed(
    sequences: Sequence[TrainingSequence], tokens: PackedTokens, targets: IntArray, limits: Limits
) -> tuple[IntArray, IntArray, IntArray]:
    """Allowed ids [A], offsets [S+1] and each target's place in its range [S]; targets [S] are the tokens taken."""

    def refuse(index: int, fault: str) -> LearnerError:
        number, token = _place(tokens.scored_offsets, index)
        return _error("training sequence", number, len(sequences), f"{fault} at scored token {token}")

    scored = np.diff(tokens.scored_offsets)
    allowed = [
        sequence.allowed or AllowedTokens.everything(int(n)) for sequence, n in zip(sequences, scored, strict=True)
    ]
    ids = np.concatenate([one.ids for one in allowed])
    counts = np.concatenate([one.counts for one in allowed])
    owners, places = ragged(counts)
    for i in _faults((ids < 0) | (ids >= limits.vocabulary)):
        raise refuse(owners[i], f"allowed token id {ids[i]} lies outside the model's vocabulary of {limits.vocabulary}")
    taken = ids == targets[owners]
    for i in _faults((counts > 0) & (np.bincount(owners[taken], minlength=len(counts)) != 1)):
        raise refuse(i, f"token id {targets[i]} must stand among its allowed tokens, once,")
    distinct, firsts = np.unique(owners * limits.vocabulary + ids, return_index=True)
    if len(distinct) < len(ids):
        twice = int(np.setdiff1d(np.arange(len(ids)), firsts)[0])
        raise refuse(owners[twice], f"token id {ids[twice]} is allowed twice")
    chosen = np.zeros(len(counts), np.int64)
    chosen[owners[taken]] = places[taken]
    return ids, _offsets(counts), chosen


def ragged(lengths: IntArray) -> tuple[IntArray, IntArray]:
    """Row and place within it of every element of rows of so many elements, [sum of lengths] each."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _offsets(lengths: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _place(offsets: IntArray, index: int) -> tuple[int, int]:
    """The sequence that a flat index lies in, and its place within it."""
    number = int(np.searchsorted(offsets, index, "right")) - 1
    return number, int(index - offsets[number])


def _faults(bad: NDArray[np.bool_]) -> list[int]:
    return np.flatnonzero(bad).tolist()


def _error(name: str, number: int, count: int, fault: str) -> LearnerError:
    return LearnerError(f"{name} {number} of {count}: {fault}; no weight was changed")
