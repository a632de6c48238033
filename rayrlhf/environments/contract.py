"""What every environment has to do, as checks of one by its name: `assert_environment("my_games:Dungeon", rooms=3)`.

`rayrlhf envs test NAME` prints them; the tests of an environment of one's own call them. A scripted policy plays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any
from zlib import crc32

from rayrlhf.child_process import ChildProcess
from rayrlhf.environments import EnvironmentSettings, check_environment, difference, takes_prompts
from rayrlhf.environments.pool import ProcessEnvironments
from rayrlhf.environments.private_folder import PrivateFolder
from rayrlhf.environments.probe import ODD_ACTIONS, PROBES
from rayrlhf.plugin_contract import CheckResult, ContractError, checked
from rayrlhf.types import StepResult

EXAMPLE_PROMPTS = ("Once upon a time", "The quick brown fox")
"""Given to environments that take prompts."""

_PLAIN_ACTIONS = ("look", "go north", "inventory", "go south", "take lamp", "wait")
_TURNS = 20
_STATES = 4  # whose commands are all tried
_STEPS_A_PROBE = 10  # a probe may take as long as so many steps at their limit

Episode = list[tuple[str, StepResult]]
"""(action, what it led to); the first action is empty: the reset."""


def check_contract(name: str, timeout_s: float = 20.0, /, **parameters: Any) -> list[CheckResult]:
    """Runs every check on the environment `name` with these parameters.

    timeout_s: how long one step or reset may take, in seconds; it is played in a process that is killed then.

    Raises EpisodeError where the environment cannot be found or is given wrong parameters; all that goes wrong later is
    in the results, which end with the first one where no episode can begin.
    """
    settings = EnvironmentSettings(name, parameters, step_timeout_s=timeout_s, max_retries=0)
    prompts = EXAMPLE_PROMPTS if takes_prompts(name) else ()
    check_environment(settings, prompts)
    with ProcessEnvironments(settings, prompts, memo_entries=0) as environments:
        contract = _Contract(settings, prompts, environments)
        begins = checked("an episode begins", contract.check_begins)
        if not begins.passed:
            return [begins]
        results = [
            checked("answers are of the right types", contract.check_types),
            checked("equal seeds and actions give equal episodes", contract.check_repeated),
            checked("... in another process too", contract.check_fresh_process),
            checked("commands are understood", contract.check_commands),
            checked("solutions win", contract.check_solution),
            checked("equal keys give equal steps", contract.check_keys),
        ]
        for title, action in ODD_ACTIONS.items():
            results.append(checked(f"any action: {title}", partial(contract.check_action, action)))
    with _Prober(settings, prompts) as prober:
        return results + [checked(title, partial(prober.probe, title)) for title in PROBES]


def assert_environment(name: str, timeout_s: float = 20.0, /, **parameters: Any) -> None:
    """`check_contract` for a test of one's own: raises AssertionError with a line for each check that failed."""
    failed = [result for result in check_contract(name, timeout_s, **parameters) if not result.passed]
    assert not failed, "\n".join(f"{name}: {result.name}: {result.detail}" for result in failed)


class _Contract:
    def __init__(
        self, settings: EnvironmentSettings, prompts: Sequence[str], environments: ProcessEnvironments
    ) -> None:
        self._settings = settings
        self._prompts = prompts
        self._environments = environments

    def check_begins(self) -> None:
        """One that cannot be started, or whose first step fails, would fail every other check by the same line."""
        (start,) = self._environments.reset([0])
        if not (start.terminated or start.truncated):
            self._environments.step({0: scripted_action(0, 0, start)})

    def check_types(self) -> str:
        episodes = play(self._environments, [0, 1, 2, 3], [0, 1, 2, 3])
        return f"{len(episodes)} episodes, {sum(len(episode) - 1 for episode in episodes)} steps"

    def check_repeated(self) -> None:
        """Side by side with the same, and with others, and again after these."""
        first, beside, _, _ = play(self._environments, [0, 0, 0, 1], [0, 0, 1, 2])
        _compare(first, beside, "side by side")
        (again,) = play(self._environments, [0], [0])
        _compare(first, again, "played again after others")

    def check_fresh_process(self) -> None:
        """Another process has another seed for string hashes, so the order of a set shows."""
        first = play(self._environments, [0, 1], [0, 1])
        with ProcessEnvironments(self._settings, self._prompts, memo_entries=0) as others:
            for here, there in zip(first, play(others, [0, 1], [0, 1]), strict=True):
                _compare(here, there, "in another process")

    def check_commands(self) -> str:
        (episode,) = play(self._environments, [0], [0])
        tried = 0
        for turn, (_, state) in enumerate(episode[:_STATES]):
            commands = () if state.terminated or state.truncated else state.state.commands
            if commands:
                self._environments.reset([0] * len(commands))
                for action, _ in episode[1 : turn + 1]:
                    self._environments.step(dict.fromkeys(range(len(commands)), action))
                answers = self._environments.step(dict(enumerate(commands)))
                refused = [commands[slot] for slot, answer in answers.items() if not answer.state.valid]
                if refused:
                    raise ContractError(
                        f"the game does not understand {refused[0]!r}, which its info key `commands` names "
                        f"(seed 0, after {turn} steps): leave it out."
                    )
            tried += len(commands)
        return f"{tried} tried" if tried else "it names none: the policy writes freely"

    def check_solution(self) -> str:
        (now,) = self._environments.reset([0])
        solution = now.state.solution
        if not solution:
            return "it names none"
        for command in solution:
            now = self._environments.step({0: command})[0]
            if now.terminated or now.truncated:
                break
        if not now.state.won:
            raise ContractError(
                f"the game of seed 0 is not won (info key `won`) by the {len(solution)} commands of its info key "
                f"`solution`: {', '.join(solution)}"
            )
        return f"{len(solution)} commands"

    def check_keys(self) -> str:
        """Several random walks through the same games come by the same states."""
        seen: dict[tuple[str, str], StepResult] = {}
        repeated = 0
        for episode in play(self._environments, [0] * 6 + [1] * 6, list(range(12)), wild=True):
            for (_, before), (action, after) in pairwise(episode):
                key = before.state.key
                if not key or after.truncated:
                    continue
                known = seen.setdefault((key, action), after)
                repeated += known is not after
                changed = difference(known, after)
                if changed:
                    raise ContractError(
                        f"the state of key {key!r} answered {action!r} with {changed}: put into the key all that the "
                        "game's next answers depend on, or give no key."
                    )
        return f"{repeated} of {len(seen) + repeated} steps seen before" if seen else "it names none"

    def check_action(self, action: str) -> None:
        self._environments.reset([0])
        answer = self._environments.step({0: action})[0]
        if not (answer.terminated or answer.truncated):
            self._environments.step({0: scripted_action(0, 1, answer)})


def play(
    environments: ProcessEnvironments, seeds: Sequence[int], streams: Sequence[int], wild: bool = False
) -> list[Episode]:
    """One episode for each seed, of at most 20 turns; equal streams of the scripted policy choose alike.

    wild: it also writes what is no command of the game.
    """
    episodes: list[Episode] = [[("", start)] for start in environments.reset(seeds)]
    for turn in range(_TURNS):
        actions = {
            slot: scripted_action(streams[slot], turn, episode[-1][1], wild)
            for slot, episode in enumerate(episodes)
            if not (episode[-1][1].terminated or episode[-1][1].truncated)
        }
        if not actions:
            break
        for slot, answer in environments.step(actions).items():
            episodes[slot].append((actions[slot], answer))
    return episodes


def scripted_action(stream: int, turn: int, now: StepResult, wild: bool = False) -> str:
    """One of the game's commands, or (`wild`, or where it names none) of some that many games know.

    Which one follows from stream and turn alone.
    """
    choices = (*now.state.commands, *_PLAIN_ACTIONS) if wild or not now.state.commands else now.state.commands
    return choices[crc32(f"{stream}/{turn}".encode()) % len(choices)]


def _compare(one: Episode, other: Episode, how: str) -> None:
    for turn, ((action, left), (_, right)) in enumerate(zip(one, other, strict=False)):
        changed = difference(left, right)
        if changed:
            raise ContractError(
                f"{how}, {f'step {turn} ({action!r})' if turn else 'the reset'} of the same seed gives {changed}. Take "
                "all chance from the seed of reset(), and keep nothing from one episode to the next."
            )


class _Prober:
    """The process of `environment_probe`; one that did not answer is replaced by the next probe."""

    def __init__(self, settings: EnvironmentSettings, prompts: Sequence[str]) -> None:
        self._limit_s = _STEPS_A_PROBE * settings.step_timeout_s
        self._folder = PrivateFolder("games")
        self._request = (settings, tuple(prompts), str(self._folder.path))
        self._child: ChildProcess | None = None

    def __enter__(self) -> _Prober:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._folder.close()

    def probe(self, title: str) -> str:
        """Runs one of `PROBES`; returns its remark."""
        if self._child is None:
            with open(os.devnull, "wb") as nowhere:
                self._child = ChildProcess("rayrlhf.environments.probe", nowhere.fileno())
            self._child.channel.send(self._request)
        try:
            self._child.channel.send(title)
            passed, detail = self._child.channel.receive(time.monotonic() + self._limit_s)
        except TimeoutError:
            place = self._child.place_of_hang()
            self._stop()
            raise ContractError(f"it took longer than {self._limit_s:g} s{place} and was stopped.") from None
        except (EOFError, OSError):
            death = self._child.death()
            self._stop()
            raise ContractError(f"it ended its process: {death}") from None
        if not passed:
            raise ContractError(detail)
        return str(detail)

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None
