"""A policy that plays: its model, its way of reading a game and of acting in it, put together for `play_episodes`.

Training workers, `rayrlhf evaluate`, `generate` and `play` all build their policy here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from rayrlhf.actions import make_actor
from rayrlhf.agent_text import make_prompter
from rayrlhf.config import AgentConfig
from rayrlhf.ends import end_tokens
from rayrlhf.examples import make_examples
from rayrlhf.interfaces import Environments
from rayrlhf.prompts import Prompt
from rayrlhf.response_config import NO_RULES, ResponseConfig
from rayrlhf.rollout import play_episodes
from rayrlhf.sampling.transformers_engine import SamplingSettings, TransformersSampler
from rayrlhf.types import EpisodeSpec, Trajectory


class Player:
    """Plays episodes with one policy. The model may be trained or loaded between calls."""

    def __init__(
        self,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        agent: AgentConfig,
        prompts: Sequence[Prompt],
        sampling: SamplingSettings,
        max_turns: int,
        response: ResponseConfig = NO_RULES,
    ):
        """`context`: most tokens the model takes; `prompts`: those of a single-turn environment, empty for games."""
        self.max_turns = max_turns
        ends = end_tokens(tokenizer, getattr(policy, "generation_config", None))
        self.prompter = make_prompter(agent, tokenizer, prompts, context, sampling.max_new_tokens, ends)
        sampler = TransformersSampler(policy, ends, sampling)
        self._cut = 0
        self.actor = make_actor(agent.actions, sampler, self.prompter, agent.stop_at_sentence, response)
        self.examples = make_examples(agent.examples)

    def play(self, specs: Sequence[EpisodeSpec], environments: Environments, weights_version: int) -> list[Trajectory]:
        """Plays one batch of episodes to their ends. Example turns (SPEC TW-8) are of training games alone."""
        examples = self.examples if specs[0].split == "train" else None
        self.actor.reset()
        return play_episodes(specs, environments, self.actor, self.prompter, weights_version, self.max_turns, examples)

    def observations_cut(self) -> int:
        """Observations since the last call that were too long for a prompt and lost their beginning."""
        before, self._cut = self._cut, getattr(self.prompter, "cut", 0)
        return self._cut - before
