"""Games in processes of their own: what fails is tried again and changes no result, and nothing is left behind.

Issue "Text games", part 2: "a frozen, crashed or leaking game costs its episode a retry, never the iteration".
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import psutil
import pytest

from rayrlhf.environments import EnvironmentSettings, LocalEnvironments
from rayrlhf.environments.memo import TransitionMemo
from rayrlhf.environments.pool import ProcessEnvironments
from rayrlhf.errors import EpisodeError
from rayrlhf.interfaces import Environments
from rayrlhf.types import GameState, StepResult

TIMEOUT_S = {"exit": 30.0, "raise": 30.0, "hang": 2.0}
"""What a step gets: no step that is merely slow, on a machine that is busy, is to be taken for one that hangs."""
WORDS = ("east", "west", "east", "east", "é\U0001f600", "\udc80\ud800", "", "\x00\\", "east")


def settings(
    name: str, /, step_timeout_s: float = 30.0, max_retries: int = 3, processes: int = 1, **parameters: Any
) -> EnvironmentSettings:
    return EnvironmentSettings(
        f"tests.faulty_games:{name}", parameters, "train", step_timeout_s, max_retries, processes
    )


def play(environments: Environments, seeds: Sequence[int], most_turns: int = 12) -> list[list[StepResult]]:
    """All results of one episode for each seed; which word comes when follows from the seed, place and turn alone."""
    episodes = [[result] for result in environments.reset(seeds)]
    for turn in range(most_turns):
        actions = {
            slot: WORDS[crc32(f"{slot % 5} {turn}".encode()) % len(WORDS)]
            for slot, episode in enumerate(episodes)
            if not episode[-1].terminated
        }
        if not actions:
            break
        for slot, result in environments.step(actions).items():
            episodes[slot].append(result)
    return episodes


def counts(environments: Environments) -> dict[str, float]:
    """The counters that do not depend on the machine's speed."""
    return {name.removeprefix("env/"): n for name, n in environments.counts().items() if name != "env/wait_seconds"}


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("keyed", [True, False])
def test_plays_as_in_this_process(processes: int, keyed: bool) -> None:
    """TW-1: B games side by side; memory on (`keyed`) and off give the same."""
    seeds = [4, 0, 1, 4, 4, 2, 0, 17]
    here = LocalEnvironments(settings("Corridor"))
    with ProcessEnvironments(settings("Corridor", processes=processes, keyed=keyed)) as there:
        for _ in range(2):
            expected, got = play(here, seeds), play(there, seeds)
            for left, right in zip(expected, got, strict=True):
                assert [shown(result) for result in left] == [shown(result) for result in right]
        assert (counts(there)["memo_hits"] > 0) == keyed
    assert any(episode[-1].terminated for episode in expected)


def shown(result: StepResult) -> tuple[Any, ...]:
    return result.observation, result.reward, result.terminated, result.state.commands, result.state.won


def test_faults_change_no_result_and_are_counted(tmp_path: Path) -> None:
    """Exit, hang or raise in one of 20 steps: 200 episodes, all there, as without faults; counts match the faults."""
    kinds = [*["raise"] * 18, *["exit"] * 5, "hang"]
    batches = [range(start, start + 40) for start in range(0, 200, 40)]
    with ProcessEnvironments(settings("Corridor", keyed=False)) as sound:
        expected = [play(sound, seeds) for seeds in batches]
    faulty = settings("Faulty", step_timeout_s=TIMEOUT_S["hang"], processes=2, folder=str(tmp_path), kinds=kinds)
    with ProcessEnvironments(faulty) as environments:
        got = [play(environments, seeds) for seeds in batches]
        counted = counts(environments)
    assert got == expected
    assert sum(len(batch) for batch in got) == 200
    steps = sum(len(episode) - 1 for batch in got for episode in batch)
    assert counted.pop("steps") == steps > 1_000
    injected = {f"retries_{kind}": float(len(list(tmp_path.glob(f"*.{kind}")))) for kind in ("exit", "hang", "raise")}
    assert counted == {"memo_hits": 0.0, **injected}
    assert min(injected.values()) >= 3
    assert 1 / 30 < sum(injected.values()) / (steps + 200) < 1 / 12


def test_faults_and_memory_together(tmp_path: Path) -> None:
    """A game that is behind because its steps were remembered catches up in another process, too."""
    seeds = [n % 3 for n in range(30)]
    with ProcessEnvironments(settings("Corridor"), memo_entries=0) as sound:
        expected = [play(sound, seeds), play(sound, seeds)]
    faulty = settings("Faulty", folder=str(tmp_path), kinds=["exit", "raise"], one_in=3, keyed=True)
    with ProcessEnvironments(faulty, memo_entries=20) as environments:
        assert [play(environments, seeds), play(environments, seeds)] == expected
        counted = counts(environments)
    assert counted["memo_hits"] > 100
    assert counted["retries_exit"] == len(list(tmp_path.glob("*.exit"))) > 0
    assert counted["retries_raise"] == len(list(tmp_path.glob("*.raise"))) > 0


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("exit", r"it ended its process: exit code 3\."),
        ("hang", r"it took longer than 2 s \(at tests/faulty_games\.py:\d+\) and was stopped\."),
        ("raise", r"it raised RuntimeError: the dragon ate the game \(at tests/faulty_games\.py:\d+\)"),
    ],
)
def test_what_fails_at_every_try_ends_with_its_cause(kind: str, cause: str) -> None:
    with ProcessEnvironments(settings("AlwaysFails", TIMEOUT_S[kind], 2, kind=kind)) as environments:
        environments.reset([5, 6])
        environments.step({1: "x"})
        asked = r"environment `tests\.faulty_games:AlwaysFails`, seed 6, step 2, action '\\ud800' "
        with pytest.raises(EpisodeError, match=rf"^{asked}failed 3 times, the last time: {cause}"):
            environments.step({1: "\ud800"})
        assert counts(environments)[f"retries_{kind}"] == 2
        assert [result.reward for result in environments.reset([1])] == [0.0]  # the next episodes can be played
        assert environments.step({0: "east"})[0].observation == "Room 2. On the wall: ''"


@pytest.mark.parametrize("kind", ["exit", "raise"])
def test_faults_on_the_way_back_do_not_use_up_a_steps_own_tries(kind: str, tmp_path: Path) -> None:
    """The second step fails once; the first, played again for it, three times: neither has failed four times."""
    unlucky = settings("Unlucky", max_retries=3, folder=str(tmp_path), kind=kind, fails_at=[2, 3, 4, 5])
    with ProcessEnvironments(unlucky) as environments:
        environments.reset([0])
        shown = [environments.step({0: "east"})[0].observation for _ in range(3)]
        assert shown == [f"Room {n}. On the wall: ''" for n in (1, 2, 3)]
        assert counts(environments)[f"retries_{kind}"] == 4


def test_a_step_that_was_answered_once_and_never_again_ends_the_batch(tmp_path: Path) -> None:
    unlucky = settings("Unlucky", max_retries=3, folder=str(tmp_path), kind="raise", fails_at=list(range(2, 99)))
    with ProcessEnvironments(unlucky) as environments:
        environments.reset([0])
        environments.step({0: "east"})
        with pytest.raises(
            EpisodeError, match=r"seed 0, step 1, action 'east' failed 7 times, the last time: it raised"
        ):
            environments.step({0: "east"})


def test_all_steps_of_a_batch_have_a_budget_of_retries_together(tmp_path: Path) -> None:
    """No step fails three times in a row on the way back, and yet the sixth is never reached."""
    ways_back = [6, 5, 4, 3, 2, 1, 4, 3, 5, 2, 4, 1, 5]  # the step that fails on each, so many steps after the last
    unlucky = settings(
        "Unlucky", max_retries=1, folder=str(tmp_path), kind="raise",
        fails_at=[sum(ways_back[: n + 1]) for n in range(len(ways_back))],
    )  # fmt: skip
    message = r"failed: it raised .* That is fault 8 in 7 resets and steps, of which each may be tried again 1 times"
    with ProcessEnvironments(unlucky) as environments:
        environments.reset([0])
        for _ in range(5):
            environments.step({0: "x"})
        with pytest.raises(EpisodeError, match=message):
            environments.step({0: "x"})


def walks(environments: Environments, seeds: Sequence[int]) -> list[list[StepResult]]:
    """All results of one episode for each seed, played to their ends."""
    episodes = [[result] for result in environments.reset(seeds)]
    while going := {slot: "on" for slot, episode in enumerate(episodes) if not episode[-1].terminated}:
        for slot, result in environments.step(going).items():
            episodes[slot].append(result)
    return episodes


@pytest.mark.parametrize(("kind", "length"), [("exit", 5), ("raise", 10), ("hang", 2)])
def test_faults_at_random_lose_no_batch_and_no_step(kind: str, length: int, tmp_path: Path) -> None:
    """One try of a step in 20 fails, the tries on the way back too: with 3 retries a step none is lost."""
    walk = {"folder": str(tmp_path), "length": length}
    with ProcessEnvironments(settings("AtTimes", kind="never", **walk)) as sound:
        expected = walks(sound, range(8))
    with ProcessEnvironments(settings("AtTimes", TIMEOUT_S[kind], kind=kind, **walk)) as environments:
        assert walks(environments, range(8)) == expected
        assert counts(environments)[f"retries_{kind}"] == len(list(tmp_path.glob(f"*.{kind}"))) > 0


def test_games_that_are_often_lost_together_are_spread_over_more_processes(tmp_path: Path) -> None:
    """Each loss splits its process; as many processes as were lost go on, and none too many after a quiet batch."""
    walk = settings("AtTimes", folder=str(tmp_path), kind="exit", length=4, one_in=8)
    with ProcessEnvironments(walk) as environments:
        walks(environments, range(8))
        lost = int(counts(environments)["retries_exit"])
        assert lost > 3
        assert 3 <= len(environments.pids) <= 8
    faulty = settings("Faulty", folder=str(tmp_path), kinds=["exit"], one_in=6)
    with ProcessEnvironments(faulty) as environments:
        play(environments, range(6))
        assert counts(environments)["retries_exit"] > 1
        play(environments, range(6))  # each of its faults comes once
        assert len(environments.pids) > 1
        play(environments, range(6))
        assert len(environments.pids) == 1


def test_what_a_lost_game_printed_is_told(tmp_path: Path) -> None:
    faulty = settings("Faulty", max_retries=0, folder=str(tmp_path), kinds=["exit"], one_in=1)
    with ProcessEnvironments(faulty) as environments, pytest.raises(EpisodeError, match=r"failed once: .*goodbye"):
        environments.reset([0])


def test_a_game_that_cannot_be_replayed_is_named() -> None:
    with ProcessEnvironments(settings("Forgetful"), memo_entries=0) as environments:
        environments.reset([3, 3])
        environments.step({0: "east"})
        os.kill(environments.pids[0], signal.SIGKILL)
        with pytest.raises(EpisodeError, match=r"seed 3.* not deterministic and cannot be replayed: .*\(2\).*\(1\)"):
            environments.step({1: "west"})


def test_a_key_that_leaves_something_out_is_named() -> None:
    """Equal keys have to mean equal steps: a remembered result that the real game would not have given is found."""
    with ProcessEnvironments(settings("WrongKey"), check_every=1) as environments:
        environments.reset([0, 0])
        environments.step({0: "a", 1: "b"})
        with pytest.raises(EpisodeError, match=r"not deterministic .*equal state keys .*'ax'.*'bx'"):
            environments.step({0: "x"}), environments.step({1: "x"}), environments.step({1: "y"})


def test_ends_by_number_of_steps_are_not_remembered() -> None:
    with ProcessEnvironments(settings("Truncates")) as environments:
        for _ in range(2):
            environments.reset([0, 0])
            environments.step({0: "a", 1: "a"})
            environments.step({0: "b", 1: "b"})
            ends = environments.step({0: "c", 1: "c"})
            assert [end.truncated for end in ends.values()] == [True, True]
        assert counts(environments)["memo_hits"] == 6  # of 12: neither the ends nor the first game's first two


def test_steps_after_the_end_are_refused() -> None:
    with ProcessEnvironments(settings("Corridor")) as environments:
        environments.reset([5])
        assert environments.step({0: "east"})[0].terminated
        with pytest.raises(EpisodeError, match=r"the episode of seed 5 is over: action 'east' comes after its end"):
            environments.step({0: "east"})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("bytes", r"the observation has to be a str, not b.Room"),
        ("nan", r"the reward has to be a finite number, not nan"),
        ("int flag", r"terminated has to be True or False, not 0"),
        ("four", r"step\(\) has to return \(observation, reward, terminated, truncated, info\), not \(.Room"),
        ("commands", r"info key `commands` has to be a sequence of str, not 'east'"),
        ("won", r"info key `won` has to be True or False, not 1"),
        ("twice", r"info key `commands` lists 'east' twice"),
        ("key", r"info key `key` has to be a str, not 3"),
    ],
)
def test_answers_that_break_the_contract_are_not_tried_again(what: str, message: str) -> None:
    with ProcessEnvironments(settings("Says", what=what)) as environments:
        environments.reset([1])
        with pytest.raises(EpisodeError, match=rf"seed 1, step 1, action 'east': {message}"):
            environments.step({0: "east"})
        assert sum(n for name, n in environments.counts().items() if "retries" in name) == 0


def test_games_play_in_a_folder_of_their_own_that_goes_with_them(tmp_path: Path) -> None:
    """TOOLCHAIN's fault 4: `save` in one game and `restore` in another must not meet over a file's name."""
    with ProcessEnvironments(settings("Writes", processes=2), memo_entries=0) as environments:
        environments.reset([0, 0])
        folders = {Path(result.observation) for result in environments.step({0: "x", 1: "y"}).values()}
        assert len(folders) == 2
        assert all((folder / "saved.qzl").exists() for folder in folders)
        assert not folders & {Path.cwd(), Path(tempfile.gettempdir())}
    assert not any(folder.exists() for folder in folders)


def test_processes_descriptors_and_folders_are_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed environments leave nothing; replaced processes neither, whether they died or were recycled."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # nobody else's folders are in it
    me = psutil.Process()
    mine = set(me.children())
    roots = tmp_path / f"rayrlhf-games-{os.getuid()}"

    def use() -> None:
        with ProcessEnvironments(settings("Corridor", processes=2, keyed=False), recycle_after=4) as environments:
            pids = set(environments.pids)
            for _ in range(4):
                play(environments, [1, 2, 3, 4])
                os.kill(environments.pids[0], signal.SIGKILL)
            assert len(set(environments.pids) | pids) > 2
            environments.close()
        environments.close()

    use()
    gc.collect()
    descriptors, threads = me.num_fds(), threading.active_count()
    use()
    gc.collect()
    assert (me.num_fds(), threading.active_count()) == (descriptors, threads)
    assert [child for child in me.children() if child not in mine] == []
    assert roots.is_dir()
    assert list(roots.iterdir()) == []


def test_processes_are_recycled_after_so_many_episodes_or_megabytes() -> None:
    with ProcessEnvironments(settings("Corridor", keyed=False), recycle_after=6) as environments:
        pids = [(play(environments, [0, 1, 2], 1), environments.pids[0])[1] for _ in range(4)]
        assert pids[0] == pids[1] != pids[2] == pids[3]
    with ProcessEnvironments(settings("Corridor", keyed=False), recycle_growth_mb=20) as environments:
        play(environments, [0], 1)
        environments.reset([0])
        environments.step({0: "x" * (40 << 20)})  # the wall is kept in the game
        pid = environments.pids[0]
        assert environments.reset([1])[0].observation == "Room 1. On the wall: ''"
        assert environments.pids[0] != pid


def test_a_killed_run_leaves_no_process_and_the_next_one_removes_its_folder() -> None:
    code = (
        "import os, signal\n"
        "from tests.test_environment_pool import *\n"
        "environments = ProcessEnvironments(settings('Writes', keyed=False))\n"
        "environments.reset([0])\n"
        "print(environments.pids[0], environments.step({0: 'x'})[0].observation, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
    pid, _, folder = printed.strip().partition(" ")
    assert wait_until(lambda: not psutil.pid_exists(int(pid)))
    with ProcessEnvironments(settings("Corridor")):
        assert not Path(folder).parents[1].exists()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_process_starts_without_torch_and_the_caller_never_sees_what_it_prints(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with ProcessEnvironments(settings("Faulty", folder=str(tmp_path), kinds=["raise"], one_in=1)) as environments:
        environments.reset([0])
        maps = Path(f"/proc/{environments.pids[0]}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()
    assert capfd.readouterr() == ("", "")


def result_of(text: str, key: str = "k") -> StepResult:
    return StepResult(text, 0.0, False, False, GameState(key=key))


def test_memory_is_bounded_and_forgets_what_was_not_asked_for_longest() -> None:
    memo = TransitionMemo(2)
    memo.put(1, result_of("one"))
    memo.put(("k", "east"), result_of("two"))
    assert memo.get(1) == result_of("one")
    memo.put(("k", "west"), result_of("three"))
    assert len(memo) == 2
    assert memo.get(("k", "east")) is None
    assert (memo.get(1), memo.get(("k", "west"))) == (result_of("one"), result_of("three"))


def test_memory_keeps_equal_texts_once() -> None:
    memo = TransitionMemo(100)
    first, second = "".join(["a long ", "text"]), "".join(["a long ", "text"])
    assert first is not second
    memo.put(("k", "east"), result_of(first))
    memo.put(("k", "west"), result_of(second))
    kept = [memo.get(("k", action)) for action in ("east", "west")]
    assert kept[0] is not None
    assert kept[1] is not None
    assert kept[0].observation is kept[1].observation


def test_a_bounded_memory_gives_the_same_results() -> None:
    seeds = [n % 4 for n in range(20)]
    with ProcessEnvironments(settings("Corridor"), memo_entries=0) as without:
        expected = play(without, seeds)
    for entries in (1, 10):
        with ProcessEnvironments(settings("Corridor"), memo_entries=entries) as environments:
            assert play(environments, seeds) == expected
