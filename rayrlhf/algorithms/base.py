"""What all algorithms share: the reward that is maximised, and what the log says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rayrlhf.controllers import KLController
from rayrlhf.kl import penalised_kl, penalty, turn_entropy, turn_kl
from rayrlhf.kl_config import KLLossConfig, KLPenaltyConfig
from rayrlhf.kl_estimators import KLLoss
from rayrlhf.types import EpisodeScore, FloatArray, Trajectory, ValueQuery


class ObjectiveConfig(Protocol):
    """What every algorithm's config says of the objective."""

    @property
    def kl(self) -> KLPenaltyConfig: ...
    @property
    def kl_loss(self) -> KLLossConfig | None: ...
    @property
    def turn_discount(self) -> float: ...
    @property
    def include_prompt(self) -> bool: ...


class EpisodeAlgorithm:
    """An algorithm without a value network; its state is that of its KL controllers, and what a subclass adds."""

    def __init__(self, config: ObjectiveConfig, iterations: int = 1):
        """iterations: that schedules are spread over, as a rule those of the run."""
        self._objective = config
        self.kl = KLController(config.kl, iterations)
        self.kl_loss = KLController(config.kl_loss, iterations) if config.kl_loss is not None else None

    def value_queries(self, trajectories: Sequence[Trajectory]) -> list[ValueQuery]:
        """There is no value network."""
        return []

    def turn_values(
        self, trajectories: Sequence[Trajectory], values: Sequence[FloatArray]
    ) -> list[Sequence[float] | None]:
        """There is no value network."""
        return [None] * len(trajectories)

    def shaped_rewards(self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]) -> NDArray[np.float64]:
        """Score minus KL penalty of each episode, [N] (SPEC X-4), rewards of later turns discounted.

        The penalty is a number, not a tensor: no gradient flows through it (SPEC ALLIT-7), and baselines are taken on
        what this returns (SPEC ALLIT-5).
        """
        for trajectory, score in zip(trajectories, scores, strict=True):
            if len(score.total) != len(trajectory.turns):
                raise ValueError(
                    f"{len(score.total)} scores for {len(trajectory.turns)} turns of episode {trajectory.index}"
                )
        kl, prompt = self._objective.kl, self._objective.include_prompt
        charged = [np.concatenate([penalised_kl(turn, kl.estimator, prompt) for turn in t.turns]) for t in trajectories]
        penalties = [penalty(of_episode, self.kl.coef, kl.reduction) for of_episode in charged]
        return discounted_scores(scores, self._objective.turn_discount) - np.array(penalties)

    def objective_metrics(self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]) -> dict[str, float]:
        """objective/* (SPEC X-10): score, score_total and entropy an episode; kl in nats a sequence and a token (X-4)."""
        kls = [self._kl(trajectory) for trajectory in trajectories]
        nats = [float(values.sum(dtype=np.float64)) for values in kls]
        entropies = [float(sum(turn_entropy(turn).sum(dtype=np.float64) for turn in t.turns)) for t in trajectories]
        raw = discounted_scores(scores, 1.0)
        deviation = float(raw.std()) if np.ptp(raw) else 0.0  # of equal numbers std can be a last bit
        metrics = {
            "objective/score": float(raw.mean()),
            "objective/score_std": deviation,
            "objective/score_total": float(self.shaped_rewards(trajectories, scores).mean()),
            "objective/kl": float(np.mean(nats)),
            "objective/kl_per_token": float(sum(nats) / max(sum(len(values) for values in kls), 1)),
            "objective/kl_coef": self.kl.coef,
            "objective/entropy": float(np.mean(entropies)),
        }
        if self.kl_loss is not None:
            metrics["objective/kl_loss_coef"] = self.kl_loss.coef
        return metrics

    def updated(self, objective: Mapping[str, float], episodes: int) -> None:
        """Moves the KL coefficients on after an update, by the metrics that its `prepare` gave (SPEC LMHP-20)."""
        for controller in self._controllers.values():
            controller.update(objective["objective/kl"], objective["objective/kl_per_token"], episodes)

    def multiply_kl(self, factor: float) -> None:
        """Raises or lowers the coefficients of both KL channels from now on."""
        for controller in self._controllers.values():
            controller.multiply(factor)

    def state_dict(self) -> dict[str, Any]:
        return {name: controller.state_dict() for name, controller in self._controllers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, controller in self._controllers.items():
            controller.load_state_dict(state[name])

    @property
    def _controllers(self) -> dict[str, KLController]:
        """By their names in the config."""
        return {"kl": self.kl} if self.kl_loss is None else {"kl": self.kl, "kl_loss": self.kl_loss}

    @property
    def kl_loss_coef(self) -> float:
        """The coefficient of the KL loss in the next update, per nat; 0 without one."""
        return self.kl_loss.coef if self.kl_loss is not None else 0.0

    @property
    def kl_objective(self) -> KLLoss | None:
        """The KL loss of the learner's objective."""
        config = self._objective.kl_loss
        return KLLoss(config.estimator, config.correction) if config is not None else None

    @property
    def with_reference(self) -> bool:
        """Training sequences are to hold the reference's log-probabilities."""
        return self.kl_objective is not None and self.kl_objective.vocabulary is None

    def _kl(self, trajectory: Trajectory) -> FloatArray:
        """KL in nats of all scored tokens of an episode, for the log and the controllers."""
        return np.concatenate([turn_kl(turn, self._objective.include_prompt) for turn in trajectory.turns])


def discounted_scores(scores: Sequence[EpisodeScore], turn_discount: float) -> NDArray[np.float64]:
    """The reward of each episode seen from its start, [N]: sum over turns k of turn_discount ** k * score_k."""
    return np.array(
        [
            float(np.sum(score.total.astype(np.float64) * turn_discount ** np.arange(len(score.total))))
            for score in scores
        ]
    )
