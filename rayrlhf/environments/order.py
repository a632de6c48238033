"""The order in which an environment's prompts or games come by: each epoch a shuffle of all of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


@functools.lru_cache(maxsize=4)
def epoch_order(run_seed: int, epoch: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[count] the prompts or games of an epoch, by number, in the order they are played. Runs of different seeds play
    them in different orders."""
    seed = [run_seed, epoch] if run_seed else epoch
    return np.random.default_rng(seed).permutation(count)
