"""What a run's own Ray cluster leaves on the disk: nothing, but for logs that may tell why a run failed."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from rayrlhf.errors import ConfigError, LearnerError, NotFiniteError, RewardError, RolloutError
from rayrlhf.ray_start import OwnSession

PROGRAM = """
from pathlib import Path
import ray
from rayrlhf.cluster import ray_cluster

with ray_cluster(1, 100_000_000):
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert (session / "logs").is_dir()
print(session)
"""


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (None, False),
        (KeyboardInterrupt(), False),
        (ConfigError("a key is wrong"), False),
        (RewardError("it raised"), False),
        (NotFiniteError("a loss is not finite"), False),
        (RolloutError("batch 1 was lost 4 times"), True),
        (LearnerError("the learner did not start"), True),
        (ValueError("a bug"), True),
    ],
)
def test_the_session_folder_stays_where_its_logs_may_tell_more(
    tmp_path: Path, error: BaseException | None, stays: bool, caplog: pytest.LogCaptureFixture
) -> None:
    others = tmp_path / "session_other"
    others.mkdir()
    folder = tmp_path / "session_own"
    with contextlib.suppress(BaseException), caplog.at_level(logging.WARNING), OwnSession() as session:
        (folder / "logs").mkdir(parents=True)
        (tmp_path / "session_latest").symlink_to(folder)
        session.folder = folder
        if error is not None:
            raise error
    assert folder.is_dir() == stays
    assert (tmp_path / "session_latest").is_symlink() == stays
    assert (f"Ray's logs of this run are kept: {folder}/logs" in caplog.text) == stays
    assert others.is_dir()


def test_a_cluster_of_the_runs_own_takes_its_session_folder_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folder for temporary files is too long for its sockets, too, and nothing can be kept at home."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 80)))
    monkeypatch.setenv("HOME", "/dev/null")
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    session = Path(done.stdout.split()[-1])
    assert session.name.startswith("session")
    assert not session.exists()
