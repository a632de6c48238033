"""Samples single turns from a model or a run's latest checkpoint, for a blind comparison. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from rayrlhf.config import PromptsConfig
from rayrlhf.errors import PreferenceError
from rayrlhf.generate import find_model
from rayrlhf.preferences.compare_config import CompareConfig, SampledWith
from rayrlhf.preferences.compare_samples import Samples
from rayrlhf.preferences.records import Item
from rayrlhf.response_config import NO_RULES, ResponseConfig
from rayrlhf.rollout import deal_specs
from rayrlhf.sample_episodes import Sampled, sample_episodes
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.trust import NOBODY, Trust
from rayrlhf.types import Trajectory

_Config = TypeVar("_Config", PromptsConfig, ResponseConfig)
_NAMES: dict[type, str] = {PromptsConfig: "prompts", ResponseConfig: "truncation of responses"}


@dataclass(frozen=True, slots=True)
class Setting:
    """What both models are given and how their texts are cut, beside the sampling settings."""

    prompts: PromptsConfig
    response: ResponseConfig


def common_setting(sources: Sequence[str], config: CompareConfig) -> Setting:
    """The prompts and response rules of the runs among these sources, for all of them; `config.prompt` goes first.

    Raises:
        PreferenceError: two runs have different ones.
    """
    found = [(source, *find_model(source)[1:]) for source in sources]
    prompts = PromptsConfig(text=config.prompt or None)
    if config.prompt is None:
        advice = "name one with --prompt, or compare files of samples"
        prompts = _common([(source, own) for source, own, _ in found if own != PromptsConfig()], advice) or prompts
    # What a missing stop costs changes scores, not texts.
    cuts = [(source, ResponseConfig(truncation=own.truncation)) for source, _, own in found if own.truncation]
    return Setting(prompts, _common(cuts, "compare files of samples that were cut alike") or NO_RULES)


def _common(found: Sequence[tuple[str, _Config]], advice: str) -> _Config | None:
    for source, own in found[1:]:
        if own != found[0][1]:
            raise PreferenceError(
                f"{found[0][0]} and {source} were trained with different {_NAMES[type(own)]}: {advice}"
            )
    return found[0][1] if found else None


def sample_model(source: str, setting: Setting, config: CompareConfig, stream: int, trust: Trust = NOBODY) -> Samples:
    """`config.samples` texts, of each prompt in turn, so that both models have the same prompts.

    stream: 0 or 1. With the same random numbers two like models would write almost the same texts.
    """
    model = find_model(source, trust)[0]
    sampled = Sampled(setting.prompts, SamplingSettings(config.max_new_tokens, config.temperature), setting.response)
    batches = deal_specs(2 * config.seed + stream, 0, config.samples, 1, config.samples)
    trajectories = sample_episodes(model, sampled, batches)
    items = tuple(_item(trajectory, source) for trajectory in trajectories)
    settings = SampledWith(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
    return Samples(source, items, settings)


def _item(trajectory: Trajectory, generator: str) -> Item:
    [turn] = trajectory.turns
    return Item(
        prompt=turn.observation,
        text=turn.action,
        prompt_ids=tuple(turn.prompt_ids.tolist()),
        text_ids=tuple(turn.response_ids.tolist()),
        generator=generator,
        seed=trajectory.sampling_seed,
        extra={"sample": trajectory.index},
    )
