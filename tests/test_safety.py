"""The person's own word, tables for spreadsheets, and files that somebody may have prepared."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from rayrlhf.cli import app
from rayrlhf.config_loading import load_config
from rayrlhf.errors import ConfigError, PreferenceError, RewardError, RunFolderError, StorageError
from rayrlhf.files import append_to, check_plain, csv_table, fault_of_system, replace_file, storing
from rayrlhf.plugins import is_own
from rayrlhf.preferences.check_config import ChecksConfig, CompressibilityConfig
from rayrlhf.preferences.checks import load_checks
from rayrlhf.preferences.formats.content import ReadOptions
from rayrlhf.preferences.formats.registry import read_file
from rayrlhf.preferences.project import ProjectConfig, load_project_config, settle_project
from rayrlhf.reward_mixture import build_reward
from rayrlhf.trust import (
    Code,
    Trust,
    UntrustedCodeError,
    code_of_rating,
    code_of_run,
    made_folder,
    remember,
    require_own_config,
)
from rayrlhf.tune.sweep_config import load_sweep


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
    assert [code.key for code in code_of_run(config)] == ["model.trust_remote_code", "reward.1.name"]
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
    code = [Code("reward.0.name", "my_rewards:Own")]
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


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run whose config names a reward and an environment that would run a command."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "stranger"
    run.mkdir()
    (run / "sessions.jsonl").touch()
    (run / "config.yaml").write_text('reward: "os:system"\nenvironment: {name: "os:system", command: "touch ran"}\n')
    return run


def code_left(config: Path, *words: str) -> set[str]:
    """What stops a stranger's config with these words of the command line."""
    try:
        require_own_config(str(config), code_of_run(load_config(str(config), words)), words, Trust())
    except UntrustedCodeError as error:
        return {line.partition(":")[0].strip() for line in str(error).split("\n")[1:-1]}
    return set()


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["reward.0.weight=0.5", "environment.step_timeout_s=30"], {"reward.0.name", "environment.name"}),
        (["reward.weight=0.5", "model.path=x"], {"reward.0.name", "environment.name"}),
        (["reward.0.name=my:Own"], {"environment.name"}),
        (["reward.name=my:Own"], {"environment.name"}),
        (["reward.0={name: my:Own}", "environment.name=my:Game"], set()),
        (["reward=[alliteration, my:Own]", "environment={name: my:Game}"], set()),
    ],
)
def test_only_a_setting_of_the_code_itself_is_a_word_for_it(words: list[str], left: set[str], strangers: Path) -> None:
    assert code_left(strangers / "config.yaml", *words) == left


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("{}", ["reward.0.weight=0.5"]),
        ("{reward: 'choice:os:system'}", ["reward.0.name=alliteration"]),
        ("{model.trust_remote_code: 'choice:true'}", ["model={path: tiny-stories}"]),
    ],
)
def test_a_word_is_none_where_a_dimension_of_a_strangers_sweep_comes_after_it(
    space: str, words: list[str], strangers: Path
) -> None:
    from rayrlhf.tune.sweep_code import require_own_sweep

    file = strangers / "sweep.yaml"
    base = "alliteration" if "reward" in space or "model" in space else "stranger/config.yaml"
    file.write_text(f"name: s\nseeds: 2\nbase: {base}\nspace: {space}\n")
    with pytest.raises(UntrustedCodeError):
        require_own_sweep(str(file), load_sweep(str(file), words), words, Trust())
    own = ["reward=choice:my:Own,my:Other", "environment.name=my:Game", "model.trust_remote_code=false"]
    require_own_sweep(str(file), load_sweep(str(file), own), own, Trust())


def test_a_home_folder_in_a_sweeps_base_is_the_folder_that_is_loaded(
    strangers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayrlhf.tune.sweep_code import require_own_sweep

    monkeypatch.setenv("HOME", str(strangers.parent))
    file = strangers.parent / "sweep.yaml"
    file.write_text("name: s\nseeds: 2\nbase: ~/stranger/config.yaml\n")
    with pytest.raises(UntrustedCodeError, match="stranger names code"):
        require_own_sweep(str(file), load_sweep(str(file)), [], Trust())
    require_own_sweep(str(file), load_sweep(str(file)), [], Trust.of(["~/stranger"]))
    with pytest.raises(ConfigError, match=r"~nobody99/config\.yaml: there is no such home folder"):
        load_config("~nobody99/config.yaml")


@pytest.mark.parametrize(
    "command",
    ["imitate stranger/config.yaml out", "evaluate tiny-stories --recipe stranger/config.yaml --games 1",
     "loop project --no-wait --config mine.yaml", "loop stranger --no-wait --config stranger/project.yaml"],
)  # fmt: skip
def test_a_config_of_a_made_folder_is_no_persons_word(command: str, strangers: Path) -> None:
    """Whichever command reads it; nothing is begun, and nothing remembered."""
    (strangers.parent / "mine.yaml").write_text("task: {recipe: stranger/config.yaml}\n")
    (strangers / "sessions.jsonl").rename(
        strangers / ("ratings.sqlite" if "stranger " in command else "sessions.jsonl")
    )
    (strangers / "project.yaml").write_text("checks: {command: [touch, ran]}\n")
    with pytest.raises(UntrustedCodeError, match="--trust"):
        app(command.split(), prog_name="rayrlhf", standalone_mode=False)
    assert {path.name for path in strangers.parent.iterdir()} == {"stranger", "mine.yaml"}


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_read_only_where_a_person_gives_it(tmp_path: Path, kind: str) -> None:
    """A pipe would be waited for, a device read, without end; `rayrlhf train <(make-config)` goes on."""
    path = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    with pytest.raises(ConfigError, match=r"config.yaml: is no file but a pipe or a device"):
        load_config(str(path))
    if kind == "pipe":
        Thread(target=path.write_text, args=["iterations: 7\n"], daemon=True).start()
        assert load_config(str(path), piped=True).iterations == 7


def test_a_projects_regular_expressions_are_listed_as_code() -> None:
    """Some texts stop at one for ever: `(a+)+$` at `aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!`."""
    checks = {"pattern": "(a+)+$", "compressibility": {"below": 0.1, "header": "(b+)+$"}}
    code = code_of_rating(ProjectConfig.model_validate({"checks": checks}))
    assert [entry.key for entry in code] == ["checks.pattern", "checks.compressibility.header"]
    assert "(a+)+$" in code[0].what
    assert code_of_rating(ProjectConfig()) == []


def test_a_corpus_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match=r"corpus: /dev/null: is no file but a pipe or a device"):
        load_checks(ChecksConfig(compressibility=CompressibilityConfig(corpus=Path("/dev/null"))))
    with pytest.raises(RewardError, match="/dev/null: is no file but a pipe or a device"):
        build_reward("alliteration", {"corpus": "/dev/null"})


def test_labels_may_come_through_a_pipe_that_a_person_gives(tmp_path: Path) -> None:
    pipe = tmp_path / "labels.jsonl"
    os.mkfifo(pipe)
    row = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    Thread(target=pipe.write_text, args=[row], daemon=True).start()
    assert len(read_file(pipe, ReadOptions())[1]) == 1
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "samples.jsonl")
    with pytest.raises(PreferenceError, match="is no file but a pipe"):
        read_file(tmp_path / "run", ReadOptions())


def test_a_projects_settings_may_come_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "mine.yaml"
    os.mkfifo(pipe)
    Thread(target=pipe.write_text, args=["loop: {rounds: 7}\n"], daemon=True).start()
    assert settle_project(tmp_path / "project", pipe).loop.rounds == 7
    assert load_project_config(tmp_path / "project").loop.rounds == 7


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
