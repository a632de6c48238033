"""How a reward model is trained: the section `reward_model` of a project's config, and `rayrlhf reward-model`'s settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayrlhf.config_section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

Share = Annotated[float, Field(ge=0, lt=1)]
Objective = Literal["comparison", "difference", "latent", "rating", "binary"]


class RewardModelConfig(Section):
    """What is learned from a project's labels, and how."""

    objective: Objective = "comparison"
    """`comparison`: who wins, best of k. `difference`: how far apart two items are (scalar_compare). `latent`: the
    ranking's scores, each weighted by its precision. `rating`: scalar ratings. `binary`: ratings of 0 and 1."""
    ties: Literal["davidson", "half", "drop"] = "davidson"
    """Comparisons that end in a tie: an outcome of their own (Davidson 1970), half a win for each side, or left out."""
    scale: str = ""
    """Of `rating`: only ratings of this scale; empty: there is only one."""
    huber_delta: PositiveFloat | None = None
    """Of `latent` and `rating`: beyond this error the loss is linear; null: squared error."""
    epochs: PositiveInt = 1
    """Passes over the labels."""
    batch_size: PositiveInt = 32
    """Labels behind one optimizer step; the last step of a pass may have fewer."""
    examples_per_forward: PositiveInt | None = None
    """Most labels in one forward pass of one worker; null: its share of the batch."""
    recompute: bool = False
    """Compute activations anew for the gradient, one label's items at a time: less memory, a third more time."""
    lr: PositiveFloat = 3e-4
    """Falls linearly to 0. Pretrained models of a hundred million parameters and more want 5e-5 and less."""
    adam_eps: PositiveFloat = 1e-5
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: NonNegativeFloat = 1.0
    """0: no clipping."""
    init: str | None = None
    """Start from this reward model's folder instead of the language model (SPEC Q-9)."""
    held_out_share: Share = 0.15
    """Share of the labels that is kept for the evaluation, whole prompts at a time where there are several."""
    labels: PositiveInt | None = None
    """Train on a random subset of so many (SPEC LMHP-5); null: all."""
    window: PositiveInt | None = None
    """Only the last so many comparisons count (SPEC GWERN-14: 3000); null: all."""
    automatic_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Most of the training labels that automatic checks may have given (SPEC GWERN-8); 0: none of them."""
    normalisation_samples: Annotated[int, Field(ge=2)] = 3072
    """Responses of the reference model behind gain and bias, before and after training (SPEC LMHP-12, LMHP-13; 256 there,
    which leave the mean uncertain by 0.06 deviations)."""
    workers: PositiveInt = 1
    """Ray Train workers, one device each."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: NonNegativeInt = 0
    """Of the head, the split, the subset, the order and the reference's samples."""
