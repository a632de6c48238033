"""The default sampling engine: one batched decode loop over a transformers model with a KV cache.

Prompts are padded on the left, equal prompts share one prefill, finished sequences leave the batch, and each
sequence draws from its own stream of random numbers, so a batch gives the same tokens wherever it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rayrlhf.ends import ends_beside
from rayrlhf.policy import score_tokens
from rayrlhf.sampling.agreement import agreement
from rayrlhf.sampling.decoding import Decoding, start_decoding
from rayrlhf.sampling.plain_decoding import PlainDecoding, last_logits
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


@dataclass(frozen=True, slots=True)
class CachedWay:
    """A way to sample with the model's cache."""

    name: str
    mask_steps: bool  # of `start_decoding`

    def __call__(self, model: nn.Module, sequences: Sequence[IntArray]) -> tuple[list[Tensor], list[IntArray]]:
        """The trial of `agreement`: a prefill, rows that are repeated and left out, two tokens and one more."""
        prompts = [ids[: max(1, len(ids) - 3)] for ids in sequences]
        decoding, logits, _ = start_decoding(model, prompts, 3, mask_steps=self.mask_steps)
        found, held = list(logits[:, -1]), list(prompts)
        last: list[Tensor] = []
        for step in range(3):
            rows = [[2, 0, 1, 0], [0, 1, 2, 3], [1, 2]][step]
            decoding.select(torch.tensor(rows, device=logits.device))
            held = [np.append(held[row], (step + row) % 2) for row in rows]
            last = list(decoding.advance(model, torch.tensor([ids[-1] for ids in held], device=logits.device)))
        return [*found, *last], [*prompts, *held]


CACHED_WAYS = (
    CachedWay("its cache, prompts padded on the left", mask_steps=True),
    CachedWay("its cache, padding told with the prompts alone", mask_steps=False),
)


def cached_way(model: nn.Module) -> CachedWay | None:
    """The first way with a cache that agrees with plain forward passes; None where none does."""
    return next((way for way in CACHED_WAYS if agreement(model, way.name, way).agrees), None)


class TransformersSampler:
    """Samples from a causal language model of transformers. The model may be trained or loaded between calls.

    Where no cached way agrees with plain forward passes the sequences are read anew at each token.
    """

    def __init__(self, model: nn.Module, eos_token_id: int | Collection[int], settings: SamplingSettings):
        """eos_token_id: what ends a response: a set of ends, or one of those that the model's generation config names."""
        self.model = model
        self.eos_token_id = eos_token_id
        self.settings = settings
        self._way = cached_way(model)

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end a response."""
        return ends_beside(self.eos_token_id, getattr(self.model, "generation_config", None))

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
        their last one; by default where that is one of the ends.
        """
        if not prompts:
            return []
        if min(len(prompt) for prompt in prompts) == 0:
            raise ValueError("a prompt has no tokens: start it with the model's BOS or EOS token")
        device = next(self.model.parameters()).device
        limit, end_ids = self.settings.max_new_tokens, self.ends
        uniforms = np.stack([uniform_stream(seed, limit) for seed in seeds])
        decoding, logits, prompt_logprobs = self._prefill(prompts)
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
                live &= ~np.isin(ids, end_ids)
            else:
                live[live] = [not ends(drawn.ids[row, : step + 1]) for row in rows[live]]
            if step + 1 == limit or not live.any():
                break
            if live.sum() < COMPACT_BELOW * len(rows):
                kept = torch.from_numpy(live.nonzero()[0]).to(device)
                decoding.select(kept)
                tokens, rows, live = tokens[kept], rows[live], live[live]
            logits = decoding.advance(self.model, tokens)
        return [drawn.generation(i, end_ids, prompt_logprobs[i], ends) for i in range(len(prompts))]

    def _prefill(self, prompts: Sequence[IntArray]) -> tuple[Decoding | PlainDecoding, Tensor, list[np.ndarray]]:
        """Runs each distinct prompt once and spreads its cache over the rows that share it."""
        distinct: dict[bytes, int] = {}
        index = [distinct.setdefault(prompt.tobytes(), len(distinct)) for prompt in prompts]
        firsts = [prompts[index.index(i)] for i in range(len(distinct))]
        scored = [np.zeros(0, np.float32)] * len(firsts)
        decoding: Decoding | PlainDecoding
        if self._way is None:
            decoding, last = PlainDecoding(firsts), last_logits(self.model, firsts)
            if self.settings.score_prompt:
                scored = score_tokens(self.model, firsts, [1] * len(firsts), self.settings.temperature)
        else:
            decoding, logits, ids = start_decoding(
                self.model, firsts, self.settings.max_new_tokens, self.settings.score_prompt, self._way.mask_steps
            )
            last, longest = logits[:, -1], ids.shape[1]
            if self.settings.score_prompt:
                scores = self._log_softmax(logits[:, :-1]).gather(-1, ids[:, 1:, None]).squeeze(-1).cpu().numpy()
                scored = [scores[row, longest - len(prompt) :].copy() for row, prompt in enumerate(firsts)]
        spread = torch.tensor(index, device=last.device)
        decoding.select(spread)
        return decoding, last.index_select(0, spread), [scored[i] for i in index]

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
        self, row: int, end_ids: Collection[int], prompt_logprobs: FloatArray, ends: Callable[[IntArray], bool] | None
    ) -> Generation:
        length = int(self.lengths[row])
        ids = self.ids[row, :length]
        finish: FinishReason = "eos" if ids[-1] in end_ids else "stop"
        ended = finish == "eos" if ends is None else ends(ids)
        return Generation(
            response_ids=ids,
            logprobs=self.logprobs[row, :length],
            filtered_logprobs=self.filtered_logprobs[row, :length],
            prompt_logprobs=prompt_logprobs,
            finish=finish if ended else "length",
        )
