"""One writer a folder: a lock of the system's, and files that say who writes where a file system keeps no locks.

The lock is POSIX's on `.lock`: held by one process alone (`flock` would live on in a forked child), over NFS too, and
gone with its process. Where the system refuses it, each writer makes the next of `.writer-1`, `.writer-2`, ...: of two
who try at once one gets the name. Who has the highest writes, as long as that process lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
from pathlib import Path

import psutil

from rayrlhf.files import open_own, storing, write_all

LOCK = ".lock"
_WRITER = re.compile(r"\.writer-(\d+)")
_WHO = re.compile(r"process (\d+) on (\S+?)(?:, born (\S+))?")


class Held(Exception):
    """Another process writes into the folder; says which, and what to do where that cannot be found out from here."""


class FolderLock:
    """A folder's lock, held from `take` until `release` or the end of the process; it moves with the folder."""

    def __init__(self, folder: int, lock: int | None, writer: str | None) -> None:
        """Of `take`. folder, lock: open descriptors. lock None: the file system keeps none; then writer is our file."""
        self._folder, self._lock, self._writer = folder, lock, writer

    @classmethod
    def take(cls, path: Path) -> FolderLock:
        """Raises Held where another process has it, OSError or UserError where the folder cannot be written."""
        with contextlib.ExitStack() as opened:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, folder)
            writer, last = _living_writer(folder, path)
            if writer:
                raise Held(writer)
            lock = open_own(path / LOCK, os.O_RDWR | os.O_CREAT)
            opened.callback(os.close, lock)
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _content(lock)
                if error.errno in (errno.EACCES, errno.EAGAIN) or _lives(holder):
                    raise Held(_told(holder, path / LOCK)) from None
                name = _become_writer(folder, path, last + 1)
                os.close(lock)
                opened.pop_all()
                return cls(folder, None, name)
            with storing(path / LOCK):
                os.ftruncate(lock, 0)
                write_all(lock, _self().encode())
            opened.pop_all()
            return cls(folder, lock, None)

    def release(self) -> None:
        """May be called twice."""
        if self._folder < 0:
            return
        with contextlib.suppress(OSError):
            if self._lock is not None:
                os.ftruncate(self._lock, 0)
            elif self._writer is not None:
                os.unlink(self._writer, dir_fd=self._folder)
        if self._lock is not None:
            os.close(self._lock)
        os.close(self._folder)
        self._folder = -1


def is_held(path: Path) -> bool:
    """Whether another process writes into the folder; False where there is no such folder, or nobody ever did."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        if _living_writer(folder, path)[0]:
            return True
        lock = open_own(path / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    finally:
        os.close(folder)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN) or _lives(_content(lock))
    finally:
        os.close(lock)


def _become_writer(folder: int, path: Path, number: int) -> str:
    """Makes the file of this number, removes those of writers that are gone; returns its name. Raises Held.

    number: the next after the last writer who was found to be gone. Asked for anew, it could be one behind somebody who
    became the writer meanwhile.
    """
    name = f".writer-{number}"
    try:
        with storing(path / name):
            own = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
    except FileExistsError:
        raise Held("another process, which began at this moment") from None
    try:
        with storing(path / name):
            write_all(own, _self().encode())
            os.fsync(own)
    except BaseException:  # an empty file would keep everybody out
        os.unlink(name, dir_fd=folder)
        raise
    finally:
        os.close(own)
    if max(_writers(folder)) > number:  # somebody came and went, and another came, since that was found
        os.unlink(name, dir_fd=folder)
        raise Held("another process, which began at this moment")
    for old in _writers(folder):
        if old < number:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f".writer-{old}", dir_fd=folder)
    return name


def _writers(folder: int) -> list[int]:
    return [int(name[1]) for entry in os.listdir(folder) if (name := _WRITER.fullmatch(entry))]


def _living_writer(folder: int, path: Path) -> tuple[str | None, int]:
    """Who writes by a file of their own, in words, None where nobody does any more; and the last writer's number."""
    last = max(_writers(folder), default=0)
    name = f".writer-{last}"
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return None, last  # nobody ever, or released just now
    try:
        holder = _content(file)
    finally:
        os.close(file)
    return (_told(holder, path / name) if not holder or _lives(holder) else None), last


def _content(file: int) -> str:
    return os.pread(file, 300, 0).decode(errors="replace").strip()


def _self() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, born {_birth(os.getpid())}"


def _birth(process: int) -> str | None:
    """What tells a process from a later one of the same number; None where there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}-{Path(f'/proc/{process}/stat').read_text().rsplit(')', 1)[1].split()[19]}"
    except OSError:  # gone, or no Linux
        try:
            return f"{psutil.Process(process).create_time():.0f}"
        except psutil.NoSuchProcess:
            return None


def _lives(holder: str) -> bool:
    """Whether the process that wrote this of itself is there still; on another machine: nobody can say, so it is."""
    who = _WHO.fullmatch(holder)
    if who is None:
        return False
    number, host, born = int(who[1]), who[2], who[3]
    if host != socket.gethostname():
        return True
    now = _birth(number)
    return now is not None and (born is None or born == now)


def _told(holder: str, file: Path) -> str:
    """A holder for people; where nobody can say from here whether it is there, what to do once it is gone."""
    who = _WHO.fullmatch(holder)
    named = "another process" if who is None else f"process {who[1]} on {who[2]}"
    here = who is not None and who[2] == socket.gethostname()
    return named if here else f"{named} (if it is gone, remove {file})"
