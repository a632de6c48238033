"""The policy that plays along: its probabilities of the commands, its value of the state, and its move.

All come from the actor and the prompter of training, so that what is shown is what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from rayrlhf.actions import AutoActor, ConstrainedActor, RankActor, make_actor
from rayrlhf.config import AgentConfig
from rayrlhf.interfaces import Prompter
from rayrlhf.policy import score_tokens
from rayrlhf.response_config import NO_RULES, ResponseConfig
from rayrlhf.sampling.transformers_engine import SamplingSettings, TransformersSampler
from rayrlhf.types import Action, FloatArray, Situation, ValueQuery
from rayrlhf.value import ValueNetwork, query_values


@dataclass(frozen=True, slots=True)
class Advice:
    """What the policy makes of a state."""

    probabilities: FloatArray  # [commands] in their order; of a policy that writes freely they add to less than 1
    value: float | None  # V of the state; None without a value network


class PlayPolicy:
    """A policy in one game."""

    def __init__(
        self,
        model: nn.Module,
        ends: Sequence[int],
        prompter: Prompter,
        agent: AgentConfig,
        sampling: SamplingSettings,
        value: ValueNetwork | None,
        response: ResponseConfig = NO_RULES,
    ):
        self._model = model
        self._ends = tuple(ends)
        self._prompter = prompter
        self._agent = agent
        self._sampling = sampling
        self._value = value
        self._response = response
        sampler = TransformersSampler(model, self._ends, sampling)
        self._actor = make_actor(agent.actions, sampler, prompter, agent.stop_at_sentence, response)

    @property
    def temperature(self) -> float:
        return self._sampling.temperature

    def at(self, temperature: float) -> PlayPolicy:
        """The same policy at another temperature."""
        sampling = replace(self._sampling, temperature=temperature)
        return PlayPolicy(self._model, self._ends, self._prompter, self._agent, sampling, self._value, self._response)

    def reset(self) -> None:
        """Due before each game."""
        self._actor.reset()

    def act(self, situation: Situation) -> Action:
        [action] = self._actor.act([situation])
        return action

    def advise(self, situation: Situation) -> Advice:
        return Advice(np.exp(self._command_logprobs(situation)), self._value_of(situation))

    def _command_logprobs(self, situation: Situation) -> FloatArray:
        """[commands] nats."""
        commands = situation.state.commands
        if not commands:
            return np.zeros(0, np.float32)
        actor = self._actor.constrained if isinstance(self._actor, AutoActor) else self._actor
        if isinstance(actor, ConstrainedActor | RankActor):
            [logprobs] = actor.command_logprobs([situation])
            return logprobs
        prompt, responses = situation.prompt_ids, [self._prompter.command_ids(command) for command in commands]
        sequences = [np.concatenate([prompt, response]) for response in responses]
        scores = score_tokens(self._model, sequences, [len(prompt)] * len(commands), self.temperature)
        return np.array([score.sum() for score in scores], np.float32)

    def _value_of(self, situation: Situation) -> float | None:
        if self._value is None:
            return None
        query = ValueQuery(np.append(situation.prompt_ids, self._ends[0]), len(situation.prompt_ids))
        [values] = query_values(self._value, [query])
        return float(values[0])
