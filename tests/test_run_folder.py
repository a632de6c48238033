"""The run's folder: made whole, never written over, continued only as the same run (issue part 11; SPEC X-7)."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.errors import ModelError, RunFolderError, StorageError
from rayrlhf.files import append_to, replace_file
from rayrlhf.lock import FolderLock, Held, _become_writer
from rayrlhf.run_folder import RunFolder, has_probe, refuse_taken, remove_probe, write_probe
from rayrlhf.run_parts import check_started_from, starting_point
from tests.faults import system_calls
from tests.tiny_models import build_tiny_model


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
    with RunFolder.create(*a_config(tmp_path, name="first")) as begun:
        begun.metrics.write_text('{"iteration": 0}\n')
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


LOCKLESS = "import errno\nfrom tests.faults.system_calls import refuse_locks\nrefuse_locks(errno.{error})\n"
ROOT = Path(__file__).resolve().parent.parent


def hold(folder: Path, before: str = "", after: str = "") -> subprocess.Popen[str]:
    """A process that has resumed the run at `folder`, and holds it until it is killed or told the end of its input."""
    holder = subprocess.Popen(
        [sys.executable, "-c", before + HOLD + after, str(folder)], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stderr is not None
    assert holder.stdout.readline() == "held\n", holder.stderr.read()
    return holder


def resume_lockless(folder: Path, error: str) -> subprocess.CompletedProcess[str]:
    script = LOCKLESS.format(error=error) + HOLD.replace("sys.stdin.read()", "held.close()")
    return subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in system_calls.CHANGING, reason="locks are refused with seccomp"
)
@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP"])
def test_two_processes_cannot_write_one_run_where_the_file_system_keeps_no_locks(tmp_path: Path, error: str) -> None:
    """The first runs; the second is told of it, also where it alone has locks or has none; a killed one is in nobody's
    way, and neither is one that ended."""
    folder = RunFolder.create(*a_config(tmp_path, name="first"))
    folder.close()
    holder = hold(folder.path, LOCKLESS.format(error=error))
    try:
        for second in (resume_lockless(folder.path, error), None):
            if second is None:
                with pytest.raises(RunFolderError, match=f"being written by process {holder.pid} on"):
                    RunFolder.resume(*a_config(tmp_path, name="first"))
            else:
                assert second.returncode != 0
                assert f"being written by process {holder.pid} on" in second.stderr
    finally:
        holder.kill()
        holder.communicate()
    assert resume_lockless(folder.path, error).stdout == "held\n"
    holder = hold(folder.path)  # with a lock, which the other cannot see
    try:
        assert f"being written by process {holder.pid} on" in resume_lockless(folder.path, error).stderr
    finally:
        holder.kill()
        holder.communicate()
    RunFolder.resume(*a_config(tmp_path, name="first")).close()
    assert not list(folder.path.glob(".writer-*"))


def test_of_many_that_begin_at_once_without_locks_one_writes(tmp_path: Path) -> None:
    """Twelve processes take a folder whose last writer was killed: one of them gets it, time after time."""
    script = LOCKLESS.format(error="ENOLCK") + TAKES
    for number in range(3):
        (tmp_path / f".writer-{number + 1}").write_text("process 999999999 on " + socket.gethostname() + ", born 1-1")
        many = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for _ in range(12)
        ]  # fmt: skip
        for one in many:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in many:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        told = [one.stdout.readline() for one in many if one.stdout is not None]
        for one in many:
            one.kill()
            one.communicate()
        assert sorted(told) == ["held\n", *["refused\n"] * 11]


TAKES = """
import sys, time
from pathlib import Path
from rayrlhf.lock import FolderLock, Held
print("ready", flush=True)
sys.stdin.readline()
try:
    lock = FolderLock.take(Path(sys.argv[1]))
    print("held", flush=True)
except Held:
    print("refused", flush=True)
sys.stdin.read()
"""


def test_a_writer_on_another_machine_is_taken_for_alive_and_named(tmp_path: Path) -> None:
    """Nobody can ask from here whether that process is there: the message says which file to remove once it is gone."""
    folder = RunFolder.create(*a_config(tmp_path, name="first"))
    folder.close()
    (folder.path / ".writer-3").write_text("process 7 on another-machine, born 0-0")
    with pytest.raises(RunFolderError, match=r"process 7 on another-machine \(if it is gone, remove .*\.writer-3\)"):
        RunFolder.resume(*a_config(tmp_path, name="first"))
    (folder.path / ".writer-3").unlink()
    RunFolder.resume(*a_config(tmp_path, name="first")).close()


@pytest.mark.parametrize("text", ["", "proc"])
def test_a_writer_that_nobody_can_name_is_named_by_its_file(tmp_path: Path, text: str) -> None:
    """Killed between the making of its file and the writing of it."""
    (tmp_path / ".writer-3").write_text(text)
    if text:  # not a living process
        FolderLock.take(tmp_path).release()
    else:
        with pytest.raises(Held, match=r"another process \(if it is gone, remove .*\.writer-3\)"):
            FolderLock.take(tmp_path)


def test_a_writer_for_whom_there_is_no_room_leaves_no_file(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"\.writer-1 could not be written"):
            _become_writer(folder, tmp_path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        os.close(folder)
    assert not list(tmp_path.iterdir())


def test_a_run_that_failed_before_its_first_iteration_is_begun_anew(tmp_path: Path) -> None:
    """With the same settings or others, with --resume or without; nothing that it left is lost."""
    with RunFolder.create(*a_config(tmp_path, name="first", seed=3)) as failed:
        failed.samples.write_text('{"iteration": -1}\n')
    refuse_taken(a_config(tmp_path, name="first")[0])  # not refused
    with pytest.warns(UserWarning, match=r"'first' failed before its first iteration.*first\.failed-1"):
        RunFolder.create(*a_config(tmp_path, name="first", seed=4)).close()
    with pytest.warns(UserWarning, match=r"first\.failed-2"):
        folder = RunFolder.resume(*a_config(tmp_path, name="first", seed=5))
    with folder:
        assert folder.read_config().seed == 5
        assert [path.name for path in folder.path.glob("samples.jsonl")] == []
        with pytest.raises(RunFolderError, match="is being written by"), locked_elsewhere(folder):
            RunFolder.create(*a_config(tmp_path, name="first"))
    runs = tmp_path / "runs"
    assert sorted(entry.name for entry in runs.iterdir()) == ["first", "first.failed-1", "first.failed-2"]
    assert RunFolder.open(runs / "first.failed-1").read_config().seed == 3
    assert (runs / "first.failed-1" / "samples.jsonl").read_text() == '{"iteration": -1}\n'
    RunFolder.resume(*a_config(tmp_path, name="first", seed=5)).close()  # as it is: there is nothing to begin anew


@contextlib.contextmanager
def locked_elsewhere(folder: RunFolder) -> Iterator[None]:
    """Another process holds the run meanwhile."""
    folder.close()
    holder = hold(folder.path)
    try:
        yield
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("write", [lambda path: replace_file(path, [b"x"]), lambda path: append_to(path).write(b"x")])
def test_what_is_written_goes_through_no_link(tmp_path: Path, write: Callable[[Path], object]) -> None:
    """Neither the file nor what it is on its way leads anywhere else."""
    victim = tmp_path / "victim"
    victim.write_text("before")
    for name in ("file", ".file.new"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(RunFolderError, match="is a link: nothing is written through it"):
        write(tmp_path / "file")
    assert victim.read_text() == "before"


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


def test_a_run_goes_on_with_the_checkpoint_that_it_started_from(tmp_path: Path) -> None:
    """The run whose checkpoint it is may have gone on meanwhile."""
    model = build_tiny_model(tmp_path / "model")
    store = CheckpointStore(tmp_path / "first" / "checkpoints", keep=2, keep_trainer_state=1)

    def saved(iteration: int) -> Path:
        partial = store.begin(iteration)
        shutil.copytree(model, partial / "model")
        (partial / "trainer").mkdir()
        (partial / "trainer" / "state").write_text("x")
        store.commit(partial, iteration, {})
        return tmp_path / f"first/checkpoints/{iteration:06d}/model"

    began = saved(1)
    config, text = a_config(tmp_path, name="second", model={"path": str(tmp_path / "first")})
    with RunFolder.create(config, text) as folder:
        start = starting_point(config, config.model).model
        check_started_from(folder, start)
        folder.metrics.write_text("{}")
    later = saved(2)
    assert start.path == starting_point(config, config.model).model.path == str(began)
    saved(3)  # which removes the first
    assert not began.exists()
    assert starting_point(config, config.model).model.path == str(later).replace("000002", "000003")
    with pytest.raises(ModelError, match="~nobody-here: this is no path"):
        starting_point(config, config.model.model_copy(update={"path": "~nobody-here"}))
    elsewhere = config.model.model_copy(update={"path": str(model)})
    folder.started_from.write_text(json.dumps({"path": str(later)}))
    assert starting_point(config, elsewhere).model.path == str(model)


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
