"""What a stranger has prepared is data: no command runs it, writes outside of it, or waits for it without end."""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path

import pytest
import typer
from hostile import ATTACKS, MODULE, SECRET, VICTIM, Attack, Ground

from rayrlhf.errors import UserError
from rayrlhf.files import printable

QUICK = {
    "play: an environment of the folder's own", "play: a transcript that names code", "generate: a model folder with code",
    "replay: a reward of the standard library", "report: the summary on its way is a link", "report: samples are a link",
    "report: metrics are a pipe", "report: a name with backslashes", "report: a name with half a surrogate",
    "report: a sweep named as a template's place", "report: a trial whose folder lies outside",
    "train: config.yaml of a run names code", "train: the lock is a link", "sweep: a trial's config names code",
    "rate: a validity check of the folder's own", "rank: a table that never ends", "loop: the task's settings trust a model",
    "generate: files that no manifest lists",
}  # fmt: skip
"""Of each kind one, in the normal suite."""


@pytest.fixture
def ground(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    ground = Ground(tmp_path / "ground", tiny_model)
    ground.prepare()
    monkeypatch.chdir(ground.folder)
    monkeypatch.setattr(sys, "path", [str(ground.folder), *sys.path])
    sys.modules.pop(MODULE, None)
    return ground


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


def parameters(attacks: list[Attack]) -> list[object]:
    """The quick ones of `attacks` as they are, the others among the long tests."""
    long = (pytest.mark.slow, pytest.mark.faults)
    return [pytest.param(attack, id=attack.name, marks=() if attack.name in QUICK else long) for attack in attacks]


@pytest.mark.parametrize("attack", parameters(list(ATTACKS)))
@pytest.mark.timeout(180)
def test_a_command_treats_what_a_stranger_prepared_as_data(attack: Attack, ground: Ground) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusal = answer(attack.command, attack.lay(ground))
    check_harmless(ground)
    assert refusal is None or "Traceback" not in refusal
    if attack.runs_if_trusted is not None:
        assert refusal is not None
        assert "--trust" in refusal


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    "attack", [pytest.param(attack, id=attack.name) for attack in ATTACKS if attack.runs_if_trusted is not None]
)
@pytest.mark.timeout(300)
def test_the_same_code_runs_where_the_command_line_trusts_its_folder(
    attack: Attack, ground: Ground, capfd: pytest.CaptureFixture[str]
) -> None:
    """The attacks hold code that would run; and a person's own word lets it, after it was told."""
    assert attack.runs_if_trusted is not None
    try:
        answer(attack.command, [*attack.lay(ground), "--trust", attack.runs_if_trusted])
    except Exception as error:  # what the stranger's plugin does then is its own affair
        print(error)
    assert ground.ran.exists()
    assert "this code runs" in capfd.readouterr().err


def test_each_name_of_the_quick_part_is_an_attack() -> None:
    assert {attack.name for attack in ATTACKS} >= QUICK
    assert len(ATTACKS) >= 40


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
