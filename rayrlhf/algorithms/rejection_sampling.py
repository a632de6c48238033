"""Rejection sampling: cross-entropy on the turns with the best return less KL penalty (SPEC TW-12, TW-20)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rayrlhf.advantages import discounted_returns
from rayrlhf.algorithm_config import RejectionSamplingConfig
from rayrlhf.algorithms.base import EpisodeAlgorithm
from rayrlhf.algorithms.sequences import Segment, constant, counted_tokens, training_batch, training_sequence
from rayrlhf.errors import LearnerError
from rayrlhf.kl import penalised_kl, penalty
from rayrlhf.losses import Objective, PolicyGradientLoss
from rayrlhf.shares import share_of
from rayrlhf.types import EpisodeScore, FloatArray, TrainingBatch, TrainingSequence, Trajectory, Turn

Floats = NDArray[np.float64]


class RejectionSampling(EpisodeAlgorithm):
    def __init__(self, config: RejectionSamplingConfig, iterations: int = 1):
        super().__init__(config, iterations)
        self.config = config
        policy = PolicyGradientLoss(importance_cap=None)
        self.objective = Objective(policy, config.entropy_coef, kl=self.kl_objective)

    def prepare(
        self,
        trajectories: Sequence[Trajectory],
        scores: Sequence[EpisodeScore],
        values: Sequence[FloatArray],
        seed: int,
    ) -> tuple[TrainingBatch, Mapping[str, float]]:
        """See `interfaces.Algorithm`."""
        config = self.config
        turns, of_turns = self.candidates(trajectories, scores)
        share = 0.5 if config.keep_fraction is None else config.keep_fraction
        wanted = config.keep or max(1, math.floor(share_of(share, len(turns))))
        kept = choose_best(turns, of_turns, wanted, config.ties == "all", config.dedupe, seed)
        sequences = cross_entropy_sequences([turns[i] for i in kept], config.train_prompt, self.with_reference)
        batch = training_batch(
            sequences,
            "token_mean",
            config.epochs,
            config.minibatches,
            config.target_kl,
            seed,
            kl_coef=self.kl_loss_coef,
        )
        return batch, {
            **self.objective_metrics(trajectories, scores),
            "objective/kept": len(kept) / len(turns),
            "objective/kept_score": float(np.mean(of_turns[kept])),
        }

    def candidates(
        self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]
    ) -> tuple[list[Turn], Floats]:
        """The turns there are to choose from, and the score of each: its return less the penalty of its own KL.

        Turns that were examples or left no choice are none.
        """
        kl, turns, values = self.config.kl, [], []
        for trajectory, score in zip(trajectories, scores, strict=True):
            if trajectory.truncated and self.config.unfinished == "drop":
                continue
            returns = discounted_returns(score.total.astype(np.float64), self.config.turn_discount)
            for turn, value in zip(trajectory.turns, returns, strict=True):
                if turn.choices.any():
                    turns.append(turn)
                    charged = penalised_kl(turn, kl.estimator, include_prompt=False)
                    values.append(value - penalty(charged, self.kl.coef, kl.reduction))
        if not turns:
            raise LearnerError(
                "no turn of this iteration can be learned from: every episode was cut off by a limit and "
                "algorithm.unfinished is drop, or no turn left a choice; play more episodes an iteration, or use them"
            )
        return turns, np.array(values)


def choose_best(
    turns: Sequence[Turn], values: Floats, wanted: int, all_ties: bool, dedupe: bool, seed: int
) -> list[int]:
    """Indices of the `wanted` turns of highest value [N], rising; all where there are fewer.

    Ties with the last one kept are drawn from the seed, or all kept. With `dedupe` only the best of the turns with one
    prompt and answer is counted.
    """
    order = np.random.default_rng(seed).permutation(len(values))
    order = order[np.argsort(-values[order], kind="stable")]
    if dedupe:
        seen: set[tuple[bytes, bytes]] = set()
        keys = [(turns[i].prompt_ids.tobytes(), turns[i].response_ids.tobytes()) for i in order]
        order = np.array([i for i, key in zip(order, keys, strict=True) if not (key in seen or seen.add(key))])  # type: ignore[func-returns-value]
    kept = order[:wanted]
    if all_ties:
        kept = order[values[order] >= values[kept[-1]]]
    return sorted(int(i) for i in kept)


def cross_entropy_sequences(
    turns: Sequence[Turn], train_prompt: bool, with_reference: bool = False
) -> list[TrainingSequence]:
    """One sequence a turn whose loss is -log pi of each token that was chosen, on the mean over all of them.

    `with_reference`: they hold the reference's log-probabilities.
    """
    weight = 1.0 / sum(int(counted_tokens(turn, train_prompt).sum()) for turn in turns)
    sequences = []
    for turn in turns:
        segment = Segment(np.concatenate([turn.prompt_ids, turn.response_ids]), (0,), (len(turn.prompt_ids),))
        target = constant(turn, 1.0, weight, train_prompt)
        sequences.append(training_sequence(segment, [turn], [target], with_reference))
    return sequences
