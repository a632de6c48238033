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

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rayrlhf.errors import CheckpointError
from rayrlhf.files import replace_folder, saving, storing, sync_folder
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
    """Reads what `write_dump` wrote. Raises CheckpointError where that is missing, damaged or another version's."""
    try:
        content = json.loads((folder / BATCH).read_bytes())
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{folder} has format {content['format']}; this version of RayRLHF reads format {FORMAT}"
            )
        scores = [
            EpisodeScore(np.asarray(score["total"], np.float32), dict(score["parts"])) for score in content["scores"]
        ]
        version, checksum = int(content["weights"]["version"]), int(content["weights"]["checksum"])
        return Dump(
            message=str(content["message"]),
            iteration=int(content["iteration"]),
            specs=[[EpisodeSpec(**spec) for spec in specs] for specs in content["specs"]],
            texts=[str(text) for text in content["texts"]],
            scores=scores,
            arrays=load_file(folder / EPISODES),
            weights=Weights(version, checksum, load_file(folder / WEIGHTS)),
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no kept batch of a run: {error.filename} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the kept batch {folder} is damaged: {error!r}") from None


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
