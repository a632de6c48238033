"""The checkpoint store: whole or not there at all, whenever the process dies (SPEC TW-23, LMHP-27)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rayrlhf.checkpoint import Checkpoint, CheckpointStore, newest_model, read_manifest, verify, whole_checkpoints
from rayrlhf.errors import CheckpointError, StorageError
from rayrlhf.files import saving
from tests.faults.disks import disk, why_no_disk


def save(store: CheckpointStore, iteration: int, content: str = "") -> None:
    """Writes a small checkpoint whose every file says its iteration."""
    partial = store.begin(iteration)
    (partial / "model").mkdir()
    (partial / "model" / "model.safetensors").write_text(f"weights {iteration} {content}")
    (partial / "trainer" / "policy").mkdir(parents=True)
    (partial / "trainer" / "policy" / "rank_0.pt").write_text(f"optimizer {iteration} {content}")
    store.commit(partial, iteration, {"iteration": iteration, "content": content})


def newest(folder: Path, keep: int = 20, keep_trainer_state: int = 2) -> Checkpoint:
    """`latest` of a store opened anew, where there must be one and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = CheckpointStore(folder, keep, keep_trainer_state).latest()
    assert checkpoint is not None
    return checkpoint


def test_what_was_saved_is_what_is_found(tmp_path: Path) -> None:
    """SPEC TW-23: the latest checkpoint has the model, the learner's state and the trainer's, as they were given."""
    store = CheckpointStore(tmp_path / "checkpoints", keep=20, keep_trainer_state=2)
    assert store.latest() is None
    save(store, 50, "a")
    save(store, 100, "b")
    checkpoint = newest(tmp_path / "checkpoints")
    assert checkpoint.iteration == 100
    assert checkpoint.state == {"iteration": 100, "content": "b"}
    assert (checkpoint.model / "model.safetensors").read_text() == "weights 100 b"
    assert (checkpoint.trainer / "policy" / "rank_0.pt").read_text() == "optimizer 100 b"
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["000050", "000100"]


def test_prunes_models_and_trainer_states_oldest_first(tmp_path: Path) -> None:
    """SPEC LMHP-27, TW-23: `keep` models stay, the learner's state with the latest `keep_trainer_state` alone."""
    store = CheckpointStore(tmp_path, keep=3, keep_trainer_state=2)
    for iteration in (10, 20, 30, 40, 50):
        save(store, iteration)
    assert whole_checkpoints(tmp_path) == [30, 40, 50]
    for iteration, resumable in ((30, False), (40, True), (50, True)):
        path = tmp_path / f"{iteration:06d}"
        assert verify(path).resumable is resumable
        assert (path / "trainer").exists() is resumable
        assert (path / "model" / "model.safetensors").exists()
    assert newest_model(tmp_path) == tmp_path / "000050" / "model"


def test_iterations_sort_by_number_beyond_six_digits(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, keep_trainer_state=1)
    save(store, 999_999)
    save(store, 1_000_000)
    assert newest(tmp_path, 2, 1).iteration == 1_000_000


@pytest.mark.parametrize("name", ["model/model.safetensors", "trainer/policy/rank_0.pt", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named_and_the_one_before_it_is_used(tmp_path: Path, name: str, damage: str) -> None:
    """DESIGN: checksummed. A flipped bit, which safetensors itself does not notice, is noticed."""
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    save(store, 50)
    save(store, 100)
    file = tmp_path / "000100" / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:-1])
    else:
        file.unlink()
    with pytest.warns(UserWarning, match=rf"000100: {name}.*the one of iteration 50 is taken"):
        checkpoint = CheckpointStore(tmp_path, 20, 2).latest()
    assert checkpoint is not None
    assert checkpoint.iteration == 50


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "iteration": 100, "files": {}}', "null"]
)
def test_a_damaged_manifest_is_passed_over(tmp_path: Path, content: str) -> None:
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    save(store, 50)
    save(store, 100)
    (tmp_path / "000100" / "manifest.json").write_text(content)
    with pytest.warns(UserWarning, match="manifest.json is damaged"):
        checkpoint = CheckpointStore(tmp_path, 20, 2).latest()
    assert checkpoint is not None
    assert checkpoint.iteration == 50
    with pytest.warns(UserWarning, match="manifest.json is damaged"):
        assert newest_model(tmp_path) == tmp_path / "000050" / "model"


def test_all_damaged_is_one_message_that_names_each(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    save(store, 50)
    save(store, 100)
    (tmp_path / "000050" / "model" / "model.safetensors").write_text("x")
    (tmp_path / "000100" / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"(?s)000100 has no manifest.*000050: model/model.safetensors has 1 bytes"
    ):
        CheckpointStore(tmp_path, 20, 2).latest()
    with pytest.raises(CheckpointError, match="no intact"), pytest.warns(UserWarning, match="the one before"):
        newest_model(tmp_path)


def test_model_only_checkpoints_cannot_be_resumed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=1)
    save(store, 50)
    save(store, 100)
    shutil.rmtree(tmp_path / "000100")
    with pytest.raises(CheckpointError, match="000050 holds a model only"):
        CheckpointStore(tmp_path, 20, 1).latest()


def test_a_damaged_one_neither_counts_nor_costs_the_healthy_ones(tmp_path: Path) -> None:
    """A run that fell back from 100 to 50 keeps 50's state while 100 is damaged, and replaces 100 in its turn."""
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    save(store, 50)
    save(store, 100)
    (tmp_path / "000100" / "trainer_state.json").write_text("{}")
    again = CheckpointStore(tmp_path, 20, 2)
    with pytest.warns(UserWarning, match="iteration 50 is taken"):
        again.latest()
    save(again, 75)
    assert read_manifest(tmp_path / "000050").resumable
    save(again, 100, "second")
    assert newest(tmp_path).state["content"] == "second"
    assert not read_manifest(tmp_path / "000050").resumable


def test_an_added_file_is_noticed(tmp_path: Path) -> None:
    """What stands in the folder is loaded with it: a pickle beside the safetensors is no part of the checkpoint."""
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    save(store, 50)
    (tmp_path / "000050" / "model" / "pytorch_model.bin").write_text("pickle")
    with pytest.raises(CheckpointError, match="bin was added"):
        verify(tmp_path / "000050")


@pytest.mark.parametrize("name", ["value/x.safetensors", "trainer/x", "model/deep/x.py"])
def test_what_no_manifest_lists_is_refused_where_its_folder_is_loaded(tmp_path: Path, name: str) -> None:
    save(CheckpointStore(tmp_path, keep=20, keep_trainer_state=2), 50)
    added = tmp_path / "000050" / name
    added.parent.mkdir(exist_ok=True)
    added.write_text("x")
    with pytest.raises(CheckpointError, match=f"{name} was added"):
        verify(tmp_path / "000050")


@pytest.mark.parametrize("name", ["*/x", "notes.txt"])
def test_what_no_manifest_lists_is_named_where_nothing_reads_it(tmp_path: Path, name: str) -> None:
    save(CheckpointStore(tmp_path, keep=20, keep_trainer_state=2), 50)
    added = tmp_path / "000050" / name
    added.parent.mkdir(exist_ok=True)
    added.write_text("x")
    with pytest.warns(UserWarning, match=re.escape(f"{name} is none of its files and is not read")):
        verify(tmp_path / "000050")


@pytest.mark.parametrize("kind", ["link", "folder link", "pipe"])
def test_links_and_pipes_are_refused(tmp_path: Path, kind: str) -> None:
    """A link's target is in no checksum, and may be anywhere."""
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    save(store, 50)
    partial = store.begin(100)
    (partial / "model").mkdir()
    (partial / "model" / "config.json").write_text("{}")
    (partial / "trainer").mkdir()
    strange = partial / "trainer" / "state.pt"
    if kind == "pipe":
        os.mkfifo(strange)
    else:
        strange.symlink_to("/etc/hostname" if kind == "link" else "/etc")
    with pytest.raises(CheckpointError, match=r"trainer/state.pt is (a symbolic link|no plain file)"):
        store.commit(partial, 100, {})
    assert newest(tmp_path).iteration == 50
    (tmp_path / "000050" / "model" / "extra").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="model/extra is a symbolic link"):
        verify(tmp_path / "000050")


def test_an_incomplete_or_foreign_partial_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    partial = store.begin(50)
    (partial / "model").mkdir()
    with pytest.raises(ValueError, match="nothing was written into"):
        store.commit(partial, 50, {})
    with pytest.raises(ValueError, match="is not what begin"):
        store.commit(partial, 51, {})
    with pytest.raises(ValueError, match="at least 1"):
        CheckpointStore(tmp_path, keep=1, keep_trainer_state=0)


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    save(store, 50)
    manifest = json.loads((tmp_path / "000050" / "manifest.json").read_text())
    (tmp_path / "000050" / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(CheckpointError, match="format 2"):
        store.latest()


def test_a_renamed_checkpoint_says_so(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    save(store, 50)
    (tmp_path / "000050").rename(tmp_path / "000090")
    with pytest.raises(CheckpointError, match="is that of iteration 50"):
        store.latest()


def test_pytorchs_own_error_on_a_full_disk_names_the_disk(tmp_path: Path) -> None:
    if reason := why_no_disk(tmp_path):
        pytest.skip(reason)
    with disk(tmp_path / "small", 1 << 16) as folder:
        with pytest.raises(RuntimeError), saving(tmp_path):  # where there is room it stays what it is
            torch.save(torch.zeros(100_000), folder / "state.pt")
        with pytest.raises(StorageError, match=r"small/state\.pt could not be written: No space left"), saving(folder):
            torch.save(torch.zeros(100_000), folder / "state.pt")


def test_an_error_that_repeats_the_systems_words_is_a_full_disks(tmp_path: Path) -> None:
    """safetensors takes its half file away again, so that there is room when somebody looks."""
    if reason := why_no_disk(tmp_path):
        pytest.skip(reason)
    with disk(tmp_path / "small", 1 << 18) as folder:
        with pytest.raises(StorageError, match="could not be written: No space left"), saving(folder):
            save_file({"weight": torch.zeros(100_000)}, folder / "model.safetensors")
        assert not list(folder.iterdir())
        with pytest.raises(RuntimeError, match="of another kind"), saving(folder):
            raise RuntimeError("of another kind")


def test_a_full_disk_is_a_message_and_costs_nothing(tmp_path: Path) -> None:
    """ENOSPC is brought about with a size limit of the process, in a child."""
    script = """
import resource, signal, sys, pathlib
from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.errors import StorageError
store = CheckpointStore(pathlib.Path(sys.argv[1]), 20, 2)
partial = store.begin(100)
for part in ("model", "trainer"):
    (partial / part).mkdir()
    (partial / part / "file").write_text("x")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    store.commit(partial, 100, {})
except StorageError as error:
    print(error)
"""
    save(CheckpointStore(tmp_path, 20, 2), 50)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "manifest.json could not be written: File too large (" in done.stdout
    assert "MB are free" in done.stdout
    assert "--resume" in done.stdout
    assert newest(tmp_path).iteration == 50
    assert not list(tmp_path.glob(".partial-*"))


KILLED_AT_EVERY_STEP = """
# A forked child saves a checkpoint and dies, without any clean-up, just before its n-th operation on files; n rises.
import os, pathlib, shutil, sys, warnings
sys.path.insert(0, sys.argv[2])
from tests.test_checkpoint import save
from rayrlhf.checkpoint import CheckpointStore, newest_model, verify, whole_checkpoints

warnings.simplefilter("error")
root, before, saved, keep = pathlib.Path(sys.argv[1]), eval(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
deaths, died = 0, True
while died:
    folder = root / str(deaths)
    store = CheckpointStore(folder, keep, 1)
    for iteration in before:
        save(store, iteration, "old")
    child = os.fork()
    if child == 0:
        left = deaths
        def die(event, arguments):
            global left
            if event in WATCHED and str(folder) in str(arguments[0]) or event in {"os.remove", "os.rmdir"}:
                if left == 0:
                    os._exit(9)
                left -= 1
        sys.addaudithook(die)
        save(CheckpointStore(folder, keep, 1), saved, "new")
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    newest_model(folder)  # a reader of the folder as it was left finds a whole model
    for iteration in whole_checkpoints(folder):
        verify(folder / f"{iteration:06d}")  # and no half of one under its name
    store = CheckpointStore(folder, keep, 1)
    found = store.latest()
    assert (found.iteration, found.state["content"]) in {(before[-1], "old"), (saved, "new")}, found
    assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]
    assert died or found.state["content"] == "new"
    save(store, saved + 50, "next")  # and the run goes on from there
    assert store.latest().iteration == saved + 50
    assert len(list(folder.glob("*/trainer"))) == 1
    assert len(list(folder.iterdir())) <= keep
    shutil.rmtree(folder)
    deaths += died
print(deaths)
"""


@pytest.mark.parametrize(("before", "saved", "keep"), [((50,), 100, 20), ((50, 100, 150), 200, 2)])
def test_killed_at_every_operation_a_usable_checkpoint_stays(
    tmp_path: Path, before: tuple[int, ...], saved: int, keep: int
) -> None:
    """DESIGN: the previous one goes only after the new one is whole, whichever operation is the process's last."""
    arguments = [str(tmp_path), str(Path(__file__).parents[1]), repr(before), str(saved), str(keep)]
    done = subprocess.run([sys.executable, "-c", KILLED_AT_EVERY_STEP, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15  # deaths: as many as there are operations


def test_killed_while_replacing_a_checkpoint_of_the_same_iteration(tmp_path: Path) -> None:
    """Between its two renames the old one waits under `.replaced-`, and comes back."""
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    save(store, 50, "old")
    (tmp_path / "000050").rename(tmp_path / ".replaced-000050")
    (tmp_path / ".partial-000050").mkdir()
    assert newest(tmp_path).state["content"] == "old"
    save(store, 50, "new")
    assert newest(tmp_path).state["content"] == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["000050"]


def test_the_model_alone_is_in_the_checkpoint_and_reloads_equal(tmp_path: Path, tiny_model: Path) -> None:
    """SPEC TW-23: a checkpoint's model is the size of the policy's own weights, and reloads bit for bit."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=2)
    partial = store.begin(50)
    policy.save_pretrained(partial / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(partial / "model")
    (partial / "trainer").mkdir()
    torch.save({"step": 50}, partial / "trainer" / "rank_0.pt")
    store.commit(partial, 50, {})

    checkpoint = newest(tmp_path)
    weights = sum(parameter.numel() * 4 for parameter in policy.parameters())
    stored = sum(file.stat().st_size for file in checkpoint.model.glob("*.safetensors"))
    assert weights <= stored < 1.1 * weights
    reloaded = AutoModelForCausalLM.from_pretrained(checkpoint.model, dtype=torch.float32)
    assert all(torch.equal(tensor, reloaded.state_dict()[name]) for name, tensor in policy.state_dict().items())
