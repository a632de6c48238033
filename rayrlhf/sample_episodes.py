"""Episodes of one model in this process, without Ray: what people rate, what is compared, printed and normalised on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayrlhf.config import AgentConfig, ModelConfig, PromptsConfig
from rayrlhf.environments import EnvironmentSettings, open_environments
from rayrlhf.player import Player
from rayrlhf.policy import check_policy, context_length, load_policy, load_tokenizer
from rayrlhf.prompts import load_prompts
from rayrlhf.response_config import NO_RULES, ResponseConfig
from rayrlhf.response_rules import as_shown
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.types import EpisodeSpec, Trajectory

SINGLE_TURN = EnvironmentSettings("single_turn")
PLAIN_TEXT = AgentConfig()


@dataclass(frozen=True, slots=True)
class Sampled:
    """What is sampled, and how."""

    prompts: PromptsConfig
    sampling: SamplingSettings
    response: ResponseConfig = NO_RULES
    environment: EnvironmentSettings = SINGLE_TURN
    agent: AgentConfig = PLAIN_TEXT
    max_turns: int = 1


def sample_episodes(model: ModelConfig, sampled: Sampled, batches: Sequence[Sequence[EpisodeSpec]]) -> list[Trajectory]:
    """The episodes of all batches in order, cut as rewards see them. Equal arguments give equal episodes.

    Raises UserError for a model or prompts that cannot be used.
    """
    tokenizer = load_tokenizer(model)
    policy = load_policy(model)
    check_policy(model, policy, tokenizer)
    context = context_length(model)
    prompts = load_prompts(sampled.prompts, tokenizer, context, sampled.sampling.max_new_tokens)
    player = Player(
        policy=policy,
        tokenizer=tokenizer,
        context=context,
        agent=sampled.agent,
        prompts=prompts.items,
        sampling=sampled.sampling,
        max_turns=sampled.max_turns,
        response=sampled.response,
    )
    environments = open_environments(sampled.environment, [item.text for item in prompts.items])
    try:
        return [as_shown(t) for specs in batches for t in player.play(specs, environments, weights_version=0)]
    finally:
        environments.close()
