"""Losses and statistics of one micro-batch from what the networks say of it. Pure tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from rayrlhf.losses import Objective, ValueObjective, constrained_logprobs, entropies, selected_logprobs
from rayrlhf.micro_batches import Choices, MicroBatch
from rayrlhf.update_statistics import TokenStatistics, ValueStatistics, token_statistics, value_statistics


def policy_loss(
    logits: Tensor, batch: MicroBatch, objective: Objective, temperature: float
) -> tuple[Tensor, TokenStatistics]:
    """This micro-batch's share of sum weights * (policy loss - entropy_coef * entropy), a scalar with gradient, and its
    tokens' statistics; logits: [B, C, V] of the batch's columns."""
    logprobs, entropy = distribution(logits, batch, temperature, entropy_gradient=objective.entropy_coef > 0)
    behaviour, advantages = batch.behaviour_logprobs, batch.advantages
    losses = objective.policy(logprobs, behaviour, advantages)
    if objective.entropy_coef:
        losses = losses - objective.entropy_coef * entropy
    clipped = objective.policy.clipped(logprobs.detach(), behaviour, advantages)
    statistics = token_statistics(
        losses.detach(), logprobs.detach(), behaviour, entropy.detach(), clipped, batch.scored
    )  # fmt: skip
    return (batch.weights * losses).sum(), statistics


def value_loss(values: Tensor, batch: MicroBatch, objective: ValueObjective) -> tuple[Tensor, ValueStatistics]:
    """This micro-batch's share of sum value_weights * value loss, a scalar with gradient, and its tokens' statistics;
    values: [B, D] of the batch's value columns."""
    values = values.float()
    losses = objective(values, batch.old_values, batch.returns)
    clipped = objective.clipped(values.detach(), batch.old_values, batch.returns)
    statistics = value_statistics(values.detach(), batch.returns, clipped, batch.valued)
    return (batch.value_weights * losses).sum(), statistics


def distribution(
    logits: Tensor, batch: MicroBatch, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """log pi(target) and the entropy of pi at each place, [B, C] each in nats.

    Where decoding was constrained pi is the distribution over the tokens that were allowed, at each place those that
    were stored when the token was sampled (SPEC X-5); elsewhere it is that of the whole vocabulary.
    """
    if batch.choices is None:
        with torch.set_grad_enabled(entropy_gradient):
            entropy = entropies(logits, temperature)
        return selected_logprobs(logits, batch.targets, temperature), entropy
    return _mixed_distribution(logits, batch.targets, batch.choices, temperature, entropy_gradient)


def _mixed_distribution(
    logits: Tensor, targets: Tensor, choices: Choices, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """As `distribution`; 0 at places that carry no loss. Only the logits of the allowed tokens are looked at."""
    among = logits[choices.rows.unsqueeze(1), choices.places.unsqueeze(1), choices.ids]
    logprobs, entropy = constrained_logprobs(among, choices.allowed, choices.chosen, temperature)
    place = (torch.cat([choices.rows, choices.free_rows]), torch.cat([choices.places, choices.free_places]))
    if len(choices.free_rows):
        free = choices.free_rows, choices.free_places
        with torch.set_grad_enabled(entropy_gradient):
            entropy = torch.cat([entropy, entropies(logits[free], temperature)])
        logprobs = torch.cat([logprobs, selected_logprobs(logits[free], targets[free], temperature)])
    zeros = logprobs.new_zeros(targets.shape)
    return zeros.index_put(place, logprobs), zeros.index_put(place, entropy)
