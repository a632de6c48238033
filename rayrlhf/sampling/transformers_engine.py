"""The default sampling engine: one batched decode loop over a transformers model with a KV cache.

Prompts are padded on the left, equal prompts share one prefill, finished sequences leave the batch, and each
sequence draws from its own stream of random numbers, so a batch gives the same tokens wherever it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from rayrlhf.types import FinishReason, FloatArray, Generation, IntArray

COMPACT_BELOW = 0.75  # the batch is compacted when less than this share of it is unfinished


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How to sample."""

    max_new_tokens: int
    temperature: float = 1.0  # divides the logits
    top_k: int | None = None  # draw from the k likeliest tokens only
    top_p: float | None = None  # draw from the smallest set of tokens of this mass only
    score_prompt: bool = False  # also return log-probabilities of the prompt's tokens


class TransformersSampler:
    """Samples from a causal language model of transformers. The model may be trained or loaded between calls."""

    def __init__(self, model: nn.Module, eos_token_id: int, settings: SamplingSettings):
        self.model = model
        self.eos_token_id = eos_token_id
        self.settings = settings

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[IntArray],
        seeds: Sequence[int],
        greedy: Sequence[bool] | None = None,
        ends: Callable[[IntArray], bool] | None = None,
    ) -> list[Generation]:
        """One generation for each (prompt [P], seed), in order; see `interfaces.Sampler`.

        greedy: whose tokens are the likeliest instead of drawn; none by default. ends: whether response ids [t] end with
        their last one; by default where that is EOS.
        """
        if not prompts:
            return []
        if min(len(prompt) for prompt in prompts) == 0:
            raise ValueError("a prompt has no tokens: start it with the model's BOS or EOS token")
        device = next(self.model.parameters()).device
        limit = self.settings.max_new_tokens
        uniforms = np.stack([uniform_stream(seed, limit) for seed in seeds])
        decoding, logits, prompt_logprobs = self._prefill(prompts, device)
        drawn = Drawn.room(len(prompts), limit)
        rows = np.arange(len(prompts))  # which sequence each row of the batch is
        live = np.ones(len(prompts), bool)  # of the batch's rows
        likeliest = None if greedy is None or not any(greedy) else np.array(greedy)
        for step in range(limit):
            fixed = None if likeliest is None else torch.from_numpy(likeliest[rows]).to(device)
            tokens, *logprobs = self._draw(logits, torch.from_numpy(uniforms[rows, step]).to(device), fixed)
            ids = tokens.cpu().numpy()
            drawn.keep(step, rows[live], ids[live], *(values.cpu().numpy()[live] for values in logprobs))
            if ends is None:
                live &= ids != self.eos_token_id
            else:
                live[live] = [not ends(drawn.ids[row, : step + 1]) for row in rows[live]]
            if step + 1 == limit or not live.any():
                break
            if live.sum() < COMPACT_BELOW * len(rows):
                kept = torch.from_numpy(live.nonzero()[0]).to(device)
                decoding.select(kept)
                tokens, rows, live = tokens[kept], rows[live], live[live]
            logits = decoding.advance(self.model, tokens)
        return [drawn.generation(i, self.eos_token_id, prompt_logprobs[i], ends) for i in range(len(prompts))]

    def _prefill(self, prompts: Sequence[IntArray], device: torch.device) -> tuple[Decoding, Tensor, list[np.ndarray]]:
        """Runs each distinct prompt once and spreads its cache over the rows that share it."""
        distinct: dict[bytes, int] = {}
        index = [distinct.setdefault(prompt.tobytes(), len(distinct)) for prompt in prompts]
        firsts = [prompts[index.index(i)] for i in range(len(distinct))]
        longest = max(len(prompt) for prompt in firsts)
        ids = torch.zeros(len(firsts), longest, dtype=torch.long)
        mask = torch.zeros(len(firsts), longest + self.settings.max_new_tokens, dtype=torch.long)
        for row, prompt in enumerate(firsts):
            ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, longest - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        padded = len({len(prompt) for prompt in firsts}) > 1
        decoding = Decoding(
            cache=_preallocated_cache(self.model, longest + self.settings.max_new_tokens),
            mask=mask if padded else None,
            positions=mask[:, :longest].sum(1),
            length=longest,
        )
        output = self.model(
            input_ids=ids,
            attention_mask=mask[:, :longest] if padded else None,
            position_ids=(mask[:, :longest].cumsum(1) - 1).clamp(min=0),
            past_key_values=decoding.cache,
            use_cache=True,
            logits_to_keep=0 if self.settings.score_prompt else 1,
        )
        prompt_logprobs = [np.zeros(0, np.float32)] * len(firsts)
        if self.settings.score_prompt:
            scores = self._log_softmax(output.logits[:, :-1]).gather(-1, ids[:, 1:, None]).squeeze(-1).cpu().numpy()
            prompt_logprobs = [scores[row, longest - len(prompt) :].copy() for row, prompt in enumerate(firsts)]
        spread = torch.tensor(index, device=device)
        decoding.select(spread)
        return decoding, output.logits[:, -1].index_select(0, spread), [prompt_logprobs[i] for i in index]

    def _log_softmax(self, logits: Tensor) -> Tensor:
        return (logits.float() / self.settings.temperature).log_softmax(-1)

    def _draw(self, logits: Tensor, uniform: Tensor, greedy: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B] by inversion of the cumulative distribution, or the likeliest where `greedy`, and their full and
        filtered log-probabilities [B]."""
        full = self._log_softmax(logits)
        filtered = filter_logprobs(full, self.settings.top_k, self.settings.top_p)
        cumulative = filtered.exp().double().cumsum(-1)  # double: 100,000 single-precision terms would drift
        target = uniform.unsqueeze(-1) * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
        if greedy is not None:
            token = torch.where(greedy.unsqueeze(-1), full.argmax(-1, keepdim=True), token)
        return (
            token.squeeze(-1),
            full.gather(-1, token).squeeze(-1),
            filtered.gather(-1, token).squeeze(-1),
        )


def uniform_stream(seed: int, count: int) -> np.ndarray:
    """The numbers in [0, 1) that an episode draws its tokens with, one a token, [count]."""
    return np.random.Generator(np.random.Philox(seed)).random(count)


def filter_logprobs(logprobs: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Renormalised log-probabilities [B, V] of the top-k, then top-p (nucleus, Holtzman et al. 2020) tokens.

    The likeliest token always stays; dropped tokens have -inf. Applied to every token alike (SPEC LMHP-25).
    """
    if top_k is not None and top_k < logprobs.shape[-1]:
        kth = logprobs.topk(top_k, dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < kth, -torch.inf).log_softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = logprobs.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass of the likelier tokens
        dropped = (before >= top_p).scatter(-1, order, before >= top_p)
        logprobs = logprobs.masked_fill(dropped, -torch.inf).log_softmax(-1)
    return logprobs


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a batch has sampled so far: [B, limit] each, filled from the left."""

    ids: IntArray
    logprobs: FloatArray  # nats, full distribution
    filtered_logprobs: FloatArray  # nats, of the distribution drawn from
    lengths: IntArray  # [B] tokens of each sequence

    @classmethod
    def room(cls, batch: int, limit: int) -> Drawn:
        shape = (batch, limit)
        return cls(
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.float32),
            np.zeros(batch, np.int64),
        )

    def keep(
        self, step: int, rows: IntArray, ids: IntArray, logprobs: FloatArray, filtered_logprobs: FloatArray
    ) -> None:
        """Takes the token that each of these rows has drawn at this step, their EOS included."""
        self.ids[rows, step] = ids
        self.logprobs[rows, step] = logprobs
        self.filtered_logprobs[rows, step] = filtered_logprobs
        self.lengths[rows] = step + 1

    def generation(
        self, row: int, eos_token_id: int, prompt_logprobs: FloatArray, ends: Callable[[IntArray], bool] | None
    ) -> Generation:
        length = int(self.lengths[row])
        ids = self.ids[row, :length]
        finish: FinishReason = "eos" if ids[-1] == eos_token_id else "stop"
        ended = finish == "eos" if ends is None else ends(ids)
        return Generation(
            response_ids=ids,
            logprobs=self.logprobs[row, :length],
            filtered_logprobs=self.filtered_logprobs[row, :length],
            prompt_logprobs=prompt_logprobs,
            finish=finish if ended else "length",
        )


@dataclass(slots=True)
class Decoding:
    """A batch in the middle of decoding: its cache, which positions of it are real, and where each row stands."""

    cache: Cache
    mask: Tensor | None  # [B, capacity] 0 at left padding, 1 elsewhere; None where nothing is padded
    positions: Tensor  # [B] position id of each row's next token
    length: int  # columns of the cache in use

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders rows of the batch."""
        self.cache.batch_select_indices(rows)
        self.mask = None if self.mask is None else self.mask.index_select(0, rows)
        self.positions = self.positions.index_select(0, rows)

    def advance(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Feeds one token [B] a row; returns the logits [B, V] of the next."""
        self.length += 1
        logits = model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=None if self.mask is None else self.mask[:, : self.length],
            position_ids=None if self.mask is None else self.positions.unsqueeze(1),
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        self.positions = self.positions + 1
        return logits[:, -1]


class PreallocatedLayer(DynamicLayer):
    """A full-attention cache layer that writes into room set aside at the start, where the stock one copies all keys
    and values at each token."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.room_keys: Tensor | None = None  # [B, H, capacity, D]
        self.room_values: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.room_keys is None or self.room_values is None:
            self.room_keys = self._room(key_states)
            self.room_values = self._room(value_states)
        self.room_keys[:, :, start:end] = key_states
        self.room_values[:, :, start:end] = value_states
        self.keys, self.values = self.room_keys[:, :, :end], self.room_values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.room_keys is None or self.room_values is None:
            return
        length = self.get_seq_length()
        self.room_keys = self.room_keys.index_select(0, indices)
        self.room_values = self.room_values.index_select(0, indices)
        self.keys, self.values = self.room_keys[:, :, :length], self.room_values[:, :, :length]

    def _room(self, states: Tensor) -> Tensor:
        return states.new_empty(*states.shape[:-2], self.capacity, states.shape[-1])


def _preallocated_cache(model: nn.Module, capacity: int) -> Cache:
    """The model's own kind of cache, with its plain growing layers replaced by preallocated ones."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    cache = DynamicCache(config=config)
    if not cache.layers:
        cache.layers = [DynamicLayer() for _ in range(config.num_hidden_layers)]
    cache.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
