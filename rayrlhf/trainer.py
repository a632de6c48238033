"""The training loop, and the composition root that builds its parts from a config.

`Trainer.step` is one iteration of reinforcement learning: publish weights, play, score, estimate advantages, update,
record. Everything it needs is handed in; `train` is the one place that reads the whole config.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rayrlhf.alarms import AlarmLog
from rayrlhf.algorithms import build_algorithm
from rayrlhf.announcements import announce
from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.cluster import Lost, check_resources, check_shared_storage, ray_session
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.detector import Detector
from rayrlhf.dumps import KeptBatch
from rayrlhf.environments import EnvironmentSettings, check_environment, prepare_environment
from rayrlhf.errors import DivergenceError, NotFiniteError, RolloutError, RunPaused, StorageError, UserError
from rayrlhf.gang import Gang
from rayrlhf.guard import Guard
from rayrlhf.interfaces import Algorithm
from rayrlhf.interrupts import Interrupts
from rayrlhf.learner_group import LearnerGroup
from rayrlhf.metrics import BASELINE_ITERATION as BASELINE
from rayrlhf.metrics import MetricsLog, SampleRecord
from rayrlhf.progress import Progress
from rayrlhf.reaper import reaped
from rayrlhf.records import environment_counts, episode_metrics, evaluation_metrics, sample_record, worker_times
from rayrlhf.report import write_report
from rayrlhf.response_rules import ResponseScorer
from rayrlhf.reward_actors import RunRewards
from rayrlhf.rollout_checks import check_logprobs, check_reference, check_versions
from rayrlhf.room import check_start, processes_of
from rayrlhf.run_folder import RunFolder, refuse_taken
from rayrlhf.run_length import continued
from rayrlhf.run_parts import (
    StartingPoint,
    check_agent,
    check_started_from,
    device_of,
    environment_settings,
    learner_settings,
    logprob_gap,
    reward_parts,
    scratch_model,
    starting_point,
    worker_settings,
)
from rayrlhf.run_state import RunState
from rayrlhf.schedule import Schedule, make_schedule
from rayrlhf.summary import RunSummary, summarise
from rayrlhf.trust import code_of_run, remember
from rayrlhf.types import EpisodeScore, EpisodeSpec, FloatArray, Split, Trajectory
from rayrlhf.worker import PlayedBatch, PublishedWeights, RolloutPool
from rayrlhf.worker_death import Died


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
        rewards: ResponseScorer,
        algorithm: Algorithm,
        learner: LearnerGroup,
        log: MetricsLog,
        guard: Guard,
        state: RunState,
        progress: Progress,
        max_logprob_gap: float,
        observer: Observer,
    ):
        self.schedule = schedule
        self.rollouts = rollouts
        self.rewards = rewards
        self.algorithm = algorithm
        self.learner = learner
        self.log = log
        self.guard = guard
        self.state = state
        self.progress = progress
        self.max_logprob_gap = max_logprob_gap
        self.observer = observer
        self.started = time.perf_counter()  # of this session: time/elapsed counts from here

    def run(self, resume: bool) -> None:
        """Runs to the schedule's end. Stopped by a signal or a fault, it leaves a checkpoint of the last whole iteration."""
        done, behind = 0, resume  # behind: the latest checkpoint is to be taken up first
        with Interrupts() as interrupts:
            try:
                while behind or (done < self.schedule.iterations and not interrupts.asked):
                    try:
                        if behind:
                            done, behind = self.state.restore(), False
                            continue
                        if done == 0:
                            self.begin()
                        self.step(done)
                        done += 1
                        done = self.respond(done)
                        if self.schedule.checkpoint_due(done) and done != self.state.saved:
                            self.state.save(done)
                    except Died as reason:
                        doing = "while it took up a checkpoint" if behind else f"in iteration {done}"
                        self.progress.message(f"the learner died {doing} ({reason}); rebuilding it")
                        self.learner.rebuild(reason)
                        behind = True
            except StorageError:
                raise  # there is no room for a checkpoint, whatever it was that found none
            except UserError as error:
                self.state.save_if_whole(done)
                if isinstance(error, NotFiniteError):
                    raise NotFiniteError(self.guard.not_finite(error, done, self.state.attempt.number)) from error
                raise
            if interrupts.asked:
                self.state.save_if_whole(done)
                self.progress.message(f"stopped after {done} iterations; `--resume` {self.state.goes_on(done)}")
                raise KeyboardInterrupt

    def step(self, iteration: int) -> None:
        """One iteration."""
        watch = Stopwatch()
        with watch("iteration"):
            with watch("sync"):
                weights = self.learner.publish()
            with watch("rollout"):
                specs = self.schedule.episodes(iteration, self.state.attempt)
                played, weights = self.play(specs, weights)
                trajectories = [trajectory for batch in played for trajectory in batch.trajectories]
                kept = KeptBatch(iteration, self.state.attempt.number, specs, trajectories)
                self.guard.take(kept, weights)
                check_versions(trajectories, weights.version)
                check_logprobs(trajectories)
                if iteration == 0 and not self.schedule.baseline_episodes:
                    self.rewards.check_stops(trajectories)
            with watch("reward"):
                scores = self.rewards.score(trajectories)
                self.guard.take(replace(kept, scores=scores), weights)
            with watch("value"):
                values = self.learner.values(self.algorithm.value_queries(trajectories))
            with watch("advantage"):
                batch, objective = self.algorithm.prepare(
                    trajectories, scores, values, self.schedule.update_seed(iteration, self.state.attempt)
                )
            with watch("update"):
                report = self.learner.update(replace(batch, lr_scale=self.state.attempt.lr_scale), iteration)
            with watch("record"):
                records = self.record_samples(iteration, trajectories, scores, values)
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
        self.guard.observe(iteration, metrics, records)
        self.progress.update(iteration, metrics)
        self.observer.iteration_done(iteration, metrics)

    def play(
        self, specs: Sequence[Sequence[EpisodeSpec]], weights: PublishedWeights
    ) -> tuple[list[PlayedBatch], PublishedWeights]:
        """Plays all batches, with the weights published again where they were lost from the object store; returns what
        was played, and the weights that it was played with. Raises RolloutError where they are lost time after time."""
        for _ in range(self.rollouts.config.max_retries):
            try:
                return self.rollouts.play(specs, weights), weights
            except Lost as reason:
                self.progress.message(f"{reason}; they are published again")
                weights = self.learner.publish()
        try:
            return self.rollouts.play(specs, weights), weights
        except Lost as reason:
            raise RolloutError(
                f"{reason}, {self.rollouts.config.max_retries + 1} times (rollout.max_retries): give Ray more memory, or "
                "look at its nodes, then go on with --resume"
            ) from None

    def evaluate(self, iteration: int) -> dict[str, float]:
        """eval/* metrics of the policy as it is after this iteration, where an evaluation is due."""
        if not self.schedule.evaluation_due(iteration + 1):
            return {}
        played, _ = self.play(self.schedule.held_out_episodes(iteration), self.learner.publish())
        return evaluation_metrics([trajectory for batch in played for trajectory in batch.trajectories])

    def respond(self, done: int) -> int:
        """Does what the detector asks for after an iteration; returns the iterations done then.

        Raises RunPaused or DivergenceError where that is to end the run.
        """
        verdict = self.guard.verdict(done, self.state.attempt.number, self.state.checkpoints)
        if verdict.action == "rollback":
            return self.state.roll_back(verdict.target, self.guard.config)
        if verdict.action == "snapshot":
            self.state.save_if_whole(done)
            raise RunPaused(verdict.message)
        if verdict.action == "stop":
            raise DivergenceError(verdict.message)
        return done

    def begin(self) -> None:
        """Plays the untrained model; a run that may roll back keeps a checkpoint of it to go back to."""
        self.play_baseline()
        if self.guard.config.rollback_onset is not None:
            self.state.save(0)

    def play_baseline(self) -> None:
        """Plays the untrained model's episodes: what rewards and diversity are held against."""
        self.log.truncate(BASELINE)
        batches = self.schedule.baseline()
        if not batches:
            return
        played, _ = self.play(batches, self.learner.publish())
        trajectories = [trajectory for batch in played for trajectory in batch.trajectories]
        check_reference(trajectories, self.max_logprob_gap)
        self.rewards.check_stops(trajectories)
        values = self.learner.values(self.algorithm.value_queries(trajectories))
        records = self.record_samples(BASELINE, trajectories, self.rewards.score(trajectories), values)
        self.guard.detector.base(records)

    def record_samples(
        self,
        iteration: int,
        trajectories: Sequence[Trajectory],
        scores: Sequence[EpisodeScore],
        values: Sequence[FloatArray],
    ) -> list[SampleRecord]:
        """Records the episodes of an iteration, and returns what was recorded."""
        shaped = self.algorithm.shaped_rewards(trajectories, scores)
        rows = zip(trajectories, scores, shaped, self.algorithm.turn_values(trajectories, values), strict=True)
        records = [sample_record(self.schedule.run, iteration, *row) for row in rows]
        self.log.record_samples(records)
        return records


def train(
    config: RunConfig, resume: bool = False, observer: Observer | None = None, gang: Gang | None = None
) -> RunSummary:
    """Runs one training run from its config to its report; every fault of the user's is a UserError before it starts.

    observer: is told of every iteration and checkpoint. gang: where the actors go; None: wherever there is room.
    """
    if gang is None:
        check_start(processes_of(config))
    if not resume:
        refuse_taken(config)
    config, told = continued(config) if resume else (config, [])
    job = checked(config)
    with contextlib.ExitStack() as stack:
        if gang is None:  # whoever has placed the gang ends it
            stack.enter_context(reaped())
        parts = stack.enter_context(RunRewards(reward_parts(config), config.reward_timeout_s))
        rewards = ResponseScorer(parts, config.response, config.rollout.max_new_tokens)
        open_folder = RunFolder.resume if resume else RunFolder.create
        folder = stack.enter_context(open_folder(config, dump_config(config)))
        remember(folder.path, code_of_run(config))
        start = job.start or starting_point(config, scratch_model(config, job.environments, folder.path / "model"))
        check_started_from(folder, start.model)
        progress = stack.enter_context(Progress(config.iterations))
        announce(progress, config, start.prompts, folder)
        for line in (*parts.warnings(), *told):
            progress.message(line)
        stack.enter_context(ray_session(config))
        if gang is None:
            check_resources(config)
        check_shared_storage(folder.path)
        actors = stack.enter_context(started(job, start, parts, progress, gang))
        log = stack.enter_context(MetricsLog(folder))
        trainer = assembled(job, actors, rewards, folder, log, progress, observer or Observer())
        try:
            trainer.run(resume)
        except DivergenceError:
            progress.message(f"report: {write_report(folder.path)}")
            raise
        summary = summarise(folder.path)
        write_report(folder.path)
        for line in (*outcome(summary), f"report: {folder.report}"):
            progress.message(line)
    return summary


@dataclass(frozen=True, slots=True)
class Job:
    """What a run is, checked as far as can be before anything of it exists."""

    config: RunConfig
    environments: Mapping[Split, EnvironmentSettings]
    algorithm: Algorithm
    start: StartingPoint | None  # None: from scratch, once there is a folder for the model
    schedule: Schedule
    learner_device: str


def checked(config: RunConfig) -> Job:
    """Raises the UserError of whatever the config names and cannot be used."""
    environments = environment_settings(config)
    for settings in environments.values():
        check_environment(settings)
    check_agent(config)
    algorithm = build_algorithm(config.algorithm, config.schedule_length)
    start = None if config.model.scratch else starting_point(config, config.model)
    schedule = make_schedule(config, "held_out" in environments)
    prepare_environment(environments["train"])
    return Job(config, environments, algorithm, start, schedule, device_of(config, config.learner.gpus_per_rank))


@contextlib.contextmanager
def started(
    job: Job, start: StartingPoint, parts: RunRewards, progress: Progress, gang: Gang | None
) -> Iterator[tuple[LearnerGroup, RolloutPool]]:
    """The actors of a run, ready; they end with the context. Raises a UserError that names what did not start."""
    config = job.config
    with contextlib.ExitStack() as stack:
        learner = LearnerGroup(learner_settings(config, start.model, job.algorithm.objective, job.learner_device), gang)
        stack.callback(learner.close)
        rollouts = RolloutPool(worker_settings(config, start, job.environments), config.rollout, gang)
        stack.callback(rollouts.close)
        parts.start(gang)
        rank_nodes, worker_nodes = set(learner.start()), set(rollouts.ready())
        progress.message(
            f"{config.rollout.workers} rollout workers on {len(worker_nodes)} of {len(worker_nodes | rank_nodes)} nodes, "
            f"{config.learner.ranks} learner ranks on {len(rank_nodes)}"
        )
        yield learner, rollouts


def assembled(
    job: Job,
    actors: tuple[LearnerGroup, RolloutPool],
    rewards: ResponseScorer,
    folder: RunFolder,
    log: MetricsLog,
    progress: Progress,
    observer: Observer,
) -> Trainer:
    """The trainer of a run, put together from its parts."""
    config, (learner, rollouts) = job.config, actors
    checkpoints = CheckpointStore(
        folder.checkpoints,
        config.checkpoint.keep,
        config.checkpoint.keep_trainer_state,
        config.detector.rollback_onset,
    )
    gap = logprob_gap(config)
    guard = Guard(config.detector, Detector(config.detector, gap), AlarmLog(folder), progress)
    state = RunState(job.algorithm, learner, guard, log, checkpoints, progress, observer.checkpoint_saved)
    return Trainer(
        job.schedule, rollouts, rewards, job.algorithm, learner, log, guard, state, progress, gap[1], observer
    )


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
