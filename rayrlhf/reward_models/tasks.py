"""Samples of a run's task: what people rate, and what a reward model's scores are normalised on."""

from __future__ import annotations

from rayrlhf.config import ModelConfig, RunConfig
from rayrlhf.environments import open_environments
from rayrlhf.player import Player
from rayrlhf.policy import check_vocabulary, context_length, load_policy, load_tokenizer
from rayrlhf.prompts import load_prompts
from rayrlhf.response_rules import as_shown
from rayrlhf.rollout import deal_specs
from rayrlhf.run_parts import environment_settings
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.types import Trajectory

_BATCH = 128  # episodes that are decoded together


def sample_task(config: RunConfig, model: ModelConfig, groups: int, seed: int, group_size: int = 1) -> list[Trajectory]:
    """Plays episodes of a run's task with a model in this process, as a run's rewards would see them.

    The `group_size` episodes of each of the groups go on from the same prompt (SPEC GWERN-33).

    Equal arguments give equal episodes. Raises UserError for a model or prompts that cannot be used.
    """
    tokenizer = load_tokenizer(model)
    policy = load_policy(model)
    check_vocabulary(model, policy, tokenizer)
    context, rollout = context_length(model), config.rollout
    prompts = load_prompts(config.environment.prompts, tokenizer, context, rollout.max_new_tokens)
    player = Player(
        policy=policy,
        tokenizer=tokenizer,
        context=context,
        agent=config.agent,
        prompts=prompts.items,
        sampling=SamplingSettings(rollout.max_new_tokens, rollout.temperature, rollout.top_k, rollout.top_p),
        max_turns=config.environment.max_turns,
        response=config.response,
    )
    environments = open_environments(environment_settings(config)["train"], [item.text for item in prompts.items])
    try:
        batches = deal_specs(seed, 0, groups, group_size, max(1, _BATCH // group_size))
        return [as_shown(t) for specs in batches for t in player.play(specs, environments, weights_version=0)]
    finally:
        environments.close()
