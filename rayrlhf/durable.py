"""Files that survive a crash: written aside, flushed to the disk, renamed into place."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk: without it a rename may be undone by a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Gives `path` the joined parts as its content at once: a reader, or a crash, finds the old content or the new."""
    aside = path.with_name(f".{path.name}.new")
    with open(aside, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_folder(path.parent)
