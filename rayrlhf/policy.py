"""Causal language models as policies: finding, loading and checking them, and scoring token sequences with them.

A model is whatever `from_pretrained` takes (a local folder or a hub name), or `tiny-stories`, which is shipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rayrlhf import model_config
from rayrlhf.config import ModelConfig
from rayrlhf.errors import ModelError
from rayrlhf.forward import logits_after
from rayrlhf.kl_estimators import VocabularyEstimator, vocabulary_kl
from rayrlhf.losses import selected_logprobs
from rayrlhf.model_config import other_shapes, read_model_config, why_not
from rayrlhf.model_paths import ASSETS as ASSETS
from rayrlhf.model_paths import resolve_model
from rayrlhf.types import AllowedTokens, FloatArray, IntArray

CHECKED_AT_ONCE_BYTES = 1_000_000_000  # a local model up to this size is loaded once before a run starts, as a check

transformers_logging.disable_progress_bar()
logger = logging.getLogger(__name__)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left (SPEC X-3). Raises ModelError."""
    path = resolve_model(config.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise ModelError(
            f"model {config.path}: its tokenizer does not load: {why_not(path, config.trust_remote_code, error)}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model {config.path}: its tokenizer has no end-of-sequence token, so no answer would ever end"
        )
    tokenizer.padding_side = "left"
    return tokenizer


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names a vocabulary: under equal ones token ids mean the same."""
    entries = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return hashlib.sha256(entries).hexdigest()[:16]


def load_policy(config: ModelConfig, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """The causal language model in evaluation mode: dropout is off in every part of a run (SPEC ALLIT-2).

    Raises ModelError where it does not load, lacks weights, has some that are no numbers, or is no causal language model.
    """
    path = resolve_model(config.path)
    read_model_config(config, path)
    model = load_whole(
        AutoModelForCausalLM, path, f"model {config.path}", dtype=dtype, trust_remote_code=config.trust_remote_code
    )
    return model.to(device).eval()


def load_whole(factory: Any, path: str | Path, name: str, **options: Any) -> Any:
    """What `factory.from_pretrained` makes of all the weights at `path`; `name` is what a message calls it.

    Raises ModelError where it does not load, lacks weights, or has some that are not finite.
    """
    options.setdefault("trust_remote_code", False)  # transformers' default asks at the terminal
    try:
        with _one_line_each():
            model, report = factory.from_pretrained(path, output_loading_info=True, **options)
    except Exception as error:
        reason = why_not(path, options["trust_remote_code"], error)
        reason = other_shapes(factory, path, **options) or reason
        raise ModelError(f"{name} does not load: {reason}") from error
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing:
        raise ModelError(f"{name} lacks weights and would start at random: {', '.join(missing[:5])}")
    if unused:
        logger.warning("%s: %d tensors of its files are not used: %s", name, len(unused), ", ".join(unused[:3]))
    check_finite_weights(model, name)
    return model


@contextlib.contextmanager
def _one_line_each() -> Iterator[None]:
    """transformers prints a table of every tensor that is wrong; here errors name the first."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@torch.no_grad()
def check_finite_weights(model: nn.Module, name: str) -> None:
    """Raises ModelError, naming the first tensor, where weights as they were loaded are NaN or infinite."""
    wrong = [
        (key, tensor)
        for key, tensor in model.named_parameters()
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all()
    ]
    if wrong:
        key, tensor = wrong[0]
        count = int((~tensor.isfinite()).sum())
        more = f", as are those of {len(wrong) - 1} other tensors" if len(wrong) > 1 else ""
        raise ModelError(
            f"{name}: {count} of the {tensor.numel()} weights of {key} are no finite numbers (NaN or infinite){more}: the "
            "files are damaged, or the training that wrote them diverged"
        )


def context_length(config: ModelConfig) -> int:
    """The most tokens the model takes, prompt and response together. Raises ModelError."""
    return model_config.context_length(config, resolve_model(config.path))


def end_ids(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All tokens that end what the model says, the tokenizer's end-of-sequence token first. Raises ModelError."""
    return model_config.model_ends(config, resolve_model(config.path), tokenizer)


def check_vocabulary(config: ModelConfig, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError where the tokenizer can give ids that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if len(tokenizer) > rows:
        raise ModelError(f"model {config.path}: its tokenizer has {len(tokenizer)} tokens, its embedding only {rows}")


def check_policy(config: ModelConfig, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether a loaded model can be sampled and scored at all: its vocabulary, its ends, and whether its numbers are a
    ground.

    Raises ModelError where the tokenizer gives ids that it lacks, an end is no token, or plain forward passes disagree
    with themselves (`sampling.agreement`). How it is sampled, by its cache or without, is found out where it is sampled.
    """
    from rayrlhf.sampling.agreement import check_plain

    check_vocabulary(config, model, tokenizer)
    end_ids(config, tokenizer)
    check_plain(model, config.path)


def check_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Loads a small local model once, so that its faults are known before anything starts. Raises ModelError.

    Of a large one or one from the hub the workers and the learner say the same, when they load it.
    """
    folder = Path(resolve_model(config.path))
    if folder.is_dir() and sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= CHECKED_AT_ONCE_BYTES:
        from rayrlhf.sampling.transformers_engine import slow_sampling

        model = load_policy(config)
        check_policy(config, model, tokenizer)
        if slow := slow_sampling(model):
            logger.warning("model %s: %s", config.path, slow)


@torch.inference_mode()
def score_tokens(
    model: nn.Module,
    sequences: Sequence[IntArray],
    starts: Sequence[int],
    temperature: float,
    tokens_per_batch: int = 8192,
) -> list[FloatArray]:
    """Log-probabilities in nats of each sequence's tokens [start:], given all before them, at the temperature.

    sequences: [L_i] ids each; starts: >= 1 each; returns [L_i - start_i] each (SPEC X-1: logits at t predict t + 1).
    Padding is on the right, where a causal model does not see it from real positions; batches follow the length.
    """
    results: list[FloatArray] = [np.zeros(0, np.float32)] * len(sequences)
    for batch, ids, first, logits in _forwards(model, sequences, starts, tokens_per_batch):
        logprobs = selected_logprobs(logits, ids[:, first:], temperature).float().cpu().numpy()
        for row, i in enumerate(batch):
            results[i] = logprobs[row, starts[i] - first : len(sequences[i]) - first].copy()
    return results


@torch.inference_mode()
def score_allowed(
    model: nn.Module,
    sequences: Sequence[IntArray],
    starts: Sequence[int],
    allowed: Sequence[AllowedTokens],
    temperature: float,
    tokens_per_batch: int = 8192,
) -> list[tuple[FloatArray, FloatArray]]:
    """As `score_tokens` where decoding was constrained: each distribution is over the allowed tokens alone, in nats.

    allowed: of each sequence's T_i = L_i - start_i scored tokens. Returns for each the log-probabilities of all allowed
    tokens [A_i], in the order of `AllowedTokens.ids`, and those of its own tokens [T_i]: among all of the vocabulary
    where the range is empty. Raises ValueError where a token is not among those allowed.
    """
    results: list[tuple[FloatArray, FloatArray]] = [(np.zeros(0, np.float32), np.zeros(0, np.float32))] * len(sequences)
    for batch, ids, first, logits in _forwards(model, sequences, starts, tokens_per_batch):
        for row, i in enumerate(batch):
            span = slice(starts[i], len(sequences[i]))
            scores = logits[row, starts[i] - first : len(sequences[i]) - first]  # [T, V]
            results[i] = _allowed_logprobs(scores, ids[row, span], allowed[i], temperature)
    return results


@torch.inference_mode()
def score_vocabulary_kl(
    policy: nn.Module,
    reference: nn.Module,
    sequences: Sequence[IntArray],
    starts: Sequence[int],
    temperature: float,
    estimator: VocabularyEstimator,
    tokens_per_batch: int = 8192,
) -> list[FloatArray]:
    """KL over the whole vocabulary in nats at each of the sequences' tokens [start:], given all before them, [L_i -
    start_i] each: `full` is KL(policy || reference), `forward` KL(reference || policy).

    A batch holds the logits of both models for its tokens; their softmax is taken a piece at a time.
    """
    results: list[FloatArray] = [np.zeros(0, np.float32)] * len(sequences)
    of_policy = _forwards(policy, sequences, starts, tokens_per_batch)
    of_reference = _forwards(reference, sequences, starts, tokens_per_batch)
    for (batch, _, first, logits), (*_, reference_logits) in zip(of_policy, of_reference, strict=True):
        kl = vocabulary_kl(estimator, logits, reference_logits, temperature).cpu().numpy()
        for row, i in enumerate(batch):
            results[i] = kl[row, starts[i] - first : len(sequences[i]) - first].copy()
    return results


def _allowed_logprobs(
    logits: Tensor, tokens: Tensor, allowed: AllowedTokens, temperature: float
) -> tuple[FloatArray, FloatArray]:
    """Log-probabilities of the allowed tokens [A] and of the tokens [T] themselves; logits [T, V]."""
    counts, chosen = allowed.counts, tokens.cpu().numpy()
    rows = np.repeat(np.arange(len(counts)), counts)
    scores = logits[torch.from_numpy(rows), torch.from_numpy(allowed.ids)].float() / temperature
    logprobs = _range_log_softmax(scores.cpu().numpy(), allowed.offsets)
    taken = allowed.ids == chosen[rows]
    if taken.sum() != (counts > 0).sum():
        raise ValueError("a token is not among those that were allowed: these are not the ranges of this sequence")
    own = np.zeros(len(chosen), np.float32)
    own[rows[taken]] = logprobs[taken]
    free = counts == 0
    if free.any():
        where = torch.from_numpy(free.nonzero()[0]).to(logits.device)
        own[free] = selected_logprobs(logits[where], tokens[where], temperature).cpu().numpy()
    return logprobs, own


def _range_log_softmax(scores: FloatArray, offsets: IntArray) -> FloatArray:
    """log softmax [A] of the scores [A] within each of the ranges offsets[t]:offsets[t+1] [T+1]."""
    counts = np.diff(offsets)
    filled = counts > 0
    if not filled.any():
        return scores
    starts, counts = offsets[:-1][filled], counts[filled]
    shifted = scores - np.repeat(np.maximum.reduceat(scores, starts), counts)
    return shifted - np.repeat(np.log(np.add.reduceat(np.exp(shifted), starts)), counts)


def _forwards(
    model: nn.Module, sequences: Sequence[IntArray], starts: Sequence[int], tokens_per_batch: int
) -> Iterator[tuple[list[int], Tensor, int, Tensor]]:
    """Which sequences a batch holds, their ids [B, L] padded on the right, the batch's first scored position, and the
    logits [B, L - first, V] of the tokens from there on."""
    device = next(model.parameters()).device
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    while order:
        rows = max(1, tokens_per_batch // len(sequences[order[-1]]))
        batch, order = order[-rows:], order[:-rows]
        ids = torch.zeros(len(batch), len(sequences[batch[-1]]), dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : len(sequences[i])] = torch.from_numpy(sequences[i])
        ids = ids.to(device)
        first = min(starts[i] for i in batch)  # logits before it are never looked at
        keep = ids.shape[1] - first + 1
        yield batch, ids, first, logits_after(model, ids, keep)[:, :-1]
