"""Joining a Ray cluster or starting one on this machine: what can be known to fail is refused before Ray waits for it.

What Ray says of a failure is a traceback of its own, after up to 45 s; here it is one line of an InstallationError.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from rayrlhf.errors import InstallationError, LearnerError, NotFiniteError, RolloutError, UserError
from rayrlhf.interrupts import handlers_kept
from rayrlhf.ray_address import ELSEWHERE, check_address
from rayrlhf.reading import first_line

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 60.0  # a port that answers need not be Ray's, and Ray asks it without end
LONGEST_SOCKET_PATH = 107  # bytes of a Unix socket's path (Linux; 103 on macOS)
# What Ray puts behind its temporary folder: sockets of a session whose name has the time and the driver's process id.
_SOCKET_BELOW = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


def join(address: str, **options: Any) -> None:
    """Connects to the cluster at `address`, what RAY_ADDRESS says. Raises InstallationError where that cannot be."""
    from ray._private.services import canonicalize_bootstrap_address

    check_address(address)
    try:
        check_address(address, canonicalize_bootstrap_address(address))
        with _at_most(JOIN_TIMEOUT_S):
            _init(address=address, **options)
    except InstallationError:
        raise
    except Exception as error:  # of many kinds: connection, version, authentication, parsing
        raise InstallationError(f"RAY_ADDRESS={address}: {first_line(error).rstrip('.:')}: {ELSEWHERE}") from error


def start(cpus: int, object_store_bytes: int, **options: Any) -> Path:
    """Starts a cluster on this machine; returns the folder of its logs, sockets and spilled objects.

    Raises InstallationError where that cannot be.
    """
    _bring_token()
    folder = temporary_folder()
    try:
        context = _init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=object_store_bytes,
            _temp_dir=str(folder),
            **options,
        )
    except Exception as error:
        raise InstallationError(
            f"Ray did not start on this machine: {first_line(error).rstrip('.:')}: see {folder}/session_latest/logs and "
            "what `rayrlhf doctor` finds"
        ) from error
    return Path(context.address_info["session_dir"])


class OwnSession:
    """The session folder of a cluster that a run has started on this machine (0.3 to 8 MB): it goes with the cluster.

    It stays, and it is said where, when the block ends by an error that Ray's logs may tell more of: a bug, or workers
    that died once too often.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None  # None: no cluster was started

    def __enter__(self) -> OwnSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.folder is None or not self.folder.is_dir():
            return
        if error is not None and _logs_may_tell(error):
            logger.warning("Ray's logs of this run are kept: %s/logs", self.folder)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        latest = self.folder.with_name("session_latest")
        with contextlib.suppress(OSError):
            if latest.is_symlink() and not latest.exists():
                latest.unlink()


def _logs_may_tell(error: BaseException) -> bool:
    if isinstance(error, RolloutError | LearnerError):
        return not isinstance(error, NotFiniteError)
    return isinstance(error, Exception) and not isinstance(error, UserError)


def _init(**options: Any) -> Any:
    """`ray.init`, whose handler of SIGTERM does not stay."""
    with handlers_kept():
        try:
            return ray.init(**options)
        except SystemExit as end:
            if end.code != signal.SIGTERM:
                raise
            raise KeyboardInterrupt("stopped by SIGTERM") from None


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block that takes longer; outside of the main thread it may take as long as it likes."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no Ray cluster answers there within {seconds:g} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def temporary_folder() -> Path:
    """Where Ray keeps sockets, logs and spilled objects: where it always would, or a folder that serves where that does
    not, which is said.

    Raises:
        InstallationError: nowhere is one that can be written and whose path is short enough for sockets.
    """
    from ray._common.utils import get_default_ray_temp_dir

    usual = Path(get_default_ray_temp_dir()).absolute()
    reason = unfit(usual)
    if not reason:
        return usual
    places = [Path("/tmp"), Path("/var/tmp"), Path(tempfile.gettempdir()), *_home()]
    others = [place / name for place in places for name in ("ray", f"ray-{os.getuid()}")]
    for folder in others:
        if not unfit(folder):
            logger.warning("Ray's temporary files go to %s: %s", folder, reason)
            return folder
    raise InstallationError(f"{reason}, nor is there another folder: set RAY_TMPDIR to a short one that you may write")


def unfit(folder: Path) -> str:
    """Why Ray cannot keep its files in `folder`; empty where it can. The folder is made."""
    length = len(os.fsencode(f"{folder}{_SOCKET_BELOW}"))
    if length > LONGEST_SOCKET_PATH:
        room = LONGEST_SOCKET_PATH - len(_SOCKET_BELOW)
        return f"{folder} is {length - len(_SOCKET_BELOW)} bytes long, and sockets leave room for {room}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            return ""
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"


def _bring_token() -> None:
    """Gives the cluster its password by the environment where Ray could not keep one in ~/.ray."""
    given = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    kept = [home / ".ray" for home in _home()]
    if not any(os.path.isfile(folder / "auth_token") or _is_writable(folder) for folder in kept):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _home() -> list[Path]:
    """This user's home folder, if there is one: a user of a container may have none."""
    try:
        return [Path.home()]
    except RuntimeError:
        return []


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
