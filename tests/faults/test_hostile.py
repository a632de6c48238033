"""What a stranger has prepared is data: no command runs it, writes outside of it, or waits for it without end."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import typer

from rayrlhf import files
from rayrlhf.errors import UserError
from rayrlhf.reading import printable
from rayrlhf.trust import Trust
from tests.faults.hostile import ATTACKS, MODEL_CODE, MODULE, SECRET, VICTIM, Attack, Ground
from tests.faults.test_fuzz import no_hang


@pytest.fixture
def ground(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    ground = Ground(tmp_path / "ground", tiny_model)
    ground.prepare()
    monkeypatch.chdir(ground.folder)
    monkeypatch.setattr(sys, "path", [str(ground.folder), *sys.path])
    sys.modules.pop(MODULE, None)
    with open(os.devnull) as nobody:  # types
        monkeypatch.setattr("sys.stdin", nobody)
        yield ground


def answer(command: str, arguments: list[str]) -> str | None:
    """Runs a command; returns the one message of its refusal, None where it took what it read as what it is."""
    from rayrlhf.cli import app

    try:
        app([*command.split(), *arguments], prog_name="rayrlhf", standalone_mode=False)
    except UserError as error:
        return printable(str(error))
    except (typer.Exit, SystemExit):
        return None
    return None


def files_below(folder: Path) -> list[Path]:
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]


def check_harmless(ground: Ground) -> None:
    assert not ground.ran.exists(), "the stranger's code was run"
    assert ground.victim.read_text() == VICTIM
    assert list(ground.outside.iterdir()) == []
    inside = [path for path in files_below(ground.folder) if path.is_file() and not path.is_symlink()]
    assert not any(SECRET.encode() in path.read_bytes() for path in inside)


def one_of(attacks: Iterable[Attack]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name) for attack in attacks])


@one_of(ATTACKS)
def test_a_command_treats_what_a_stranger_prepared_as_data(
    attack: Attack, ground: Ground, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = attack.lay(ground)
    with warnings.catch_warnings(record=True) as told, no_hang():
        warnings.simplefilter("always")
        refusal = answer(attack.command, arguments)
    check_harmless(ground)
    assert SECRET not in f"{refusal}{capfd.readouterr()}"
    if attack.says is None:
        assert refusal is None
        return
    assert refusal is not None
    assert "Traceback" not in refusal
    assert re.search(attack.says, "\n".join([refusal, *(str(warning.message) for warning in told)]))
    if attack.runs_if_trusted is not None:
        assert "--trust" in refusal


@one_of(attack for attack in ATTACKS if attack.runs_if_trusted is not None)
@pytest.mark.timeout(300)
def test_the_same_code_runs_where_the_command_line_trusts_its_folder(
    attack: Attack, ground: Ground, capfd: pytest.CaptureFixture[str]
) -> None:
    """The attacks hold code that would run; and a person's own word lets it, after it was told."""
    assert attack.runs_if_trusted is not None
    refusal = answer(attack.command, [*attack.lay(ground), "--trust", attack.runs_if_trusted])
    out, err = capfd.readouterr()
    assert ground.ran.exists(), refusal
    assert "this code runs" in err
    if attack.says == MODEL_CODE:  # it reads as any other
        assert refusal is None
        assert out.strip()


GUARDED = (
    "play: an environment of the folder's own", "replay: a reward of the folder's own", "report: samples are a link",
    "report: the summary on its way is a link", "report: sessions are a link", "report: a trial is a link",
    "report: a table on its way is a link", "rank: its folder is a link", "compare: a model with code",
)  # fmt: skip


@one_of(attack for attack in ATTACKS if attack.name in GUARDED)
def test_without_its_guards_a_command_does_the_harm(
    attack: Attack, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever follows links and trusts every folder is found out by the checks above."""
    monkeypatch.setattr(files, "_check_entry", lambda path: None)
    monkeypatch.setattr(os, "O_NOFOLLOW", 0)
    monkeypatch.setattr(Trust, "covers", lambda trust, source: True)
    with contextlib.suppress(Exception):
        answer(attack.command, attack.lay(ground))
    with pytest.raises(AssertionError):
        check_harmless(ground)


def test_a_folder_is_trusted_with_all_that_lies_in_it_and_nothing_beside_it(tmp_path: Path) -> None:
    given, beside = tmp_path / "run", tmp_path / "run-2"
    for folder in (given, beside):
        folder.mkdir()
    (given / "out").symlink_to(beside)
    trust = Trust.of([str(given), "hub/model"])
    assert all(trust.covers(source) for source in (given, given / "alarms" / "000001-kl", "hub/model"))
    assert not any(trust.covers(source) for source in (beside, given / "out", tmp_path, "hub/model-2", "hub"))


def test_what_a_persons_own_config_said_is_remembered_by_path_and_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder cannot carry the note with it: a copy of it, or another word in it, is a stranger's."""
    from rayrlhf.trust import Code, is_remembered, remember

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    mine, copied = tmp_path / "mine", tmp_path / "copied"
    for folder in (mine, copied):
        folder.mkdir()
    remember(mine, [Code("reward", "my_rewards:Own")])
    assert is_remembered(mine, [Code("reward", "my_rewards:Own")])
    assert not is_remembered(mine, [Code("reward", "my_rewards:Own"), Code("reward", "os:system")])
    assert not is_remembered(copied, [Code("reward", "my_rewards:Own")])
    assert list(mine.iterdir()) == []
