"""`rayrlhf doctor` finds what is broken and says what to do (requirement "doctor"); each condition is really broken.

The whole table on a sound machine is tested with the README's commands.
"""

from __future__ import annotations

import resource
import socket
from pathlib import Path

import pytest

from rayrlhf import doctor, doctor_probes


def test_python_outside_the_supported_versions_is_a_fault() -> None:
    assert doctor.python_version((3, 10)).verdict == "fault"
    assert doctor.python_version((3, 14)).verdict == "fault"
    assert doctor.python_version((3, 13)).verdict == "ok"


def test_packages_missing_or_of_a_wrong_version_are_named() -> None:
    check = doctor.packages(["no-such-package-of-ours>=1", "numpy>=99", "rich>=1", "absent; extra == 'dev'"])
    assert check.verdict == "fault"
    assert "no-such-package-of-ours is missing" in check.found
    assert "numpy" in check.found
    assert "is not >=99" in check.found
    assert "rich" not in check.found
    assert "absent" not in check.found
    assert check.remedy


def test_a_package_other_than_the_tested_one_is_a_note(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("numpy==1.0\n")
    check = doctor.packages(["numpy>=1", "rich"], pins)
    assert check.verdict == "note"
    assert "tested: 1.0" in check.found


def test_this_environment_is_as_required() -> None:
    assert doctor.packages().verdict != "fault"


def test_a_path_without_a_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    check = doctor.c_compiler()
    assert check.verdict != "ok"
    assert "build-essential" in check.remedy
    (tmp_path / "cc").write_text("#!/bin/sh\n")
    (tmp_path / "cc").chmod(0o755)
    assert doctor.c_compiler().verdict == "ok"


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        taken = doctor.cluster_ports([port])
    assert taken.verdict == "note"
    assert str(port) in taken.found
    assert doctor.cluster_ports([port]).verdict == "ok"


def test_loopback_works_here() -> None:
    assert doctor.loopback().verdict != "fault"


def test_a_disk_too_small_or_not_writable_is_a_fault(tmp_path: Path) -> None:
    assert doctor.disk_space("disk", tmp_path / "not" / "there" / "yet").verdict == "ok"
    small = doctor.disk_space("disk", tmp_path, needed_gb=1e9)
    assert small.verdict == "fault"
    assert "free some space" in small.remedy
    (tmp_path / "file").touch()
    unwritable = doctor.disk_space("disk", tmp_path / "file" / "runs")
    assert unwritable.verdict == "fault"
    assert "cannot be written" in unwritable.found


def test_too_little_memory_and_shared_memory_are_said(tmp_path: Path) -> None:
    assert doctor.memory(smallest_gb=1e6).verdict == "fault"
    assert doctor.memory(wanted_gb=1e6, smallest_gb=0).verdict == "note"
    assert doctor.memory(wanted_gb=0, smallest_gb=0).verdict == "ok"
    small = doctor.shared_memory(tmp_path, needed_gb=1e9)
    assert small.verdict == "note"
    assert "--shm-size" in small.remedy


@pytest.mark.parametrize(("limit", "verdict"), [(256, "fault"), (1024, "note")])
def test_a_low_limit_of_open_files_is_said(limit: int, verdict: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        check = doctor.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert check.verdict == verdict
    assert "ulimit -n" in check.remedy


def test_a_hub_that_is_switched_off_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor.model_hub().verdict == "note"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert doctor.model_hub().verdict == "ok"


def test_a_package_that_does_not_import_is_a_fault_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deepspeed.py").write_text("raise ImportError('libdeepspeed.so: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor.deepspeed()
    assert check.verdict == "fault"
    assert "libdeepspeed.so" in check.found
    assert check.remedy


def test_a_ray_that_cannot_start_is_a_fault_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('_raylet.so: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor.ray_cluster()
    assert check.verdict == "fault"
    assert "_raylet.so" in check.found
    assert "RAY_TMPDIR" in check.remedy


def test_a_probe_that_hangs_is_ended_at_its_deadline() -> None:
    outcome = doctor_probes.attempt("ray", deadline_s=0.05)
    assert not outcome.works
    assert "no answer within 0.05 s" in outcome.said


def test_a_check_that_breaks_is_a_fault_and_hides_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    def torch_devices() -> doctor.Check:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    check = doctor._guarded(torch_devices)
    assert check.name == "torch devices"
    assert check.verdict == "fault"
    assert "libcudart" in check.found


def test_quick_examination_reports_a_fault_by_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert doctor.run(storage_path=str(tmp_path / "file" / "runs"), quick=True) == 1
    assert "found a fault: " in capsys.readouterr().out
