"""The policy as the learner trains it: logits of the columns that a loss needs, and values where it bears a value head;
and the frozen reference beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rayrlhf.forward import takes
from rayrlhf.value import ValueHead, count_pad_embedding


class PolicyNetwork(nn.Module):
    """A causal language model, with or without a value head on its trunk.

    Every forward pass gives both outputs, and every loss takes both: a part that had no gradient in a step would be
    given that of the step before at ZeRO stage 3.
    """

    def __init__(self, policy: nn.Module, head: ValueHead | None = None, detach: bool = False):
        """`detach`: the value loss does not reach the trunk."""
        super().__init__()
        count_pad_embedding(policy)
        self.policy = policy
        self.head = head
        self.detach = detach
        self._keeps_logits = takes(policy, "logits_to_keep")

    def forward(self, input_ids: Tensor, columns: Tensor, value_columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C, V] after each of the columns [C] and values [B, D] after each of value_columns [D].

        input_ids: [B, L]. The vocabulary is by far the widest layer: no logits of columns that nobody looks at.
        """
        extra: dict[str, Any] = {"logits_to_keep": columns} if self._keeps_logits else {}
        output = self.policy(input_ids=input_ids, use_cache=False, output_hidden_states=self.head is not None, **extra)
        logits = output.logits if self._keeps_logits else output.logits[:, columns]
        if self.head is None:
            return logits, None
        hidden = output.hidden_states[-1][:, value_columns]
        return logits, self.head(hidden.detach() if self.detach else hidden)


class FrozenReference:
    """What the policy started from, whole on each rank: a plain module, since DeepSpeed takes no network without an
    optimizer at ZeRO stages 1 and 2."""

    def __init__(self, model: nn.Module, device: torch.device):
        """`model` has its parameters in the numbers that the policy's engine computes with, and its buffers as loaded:
        only so do equal weights give equal logits."""
        self._network = PolicyNetwork(model).requires_grad_(False).to(device)

    @torch.no_grad()
    def logits(self, input_ids: Tensor, columns: Tensor) -> Tensor:
        """[B, C, V] after each of the columns [C] of input_ids [B, L], without gradient."""
        return self._network(input_ids, columns, columns)[0]
