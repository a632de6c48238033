"""The form of the texts that a reward model is shown, stored with it and held against every run that uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayrlhf.config import RunConfig
from rayrlhf.errors import ConfigError


def task_of(config: RunConfig) -> dict[str, Any]:
    """What decides which texts a reward model is shown, as JSON-serialisable values."""
    return {
        "environment": config.environment.name,
        "chat_template": config.environment.prompts.chat_template,
        "response": config.response.model_dump(mode="json", include={"truncation"}),
        "max_new_tokens": config.rollout.max_new_tokens,
        "temperature": config.rollout.temperature,
    }


def check_task(name: str, trained: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Holds the task that the reward model `name` was normalised on against a run's (SPEC LMHP-36).

    Returns warnings for what shifts the scores' mean and deviation alone.

    Raises:
        ConfigError: the run would show it texts of another form than it was trained on.
    """
    now = task_of(config)
    form = ("environment", "chat_template", "response")
    wrong = [key for key in form if key in trained and trained[key] != now[key]]
    if wrong:
        told = "; ".join(f"{key}: {trained[key]} there, {now[key]} in this run" for key in wrong)
        raise ConfigError(
            f"reward model {name} was trained on texts of another form ({told}): train one on this task with "
            "`rayrlhf reward-model --recipe`, or change the run"
        )
    return [
        f"reward model {name} was normalised at {key} {trained[key]}, this run has {now[key]}: its scores on the "
        "reference's samples will not have mean 0 and deviation 1"
        for key in ("max_new_tokens", "temperature")
        if key in trained and trained[key] != now[key]
    ]
