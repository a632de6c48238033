"""Environments by name (TW-1): what is found, what is refused and why, and the contract test that users run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rayrlhf.environments import (
    EnvironmentSettings,
    LocalEnvironments,
    check_environment,
    game_state,
    has_held_out_games,
    open_environments,
    takes_prompts,
)
from rayrlhf.environments import cli as envs_cli
from rayrlhf.environments.contract import assert_environment, check_contract
from rayrlhf.environments.pool import ProcessEnvironments
from rayrlhf.errors import EpisodeError
from rayrlhf.types import GameState, Split


def settings(name: str, split: Split = "train", **parameters: Any) -> EnvironmentSettings:
    return EnvironmentSettings(name, parameters, split)


def test_state_has_defaults_for_what_the_environment_does_not_say() -> None:
    assert game_state({}) == GameState()
    assert game_state({"prompt": 3, "other": object()}) == GameState()


def test_state_takes_all_its_fields() -> None:
    info = {
        "commands": ["east", "west"], "score": np.float32(2), "max_score": 3, "won": np.True_, "lost": False,
        "valid": False, "objective": "win", "solution": ("east",), "key": "\ud800",
    }  # fmt: skip
    state = game_state(info)
    assert state == GameState(("east", "west"), 2.0, 3.0, True, False, False, "win", ("east",), "\ud800")
    assert [type(value) for value in (state.score, state.max_score, state.won)] == [float, float, bool]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("commands", "east", "`commands` has to be a sequence of str, not 'east'"),
        ("commands", ["east", 1], r"`commands` has to be a sequence of str, not \['east', 1\]"),
        ("commands", {"east"}, "`commands` has to be a sequence of str"),
        ("commands", ["east", "west", "west"], "`commands` lists 'west' twice"),
        ("score", "3", "`score` has to be a finite number, not '3'"),
        ("score", True, "`score` has to be a finite number, not True"),
        ("max_score", float("inf"), "`max_score` has to be a finite number, not inf"),
        ("won", 1, "`won` has to be True or False, not 1"),
        ("lost", None, "`lost` has to be True or False, not None"),
        ("valid", "yes", "`valid` has to be True or False"),
        ("objective", None, "`objective` has to be a str, not None"),
        ("solution", "east", "`solution` has to be a sequence of str"),
        ("key", b"k", "`key` has to be a str"),
    ],
)
def test_state_of_a_wrong_type_is_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(EpisodeError, match=f"info key {message}"):
        game_state({key: value})


@pytest.mark.parametrize(
    "name", ["single_turn", "single-turn", "rayrlhf/SingleTurn-v0", "rayrlhf.envs:rayrlhf/SingleTurn-v0"]
)
def test_a_single_turn_is_played_in_this_process(name: str) -> None:
    """LMHP-30 as one environment among others."""
    environments = open_environments(settings(name), ["a", "b"])
    assert isinstance(environments, LocalEnvironments)
    assert {result.observation for result in environments.reset([0, 1])} == {"a", "b"}
    assert environments.step({1: "x"})[1].terminated
    counted = environments.counts()
    assert counted["env/steps"] == 1
    assert counted["env/wait_seconds"] > 0
    environments.close()


@pytest.mark.parametrize("name", ["tests.faulty_games:Corridor", "tests.faulty_games:Corridor-v0"])
def test_others_are_played_in_processes_by_class_or_gymnasium_id(name: str) -> None:
    """Any Gymnasium environment with text spaces works by its id, and any Unicode is text."""
    environments = open_environments(settings(name, keyed=False))
    assert isinstance(environments, ProcessEnvironments)
    with environments:
        assert environments.reset([2, 3])[1].observation == "Room 3. On the wall: ''"
        step = environments.step({1: "\U0001f600\udc80"})[1]
        assert step.observation == "Room 3. On the wall: '\U0001f600\\udc80'"
        assert step.state == GameState(("east", "west"), 0.0, 1.0, valid=False)


def test_gymnasiums_limit_on_steps_ends_episodes_remembered_or_not() -> None:
    """A wrapper counts the steps, which the game's key does not: these games are not remembered."""
    with ProcessEnvironments(settings("tests.faulty_games:ShortCorridor-v0")) as environments:
        for _ in range(2):
            environments.reset([0])
            ends = [environments.step({0: "west"})[0].truncated for _ in range(3)]
            assert ends == [False, False, True]
        assert environments.counts()["env/memo_hits"] == 0


def test_our_ids_are_registered_without_importing_their_environments() -> None:
    code = (
        "import gymnasium, sys; environment = gymnasium.make('rayrlhf.envs:rayrlhf/SingleTurn-v0', prompts=['a'])\n"
        "print(environment.reset(seed=0)[0], gymnasium.spec('rayrlhf/TextWorld-v0').entry_point, "
        "'rayrlhf.envs.textworld' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["a", "rayrlhf.envs.textworld:TextWorld", "False"]


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("single_turns", {}, r"no environment is named `single_turns`: did you mean `single_turn`\?"),
        ("rayrlhf/SingelTurn-v0", {}, r"is registered as `rayrlhf/SingelTurn-v0`: .*Did you mean: `SingleTurn`"),
        ("rayrlhf/SingleTurn-v7", {}, r"is registered as `rayrlhf/SingleTurn-v7`: .*v7"),
        ("no_such_module:Text-v0", {}, r"needs a module `no_such_module`"),
        ("tests.faulty_games:Coridor", {}, r"has no `Coridor`: did you mean `Corridor`\?"),
        ("tests.faulty_games:ROOMS", {}, r"is 7: it has to be a class, or a function that makes environments"),
        ("tests.faulty_games:SINGLE", {}, r"is an instance, .* name its class, or a function that makes one"),
        ("tests.faulty_games:make_corridor", {"kyed": True}, r"no parameter `kyed`: did you mean `keyed`\?"),
        (
            "tests.faulty_games:Corridor",
            {"keyd": 1},
            r"no parameter `keyd`: did you mean `keyed`\? Its parameters: keyed=True",
        ),
        ("tests.faulty_games:Corridor", {"max_turn": 9}, r"no parameter `max_turn`: did you mean `max_turns`\?"),
        ("tests.faulty_games:Corridor", {"keyed": "no"}, r"takes bool for `keyed`, not 'no'"),
        ("tests.faulty_games:Faulty", {"folder": "x"}, r"needs the parameter `kinds`"),
        ("tests.faulty_games:Corridor-v0", {"keyd": 1}, r"no parameter `keyd`: did you mean `keyed`\?"),
        ("textworld", {"levle": 3}, r"no parameter `levle`: did you mean `level`\?"),
    ],
)
def test_wrong_names_and_parameters_are_refused_before_anything_is_played(
    name: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(EpisodeError, match=message):
        open_environments(settings(name, **parameters))


def test_spaces_that_are_not_text_are_refused() -> None:
    with (
        ProcessEnvironments(settings("tests.faulty_games:NumberCorridor-v0")) as environments,
        pytest.raises(EpisodeError, match=r"observation_space Discrete\(2\): observations and actions have to be text"),
    ):
        environments.reset([0])


@pytest.mark.parametrize("name", ["make_corridor", "unkeyed"])
def test_a_function_that_makes_environments_is_as_good_as_a_class(name: str) -> None:
    """Also one with some of its parameters given, by `functools.partial`."""
    with ProcessEnvironments(settings(f"tests.faulty_games:{name}")) as environments:
        environments.reset([0])
        assert [environments.step({0: "west"})[0].truncated for _ in range(3)] == [False, False, True]
    assert_environment(f"tests.faulty_games:{name}", keyed=False)


def test_a_function_that_makes_no_environment_is_named() -> None:
    with (
        ProcessEnvironments(settings("tests.faulty_games:crc32_of")) as environments,
        pytest.raises(EpisodeError, match=r"it made 0, which has no `reset` and no `step`: name a class"),
    ):
        environments.reset([0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "OldStep",
            r"step\(\) has to return .*, not .{1,2}Room .*Four values, with one `done`, are the API .* return five",
        ),
        ("OldStep-v0", r"step\(\) has to return .*Four values, with one `done`, are the API .* return five"),
        ("OldReset", r"reset\(\) has to return \(observation, info\), not .{1,2}Room .* return `observation, info`"),
        ("OldSeed", r"its reset\(\) takes no `seed`.* write `def reset\(self, \*, seed=None, options=None\)`"),
    ],
)
def test_the_api_before_gymnasium_is_told_from_other_faults(name: str, message: str) -> None:
    checked = check_contract(f"tests.faulty_games:{name}")
    assert [result.passed for result in checked] == [False]
    assert re.search(message, checked[0].detail)


@pytest.mark.parametrize("name", ["Unpacks", "Unpacks-v0"])
def test_an_error_of_a_games_own_keeps_its_place(name: str) -> None:
    """It reads like that of Gymnasium's wrappers where a game returns four values."""
    checked = check_contract(f"tests.faulty_games:{name}")
    assert [result.passed for result in checked] == [False]
    assert re.search(r"raised ValueError: not enough values to unpack .*faulty_games\.py:\d+", checked[0].detail)


def test_prompts_and_split_go_to_those_who_take_them() -> None:
    taking = "tests.faulty_games:Taking"
    with ProcessEnvironments(settings(taking, "held_out", depth=2), ["a"]) as environments:
        assert environments.reset([0])[0].observation == "('a',) held_out 2"
    with ProcessEnvironments(settings(taking)) as environments:
        assert environments.reset([0])[0].observation == "('none',) train 1"
    assert (takes_prompts(taking), has_held_out_games(taking)) == (True, True)
    other = "tests.faulty_games:Corridor"
    assert (takes_prompts(other), has_held_out_games(other)) == (False, False)
    check_environment(settings(other), [""])  # no prompt is the run's default
    with pytest.raises(EpisodeError, match=r"takes no prompts: leave out environment\.prompts"):
        check_environment(settings(other), ["a"])
    with pytest.raises(EpisodeError, match="has no held-out games"):
        check_environment(settings(other, "held_out"))


def test_constructors_run_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path in a config means the same in a process whose games play in a folder of their own."""
    monkeypatch.setattr(sys, "path", [str(Path.cwd()), *sys.path])
    monkeypatch.chdir(tmp_path)
    with ProcessEnvironments(settings("tests.faulty_games:WhereBuilt")) as environments:
        assert environments.reset([0])[0].observation == str(tmp_path)


def test_errors_in_this_process_name_environment_seed_and_action() -> None:
    environments = LocalEnvironments(settings("tests.broken_environments:Raises"), ["a"])
    environments.reset([4])
    with pytest.raises(
        EpisodeError, match=r"seed 4, action 'x': it raised RuntimeError: the dragon .*broken_env.*:\d+"
    ):
        environments.step({0: "x"})


def test_sound_environments_pass_the_contract() -> None:
    assert_environment("tests.faulty_games:Corridor-v0")


def test_what_breaks_the_contract_is_told() -> None:
    results = check_contract("tests.faulty_games:Sloppy", 0.5)
    assert len(results) == 21
    found = {result.name: result.detail for result in results if not result.passed}
    expected = {
        "commands are understood": r"'sing', which its info key `commands` names \(seed 0, after 1 steps\): leave it out",
        "equal keys give equal steps": r"the state of key '\d' answered .*or give no key",
        "any action: a backslash first": r"longer than 0\.5 s \(at tests/faulty_games\.py:\d+\) and was stopped",
        "spaces contain any text": r"Text\(.*use `rayrlhf\.text_space\.TextSpace\(\)`",
        "steps after the end are refused": r"let it raise an error there",
        "close() works, also twice": r"OSError: the door is stuck",
    }
    assert set(expected) <= set(found)
    for check, message in expected.items():
        assert re.search(message, found[check])


@pytest.mark.parametrize("name", ["NumberCorridor-v0", "Says"])
def test_what_cannot_begin_is_told_once(name: str, run: Run) -> None:
    """Every other check would fail by the same sentence."""
    ended = run("test", f"tests.faulty_games:{name}", *(["what=nan"] if name == "Says" else []))
    lines = ended.output.splitlines()
    assert ended.exit_code == 1
    assert [line for line in lines if line.startswith(("FAIL", "pass"))] == lines[:1]
    assert lines[1:] == ["0 of 1 checks passed.", "Nothing else was checked: nothing can be as long as this is so."]


def test_chance_is_told() -> None:
    with pytest.raises(AssertionError, match=r"Forgetful: equal seeds and actions give .* the reset of the same seed"):
        assert_environment("tests.faulty_games:Forgetful")


Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(envs_cli.envs_app, list(arguments))


def test_command_lists_what_can_be_named(run: Run) -> None:
    printed = run("list").output
    assert "single_turn" in printed
    assert "textworld" in printed
    assert "module:Name" in printed


def test_command_shows_parameters_and_how_an_episode_begins(run: Run) -> None:
    shown = run("show", "tests.faulty_games:Taking", "depth=3").output
    assert "Takes what a run fills, and says it." in shown
    assert "    depth: 3\n" in shown
    assert "\nEpisode 0 begins:\n('Once upon a time', 'The quick brown fox') train 3\n\nCommands: east, west\n" in shown
    assert "split" not in shown.replace("says", "")
    assert "To see an episode begin, give folder=... kinds=..." in run("show", "tests.faulty_games:Faulty").output


def test_command_tests_with_an_exit_status(run: Run) -> None:
    good = run("test", "tests.faulty_games:Corridor", "keyed=false")
    assert (good.exit_code, good.output.count("pass  ")) == (0, 21)
    bad = run("test", "tests.faulty_games:Forgetful")
    assert bad.exit_code == 1
    assert "FAIL  equal seeds and actions give equal episodes: " in bad.output
    assert "of 21 checks passed." in bad.output
    assert isinstance(run("test", "single_turn", "prompts").exception, EpisodeError)


def test_command_times_batches(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs_cli, "_TIMED_FOR_S", 0.02)
    lines = run("time", "tests.faulty_games:Corridor").output.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "8", "32", "128"]
    assert all("steps/s" in line and "with memory" in line for line in lines)
