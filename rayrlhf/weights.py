"""A policy's weights as numpy arrays: their checksum, and how they get into a module.

fp32 travels as float32 and fp16 as float16; numpy has no bfloat16, so those bits travel as uint16.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rayrlhf.errors import LearnerError
from rayrlhf.types import Weights


def to_array(tensor: Tensor) -> NDArray:
    """A copy on the CPU, which shares no memory with `tensor`; bfloat16 becomes uint16 of the same bits."""
    tensor = tensor.detach().to("cpu", copy=True).contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def checksum(arrays: Mapping[str, NDArray]) -> int:
    """crc32 over the names, shapes, types and bytes of `arrays`, in the order of their names."""
    crc = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        crc = zlib.crc32(f"{name} {array.shape} {array.dtype.str}".encode(), crc)
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
    return crc


def verify(weights: Weights) -> None:
    """Raises LearnerError where the arrays are not those that the checksum was taken of."""
    found = checksum(weights.arrays)
    if found != weights.checksum:
        raise LearnerError(
            f"weights of version {weights.version} arrived damaged: checksum {found:08x}, sent with "
            f"{weights.checksum:08x}. Publish them again; if it happens twice, check this node's memory and network."
        )


@torch.no_grad()
def load_into(module: nn.Module, weights: Weights) -> None:
    """Copies `weights` into the parameters of `module`, tied ones once; the arrays may be read-only and stay untouched.

    Nothing is written unless every name and shape fits.

    Raises:
        LearnerError: a name that `module` lacks or that is missing in `weights`, or another shape.
    """
    parameters = dict(module.named_parameters())
    faults = [f"{name}: not in this model" for name in sorted(weights.arrays.keys() - parameters.keys())]
    faults += [f"{name}: not among the weights" for name in sorted(parameters.keys() - weights.arrays.keys())]
    faults += [
        f"{name}: shape {tuple(weights.arrays[name].shape)} sent, {tuple(parameter.shape)} here"
        for name, parameter in parameters.items()
        if name in weights.arrays and weights.arrays[name].shape != tuple(parameter.shape)
    ]
    if faults:
        raise LearnerError(
            f"weights of version {weights.version} do not fit this model ({len(faults)} faults): "
            f"{'; '.join(faults[:5])}. Learner and rollout workers must start from the same model.path."
        )
    for name, parameter in parameters.items():
        parameter.copy_(_tensor(weights.arrays[name]))


def _tensor(array: NDArray) -> Tensor:
    # PyTorch warns of read-only arrays, which is what the object store hands out; this tensor is only ever read from.
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
