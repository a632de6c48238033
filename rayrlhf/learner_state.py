"""What a learner's state is beside its engines: which settings it was written with, its version, its random numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rayrlhf.errors import CheckpointError
from rayrlhf.reading import Count, read_record, typed

STATE_FILE = "learner.json"


def write_state(folder: Path, version: int, layout: Mapping[str, Any]) -> None:
    """Writes the version of the weights and the settings, by their names in the config, that shaped the state."""
    (folder / STATE_FILE).write_text(json.dumps({"version": version, **layout}, indent=1))


def read_version(folder: Path, layout: Mapping[str, Any]) -> int:
    """The version of the weights in `folder`.

    Raises:
        CheckpointError: there is no state, or it was written with other settings than `layout`.
    """
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder} holds no learner state: there is no {STATE_FILE} in it")
    saved = read_record(
        folder / STATE_FILE, dict[str, Any], CheckpointError, f"{folder} holds no learner state that can be read"
    )
    others = [
        f"{key} was {saved.get(key)} and is {value} now: set `{key}: {saved.get(key)}`"
        for key, value in layout.items()
        if saved.get(key) != value
    ]
    if others:
        raise CheckpointError(
            f"the learner state in {folder} is sharded for the settings it was written with. {'; '.join(others)}, "
            "or start a new run from its model folder."
        )
    return typed(Count, saved.get("version"), f"{folder / STATE_FILE}: version", CheckpointError)


def save_random_state(file: Path, device: torch.device) -> None:
    """Writes the states of this rank's random number generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    save_file(state, file)


def load_random_state(file: Path) -> dict[str, torch.Tensor]:
    """Raises CheckpointError where the file is missing or damaged."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the learner state in {file.parent} cannot be loaded: {error}") from error


def restore_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """A GPU's generator is left alone where the learner that was saved had none."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
