"""A run that may roll back always has a checkpoint to go back to, and never one from behind the rollback."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrlhf import checkpoint
from rayrlhf.checkpoint import CheckpointStore, read_manifest, whole_checkpoints
from rayrlhf.errors import CheckpointError
from tests.faults.disks import flip_bit


def commit(store: CheckpointStore, iteration: int) -> None:
    partial = store.begin(iteration)
    for part in ("model", "trainer"):
        (partial / part).mkdir()
        (partial / part / "weights").write_text(str(iteration))
    store.commit(partial, iteration, {"iteration": iteration})


def resumable(folder: Path) -> list[int]:
    return [found for found in whole_checkpoints(folder) if read_manifest(folder / f"{found:06d}").resumable]


@pytest.mark.parametrize(
    ("every", "left"),
    [(1, [6, 7, 8, 9, 10, 11, 12]), (3, [6, 9, 12]), (4, [4, 8, 12]), (12, [0, 12])],
)
def test_what_a_rollback_needs_stays(tmp_path: Path, every: int, left: list[int]) -> None:
    """Of 12 iterations and trouble that may have begun 6 before: the newest checkpoint of at most 6, and all since, though
    a store that needs none keeps one model and one state. At every point of the run there is one old enough."""
    store = CheckpointStore(tmp_path, keep=1, keep_trainer_state=1, keep_back=6)
    for iteration in range(13):
        if iteration % every == 0:
            commit(store, iteration)
        target = store.resumable_at_most(max(iteration - 6, 0))
        assert target == max(iteration - 6, 0) // every * every
    assert resumable(tmp_path) == whole_checkpoints(tmp_path) == left


def test_without_a_rollback_the_latest_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3, keep_trainer_state=2)
    for iteration in range(6):
        commit(store, iteration)
    assert whole_checkpoints(tmp_path) == [3, 4, 5]
    assert resumable(tmp_path) == [4, 5]
    assert store.resumable_at_most(3) is None


def test_later_checkpoints_are_gone_after_a_rollback(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=20)
    for iteration in (2, 4, 6):
        commit(store, iteration)
    store.discard_after(3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["000002"]
    latest = store.latest()
    assert latest is not None
    assert latest.iteration == 2


def test_nothing_is_removed_where_what_is_gone_back_to_is_damaged(tmp_path: Path) -> None:
    """Else the run would be left with models alone."""
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=20)
    for iteration in (2, 4, 6):
        commit(store, iteration)
    flip_bit(tmp_path / "000002" / "trainer" / "weights", 3)
    with pytest.raises(CheckpointError, match="000002: trainer/weights is damaged"):
        store.discard_after(3)
    assert resumable(tmp_path) == [2, 4, 6]


def test_a_checkpoint_gives_way_to_one_of_its_name_also_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS has no exchange: the old one waits under another name between two renames."""
    monkeypatch.setattr(checkpoint, "exchange", lambda one, other: False)
    store = CheckpointStore(tmp_path, keep=20, keep_trainer_state=20)
    for iteration in (2, 4, 2):
        commit(store, iteration)
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["000002", "000004"]
    assert resumable(tmp_path) == [2, 4]
