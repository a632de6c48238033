"""Next-token logits of token sequences of which most was fed before: the key-value cache of prompts that grow.

A row of the cache is one distinct sequence. What a sequence has beyond its row is fed as one block, padded on the left;
padding and tokens that were taken back stay in the cache as holes that the attention mask leaves out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

from rayrlhf.forward import takes
from rayrlhf.losses import selected_logprobs
from rayrlhf.sampling.agreement import agreement, has_window
from rayrlhf.sampling.decoding import cache_options, empty_cache
from rayrlhf.sampling.plain_decoding import last_logits, tail_logits
from rayrlhf.types import FloatArray, IntArray

State = tuple[Cache, Tensor, Tensor]  # cache of R rows, mask [R, columns] with 0 at holes, logits [R, V] after each row
TOKENS_AT_ONCE = 8192  # most positions, cached ones included, of the rows that one forward pass of `following` takes


class PrefixCache:
    """The cache of one model over the episodes that are played together. `reset` it whenever the weights changed.

    Results equal those of a forward pass over each whole sequence up to rounding, and are a function of the weights
    and the calls since the last reset.
    """

    def __init__(self, model: nn.Module, reuse: bool | None = None):
        """reuse: whether what was fed before is kept, which no trial is then to prove; None: where a model bears it."""
        self.model = model
        if reuse is None:
            reuse = agreement(model, "its cache, with holes", _trial).agrees
        self._reusable = reuse
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._cache: Cache | None = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)  # [R, columns] 0 at holes
        self._sequences: list[IntArray] = []  # of each row, what its unmasked columns hold
        self._row_of: dict[int, int] = {}  # episode -> row

    @torch.inference_mode()
    def extend(self, episodes: Sequence[int], sequences: Sequence[IntArray]) -> tuple[IntArray, Tensor]:
        """Makes the cache hold these sequences [L >= 1] and nothing else, feeding only what it lacks.

        An episode's sequence is compared with what that episode had last. Returns which row each has become [B] (equal
        sequences share one) and the logits [R, V] of the token after each row.
        """
        if min(len(sequence) for sequence in sequences) == 0:
            raise ValueError("a prompt has no tokens: start it with the model's BOS or EOS token")
        numbers: dict[bytes, int] = {}
        index = [numbers.setdefault(sequence.tobytes(), len(numbers)) for sequence in sequences]
        wanted = [sequences[index.index(i)] for i in range(len(numbers))]
        askers: list[list[int]] = [[] for _ in wanted]
        for episode, i in zip(episodes, index, strict=True):
            askers[i].append(episode)
        if not self._reusable:
            self._sequences = wanted
            return np.array(index), last_logits(self.model, wanted)
        order, logits = self._hold(wanted, [self._source(*pair) for pair in zip(wanted, askers, strict=True)])
        self._sequences = [wanted[i] for i in order]
        rows = np.argsort(order)[index]
        self._row_of = dict(zip(episodes, rows.tolist(), strict=True))
        return rows, logits

    @torch.inference_mode()
    def following(self, rows: Sequence[int], suffixes: Sequence[IntArray]) -> Tensor:
        """Logits [N, V] after row rows[i] and then suffixes[i] [S >= 1]; the cache stays as it is."""
        return torch.cat([logits[:, -1] for logits, _ in self._continued(rows, suffixes, every=False)])

    @torch.inference_mode()
    def continuation_logprobs(
        self, opened: Tensor, rows: Sequence[int], continuations: Sequence[IntArray]
    ) -> list[FloatArray]:
        """Full-vocabulary log-probabilities [T] of the tokens of each continuation [T >= 1] of row rows[i], in nats.

        opened: the logits [R, V] that `extend` returned. The cache stays as it is.
        """
        heads = [int(tokens[0]) for tokens in continuations]
        scores = opened.float()[rows, heads] - opened.float().logsumexp(-1)[rows]
        results = [np.array([score], np.float32) for score in scores.tolist()]
        longer = [i for i, tokens in enumerate(continuations) if len(tokens) > 1]
        suffixes = [continuations[i][:-1] for i in longer]
        for logits, part in self._continued([rows[i] for i in longer], suffixes, every=True):
            targets = _left_padded([continuations[longer[member]][1:] for member in part])
            found = selected_logprobs(logits, torch.from_numpy(targets).to(logits.device), 1.0).cpu().numpy()
            for row, member in enumerate(part):
                i = longer[member]
                results[i] = np.append(results[i], found[row, found.shape[1] - len(suffixes[member]) :])
        return results

    def _source(self, sequence: IntArray, episodes: Sequence[int]) -> tuple[int, int]:
        """The row that holds most of the beginning of the sequence, and how many tokens; the last is always fed."""
        rows = dict.fromkeys(self._row_of[episode] for episode in episodes if episode in self._row_of)
        found = [(min(_common(self._sequences[row], sequence), len(sequence) - 1), row) for row in rows]
        kept, row = max(found, default=(0, 0), key=lambda pair: pair[0])
        return row, kept

    def _hold(self, wanted: Sequence[IntArray], sources: Sequence[tuple[int, int]]) -> tuple[list[int], Tensor]:
        """Feeds distinct sequences; returns which of them each row of the cache now is, and the rows' logits [R, V]."""
        growing = self._worth_growing(wanted, sources)
        starting = sorted(set(range(len(wanted))) - set(growing))
        states = []
        if growing:
            states.append(self._grown([wanted[i] for i in growing], [sources[i] for i in growing]))
        if starting:
            states.append(self._started([wanted[i] for i in starting]))
        self._cache, self._mask, logits = states[0] if len(states) == 1 else _stacked(*states)
        return growing + starting, logits

    def _worth_growing(self, wanted: Sequence[IntArray], sources: Sequence[tuple[int, int]]) -> list[int]:
        """The sequences of which at least half is cached; none once holes would take more room than tokens."""
        growing = [i for i, (_, kept) in enumerate(sources) if 2 * kept >= len(wanted[i])]
        width = max((len(wanted[i]) - sources[i][1] for i in growing), default=0)
        longest = max((len(wanted[i]) for i in growing), default=0)
        return growing if self._mask.shape[1] + width <= 2 * longest else []

    def _started(self, wanted: Sequence[IntArray]) -> State:
        cache = empty_cache(self.model)
        nothing = torch.zeros(len(wanted), 0, dtype=torch.long, device=next(self.model.parameters()).device)
        logits, mask = self._feed(cache, nothing, wanted)
        return cache, mask, logits[:, -1]

    def _grown(self, wanted: Sequence[IntArray], sources: Sequence[tuple[int, int]]) -> State:
        cache, mask = self._fork([row for row, _ in sources])
        kept = torch.tensor([count for _, count in sources], device=mask.device)
        mask = mask * (mask.cumsum(1) <= kept.unsqueeze(1))  # what differs from the sequence becomes a hole
        logits, mask = self._feed(
            cache, mask, [sequence[count:] for sequence, (_, count) in zip(wanted, sources, strict=True)]
        )
        return cache, mask, logits[:, -1]

    def _continued(
        self, rows: Sequence[int], suffixes: Sequence[IntArray], every: bool
    ) -> Iterator[tuple[Tensor, range]]:
        """Logits [n, S, V] over the suffixes, or over their last tokens unless `every` (S = 1), a part of them at a
        time, and which these are."""
        if not self._reusable:
            whole = [np.concatenate([self._sequences[row], suffix]) for row, suffix in zip(rows, suffixes, strict=True)]
            yield from tail_logits(self.model, whole, [len(suffix) if every else 1 for suffix in suffixes])
            return
        widest = max((len(suffix) for suffix in suffixes), default=0)
        at_once = max(1, TOKENS_AT_ONCE // (self._mask.shape[1] + widest))
        for start in range(0, len(rows), at_once):
            part = range(start, min(start + at_once, len(rows)))
            chunks = [suffixes[i] for i in part]
            keep = max(len(chunk) for chunk in chunks) if every else 1
            cache, mask = self._fork([rows[i] for i in part])
            logits, _ = self._feed(cache, mask, chunks, keep)
            yield logits, part

    def _fork(self, rows: Sequence[int]) -> tuple[Cache, Tensor]:
        """A cache of these rows, in this order, that may grow while the original stays."""
        assert self._cache is not None, "extend() comes first"
        fork = copy.copy(self._cache)
        fork.layers = [copy.copy(layer) for layer in self._cache.layers]
        if list(rows) == list(range(len(self._mask))):
            return fork, self._mask
        index = torch.tensor(rows, device=self._mask.device)
        fork.batch_select_indices(index)
        return fork, self._mask.index_select(0, index)

    def _feed(self, cache: Cache, mask: Tensor, chunks: Sequence[IntArray], keep: int = 1) -> tuple[Tensor, Tensor]:
        """Feeds a chunk a row, the longest of S tokens; returns the logits [R, keep, V] of the last columns and the mask
        with S columns more."""
        fed = _left_padded([np.ones(len(chunk), np.int64) for chunk in chunks])
        block = torch.from_numpy(fed).to(mask.device)
        positions = mask.sum(1, keepdim=True) + block.cumsum(1) - 1
        mask = torch.cat([mask, block], 1)
        logits = self.model(
            input_ids=torch.from_numpy(_left_padded(chunks)).to(mask.device),
            use_cache=True,
            **cache_options(
                self.model,
                cache,
                attention_mask=mask,
                position_ids=positions.clamp(min=0),
                logits_to_keep=keep,
            ),
        ).logits
        return logits[:, -keep:], mask


def _left_padded(rows: Sequence[IntArray]) -> IntArray:
    """The rows [N, S], S the longest, with zeros before each."""
    width = max(len(row) for row in rows)
    padded = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        padded[i, width - len(row) :] = row
    return padded


def _common(one: IntArray, other: IntArray) -> int:
    """How many tokens both begin with."""
    shorter = min(len(one), len(other))
    differ = one[:shorter] != other[:shorter]
    return int(differ.argmax()) if differ.any() else shorter


def _stacked(upper: State, lower: State) -> State:
    """The rows of both, columns at the right; the narrower has holes before its first. `upper` takes them all."""
    (cache, mask, logits), (other, other_mask, other_logits) = upper, lower
    width = max(mask.shape[1], other_mask.shape[1])
    left, other_left = width - mask.shape[1], width - other_mask.shape[1]
    layers: list[tuple[Any, Any]] = list(zip(cache.layers, other.layers, strict=True))
    for layer, beneath in layers:
        layer.keys = torch.cat([pad(layer.keys, (0, 0, left, 0)), pad(beneath.keys, (0, 0, other_left, 0))])
        layer.values = torch.cat([pad(layer.values, (0, 0, left, 0)), pad(beneath.values, (0, 0, other_left, 0))])
    masks = torch.cat([pad(mask, (left, 0)), pad(other_mask, (other_left, 0))])
    return cache, masks, torch.cat([logits, other_logits])


def _attends_to_everything(model: nn.Module) -> bool:
    """Whether all layers see all tokens before: one with a window counts columns, holes included, and a recurrent one
    cannot take tokens back. Where positions are told by nothing but columns, holes would shift them."""
    layers = empty_cache(model).layers
    return not has_window(model) and takes(model, "position_ids") and all(type(one) is DynamicLayer for one in layers)


def _trial(model: nn.Module, sequences: Sequence[IntArray]) -> tuple[list[Tensor], list[IntArray]]:
    """The trial of `agreement`: sequences that grow by unequal parts, one of which is taken back, and a suffix each."""
    if not _attends_to_everything(model):
        raise NotImplementedError("holes would shift what its layers see")
    cache = PrefixCache(model, reuse=True)
    starts = [ids[: max(1, len(ids) - 2)] for ids in sequences]
    rows, _ = cache.extend(range(len(starts)), starts)
    grown = [np.append(ids[:-1], [1] * more) for ids, more in zip(starts, (2, 1, 4), strict=True)]
    rows, logits = cache.extend(range(len(grown)), grown)
    suffixes = [np.array([0, 1][: 1 + row % 2]) for row in range(len(grown))]
    after = cache.following(rows.tolist(), suffixes)
    return [*logits[rows], *after], [*grown, *(np.append(*pair) for pair in zip(grown, suffixes, strict=True))]
