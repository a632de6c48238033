"""What a reward model's folder says beside what transformers reads: `reward_model.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rayrlhf.errors import ModelError
from rayrlhf.files import replace_file
from rayrlhf.reading import Number, check_files, read_record
from rayrlhf.reward_models.text_format import TextFormat

SIDECAR = "reward_model.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What a reward model's folder says beside what transformers reads."""

    bias: Number  # reward = gain * score of the loaded classifier + bias
    text_format: TextFormat
    gain: Number = 1.0  # 1 in a finished folder
    log_tie: Number = 0.0  # of Davidson's model, where ties were an outcome
    task: Mapping[str, Any] = field(default_factory=dict)  # what the scores were normalised on: see `tasks.py`
    normalisation: Mapping[str, Number] = field(default_factory=dict)  # mean, std, samples of the reference's scores
    version: int = VERSION


def with_scalars(sidecar: Sidecar, values: Mapping[str, float]) -> Sidecar:
    """The sidecar with these of its numbers."""
    return replace(sidecar, gain=values["gain"], bias=values["bias"], log_tie=values["log_tie"])


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    replace_file(folder / SIDECAR, [json.dumps(asdict(sidecar), indent=1).encode()])


def read_sidecar(folder: Path) -> Sidecar:
    """Raises ModelError for a folder that is no reward model, one of another version, or one that holds a pipe."""
    path = folder / SIDECAR
    if not path.is_file():
        raise ModelError(f"reward model {folder}: no {SIDECAR} is there; `rayrlhf reward-model` makes such a folder")
    check_files(folder, ModelError)
    advice = "make the reward model again, or take its folder from a copy"
    version = read_record(path, _Version, ModelError, advice).version
    if version != VERSION:
        raise ModelError(
            f"reward model {folder}: {SIDECAR} is of version {version!r:.40}, this RayRLHF reads {VERSION}"
        )
    return read_record(path, Sidecar, ModelError, advice)


@dataclass(frozen=True, slots=True)
class _Version:
    version: Any
