"""Temporary folders that are removed even where the process that made them was killed with SIGKILL: by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


class PrivateFolder:
    """A new folder, removed by `close` or at the interpreter's end; what a killed process left is removed here too."""

    def __init__(self, purpose: str) -> None:
        """purpose: one word that is part of the path, the same for all folders that look after one another."""
        root = Path(tempfile.gettempdir()) / f"rayrlhf-{purpose}-{os.getuid()}"
        root.mkdir(mode=0o700, exist_ok=True)
        with _locked(root):
            _remove_leftovers(root)
            self._folder = tempfile.TemporaryDirectory(dir=root, ignore_cleanup_errors=True)
            self._lock = os.open(self._folder.name, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = Path(self._folder.name)

    def close(self) -> None:
        """Removes the folder and all that is in it; may be called twice."""
        self._folder.cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _remove_leftovers(root: Path) -> None:
    """Removes the folders whose owners are gone: the system has given their locks back."""
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else makes or removes folders in it meanwhile: between a folder's making and its lock none is taken."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
