"""How long a run is and what each iteration plays: every seed of it follows from here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayrlhf.config import RunConfig
from rayrlhf.metrics import BASELINE_ITERATION as BASELINE
from rayrlhf.rollout import deal_specs
from rayrlhf.types import EpisodeSpec

BASELINE_BATCH = 20  # episodes of the untrained model that are decoded together


@dataclass(frozen=True, slots=True)
class Attempt:
    """What rollbacks have made of a run."""

    number: int = 0  # rollbacks so far; each moves the seeds on
    lr_scale: float = 1.0  # factor on the learning rates


FIRST = Attempt()


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long the run is, and what one iteration plays."""

    run: str  # its name
    seed: int
    iterations: int
    groups: int
    group_size: int
    groups_per_batch: int
    baseline_episodes: int
    checkpoint_every: int
    evaluation_episodes: int  # held-out games of one evaluation; 0 where the environment has none
    evaluate_every: int | None  # iterations; None: after the last alone

    def baseline(self) -> list[list[EpisodeSpec]]:
        """The batches of the untrained model, each episode a group of its own."""
        return deal_specs(self.seed, BASELINE, self.baseline_episodes, 1, BASELINE_BATCH)

    def episodes(self, iteration: int, attempt: Attempt = FIRST) -> list[list[EpisodeSpec]]:
        """The batches of one iteration: the same prompts or games in every attempt, sampled with other seeds."""
        return deal_specs(self._seed(attempt), iteration, self.groups, self.group_size, self.groups_per_batch)

    def held_out_episodes(self, iteration: int) -> list[list[EpisodeSpec]]:
        """The batches of an evaluation: greedy, one episode a held-out game."""
        return deal_specs(
            self.seed, iteration, self.evaluation_episodes, 1, BASELINE_BATCH, split="held_out", greedy=True
        )

    def evaluation_due(self, done: int) -> bool:
        every = self.evaluate_every
        due = done == self.iterations or (every is not None and done % every == 0)
        return due and self.evaluation_episodes > 0

    def update_seed(self, iteration: int, attempt: Attempt = FIRST) -> int:
        """Of what an update draws: its minibatches, ties."""
        return int(np.random.SeedSequence([self._seed(attempt), iteration, 1]).generate_state(1)[0])

    def _seed(self, attempt: Attempt) -> int:
        """The run's seed; after a rollback one that follows from it."""
        if attempt.number == 0:
            return self.seed
        return int(np.random.SeedSequence([self.seed, attempt.number, 2]).generate_state(1, np.uint64)[0])

    def checkpoint_due(self, done: int) -> bool:
        return done % self.checkpoint_every == 0 or done == self.iterations


def make_schedule(config: RunConfig, has_held_out: bool) -> Schedule:
    rollout = config.rollout
    return Schedule(
        run=config.name,
        seed=config.seed,
        iterations=config.iterations,
        groups=rollout.groups_per_iteration,
        group_size=rollout.group_size,
        groups_per_batch=rollout.groups_per_batch,
        baseline_episodes=config.baseline_episodes,
        checkpoint_every=config.checkpoint.every,
        evaluation_episodes=config.evaluation.episodes if has_held_out else 0,
        evaluate_every=config.evaluation.every,
    )
