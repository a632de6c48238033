"""What a run keeps of its alarms: lines that a rollback or a resumed run must not lose or double, and whole batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rayrlhf.alarms import AlarmLog, read_alarms
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.detector import Alarm
from rayrlhf.dumps import KeptBatch, episode_arrays, read_dump, write_dump
from rayrlhf.errors import CheckpointError
from rayrlhf.run_folder import RunFolder
from rayrlhf.types import EpisodeScore, EpisodeSpec, Trajectory, Turn, Weights


def alarm(iteration: int, rule: str = "entropy") -> Alarm:
    return Alarm(iteration, rule, 0.1, 0.25, "warn", "low")


def test_a_resumed_run_forgets_only_what_it_finds_again(tmp_path: Path) -> None:
    """Rolled back in iteration 8, it goes on in attempt 1 from iteration 4. Stopped there and resumed from 6 it finds
    what came after 6 again; what led to the rollback it does not, though that was in iteration 8."""
    config = RunConfig(name="r", storage_path=str(tmp_path))
    with RunFolder.create(config, dump_config(config)) as folder:
        log = AlarmLog(folder)
        for iteration, attempt in ((2, 0), (8, 0), (5, 1), (6, 1), (7, 1)):
            log.record([alarm(iteration)], attempt, None)
        log.truncate(6, 1)
        assert [(a.iteration, a.attempt) for a in read_alarms(tmp_path / "r")] == [(2, 0), (8, 0), (5, 1)]
        log.truncate(4, 0)  # killed between the alarm and the rollback's own checkpoint: all of it comes again
        assert [(a.iteration, a.attempt) for a in read_alarms(tmp_path / "r")] == [(2, 0)]


def batch() -> KeptBatch:
    """One episode of one turn whose text holds half of a surrogate pair, as a policy may write it."""
    values = np.array([-1.5, np.nan], np.float32)
    none = np.zeros(0, np.float32)
    turn = Turn(
        observation="Say: ", action="a\ud800", prompt_ids=np.array([1, 2]), response_ids=np.array([3, 4]), logprobs=values,
        filtered_logprobs=values, reference_logprobs=values, prompt_logprobs=none, prompt_reference_logprobs=none,
        reward=0.0, finish="eos",
    )  # fmt: skip
    played = Trajectory(0, 0, 7, 2**64 - 1, 3, (turn,), True, False)
    score = EpisodeScore(np.array([0.1], np.float32), {"alliteration": 0.1})
    return KeptBatch(3, 1, [[EpisodeSpec(0, 0, 7, 2**64 - 1)]], [played], [score])


def test_a_batch_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """Seeds of 64 bits, numbers that are not finite, a score that JSON writes in more digits than it has."""
    (tmp_path / "config.yaml").write_text("name: r\n")
    weights = Weights(3, 99, {"w": np.array([[1.0, np.inf]], np.float32), "b": np.array([7], np.uint16)})
    written, folder = batch(), tmp_path / "alarms/000003-entropy"
    for _ in range(2):  # the second takes the first one's place
        write_dump(folder, written, weights, "low", tmp_path / "config.yaml")
    dump = read_dump(folder)
    assert [entry.name for entry in folder.parent.iterdir()] == ["000003-entropy"]
    assert dump.specs == written.specs
    assert dump.texts == [written.trajectories[0].text]
    assert dump.scores[0].total.tobytes() == written.scores[0].total.tobytes()
    assert {name: array.tobytes() for name, array in dump.arrays.items()} == {
        name: array.tobytes() for name, array in episode_arrays(written.trajectories).items()
    }
    assert (dump.weights.version, dump.weights.checksum) == (3, 99)
    for name, array in weights.arrays.items():
        assert dump.weights.arrays[name].dtype == array.dtype
        assert dump.weights.arrays[name].tobytes() == array.tobytes()


def test_what_is_no_batch_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no kept batch"):
        read_dump(tmp_path / "nothing")
    (tmp_path / "config.yaml").write_text("name: r\n")
    write_dump(tmp_path / "b", batch(), Weights(3, 99, {}), "low", tmp_path / "config.yaml")
    (tmp_path / "b/episodes.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="damaged"):
        read_dump(tmp_path / "b")


@pytest.mark.parametrize(("key", "value"), [("texts", []), ("texts", ["a", "b"]), ("specs", [[]])])
def test_a_batch_whose_parts_do_not_fit_together_is_named(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "config.yaml").write_text("name: r\n")
    write_dump(tmp_path / "b", batch(), Weights(3, 99, {}), "low", tmp_path / "config.yaml")
    file = tmp_path / "b/batch.json"
    content = json.loads(file.read_text())
    for changed in ({key: value}, {"scores": content["scores"] * 2}):
        file.write_text(json.dumps({**content, **changed}))
        with pytest.raises(CheckpointError, match=r"batch\.json is damaged: it is of \d episodes and has"):
            read_dump(tmp_path / "b")
    file.write_text(json.dumps({**content, "scores": []}))
    assert read_dump(tmp_path / "b").scores == []
