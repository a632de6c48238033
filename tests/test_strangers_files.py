"""What strangers wrote is read in one place and shown in one way: no text brings a reader down, no terminal obeys one."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import rayrlhf
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config, load_config
from rayrlhf.errors import ConfigError, RunFolderError, UserError
from rayrlhf.generate import show
from rayrlhf.metrics import read_metrics, read_samples
from rayrlhf.preferences.formats.content import ReadOptions
from rayrlhf.preferences.formats.registry import read_data
from rayrlhf.reading import MAX_DEPTH, Count, Number, json_value, parse_json, typed
from rayrlhf.reward_contract import example_trajectory
from rayrlhf.run_folder import RunFolder, parse_config
from rayrlhf.terminal_output import plain_console, say
from rayrlhf.types import EpisodeScore

PACKAGE = Path(rayrlhf.__file__).parent
HOSTILE = "a\x1b[2Jb\x9b31mc\u202ed\ud800"


def modules() -> Iterator[tuple[str, ast.Module]]:
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        for name in sorted(name for name in names if name.endswith(".py")):
            path = Path(folder, name)
            yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def uses(tree: ast.Module, wanted: Callable[[str], bool]) -> bool:
    """Whether a module calls or names something, such as `json.loads`."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Call))
    return any(wanted(ast.unparse(node.func if isinstance(node, ast.Call) else node)) for node in nodes)


def test_json_and_yaml_are_read_in_one_place() -> None:
    """Nothing but reading.py parses JSON, nothing but yaml_text.py has YAML read."""
    json_readers = {"json.loads", "json.load", "json.JSONDecoder", "loads", "JSONDecoder"}
    assert {name for name, tree in modules() if uses(tree, json_readers.__contains__)} == {"reading.py"}
    yaml_readers = {"get_constructor_parser", "load", "load_all", "compose", "parse"}
    found = {
        name
        for name, tree in modules()
        if "ruamel" in ast.unparse(tree)
        and uses(tree, lambda called: called.rpartition(".")[2] in yaml_readers and "ast" not in called)
    }
    assert found == {"yaml_text.py"}


def test_terminals_are_written_to_in_one_way() -> None:
    """No module makes a rich console or echoes by itself; `print` is left to processes of their own and plain prompts."""
    consoles = {name for name, tree in modules() if uses(tree, {"Console", "rich.console.Console"}.__contains__)}
    assert consoles == set()
    assert {name for name, tree in modules() if uses(tree, {"typer.echo", "click.echo"}.__contains__)} == set()
    printing = {name for name, tree in modules() if uses(tree, {"print"}.__contains__)}
    assert printing <= {"__main__.py", "doctor.py", "doctor_probes.py", "play/terminal.py", "play/recording.py"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, f"nested more than {MAX_DEPTH} levels deep"),
        ('{"a":' * 100_000, "nested more than"),
        ("9" * 5000, "a number has too many digits"),
        ("1e999", "1e999 is no finite number"),
        ("NaN", "NaN is no finite number"),
        (b'{"a": "\xe9"}', "not UTF-8 text"),
        ("{", "not JSON"),
    ],
)
def test_a_text_that_is_no_json_is_one_message(text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_json(text, "here", UserError)


def test_brackets_in_texts_are_no_depth() -> None:
    assert json_value('["' + "[" * 5000 + '\\""]') == ["[" * 5000 + '"']


@pytest.mark.parametrize(("kind", "value"), [(Count, 1.5), (Count, True), (Count, "3"), (Count, 2**63), (Count, -1),
                                             (Number, "3"), (Number, True), (Number, 10**400), (Number, None),
                                             (Number, 1e308), (Number, -1.1e100)])  # fmt: skip
def test_a_number_of_a_record_is_a_number(kind: Any, value: Any) -> None:
    with pytest.raises(UserError, match="here: "):
        typed(kind, value, "here", UserError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: " + "[" * 5000, "nested more than 100 levels deep"),
        ("seed: " + "9" * 5000, "it cannot be read"),
        (
            "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 10}]\n" for n in range(1, 9)),
            "stands for more",
        ),
        (
            "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{f'*a{n - 1}, ' * 10}]}}\n" for n in range(1, 9)),
            "stands for",
        ),
        ("a: &a [*a]", "a value contains itself"),
        ("name: " + "x" * 300_000, "300,006 characters"),
        (b"na\xefme: x", "not UTF-8"),
        ("na\x1b[2Jme: x", "unacceptable character"),
    ],
)
def test_a_text_that_is_no_config_is_one_message(tmp_path: Path, text: str | bytes, message: str) -> None:
    """Of a person's file and of a run's folder alike; aliases that stand for 10^8 values are not written out."""
    raw = text if isinstance(text, bytes) else text.encode()
    file = tmp_path / "config.yaml"
    file.write_bytes(raw)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(str(file))
    assert str(caught.value).count("\n") == 0
    with pytest.raises(RunFolderError, match=message):
        RunFolder.open(tmp_path).read_config()


def test_overrides_are_read_within_the_same_bounds() -> None:
    for value in ("[" * 5000, "9" * 5000, "&a [*a]"):
        with pytest.raises(ConfigError, match="the value is not YAML"):
            load_config(None, [f"seed={value}"])


def test_a_config_of_ours_is_read_back(tmp_path: Path) -> None:
    assert parse_config(dump_config(RunConfig()), "it") == RunConfig()


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("metrics.jsonl", '{"iteration": 0, "reward/mean": "high"}', "reward/mean: it has to be a finite number"),
        ("metrics.jsonl", '{"iteration": 1e999}', "no finite number"),
        ("metrics.jsonl", '{"iteration": true}', "it has no iteration"),
        ("metrics.jsonl", "[" * 100_000 + "]" * 100_000, "nested more than"),
        ("samples.jsonl", '{"iteration": 0, "turns": 3}', "run is missing"),
    ],
)
def test_a_record_of_another_type_is_named_by_file_and_line(tmp_path: Path, file: str, line: str, message: str) -> None:
    (tmp_path / file).write_text(f'{line}\n{{"iteration": 1}}\n')
    with pytest.raises(RunFolderError, match=rf"{file}:1 is damaged.*{message}"):
        (read_metrics if file == "metrics.jsonl" else read_samples)(tmp_path)


@pytest.mark.parametrize("start", [b'{"a": [', b"[["])
def test_a_large_nested_label_file_costs_no_more_than_its_own_size(start: bytes) -> None:
    """Millions of nested lists are not built to be refused: of 50 MB they took 150 s, of these 2 MB over 100 MB."""
    data = start + b",".join([b"[" * 900 + b"]" * 900] * 1100)
    tracemalloc.start()
    found, [fault] = read_data(data, ReadOptions())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found, fault.line) == ("", 1)  # type: ignore[union-attr]
    assert "nested more than 50 levels deep" in fault.message  # type: ignore[union-attr]
    assert most < 10 * len(data)


def test_say_shows_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, end="", error=True)
    told = capsys.readouterr()
    assert told.out == "a\u241b[2Jb\ufffd31mc\ufffdd\ufffd\n"
    assert told.err == told.out.rstrip("\n")


def test_a_console_shows_what_a_terminal_would_obey_in_tables_panels_and_lines() -> None:
    file = io.StringIO()
    console = plain_console(file=file, force_terminal=True, width=60)
    table = Table("name")
    table.add_row(HOSTILE)
    console.print(Panel(HOSTILE, title=HOSTILE), table, HOSTILE, Text("loud", "bold"))
    told = file.getvalue()
    told.encode()
    assert "\x1b[1m" in told, "its own marks are its own"
    assert "\x1b[2J" not in told
    assert not set("\x9b\u202e\ud800") & set(told)
    assert told.count("\u241b[2Jb") == 4


def test_a_console_takes_no_text_for_markup() -> None:
    file = io.StringIO()
    console = plain_console(file=file, width=60)
    table = Table("[red]name")
    table.add_row("[INST] x [/INST]")
    console.print(table, "[link=file:///etc] :smile: [/x]")
    for text in ("[red]name", "[INST] x [/INST]", "[link=file:///etc] :smile: [/x]"):
        assert text in file.getvalue()


def test_the_parts_of_a_score_are_named_as_they_are() -> None:
    file = io.StringIO()
    score = EpisodeScore(np.array([1.0], np.float32), {"letter_count[letter=e]": 1.0})
    show(plain_console(file=file, width=80), [example_trajectory("", "a text")], [score])
    assert file.getvalue().count("letter_count[letter=e]") == 2


@pytest.mark.parametrize("logger", ["rayrlhf.policy", "somebody.else"])
def test_log_messages_and_warnings_are_shown_not_obeyed(logger: str) -> None:
    """In a process as the command line and its children have it, whichever handler takes the message."""
    code = (
        f"import logging, warnings; from rayrlhf.messages import show_plainly; show_plainly(); "
        f"logging.getLogger({logger!r}).warning('tensor %s', 'a\x1b]0;owned\x07'); warnings.warn('b\x1b[2J')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[0] == "tensor a\u241b]0;owned\u2407"
    assert "b\u241b[2J" in done.stderr
    assert "\x1b" not in done.stderr


def test_files_are_read_in_one_place() -> None:
    """Where a name may be somebody else's: reading.py refuses pipes and devices. The others' files are their own."""
    readers = {
        name
        for name, tree in modules()
        if uses(tree, lambda called: called.rpartition(".")[2] in ("read_bytes", "read_text") and called.count("."))
    }
    own = {
        "reading.py", "config_loading.py", "plugins.py", "preferences/page.py",  # the package's
        "run_folder.py", "supervised.py", "supervised_run.py", "games/making.py", "tune/sweep.py",  # just written here
        "doctor.py", "lock.py", "reaper.py", "room.py", "worker_death.py",  # the system's
        "model_config.py", "preferences/formats/registry.py",  # after a check of the folder; another `read_text`
    }  # fmt: skip
    assert readers <= own


def test_a_terminal_without_the_pictures_gets_escapes() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    plain_console(file=file).print(HOSTILE)
    file.flush()
    assert b"\\u241b[2Jb" in file.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [["report"], ["train"], ["labels", "check"]])
def test_a_name_that_no_file_can_have_is_one_line(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rayrlhf", *command, "a" * 300],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "so long a name" in done.stderr
