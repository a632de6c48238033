"""The run's folder is on a disk of fixed size that fills while the real job runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayrlhf.errors import StorageError
from rayrlhf.metrics import MetricsLog, read_metrics, read_samples
from rayrlhf.report import write_report
from rayrlhf.run_folder import RunFolder
from tests.faults import disks, job
from tests.test_report import make_run

SIZES = 12


@pytest.fixture(autouse=True)
def _can_be_mounted(tmp_path: Path) -> None:
    if reason := disks.why_no_disk(tmp_path):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The run that nothing happened to, and at most how many bytes it needs at once before its report: all that it leaves
    and one checkpoint more."""
    folder = tmp_path_factory.mktemp("plain")
    code, errors = job.run(job.small_config(tiny_model, folder, "job"), folder)
    assert code == 0, errors
    run = folder / "job"
    return run, disks.used(run) + disks.used(run / "checkpoints/000004") - disks.used(run / "report.html")


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_full_disk_is_one_line_and_the_run_goes_on_from_where_it_was(
    tiny_model: Path, tmp_path: Path, plain: tuple[Path, int]
) -> None:
    """A disk that is given more room time after time, from 8 KB up to four fifths of what the run may need: each time exit 1
    and one line that names a file and what to do, and what was whole before is whole after; with room enough `--resume`
    ends where the run without fault does, bit for bit."""
    undisturbed, need = plain
    with disks.disk(tmp_path / "disk", disks.PAGE) as disk:
        folder, config, before = disk / "job", job.small_config(tiny_model, disk, "job"), 0
        for part in range(SIZES):
            disks.resize(disk, 8192 + (need - 8192) * part // (SIZES + 2))
            code, errors = job.run(config, tmp_path, *job.resuming(folder))
            told = [line for line in errors.splitlines() if line.startswith("error: ")]
            assert (code, len(told)) == (1, 1), (part, errors)
            assert "could not be written: No space left on device" in told[0]
            assert str(disk) in told[0]
            assert "make room" in told[0]
            assert "Traceback" not in errors
            done, lasting = len(read_metrics(folder)) if folder.exists() else 0, job.resumable(folder) or 0
            assert (
                max(before, done - 1) <= lasting <= done
            )  # a checkpoint an iteration: the one under way alone is lost
            before = lasting
        assert before > 0
        disks.resize(disk, 4 * need)
        code, errors = job.run(config, tmp_path, "--resume")
        assert code == 0, errors
        assert job.results(folder, 4) == job.results(undisturbed, 4)
        assert not list(folder.glob("*.torn"))  # nothing that was cut short was left
        shutil.rmtree(folder)


def test_a_full_disk_at_the_report_names_it(tmp_path: Path) -> None:
    """After the last iteration: the report that was there stays, and can be written later."""
    with disks.disk(tmp_path / "disk", 4_000_000) as disk:
        run = make_run(disk, 3, base_episodes=10)
        (run / "report.html").write_text("the old one")
        disks.resize(disk, disks.used(disk) + 2 * disks.PAGE)
        with pytest.raises(StorageError, match=r"report\.html could not be written: No space left on device"):
            write_report(run)
        assert (run / "report.html").read_text() == "the old one"
        assert not list(run.glob(".*.new"))
        disks.resize(disk, 4_000_000)
        write_report(run)
        assert (run / "report.html").stat().st_size > 1000


def test_a_full_disk_at_the_records_leaves_whole_lines(tmp_path: Path) -> None:
    """The line that did not fit is taken away again, the file is named, and with room made the record goes on."""
    with disks.disk(tmp_path / "disk", 4_000_000) as disk:
        run = make_run(disk, 1, base_episodes=1)
        episodes = read_samples(run)
        disks.resize(disk, disks.used(disk) + 20 * disks.PAGE)
        told = ""
        with MetricsLog(RunFolder(run)) as log:
            for _ in range(1000):
                try:
                    log.record_samples(episodes)
                except StorageError as error:
                    told = str(error)
                    break
            assert "samples.jsonl could not be written: No space left on device" in told
            assert len(read_samples(run)) % len(episodes) == 0
            disks.resize(disk, 4_000_000)
            log.record_samples(episodes)
        assert read_samples(run)[-len(episodes) :] == episodes
