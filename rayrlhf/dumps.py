"""A batch of episodes kept on the disk with the weights that sampled it, so that it can be played again bit for bit.

    000012-kl_spike/batch.json               alarm, seeds, texts, scores
                   /config.yaml              of the run
                   /episodes.safetensors     token ids and log-probabilities, `<episode>/<turn>/<name>`
                   /weights.safetensors      the policy's; bfloat16 as the bits in uint16

Written aside and renamed: a folder of that name is whole. Nothing in it is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rayrlhf.errors import CheckpointError
from rayrlhf.files import check_plain, replace_folder, saving, storing, sync_folder
from rayrlhf.reading import Count, Whole, read_record
from rayrlhf.types import EpisodeScore, EpisodeSpec, Trajectory, Turn, Weights

BATCH, CONFIG, EPISODES, WEIGHTS = "batch.json", "config.yaml", "episodes.safetensors", "weights.safetensors"
FORMAT = 1  # raised when an older reader could not read a newer dump
ARRAYS = ("prompt_ids", "response_ids", "logprobs", "filtered_logprobs", "reference_logprobs")
"""What is kept of each turn."""


@dataclass(frozen=True, slots=True)
class KeptBatch:
    """One iteration's episodes, and all that they follow from."""

    iteration: int
    attempt: int
    specs: Sequence[Sequence[EpisodeSpec]]  # in the batches that were decoded together
    trajectories: Sequence[Trajectory]
    scores: Sequence[EpisodeScore] = ()  # () where the run ended before they were scored


@dataclass(frozen=True, slots=True)
class Dump:
    """What `read_dump` finds."""

    message: str  # of the alarm
    iteration: int
    specs: list[list[EpisodeSpec]]
    texts: list[str]  # of each episode
    scores: list[EpisodeScore]
    arrays: Mapping[str, NDArray]  # `<episode>/<turn>/<name>` -> values
    weights: Weights


def write_dump(folder: Path, batch: KeptBatch, weights: Weights, message: str, config: Path) -> None:
    """Writes the dump `folder`, in place of one of that name, and puts it on the disk. config: the run's config.yaml."""
    aside = folder.with_name(f".{folder.name}.new")
    if aside.exists():
        shutil.rmtree(aside)
    with storing(aside):
        aside.mkdir(parents=True)
    try:
        with saving(aside):
            _write_parts(aside, batch, weights, message, config)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    replace_folder(aside, folder)


def _write_parts(aside: Path, batch: KeptBatch, weights: Weights, message: str, config: Path) -> None:
    """The files of a dump, onto the disk."""
    shutil.copyfile(config, aside / CONFIG)
    save_file(episode_arrays(batch.trajectories), aside / EPISODES)
    save_file({name: np.ascontiguousarray(array) for name, array in weights.arrays.items()}, aside / WEIGHTS)
    content = {
        "format": FORMAT,
        "message": message,
        "iteration": batch.iteration,
        "attempt": batch.attempt,
        "weights": {"version": weights.version, "checksum": weights.checksum},
        "specs": [[asdict(spec) for spec in specs] for specs in batch.specs],
        "texts": [trajectory.text for trajectory in batch.trajectories],
        "scores": [{"total": score.total.tolist(), "parts": dict(score.parts)} for score in batch.scores],
    }
    (aside / BATCH).write_text(json.dumps(content, indent=1))
    for file in aside.iterdir():
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    sync_folder(aside)


def read_dump(folder: Path) -> Dump:
    """Reads what `write_dump` wrote. Raises CheckpointError where that is missing, damaged or another version's,
    RunFolderError where it holds links."""
    check_plain(folder)
    for name in (BATCH, EPISODES, WEIGHTS):
        if not os.path.isfile(folder / name):
            raise CheckpointError(f"{folder} is no kept batch of a run: {name} is missing")
    advice = "it cannot be played again"
    found = read_record(folder / BATCH, _Format, CheckpointError, advice, finite=False)
    if found.format != FORMAT:
        raise CheckpointError(
            f"{folder} has format {found.format!r:.40}; this version of RayRLHF reads format {FORMAT}"
        )
    content = read_record(folder / BATCH, _Content, CheckpointError, advice, finite=False)
    episodes, texts, scores = sum(map(len, content.specs)), len(content.texts), len(content.scores)
    if texts != episodes or scores not in (0, episodes):
        raise CheckpointError(
            f"{folder / BATCH} is damaged: it is of {episodes} episodes and has {texts} texts and {scores} scores: {advice}"
        )
    try:
        return Dump(
            message=content.message,
            iteration=content.iteration,
            specs=[list(specs) for specs in content.specs],
            texts=content.texts,
            scores=[EpisodeScore(np.asarray(score.total, np.float32), score.parts) for score in content.scores],
            arrays=load_file(folder / EPISODES),
            weights=Weights(content.weights.version, content.weights.checksum, load_file(folder / WEIGHTS)),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the kept batch {folder} is damaged: {error!r}") from None


@dataclass(frozen=True, slots=True)
class _Format:
    format: Any


@dataclass(frozen=True, slots=True)
class _Version:
    version: Count
    checksum: Count


@dataclass(frozen=True, slots=True)
class _Score:
    total: list[float]
    parts: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Content:
    """What `batch.json` holds."""

    message: str
    iteration: Whole
    weights: _Version
    specs: list[list[EpisodeSpec]]
    texts: list[str]
    scores: list[_Score]


def episode_arrays(trajectories: Sequence[Trajectory]) -> dict[str, NDArray]:
    """`<episode>/<turn>/<name>` -> values, of all turns."""
    return {
        f"{trajectory.index}/{number}/{name}": _array(turn, name)
        for trajectory in trajectories
        for number, turn in enumerate(trajectory.turns)
        for name in ARRAYS
    }


def _array(turn: Turn, name: str) -> NDArray:
    values: NDArray = getattr(turn, name)
    return np.ascontiguousarray(values)
