"""The command line as a user meets it: in processes of its own, from a folder of the user's own (SPEC X-7, LMHP-34)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from rayrlhf.cli import split_arguments
from rayrlhf.config_loading import load_config
from rayrlhf.errors import UserError

SCRIPT = Path(sys.executable).with_name("rayrlhf")


def run(
    *arguments: str, folder: Path, command: tuple[str, ...] = (sys.executable, "-m", "rayrlhf")
) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def test_dry_run_prints_a_config_that_loads_back_equal_x_7(tmp_path: Path) -> None:
    ended = run("train", "letter-e", "algorithm.kl.coef=1e-2", "rollout.workers=7", "--dry-run", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    printed = tmp_path / "printed.yaml"
    printed.write_text(ended.stdout)
    assert load_config(str(printed), []) == load_config("letter-e", ["algorithm.kl.coef=0.01", "rollout.workers=7"])
    assert list(tmp_path.iterdir()) == [printed]  # a dry run leaves nothing behind


def test_the_script_and_the_module_are_the_same(tmp_path: Path) -> None:
    by_module = run("train", "seed=3", "--dry-run", folder=tmp_path)
    by_script = run("train", "seed=3", "--dry-run", folder=tmp_path, command=(str(SCRIPT),))
    assert by_script.stdout == by_module.stdout
    assert "seed: 3\n" in by_module.stdout


def test_user_errors_are_a_message_without_traceback_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("rollout:\n  wrokers: 4\nseed: x\n")
    ended = run("train", "my.yaml", "iterations=none", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == [
        "error: my.yaml:2: rollout.wrokers: unknown key, did you mean rollout.workers?",
        "my.yaml:3: seed: must be a whole number, not 'x'",
        "override iterations=none: must be a whole number, not 'none'",
    ]


def test_a_second_source_is_an_error(tmp_path: Path) -> None:
    ended = run("train", "seed=1", "letter-e", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == "error: letter-e: one recipe or file comes first, then KEY=VALUE; this is neither\n"


def test_a_mistyped_option_exits_2_and_names_the_right_one(tmp_path: Path) -> None:
    ended = run("train", "--dryrun", folder=tmp_path)
    assert ended.returncode == 2
    assert "--dry-run" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_split_arguments_tells_sources_from_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_arguments([]) == (None, [])
    assert split_arguments(["a"]) == ("a", [])
    assert split_arguments(["a=1", "b=2"]) == (None, ["a=1", "b=2"])
    (tmp_path / "kl=0.yaml").write_text("seed: 1\n")
    assert split_arguments(["kl=0.yaml", "b=2"]) == ("kl=0.yaml", ["b=2"])
    with pytest.raises(UserError, match=r"^b: "):
        split_arguments(["a", "b"])


def test_recipes_are_listed_with_what_they_show(tmp_path: Path) -> None:
    ended = run("recipes", folder=tmp_path)
    assert ended.returncode == 0
    assert "alliteration-rloo-parity" in ended.stdout
    assert 'words that start with "a"' in " ".join(ended.stdout.split())


def test_help_and_dry_run_import_neither_torch_nor_ray(tmp_path: Path) -> None:
    program = """
        import sys
        from rayrlhf.cli import app
        app(["--help"], standalone_mode=False)
        app(["train", "--dry-run"], standalone_mode=False)
        print(sorted({"torch", "ray", "transformers", "lightning", "deepspeed"} & set(sys.modules)))
    """
    ended = run(folder=tmp_path, command=(sys.executable, "-c", textwrap.dedent(program)))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
    for name in ("train", "generate", "report", "recipes", "rewards", "sft", "doctor"):
        assert f" {name} " in ended.stdout


def main_with(body: str) -> tuple[str, ...]:
    """`rayrlhf` with one more command, `extra`, that runs this code."""
    program = f"from rayrlhf.cli import app\n@app.command()\ndef extra():\n    {body}\n"
    return (sys.executable, "-I", "-c", program + "from rayrlhf.__main__ import main\nmain()", "extra")


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    ended = run(folder=tmp_path, command=main_with("return 1 / 0"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback")
    assert ended.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_modules_of_the_working_directory_load_after_all_others(tmp_path: Path) -> None:
    """A file there that is called as one of the standard library's hides nothing."""
    (tmp_path / "my_rewards.py").write_text("NAME = 'mine'\n")
    (tmp_path / "colorsys.py").write_text("NAME = 'mine'\n")
    ended = run(
        folder=tmp_path,
        command=main_with("import colorsys, my_rewards, sys; print(my_rewards.NAME, colorsys.ONE_THIRD, sys.path[-1])"),
    )
    assert ended.stdout == f"mine {1 / 3} {tmp_path.resolve()}\n", ended.stderr


def test_ctrl_c_is_one_line_and_exit_130(tmp_path: Path) -> None:
    """A config that is read from a pipe keeps the command waiting for it, which is when Ctrl-C comes."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "rayrlhf", "train", str(pipe)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    writer = os.open(pipe, os.O_WRONLY)  # returns once the command has the pipe open, and reads
    try:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        os.close(writer)
        process.kill()
    assert (process.returncode, output, errors) == (130, "", "interrupted\n")


@pytest.mark.parametrize("temperature", ["0", "-1", "nan", "inf"])
def test_generate_refuses_a_temperature_that_is_none(tmp_path: Path, temperature: str) -> None:
    ended = run("generate", "tiny-stories", f"--temperature={temperature}", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --temperature must be a number above 0, not ")


@pytest.mark.parametrize("command", ["rewards", "sft"])
def test_commands_of_other_modules_have_their_own_help(tmp_path: Path, command: str) -> None:
    ended = run(command, "--help", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"Usage: rayrlhf {command} " in ended.stdout


def test_an_error_of_a_command_of_another_module_is_one_message(tmp_path: Path) -> None:
    ended = run("rewards", "show", "aliteration", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert "alliteration" in ended.stderr
    assert "Traceback" not in ended.stderr
