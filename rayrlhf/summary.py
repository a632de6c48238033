"""What came of a run, in a handful of numbers: taken from its records, whole or unfinished."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rayrlhf.files import replace_file
from rayrlhf.metrics import BASELINE_ITERATION, SampleRecord, iter_samples, read_metrics
from rayrlhf.run_folder import RunFolder
from rayrlhf.text_statistics import distinct_n

REWARD_EPISODES = 40
"""The reward and the KL of a run are means over so many of its last episodes."""
DIVERSITY_TEXTS = 50
"""Diversity is distinct-2 over so many of the last texts, as a share of the base model's over equally many."""
DIVERSITY_FLOOR = 0.5
"""Share of the base model's diversity below which a run has begun to collapse (SPEC ALLIT-10)."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run's outcome. None where it cannot be said: no base episodes, no episode yet, no reference, no games."""

    name: str
    iterations: int  # done
    episodes: int  # played by the policy in training; the base model's are not among them
    seconds: float  # sum of the iterations' wall times
    base_reward: float | None  # mean score of the base model's episodes
    reward_last_40: float | None  # mean score of the last 40 episodes
    reward_ratio: float | None  # of the two, where the base model's is above 0
    kl_last: float | None  # nats a sequence, mean of the last 40 episodes
    diversity_share: float | None  # distinct-2 of the last 50 texts over the base model's
    diversity_broken_at: int | None  # first iteration after which that share is under 0.5 (SPEC ALLIT-10)
    base_won: float | None = None  # share of games won by the base model
    won_last: float | None = None  # share of games won among the last 40 episodes
    eval_won: float | None = None  # share of held-out games won, greedy, in the run's last evaluation
    eval_episodes: int | None = None  # held-out games of that evaluation, one episode each


@dataclass(frozen=True, slots=True)
class EpisodeHistory:
    """What one pass over a run's episodes leaves in memory."""

    episodes: int
    base: tuple[SampleRecord, ...]  # the untrained model's
    last: tuple[SampleRecord, ...]  # at most the last 50
    diversity: tuple[tuple[int, float], ...]  # (iteration, distinct-2 as a share of the base model's), rising; of
    # games none: most of their text is the game's own, and a policy that wins is to repeat itself
    at: dict[int, tuple[SampleRecord, ...]]  # iteration -> its episodes, for the iterations asked for


def mean_distinct_2(texts: Sequence[str], size: int) -> float:
    """Mean distinct-2 over the whole chunks of `size` consecutive texts, of which there must be one."""
    chunks = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
    return sum(distinct_n(chunk, 2) for chunk in chunks) / len(chunks)


class BaseDiversity:
    """Distinct-2 of the base model, as a mean over chunks of consecutive texts: it depends on how many there are."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._means: dict[int, float] = {}

    def share(self, texts: Sequence[str]) -> float | None:
        """Distinct-2 of `texts` over the base model's for equally many; None where that is unknown or 0.

        With fewer base texts than `texts`, only the last of `texts` count, so that both are equally many.
        """
        size = min(len(texts), len(self._texts))
        if size == 0:
            return None
        if size not in self._means:
            self._means[size] = mean_distinct_2(self._texts, size)
        return distinct_n(texts[-size:], 2) / self._means[size] if self._means[size] else None


def read_history(folder: Path, points: Iterable[int] | None = None, keep: Iterable[int] = ()) -> EpisodeHistory:
    """Reads the episodes of the run at `folder` once.

    points: iterations after which the diversity is taken, as after the last; None: after each. keep: iterations whose
    episodes are wanted.
    """
    wanted = None if points is None else set(points)
    kept: dict[int, list[SampleRecord]] = {iteration: [] for iteration in keep}
    base: list[SampleRecord] = []
    last: deque[SampleRecord] = deque(maxlen=DIVERSITY_TEXTS)
    diversity: list[tuple[int, float]] = []
    reference: BaseDiversity | None = None
    episodes = 0

    def take_diversity(asked_for: bool) -> None:
        if last and reference and asked_for and not last[-1].turns:
            share = reference.share([record.text for record in last])
            if share is not None:
                diversity.append((last[-1].iteration, share))

    for record in iter_samples(folder):
        if record.iteration in kept:
            kept[record.iteration].append(record)
        if record.iteration == BASELINE_ITERATION:
            base.append(record)
            continue
        reference = reference or BaseDiversity([sample.text for sample in base])
        if last and last[-1].iteration != record.iteration:
            take_diversity(wanted is None or last[-1].iteration in wanted)
        last.append(record)
        episodes += 1
    take_diversity(True)
    at = {iteration: tuple(records) for iteration, records in kept.items()}
    return EpisodeHistory(episodes, tuple(base), tuple(last), tuple(diversity), at)


def summarise(folder: Path) -> RunSummary:
    """The outcome of the run at `folder` so far; RunFolderError where there is no run."""
    run = RunFolder.open(folder)
    return summary_of(run.name, read_metrics(folder), read_history(folder))


def summary_of(name: str, metrics: Sequence[dict[str, float]], history: EpisodeHistory) -> RunSummary:
    """The same from what was read already."""
    rows = [row for row in metrics if row["iteration"] != BASELINE_ITERATION]
    last = history.last[-REWARD_EPISODES:]
    base_reward = _mean([record.score for record in history.base])
    reward = _mean([record.score for record in last])
    ratio = reward / base_reward if reward is not None and base_reward is not None and base_reward > 0 else None
    broken = [iteration for iteration, share in history.diversity if share < DIVERSITY_FLOOR]
    evaluated = [row for row in rows if "eval/won" in row]
    return RunSummary(
        name=name,
        iterations=len(rows),
        episodes=history.episodes,
        seconds=sum(row.get("time/iteration", 0.0) for row in rows),
        base_reward=base_reward,
        reward_last_40=reward,
        reward_ratio=ratio,
        kl_last=_mean([record.kl for record in last if record.kl is not None]),
        diversity_share=history.diversity[-1][1] if history.diversity else None,
        diversity_broken_at=broken[0] if broken else None,
        base_won=_mean([record.won for record in history.base if record.won is not None]),
        won_last=_mean([record.won for record in last if record.won is not None]),
        eval_won=evaluated[-1]["eval/won"] if evaluated else None,
        eval_episodes=int(evaluated[-1]["eval/episodes"]) if evaluated and "eval/episodes" in evaluated[-1] else None,
    )


def write_summary(folder: Path, summary: RunSummary) -> None:
    """Writes `summary.json` into the run at `folder`."""
    replace_file(RunFolder(folder).summary, [json.dumps(asdict(summary), indent=1).encode() + b"\n"])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
