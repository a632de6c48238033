"""Faults of disks and files: a disk of fixed size that fills, a torn last write, a flipped bit."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

PAGE = 4096  # bytes: what a tmpfs gives out at a time


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of `size` bytes of its own, mounted at a new `folder`."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={-(-size // PAGE) * PAGE}", "tmpfs", str(folder)],
        check=True, capture_output=True,
    )  # fmt: skip
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(folder: Path, size: int) -> None:
    """Gives the disk at `folder` another size."""
    subprocess.run(["mount", "-o", f"remount,size={-(-size // PAGE) * PAGE}", str(folder)], check=True)


def why_no_disk(folder: Path) -> str | None:
    """Why no disk can be mounted below `folder`; None where one can."""
    if os.getuid() != 0:
        return "a disk of fixed size is a mount, which takes root"
    try:
        with disk(folder / "probe", PAGE):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no disk of fixed size can be mounted here: {error}"
    finally:
        (folder / "probe").rmdir()


def used(folder: Path) -> int:
    """Bytes that the files below `folder` take on their disk."""
    return sum(entry.lstat().st_blocks * 512 for entry in folder.rglob("*"))


def flip_bit(path: Path, bit: int) -> None:
    """Turns one bit of a file round; bits are counted from its beginning and wrap at its end."""
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def tear(path: Path, missing: int) -> None:
    """Takes the last bytes of a file away, as a write that was cut short does."""
    os.truncate(path, max(0, path.stat().st_size - missing))
