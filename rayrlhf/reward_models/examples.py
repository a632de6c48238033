"""Training examples of a reward model, and the file in which they cross from the driver to the workers.

An example is one label: the items it is about, as rows of a table of token sequences, and what was said of them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayrlhf.files import replace_file
from rayrlhf.shares import share_of
from rayrlhf.types import IntArray


@dataclass(frozen=True, slots=True)
class Example:
    """One label. `best` speaks in comparisons, `value` in all others."""

    rows: tuple[int, ...]  # [k] of the table of sequences, k >= 1
    best: int = 0  # index into rows, or losses.TIE
    value: float = 0.0  # a score, a class, or the difference of two
    weight: float = 1.0
    source: str = "manual"  # who judged, for the evaluation by source
    part: str = ""  # what may not be split between training and held-out labels: a prompt, or items that hang together


@dataclass(frozen=True, slots=True)
class ExampleTable:
    """Examples and the sequences that they are about."""

    sequences: tuple[IntArray, ...]  # [L] each
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def subset(self, indices: Sequence[int] | IntArray) -> ExampleTable:
        return ExampleTable(self.sequences, tuple(self.examples[int(i)] for i in indices))

    @property
    def weights(self) -> NDArray[np.float64]:
        """[examples]"""
        return np.array([example.weight for example in self.examples])

    def save(self, path: Path) -> None:
        ids, id_offsets = _joined(self.sequences)
        rows, row_offsets = _joined([np.array(example.rows, np.int64) for example in self.examples])
        save_arrays(
            path, ids=ids, id_offsets=id_offsets, rows=rows, row_offsets=row_offsets, weight=self.weights,
            best=np.array([example.best for example in self.examples], np.int64),
            value=np.array([example.value for example in self.examples], np.float64),
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> ExampleTable:
        """Sources and parts stay with the driver: they are not in the file."""
        with np.load(path, allow_pickle=False) as file:
            stored = {key: file[key] for key in file.files}
        rows = _split(stored["rows"], stored["row_offsets"])
        examples = tuple(
            Example(tuple(own.tolist()), int(best), float(value), float(weight))
            for own, best, value, weight in zip(rows, stored["best"], stored["value"], stored["weight"], strict=True)
        )
        return cls(tuple(_split(stored["ids"], stored["id_offsets"])), examples)


def save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """An .npz file, whole or not there. Raises as `replace_file`."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    replace_file(path, [file.getvalue()])


def epoch_order(examples: int, batch_size: int, epochs: int, seed: int) -> IntArray:
    """[steps, batch_size] the example at each place of each step, -1 where the last step of a pass has fewer.

    Every pass has each example once, in an order of its own (SPEC LMHP-6: any number of examples, any batch size).
    """
    steps = -(-examples // batch_size)
    order = np.full((epochs, steps * batch_size), -1, np.int64)
    for epoch in range(epochs):
        order[epoch, :examples] = np.random.default_rng([seed, epoch]).permutation(examples)
    return order.reshape(epochs * steps, batch_size)


def held_out_indices(parts: Sequence[str], share: float, seed: int) -> tuple[IntArray, IntArray]:
    """Indices of training and held-out examples: whole parts, in random order, until the share is reached.

    At least one part stays for training, and with a share above 0 and two parts or more at least one is held out. Where
    a single part would be most of the examples, they are drawn one by one instead.
    """
    rng = np.random.default_rng([seed, 0x5E1F])
    names, codes, counts = np.unique(np.asarray(parts, str), return_inverse=True, return_counts=True)
    wanted = round(share_of(share, len(parts)))
    if share > 0 and wanted == 0 and len(parts) > 1:
        wanted = 1
    if len(names) < 2 or counts.max() > 0.5 * len(parts):
        held = rng.permutation(len(parts))[:wanted]
    else:
        taken: list[int] = []
        for code in rng.permutation(len(names))[:-1]:
            if sum(counts[taken]) >= wanted:
                break
            taken.append(int(code))
        held = np.flatnonzero(np.isin(codes, taken))
    training = np.setdiff1d(np.arange(len(parts)), held)
    return training.astype(np.int64), np.sort(held).astype(np.int64)


def _joined(arrays: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    offsets = np.cumsum([0, *(len(array) for array in arrays)])
    return (np.concatenate(arrays) if arrays else np.zeros(0, np.int64)), offsets


def _split(flat: IntArray, offsets: IntArray) -> list[IntArray]:
    return [flat[start:end] for start, end in pairwise(offsets)]
