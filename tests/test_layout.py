"""The layout holds (requirement "package and layout"): links, imports, the wheel's contents, no path of one machine."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PLUGIN_FOLDERS = ("envs", "rewards", "tune")


def tracked_files() -> list[Path]:
    """Files that git has or would add; of an unpacked archive, which git does not know, all but what is ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("this is no git checkout: in one they are run")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_tests_say_last_what_was_not_run_and_what_would_run_it(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\nneeds = pytest.mark.skipif(True, reason='no `tool`; `apt install tool` has it run')\n"
        "@needs\ndef test_one(): ...\n@needs\ndef test_two(): ...\ndef test_three(): ...\n"
    )
    options = ["-m", "not slow and not faults", "-p", "tests.conftest", "-p", "no:cacheprovider", "-n", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(file)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, told = done.stdout.partition("= not run =")
    assert "2 skipped: no `tool`; `apt install tool` has it run" in told
    assert "those marked `slow`: `make test-slow` runs them" in told
    assert "those marked `faults`: `make test-faults` runs them" in told


@pytest.mark.parametrize("name", PLUGIN_FOLDERS)
def test_plugin_packages_are_the_top_folders(name: str) -> None:
    link = ROOT / "rayrlhf" / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / name
    module = importlib.import_module(f"rayrlhf.{name}")
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ROOT / name / "__init__.py"


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def core_files() -> list[Path]:
    files = [path for path in tracked_files() if path.suffix == ".py" and path.is_relative_to(ROOT / "rayrlhf")]
    assert len(files) > 20
    return files


def test_the_core_imports_no_plugin_by_name() -> None:
    """But for the command line, whose `sweep` is a command of `tune/`."""
    plugin = re.compile(r"rayrlhf\.(envs|rewards|tune)(\.|$)")
    found = [(path.name, name) for path in core_files() for name in imported_names(path) if plugin.match(name)]
    assert [(file, name) for file, name in found if not (file == "cli.py" and name.startswith("rayrlhf.tune."))] == []


def test_pure_modules_know_nothing_of_ray_lightning_and_deepspeed() -> None:
    pure = {
        "types",
        "interfaces",
        "config",
        "advantages",
        "kl",
        "losses",
        "micro_batches",
        "rollout",
        "text_statistics",
    }
    rim = re.compile(r"(ray|lightning_fabric|pytorch_lightning|deepspeed)(\.|$)")
    files = [path for path in core_files() if path.stem in pure or path.parent.name in ("algorithms", "sampling")]
    assert pure <= {path.stem for path in files}
    assert [(path.name, name) for path in files for name in imported_names(path) if rim.match(name)] == []


@pytest.mark.parametrize("name", PLUGIN_FOLDERS)
def test_the_linter_refuses_a_second_copy_of_the_plugins(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=json", "--stdin-filename=rayrlhf/new.py", "-"],
        cwd=ROOT, input=f"import {name}\n\nprint({name})\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "TID251" in {finding["code"] for finding in json.loads(done.stdout)}


def test_the_wheel_holds_plugins_recipes_and_the_model(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in tracked_files():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*build, "-w", tmp_path, source], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("rayrlhf-*.whl"))).namelist())
    ships = [path for path in tracked_files() if path.relative_to(ROOT).parts[0] in ("rayrlhf", *PLUGIN_FOLDERS)]
    expected = {path.relative_to(ROOT).as_posix() for path in ships}
    expected = {name if name.startswith("rayrlhf/") else f"rayrlhf/{name}" for name in expected}
    assert expected - names == set()
    assert "rayrlhf/assets/tiny-stories/model.safetensors" in names
    assert "rayrlhf/recipes/alliteration.yaml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "envs", "rewards", "tune"))]


def test_no_file_holds_a_path_of_one_machine() -> None:
    home = re.compile(rb"(?<![\w.])/(?:root|work|home/(?!ubuntu\b)[a-z]+|Users/[A-Za-z]+)/")
    found = [
        (path.relative_to(ROOT).as_posix(), match.group().decode())
        for path in tracked_files()
        if path != Path(__file__).resolve() and path.suffix not in {".safetensors", ".png", ".gif"}
        for match in home.finditer(path.read_bytes())
    ]
    assert found == []


def test_constraints_pin_every_requirement_without_a_local_version() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines)
    assert not [version for version in pins.values() if "+" in version]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, requirements):
        assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), requirement


def test_the_cluster_file_is_what_the_launcher_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    assert config["head_node_type"] in config["available_node_types"]
    assert any("constraints.txt" in command for command in config["setup_commands"])
    for command in (
        *config["head_start_ray_commands"],
        *config["worker_start_ray_commands"],
        *config["setup_commands"],
    ):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_no_file_of_code_is_too_long_to_read() -> None:
    long = {path.name: count for path in core_files() if (count := len(path.read_text().splitlines())) > 450}
    assert long == {}
