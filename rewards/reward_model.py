"""A learned reward model of people's preferences, from `rayrlhf reward-model`."""

from __future__ import annotations

from collections.abc import Sequence

from rayrlhf.errors import RewardError
from rayrlhf.reading import expanded
from rayrlhf.types import Trajectory


class RewardModel:
    """The score that a reward model gives to each episode; on the reference's own samples mean 0 and deviation 1.

    path: the folder that `rayrlhf reward-model` made.
    vocabulary: fingerprint of the policy's tokenizer, which a run fills in: where it is the reward model's own, responses
        are read in the tokens that were sampled.
    tokens_per_batch: most tokens in one forward pass, padding included.
    device: auto (a GPU where there is one), cpu or cuda.
    """

    def __init__(self, path: str, vocabulary: str = "", tokens_per_batch: int = 8192, device: str = "auto") -> None:
        import torch

        from rayrlhf.reward_models.scoring import RewardScorer

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.vocabulary = vocabulary
        self.scorer = RewardScorer.load(expanded(path, RewardError), device, tokens_per_batch)

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[float]:
        return [float(score) for score in self.scorer.score(trajectories, self.vocabulary)]
