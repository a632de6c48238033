"""How well a reward model does on labels that it was not trained on: accuracy by source, calibration, margins.

Pure numpy; `plot_evaluation` draws what `Evaluation` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayrlhf.intervals import wilson
from rayrlhf.reward_models.examples import Example
from rayrlhf.reward_models.losses import TIE

Floats = NDArray[np.float64]
BINS = 5  # of the calibration


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Decisive comparisons whose winner has the highest score; a tie of scores counts half."""

    right: float
    of: int

    @property
    def share(self) -> float | None:
        """None without any."""
        return self.right / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson(self.right / self.of, self.of) if self.of else (0.0, 1.0)

    def __str__(self) -> str:
        """`75.0% of 4`, or that there were none."""
        return "none" if self.share is None else f"{self.share:.1%} of {self.of}"


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Pairs whose likelier item is said to win with a probability in this bin."""

    predicted: float  # mean probability
    observed: float  # share of them that it won
    pairs: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of comparisons. Ties are counted and take no part in accuracy and calibration."""

    accuracy: Accuracy
    by_source: Mapping[str, Accuracy]
    ties: int
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float | None  # mean |predicted - observed| over pairs (ECE, Guo et al. 2017); None without pairs
    margins: Floats  # [decisive] score of the winner minus the best of the others

    def as_json(self) -> dict[str, object]:
        told = {name: _told(accuracy) for name, accuracy in self.by_source.items()}
        bins = [{"predicted": b.predicted, "observed": b.observed, "pairs": b.pairs} for b in self.calibration]
        return {
            "accuracy": _told(self.accuracy),
            "by_source": told,
            "ties": self.ties,
            "calibration": bins,
            "calibration_error": self.calibration_error,
        }


def evaluate_comparisons(examples: Sequence[Example], scores: NDArray[np.float32]) -> Evaluation:
    """Holds scores [sequences] against comparisons whose `rows` point into them."""
    decisive = [example for example in examples if example.best != TIE]
    margins = np.array([_margin(example, scores) for example in decisive], np.float64)
    right = np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))
    sources = np.array([example.source for example in decisive], str)
    by_source = {
        str(source): Accuracy(float(right[sources == source].sum()), int((sources == source).sum()))
        for source in np.unique(sources)
    }
    pairs = margins[[len(example.rows) == 2 for example in decisive]] if decisive else margins
    bins, error = calibrate(pairs)
    return Evaluation(
        Accuracy(float(right.sum()), len(right)), by_source, len(examples) - len(decisive), bins, error, margins
    )


def calibrate(margins: Floats) -> tuple[tuple[CalibrationBin, ...], float | None]:
    """Bins of equal width of the likelier item's probability sigmoid|margin| in [0.5, 1], and the calibration error.

    margins: [pairs] winner's score minus the loser's. The labels are those of the raters, noise included.
    """
    if not len(margins):
        return (), None
    probability = 1 / (1 + np.exp(-np.abs(margins)))
    won = np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))
    places = np.minimum(((probability - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = tuple(
        CalibrationBin(float(probability[places == b].mean()), float(won[places == b].mean()), int((places == b).sum()))
        for b in range(BINS)
        if (places == b).any()
    )
    error = sum(b.pairs * abs(b.predicted - b.observed) for b in bins) / len(margins)
    return bins, float(error)


def pearson(scores: NDArray[np.float32], values: Floats) -> float | None:
    """Correlation of scores and labels (SPEC LMHP-3); None where one of them does not vary, or there are no two."""
    if len(values) < 2 or not np.std(scores) or not np.std(values):
        return None
    return float(np.corrcoef(scores, values)[0, 1])


def plot_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Draws the margins' histogram and the calibration side by side, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    most = float(np.abs(evaluation.margins).max()) if len(evaluation.margins) else 1.0
    left.hist(evaluation.margins, bins=np.linspace(-most, most, 31), color="#4477aa")
    left.axvline(0, color="black", linewidth=1)
    left.set(xlabel="score of the winner minus the best other", ylabel="held-out comparisons")
    left.set_title(f"right: {evaluation.accuracy}", fontsize=10)
    right.plot([0.5, 1], [0.5, 1], color="#999999", linewidth=1, label="exact")
    for b in evaluation.calibration:
        low, high = wilson(b.observed, b.pairs)
        right.plot([b.predicted, b.predicted], [low, high], color="#cc6677", linewidth=1.5)
        right.plot(b.predicted, b.observed, "o", color="#cc6677")
        right.annotate(f" {b.pairs}", (b.predicted, b.observed), fontsize=8)
    right.set(xlabel="probability given to the likelier item", ylabel="share that it won", ylim=(0, 1.02))
    error = evaluation.calibration_error
    title = "no pair to calibrate on" if error is None else f"calibration error {error:.3f}, 95 % intervals, pairs"
    right.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)


def _margin(example: Example, scores: NDArray[np.float32]) -> float:
    own = scores[list(example.rows)].astype(np.float64)
    return float(own[example.best] - np.delete(own, example.best).max())


def _told(accuracy: Accuracy) -> dict[str, object]:
    low, high = accuracy.interval
    return {"share": accuracy.share, "of": accuracy.of, "low": low, "high": high}
