"""The linear layers that end in one number: a value, a reward."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HeadLinear(nn.Linear):
    """A linear layer that computes and answers in fp32 at least, whatever its weights and its inputs are.

    In bf16 a number keeps 8 bits: values of a whole batch would be two or three different ones. What its weights lose in
    bf16 is the same at every input.
    """

    @classmethod
    def of(cls, layer: nn.Linear) -> HeadLinear:
        """The same layer, with the same parameters."""
        head = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        head.weight, head.bias = layer.weight, layer.bias
        return head.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(input.dtype, self.weight.dtype), torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.to(dtype), self.weight.to(dtype), bias)
