"""Rating in the terminal: lines of a pipe, single keys of a pseudo-terminal, players, the key r (SPEC GWERN-1, -2)."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from rayrlhf.preferences.check_config import ChecksConfig
from rayrlhf.preferences.presenters import load_presenter
from rayrlhf.preferences.rating_session import RatingSession
from rayrlhf.preferences.rating_terminal import TerminalRating, summary
from rayrlhf.preferences.records import Item
from rayrlhf.preferences.store import RatingStore
from rayrlhf.preferences.terminal_keys import LineKeys
from tests.rating_parts import session_of, store_of

COUNTDOWN = r"\r +\d+ s "  # it waits for a key; those pressed before are thrown away
COMMAND = (sys.executable, "-m", "rayrlhf", "rate", "--terminal", "--rater", "Ann", "--seed", "1")


def rate(
    session: RatingSession, lines: str, width: int = 80, player: Sequence[str] = (), seconds: float = 10.0,
    presenter: str = "text", folder: Path = Path(),
) -> str:  # fmt: skip
    """What a rater sees who types these lines."""
    console = Console(file=io.StringIO(), width=width)
    keys = LineKeys(io.StringIO(lines))
    shown = load_presenter(presenter, folder)
    TerminalRating(session, shown, "Which is better?", "Ann", console, keys, player, seconds).run()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_keys_line_by_line(tmp_path: Path) -> None:
    """GWERN-1: 1, 2, 3, b, Enter and s skip, u, ?; x ends at once, and what comes after it is not read."""
    store = store_of(tmp_path, [f"text {number}" for number in range(8)])
    session = session_of(store)
    output = rate(session, "1\n2\n3\nB\n\ns\nu\n?\nz\n1\nx\n2\n")
    assert [record.best for record in store.comparisons()] == [0, 1, "tie", "both_bad", 0]
    assert len(store.skips()) == 1
    assert "taken back:" in output
    assert "'z' is no key here" in output
    assert output.count("stop; the checks decide") == 2
    assert len(re.findall(r"pair \d+: items \d+ and \d+ ", output)) == 9


def test_the_end_of_the_input_ends_the_rating(tmp_path: Path) -> None:
    store = store_of(tmp_path, ["one", "two", "three"])
    rate(session_of(store), "1\n2")
    assert [record.best for record in store.comparisons()] == [0, 1]
    assert "nothing left to ask" in rate(session_of(store), "1\n1\n")
    assert len(store.comparisons()) == 3
    assert "last pair of this sitting" in rate(session_of(store_of(tmp_path / "2", ["a", "b", "c"]), limit=1), "1\n1\n")


def test_items_are_named_by_their_place_and_shown_in_full(tmp_path: Path) -> None:
    """GWERN-1, GWERN-2: the index, the prefix once, line breaks; beside each other where there is room."""
    store = store_of(tmp_path, ["first\nsecond line", "other"], prompt="Once upon")
    narrow = rate(session_of(store), "")
    assert "items 1 and 2" in narrow or "items 2 and 1" in narrow
    assert narrow.count("Once upon") == 1
    assert re.search(r"│ first +│\n│ second line +│", narrow)
    wide = rate(session_of(store), "", width=120)
    assert any("first" in line and "other" in line for line in wide.splitlines())


def test_no_escape_sequence_reaches_the_terminal(tmp_path: Path) -> None:
    hostile = "\x1b]0;title\x07\x1b[2J[bold]red[/bold]\x9b31m\ud800\u202e"
    store = store_of(tmp_path, [hostile, hostile + "2"], prompt=hostile)
    output = rate(session_of(store), "\x1b\nx\n")
    assert not {"\x1b", "\x07", "\x9b", "\ud800", "\u202e"} & set(output)
    assert output.count("[bold]red[/bold]") == 3


def test_r_lets_the_checks_decide_the_rest(tmp_path: Path) -> None:
    """GWERN-1, GWERN-7: one pair by hand, then of 2 more those that the checks can decide; the others are left out."""
    store = store_of(tmp_path, ["good 1", "good 2", "bad 1"])
    checks = ChecksConfig(blacklist=("bad",))
    output = rate(session_of(store, checks=checks, broken="show", limit=3), "r\n1\n")
    assert "the checks decided 2 pairs; 1 need a person" in output
    assert [record.source for record in store.comparisons()] == ["auto", "auto"]


def test_a_player_gets_the_texts_on_its_input(tmp_path: Path) -> None:
    """GWERN-2: a command such as a player, no shell; p plays again; what it writes is shown without its controls."""
    store = store_of(tmp_path, ["$(touch hacked)", "`touch hacked`"])
    player = (sys.executable, "-S", "-c", "import sys; print('\\x1b[2Jheard', sys.stdin.read()[::-1])")
    output = rate(session_of(store), "p\nx\n", player=player)
    assert output.count("heard )dekcah hcuot($") == output.count("heard `dekcah hcuot`") == 2
    assert "\x1b" not in output
    assert not Path("hacked").exists()
    assert "'p' is no key here" in rate(session_of(store), "p\nx\n")


def test_a_player_is_stopped_after_its_time(tmp_path: Path) -> None:
    """GWERN-2: the time limit, 10 s unless set; and one that fails is named."""
    store = store_of(tmp_path, ["one", "two"])
    assert "playing 2" in rate(session_of(store), "x\n", player=("sleep", "3600"), seconds=0.2)
    assert "the player ended with status 1" in rate(session_of(store), "x\n", player=("false",))


def test_a_player_gets_the_bytes_of_a_sound(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\xff\x00")
    store = store_of(tmp_path, [])
    store.add_items([Item("", "one", extra={"audio": "a.wav"}), Item("", "two", extra={"audio": "../a.wav"})])
    player = (sys.executable, "-S", "-c", "import sys; print(sys.stdin.buffer.read())")
    output = rate(session_of(store), "x\n", player=player, presenter="audio", folder=tmp_path, width=200)
    assert "sound: a.wav" in output
    assert r"b'RIFF\xff\x00'" in output
    assert "not inside the project's folder" in output
    assert output.count("playing") == 1


def test_the_summary_counts_and_says_how_far_one_agrees(tmp_path: Path) -> None:
    store = store_of(tmp_path, [f"text {number}" for number in range(8)])
    session = session_of(store, repeats=1, repeat_after=1)
    rate(session, "1\n3\n2\nx\n")
    text = summary(session.progress("Ann"))
    assert text.startswith("3 in this sitting, 3 comparisons by you in all, 3 by everybody.")
    assert "you agreed with yourself on 1 of 1 (95 % interval 21% to 100%)" in text


@contextmanager
def terminal(folder: Path) -> Iterator[tuple[int, int]]:
    """`rayrlhf rate --terminal` on a terminal of its own: process id and the terminal's other end."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execv(sys.executable, [*COMMAND, str(folder)])
    try:
        yield pid, descriptor
    finally:
        os.close(descriptor)
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def read_until(descriptor: int, sought: str, seconds: float = 60.0) -> str:
    """What the terminal shows until the regular expression `sought` matches, or to its end where that is ''."""
    seen = b""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            seen += os.read(descriptor, 4096)
        except OSError:  # the process has closed its end
            break
        if sought and re.search(sought.encode(), seen):
            break
    assert re.search(sought.encode(), seen), seen.decode(errors="replace")
    return seen.decode(errors="replace")


def test_one_key_a_verdict_on_a_terminal_and_none_is_lost(tmp_path: Path) -> None:
    """GWERN-1: no Enter; what was judged survives kill -9 right after the next pair has come; the next sitting resumes."""
    store_of(tmp_path, [f"text {number}" for number in range(8)]).close()
    with terminal(tmp_path) as (pid, descriptor):
        read_until(descriptor, COUNTDOWN)
        for number, key in enumerate(("1", "2", "\x1b[A3", "b"), start=2):
            os.write(descriptor, key.encode())
            read_until(descriptor, f"pair {number}")
            read_until(descriptor, COUNTDOWN)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with RatingStore(tmp_path / "ratings.sqlite") as store:
        assert [record.best for record in store.comparisons()] == [0, 1, "tie", "both_bad"]
    with terminal(tmp_path) as (_, descriptor):
        read_until(descriptor, "pair 5")
        read_until(descriptor, COUNTDOWN)
        os.write(descriptor, b"\r")  # Enter skips
        read_until(descriptor, COUNTDOWN)
        os.write(descriptor, b"\x03")  # Ctrl-C ends it in peace
        assert "1 in this sitting, 4 comparisons by you in all" in read_until(descriptor, "")


def test_the_command_with_its_input_from_a_pipe(tmp_path: Path) -> None:
    store_of(tmp_path, [f"text {number}" for number in range(8)]).close()
    done = subprocess.run([*COMMAND, str(tmp_path)], input="1\n\n2\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "3 in this sitting, 2 comparisons by you in all, 2 by everybody." in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no project of preferences is there"),
        (["--seconds", "inf"], "a time box is a number of seconds"),
        (["--presenter", "txt"], "no presenter is named `txt`"),
        (["--rater", " "], "a name has 1 to 80 characters"),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, arguments: list[str], message: str) -> None:
    from typer.testing import CliRunner

    from rayrlhf.cli import app

    result = CliRunner().invoke(app, ["rate", str(tmp_path), "--terminal", *arguments])
    assert message in str(result.exception)
