"""What a reward model learns from, read from a project's rating store."""

from __future__ import annotations

from rayrlhf.preferences.ranking import fit_project
from rayrlhf.preferences.ranking_config import RankingConfig
from rayrlhf.preferences.store import RatingStore
from rayrlhf.reward_models.config import RewardModelConfig
from rayrlhf.reward_models.training import TrainingLabels

TOKENIZER = "tokenizer"
"""Key of the store's `meta`: fingerprint of the tokenizer of the items' ids."""


def project_labels(store: RatingStore, ranking: RankingConfig, config: RewardModelConfig) -> TrainingLabels:
    """Items, comparisons and ratings, with the ranking where the objective asks for it."""
    items, comparisons = store.items(), store.comparisons()
    fitted = fit_project(list(items.values()), comparisons, ranking) if config.objective == "latent" else None
    return TrainingLabels(items, comparisons, store.ratings(), fitted, store.meta().get(TOKENIZER, ""))
