"""The run's folder: made whole, never written over, continued only as the same run (issue part 11; SPEC X-7)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.errors import RunFolderError
from rayrlhf.run_folder import RunFolder, has_probe, remove_probe, write_probe


def a_config(tmp_path: Path, **settings: Any) -> tuple[RunConfig, str]:
    """A config under `tmp_path` and its YAML."""
    config = RunConfig.model_validate({"storage_path": str(tmp_path / "runs"), **settings})
    return config, dump_config(config)


def test_creates_the_folder_with_its_resolved_config(tmp_path: Path) -> None:
    """SPEC X-7: the full resolved config is saved with each run, and reads back as the same config."""
    reward = [{"name": "letter_count", "letter": "e", "weight": 0.1}, "alliteration"]
    config, text = a_config(tmp_path, name="first", reward=reward, optimizer={"name": "sgd", "lr": 1e-5})
    with RunFolder.create(config, text) as folder:
        assert folder.path == tmp_path / "runs" / "first"
        assert folder.name == "first"
        assert folder.config.read_text() == text
        assert folder.read_config() == config
        session = json.loads(folder.sessions.read_text())
        assert session["event"] == "start"
        assert {"time", "python", "torch", "ray", "deepspeed"} <= session.keys()
    assert sorted(entry.name for entry in (tmp_path / "runs").iterdir()) == ["first"]
    assert RunFolder.open(folder.path).metrics == folder.path / "metrics.jsonl"


def test_a_name_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    """DESIGN: a run name in use is refused unless --resume."""
    config, text = a_config(tmp_path, name="first")
    with RunFolder.create(config, text) as folder:
        folder.metrics.write_text("something\n")
    with pytest.raises(RunFolderError, match=r"'first' is in use.*--resume.*name=\.\.\."):
        RunFolder.create(config, text)
    assert folder.metrics.read_text() == "something\n"
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == ["first"]  # nothing half-made beside it


def test_any_file_of_that_name_is_in_the_way_but_an_empty_folder_is_not(tmp_path: Path) -> None:
    config, text = a_config(tmp_path, name="first")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    RunFolder.create(config, text).close()
    (tmp_path / "runs" / "second").write_text("mine")
    with pytest.raises(RunFolderError, match="'second' is in use"):
        RunFolder.create(*a_config(tmp_path, name="second"))
    assert (tmp_path / "runs" / "second").read_text() == "mine"


def test_a_storage_path_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunFolderError, match="storage_path"):
        RunFolder.create(*a_config(tmp_path))
    with pytest.raises(RunFolderError, match="storage_path"):
        write_probe(tmp_path / "runs")


def test_yaml_of_another_config_is_a_bug(tmp_path: Path) -> None:
    config, _ = a_config(tmp_path)
    _, other = a_config(tmp_path, seed=1)
    with pytest.raises(ValueError, match="not the YAML of config"):
        RunFolder.create(config, other)
    assert not (tmp_path / "runs").exists()


def test_resume_takes_the_same_run_and_what_may_change(tmp_path: Path) -> None:
    """A run may go on for longer, on other resources, with other time limits; the new config is kept then."""
    RunFolder.create(*a_config(tmp_path, name="first")).close()
    changed = {
        "iterations": 240, "rollout": {"workers": 7, "timeout_s": 5, "cpus_per_worker": 2},
        "learner": {"timeout_s": 9, "gpus_per_rank": 1}, "checkpoint": {"every": 3, "keep": 1},
    }  # fmt: skip
    config, text = a_config(tmp_path, name="first", **changed)
    with RunFolder.resume(config, text) as folder:
        assert folder.read_config() == config
        assert [json.loads(line)["event"] for line in folder.sessions.read_text().splitlines()] == ["start", "resume"]


def test_resume_after_the_folder_moved(tmp_path: Path) -> None:
    folder = RunFolder.create(*a_config(tmp_path, name="first"))
    folder.close()
    (tmp_path / "elsewhere").mkdir()
    folder.path.rename(tmp_path / "elsewhere" / "second")
    config, text = a_config(tmp_path, name="second", storage_path=str(tmp_path / "elsewhere"))
    RunFolder.resume(config, text).close()


def test_resume_with_other_settings_names_each_of_them(tmp_path: Path) -> None:
    """A resumed run equals an uninterrupted one: what would make it another run is refused, all at once."""
    RunFolder.create(*a_config(tmp_path, name="first")).close()
    other = {
        "seed": 4, "optimizer": {"name": "adamw", "lr": 1e-5}, "algorithm": {"name": "grpo", "kl": {"coef": 0.1}},
        "reward": ["alliteration", {"name": "letter_count", "letter": "e"}], "iterations": 9,
    }  # fmt: skip
    with pytest.raises(RunFolderError) as caught:
        RunFolder.resume(*a_config(tmp_path, name="first", **other))
    message = str(caught.value)
    for line in (
        "seed: 0 then, 4 now", "optimizer.lr: 0.0003 then, 1e-05 now", 'algorithm.name: "rloo" then, "grpo" now',
        "algorithm.clip_range: null then, 0.2 now", "algorithm.kl.coef: 0.4 then, 0.1 now",
        'reward.1.letter: absent then, "e" now',
    ):  # fmt: skip
        assert line in message
    assert "iterations" not in message
    RunFolder.resume(*a_config(tmp_path, name="first")).close()  # the refusal changed nothing, and holds no lock


def test_resume_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run 'first'.*without --resume"):
        RunFolder.resume(*a_config(tmp_path, name="first"))
    with pytest.raises(RunFolderError, match="no run's folder"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "unknown: 1", "- a"])
def test_resume_of_a_damaged_config_says_so(tmp_path: Path, text: str) -> None:
    folder = RunFolder.create(*a_config(tmp_path, name="first"))
    folder.close()
    folder.config.write_text(text)
    with pytest.raises(RunFolderError, match=r"config\.yaml is damaged"):
        RunFolder.resume(*a_config(tmp_path, name="first"))


HOLD = """
import sys
from pathlib import Path
from rayrlhf.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
config = folder.read_config()
held = RunFolder.resume(config, folder.config.read_text())
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    """The second is told who holds it; the first one's death, by any signal, sets the run free."""
    folder = RunFolder.create(*a_config(tmp_path, name="first"))
    folder.close()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=f"'first'.*being written by process {holder.pid} on"):
            RunFolder.resume(*a_config(tmp_path, name="first"))
    finally:
        holder.kill()
        holder.communicate()
    RunFolder.resume(*a_config(tmp_path, name="first")).close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A reward's child process that outlives its killed driver by a moment must not block --resume."""
    script = HOLD.replace('print("held"', 'import os, time\nif os.fork() == 0:\n    time.sleep(60)\nprint("held"')
    folder = RunFolder.create(*a_config(tmp_path, name="first"))
    folder.close()
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(folder.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
        RunFolder.resume(*a_config(tmp_path, name="first")).close()
    finally:
        os.killpg(holder.pid, 9)
        holder.communicate()


def test_probe_tells_one_folder_from_another(tmp_path: Path) -> None:
    """DESIGN: `storage_path` must be seen by every node: a node that has another folder of that name does not pass."""
    token = write_probe(tmp_path / "shared")
    assert has_probe(tmp_path / "shared", token)
    (tmp_path / "other").mkdir()
    assert not has_probe(tmp_path / "other", token)
    assert not has_probe(tmp_path / "absent", token)
    remove_probe(tmp_path / "shared", token)
    assert not has_probe(tmp_path / "shared", token)
    assert list((tmp_path / "shared").iterdir()) == []


def test_a_model_that_changed_since_the_run_began_is_named(tmp_path: Path) -> None:
    """Before anything starts, in one line; a run of before there were fingerprints keeps one from now on."""
    folder = RunFolder(tmp_path)
    began = {"config": "aa", "weights": "bb"}
    folder.check_model("models/mine", began)
    folder.check_model("models/mine", began)
    with pytest.raises(RunFolderError, match="the weights of its model models/mine changed since it began") as caught:
        folder.check_model("models/mine", {**began, "weights": "cc"})
    assert "\n" not in str(caught.value)
    with pytest.raises(RunFolderError, match="the config and the weights of its model"):
        folder.check_model("models/mine", {"config": "x", "weights": "y"})
    folder.started_from.write_text("[1")
    with pytest.raises(RunFolderError, match=r"model\.json: not JSON"):
        folder.check_model("models/mine", began)
