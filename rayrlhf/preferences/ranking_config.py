"""How latent scores are fitted: the section `ranking` of a project's config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayrlhf.config_section import PositiveFloat, PositiveInt, Section


class RankingConfig(Section):
    """Bradley-Terry with Davidson's ties under a Gaussian prior."""

    prior_deviation: PositiveFloat = 1.0
    """Standard deviation of the latent scores before any comparison, on the scale of log odds."""
    ties: Literal["davidson", "half_wins"] = "davidson"
    """davidson: ties are an outcome with a probability of its own, fitted. half_wins: half a win for each side."""
    tie_weight: PositiveFloat = 1.0
    """Evidence of a tie over that of a win; 2 with half_wins is what two records, one won by each side, count for."""
    rater_deviation: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Prior standard deviation of the logarithm of a rater's reliability; 0: all raters are alike."""
    covariates: tuple[str, ...] = ()
    """What the prior mean depends on: iteration, log_iteration, or a number in the items' extra fields, such as a
    critic's score."""
    covariate_deviation: PositiveFloat = 1.0
    """Prior standard deviation of a covariate's coefficient; covariates are standardised first."""
    anchors: tuple[str, ...] = ()
    """Items that stay at 0, by id or by the name of their generator: they keep scores of different fits comparable."""
    standardise: bool = False
    """Scores are shifted and scaled to mean 0 and standard deviation 1 over the items; with anchors scaled alone."""
    window: PositiveInt | None = None
    """Only the last comparisons count, so many (SPEC GWERN-14: 3000)."""
    half_life: PositiveFloat | None = None
    """A comparison counts half when so many later ones were made."""
