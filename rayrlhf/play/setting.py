"""What `rayrlhf play` plays: a run's environment with its latest checkpoint, or a game file with a model or without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayrlhf.checkpoint import newest_model
from rayrlhf.config import AgentConfig, ModelConfig
from rayrlhf.environments import EnvironmentSettings, check_environment, takes_prompts
from rayrlhf.errors import UserError
from rayrlhf.reading import expanded
from rayrlhf.response_config import NO_RULES, ResponseConfig
from rayrlhf.run_folder import RunFolder
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.trust import NOBODY, Trust, code_of_environment, trusted_model
from rayrlhf.types import Split

MAX_TURNS = 1000  # of a game file that no run limits
MAX_NEW_TOKENS = 64  # of a model that no run limits, where it writes freely
_OF_ANY_GAME = ("parts", "prune")  # parameters of a run's TextWorld that hold for other games too


@dataclass(frozen=True, slots=True)
class Setting:
    """Which game, and which model plays it how."""

    title: str
    environment: EnvironmentSettings
    max_turns: int
    model: ModelConfig | None  # None: a person plays without any
    agent: AgentConfig
    sampling: SamplingSettings
    response: ResponseConfig = NO_RULES


def find_setting(source: str | None, game: Path | None, split: Split, trust: Trust = NOBODY) -> Setting:
    """The setting of a run's folder, or of a model's name or none together with a game file.

    Raises:
        UserError: there is nothing to play, or what there is, is no game.
        CheckpointError: the run has no checkpoint.
        UntrustedCodeError: the run's config names an environment that nobody trusts.
    """
    folder = None if source is None else Path(source)
    if folder is not None and ((folder / "config.yaml").is_file() or (folder / "checkpoints").is_dir()):
        setting = of_run(folder, split, trust)
    elif game is None:
        raise UserError(f"play {source or '--human'}: this is no run's folder, so name what to play: --game FILE.z8")
    else:
        model = None if source is None else trusted_model(ModelConfig(path=source), source, trust)
        textworld = EnvironmentSettings("textworld", split=split)
        setting = Setting("", textworld, MAX_TURNS, model, AgentConfig(), SamplingSettings(MAX_NEW_TOKENS))
    if game is not None:
        setting = replace(setting, title=game.name, environment=with_game(setting.environment, game))
    elif source is not None:
        trust.require(source, code_of_environment(setting.environment.name))
    if takes_prompts(setting.environment.name):
        raise UserError(
            f"play {source}: the run's environment {setting.environment.name} is no game but single prompts: "
            f"use `rayrlhf generate {source}`, or name a game with --game FILE.z8"
        )
    check_environment(setting.environment)
    return setting


def of_run(folder: Path, split: Split, trust: Trust) -> Setting:
    """The run's own game, with its latest checkpoint and its way of seeing and acting."""
    config = RunFolder.open(folder).read_config()
    environment, rollout = config.environment, config.rollout
    model = trusted_model(config.model.at(newest_model(folder / "checkpoints")), folder, trust)
    return Setting(
        title=_title(environment.name, environment.parameters),
        environment=EnvironmentSettings.of(environment, split),
        max_turns=environment.max_turns,
        model=model,
        agent=config.agent,
        sampling=SamplingSettings(rollout.max_new_tokens, rollout.temperature, rollout.top_k, rollout.top_p),
        response=config.response,
    )


def _title(name: str, parameters: Mapping[str, Any]) -> str:
    """The environment with what it says of its kind of game: `textworld coin_collector level 5`."""
    kind = f" {parameters['kind']}" if "kind" in parameters else ""
    level = f" level {parameters['level']}" if "level" in parameters else ""
    return f"{name}{kind}{level}"


def with_game(environment: EnvironmentSettings, game: Path) -> EnvironmentSettings:
    """TextWorld with this game file, shown as the environment shows its own where that is TextWorld too."""
    kept = {key: value for key, value in environment.parameters.items() if key in _OF_ANY_GAME}
    parameters = {**kept, "files": str(expanded(game, UserError).absolute())}
    return replace(environment, name="textworld", parameters=parameters)
