"""Whether a way to compute log-probabilities gives those of a model's plain forward pass: tried on the model itself.

Architectures differ in what they make of padding, caches and positions, and one that takes an argument may still ignore
it. So each way is tried once on a few short sequences when a model is loaded, and used only where it agrees.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rayrlhf.errors import ModelError
from rayrlhf.forward import logits_after
from rayrlhf.model_config import stated_context
from rayrlhf.reading import typed_line
from rayrlhf.sampling.plain_decoding import tail_logits
from rayrlhf.types import IntArray

SEED = 0  # of the sequences that a model is tried on
TOKENS = 14  # of the longest of them, where no window asks for more
WINDOW = 64  # tokens of the widest window that the sequences reach beyond
FP32_TOLERANCE = 80  # units of the last place of the largest logit; rounding alone was below 30 in 60 architectures
LOW_TOLERANCE = 2  # of bfloat16 and float16, for the root mean square


@dataclass(frozen=True, slots=True)
class Finding:
    """How far the logits of one way were from those of plain forward passes."""

    gap: float  # the largest difference of two logits of a vocabulary, nats; inf where the way failed
    agrees: bool
    fault: str = ""  # why it failed

    def __str__(self) -> str:
        return self.fault or f"{self.gap:.2g} nats"


_WINDOW_NAME = re.compile(r"(window|window_size|chunk_size|local_attention)$")

Way = Callable[[nn.Module, Sequence[IntArray]], tuple[Sequence[Tensor], Sequence[IntArray]]]
"""A way to be tried on sequences: logits [V] that it finds, and the sequences that they follow."""

_findings: weakref.WeakKeyDictionary[nn.Module, dict[str, Finding]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def agreement(model: nn.Module, name: str, way: Way) -> Finding:
    """What a trial of the way gives on this model; tried once for each name, for later weights as well."""
    known = _findings.setdefault(model, {})
    if name not in known:
        known[name] = _try(model, way)
    return known[name]


def _try(model: nn.Module, way: Way) -> Finding:
    training = model.training
    model.eval()
    try:
        found, sequences = way(model, trial_sequences(model))
        plain = [logits[0, -1] for ids in sequences for logits, _ in tail_logits(model, [ids], [1])]
        return compared(torch.stack(list(found)), torch.stack(plain), next(model.parameters()).dtype)
    except Exception as error:  # of a model's own code as well
        return Finding(float("inf"), False, typed_line(error))
    finally:
        model.train(training)


def compared(found: Tensor, plain: Tensor, dtype: torch.dtype) -> Finding:
    """Of logits [N, V], computed in dtype, that should be equal up to rounding and one constant a row."""
    found, plain = (logits.float() - logits.float().mean(-1, keepdim=True) for logits in (found, plain))
    gaps, unit = (found - plain).abs(), torch.finfo(dtype).eps * float(plain.abs().max())
    gap = float(gaps.max())
    if dtype == torch.float32:
        return Finding(gap, gap <= FP32_TOLERANCE * unit)
    return Finding(gap, float(gaps.square().mean().sqrt()) <= LOW_TOLERANCE * unit)


def trial_sequences(model: nn.Module) -> list[IntArray]:
    """Three sequences of different lengths, longer than the model's window where that is short; one holds the padding's
    id in its midst."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    longest = max([TOKENS, *(window + TOKENS // 2 for window in _windows(config) if window <= WINDOW)])
    longest = min(longest, stated_context(config) or longest)
    lengths = [longest, max(1, longest // 3), max(1, longest - 3)]
    generator = np.random.default_rng(SEED)
    sequences = [generator.integers(0, rows, length) for length in lengths]
    pad = getattr(config, "pad_token_id", None)
    if isinstance(pad, int) and 0 <= pad < rows:
        sequences[0][longest // 2] = pad
    return sequences


def _windows(config: object) -> list[int]:
    """How many tokens the model's layers look back, where not to the beginning."""
    values = (value for name, value in vars(config).items() if _WINDOW_NAME.search(name))
    return [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]


def has_window(model: nn.Module) -> bool:
    """Whether a layer may count columns back to where its window ends, which short trials would not show."""
    return bool(_windows(model.config.get_text_config(decoder=True)))  # type: ignore[operator, union-attr]


def check_plain(model: nn.Module, name: str) -> None:
    """Raises ModelError where plain forward passes themselves are no ground: a token sees those after it, or sequences
    padded on the right give other numbers than alone."""
    for fault, way in (
        ("its tokens see those after them, as in no causal language model", _cut),
        ("sequences padded on the right score otherwise than alone", _batched),
    ):
        finding = agreement(model, fault, way)
        if not finding.agrees:
            raise ModelError(
                f"model {name} ({type(model).__name__}) cannot be trained: {fault} (by {finding}), so no number of "
                "sampler, reference and learner would be right"
            )


def _cut(model: nn.Module, sequences: Sequence[IntArray]) -> tuple[list[Tensor], list[IntArray]]:
    """The whole sequence, and what comes of its beginnings."""
    [ids, *_] = sequences
    logits = logits_after(model, torch.from_numpy(ids)[None].to(next(model.parameters()).device), len(ids))[0]
    ends = sorted({1, len(ids) // 2, max(1, len(ids) - 1)})
    return [logits[end - 1] for end in ends], [ids[:end] for end in ends]


def _batched(model: nn.Module, sequences: Sequence[IntArray]) -> tuple[list[Tensor], list[IntArray]]:
    """All of them, padded on the right."""
    [(logits, _)] = tail_logits(model, sequences, [1] * len(sequences))
    return list(logits[:, -1]), list(sequences)
