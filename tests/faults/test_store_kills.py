"""A process that saves and prunes small states through the real store is killed at its system calls."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.faults import system_calls

KILLS_AT_LEAST = 300

# In a process of its own: a fork of pytest's would have torch's threads.
KILLS = """
import shutil, sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from rayrlhf.checkpoint import CheckpointStore, verify, whole_checkpoints
from tests.faults.system_calls import killed_before

root = Path(sys.argv[2])
CASES = [  # keep, keep_trainer_state, keep_back, what is there, what is saved then
    (20, 1, None, [1], 2), (2, 1, None, [1, 2, 3], 4), (1, 1, None, [1], 2), (2, 2, None, [1, 2, 3], 4),
    (1, 2, None, [1, 2], 3), (3, 1, 2, [1, 2, 3, 4, 5], 6), (20, 1, None, [1, 2], 2), (20, 1, 2, [1, 2, 3, 4], 2),
]

def save(store, iteration, text):
    partial = store.begin(iteration)
    for part in ("model", "trainer/policy"):
        (partial / part).mkdir(parents=True)
        (partial / part / "file").write_text(f"{iteration} {text}")
    store.commit(partial, iteration, {"text": text})

def whole_states(folder):
    found = []
    for iteration in whole_checkpoints(folder):
        path = folder / f"{iteration:06d}"
        if verify(path).resumable:  # CheckpointError: half of a checkpoint under its name
            found.append((path / "trainer/policy/file").read_text())
    return found

def one(case, at):
    keep, states, back, before, saved = case
    folder = root / "run"
    shutil.rmtree(folder, ignore_errors=True)
    store = CheckpointStore(folder, keep, states, back)
    for iteration in before:
        save(store, iteration, "old")
    def again():
        mine = CheckpointStore(folder, keep, states, back)
        if saved <= before[-1] and back:
            mine.discard_after(saved)
        save(mine, saved, "new")
    call = killed_before(at, again, lambda call: call.path.startswith(str(folder)))
    there = whole_states(folder)  # as it was left: nobody has cleared anything up
    assert there, (case, at, call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = CheckpointStore(folder, keep, states, back)
        found = store.latest()
        assert f"{found.iteration} {found.state['text']}" in there, (case, at, call)
        save(store, found.iteration + 1, "next")
        assert store.latest().state["text"] == "next"
    return call is not None

points = []
for case in CASES:
    at = 0
    while one(case, at):
        at += 1
    points.append(at)
print(sum(points))
"""


@pytest.fixture(autouse=True)
def _can_be_traced() -> None:
    if reason := system_calls.why_not():
        pytest.skip(reason)


def test_killed_at_every_system_call_one_whole_state_stays(tmp_path: Path) -> None:
    """At every call of saving and pruning that can change a file: the folder, as it was left, holds a state that resumes,
    no half of one under a checkpoint's name, and the run goes on from there."""
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else tmp_path) as folder:
        command = [sys.executable, "-c", KILLS, str(root), folder]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= KILLS_AT_LEAST
