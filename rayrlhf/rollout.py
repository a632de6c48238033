"""Playing episodes, without Ray: environments and a policy in, trajectories out.

Training, evaluation and a person at the keyboard all play through `play_episodes`; only the sampler differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from rayrlhf.errors import EpisodeError
from rayrlhf.interfaces import Environment, Sampler
from rayrlhf.policy import score_tokens
from rayrlhf.types import EpisodeSpec, FloatArray, IntArray, Trajectory, Turn


@dataclass(frozen=True, slots=True)
class Codec:
    """Text to the policy's token ids and back."""

    encode: Callable[[str], IntArray]  # an observation -> prompt ids [P], P >= 1
    decode: Callable[[IntArray], str]  # response ids [T] -> text without special tokens


@dataclass(slots=True)
class Episode:
    """One episode while it is played."""

    spec: EpisodeSpec
    environment: Environment
    observation: str
    turns: list[Turn]
    terminated: bool = False
    truncated: bool = False

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated

    def step(self, turn: Turn) -> None:
        """Gives the turn's action to the environment and keeps the turn with the reward it brought."""
        try:
            observation, reward, terminated, truncated, _ = self.environment.step(turn.action)
        except Exception as error:
            raise EpisodeError(
                f"episode {self.spec.index}: the environment raised {type(error).__name__}: {error}"
            ) from error
        reward = float(reward)
        if not np.isfinite(reward):
            raise EpisodeError(f"episode {self.spec.index}: the environment's reward is {reward}, not a finite number")
        self.turns.append(replace(turn, reward=reward))
        self.observation, self.terminated, self.truncated = observation, bool(terminated), bool(truncated)


def play_episodes(
    specs: Sequence[EpisodeSpec],
    make_environment: Callable[[], Environment],
    sampler: Sampler,
    codec: Codec,
    weights_version: int = 0,
    max_turns: int = 1,
) -> list[Trajectory]:
    """Plays one batch of episodes to their ends, all of their turns sampled together; returns them in order.

    The same specs, sampler weights and arguments give the same trajectories bit for bit. An episode still running
    after `max_turns` turns is truncated. Reference log-probabilities are zeros until `with_reference` fills them in.
    """
    episodes = [_start(spec, make_environment()) for spec in specs]
    for number in range(max_turns):
        running = [episode for episode in episodes if not episode.over]
        if not running:
            break
        prompts = [codec.encode(episode.observation) for episode in running]
        seeds = [turn_seed(episode.spec.sampling_seed, number) for episode in running]
        for episode, prompt, generation in zip(running, prompts, sampler.sample(prompts, seeds)):
            unscored = np.zeros_like(generation.logprobs)
            episode.step(
                Turn(
                    observation=episode.observation,
                    action=codec.decode(generation.response_ids),
                    prompt_ids=prompt,
                    response_ids=generation.response_ids,
                    logprobs=generation.logprobs,
                    filtered_logprobs=generation.filtered_logprobs,
                    reference_logprobs=unscored,
                    prompt_logprobs=generation.prompt_logprobs,
                    prompt_reference_logprobs=np.zeros_like(generation.prompt_logprobs),
                    reward=0.0,
                    finish=generation.finish,
                )
            )
    return [
        Trajectory(
            group=episode.spec.group,
            index=episode.spec.index,
            environment_seed=episode.spec.environment_seed,
            sampling_seed=episode.spec.sampling_seed,
            weights_version=weights_version,
            turns=tuple(episode.turns),
            terminated=episode.terminated,
            truncated=not episode.terminated,
        )
        for episode in episodes
    ]


def with_reference(trajectories: Sequence[Trajectory], reference: nn.Module, temperature: float) -> list[Trajectory]:
    """The trajectories with the frozen reference's log-probabilities, at the policy's temperature (SPEC X-6)."""
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    # Where the prompt was scored under the policy it is scored under the reference too: from its second token on.
    starts = [1 if len(turn.prompt_logprobs) else len(turn.prompt_ids) for turn in turns]
    sequences = [np.concatenate([turn.prompt_ids, turn.response_ids]) for turn in turns]
    scored = iter(score_tokens(reference, sequences, starts, temperature))
    return [
        replace(trajectory, turns=tuple(_scored(turn, next(scored)) for turn in trajectory.turns))
        for trajectory in trajectories
    ]


def deal_specs(
    run_seed: int, iteration: int, groups: int, group_size: int, groups_per_batch: int
) -> list[list[EpisodeSpec]]:
    """The episodes of one iteration, batched: every seed follows from (run seed, iteration, index).

    Environment seeds count up through the run, so that prompts come by in order; the baseline before the first
    iteration is iteration -1 and plays the first groups' environments.
    """
    first_group = max(iteration, 0) * groups
    specs = [
        EpisodeSpec(
            group=index // group_size,
            index=index,
            environment_seed=first_group + index // group_size,
            sampling_seed=episode_seed(run_seed, iteration, index),
        )
        for index in range(groups * group_size)
    ]
    batch = groups_per_batch * group_size
    return [specs[start : start + batch] for start in range(0, len(specs), batch)]


def episode_seed(run_seed: int, iteration: int, index: int) -> int:
    """A 64-bit seed that no other episode of the run shares; iteration -1 is the baseline before the first."""
    state = np.random.SeedSequence([run_seed, iteration + 1, index]).generate_state(1, np.uint64)
    return int(state[0])


def turn_seed(sampling_seed: int, turn: int) -> int:
    """The seed of one turn's random numbers; the first turn's is the episode's own."""
    if turn == 0:
        return sampling_seed
    return int(np.random.SeedSequence([sampling_seed, turn]).generate_state(1, np.uint64)[0])


def _start(spec: EpisodeSpec, environment: Environment) -> Episode:
    try:
        observation, _ = environment.reset(seed=spec.environment_seed)
    except Exception as error:
        raise EpisodeError(f"episode {spec.index}: reset raised {type(error).__name__}: {error}") from error
    return Episode(spec=spec, environment=environment, observation=observation, turns=[])


def _scored(turn: Turn, logprobs: FloatArray) -> Turn:
    prompt = len(turn.prompt_logprobs)
    return replace(turn, prompt_reference_logprobs=logprobs[:prompt], reference_logprobs=logprobs[prompt:])


def rollout_metrics(trajectories: Sequence[Trajectory]) -> Mapping[str, float]:
    """rollout/* metrics of one iteration."""
    lengths = [trajectory.response_tokens for trajectory in trajectories]
    last: list[Any] = [trajectory.turns[-1].finish for trajectory in trajectories]
    return {
        "rollout/episodes": len(trajectories),
        "rollout/tokens": sum(lengths),
        "rollout/length_mean": float(np.mean(lengths)),
        "rollout/finished": sum(finish == "eos" for finish in last) / len(last),
    }
