"""Playing episodes, without Ray: environments and an actor in, trajectories out.

Training, evaluation, a baseline and a person at the keyboard all play through `play_episodes`; only the actor differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from rayrlhf.errors import EpisodeError
from rayrlhf.interfaces import Actor, Environments, Prompter
from rayrlhf.kl_estimators import VocabularyEstimator
from rayrlhf.policy import score_allowed, score_tokens, score_vocabulary_kl
from rayrlhf.types import (
    Action,
    AllowedTokens,
    EpisodeSpec,
    FloatArray,
    Generation,
    Situation,
    Split,
    StepResult,
    Trajectory,
    Turn,
)

Examples = Callable[[Situation, int], str | None]
"""Says whether the turn of this number is played as an example, and which command it is (SPEC TW-8)."""


@dataclass(slots=True)
class Episode:
    """One episode while it is played."""

    spec: EpisodeSpec
    now: StepResult  # what the environment has answered last
    turns: list[Turn] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.now.terminated or self.now.truncated

    def situation(self, slot: int, prompter: Prompter) -> Situation:
        return Situation(
            episode=slot,
            prompt_ids=prompter.prompt(self.turns, self.now.observation, self.now.state),
            observation=self.now.observation,
            state=self.now.state,
            seed=turn_seed(self.spec.sampling_seed, len(self.turns)),
            greedy=self.spec.greedy,
        )

    def take(self, situation: Situation, action: Action, example: bool, answer: StepResult) -> None:
        """Keeps the turn that led from the situation to the environment's answer."""
        if not np.isfinite(answer.reward):
            raise EpisodeError(
                f"episode {self.spec.index}: the environment's reward is {answer.reward}, not a finite number"
            )
        generation = action.generation
        self.turns.append(
            Turn(
                observation=situation.observation,
                action=action.text,
                prompt_ids=situation.prompt_ids,
                response_ids=generation.response_ids,
                logprobs=generation.logprobs,
                filtered_logprobs=generation.filtered_logprobs,
                reference_logprobs=np.zeros_like(generation.logprobs),
                prompt_logprobs=generation.prompt_logprobs,
                prompt_reference_logprobs=np.zeros_like(generation.prompt_logprobs),
                reward=answer.reward,
                finish=generation.finish,
                allowed=generation.allowed,
                before=situation.state,
                after=answer.state,
                example=example,
                shown_tokens=action.shown_tokens,
                missing_stop=action.missing_stop,
            )
        )
        self.now = answer

    def trajectory(self, weights_version: int, prompter: Prompter) -> Trajectory:
        """The episode as it stands; one that is not over was cut off by a limit."""
        ended = self.now.terminated
        after = [] if ended else [prompter.prompt(self.turns, self.now.observation, self.now.state)]
        return Trajectory(
            group=self.spec.group,
            index=self.spec.index,
            environment_seed=self.spec.environment_seed,
            sampling_seed=self.spec.sampling_seed,
            weights_version=weights_version,
            turns=tuple(self.turns),
            terminated=ended,
            truncated=not ended,
            final_observation=self.now.observation,
            final_prompt_ids=after[0] if after else np.zeros(0, np.int64),
            split=self.spec.split,
        )


def play_episodes(
    specs: Sequence[EpisodeSpec],
    environments: Environments,
    actor: Actor,
    prompter: Prompter,
    weights_version: int = 0,
    max_turns: int = 1,
    examples: Examples | None = None,
) -> list[Trajectory]:
    """Plays one batch of episodes to their ends, turn by turn, all of a turn decided together; returns them in order.

    The same specs, weights and arguments give the same trajectories bit for bit. An episode still running after
    `max_turns` turns is truncated. Reference log-probabilities are zeros until `with_reference` fills them in.
    """
    starts = environments.reset([spec.environment_seed for spec in specs])
    episodes = [Episode(spec, start) for spec, start in zip(specs, starts, strict=True)]
    for number in range(max_turns):
        situations = [e.situation(slot, prompter) for slot, e in enumerate(episodes) if not e.over]
        if not situations:
            break
        shown = [examples(situation, number) if examples else None for situation in situations]
        chosen = iter(actor.act([s for s, command in zip(situations, shown, strict=True) if command is None]))
        actions = [next(chosen) if command is None else example_action(command, prompter) for command in shown]
        answers = environments.step({s.episode: action.text for s, action in zip(situations, actions, strict=True)})
        for situation, action, command in zip(situations, actions, shown, strict=True):
            episodes[situation.episode].take(situation, action, command is not None, answers[situation.episode])
    return [episode.trajectory(weights_version, prompter) for episode in episodes]


def example_action(command: str, prompter: Prompter) -> Action:
    """A command that is played for the policy: its tokens stand in the memory and bear no log-probabilities."""
    ids = prompter.command_ids(command)
    none = np.zeros(len(ids), np.float32)
    return Action(command, Generation(ids, none, none, np.zeros(0, np.float32), "eos"))


def with_reference(trajectories: Sequence[Trajectory], reference: nn.Module, temperature: float) -> list[Trajectory]:
    """The trajectories with the frozen reference's log-probabilities, at the policy's temperature (SPEC X-6).

    Where decoding was constrained the reference is held to the same tokens. Prompts are scored, from their second token
    on, where they were under the policy. Example turns stay as they are.
    """
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    scored = iter(_reference_scored(turns, reference, temperature))
    return [replace(trajectory, turns=tuple(next(scored) for _ in trajectory.turns)) for trajectory in trajectories]


def _reference_scored(turns: Sequence[Turn], reference: nn.Module, temperature: float) -> list[Turn]:
    results = list(turns)
    free = [i for i, turn in enumerate(turns) if turn.allowed is None and not turn.example]
    starts = [_scored_start(turns[i]) for i in free]
    logprobs_of = score_tokens(reference, [_tokens(turns[i]) for i in free], starts, temperature)
    for i, logprobs in zip(free, logprobs_of, strict=True):
        results[i] = _with_reference_logprobs(turns[i], logprobs)
    constrained = [(i, turn.allowed) for i, turn in enumerate(turns) if turn.allowed is not None and not turn.example]
    scores = score_allowed(
        reference,
        [_tokens(turns[i]) for i, _ in constrained],
        [_scored_start(turns[i]) for i, _ in constrained],
        [_after_prompt(allowed, len(turns[i].prompt_logprobs)) for i, allowed in constrained],
        temperature,
    )
    for (i, allowed), (of_sets, of_tokens) in zip(constrained, scores, strict=True):
        filled = replace(allowed, reference_logprobs=of_sets)
        results[i] = replace(_with_reference_logprobs(turns[i], of_tokens), allowed=filled)
    return results


def _scored_start(turn: Turn) -> int:
    """The first token that has a log-probability: the second, or the response's first where the prompt has none."""
    return 1 if len(turn.prompt_logprobs) else len(turn.prompt_ids)


def _after_prompt(allowed: AllowedTokens, prompt: int) -> AllowedTokens:
    """The allowed tokens of a response, behind so many prompt tokens of the whole vocabulary."""
    return replace(allowed, offsets=np.concatenate([np.zeros(prompt, np.int64), allowed.offsets]))


def _with_reference_logprobs(turn: Turn, logprobs: FloatArray) -> Turn:
    prompt = len(turn.prompt_logprobs)
    return replace(turn, prompt_reference_logprobs=logprobs[:prompt], reference_logprobs=logprobs[prompt:])


def with_vocabulary_kl(
    trajectories: Sequence[Trajectory],
    policy: nn.Module,
    reference: nn.Module,
    temperature: float,
    estimator: VocabularyEstimator,
) -> list[Trajectory]:
    """The trajectories with the KL over the whole vocabulary at each response token, for the reward.

    `policy` has the weights that sampled. Turns whose every token was constrained stay as they are, their allowed tokens
    say it; so do example turns.
    """

    def asked(turn: Turn) -> bool:
        return not turn.example and (turn.allowed is None or not turn.allowed.counts.all())

    turns = [turn for trajectory in trajectories for turn in trajectory.turns if asked(turn)]
    tokens, starts = [_tokens(turn) for turn in turns], [len(turn.prompt_ids) for turn in turns]
    kls = iter(score_vocabulary_kl(policy, reference, tokens, starts, temperature, estimator))

    def filled(turn: Turn) -> Turn:
        return replace(turn, vocabulary_kl=next(kls)) if asked(turn) else turn

    return [replace(trajectory, turns=tuple(filled(turn) for turn in trajectory.turns)) for trajectory in trajectories]


def with_prompt_logprobs(trajectories: Sequence[Trajectory], policy: nn.Module, temperature: float) -> list[Trajectory]:
    """The trajectories with the policy's log-probabilities of their prompts where the actor has not scored them.

    Example turns stay as they are: nothing of theirs counts.
    """

    def asked(turn: Turn) -> bool:
        return not turn.example and len(turn.prompt_logprobs) != len(turn.prompt_ids) - 1

    prompts = [turn.prompt_ids for trajectory in trajectories for turn in trajectory.turns if asked(turn)]
    scores = iter(score_tokens(policy, prompts, [1] * len(prompts), temperature))

    def scored(turn: Turn) -> Turn:
        return replace(turn, prompt_logprobs=next(scores)) if asked(turn) else turn

    return [replace(trajectory, turns=tuple(scored(turn) for turn in trajectory.turns)) for trajectory in trajectories]


def _tokens(turn: Turn) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.concatenate([turn.prompt_ids, turn.response_ids])


def deal_specs(
    run_seed: int,
    iteration: int,
    groups: int,
    group_size: int,
    groups_per_batch: int,
    split: Split = "train",
    greedy: bool = False,
) -> list[list[EpisodeSpec]]:
    """The episodes of one iteration, batched: every seed follows from (run seed, iteration, index).

    Environment seeds count up through the run, so that prompts and games come by in order; the baseline before the
    first iteration is iteration -1 and plays the first groups' environments. Held-out games are the same each time.
    """
    first_group = max(iteration, 0) * groups if split == "train" else 0
    specs = [
        EpisodeSpec(
            group=index // group_size,
            index=index,
            environment_seed=first_group + index // group_size,
            sampling_seed=episode_seed(run_seed, iteration, index),
            split=split,
            greedy=greedy,
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


def rollout_metrics(trajectories: Sequence[Trajectory]) -> Mapping[str, float]:
    """rollout/* metrics of one iteration; of games also the share that was won, the turns and what was understood."""
    lengths = [trajectory.response_tokens for trajectory in trajectories]
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    metrics = {
        "rollout/episodes": len(trajectories),
        "rollout/tokens": sum(lengths),
        "rollout/length_mean": float(np.mean(lengths)),
        "rollout/finished": sum(t.turns[-1].finish != "length" for t in trajectories) / len(trajectories),
    }
    if any(turn.before.commands for turn in turns):
        metrics |= {
            "rollout/won": sum(t.turns[-1].after.won for t in trajectories) / len(trajectories),
            "rollout/turns": len(turns) / len(trajectories),
            "rollout/valid": sum(turn.after.valid for turn in turns) / len(turns),
        }
    return metrics
