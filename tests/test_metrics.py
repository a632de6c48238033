"""Metrics and samples on the disk: whole lines, finite numbers, cut back on resume (SPEC X-10, section 11)."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayrlhf.errors import LearnerError, NotFiniteError, RunFolderError
from rayrlhf.json_lines import open_append
from rayrlhf.metrics import (
    MetricsLog,
    SampleRecord,
    TurnRecord,
    comparable,
    iter_samples,
    read_metrics,
    read_samples,
    turn_records,
)
from rayrlhf.progress import Progress
from rayrlhf.run_folder import RunFolder
from rayrlhf.types import GameState
from tests.game_episodes import episode, turn


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def sample(iteration: int, index: int = 0, **changes: object) -> SampleRecord:
    record = SampleRecord(
        run="first", iteration=iteration, index=index, group=0, prompt="Once", response=" a cat", score=1.0,
        parts={"alliteration": 1.0}, kl=0.5, total=0.8, logprob_sum=-3.0, reference_logprob_sum=-3.5, length=2,
        finish="eos", weights_version=iteration + 1,
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


def test_metrics_come_back_bit_for_bit(folder: RunFolder) -> None:
    """SPEC X-10: floats survive the file exactly, whatever kind of number they were."""
    with MetricsLog(folder) as log:
        log.record(0, {"objective/score": 0.1 + 0.2, "objective/kl": np.float32(0.1), "text/mean_len": 12})
        log.record(1, {"objective/score": 5e-324})
    rows = read_metrics(folder.path)
    assert rows == [
        {
            "iteration": 0,
            "objective/score": 0.1 + 0.2,
            "objective/kl": float(np.float32(0.1)),
            "text/mean_len": 12.0,
        },
        {"iteration": 1, "objective/score": 5e-324},
    ]
    assert isinstance(rows[0]["iteration"], int)
    assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == rows


def test_a_line_can_be_read_as_soon_as_it_is_recorded(folder: RunFolder) -> None:
    with MetricsLog(folder) as log:
        log.record(0, {"objective/score": 1.0})
        log.record_samples([sample(0)])
        assert len(read_metrics(folder.path)) == len(read_samples(folder.path)) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_nan_never_enters_and_the_metric_is_named(folder: RunFolder, bad: float) -> None:
    """A run stops when its numbers are wrong: neither file takes a line of that call."""
    with MetricsLog(folder) as log:
        with pytest.raises(LearnerError, match=r"iteration 7: learner/loss is -?(nan|inf)"):
            log.record(7, {"objective/score": 1.0, "learner/loss": bad})
        with pytest.raises(LearnerError, match="kl of episode 3"):
            log.record_samples([sample(7), sample(7, index=3, kl=bad)])
        with pytest.raises(LearnerError, match="spelling of episode 0"):
            log.record_samples([sample(7, parts={"spelling": bad})])
    assert read_metrics(folder.path) == []
    assert read_samples(folder.path) == []


def test_samples_come_back_equal_whatever_the_text(folder: RunFolder) -> None:
    """SPEC section 11: lone surrogates, NUL, line separators and quotes survive; a run without reference has no KL."""
    records = [
        sample(-1, 0, prompt="\ud83d", response='a\n"b"\x00\u2028\x85 é 😀 </script>'),
        sample(0, 1, kl=None, reference_logprob_sum=None, parts={}, score=np.float32(0.1), length=np.int64(3)),
    ]
    with MetricsLog(folder) as log:
        log.record_samples(records)
        log.record_samples([])
    assert read_samples(folder.path) == list(iter_samples(folder.path)) == records
    assert folder.samples.read_bytes().isascii()
    assert records[0].text.startswith("\ud83da\n")


GAME = (
    TurnRecord("A <room>.", "go \ud83d", 0.25, 0.5, 0.0, valid=True, example=False, won=False),
    TurnRecord("Dark.", "take coin", None, None, 1.0, valid=True, example=True, won=True),
)


def test_turns_of_a_game_come_back_equal(folder: RunFolder) -> None:
    """TW-26: prompt, action, action probability, value and reward of each turn, and whether the game was won."""
    records = [sample(0, 0, turns=GAME), sample(0, 1, turns=GAME[:1]), sample(0, 2)]
    with MetricsLog(folder) as log:
        log.record_samples(records)
    assert read_samples(folder.path) == records
    assert [record.won for record in records] == [True, False, None]


def test_episodes_recorded_before_there_were_turns_have_none(folder: RunFolder) -> None:
    row = asdict(sample(0)) | {"parts": {"alliteration": 1.0}}
    del row["turns"]
    folder.samples.write_text(json.dumps(row) + "\n")
    assert read_samples(folder.path) == [sample(0)]


@pytest.mark.parametrize("name", ["probability", "value", "reward"])
def test_a_turn_whose_number_is_not_finite_is_named(folder: RunFolder, name: str) -> None:
    turns = (GAME[0], replace(GAME[1], **{name: math.nan}))
    with MetricsLog(folder) as log, pytest.raises(LearnerError, match=f"{name} of turn 1 of episode 4 is nan"):
        log.record_samples([sample(0, 4, turns=turns)])
    assert read_samples(folder.path) == []


@pytest.mark.parametrize("values", [None, [0.5, -0.25, 0.0]])
def test_turn_records_of_a_trajectory(values: Sequence[float] | None) -> None:
    """TW-26, TW-10: the probability is exp of the sum of the turn's log-probabilities; an example has none (TW-8)."""
    played = episode([turn(2), turn(1, reward=-0.5, example=True), turn(3, reward=1.0, won=True)])
    records = turn_records(played, values)
    assert [record.probability for record in records] == [
        pytest.approx(math.exp(-2)),
        None,
        pytest.approx(math.exp(-3)),
    ]
    assert [record.value for record in records] == (values or [None] * 3)
    assert [record.reward for record in records] == [0.0, -0.5, 1.0]
    assert [record.won for record in records] == [False, False, True]
    assert [record.example for record in records] == [False, True, False]
    with pytest.raises(ValueError):
        turn_records(played, [0.5])


def test_a_prompt_and_its_answer_are_no_game() -> None:
    """Only an episode of one turn whose environment says nothing of itself has no turns."""
    assert turn_records(episode([turn(2)]), None) == ()
    assert len(turn_records(episode([turn(2, won=True)]), None)) == 1
    assert len(turn_records(episode([replace(turn(2), before=GameState(commands=("look",)))]), None)) == 1


def write_iterations(log: MetricsLog, iterations: Iterator[int] | range) -> None:
    for iteration in iterations:
        log.record(iteration, {"objective/score": iteration * 1.5, "time/update": 0.25})
        log.record_samples([sample(iteration, index) for index in range(2)])


def test_truncate_forgets_the_iterations_that_are_done_again(folder: RunFolder) -> None:
    """Issue part 11: a resumed run's records equal those of an uninterrupted one, its base episodes kept."""
    with MetricsLog(folder) as log:
        log.record_samples([sample(-1)])
        write_iterations(log, range(6))
    whole = (folder.metrics.read_bytes(), folder.samples.read_bytes())
    with open(folder.metrics, "ab") as file:
        file.write(b'{"iteration": 6, "objective/sc')
    with open(folder.samples, "ab") as file:
        file.write(b"\x00\x00\x00\n")
    with MetricsLog(folder) as log:
        log.truncate(3)
        assert [row["iteration"] for row in read_metrics(folder.path)] == [0, 1, 2]
        assert [record.iteration for record in read_samples(folder.path)] == [-1, 0, 0, 1, 1, 2, 2]
        write_iterations(log, range(3, 6))
    assert (folder.metrics.read_bytes(), folder.samples.read_bytes()) == whole


def test_tensorboard_shows_each_step_once_after_a_resume(folder: RunFolder) -> None:
    """Issue part 11: TensorBoard's reader drops what the resumed run does again."""
    with MetricsLog(folder) as log:
        for iteration in range(6):
            log.record(iteration, {"objective/score": 1.0})
    with MetricsLog(folder) as log:
        log.truncate(3)
        log.record(3, {"objective/score": 2.0})
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("objective/score")] == [
        (0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0),
    ]  # fmt: skip


@pytest.mark.parametrize("tail", [b'{"iteration": 1', b'{"iteration": 1}', b"\x00\x00", b"[]\n", b"\n", b'{"a": 1}\n'])
def test_a_torn_last_line_is_passed_over_and_then_removed(folder: RunFolder, tail: bytes) -> None:
    """TOOLCHAIN: JSONL tore its last line twice in 30 kills."""
    with MetricsLog(folder) as log:
        log.record(0, {"objective/score": 1.0})
    folder.metrics.write_bytes(folder.metrics.read_bytes() + tail)
    with pytest.warns(UserWarning, match="metrics.jsonl: its last line is torn"):
        assert [row["iteration"] for row in read_metrics(folder.path)] == [0]
    with pytest.warns(
        UserWarning, match=r"metrics\.jsonl: its last line was cut short.*a copy is in metrics.jsonl.torn"
    ):
        log = MetricsLog(folder)
    with log:
        log.record(1, {"objective/score": 2.0})
        log.sync()
    assert [row["iteration"] for row in read_metrics(folder.path)] == [0, 1]
    assert (folder.path / "metrics.jsonl.torn").read_bytes() == tail.removesuffix(b"\n") + b"\n"


def test_a_torn_line_is_not_cut_off_through_a_link(folder: RunFolder, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b'{"iteration": 0}\nwhat nobody may cut off')
    folder.metrics.unlink(missing_ok=True)
    folder.metrics.symlink_to(victim)
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl is a link"):
        open_append(folder.metrics)
    assert victim.read_bytes().endswith(b"nobody may cut off")
    assert not (folder.path / "metrics.jsonl.torn").exists()


def test_a_number_that_no_sum_can_hold_stops_the_run_that_would_write_it(folder: RunFolder) -> None:
    """What is written can be read: reports and sweeps add these numbers up, and square them."""
    with MetricsLog(folder) as log:
        log.record(0, {"time/iteration": 1e100})
        with pytest.raises(NotFiniteError, match="time/iteration is 1e"):
            log.record(1, {"time/iteration": 1e101})
    assert [row["time/iteration"] for row in read_metrics(folder.path)] == [1e100]


def test_torn_lines_that_are_done_again_go_with_a_copy_and_others_are_named(folder: RunFolder) -> None:
    """A line that a full disk cut short, with whole ones behind it, blocks no resume from before it."""
    rows = [b'{"iteration": %d}\n' % iteration for iteration in range(5)]
    folder.metrics.write_bytes(b"".join([*rows[:3], b'{"iterat', rows[3], rows[4]]))
    with MetricsLog(folder) as log, pytest.warns(UserWarning, match=r"a copy is in metrics\.jsonl\.torn"):
        log.truncate(3)
    assert folder.metrics.read_bytes() == b"".join(rows[:3])
    assert (folder.path / "metrics.jsonl.torn").read_bytes() == b'{"iterat' + rows[3]
    folder.metrics.write_bytes(b"".join([rows[0], b"{\n", rows[1], rows[2]]))
    with MetricsLog(folder) as log, pytest.raises(RunFolderError, match=r"metrics\.jsonl:2 is damaged"):
        log.truncate(2)
    assert folder.metrics.read_bytes() == b"".join([rows[0], b"{\n", rows[1], rows[2]])


def test_a_write_that_the_disk_cuts_short_is_noticed_and_taken_back(folder: RunFolder) -> None:
    """The system writes a part of the line and says so in a number alone: here a limit of the size of files does it."""
    script = """
import resource, signal, sys
from pathlib import Path
from rayrlhf.errors import StorageError
from rayrlhf.json_lines import line, open_append
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open_append(Path(sys.argv[1])) as record:
    record.write(line({"iteration": 0}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (25, 25))
    try:
        record.write(line({"iteration": 1}))
    except StorageError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder.metrics)], capture_output=True, text=True, check=True
    )
    assert "metrics.jsonl could not be written: File too large" in done.stdout
    assert "--resume" in done.stdout
    assert folder.metrics.read_bytes() == b'{"iteration": 0}\n'


def test_tensorboard_sorts_sessions_by_number_when_the_clock_went_back(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run resumed an hour before it was started, as its clock says: each step once, those of the second session last."""
    with MetricsLog(folder) as log:
        for iteration in range(6):
            log.record(iteration, {"objective/score": 1.0})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    for session in (2.0, 3.0):  # the second of these within the same second
        with MetricsLog(folder) as log:
            log.truncate(3)
            for iteration in range(3, 8):
                log.record(iteration, {"objective/score": session})
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("objective/score")]
    assert found == [(step, 1.0 if step < 3 else 3.0) for step in range(8)]


def test_a_damaged_line_in_the_middle_is_named(folder: RunFolder) -> None:
    folder.metrics.write_text('{"iteration": 0}\n{"itera\n{"iteration": 2}\n')
    with pytest.raises(RunFolderError, match=r"metrics.jsonl:2 is damaged"):
        read_metrics(folder.path)
    folder.samples.write_text('{"iteration": 0}\n')
    with pytest.raises(RunFolderError, match=r"samples.jsonl:1 is damaged or of another version.*run is missing"):
        read_samples(folder.path)


def test_nothing_recorded_is_nothing_read(folder: RunFolder) -> None:
    assert read_metrics(folder.path) == []
    assert read_samples(folder.path) == []


def test_comparable_leaves_out_what_a_resume_may_change_alone() -> None:
    """Wall times, and what happened to the environments' processes."""
    rows = [{"iteration": 0, "objective/score": 1.0, "time/update": 0.3, "env/memo_hits": 12.0}]
    assert comparable(rows) == [{"iteration": 0, "objective/score": 1.0}]


def shown(iterations: int, terminal: bool, start: int = 0) -> str:
    """What `Progress` writes for iterations of 4 s each."""
    stream = io.StringIO()
    now = 0.0
    console = Console(file=stream, force_terminal=terminal, width=100, color_system=None, legacy_windows=False)
    with Progress(iterations, console=console, clock=lambda: now) as progress:
        for iteration in range(start, iterations):
            now += 4
            progress.update(iteration, {"objective/score": iteration + 0.25, "objective/kl": 3.0})
            if iteration == 2:
                progress.message("[saved] checkpoint 3")
    return stream.getvalue()


def test_progress_without_a_terminal_is_a_line_now_and_then() -> None:
    """DESIGN: reward, KL and time left; quiet where nobody watches: every 10 s at most, and at the end."""
    assert shown(8, terminal=False).splitlines() == [
        "iteration 1/8  reward 0.25  KL 3.00 nats",
        "[saved] checkpoint 3",
        "iteration 4/8  reward 3.25  KL 3.00 nats  0:16 left",
        "iteration 7/8  reward 6.25  KL 3.00 nats  0:04 left",
        "iteration 8/8  reward 7.25  KL 3.00 nats",
    ]


def test_progress_of_games_says_how_many_are_won() -> None:
    stream = io.StringIO()
    Progress(3, console=Console(file=stream)).update(
        0, {"objective/score": 0.5, "rollout/won": 0.871, "objective/kl": 0}
    )
    assert stream.getvalue() == "iteration 1/3  reward 0.50  won 0.87  KL 0.00 nats\n"


def test_progress_of_a_resumed_run_tells_the_time_of_what_is_left() -> None:
    """Neither the iterations done before nor the start-up count; a long run without KL counts hours."""
    stream = io.StringIO()
    now = 100.0
    progress = Progress(2001, console=Console(file=stream), clock=lambda: now)
    for iteration in (999, 1000):
        now += 12.2
        progress.update(iteration, {})
    now += 12.2
    progress.update(500, {})  # back at an earlier checkpoint: nothing is known of the speed but what comes
    assert stream.getvalue().splitlines() == [
        "iteration 1000/2001", "iteration 1001/2001  3:23:20 left", "iteration 501/2001",
    ]  # fmt: skip


def test_progress_on_a_terminal_is_a_bar() -> None:
    output = shown(4, terminal=True)
    assert "4/4" in output
    assert "━" in output
    assert "reward 3.25  KL 3.00 nats" in output
    assert "[saved] checkpoint 3" in output
