"""Gain and bias from the reference's own samples, so that a KL coefficient keeps its meaning across reward models.

The samples are those that a run's rewards see: of the unmodified reference, at the task's temperature, cut where the run
cuts them (SPEC LMHP-12, LMHP-13; the original normalised on samples that were not cut).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayrlhf.errors import LearnerError
from rayrlhf.reward_models.config import RewardModelConfig
from rayrlhf.reward_models.examples import ExampleTable
from rayrlhf.reward_models.network import RewardNetwork, score_sequences
from rayrlhf.types import IntArray


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean and population standard deviation."""

    mean: float
    std: float


STANDARD = Scale(0.0, 1.0)


def normalise(network: RewardNetwork, samples: Sequence[IntArray], target: Scale = STANDARD) -> Scale:
    """Sets gain and bias so that the samples score `target`; returns what they scored before.

    Raises:
        LearnerError: a score is not finite, or all are the same.
    """
    before = scale_of(score_sequences(network, samples))
    if not (math.isfinite(before.mean) and math.isfinite(before.std)):
        raise LearnerError(
            "the reward model's scores of the reference's samples are not finite: lower its learning rate"
        )
    if before.std < 1e-6 * max(1.0, abs(before.mean)):
        raise LearnerError(
            f"the reward model scores all {len(samples)} samples of the reference alike ({before.mean:g}): it has "
            "learnt nothing from these labels, or the samples are all the same text"
        )
    network.rescale(before.mean, before.std, target.mean, target.std)
    return before


def label_scale(table: ExampleTable, config: RewardModelConfig) -> Scale:
    """What scores are set to before training: 0 and 1 for comparisons and classes, the labels' own scale for numbers, of
    which a difference counts half (SPEC LMHP-12)."""
    if config.objective in ("comparison", "binary"):
        return STANDARD
    values = np.array([example.value for example in table.examples])
    if config.objective == "difference":
        return Scale(0.0, float(values.std() / 2) or 1.0)
    return Scale(float(values.mean()), float(values.std()) or 1.0)


def scale_of(scores: np.ndarray) -> Scale:
    return Scale(float(np.mean(scores, dtype=np.float64)), float(np.std(scores, dtype=np.float64)))
