"""What a reward model's folder says beside what transformers reads: `reward_model.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rayrlhf.errors import ModelError
from rayrlhf.files import replace_file
from rayrlhf.reward_models.text_format import TextFormat

SIDECAR = "reward_model.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What a reward model's folder says beside what transformers reads."""

    bias: float  # reward = gain * score of the loaded classifier + bias
    text_format: TextFormat
    gain: float = 1.0  # 1 in a finished folder
    log_tie: float = 0.0  # of Davidson's model, where ties were an outcome
    task: Mapping[str, Any] = field(default_factory=dict)  # what the scores were normalised on: see `tasks.py`
    normalisation: Mapping[str, float] = field(default_factory=dict)  # mean, std, samples of the reference's scores
    version: int = VERSION


def with_scalars(sidecar: Sidecar, values: Mapping[str, float]) -> Sidecar:
    """The sidecar with these of its numbers."""
    return replace(sidecar, gain=values["gain"], bias=values["bias"], log_tie=values["log_tie"])


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    replace_file(folder / SIDECAR, [json.dumps(asdict(sidecar), indent=1).encode()])


def read_sidecar(folder: Path) -> Sidecar:
    """Raises ModelError for a folder that is no reward model, or one of another version."""
    path = folder / SIDECAR
    if not path.is_file():
        raise ModelError(f"reward model {folder}: no {SIDECAR} is there; `rayrlhf reward-model` makes such a folder")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = content["version"]
        if version != VERSION:
            raise ModelError(f"reward model {folder}: {SIDECAR} is of version {version}, this RayRLHF reads {VERSION}")
        told = content.pop("text_format")
        return Sidecar(
            text_format=TextFormat(**{**told, "start": tuple(told["start"]), "ends": tuple(told.get("ends", ()))}),
            **content,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"reward model {folder}: {SIDECAR} is damaged: {type(error).__name__}: {error}") from error
