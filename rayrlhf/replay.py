"""`rayrlhf replay RUN/alarms/000012-kl_spike`: plays a batch that an alarm kept once more, and says whether it is the same.

The same means every token, every log-probability and every score, bit for bit: from the weights and seeds that were
kept, in this process, without Ray. Other versions of PyTorch or another processor may differ in the last bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from rayrlhf.config import ModelConfig, RunConfig
from rayrlhf.dumps import CONFIG, Dump, episode_arrays, read_dump
from rayrlhf.environments import prepare_environment
from rayrlhf.errors import CheckpointError
from rayrlhf.files import check_plain, read_text
from rayrlhf.response_rules import ResponseScorer
from rayrlhf.reward_process import RewardProcess
from rayrlhf.run_folder import parse_config
from rayrlhf.run_parts import environment_settings, starting_point, worker_settings
from rayrlhf.terminal_output import plain_console
from rayrlhf.trust import NOBODY, Trust, code_of_plugins, trusted_model
from rayrlhf.types import EpisodeScore, Trajectory
from rayrlhf.worker import RolloutWorker

WORST = 5
"""Texts shown: those that strayed furthest from the reference."""
TEXT_SHOWN = 600
"""Characters of a text shown."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A batch as it was kept beside the same batch played again: what differs, each with how many episodes."""

    tokens: int
    logprobs: int
    texts: int
    scores: int | None  # None: the run ended before they were scored

    @property
    def same(self) -> bool:
        return not (self.tokens or self.logprobs or self.texts or self.scores)


def replay(folder: Path, trust: Trust = NOBODY) -> bool:
    """Plays the batch in `folder` again, prints the comparison and the worst texts; returns whether all is the same.

    Raises CheckpointError where the folder holds no whole batch, or the model it starts from is gone, UntrustedCodeError
    where its config names code that nobody trusts.
    """
    dump = read_dump(folder)
    config = parse_config(read_text(folder / CONFIG, CheckpointError), str(folder / CONFIG))
    trust.require(folder, code_of_plugins(config))
    config = config.model_copy(update={"model": trusted_model(config.model, folder, trust)})
    trajectories = play_again(dump, config, folder)
    scores: list[EpisodeScore] = []
    if dump.scores:
        with RewardProcess(config.reward, config.reward_timeout_s) as rewards:
            scores = ResponseScorer(rewards, config.response, config.rollout.max_new_tokens).score(trajectories)
    comparison = compare(dump, trajectories, scores)
    show(plain_console(), dump, comparison, trajectories, scores)
    return comparison.same


def play_again(dump: Dump, config: RunConfig, folder: Path) -> list[Trajectory]:
    """The batch's episodes, from its weights and seeds, in a worker as the run had them."""
    environments = environment_settings(config)
    prepare_environment(environments["train"])
    start = starting_point(config, base_model(config, folder))
    worker = RolloutWorker(worker_settings(config, start, environments))
    with contextlib.closing(worker.environments):
        version = dump.weights.version
        played = [worker.play(specs, dump.weights, version) for specs in dump.specs]
    return [trajectory for batch in played for trajectory in batch.trajectories]


def base_model(config: RunConfig, folder: Path) -> ModelConfig:
    """What the run started from; a model made from scratch lies in the run's folder."""
    if config.model.scratch is None:
        return config.model
    made = folder.absolute().parent.parent / "model"
    if not made.is_dir():
        raise CheckpointError(
            f"the run started from a model of its own in {made}, which is gone: leave the batch where it was"
        )
    check_plain(made.parent, [made.name])
    return config.model.model_copy(update={"path": str(made), "scratch": None})


def compare(dump: Dump, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]) -> Comparison:
    """Holds what was played against what was kept, bit for bit."""
    again = episode_arrays(trajectories)
    different = {name for name in dump.arrays.keys() | again.keys() if not _equal(dump.arrays, again, name)}
    of_tokens = {name for name in different if name.endswith("_ids")}
    pairs = zip(dump.scores, scores, strict=True)
    return Comparison(
        tokens=_episodes(of_tokens),
        logprobs=_episodes(different - of_tokens),
        texts=sum(kept != played.text for kept, played in zip(dump.texts, trajectories, strict=True)),
        scores=sum(not _same_score(*pair) for pair in pairs) if dump.scores else None,
    )


def show(
    console: Console,
    dump: Dump,
    comparison: Comparison,
    trajectories: Sequence[Trajectory],
    scores: Sequence[EpisodeScore],
) -> None:
    """Prints the comparison, then the texts that strayed furthest from the reference."""
    console.print(Text(f"iteration {dump.iteration}: {dump.message}"))
    count = len(trajectories)
    for name in ("tokens", "logprobs", "texts", "scores"):
        differing = getattr(comparison, name)
        verdict = "not scored" if differing is None else "the same" if not differing else f"differ in {differing}"
        console.print(Text(f"{name.replace('logprobs', 'log-probabilities')} of {count} episodes: {verdict}"))
    kls = np.array([episode_kl(trajectory) for trajectory in trajectories])
    for number in np.argsort(-np.nan_to_num(kls, nan=np.inf), kind="stable")[:WORST]:
        title = f"episode {trajectories[number].index}: {_kl_line(kls[number])}"
        if scores:
            title += f", reward {float(scores[number].total.sum(dtype=np.float64)):.2f}"
        console.print(Panel(Text(trajectories[number].text[:TEXT_SHOWN]), title=title, title_align="left"))


def _kl_line(kl: float) -> str:
    return f"KL {kl:.1f} nats" if np.isfinite(kl) else "KL unknown: a log-probability of it is no finite number"


def episode_kl(trajectory: Trajectory) -> float:
    """Nats of the sampled tokens: log-probability under the policy less that under the reference."""
    return float(sum((turn.logprobs.astype(np.float64) - turn.reference_logprobs).sum() for turn in trajectory.turns))


def _equal(first: Mapping[str, NDArray], second: Mapping[str, NDArray], name: str) -> bool:
    if name not in first or name not in second:
        return False
    kept, played = first[name], second[name]
    return kept.dtype == played.dtype and kept.shape == played.shape and kept.tobytes() == played.tobytes()


def _same_score(kept: EpisodeScore, played: EpisodeScore) -> bool:
    return kept.total.tobytes() == played.total.tobytes() and dict(kept.parts) == dict(played.parts)


def _episodes(names: set[str]) -> int:
    """How many episodes the arrays of these names belong to."""
    return len({name.split("/")[0] for name in names})
