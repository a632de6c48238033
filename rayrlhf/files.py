"""Files of ours: written so that they survive a crash and a full disk, never through a link that somebody laid.

What is read is in `reading.py`.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import errno
import io
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rayrlhf.errors import RunFolderError, StorageError, UserError

_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # what makes a cell a formula
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def csv_table(rows: Iterable[Sequence[object]], lineterminator: str = "\n") -> bytes:
    """A table for spreadsheets, UTF-8; half of a surrogate pair, which that cannot hold, as its escape.

    A text that a spreadsheet would take for a formula gets an apostrophe before it; numbers stay numbers.
    """
    lines = []
    for row in rows:
        line = io.StringIO(newline="")
        csv.writer(line).writerow([_harmless(cell) for cell in row])  # quotes both \r and \n: they are its line's end
        lines.append(line.getvalue().removesuffix("\r\n") + lineterminator)
    return "".join(lines).encode("utf-8", "backslashreplace")


def _harmless(cell: object) -> object:
    """Also where blanks come before the sign, or where it is the full-width one: some programs drop or convert them."""
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell[:1] in ("\t", "\r", "\n") or cell.lstrip()[:1] in _FORMULA else cell


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk: without it a rename may be undone by a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_plain(folder: Path, names: Iterable[str] = (".",), not_folders: Iterable[str] = ()) -> None:
    """Looks through a folder that somebody may have prepared, before anything in it is read or written.

    names: what in it is looked through, with all below; a name may be missing. not_folders: names that are files. The
    folder itself may be a link.

    Raises:
        RunFolderError: something in it is a link, which could lead anywhere, or neither a file nor a folder: a pipe
            would be waited for without end.
    """
    for name in names:
        if name != ".":
            _check_entry(folder / name)
        for place, folders, files in os.walk(folder / name):
            for entry in (*folders, *files):
                _check_entry(Path(place, entry))
    for name in not_folders:
        if (folder / name).is_dir():
            raise RunFolderError(f"{folder / name} is a folder where a file belongs: remove it")


def _check_entry(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:  # gone since it was listed
        return
    if stat.S_ISLNK(mode):
        raise RunFolderError(
            f"{path} is a link: in a folder like this none is followed; put what it leads to in its place"
        )
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise RunFolderError(f"{path} is neither a file nor a folder: remove it")


def open_own(path: Path, flags: int, mode: int = 0o644) -> int:
    """`os.open` of a file that is ours to write: a link that somebody put in its place is refused, never followed.

    Raises RunFolderError where `path` is a symbolic link, or no file at all.
    """
    try:  # O_NONBLOCK is for pipes alone: nobody reads them
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunFolderError(f"{path} is a link: nothing is written through it; remove it") from error
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise RunFolderError(f"{path} is no file, so nothing can be written to it; remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunFolderError(f"{path} is no file, so nothing can be written to it; remove it")
    return descriptor


_GIVEN_OUT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE})
"""What the system says where it is the disk, not the path, that takes no more."""
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT})
"""What it says where nothing can be written at a path, whatever room there is."""


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Around what writes `path`: raises StorageError, which names it and says what to free, where the disk gives out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GIVEN_OUT:
            raise
        raise storage_error(path, error) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """As `storing`; raises RunFolderError where nothing can be written at `path`: no right to, no folder for it."""
    with storing(path):
        try:
            yield
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            raise RunFolderError(
                f"{path} cannot be written: {error.strerror}; name another place, or copy its folder to one that you may "
                "write to"
            ) from error


def fault_of_system(error: OSError) -> UserError | None:
    """The fault for people where nobody closer to the file has named it: a full disk, a file that cannot be used, or a name
    that no file can have."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return storage_error(Path(error.filename) if error.filename else None, error)
    if error.errno in _REFUSED and error.filename:
        return RunFolderError(f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}")
    if error.errno == errno.ENAMETOOLONG:  # a person or a file gave it: whoever asks for it, it is nowhere
        name = str(error.filename)
        shown = name if len(name) <= 100 else f"{name[:50]}...{name[-50:]}"
        return UserError(f"{shown}: no file has so long a name ({len(name)} characters)")
    return None


def storage_error(path: Path | None, reason: OSError | str) -> StorageError:
    """The fault of a disk that `path` could not be written to; None where nobody knows which file, nor which disk.

    reason: the system's own, or what another library said.
    """
    told = (reason.strerror or str(reason)) if isinstance(reason, OSError) else reason
    if isinstance(reason, OSError) and reason.errno == errno.EROFS:
        room, advice = "", "mend the disk, or have it mounted to be written to"
    else:
        room = "" if path is None else _room(path)
        advice = "make room there (move older runs, or the oldest checkpoints of this one, elsewhere) or mend the disk"
    return StorageError(
        f"{path or 'a file'} could not be written: {told}{room}. Nothing before it is lost: {advice}, then go on with "
        "--resume"
    )


def _room(path: Path) -> str:
    """How much of its disk is free, in words; nothing where that cannot be asked."""
    there = next((folder for folder in path.parents if folder.exists()), None)
    if there is None:
        return ""
    try:
        usage = shutil.disk_usage(there)
    except OSError:
        return ""
    return f" ({usage.free / 1e6:.1f} of {usage.total / 1e6:.1f} MB are free on the disk of {there})"


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """As `storing`, around libraries that write into `folder` and have errors of their own for a disk that is full:
    PyTorch's RuntimeError, safetensors' SafetensorError. The file that was written last is named."""
    try:
        with storing(folder):
            yield
    except UserError:
        raise
    except Exception as error:
        if said := _says_that_the_disk_gave_out(error):
            raise storage_error(folder, said) from error  # half of the file may be gone again, and room is left
        if not is_full(folder):
            raise
        files = [entry for entry in folder.rglob("*") if entry.is_file()]
        last = max(files, key=lambda entry: entry.stat().st_mtime_ns, default=folder)
        raise storage_error(last, os.strerror(errno.ENOSPC)) from error


def _says_that_the_disk_gave_out(error: Exception) -> str | None:
    """The system's words that a library repeats in an error of its own; None where it repeats none of a disk's."""
    return next((words for words in map(os.strerror, _GIVEN_OUT) if words in str(error)), None)


def is_full(folder: Path, size: int = 1 << 16) -> bool:
    """Whether the disk of a folder takes no more than `size` bytes, or none at all: asked by writing a file."""
    probe = folder / f".room-{os.getpid()}"
    try:
        with open(open_own(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in _GIVEN_OUT
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return False


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of it, however little the system takes at a time; OSError where it takes no more."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


_RENAME_EXCHANGE, _AT_FDCWD = 2, -100


def exchange(one: Path, other: Path) -> bool:
    """Gives two files or folders one another's names at once; False where this system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE))
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def replace_folder(aside: Path, folder: Path) -> None:
    """Gives the folder `aside` the name `folder`; what had that name is removed after. A reader, or a crash, finds the
    one or the other; where the file system cannot exchange two names, the old one as `.NAME.old` in the worst case."""
    if not folder.exists():
        os.rename(aside, folder)
    elif exchange(aside, folder):
        shutil.rmtree(aside)
    else:
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
        os.rename(aside, folder)
        shutil.rmtree(old)
    sync_folder(folder.parent)


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Gives `path` the joined parts as its content at once: a reader, or a crash, finds the old content or the new.

    Raises RunFolderError where nothing may be written there, or a link stands in the way of the file that is written
    aside, StorageError where the disk gives out: the old content stays then.
    """
    aside = path.with_name(f".{path.name}.new")
    with writing(path):
        descriptor = open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with open(descriptor, "wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            aside.unlink(missing_ok=True)  # half of it is of no use, and takes room
            raise
        try:
            os.replace(aside, path)
        except IsADirectoryError as error:
            aside.unlink()
            raise RunFolderError(f"{path} is a folder where a file is to be written: remove it") from error
        sync_folder(path.parent)


class LineWriter:
    """Appends to a file of ours, unbuffered: what one call writes is there for every reader at once, or not at all."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError where the disk gives out, RunFolderError where a link stands in the place of the file, or
        nothing may be written there."""
        self._path = path
        with writing(path):
            self._file = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, lines: bytes) -> None:
        """Raises StorageError where the disk takes only a part of it, which is taken away again."""
        end, rest = os.fstat(self._file).st_size, memoryview(lines)
        with storing(self._path):
            try:
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                if os.fstat(self._file).st_size == end + len(lines) - len(rest):  # nobody else wrote meanwhile
                    os.ftruncate(self._file, end)
                raise

    def sync(self) -> None:
        """Onto the disk."""
        with storing(self._path):
            os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def append_to(path: Path) -> LineWriter:
    """A file of ours, opened for writing at its end."""
    return LineWriter(path)
