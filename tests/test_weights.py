"""Weights on their way: the checksum notices any change, and what does not fit is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rayrlhf.errors import LearnerError
from rayrlhf.types import Weights
from rayrlhf.weights import checksum, load_into, to_array, verify


def sent(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: to_array(parameter) for name, parameter in module.named_parameters()}


def weights(arrays: dict[str, np.ndarray]) -> Weights:
    return Weights(version=3, checksum=checksum(arrays), arrays=arrays)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arrays_are_copies_that_load_back(dtype: torch.dtype) -> None:
    sender, receiver = nn.Linear(3, 2, dtype=dtype), nn.Linear(3, 2, dtype=dtype)
    arrays = sent(sender)
    kept = {name: array.copy() for name, array in arrays.items()}
    for array in arrays.values():
        array.setflags(write=False)  # as the object store hands them out
    load_into(receiver, weights(arrays))
    assert torch.equal(sender.weight, receiver.weight)
    with torch.no_grad():
        sender.weight.add_(1)
        receiver.weight.add_(1)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, kept[name])


def test_tied_weights_travel_once_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 2), nn.Linear(2, 5, bias=False)
            self.head.weight = self.embedding.weight

    sender, receiver = Tied(), Tied()
    assert list(sent(sender)) == ["embedding.weight"]
    load_into(receiver, weights(sent(sender)))
    assert receiver.head.weight is receiver.embedding.weight
    assert torch.equal(receiver.head.weight, sender.head.weight)


def test_checksum_covers_values_names_shapes_and_types() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.zeros((2, 2), np.float32)}
    verify(weights(arrays))
    assert checksum(arrays) == checksum(dict(reversed(arrays.items())))
    changed = [
        arrays | {"a": np.nextafter(arrays["a"], 9, dtype=np.float32)},
        arrays | {"a": arrays["a"].reshape(2, 3)},
        arrays | {"a": arrays["a"].view(np.int32)},
        {"a2": arrays["a"], "b": arrays["b"]},
        {"a": arrays["a"]},
    ]
    for other in changed:
        with pytest.raises(LearnerError, match="version 3 arrived damaged"):
            verify(Weights(3, checksum(arrays), other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "bias: not among the weights"),
        ({"scale": np.zeros(2)}, "scale: not in this model"),
        ({"weight": np.zeros((3, 2), np.float32)}, r"weight: shape \(3, 2\) sent, \(2, 3\) here"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(change: dict[str, np.ndarray | None], message: str) -> None:
    receiver = nn.Linear(3, 2)
    before = sent(receiver)
    arrays = {name: array for name, array in (sent(nn.Linear(3, 2)) | change).items() if array is not None}
    with pytest.raises(LearnerError, match=message):
        load_into(receiver, weights(arrays))
    assert checksum(sent(receiver)) == checksum(before)
