"""`rayrlhf doctor`: looks at the machine, tries what a run needs, and says what to do about each fault.

Nothing here needs the packages it asks about: imports are inside the checks, and what may crash or hang (Ray,
DeepSpeed, the model) is tried in a process of its own with a deadline (`doctor_probes.py`).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["ok", "note", "fault"]

GB = 1e9
RAY_SPILL_LIMIT = 0.95  # Ray refuses to spill or create objects on a disk that is fuller than this
LOCAL_OBJECT_STORE_GB = 2.0
DEFAULT_JOB_MEMORY_GB = 6.0
SMALLEST_MEMORY_GB = 2.0
RUN_DISK_GB = 1.0
OPEN_FILES = 4096  # what Ray recommends at least
FEWEST_OPEN_FILES = 512
CLUSTER_PORTS = {6379: "Ray's head", 8265: "Ray's dashboard and job server", 10001: "Ray's client server"}
TEXTWORLD_PLATFORMS = {("Linux", "x86_64"), ("Darwin", "x86_64")}
PROBE_DEADLINE_S = 120.0
INSTALL = "`make setup` in a checkout, or `pip install rayrlhf` again in a new environment"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table. `note`: a run works, with a limit; `fault`: it does not."""

    name: str
    found: str
    verdict: Verdict
    remedy: str = ""  # what to do; empty where all is well


def run(storage_path: str = "runs", quick: bool = False) -> int:
    """Prints the table. `quick` leaves out what starts processes (Ray, DeepSpeed, the model).

    Returns:
        1 if something that a run needs is broken, else 0.
    """
    checks = examine(storage_path, quick)
    _print_table(checks)
    faults = [check.name for check in checks if check.verdict == "fault"]
    if faults:
        print(f"{len(faults)} of {len(checks)} checks found a fault: {', '.join(faults)}.")
        return 1
    print("Everything a run needs is here.")
    return 0


def examine(storage_path: str = "runs", quick: bool = False) -> list[Check]:
    """All checks, in the order of the table; those in processes of their own run side by side."""
    probes: list[Callable[[], Check]] = [] if quick else [deepspeed, ray_cluster, shipped_model]
    with ThreadPoolExecutor(max_workers=max(1, len(probes))) as pool:
        slow = [pool.submit(_guarded, probe) for probe in probes]
        temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        quick_ones: list[Callable[[], Check]] = [
            python_version, packages, torch_devices, c_compiler, textworld, loopback, cluster_ports, shared_memory,
            lambda: disk_space("disk of runs", Path(storage_path)),
            lambda: disk_space("disk of Ray's temporary files", Path(temporary), spills=True),
            memory, open_files, model_hub,
        ]  # fmt: skip
        checks = [_guarded(check) for check in quick_ones]
        return checks + [probe.result() for probe in slow]


def _guarded(check: Callable[[], Check]) -> Check:
    """A check that itself breaks is a fault of what it looks at, and must not hide the others."""
    try:
        return check()
    except Exception as error:
        name = getattr(check, "__name__", "check").replace("_", " ")
        return Check(name, f"{type(error).__name__}: {error}", "fault", INSTALL)


def _print_table(checks: Sequence[Check]) -> None:
    try:
        from rich.table import Table
        from rich.text import Text

        from rayrlhf.terminal_output import plain_console
    except ImportError:
        for check in checks:
            print(f"{check.verdict:5}  {check.name}: {check.found}" + (f" -> {check.remedy}" if check.remedy else ""))
        return
    table = Table("Check", "Found", "Verdict", "What to do")
    colours = {"ok": "green", "note": "yellow", "fault": "bold red"}
    for check in checks:
        table.add_row(check.name, Text(check.found), Text(check.verdict, colours[check.verdict]), Text(check.remedy))
    plain_console().print(table)


# Python and packages --------------------------------------------------------------------------------------------------


def python_version(version: tuple[int, int] = (sys.version_info.major, sys.version_info.minor)) -> Check:
    found = f"{version[0]}.{version[1]} ({platform.system()} {platform.machine()})"
    if (3, 11) <= version < (3, 14):
        return Check("Python", found, "ok")
    return Check("Python", found, "fault", "install Python 3.11, 3.12 or 3.13 and make a new environment with it")


def packages(requirements: Sequence[str] | None = None, pins: Path | None = None) -> Check:
    """Installed packages against the project's requirements (faults) and against the tested set (notes).

    `pins` is constraints.txt, which a checkout has beside the package and an installed wheel has not.
    """
    from packaging.requirements import Requirement

    given = importlib.metadata.requires("rayrlhf") or [] if requirements is None else requirements
    pins = pins or Path(__file__).resolve().parent.parent / "constraints.txt"
    tested = dict(line.split("==", 1) for line in pins.read_text().split() if "==" in line) if pins.is_file() else {}
    tested = {name.lower().replace("_", "-"): version for name, version in tested.items()}
    wrong, other, count = [], [], 0
    for requirement in map(Requirement, given):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        pin = tested.get(requirement.name.lower().replace("_", "-"))
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
        elif pin and version.split("+")[0] != pin:
            other.append(f"{requirement.name} {version} (tested: {pin})")
    if wrong:
        return Check("packages", "; ".join(wrong), "fault", INSTALL)
    if other:
        return Check("packages", "; ".join(other), "note", "if something fails, install with `-c constraints.txt`")
    return Check("packages", f"{count} as required" + (" and as tested" if tested else ""), "ok")


def torch_devices() -> Check:
    import torch

    if not torch.cuda.is_available():
        found = f"torch {torch.__version__}, no GPU, {os.cpu_count()} CPUs"
        if shutil.which("nvidia-smi") is None:
            return Check("devices", found, "ok")
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build for CPUs only"
        remedy = "install the torch build for your driver (pytorch.org/get-started), or run on the CPU"
        return Check("devices", f"{found}; nvidia-smi is here, torch is {built}", "note", remedy)
    names = sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
    found = f"torch {torch.__version__}, {torch.cuda.device_count()} x {', '.join(names)}"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Check("devices", f"{found}, bf16", "ok")
    return Check("devices", f"{found}, no bf16", "note", "`learner.precision: auto` uses fp32 here")


def c_compiler() -> Check:
    compiler = (os.environ.get("CC") or "cc").split()[0]
    path = shutil.which(compiler)
    if path is not None:
        return Check("C compiler", path, "ok")
    needed = (platform.system(), platform.machine()) in TEXTWORLD_PLATFORMS and not _is_installed("jericho")
    remedy = "Debian, Ubuntu: apt install build-essential; Fedora: dnf install gcc make; macOS: xcode-select --install"
    return Check("C compiler", f"no `{compiler}` on the PATH", "fault" if needed else "note", remedy)


def textworld() -> Check:
    if (platform.system(), platform.machine()) not in TEXTWORLD_PLATFORMS:
        found = f"no build for {platform.system()} {platform.machine()}"
        return Check("TextWorld", found, "note", "all else works; games need Linux or macOS on x86-64")
    import jericho  # noqa: F401 - loads the compiled interpreter
    import textworld as package

    return Check("TextWorld", package.__version__, "ok")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# Network --------------------------------------------------------------------------------------------------------------


def loopback() -> Check:
    """Connects to itself on a free port, as Ray's processes and the learner's ranks do."""
    remedy = "allow TCP on 127.0.0.1 between processes of this user (firewall, container or sandbox settings)"
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(5)
            with socket.create_connection(server.getsockname(), timeout=5):
                server.accept()[0].close()
    except OSError as error:
        return Check("loopback", f"{type(error).__name__}: {error}", "fault", remedy)
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return Check(
            "loopback", f"works, but the name {name} has no address", "note", f"add `127.0.1.1 {name}` to /etc/hosts"
        )
    return Check("loopback", f"works; {name} is {address}", "ok")


def cluster_ports(ports: Sequence[int] = tuple(CLUSTER_PORTS)) -> Check:
    """Ports that `ray start --head` takes; a run on one machine takes free ones instead."""
    taken = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                taken.append(f"{port} ({CLUSTER_PORTS.get(port, 'asked for')})")
    if not taken:
        return Check("cluster ports", f"{', '.join(map(str, ports))} are free", "ok")
    remedy = "fine where a Ray head runs here (RAY_ADDRESS=auto joins it); else `ray start --head --port=...`"
    return Check("cluster ports", f"in use: {', '.join(taken)}", "note", remedy)


# Space ----------------------------------------------------------------------------------------------------------------


def shared_memory(path: Path = Path("/dev/shm"), needed_gb: float = LOCAL_OBJECT_STORE_GB) -> Check:
    if not path.is_dir():
        return Check("shared memory", f"no {path}: Ray keeps objects in files", "ok")
    free = shutil.disk_usage(path).free / GB
    if free >= needed_gb:
        return Check("shared memory", f"{free:.1f} GB free in {path}", "ok")
    remedy = f"Ray falls back to slow files: give the container --shm-size={needed_gb + 1:.0f}g, or enlarge {path}"
    return Check("shared memory", f"{free:.2f} GB free in {path}, {needed_gb:g} GB wanted", "note", remedy)


def disk_space(name: str, path: Path, needed_gb: float = RUN_DISK_GB, spills: bool = False) -> Check:
    """Free space where `path` is or will be, and whether it can be written.

    Args:
        spills: Ray spills objects there, which it stops doing at 95 % full, however large the disk is.
    """
    folder = path.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        found = f"{path} cannot be written: {error.strerror or error}"
        return Check(name, found, "fault", "give another folder (storage_path=..., RAY_TMPDIR) or the right to write")
    usage = shutil.disk_usage(folder)
    full = 1 - usage.free / usage.total
    found = f"{path}: {usage.free / GB:.1f} GB free, {full:.0%} full"
    if usage.free < needed_gb * GB:
        return Check(name, found, "fault", f"free some space: at least {needed_gb:g} GB are needed")
    if spills and full > RAY_SPILL_LIMIT:
        remedy = "Ray stops writing objects at 95 % full: free some space, or set RAY_TMPDIR to another disk"
        return Check(name, found, "fault", remedy)
    return Check(name, found, "ok")


def memory(wanted_gb: float = DEFAULT_JOB_MEMORY_GB, smallest_gb: float = SMALLEST_MEMORY_GB) -> Check:
    import psutil

    total, available = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit_file = Path("/sys/fs/cgroup/memory.max")  # a container's own limit, which the machine's figures hide
    if limit_file.is_file() and (limit := limit_file.read_text().strip()).isdigit():
        total, available = min(total, int(limit)), min(available, int(limit))
    found = f"{available / GB:.1f} of {total / GB:.1f} GB available"
    if available < smallest_gb * GB:
        return Check("memory", found, "fault", f"end other programs: the smallest run needs {smallest_gb:g} GB")
    if available < wanted_gb * GB:
        return Check("memory", found, "note", "set rollout.workers=1 learner.ranks=1 if a run ends for lack of memory")
    return Check("memory", found, "ok")


def open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "no limit" if soft == resource.RLIM_INFINITY else str(soft)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Check("open files", shown, "ok")
    allowed = "" if hard == resource.RLIM_INFINITY or hard >= OPEN_FILES else f" (as root: the hard limit is {hard})"
    verdict: Verdict = "fault" if soft < FEWEST_OPEN_FILES else "note"
    return Check("open files", shown, verdict, f"`ulimit -n 65536` before the run{allowed}")


def model_hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        remedy = "unset HF_HUB_OFFLINE to use hub names; the shipped model and local folders need no hub"
        return Check("model hub", "HF_HUB_OFFLINE is set: hub names are not looked up", "note", remedy)
    return Check("model hub", "hub names are looked up; the default model needs none", "ok")


# Tried in a process of its own ----------------------------------------------------------------------------------------


def deepspeed(deadline_s: float = PROBE_DEADLINE_S) -> Check:
    """One optimizer step of a small network on one rank: gloo on a CPU, NCCL on a GPU."""
    return _probe("deepspeed", "DeepSpeed", deadline_s, f"see the message; if a package is missing: {INSTALL}")


def ray_cluster(deadline_s: float = PROBE_DEADLINE_S) -> Check:
    """Starts a local cluster with one CPU, runs a task and stops it."""
    remedy = (
        "see the message and /tmp/ray/session_latest/logs; often: ports blocked on this machine (firewall, VPN), "
        "RAY_TMPDIR too long a path, /tmp not writable or full, or too many processes (`ulimit -u`)"
    )
    return _probe("ray", "Ray", deadline_s, remedy)


def shipped_model(deadline_s: float = PROBE_DEADLINE_S) -> Check:
    """Loads the default model and computes one forward pass."""
    return _probe("model", "shipped model", deadline_s, f"the package is damaged: {INSTALL}")


def _probe(probe: str, name: str, deadline_s: float, remedy: str) -> Check:
    from rayrlhf.doctor_probes import attempt

    outcome = attempt(probe, deadline_s)
    return Check(name, outcome.said, "ok" if outcome.works else "fault", "" if outcome.works else remedy)
