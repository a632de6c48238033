"""The network of a reward model: a causal language model, a linear head at the last present token, a gain and a bias.

reward = gain * head(hidden state of the last token) + bias (SPEC LMHP-9, LMHP-10), in fp32. The head has no bias of its
own: the outer one does its work. Positions are told by lengths, never by comparing ids with a pad id (SPEC X-2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from rayrlhf.errors import ModelError
from rayrlhf.heads import HeadLinear
from rayrlhf.policy import check_finite_weights
from rayrlhf.reading import typed_line
from rayrlhf.types import FloatArray, IntArray

PAD = "<|reward-pad|>"
"""A pad token of its own: `AutoModelForSequenceClassification` reads the last token that is not the pad, and texts may
end in any other, EOS included."""


class RewardNetwork(nn.Module):
    """Scores right-padded token sequences."""

    def __init__(self, classifier: PreTrainedModel, gain: float = 1.0, bias: float = 0.0, log_tie: float = 0.0):
        """classifier: of `AutoModelForSequenceClassification` with one label and a linear `score`.

        log_tie: log of Davidson's parameter of ties, in the loss alone.
        """
        super().__init__()
        classifier.score = HeadLinear.of(classifier.score)  # type: ignore[arg-type]
        self.classifier = classifier
        self.gain = nn.Parameter(torch.tensor([gain]))
        self.bias = nn.Parameter(torch.tensor([bias]))
        self.log_tie = nn.Parameter(torch.tensor([log_tie]))

    @property
    def head(self) -> nn.Linear:
        head: Any = self.classifier.score
        assert isinstance(head, nn.Linear)
        return head

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """input_ids [N, L], padded on the right with any id; lengths [N], each >= 1. Returns rewards [N]."""
        backbone: Any = getattr(self.classifier, self.classifier.base_model_prefix)
        hidden = backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
        return self.gain * self.head(last).squeeze(-1) + self.bias

    def score_in_pieces(self, input_ids: Tensor, lengths: Tensor, rows: int) -> Tensor:
        """As `forward`, `rows` sequences at a time with activations computed anew for the gradient (SPEC LMHP-35)."""
        pieces = [
            checkpoint(self, ids, sizes, use_reentrant=False)
            for ids, sizes in zip(input_ids.split(rows), lengths.split(rows), strict=True)
        ]
        return torch.cat(pieces)

    @torch.no_grad()
    def fold_gain(self) -> None:
        """Moves the gain into the head's weights: the scores stay what they are."""
        self.head.weight.mul_(self.gain)
        self.gain.fill_(1.0)

    @torch.no_grad()
    def rescale(self, mean: float, std: float, target_mean: float, target_std: float) -> None:
        """Sets gain and bias so that scores of this mean and deviation have the target's (SPEC LMHP-12, LMHP-13)."""
        factor = target_std / std
        self.gain.mul_(factor)
        self.bias.copy_(self.bias * factor + target_mean - factor * mean)


def new_reward_network(model: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> RewardNetwork:
    """A language model's whole trunk with a new head, N(0, 1/sqrt(hidden + 1)), and a pad token added to `tokenizer`.

    Raises ModelError for a model that does not load or has no linear head at the last token.
    """
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is no news
    try:
        classifier: Any = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=1, dtype=torch.float32, pad_token_id=None, trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(f"model {model} cannot become a reward model: {typed_line(error)}") from error
    finally:
        logging.set_verbosity(before)
    head = getattr(classifier, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ModelError(
            f"model {model}: {type(classifier).__name__} has no linear head `score` at the last token; give a causal "
            "language model such as Llama, Qwen or GPT-2"
        )
    check_finite_weights(classifier.base_model, f"model {model}")
    tokenizer.add_special_tokens({"pad_token": PAD})
    if len(tokenizer) > classifier.get_input_embeddings().weight.shape[0]:
        classifier.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    classifier.config.pad_token_id = tokenizer.convert_tokens_to_ids(PAD)
    classifier.config.get_text_config().pad_token_id = classifier.config.pad_token_id
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        classifier.get_input_embeddings().weight[classifier.config.pad_token_id] = 0.0
        head.weight.normal_(0.0, 1 / math.sqrt(head.in_features + 1), generator=generator)
    return RewardNetwork(classifier)


def padded(sequences: Sequence[IntArray]) -> tuple[Tensor, Tensor]:
    """Ids [N, L] padded on the right and lengths [N]."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    rows = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = torch.from_numpy(ids)
    return rows, lengths


@torch.inference_mode()
def score_sequences(network: RewardNetwork, sequences: Sequence[IntArray], tokens_per_batch: int = 8192) -> FloatArray:
    """Rewards [N] of token sequences, in order; batches are of similar lengths."""
    device = next(network.parameters()).device
    scores = torch.zeros(len(sequences))
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    while order:
        rows = max(1, tokens_per_batch // len(sequences[order[-1]]))
        batch, order = order[-rows:], order[:-rows]
        ids, lengths = padded([sequences[i] for i in batch])
        scores[batch] = network(ids.to(device), lengths.to(device)).float().cpu()
    return scores.numpy()
