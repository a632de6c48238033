"""README.md does what it says: every command in it is run, in its order, at a reduced size (requirement "README").

A fence's first word is its language. `sh` is a session that is run here, `sh cluster` one that needs a real cluster;
a second word behind `python` or `yaml` is the file that the reader is told to write. Nothing else may hide a command.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEADLINE_S = 280.0

NOT_RUN = {
    "make test": "it is what runs this file",
    "source .venv/bin/activate": "the commands are run with the environment that runs this file",
}
SMALL_RUN = {
    "iterations": "2", "baseline_episodes": "20", "learner.ranks": "1", "rollout.workers": "1",
    "rollout.groups_per_iteration": "2", "rollout.group_size": "4", "rollout.max_new_tokens": "16",
}  # fmt: skip
SMALL_GAMES = {
    "environment.level": "1", "environment.games": "4", "environment.held_out_games": "2", "evaluation.episodes": "2",
}  # fmt: skip
SMALL_OPTIONS = {
    "rayrlhf imitate": "--epochs 1",
    "rayrlhf sft": "--stories 400 --new hidden=32,layers=1,heads=2,kv_heads=2,mlp=64 --vocabulary 300 --steps 4 "
    "--block-size 64 --batch-blocks 4",
    "rayrlhf generate": "-n 2 --max-new-tokens 8",
    "rayrlhf loop": "rounds=1 prompts_per_round=4 completions=3 comparisons_per_round=10 evaluation_samples=8 "
    "reward_model.normalisation_samples=16 reward_model.epochs=1 reward_model.workers=1 "
    "task.overrides=[rollout.max_new_tokens=16] "
    "'optimise=[iterations=1, baseline_episodes=8, rollout.workers=1, learner.ranks=1, rollout.group_size=4, "
    "rollout.groups_per_iteration=2]'",
    "rayrlhf reward-model": "normalisation_samples=16 epochs=1 workers=1 task.overrides=[rollout.max_new_tokens=16]",
    "rayrlhf compare": "--samples 8 --max-new-tokens 8",
    "rayrlhf rate": "--terminal --rater me --count 1",
    "tensorboard": "--inspect",  # reads the event files and ends, where the server would wait for a browser
}
EXPECTED = {
    "rayrlhf doctor": "Everything a run needs is here",
    "rayrlhf recipes": "alliteration-rloo-parity",
    "rayrlhf train letter-e --dry-run": "letter_count",
    "rayrlhf train mixed.yaml --dry-run": "weight: 0.1",
    "rayrlhf report": "report.html",
    "rayrlhf sweep alliteration_kl --dry-run": "12 trials",
    "rayrlhf generate": "alliteration",
    "rayrlhf rewards list": "starts_with_a",
    "rayrlhf rewards show": "letter",
    "rayrlhf rewards test": "checks passed",
    "rayrlhf rewards time": "episodes/s",
    "tensorboard": "objective/score",
    "rayrlhf evaluate": "oracle",
    "rayrlhf play": "> take coin",
    "rayrlhf envs list": "textworld",
    "rayrlhf envs show": "quest_length",
    "rayrlhf envs test": "checks passed",
    "rayrlhf envs time": "128",
}
MADE = {  # files that must be there after the command that starts so
    "make train": "runs/alliteration/report.html",
    "rayrlhf train name=gentle algorithm.kl.coef=0.8 iterations": "runs/gentle/report.html",
    "rayrlhf train two-channels.yaml": "runs/two-channels/report.html",
    "rayrlhf sweep alliteration algorithm": "runs/two-coefficients/frontier.png",
    "rayrlhf train runs/two-coefficients": "runs/again/report.html",
    "rayrlhf train name=shouting": "runs/shouting/metrics.jsonl",
    "rayrlhf sft": "models/stories/model.safetensors",
    "rayrlhf train textworld-coin": "runs/textworld-coin/checkpoints/000002/value/value.safetensors",
    "rayrlhf train e-in-the-game.yaml": "runs/e-in-the-game/report.html",
    "rayrlhf evaluate": "runs/textworld-coin/evaluation.json",
    "rayrlhf imitate": "models/shown/model.safetensors",
    "rayrlhf loop try-out": "try-out/report.html",
    "rayrlhf loop my-ratings": "my-ratings/ratings.sqlite",
    "rayrlhf rank": "try-out/ranking/ranking.png",
    "rayrlhf compare": "blind/results.json",
    "rayrlhf reward-model": "models/liked/reward_model.json",
    "rayrlhf labels export": "labels.jsonl",
}


@dataclass(frozen=True)
class Fence:
    language: str
    label: str  # what stands behind the language
    text: str


def fences() -> list[Fence]:
    found = re.findall(r"^```(\w*) ?(\S*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [Fence(*fence) for fence in found]


def commands(label: str) -> list[str]:
    """The commands of all `sh` fences with that label, without comments, continued lines joined."""
    lines = "\n".join(fence.text for fence in fences() if (fence.language, fence.label) == ("sh", label))
    joined = (shlex.split(line, comments=True) for line in lines.replace("\\\n", " ").splitlines())
    return [shlex.join(words) for words in joined if words]


def small(command: str, runs: Path) -> str:
    """The command at a reduced size: what the reader types, with overrides or options behind it."""
    words = shlex.split(command)
    if words[:2] == ["make", "train"]:
        overrides = " ".join(f"{key}={value}" for key, value in {**SMALL_RUN, "storage_path": str(runs)}.items())
        return shlex.join(["make", "-C", str(ROOT), "train", f"VENV={sys.prefix}", f"ARGS={overrides}"])
    if words[:2] in (["rayrlhf", "train"], ["rayrlhf", "sweep"]) and "--dry-run" not in words:
        sizes = {**SMALL_RUN, "iterations": "3"} if "--resume" in words else SMALL_RUN
        sizes = sizes | SMALL_GAMES if words[2] == "textworld-coin" else sizes
        kept = [word for word in words if word.partition("=")[0] not in sizes]
        return shlex.join([*kept, *(f"{key}={value}" for key, value in sizes.items())])
    options = next((options for start, options in SMALL_OPTIONS.items() if command.startswith(start)), "")
    return f"{command} {options}".rstrip()


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: the files that the README has them write are there, and earlier commands leave theirs."""
    folder = tmp_path_factory.mktemp("reader")
    for fence in fences():
        if fence.language in ("python", "yaml"):
            (folder / fence.label).write_text(fence.text, encoding="utf-8")
    return folder


def run(command: str, folder: Path) -> str:
    """Standard output and errors of a command that must succeed, run with this environment's programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "200", "RAYRLHF_CACHE": str(folder / "cache")}
    for name in [*environment]:  # what other tests of this process, a learner's ranks and Ray have set
        if name in ("PYTHONPATH", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE") or name.startswith(
            ("MASTER_", "RAY_")
        ):
            del environment[name]
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, timeout=DEADLINE_S, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize("command", [command for command in commands("") if command not in NOT_RUN])
def test_command(command: str, session: Path) -> None:
    if command.startswith("make") and not (Path(sys.prefix) / "rayrlhf-stamp.json").is_file():
        pytest.skip("this environment was not made by make, and a test must not change it; `make test` runs it")
    output = run(small(command, session / "runs"), session)
    for start, expected in EXPECTED.items():
        if command.startswith(start):
            assert expected in output
    for start, file in MADE.items():
        if command.startswith(start):
            assert (session / file).is_file()


def test_metrics_that_are_explained_are_those_that_a_run_records(session: Path) -> None:
    named = set(re.findall(r"`([a-z]+/[a-z_0-9]+)`", README.split("## What is measured")[1].split("##")[0]))
    recorded = set()
    for run_name in ("gentle", "textworld-coin"):
        lines = (session / f"runs/{run_name}/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        recorded |= set(json.loads(lines[-1]))
    assert len(named) > 15
    assert named - recorded == set()


def test_the_reward_that_contributing_shows_keeps_the_contract(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = text.split("whole:\n\n")[1].split("\nThe constructor")[0]
    (tmp_path / "exclamations.py").write_text(textwrap.dedent(example), encoding="utf-8")
    assert "checks passed" in run("rayrlhf rewards test exclamations:Exclamations --param limit=3", tmp_path)


def test_the_submitted_job_is_a_command_that_the_program_takes(session: Path) -> None:
    [job] = [command for command in commands("cluster") if "job submit" in command]
    entrypoint = job.split(" -- ")[1].replace("python", shlex.quote(sys.executable), 1)
    assert "storage_path: /shared/runs" in run(f"{entrypoint} --dry-run", session)


def test_every_fence_is_of_a_kind_that_is_tested() -> None:
    kinds = {(fence.language, bool(fence.label)) for fence in fences()}
    assert kinds <= {("sh", False), ("sh", True), ("python", True), ("yaml", True), ("text", False)}
    assert {fence.label for fence in fences() if fence.language == "sh"} == {"", "cluster"}
    assert len(re.findall(r"^```", README, flags=re.MULTILINE)) == 2 * len(fences())
    assert commands("")[:2] == ["make train", "make test"]
    assert set(NOT_RUN) <= set(commands(""))


def test_every_expectation_belongs_to_a_command() -> None:
    for start in [*EXPECTED, *MADE, *SMALL_OPTIONS]:
        assert any(command.startswith(start) for command in commands("")), start


def test_the_tree_names_every_file_and_no_other() -> None:
    [tree] = [fence.text for fence in fences() if fence.language == "text"]
    folder, named = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
        named.add(name if name == folder else folder + name)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []
    links = {"envs", "rewards", "tune"}
    core = {path for path in (ROOT / "rayrlhf").iterdir() if path.suffix == ".py" or path.is_dir()}
    core = {path for path in core if path.name not in {"__pycache__", "__init__.py", *links}}
    expected = {f"rayrlhf/{path.name}{'/' if path.is_dir() else ''}" for path in core}
    assert expected - named == set()


def test_links_and_metrics_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
