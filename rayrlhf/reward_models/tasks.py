"""Samples of a run's task: what people rate, and what a reward model's scores are normalised on."""

from __future__ import annotations

from rayrlhf.config import ModelConfig, RunConfig
from rayrlhf.rollout import deal_specs
from rayrlhf.run_parts import environment_settings
from rayrlhf.sample_episodes import Sampled, sample_episodes
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.types import Trajectory

_BATCH = 128  # episodes that are decoded together


def sample_task(config: RunConfig, model: ModelConfig, groups: int, seed: int, group_size: int = 1) -> list[Trajectory]:
    """Plays episodes of a run's task with a model in this process, as a run's rewards would see them.

    The `group_size` episodes of each of the groups go on from the same prompt (SPEC GWERN-33).

    Equal arguments give equal episodes. Raises UserError for a model or prompts that cannot be used.
    """
    rollout = config.rollout
    sampled = Sampled(
        prompts=config.environment.prompts,
        sampling=SamplingSettings(rollout.max_new_tokens, rollout.temperature, rollout.top_k, rollout.top_p),
        response=config.response,
        environment=environment_settings(config)["train"],
        agent=config.agent,
        max_turns=config.environment.max_turns,
    )
    return sample_episodes(model, sampled, deal_specs(seed, 0, groups, group_size, max(1, _BATCH // group_size)))
