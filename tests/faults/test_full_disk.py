"""The run's folder is on a disk of fixed size that fills while the real job runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayrlhf.errors import StorageError
from rayrlhf.metrics import read_metrics
from rayrlhf.report import write_report
from tests.faults import disks, job

SIZES = 12
QUICK_SIZE = 6  # of those, the one that the quick part tries


@pytest.fixture(autouse=True)
def _can_be_mounted(tmp_path: Path) -> None:
    if reason := disks.why_no_disk(tmp_path):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The run that nothing happened to, and the most bytes it needs at once: all that it leaves and one checkpoint."""
    folder = tmp_path_factory.mktemp("plain")
    code, errors = job.run(job.small_config(tiny_model, folder, "job"), folder)
    assert code == 0, errors
    checkpoint = disks.used(folder / "job/checkpoints/000004")
    return folder / "job", disks.used(folder / "job") + checkpoint


@pytest.mark.parametrize(
    "part", [pytest.param(n, marks=() if n == QUICK_SIZE else pytest.mark.faults) for n in range(SIZES)]
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_from_where_it_was(
    tiny_model: Path, tmp_path: Path, plain: tuple[Path, int], part: int
) -> None:
    """Disks from 8 KB up to a little less than the run needs: exit 1, one line that names a file and what to do; what was
    whole before is whole after, and with room made `--resume` ends where the run without fault does, bit for bit."""
    undisturbed, need = plain
    size = 8192 + (need - 8192) * part // SIZES
    with disks.disk(tmp_path / "disk", size) as disk:
        config = job.small_config(tiny_model, disk, "job")
        code, errors = job.run(config, tmp_path)
        told = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert (code, len(told)) == (1, 1), errors
        assert "could not be written: No space left on device" in told[0]
        assert str(disk) in told[0]
        assert "make room" in told[0]
        assert "Traceback" not in errors
        before = job.resumable(disk / "job") or 0
        if (disk / "job").exists():
            done = len(read_metrics(disk / "job"))
            assert done - 1 <= before <= done  # a checkpoint an iteration: the one under way alone is lost
        disks.resize(disk, 4 * need)
        resume = ["--resume"] if (disk / "job").exists() else []
        code, errors = job.run(config, tmp_path, *resume)
        assert code == 0, errors
        assert job.results(disk / "job", 4) == job.results(undisturbed, 4)
        assert not list((disk / "job").glob("*.torn"))  # nothing that was cut short was left
        shutil.rmtree(disk / "job")


def test_a_full_disk_at_the_report_names_it(tiny_model: Path, tmp_path: Path, plain: tuple[Path, int]) -> None:
    """After the last iteration: checkpoints and records are whole, the report is not; it can be written later."""
    undisturbed, _ = plain
    with disks.disk(tmp_path / "disk", 4 * disks.used(undisturbed)) as disk:
        shutil.copytree(undisturbed, disk / "job")
        (disk / "job/report.html").write_text("the old one")
        disks.resize(disk, disks.used(disk) + disks.PAGE)
        with pytest.raises(StorageError, match=r"report\.html could not be written: No space left on device"):
            write_report(disk / "job")
        assert (disk / "job/report.html").read_text() == "the old one"
        assert not list((disk / "job").glob(".*.new"))
        disks.resize(disk, 4 * disks.used(undisturbed))
        write_report(disk / "job")
        assert (disk / "job/report.html").stat().st_size > 1000
