"""The person's own word, tables for spreadsheets, and files that somebody may have prepared."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayrlhf.config_loading import load_config
from rayrlhf.errors import RunFolderError, StorageError
from rayrlhf.files import append_to, check_plain, csv_table, fault_of_system, replace_file, storing
from rayrlhf.plugins import is_own
from rayrlhf.trust import Code, Trust, UntrustedCodeError, code_of_run, made_folder, remember, require_own_config


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\uff1d1"])
def test_a_text_that_spreadsheets_would_run_is_quoted(text: str) -> None:
    [[cell]] = csv.reader(io.StringIO(csv_table([[text]]).decode(), newline=""))
    assert cell == f"'{text}"


def test_a_text_begins_no_row_of_its_own() -> None:
    """A lone carriage return ends a line for many readers."""
    assert list(csv.reader(io.StringIO(csv_table([["a\r=1+1", 2], ["b\n=1", 3]]).decode(), newline=""))) == [
        ["a\r=1+1", "2"],
        ["b\n=1", "3"],
    ]


@pytest.mark.parametrize("value", [-1.5, "-0.5", "+1e-05", "-inf", 0.0, None, "plain", "a=b", ""])
def test_numbers_and_plain_texts_stay_as_they_are(value: object) -> None:
    [[cell, _]] = csv.reader(io.StringIO(csv_table([[value, 0]]).decode(), newline=""))
    assert cell == ("" if value is None else str(value))


@pytest.mark.parametrize(
    ("name", "own"),
    [("alliteration", True), ("letter-count", True), ("os:system", False), ("rayrlhf.rewards.length:Length", False),
     ("of_a_package", False), ("", False)],
)  # fmt: skip
def test_only_a_file_of_the_package_is_its_own_reward(name: str, own: bool) -> None:
    assert is_own("reward", name) is own


@pytest.mark.parametrize(
    ("name", "own"),
    [("textworld", True), ("rayrlhf/TextWorld-v0", True), ("x:rayrlhf/TextWorld-v0", False), ("CartPole-v1", False),
     ("games:Own", False)],
)  # fmt: skip
def test_only_a_file_of_the_package_is_its_own_environment(name: str, own: bool) -> None:
    assert is_own("environment", name) is own


def test_a_config_tells_what_it_would_run() -> None:
    config = load_config("alliteration", ["model.trust_remote_code=true", "reward=[alliteration, os:system]"])
    assert [code.key for code in code_of_run(config)] == ["model.trust_remote_code", "reward"]
    assert code_of_run(load_config("textworld-coin")) == []


def test_trust_is_of_the_folder_that_was_named_and_of_no_other(tmp_path: Path) -> None:
    (tmp_path / "run" / "alarms").mkdir(parents=True)
    (tmp_path / "runner").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "runner")
    trust = Trust.of([str(tmp_path / "run")])
    assert trust.covers(tmp_path / "run" / "alarms")
    assert not trust.covers(tmp_path / "runner")
    assert not trust.covers(tmp_path / "run" / "link")
    assert not Trust.of(None).covers(tmp_path / "run")
    assert Trust.of(["org/model"]).covers("org/model")
    assert not Trust.of(["org"]).covers("org/model")


def test_a_refusal_lists_the_code_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    code = [Code("reward", "os:system\x1b[31m")]
    with pytest.raises(UntrustedCodeError, match=r"(?s)reward: os:system\u241b.*Nothing was run.*--trust runs/x"):
        Trust().require("runs/x", code)
    Trust(("runs/x",)).require("runs/x", code)
    assert "this code runs" in capsys.readouterr().err


def test_a_persons_config_is_their_word_and_a_runs_config_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = tmp_path / "run"
    run.mkdir()
    own = tmp_path / "own.yaml"
    config = run / "config.yaml"
    for path in (own, config, run / "sessions.jsonl"):
        path.write_text("")
    code = [Code("reward", "my_rewards:Own")]
    assert made_folder(own) is None
    require_own_config(str(own), code, [], Trust())
    require_own_config("alliteration", code, [], Trust())
    with pytest.raises(UntrustedCodeError):
        require_own_config(str(config), code, ["iterations=3"], Trust())
    require_own_config(str(config), code, ["reward=my_rewards:Own"], Trust())
    require_own_config(str(config), code, [], Trust.of([str(run)]))
    remember(run, code)
    require_own_config(str(config), code, [], Trust())
    with pytest.raises(UntrustedCodeError):
        require_own_config(str(config), [*code, Code("environment", "other:Game")], [], Trust())
    run.rename(tmp_path / "moved")
    with pytest.raises(UntrustedCodeError):
        require_own_config(str(tmp_path / "moved" / "config.yaml"), code, [], Trust())


def test_nothing_is_written_through_what_is_no_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("before")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / ".page.new").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder"):
        with pytest.raises(RunFolderError, match=f"{name} is"):
            append_to(tmp_path / name)
    with pytest.raises(RunFolderError, match="is a link"):
        replace_file(tmp_path / "page", [b"x"])
    with pytest.raises(RunFolderError, match="is a folder"):
        replace_file(tmp_path / "folder", [b"x"])
    assert victim.read_text() == "before"
    assert not (tmp_path / ".folder.new").exists()


def test_a_place_where_nothing_may_be_written_is_named(tmp_path: Path) -> None:
    """Another person's run, a missing folder, a file where a folder belongs."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs").chmod(0o555)
    with _no_rights():
        for place in ("theirs/report.html", "missing/report.html", "file/report.html"):
            for write in (append_to, lambda path: replace_file(path, [b"x"])):
                with pytest.raises(RunFolderError, match=f"{place} cannot be written: .*; name another place"):
                    write(tmp_path / place)


@contextlib.contextmanager
def _no_rights() -> Iterator[None]:
    """As somebody who is not root, whom no mode of a folder stops."""
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)


def test_what_the_system_refuses_is_told_with_what_is_known_of_it() -> None:
    """Of a full disk that nobody named, no other disk's room is told; where nothing may be written, room is no cure."""
    full = str(fault_of_system(OSError(errno.ENOSPC, "No space left on device")))
    assert full.startswith("a file could not be written: No space left on device. ")
    refused = fault_of_system(PermissionError(errno.EACCES, "Permission denied", "/there/report.html"))
    assert str(refused) == "/there/report.html cannot be used: Permission denied"
    assert fault_of_system(PermissionError(errno.EPERM, "Operation not permitted")) is None
    with pytest.raises(StorageError, match="mend the disk") as raised, storing(Path("/there")):
        raise OSError(errno.EROFS, "Read-only file system")
    assert "make room" not in str(raised.value)


@pytest.mark.parametrize("kind", ["link", "dangling link", "link to a folder", "pipe"])
def test_a_folder_with_what_leads_out_of_it_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("x")
    check_plain(folder)
    (tmp_path / "victim").write_text("x")
    bad = folder / "deep" / "bad"
    if kind == "pipe":
        os.mkfifo(bad)
    else:
        bad.symlink_to(
            {"link": tmp_path / "victim", "dangling link": tmp_path / "no", "link to a folder": tmp_path}[kind]
        )
    with pytest.raises(RunFolderError, match="bad is"):
        check_plain(folder)
    check_plain(folder, ["other"])
