"""The texts of a blind comparison: read from files or sampled from models, and put into pairs of one prompt each."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.compare_config import CompareConfig, SampledWith
from rayrlhf.preferences.formats.json_rows import read_rows
from rayrlhf.preferences.records import Item
from rayrlhf.reading import read_bytes
from rayrlhf.trust import NOBODY, Trust

_SETTINGS = tuple(SampledWith.model_fields)


@dataclass(frozen=True, slots=True)
class Samples:
    """What one of the two wrote."""

    name: str
    items: tuple[Item, ...]
    settings: SampledWith


def read_samples(path: Path, name: str) -> Samples:
    """Samples of a JSONL file: `prompt` (or none) and `response` or `text` in each row, and how it was sampled.

    temperature, top_k, top_p and max_new_tokens are read from the rows where they have them, and must not change.

    Raises:
        PreferenceError: the file cannot be read, or rows of it are at fault; the first is named by file:line.
    """
    data = read_bytes(path, PreferenceError)
    items: list[Item] = []
    known: dict[str, Any] | None = None
    for row in read_rows(data):
        where = f"{path}:{row.line}"
        value: dict[str, Any] | None = getattr(row, "value", None)
        if value is None:
            raise PreferenceError(f"{where}: {getattr(row, 'message', '')}")
        prompt, text = value.get("prompt", ""), value.get("response", value.get("text"))
        if not isinstance(prompt, str) or not isinstance(text, str):
            raise PreferenceError(f'{where}: a sample is {{"prompt": "...", "response": "..."}}, both texts')
        settings = {key: value[key] for key in _SETTINGS if value.get(key) is not None}
        if known is not None and settings != known:
            raise PreferenceError(f"{where}: sampled with {settings}, the rows before it with {known}: make two files")
        known = settings
        items.append(Item(prompt, text, generator=name, extra={"sample": len(items)}))
    if not items:
        raise PreferenceError(f"{path} has no samples")
    try:
        return Samples(name, tuple(items), SampledWith.model_validate(known))
    except ValidationError as error:
        fault = error.errors()[0]
        raise PreferenceError(f"{path}: {fault['loc'][0]}: {fault['msg']}") from error


def collect(config: CompareConfig, trust: Trust = NOBODY) -> tuple[Samples, Samples]:
    """The texts of both, from files or by sampling."""
    from rayrlhf.preferences.compare_sampling import common_setting, sample_model

    sources = (config.a, config.b)
    setting = common_setting([source for source in sources if not Path(source).is_file()], config)
    one, other = (
        read_samples(Path(source), source)
        if Path(source).is_file()
        else sample_model(source, setting, config, stream, trust)
        for stream, source in enumerate(sources)
    )
    return one, other


def check_settings(one: Samples, other: Samples, allow_unequal: bool) -> list[str]:
    """What is to be said of how both were sampled; a setting that only one is known to have is among it.

    Raises:
        PreferenceError: they were sampled differently, and that is not allowed (SPEC GWERN-11).
    """
    unequal, unknown = [], []
    for key in _SETTINGS:
        ours, theirs = getattr(one.settings, key), getattr(other.settings, key)
        if ours == theirs:
            continue
        # A file that says its temperature and no top_p was sampled without top_p.
        silent = [side.name for side, value in ((one, ours), (other, theirs)) if value is None and not _says(side)]
        if silent:
            unknown.append(f"{key} of {silent[0]} is not known")
        else:
            unequal.append(f"{key}: {_shown(ours)} of {one.name}, {_shown(theirs)} of {other.name}")
    if unequal and not allow_unequal:
        raise PreferenceError(
            f"the texts were sampled with different settings, so the comparison would be of these too: "
            f"{'; '.join(unequal)}. Sample both alike, or give --allow-unequal"
        )
    return [*(f"unequal {line}" for line in unequal), *unknown]


def paired(one: Samples, other: Samples, allow_unequal: bool, most: int) -> list[tuple[Item, Item]]:
    """The k-th text of each prompt by the one with the k-th by the other, at most so many.

    Raises:
        PreferenceError: not both have as many texts of each prompt, and that is not allowed; or they share no prompt.
    """
    counts, others = (Counter(item.prompt for item in samples.items) for samples in (one, other))
    unmatched = (counts - others).total() + (others - counts).total()
    if not counts & others:
        raise PreferenceError(
            f"{one.name} and {other.name} have no prompt in common: sample both with the same prompts"
        )
    if unmatched and not allow_unequal:
        raise PreferenceError(
            f"{unmatched} texts of {one.name} and {other.name} have no text by the other with the same prompt: sample as "
            "many of each prompt from both, or give --allow-unequal to leave these out"
        )
    waiting: defaultdict[str, list[Item]] = defaultdict(list)
    for item in reversed(other.items):
        waiting[item.prompt].append(item)
    pairs = [(item, waiting[item.prompt].pop()) for item in one.items if waiting[item.prompt]]
    return [(_marked(first, "A"), _marked(second, "B")) for first, second in pairs[:most]]


def _marked(item: Item, side: str) -> Item:
    """Texts of A and B are items of their own even where all else is equal, as when a model is compared with itself."""
    return replace(item, extra={**item.extra, "model": side}, id="")


def _says(samples: Samples) -> bool:
    return samples.settings.temperature is not None


def _shown(value: float | None) -> str:
    return "none" if value is None or math.isinf(value) else f"{value:g}"
