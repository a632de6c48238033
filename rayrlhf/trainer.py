"""The training loop, and the composition root that builds its parts from a config.

`Trainer.step` is one iteration of reinforcement learning: publish weights, play, score, estimate advantages, update,
record. Everything it needs is handed in; `train` is the one place that reads the whole config.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rayrlhf.algorithms import build_algorithm
from rayrlhf.announcements import announce
from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.cluster import Died, check_resources, check_shared_storage, ray_session
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.environments import (
    check_environment,
    prepare_environment,
)
from rayrlhf.errors import LearnerError, UserError
from rayrlhf.gang import Gang
from rayrlhf.interfaces import Algorithm
from rayrlhf.interrupts import Interrupts
from rayrlhf.kl import turn_kl
from rayrlhf.learner_group import LearnerGroup
from rayrlhf.metrics import BASELINE_ITERATION as BASELINE
from rayrlhf.metrics import MetricsLog
from rayrlhf.progress import Progress
from rayrlhf.records import environment_counts, episode_metrics, evaluation_metrics, sample_record, worker_times
from rayrlhf.report import write_report
from rayrlhf.reward_process import RewardProcess
from rayrlhf.run_folder import RunFolder
from rayrlhf.run_parts import (
    check_agent,
    device_of,
    environment_settings,
    learner_settings,
    precision_of,
    scratch_model,
    starting_point,
    worker_settings,
)
from rayrlhf.schedule import Schedule, make_schedule
from rayrlhf.summary import RunSummary, summarise
from rayrlhf.types import EpisodeScore, FloatArray, Trajectory
from rayrlhf.worker import RolloutPool


@dataclass(slots=True)
class Stopwatch:
    """Wall time of an iteration's parts, in seconds, under time/ names."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[f"time/{name}"] = self.seconds.get(f"time/{name}", 0.0) + time.perf_counter() - start


class Observer:
    """Whoever follows a run as it goes; this one does nothing. What it raises stops the run, as a signal does."""

    def iteration_done(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Called after each iteration with what was recorded of it."""

    def checkpoint_saved(self, done: int) -> None:
        """Called after each checkpoint, with the number of iterations behind it."""


class Trainer:
    """Collects, scores, updates and records, iteration by iteration, until the schedule is done."""

    def __init__(
        self,
        schedule: Schedule,
        rollouts: RolloutPool,
        rewards: RewardProcess,
        algorithm: Algorithm,
        learner: LearnerGroup,
        log: MetricsLog,
        checkpoints: CheckpointStore,
        progress: Progress,
        max_logprob_gap: float,
        observer: Observer | None = None,
    ):
        self.schedule = schedule
        self.rollouts = rollouts
        self.rewards = rewards
        self.algorithm = algorithm
        self.learner = learner
        self.log = log
        self.checkpoints = checkpoints
        self.progress = progress
        self.max_logprob_gap = max_logprob_gap
        self.observer = observer or Observer()
        self.saved = 0  # iterations behind the latest checkpoint
        self.untrained_algorithm = algorithm.state_dict()
        self.started = time.perf_counter()  # of this session: time/elapsed counts from here

    def run(self, resume: bool) -> None:
        """Runs to the schedule's end. Stopped by a signal or a fault, it leaves a checkpoint of the last whole iteration."""
        done = self.restore() if resume else 0
        with Interrupts() as interrupts:
            try:
                while done < self.schedule.iterations and not interrupts.asked:
                    try:
                        if done == 0:
                            self.play_baseline()
                        self.step(done)
                        done += 1
                        if self.schedule.checkpoint_due(done):
                            self.save(done)
                    except Died as reason:
                        self.progress.message(f"the learner died in iteration {done} ({reason}); rebuilding it")
                        self.learner.rebuild(reason)
                        done = self.restore()
            except UserError:
                self.save_if_whole(done)
                raise
            if interrupts.asked:
                self.save_if_whole(done)
                self.progress.message(f"stopped after {done} iterations; `--resume` goes on from there")
                raise KeyboardInterrupt

    def step(self, iteration: int) -> None:
        """One iteration."""
        watch = Stopwatch()
        with watch("iteration"):
            with watch("sync"):
                weights = self.learner.publish()
            with watch("rollout"):
                played = self.rollouts.play(self.schedule.episodes(iteration), weights)
                trajectories = [trajectory for batch in played for trajectory in batch.trajectories]
                check_versions(trajectories, weights.version)
            with watch("reward"):
                scores = self.rewards.score(trajectories)
            with watch("value"):
                values = self.learner.values(self.algorithm.value_queries(trajectories))
            with watch("advantage"):
                batch, objective = self.algorithm.prepare(
                    trajectories, scores, values, self.schedule.update_seed(iteration)
                )
            with watch("update"):
                report = self.learner.update(batch, iteration)
            with watch("record"):
                self.record_samples(iteration, trajectories, scores, values)
                texts = episode_metrics(trajectories, scores)
            self.algorithm.updated(objective, len(trajectories))
            with watch("evaluate"):
                held_out = self.evaluate(iteration)
        elapsed = time.perf_counter() - self.started
        times = {
            "time/elapsed": elapsed,
            **watch.seconds,
            **worker_times(played, watch.seconds["time/rollout"], len(self.rollouts.actors)),
        }
        metrics = {**objective, **texts, **report.metrics, **environment_counts(played), **held_out, **times}
        self.log.record(iteration, metrics)
        self.progress.update(iteration, metrics)
        self.observer.iteration_done(iteration, metrics)

    def evaluate(self, iteration: int) -> dict[str, float]:
        """eval/* metrics of the policy as it is after this iteration, where an evaluation is due."""
        if not self.schedule.evaluation_due(iteration + 1):
            return {}
        played = self.rollouts.play(self.schedule.held_out_episodes(iteration), self.learner.publish())
        return evaluation_metrics([trajectory for batch in played for trajectory in batch.trajectories])

    def play_baseline(self) -> None:
        """Plays the untrained model's episodes: what rewards and diversity are held against."""
        self.log.truncate(BASELINE)
        batches = self.schedule.episodes(BASELINE)
        if not batches:
            return
        played = self.rollouts.play(batches, self.learner.publish())
        trajectories = [trajectory for batch in played for trajectory in batch.trajectories]
        check_reference(trajectories, self.max_logprob_gap)
        values = self.learner.values(self.algorithm.value_queries(trajectories))
        self.record_samples(BASELINE, trajectories, self.rewards.score(trajectories), values)

    def record_samples(
        self,
        iteration: int,
        trajectories: Sequence[Trajectory],
        scores: Sequence[EpisodeScore],
        values: Sequence[FloatArray],
    ) -> None:
        shaped = self.algorithm.shaped_rewards(trajectories, scores)
        rows = zip(trajectories, scores, shaped, self.algorithm.turn_values(trajectories, values))
        self.log.record_samples([sample_record(self.schedule.run, iteration, *row) for row in rows])

    def save(self, done: int) -> None:
        """Checkpoint after `done` iterations."""
        self.log.sync()
        partial = self.checkpoints.begin(done)
        self.learner.save(partial / "model", partial / "trainer", partial / "value")
        self.checkpoints.commit(partial, done, {"algorithm": self.algorithm.state_dict()})
        self.saved = done
        self.observer.checkpoint_saved(done)

    def save_if_whole(self, done: int) -> None:
        """Checkpoint where the learner stands at the end of an iteration that no checkpoint holds yet."""
        if self.learner.version == done > self.saved:
            with contextlib.suppress(Died):
                self.save(done)

    def restore(self) -> int:
        """Goes back to the latest checkpoint, or to the start where there is none; returns the iterations done."""
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            self.algorithm.load_state_dict(self.untrained_algorithm)
            return 0
        self.learner.load(checkpoint.trainer)
        self.algorithm.load_state_dict(checkpoint.state["algorithm"])
        self.log.truncate(checkpoint.iteration)
        self.saved = checkpoint.iteration
        return checkpoint.iteration


def check_versions(trajectories: Sequence[Trajectory], version: int) -> None:
    """Raises LearnerError where an episode was sampled with other weights than the ones published."""
    for trajectory in trajectories:
        if trajectory.weights_version != version:
            raise LearnerError(
                f"episode {trajectory.index} was sampled with weights of version {trajectory.weights_version}, "
                f"not with version {version} that was published"
            )


def check_reference(trajectories: Sequence[Trajectory], tolerance: float) -> None:
    """Before the first update policy and reference are one: raises LearnerError where their KL is not 0 (SPEC X-5)."""
    gaps = np.concatenate([np.abs(turn_kl(turn, False)) for t in trajectories for turn in t.turns])
    if len(gaps) and float(gaps.mean()) > tolerance:
        raise LearnerError(
            f"the untrained policy and its reference differ by {gaps.mean():.2g} nats a token (limit {tolerance:g}): "
            "sampler and scorer disagree about this model"
        )


def train(
    config: RunConfig, resume: bool = False, observer: Observer | None = None, gang: Gang | None = None
) -> RunSummary:
    """Runs one training run from its config to its report; every fault of the user's is a UserError before it starts.

    observer: is told of every iteration and checkpoint. gang: where the actors go; None: wherever there is room.
    """
    environments = environment_settings(config)
    for settings in environments.values():
        check_environment(settings)
    check_agent(config)
    algorithm = build_algorithm(config.algorithm, config.iterations)
    start = None if config.model.scratch else starting_point(config, config.model)
    schedule = make_schedule(config, "held_out" in environments)
    prepare_environment(environments["train"])
    learner_device = device_of(config, config.learner.gpus_per_rank)
    with contextlib.ExitStack() as stack:
        rewards = stack.enter_context(RewardProcess(config.reward, config.reward_timeout_s))
        open_folder = RunFolder.resume if resume else RunFolder.create
        folder = stack.enter_context(open_folder(config, dump_config(config)))
        if start is None:
            start = starting_point(config, scratch_model(config, environments, folder.path / "model"))
        progress = stack.enter_context(Progress(config.iterations))
        announce(progress, config, start.prompts, folder)
        stack.enter_context(ray_session(config))
        if gang is None:
            check_resources(config)
        check_shared_storage(folder.path)
        learner = LearnerGroup(learner_settings(config, start.model, algorithm.objective, learner_device), gang)
        stack.callback(learner.close)
        rollouts = RolloutPool(worker_settings(config, start, environments), config.rollout, gang)
        stack.callback(rollouts.close)
        rank_nodes, worker_nodes = set(learner.start()), set(rollouts.ready())
        progress.message(
            f"{config.rollout.workers} rollout workers on {len(worker_nodes)} of {len(worker_nodes | rank_nodes)} nodes, "
            f"{config.learner.ranks} learner ranks on {len(rank_nodes)}"
        )
        log = stack.enter_context(MetricsLog(folder))
        checkpoints = CheckpointStore(folder.checkpoints, config.checkpoint.keep, config.checkpoint.keep_trainer_state)
        gap = (
            config.learner.max_logprob_gap
            if precision_of(config) == "fp32"
            else config.learner.max_mean_logprob_gap_bf16
        )
        Trainer(schedule, rollouts, rewards, algorithm, learner, log, checkpoints, progress, gap, observer).run(resume)
        summary = summarise(folder.path)
        write_report(folder.path)
        for line in outcome(summary):
            progress.message(line)
        progress.message(f"report: {folder.report}")
    return summary


def outcome(summary: RunSummary) -> list[str]:
    """What came of the run, a line each."""

    def number(value: float | None, unit: str = "") -> str:
        return "unknown" if value is None else f"{value:.2f}{unit}"

    lines = [
        f"mean reward of the last 40 episodes: {number(summary.reward_last_40)}, "
        f"{number(summary.reward_ratio)} times the base model's {number(summary.base_reward)}",
        f"KL to the base model: {number(summary.kl_last, ' nats a sequence')}",
    ]
    if summary.won_last is None:
        diversity = number(summary.diversity_share)
        return [*lines, f"diversity (distinct-2 of the last 50 texts): {diversity} of the base model's"]
    lines.append(
        f"games won, of the last 40 episodes: {number(summary.won_last)}; by the untrained model: "
        f"{number(summary.base_won)}"
    )
    if summary.eval_won is not None:
        lines.append(f"held-out games won, greedy: {number(summary.eval_won)} of {summary.eval_episodes}")
    return lines
