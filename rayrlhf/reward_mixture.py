"""A weighted sum of named rewards, computed in this process: builds the parts, calls them, checks what they return.

`RewardProcess` does the same in a child process that can be killed; runs use that one.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rayrlhf import plugins
from rayrlhf.error_location import location_of
from rayrlhf.errors import RewardError
from rayrlhf.interfaces import Reward
from rayrlhf.reward_parameters import check_parameters, described, parameters_of
from rayrlhf.types import EpisodeScore, Trajectory

if TYPE_CHECKING:
    from rayrlhf.config import RewardPart

_LARGEST = float(np.finfo(np.float32).max)

PartValues = list[float] | float
"""One episode's checked value: a float for the episode, or one a turn."""

Watch = Callable[[str, bool], None]
"""Called with a part's key as its code starts (True) and stops (False) to run."""


class RewardMixture:
    """Scores episodes by the weighted sum of its parts."""

    def __init__(self, parts: Sequence[RewardPart], watch: Watch = lambda key, running: None) -> None:
        """Loads every part and checks its parameters; raises RewardError for the first that cannot be used."""
        self.keys = part_keys(parts)
        self._weights = [part.weight for part in parts]
        self._watch = watch
        self._rewards: list[Reward] = []
        self._files: dict[str, str | None] = {}
        for key, part in zip(self.keys, parts, strict=True):
            watch(key, True)
            reward = build_reward(part.name, part.parameters)
            self._rewards.append(reward)
            self._files[key] = _source_file(reward.function if isinstance(reward, TextReward) else reward)
            watch(key, False)
        # One event loop for all batches: a client that a reward keeps open between them belongs to its loop.
        self._loop = asyncio.Runner()

    def score(self, trajectories: Sequence[Trajectory]) -> list[EpisodeScore]:
        """One score a trajectory, in order. Coroutines of several parts wait side by side.

        Raises RewardError where a part raises, or returns anything but one finite number an episode or a turn.
        """
        if not trajectories:
            return []
        values = self._values(trajectories)
        return [
            self._combined(index, trajectory, [values[key][index] for key in self.keys])
            for index, trajectory in enumerate(trajectories)
        ]

    def close(self) -> None:
        """Ends the event loop of asynchronous parts."""
        self._loop.close()

    def _values(self, trajectories: Sequence[Trajectory]) -> dict[str, list[PartValues]]:
        returned: dict[str, Any] = {}
        waiting: dict[str, Awaitable[Any]] = {}
        for key, reward in zip(self.keys, self._rewards, strict=True):
            with _Guard(key, self._files[key], self._watch):
                result: Any = reward(trajectories)
            if inspect.isawaitable(result):
                waiting[key] = result
            else:
                returned[key] = result
        if waiting:
            returned |= self._run(self._gathered(waiting))
        return {key: checked_values(key, returned[key], trajectories) for key in self.keys}

    def _run(self, gathered: Any) -> dict[str, Any]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._loop.run(gathered)
        with ThreadPoolExecutor(1) as thread:  # the caller's thread runs a loop of its own, as notebooks do
            return thread.submit(self._loop.run, gathered).result()

    async def _gathered(self, waiting: Mapping[str, Awaitable[Any]]) -> dict[str, Any]:
        async def finish(key: str, awaitable: Awaitable[Any]) -> Any:
            with _Guard(key, self._files[key], self._watch):
                return await awaitable

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {key: group.create_task(finish(key, awaitable)) for key, awaitable in waiting.items()}
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {key: task.result() for key, task in tasks.items()}

    def _combined(self, index: int, trajectory: Trajectory, values: Sequence[PartValues]) -> EpisodeScore:
        total = np.zeros(len(trajectory.turns))
        for weight, value in zip(self._weights, values, strict=True):
            if isinstance(value, float):
                total[-1] += weight * value
            else:
                total += weight * np.asarray(value)
        if not np.all(np.abs(total) <= _LARGEST):
            raise RewardError(f"the weighted sum of rewards of episode {index} is too large for a float: {total}.")
        parts = {
            key: value if isinstance(value, float) else sum(value) for key, value in zip(self.keys, values, strict=True)
        }
        return EpisodeScore(total=total.astype(np.float32), parts=parts)


class _Guard:
    """Says that a part's code runs, and turns what it raises into a RewardError that says where in the user's file."""

    def __init__(self, key: str, file: str | None, watch: Watch) -> None:
        self._key, self._file, self._watch = key, file, watch

    def __enter__(self) -> None:
        self._watch(self._key, True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, frames: object) -> None:
        self._watch(self._key, False)
        if isinstance(error, RewardError | KeyboardInterrupt | GeneratorExit) or error is None:
            return
        if isinstance(error, asyncio.CancelledError) and _cancelled_from_outside():
            return
        raise RewardError(f"reward `{self._key}` raised {_told(error, self._file)}") from error


def _cancelled_from_outside() -> bool:
    """Whether another part failed and this one is told to stop, rather than having cancelled itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _told(error: BaseException, file: str | None) -> str:
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    place = location_of(error, file)
    return f"{type(error).__name__}: {error}{f', at {place}' if place else ''}{notes}"


class TextReward:
    """A plain function of an episode's text as a reward: called once an episode with `Trajectory.text`."""

    def __init__(self, function: Callable[..., Any], parameters: Mapping[str, Any]) -> None:
        self.function = function
        self.parameters = dict(parameters)

    def __call__(self, trajectories: Sequence[Trajectory]) -> Any:
        if inspect.iscoroutinefunction(plugins.underlying(self.function)):
            return self._gathered(trajectories)
        return [self._value(index, trajectory.text) for index, trajectory in enumerate(trajectories)]

    def _value(self, index: int, text: str) -> Any:
        try:
            return self.function(text, **self.parameters)
        except Exception as error:
            error.add_note(f"episode {index}: {shortened(text)}")
            raise

    async def _gathered(self, trajectories: Sequence[Trajectory]) -> list[Any]:
        try:
            async with asyncio.TaskGroup() as group:
                calls = (self._awaited(index, trajectory.text) for index, trajectory in enumerate(trajectories))
                tasks = [group.create_task(call) for call in calls]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _awaited(self, index: int, text: str) -> Any:
        try:
            return await self.function(text, **self.parameters)
        except Exception as error:
            error.add_note(f"episode {index}: {shortened(text)}")
            raise
        except SystemExit as error:  # which would stop the event loop from inside a task
            raise RuntimeError(f"SystemExit: {error}") from error


def build_reward(name: str, parameters: Mapping[str, Any]) -> Reward:
    """The reward `name` with its parameters: an instance of its class, its plain function behind `TextReward`, or the
    instance that it is.

    Raises RewardError where it cannot be loaded, or where the parameters are not what it takes.
    """
    plugin = plugins.load("reward", name)
    check_parameters(name, plugin, parameters)
    if plugins.is_instance(plugin):
        return cast(Reward, plugin)
    if not inspect.isclass(plugins.underlying(plugin)):
        return TextReward(plugin, parameters)
    try:
        return cast(Reward, plugin(**parameters))
    except (Exception, SystemExit) as error:
        takes = f" Its parameters: {described(plugin)}." if parameters_of(plugin) else ""
        told = _told(error, _source_file(plugin))
        raise RewardError(f"reward `{name}` cannot be built with {dict(parameters)}: {told}.{takes}") from error


def part_keys(parts: Sequence[RewardPart]) -> tuple[str, ...]:
    """A name for each part's value in the log: its own, with its parameters where another part has the same one."""
    names = [plugins.canonical(part.name) for part in parts]
    keys: list[str] = []
    for name, part in zip(names, parts, strict=True):
        given = ",".join(f"{key}={value}" for key, value in part.parameters.items())
        key = f"{name}[{given}]" if names.count(name) > 1 and given else name
        earlier = sum(other == key or other.startswith(f"{key}#") for other in keys)
        keys.append(f"{key}#{earlier + 1}" if earlier else key)
    return tuple(keys)


def checked_values(key: str, returned: Any, trajectories: Sequence[Trajectory]) -> list[PartValues]:
    """What a reward returned as floats; raises RewardError that names reward, episode and value where it cannot be."""
    values = _as_list(returned)
    if values is None:
        raise RewardError(
            f"reward `{key}` returned {shortened(returned)} for {len(trajectories)} episodes: it has to return a list "
            "with one number, or one list of a number a turn, for each of them."
        )
    if len(values) != len(trajectories):
        raise RewardError(f"reward `{key}` returned {len(values)} values for {len(trajectories)} episodes.")
    return [_checked(key, index, value, len(trajectories[index].turns)) for index, value in enumerate(values)]


def _checked(key: str, index: int, value: Any, turns: int) -> PartValues:
    by_turn = _as_list(value)
    if by_turn is None:
        return _number(key, f"episode {index}", value)
    if len(by_turn) != turns:
        raise RewardError(
            f"reward `{key}` returned {len(by_turn)} numbers for episode {index}, which has {turns} "
            f"{'turn' if turns == 1 else 'turns'}: {shortened(by_turn)}."
        )
    return [_number(key, f"episode {index}, turn {turn}", one) for turn, one in enumerate(by_turn)]


def _as_list(value: Any) -> list[Any] | None:
    """A list of what a list, tuple, array or tensor holds; None for anything else, single numbers included."""
    if isinstance(value, list | tuple):
        return list(value)
    if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
        return list(value.tolist())
    return None


def _number(key: str, where: str, value: Any) -> float:
    """A finite float; True and False count 1 and 0, arrays and tensors of one number without a dimension count, too."""
    numeric = hasattr(value, "__float__") or hasattr(value, "__index__")
    if numeric and not isinstance(value, str | bytes | np.complexfloating):
        try:
            number = float(value)
        except (ValueError, TypeError, OverflowError):
            number = math.nan
        if abs(number) <= _LARGEST:
            return number
    raise RewardError(f"reward `{key}` returned {shortened(value)} for {where}: it has to be a finite number.")


def shortened(value: object, limit: int = 100) -> str:
    """`repr` of a value, cut to `limit` characters."""
    try:
        text = repr(value[: limit + 1] if isinstance(value, str | bytes) else value)
    except Exception:
        text = f"an object of {type(value)}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _source_file(plugin: Callable[..., Any]) -> str | None:
    """Where a class, a function, an instance's class or what a partial is of was written; None where nobody knows."""
    made_of = inspect.unwrap(plugins.underlying(plugin))
    known = inspect.isclass(made_of) or inspect.isroutine(made_of)
    try:
        return inspect.getsourcefile(made_of if known else type(made_of))
    except TypeError:
        return None
