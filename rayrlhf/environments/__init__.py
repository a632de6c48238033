"""Environments by their names: found, checked, built, and opened for a rollout to play many episodes side by side.

`open_environments` is what a rollout worker calls; `Game` is one environment whose answers are checked.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from rayrlhf import plugins
from rayrlhf.error_location import is_raised_in, location_of
from rayrlhf.errors import EpisodeError, UserError
from rayrlhf.interfaces import Environment, Environments
from rayrlhf.plugin_parameters import listing, named_parameters, parameter_faults, signature_of
from rayrlhf.types import GameState, Split, StepResult

if TYPE_CHECKING:  # a process that plays games needs no config, and pydantic takes long to import
    from rayrlhf.config import EnvironmentConfig

_HANDED = ("prompts", "split", "run_seed")  # constructor parameters that the run fills
_STEP_VALUES = "(observation, reward, terminated, truncated, info)"
_GYMNASIUM = os.path.dirname(gymnasium.__file__)
_OLD_RESET = (
    "That is the API that Gymnasium had as Gym, before 0.26: write `def reset(self, *, seed=None, options=None)`, and "
    "return `observation, info`, where `info` may be `{}`."
)
_OLD_STEP = (
    "Four values, with one `done`, are the API that Gymnasium had as Gym, before 0.26: return five, where `terminated` "
    "says that the game is over and `truncated` that a limit cut it off (mostly `done, False`)."
)


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """Which environment is played, and how its processes are treated."""

    name: str  # a file of envs/, an entry point, module:Name, or a Gymnasium id
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of its constructor
    split: Split = "train"  # which of its games
    step_timeout_s: float = 20.0  # of one step or reset of one game
    max_retries: int = 3  # how often one step is tried again, and those of a batch on average
    processes: int = 1  # that the games are spread over
    run_seed: int = 0  # which order its prompts or games come in, where they have one

    @classmethod
    def of(cls, config: EnvironmentConfig, split: Split, run_seed: int = 0) -> EnvironmentSettings:
        """Those that a run's config asks for."""
        return cls(config.name, config.parameters, split, config.step_timeout_s, config.max_retries, run_seed=run_seed)


def load_environment(name: str) -> Callable[..., Environment]:
    """The class, or the function, that makes environments of this name.

    Raises EpisodeError where there is none, see `plugins.load`.
    """
    creator: Callable[..., Environment] = plugins.load("environment", name)
    return creator


def has_held_out_games(name: str) -> bool:
    """Whether the environment can be told to play games that training never shows: it takes a `split`."""
    return "split" in _parameters(load_environment(name))


def takes_prompts(name: str) -> bool:
    """Whether the environment is told which texts to start from: it takes `prompts`."""
    return "prompts" in _parameters(load_environment(name))


def constructor_parameters(name: str) -> dict[str, inspect.Parameter]:
    """Name -> parameter that a config may give: those of the constructor but for what the run itself fills."""
    known = _parameters(load_environment(name))
    return {key: parameter for key, parameter in known.items() if key not in _HANDED}


def check_environment(settings: EnvironmentSettings, prompts: Sequence[str] = ()) -> Callable[..., Environment]:
    """What `load_environment` returns, after a check of all that its constructor would be given; builds nothing.

    Raises EpisodeError for parameters that are unknown, missing or of the wrong type, for prompts that the environment
    does not take, and for held-out games that it does not have.
    """
    creator = load_environment(settings.name)
    known = _parameters(creator)
    title = f"environment `{settings.name}`"
    own = constructor_parameters(settings.name)
    given = {**plugins.gymnasium_defaults(settings.name), **settings.parameters}
    faults = parameter_faults(creator, own, given, other_keys=_config_keys)
    if faults:
        listed = f"Its parameters: {listing(own)}." if own else "It takes no parameters."
        raise EpisodeError(f"{title} {' It '.join(faults)} {listed}")
    if any(prompts) and "prompts" not in known:
        raise EpisodeError(f"{title} starts with texts of its own and takes no prompts: leave out environment.prompts.")
    if settings.split == "held_out" and "split" not in known:
        raise EpisodeError(f"{title} has no held-out games: its constructor takes no `split`.")
    return creator


def prepare_environment(settings: EnvironmentSettings) -> None:
    """Lets an environment make what its episodes need, its games say, before any is played.

    Its class has a method `prepare(processes, **parameters)` if there is anything to make.
    """
    prepare = getattr(check_environment(settings), "prepare", None)
    if prepare is not None:
        prepare(processes=os.cpu_count() or 1, **settings.parameters)


def make_environment(settings: EnvironmentSettings, prompts: Sequence[str] = ()) -> Environment:
    """Builds one environment; the split, the run's seed and `prompts`, if there are any, go to constructors that take
    them.

    Raises EpisodeError as `check_environment` does, and for spaces that are not text; what the constructor raises is
    let through.
    """
    creator = check_environment(settings, prompts)
    known = _parameters(creator)
    handed = {
        "split": settings.split,
        "run_seed": settings.run_seed,
        **({"prompts": tuple(prompts)} if prompts else {}),
    }
    arguments = {**settings.parameters, **{name: value for name, value in handed.items() if name in known}}
    if plugins.is_gymnasium_id(settings.name):
        environment: Any = gymnasium.make(settings.name, disable_env_checker=True, **arguments)
    else:
        environment = creator(**arguments)
    _check_made(settings.name, environment)
    return environment


def _check_made(name: str, environment: Any) -> None:
    """Raises EpisodeError for what a class or a function has made where that cannot be played as text."""
    missing = [method for method in ("reset", "step") if not callable(getattr(environment, method, None))]
    if missing:
        raise EpisodeError(
            f"environment `{name}`: it made {_shortened(environment)}, which has no `{'` and no `'.join(missing)}`: name a "
            "class of environments, or a function that makes one."
        )
    if not _takes_seed(environment.reset):
        raise EpisodeError(
            f"environment `{name}`: its reset() takes no `seed`, which says what episode to start. {_OLD_RESET}"
        )
    for kind in ("observation_space", "action_space"):
        space = getattr(environment, kind, None)
        if space is not None and not isinstance(space.sample(), str):
            raise EpisodeError(
                f"environment `{name}` has the {kind} {space}: observations and actions have to be text, "
                "as with `rayrlhf.text_space.TextSpace()` or `gymnasium.spaces.Text`."
            )


def _takes_seed(reset: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(reset).parameters
    except (ValueError, TypeError):  # of one written in C, which may
        return True
    return "seed" in parameters or any(known.kind is known.VAR_KEYWORD for known in parameters.values())


def first_seeds(settings: EnvironmentSettings, prompts: Sequence[str] = ()) -> Callable[[int], int]:
    """For a seed the smallest one that starts the same episode, as far as the environment says so.

    It says so with a method `first_seed(seed)`, as one that goes through a fixed set of games does; what was seen of a
    game is remembered under that seed.
    """
    creator = check_environment(settings, prompts)
    if not hasattr(creator, "first_seed"):
        return lambda seed: seed
    method: Callable[[int], int] = make_environment(settings, prompts).first_seed  # type: ignore[attr-defined]
    return functools.lru_cache(maxsize=4096)(method)


def open_environments(settings: EnvironmentSettings, prompts: Sequence[str] = ()) -> Environments:
    """Environments for a rollout: in processes of their own, or in this one where the class says `in_process`.

    An environment whose `metadata` has `"in_process": True` promises not to hang, crash or leak.
    Raises EpisodeError as `check_environment` does.
    """
    creator = check_environment(settings, prompts)
    if getattr(creator, "metadata", {}).get("in_process", False):
        return LocalEnvironments(settings, prompts)
    from rayrlhf.environments.pool import ProcessEnvironments  # which builds on this module

    return ProcessEnvironments(settings, prompts)


class Game:
    """One environment, its answers checked and made `StepResult`s. What the environment raises is let through."""

    def __init__(self, settings: EnvironmentSettings, prompts: Sequence[str] = ()) -> None:
        self._environment: Any = make_environment(settings, prompts)
        self._counts_steps = _has_time_limit(self._environment)

    def reset(self, seed: int) -> StepResult:
        """Raises EpisodeError where the answer breaks the contract."""
        answer = self._environment.reset(seed=seed)
        if not isinstance(answer, tuple) or len(answer) != 2:
            old = f". {_OLD_RESET}" if isinstance(answer, str) else ""
            raise EpisodeError(f"reset() has to return (observation, info), not {_shortened(answer)}{old}")
        return self._result(answer[0], 0.0, False, False, answer[1])

    def step(self, action: str) -> StepResult:
        """Raises EpisodeError where the answer breaks the contract."""
        try:
            answer = self._environment.step(action)
        except ValueError as error:  # of a wrapper of Gymnasium's, which took an answer apart
            unpacking = "not enough values to unpack (expected 5, got 4)" in str(error)
            if unpacking and is_raised_in(_GYMNASIUM, error):
                raise EpisodeError(f"step() has to return {_STEP_VALUES}. {_OLD_STEP}") from error
            raise
        if not isinstance(answer, tuple) or len(answer) != 5:
            old = f". {_OLD_STEP}" if isinstance(answer, tuple) and len(answer) == 4 else ""
            raise EpisodeError(f"step() has to return {_STEP_VALUES}, not {_shortened(answer)}{old}")
        return self._result(*answer)

    def close(self) -> None:
        close = getattr(self._environment, "close", None)
        if close is not None:
            close()

    def _result(self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any) -> StepResult:
        if not isinstance(observation, str):
            raise EpisodeError(f"the observation has to be a str, not {_shortened(observation)}")
        if not isinstance(info, Mapping):
            raise EpisodeError(f"info has to be a dict, not {_shortened(info)}")
        state = game_state(info if not self._counts_steps else {**info, "key": ""})
        return StepResult(
            observation=observation,
            reward=_number("the reward", reward),
            terminated=_flag("terminated", terminated),
            truncated=_flag("truncated", truncated),
            state=state,
        )


class LocalEnvironments:
    """Episodes side by side in this process: for environments that do not hang, crash or leak."""

    def __init__(self, settings: EnvironmentSettings, prompts: Sequence[str] = ()) -> None:
        self._settings = settings
        self._prompts = tuple(prompts)
        self._games: list[Game] = []
        self._seeds: tuple[int, ...] = ()
        self._steps = 0
        self._seconds = 0.0

    def reset(self, seeds: Sequence[int]) -> list[StepResult]:
        """See `interfaces.Environments`."""
        start = time.perf_counter()
        self._seeds = tuple(seeds)
        while len(self._games) < len(seeds):
            self._games.append(Game(self._settings, self._prompts))
        results = [self._answer(slot, "reset") for slot in range(len(seeds))]
        self._seconds += time.perf_counter() - start
        return results

    def step(self, actions: Mapping[int, str]) -> dict[int, StepResult]:
        """See `interfaces.Environments`."""
        start = time.perf_counter()
        results = {slot: self._answer(slot, "step", action) for slot, action in actions.items()}
        self._steps += len(actions)
        self._seconds += time.perf_counter() - start
        return results

    def counts(self) -> Mapping[str, float]:
        """env/steps and env/wait_seconds since the last call."""
        counted = {"env/steps": float(self._steps), "env/wait_seconds": self._seconds}
        self._steps, self._seconds = 0, 0.0
        return counted

    def close(self) -> None:
        """Closes the environments; may be called twice."""
        while self._games:
            self._games.pop().close()

    def _answer(self, slot: int, method: str, action: str = "") -> StepResult:
        game = self._games[slot]
        try:
            return game.step(action) if method == "step" else game.reset(self._seeds[slot])
        except Exception as error:
            asked = f"{method} of seed {self._seeds[slot]}" + (f", action {action!r}" if method == "step" else "")
            raise EpisodeError(f"environment `{self._settings.name}`, {asked}: {described_error(error)}") from error


def described_error(error: Exception) -> str:
    """The message alone of an error that the user can act on; of any other its type, message and place."""
    if isinstance(error, UserError):
        return str(error)
    place = location_of(error)
    return f"it raised {type(error).__name__}: {error}" + (f" (at {place})" if place else "")


def difference(before: StepResult, now: StepResult) -> str:
    """The first thing shown that is not the same, as `the observation 'A', and then 'B'`; empty where all is."""
    for name in ("observation", "reward", "terminated", "truncated"):
        if getattr(before, name) != getattr(now, name):
            return f"the {name} {getattr(before, name)!r}, and then {getattr(now, name)!r}"
    if before.state.commands != now.state.commands:
        return f"the commands {before.state.commands!r}, and then {now.state.commands!r}"
    return ""


def game_state(info: Mapping[str, Any]) -> GameState:
    """The keys of `info` that are fields of `GameState`; missing ones take their defaults, others mean nothing here.

    Raises EpisodeError that names the key whose value is not of its type, or a command that is listed twice.
    """
    default = GameState()
    commands = _texts("commands", info.get("commands", ()))
    if len(set(commands)) < len(commands):
        twice = next(command for command in commands if commands.count(command) > 1)
        raise EpisodeError(f"info key `commands` lists {twice!r} twice")
    return GameState(
        commands=commands,
        score=_number("info key `score`", info.get("score", default.score)),
        max_score=_number("info key `max_score`", info.get("max_score", default.max_score)),
        won=_flag("info key `won`", info.get("won", default.won)),
        lost=_flag("info key `lost`", info.get("lost", default.lost)),
        valid=_flag("info key `valid`", info.get("valid", default.valid)),
        objective=_text("objective", info.get("objective", default.objective)),
        solution=_texts("solution", info.get("solution", ())),
        key=_text("key", info.get("key", default.key)),
    )


def _number(title: str, value: Any) -> float:
    if not isinstance(value, Real | np.number) or isinstance(value, bool) or not math.isfinite(value):
        raise EpisodeError(f"{title} has to be a finite number, not {_shortened(value)}")
    return float(value)


def _flag(title: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise EpisodeError(f"{title} has to be True or False, not {_shortened(value)}")
    return bool(value)


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise EpisodeError(f"info key `{key}` has to be a str, not {_shortened(value)}")
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise EpisodeError(f"info key `{key}` has to be a sequence of str, not {_shortened(value)}")
    return tuple(value)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _has_time_limit(environment: Any) -> bool:
    """Whether a wrapper ends episodes by their number of steps, which the environment's own `key` cannot know of."""
    while isinstance(environment, gymnasium.Wrapper):
        if isinstance(environment, gymnasium.wrappers.TimeLimit):
            return True
        environment = environment.env
    return False


def _parameters(creator: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return named_parameters(signature_of(creator).parameters.values())


def _config_keys() -> list[str]:
    """Keys of a config's section `environment` that are no parameters: what a mistyped one may have meant."""
    from rayrlhf.config import EnvironmentConfig  # not needed, and slow to import, where nothing is wrong

    return list(EnvironmentConfig.model_fields)
