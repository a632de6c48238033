"""Files: reading what anybody may have written, and writing what survives a crash.

What is read is data. `read_text`, `parse_json`, `read_json` and `typed` turn every way in which it can be damaged (no
UTF-8, no JSON, nested without end, a number of 5,000 digits, a record of another type) into one error that names the
place. `printable` makes any text safe to show.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rayrlhf.errors import RunFolderError, StorageError, UserError

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")
_NOT_SHOWN = re.compile(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
SHOWN = 200  # characters of a stranger's text that a message repeats


def printable(text: str) -> str:
    """The text for people: controls as their pictures (U+2400 and on), halves of surrogate pairs and marks that turn the
    writing direction as U+FFFD. Ends of lines and tabs stay. It can be encoded as UTF-8, and no terminal obeys it.
    """
    shown = _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])), text.replace("\r\n", "\n"))
    return _NOT_SHOWN.sub("\N{REPLACEMENT CHARACTER}", shown)


def read_bytes(path: Path, fault: type[UserError]) -> bytes:
    """Raises `fault`, naming the file, where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise fault(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path, fault: type[UserError]) -> str:
    """The text of a file; a byte order mark goes. Raises `fault`, naming file and line, where it is not UTF-8."""
    return decoded(read_bytes(path, fault), str(path), fault)


def decoded(raw: bytes, place: str, fault: type[UserError]) -> str:
    """UTF-8 bytes of `place` as text; a byte order mark goes."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise fault(f"{place}:{line}: not UTF-8 text (byte {raw[error.start]:#04x})") from error


def parse_json(text: str | bytes, place: str, fault: type[UserError]) -> Any:
    """What a JSON text says. Raises `fault`, naming the place, for any text that is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise fault(f"{place}: nested too deeply to be read") from error
    except UnicodeDecodeError as error:
        raise fault(f"{place}: not UTF-8 text (byte {error.object[error.start]:#04x})") from error
    except ValueError as error:  # also an integer of more digits than Python takes
        raise fault(f"{place}: not JSON: {error}") from error


def read_json(path: Path, fault: type[UserError]) -> Any:
    """What a JSON file says. Raises `fault`, naming the file, where it cannot be read or is no JSON."""
    return parse_json(read_bytes(path, fault), str(path), fault)


def typed(kind: type[T], value: Any, place: str, fault: type[UserError]) -> T:
    """`value` as `kind`: a pydantic model, a dataclass, a TypedDict or any other type that pydantic knows.

    Raises `fault`, naming the place and the first field that is not as it should be.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise fault(f"{place}: {printable(field)[:SHOWN]}{': ' if field else ''}{first['msg']}") from error


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk: without it a rename may be undone by a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_own(path: Path, flags: int, mode: int = 0o644) -> int:
    """`os.open` of a file that is ours to write: a link that somebody put in its place is refused, never followed.

    Raises RunFolderError where `path` is a symbolic link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunFolderError(f"{path} is a link: nothing is written through it; remove it") from error
        raise


_GIVEN_OUT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE})
"""What the system says where it is the disk, not the path, that takes no more."""


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Around what writes `path`: raises StorageError, which names it and says what to free, where the disk gives out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GIVEN_OUT:
            raise
        raise storage_error(path, error) from error


def disk_is_full(error: OSError) -> StorageError | None:
    """The fault for people, where it is a full disk that nobody closer to the file has named."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return storage_error(Path(error.filename or "a file"), error)


def storage_error(path: Path, reason: OSError | str) -> StorageError:
    """The fault of a disk that `path` could not be written to. reason: the system's own, or what another library said."""
    told = (reason.strerror or str(reason)) if isinstance(reason, OSError) else reason
    return StorageError(
        f"{path} could not be written: {told}{_room(path)}. Nothing before it is lost: make room there (move older "
        "runs, or the oldest checkpoints of this one, elsewhere) or mend the disk, then go on with --resume"
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
        if not is_full(folder):
            raise
        files = [entry for entry in folder.rglob("*") if entry.is_file()]
        last = max(files, key=lambda entry: entry.stat().st_mtime_ns, default=folder)
        raise storage_error(last, os.strerror(errno.ENOSPC)) from error


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

    Raises RunFolderError where a link stands in the way of the file that is written aside, StorageError where the disk
    gives out: the old content stays then.
    """
    aside = path.with_name(f".{path.name}.new")
    with storing(path):
        descriptor = open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with open(descriptor, "wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            aside.unlink(missing_ok=True)  # half of it is of no use, and takes room
            raise
        os.replace(aside, path)
        sync_folder(path.parent)
