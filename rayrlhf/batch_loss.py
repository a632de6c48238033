"""Losses and statistics of one micro-batch from what the networks say of it. Pure tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from rayrlhf.kl_estimators import KLLoss, constrained_kl, vocabulary_kl
from rayrlhf.losses import Objective, ValueObjective, constrained_logprobs, entropies, selected_logprobs
from rayrlhf.micro_batches import Choices, MicroBatch
from rayrlhf.update_statistics import TokenStatistics, ValueStatistics, token_statistics, value_statistics


def policy_loss(
    logits: Tensor,
    batch: MicroBatch,
    objective: Objective,
    temperature: float,
    kl_coef: float = 0.0,
    reference_logits: Tensor | None = None,
) -> tuple[Tensor, TokenStatistics]:
    """This micro-batch's share of sum weights * (policy loss - entropy_coef * entropy + kl_coef * KL loss), a scalar with
    gradient, and its tokens' statistics; logits: [B, C, V] of the batch's columns, the reference's where the KL loss is
    over the vocabulary."""
    logprobs, entropy = distribution(logits, batch, temperature, entropy_gradient=objective.entropy_coef > 0)
    behaviour, advantages = batch.behaviour_logprobs, batch.advantages
    losses = objective.policy(logprobs, behaviour, advantages)
    if objective.entropy_coef:
        losses = losses - objective.entropy_coef * entropy
    kl_losses = torch.zeros_like(logprobs)
    if objective.kl is not None:
        kl_losses = token_kl_losses(objective.kl, logits, reference_logits, logprobs, batch, temperature)
        losses = losses + kl_coef * kl_losses
    clipped = objective.policy.clipped(logprobs.detach(), behaviour, advantages)
    statistics = token_statistics(
        losses.detach(), logprobs.detach(), behaviour, entropy.detach(), clipped, kl_losses.detach(), batch.scored
    )  # fmt: skip
    return (batch.weights * losses).sum(), statistics


@torch.no_grad()
def agreement(logits: Tensor, batch: MicroBatch, temperature: float) -> TokenStatistics:
    """How far the policy's log-probabilities are from those that were sampled with (SPEC X-5), without the rest of what
    `policy_loss` says: losses, entropies and clips count 0. logits: [B, C, V] of the batch's columns."""
    if batch.choices is None:
        logprobs = selected_logprobs(logits, batch.targets, temperature)
    else:
        logprobs, _ = _mixed_distribution(logits, batch.targets, batch.choices, temperature, entropy_gradient=False)
    none = torch.zeros_like(logprobs)
    return token_statistics(none, logprobs, batch.behaviour_logprobs, none, none.bool(), none, batch.scored)


def value_loss(values: Tensor, batch: MicroBatch, objective: ValueObjective) -> tuple[Tensor, ValueStatistics]:
    """This micro-batch's share of sum value_weights * value loss, a scalar with gradient, and its tokens' statistics;
    values: [B, D] of the batch's value columns."""
    values = values.float()
    losses = objective(values, batch.old_values, batch.returns)
    clipped = objective.clipped(values.detach(), batch.old_values, batch.returns)
    statistics = value_statistics(values.detach(), batch.returns, clipped, batch.valued)
    return (batch.value_weights * losses).sum(), statistics


def token_kl_losses(
    loss: KLLoss,
    logits: Tensor,
    reference_logits: Tensor | None,
    logprobs: Tensor,
    batch: MicroBatch,
    temperature: float,
) -> Tensor:
    """The KL loss at each place, [B, C] nats; over the tokens that were allowed where decoding was constrained."""
    exact, choices = loss.vocabulary, batch.choices
    if exact is None:
        # At places without loss nothing was stored; 0 there could make exp(-k) infinite, and 0 * inf is no number.
        reference = torch.where(batch.scored, batch.reference_logprobs, logprobs.detach())
        return loss.sampled(logprobs, reference, batch.behaviour_logprobs)
    assert reference_logits is not None
    if choices is None:
        return vocabulary_kl(exact, logits, reference_logits, temperature)
    among, free = choices.among, (choices.free_rows, choices.free_places)
    constrained = constrained_kl(exact, logits[among], reference_logits[among], choices.allowed, temperature)
    kl = logprobs.new_zeros(logprobs.shape).index_put((choices.rows, choices.places), constrained)
    if len(choices.free_rows):
        kl = kl.index_put(free, vocabulary_kl(exact, logits[free], reference_logits[free], temperature))
    return kl


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
    logprobs, entropy = constrained_logprobs(logits[choices.among], choices.allowed, choices.chosen, temperature)
    place = (torch.cat([choices.rows, choices.free_rows]), torch.cat([choices.places, choices.free_places]))
    if len(choices.free_rows):
        free = choices.free_rows, choices.free_places
        with torch.set_grad_enabled(entropy_gradient):
            entropy = torch.cat([entropy, entropies(logits[free], temperature)])
        logprobs = torch.cat([logprobs, selected_logprobs(logits[free], targets[free], temperature)])
    zeros = logprobs.new_zeros(targets.shape)
    return zeros.index_put(place, logprobs), zeros.index_put(place, entropy)
