"""What a run says before it starts: what it is, which units it counts in, and what skews its numbers."""

from __future__ import annotations

from rayrlhf.config import RunConfig
from rayrlhf.controllers import immobility
from rayrlhf.kl_channels import penalty_warning
from rayrlhf.progress import Progress
from rayrlhf.prompts import Prompts
from rayrlhf.run_folder import RunFolder


def announce(progress: Progress, config: RunConfig, prompts: Prompts, folder: RunFolder) -> None:
    """Shows all of it, a line each."""
    rewards = " + ".join(part.name for part in config.reward)
    progress.message(
        f"{config.algorithm.name} on {rewards}, model {config.model.path}, {len(prompts.items)} prompts from "
        f"{prompts.source} ({prompts.dropped} dropped, {prompts.cut} cut), run folder {folder.path}"
    )
    longest = max((len(prompt.ids) for prompt in prompts.items), default=0)
    for line in (*conversions(config, longest), *warnings(config)):
        progress.message(line)


def conversions(config: RunConfig, prompt_tokens: int) -> list[str]:
    """What a penalty of the mean token is in nats of the sequence (SPEC ALLIT-5, ALLIT-6, Q-1); nothing for `sum`.

    prompt_tokens: of the longest prompt.
    """
    kl = config.algorithm.kl
    if kl.reduction == "sum":
        return []
    counted = max(prompt_tokens - 1, 0) if config.algorithm.include_prompt else 0
    tokens = config.rollout.max_new_tokens + counted
    return [
        f"algorithm.kl.coef {kl.coef:g} counts the mean of at most {tokens} tokens"
        f"{f' ({counted} of the prompt among them)' if counted else ''}: {kl.coef / tokens:.4g} a nat of the sequence at "
        f"that length. KL is log pi - log reference and is subtracted; as cross-entropies it is CE_reference - CE_policy, "
        f"so a term {kl.coef:g} * (CE_policy - CE_reference) that is added to the reward is the same."
    ]


def warnings(config: RunConfig) -> list[str]:
    """What the user should know before the run has cost anything."""
    episodes = config.rollout.episodes_per_iteration
    channels = (("algorithm.kl", config.algorithm.kl), ("algorithm.kl_loss", config.algorithm.kl_loss))
    found = [penalty_warning(config.algorithm)]
    found += [immobility(channel, option, episodes, config.iterations) for option, channel in channels if channel]
    if config.rollout.top_k is not None or config.rollout.top_p not in (None, 1.0):
        found.append(
            "warning: rollout.top_k / rollout.top_p sample from a truncated distribution, while the loss and the KL "
            "are those of the full one at this temperature; both log-probabilities are kept (SPEC X-5)"
        )
    return [warning for warning in found if warning is not None]
