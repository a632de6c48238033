"""PPO: clipped policy and value losses, advantages of tokens from a value network (Schulman et al. 2017; LMHP-19..24)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayrlhf.advantages import gae, turn_links, whitening
from rayrlhf.algorithm_config import GAEConfig, PPOConfig
from rayrlhf.algorithms.base import EpisodeAlgorithm
from rayrlhf.algorithms.sequences import (
    TurnTarget,
    segments,
    token_weights,
    training_batch,
    training_sequence,
)
from rayrlhf.kl import penalised_kl
from rayrlhf.kl_config import KLPenaltyConfig
from rayrlhf.losses import ClippedLoss, Objective, ValueObjective
from rayrlhf.types import EpisodeScore, FloatArray, IntArray, TrainingBatch, Trajectory, Turn, ValueQuery

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Credit:
    """The steps that an episode's rewards are credited to: the tokens its policy chose, and the first token of each turn
    that left it no choice, whose value passes the credit on. N = steps."""

    tokens: tuple[IntArray, ...]  # of each turn: positions of its steps among its response tokens
    rewards: Floats  # [N] -coef * KL at each, and each turn's score at its last (SPEC LMHP-19)
    values: Floats  # [N]
    advantages: Floats  # [N]

    @property
    def returns(self) -> Floats:
        """[N] what the value network is fitted to (SPEC LMHP-22)."""
        return self.advantages + self.values

    def of_turns(self, steps: Floats) -> list[Floats]:
        """Values of the steps [N], turn by turn."""
        return np.split(steps, np.cumsum([len(tokens) for tokens in self.tokens])[:-1])


class PPO(EpisodeAlgorithm):
    def __init__(self, config: PPOConfig, iterations: int = 1):
        super().__init__(config, iterations)
        self.config = config
        value = ValueObjective(config.value_clip_range, config.value_coef)
        self.objective = Objective(ClippedLoss(config.clip_range), config.entropy_coef, value, self.kl_objective)

    def value_queries(self, trajectories: Sequence[Trajectory]) -> list[ValueQuery]:
        """All turns of each episode, and what the next one would have been given where a limit cut it off."""
        return [query for trajectory in trajectories for query in episode_queries(trajectory)]

    def turn_values(
        self, trajectories: Sequence[Trajectory], values: Sequence[FloatArray]
    ) -> list[Sequence[float] | None]:
        """V of what the policy was shown at each turn."""
        held = answers_by_episode(trajectories, values)
        return [[float(own[0]) for own in values_of_turns(*row)] for row in zip(trajectories, held, strict=True)]

    def prepare(
        self,
        trajectories: Sequence[Trajectory],
        scores: Sequence[EpisodeScore],
        values: Sequence[FloatArray],
        seed: int,
    ) -> tuple[TrainingBatch, Mapping[str, float]]:
        """See `interfaces.Algorithm`."""
        config = self.config
        held = answers_by_episode(trajectories, values)
        steps = [decision_steps(trajectory) for trajectory in trajectories]
        rewards = [step_rewards(*row, config.kl, self.kl.coef) for row in zip(trajectories, scores, steps, strict=True)]
        if config.whiten_rewards == "batch":
            mean, factor = whitening(np.concatenate(rewards))
            rewards = [(episode - mean) * factor + mean for episode in rewards]
        credits = [credit(*row, config.gae) for row in zip(trajectories, rewards, held, steps, strict=True)]
        sequences = []
        for trajectory, targets in zip(trajectories, self._targets(trajectories, credits), strict=True):
            for segment in segments(trajectory):
                if any(targets[i].value_weights.any() for i in segment.turns):
                    sequences.append(training_sequence(segment, trajectory.turns, targets, self.with_reference))
        batch = training_batch(
            sequences,
            config.loss_reduction,
            config.epochs,
            config.minibatches,
            config.target_kl,
            seed,
            whiten=config.whiten_advantages == "minibatch",
            kl_coef=self.kl_loss_coef,
        )
        return batch, {
            **self.objective_metrics(trajectories, scores),
            "objective/value_mean": float(np.concatenate([c.values for c in credits]).mean()),
            "objective/return_mean": float(np.concatenate([c.returns for c in credits]).mean()),
        }

    def _targets(self, trajectories: Sequence[Trajectory], credits: Sequence[Credit]) -> list[list[TurnTarget]]:
        """Of each episode each turn's target: example turns carry no loss, turns without a choice that of values alone."""
        turns = [trajectory.turns for trajectory in trajectories]
        trained = [sum(int(turn.choices.sum()) for turn in episode) for episode in turns]
        valued = [
            sum(0 if turn.example else len(tokens) for turn, tokens in zip(episode, c.tokens, strict=True))
            for episode, c in zip(turns, credits, strict=True)
        ]
        reduction = self.config.loss_reduction
        weights, value_weights = token_weights(trained, reduction), token_weights(valued, reduction)
        advantages = self._whitened(turns, credits)
        return [_turn_targets(*row) for row in zip(turns, credits, advantages, weights, value_weights, strict=True)]

    def _whitened(self, turns: Sequence[Sequence[Turn]], credits: Sequence[Credit]) -> list[Floats]:
        """Advantages of each episode's steps, over the steps that are trained."""
        kind = self.config.whiten_advantages
        advantages = [c.advantages for c in credits]
        if kind in ("none", "minibatch"):
            return advantages
        chosen = [
            np.concatenate([turn.choices[tokens] for turn, tokens in zip(episode, c.tokens, strict=True)])
            for episode, c in zip(turns, credits, strict=True)
        ]
        groups = [[i] for i in range(len(credits))] if kind == "episode" else [list(range(len(credits)))]
        for group in groups:
            shift, factor = whitening(np.concatenate([advantages[i][chosen[i]] for i in group]))
            for i in group:
                advantages[i] = (advantages[i] - shift) * factor
        return advantages


def episode_queries(trajectory: Trajectory) -> list[ValueQuery]:
    queries = [segment.query() for segment in segments(trajectory)]
    after = trajectory.final_prompt_ids
    if trajectory.truncated and len(after):
        queries.append(ValueQuery(np.append(after, after[-1]), len(after)))  # what its last token is does not matter
    return queries


def answers_by_episode(trajectories: Sequence[Trajectory], values: Sequence[FloatArray]) -> list[list[FloatArray]]:
    """The answers to all queries, episode by episode."""
    counts = [len(episode_queries(trajectory)) for trajectory in trajectories]
    if len(values) != sum(counts):
        raise ValueError(f"{len(values)} answers to {sum(counts)} value queries")
    answers = iter(values)
    return [[next(answers) for _ in range(count)] for count in counts]


def values_of_turns(trajectory: Trajectory, held: Sequence[FloatArray]) -> list[FloatArray]:
    """Values before each response token of each turn, [T] each; `held` answers `episode_queries`."""
    of_turns: dict[int, FloatArray] = {}
    found = segments(trajectory)
    for segment, values in zip(found, held[: len(found)], strict=True):  # the last may be of what came after
        for position, start in zip(segment.turns, segment.starts, strict=True):
            begin = start - segment.starts[0]
            of_turns[position] = values[begin : begin + len(trajectory.turns[position].response_ids)]
    return [of_turns[position] for position in range(len(trajectory.turns))]


def decision_steps(trajectory: Trajectory) -> tuple[IntArray, ...]:
    """Of each turn the positions among its response tokens that are steps of `Credit`."""
    steps = [np.flatnonzero(turn.choices) for turn in trajectory.turns]
    return tuple(tokens if len(tokens) else np.zeros(1, np.int64) for tokens in steps)


def step_rewards(
    trajectory: Trajectory, score: EpisodeScore, steps: Sequence[IntArray], kl: KLPenaltyConfig, coef: float
) -> Floats:
    """R_t = -coef * KL_t at each step, plus the turn's score at its last (SPEC LMHP-19), [N].

    KL_t is the number of the channel's estimator, `coef` what its controller says now. With reduction `mean` the KL of a
    token counts 1 / (tokens of the episode).
    """
    share = 1.0 if kl.reduction == "sum" else 1.0 / max(trajectory.response_tokens, 1)
    rewards = []
    for turn, tokens, total in zip(trajectory.turns, steps, score.total, strict=True):
        of_turn = -coef * share * penalised_kl(turn, kl.estimator, False)[tokens].astype(np.float64)
        of_turn[-1] += float(total)
        rewards.append(of_turn)
    return np.concatenate(rewards)


def credit(
    trajectory: Trajectory,
    rewards: Floats,
    values: Sequence[FloatArray],
    steps: tuple[IntArray, ...],
    config: GAEConfig,
) -> Credit:
    """Advantages of an episode's steps; `values` answer `episode_queries`."""
    of_turns = values_of_turns(trajectory, values)
    own = np.concatenate([of_turns[i][tokens] for i, tokens in enumerate(steps)]).astype(np.float64)
    after = float(values[-1][-1]) if trajectory.truncated and len(trajectory.final_prompt_ids) else 0.0
    links = turn_links(
        [len(tokens) for tokens in steps],
        (config.token_discount, config.token_lambda),
        (config.turn_discount, config.turn_lambda),
    )
    return Credit(steps, rewards, own, gae(rewards, own, *links, after))


def _turn_targets(
    turns: Sequence[Turn], of_episode: Credit, advantages: Floats, weight: float, value_weight: float
) -> list[TurnTarget]:
    rows = zip(
        turns,
        of_episode.tokens,
        of_episode.of_turns(advantages),
        of_episode.of_turns(of_episode.values),
        of_episode.of_turns(of_episode.returns),
        strict=True,
    )
    targets = []
    for turn, tokens, of_advantage, of_value, of_return in rows:
        size = len(turn.response_ids)
        targets.append(
            TurnTarget(
                advantages=_placed(of_advantage, tokens, size),
                weights=np.where(turn.choices, weight, 0).astype(np.float32),
                values=_placed(of_value, tokens, size),
                returns=_placed(of_return, tokens, size),
                value_weights=_placed(np.full(len(tokens), 0 if turn.example else value_weight), tokens, size),
            )
        )
    return targets


def _placed(values: Floats, places: IntArray, size: int) -> FloatArray:
    placed = np.zeros(size, np.float32)
    placed[places] = values
    return placed
