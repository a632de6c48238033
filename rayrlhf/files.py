"""Files: reading what anybody may have written, and writing what survives a crash.

What is read is data. `read_text`, `parse_json`, `read_json`, `read_record` and `typed` (and `yaml_text.py`) turn every
way in which it can be damaged (no UTF-8, no JSON, nested without end, a number of 5,000 digits, a record of another
type) into one error that names the place: nothing else in the package reads JSON. `printable` makes any text safe to
show.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import errno
import io
import json
import math
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, PlainValidator, TypeAdapter, ValidationError

from rayrlhf.errors import RunFolderError, StorageError, UserError

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")
_NOT_SHOWN = re.compile(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)  # of JSON, and whole strings, which may hold some
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # what makes a cell a formula
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")
SHOWN = 200  # characters of a stranger's text that a message repeats
MAX_DEPTH = 100  # of nested JSON and YAML: what is deeper can be read, but not always compared or written


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise ValueError("it has to be a finite number")
    return value


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the floats
        return False


Number = Annotated[float, PlainValidator(_number)]
"""Of a record: finite; no text, no truth value."""
Whole = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
"""Of a record: an integer of 64 bits."""
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
"""Of a record: a Whole that is not negative."""


def printable(text: str) -> str:
    """The text for people: controls as their pictures (U+2400 and on), halves of surrogate pairs and marks that turn the
    writing direction as U+FFFD. Ends of lines and tabs stay. It can be encoded as UTF-8, and no terminal obeys it.
    """
    shown = _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])), text.replace("\r\n", "\n"))
    return _NOT_SHOWN.sub("\N{REPLACEMENT CHARACTER}", shown)


def read_bytes(path: Path, fault: type[UserError], place: str = "") -> bytes:
    """Raises `fault`, naming the file, where it cannot be read. place: its name in messages, where not its path."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise fault(f"{place or path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_text(path: Path, fault: type[UserError], place: str = "") -> str:
    """The text of a file; a byte order mark goes. Raises `fault`, naming file and line, where it is not UTF-8.

    place: the file's name in messages, where not its path.
    """
    return decoded(read_bytes(path, fault, place), place or str(path), fault)


def decoded(raw: bytes, place: str, fault: type[UserError]) -> str:
    """UTF-8 bytes of `place` as text; a byte order mark goes."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise fault(f"{place}:{line}: not UTF-8 text (byte {raw[error.start]:#04x})") from error


def too_deep(text: str, most: int = MAX_DEPTH) -> int | None:
    """Where JSON opens more than `most` brackets within each other; None where it never does.

    Looked for before JSON is read: millions of nested lists cost minutes and gigabytes.
    """
    if text.count("[") + text.count("{") <= most:
        return None
    depth = 0
    for found in _BRACKET.finditer(text):
        mark = found[0]
        if mark in "[{":
            depth += 1
            if depth > most:
                return found.start()
        elif mark in "]}":
            depth -= 1
    return None


class Damage(ValueError):
    """Why a text or a value is not what it should be; the message names no place."""


def json_value(text: str | bytes, finite: bool = True) -> Any:
    """What a JSON text says. Raises Damage for any text that is none.

    finite: whether NaN, infinities and numbers beyond the floats are faults.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Damage(f"not UTF-8 text (byte {text[error.start]:#04x})") from error
    if too_deep(text) is not None:
        raise Damage(f"nested more than {MAX_DEPTH} levels deep")
    try:
        return (_FINITE if finite else _ANY).decode(text)
    except Damage:
        raise
    except json.JSONDecodeError as error:
        raise Damage(f"not JSON: {error.msg} at line {error.lineno}, character {error.colno}") from error
    except ValueError as error:  # an integer of more digits than Python takes
        raise Damage("a number has too many digits") from error


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Damage(f"{text[:40]} is no finite number")
    return value


_ANY = json.JSONDecoder()
_FINITE = json.JSONDecoder(parse_float=_finite_number, parse_constant=_finite_number)


def typed_value(kind: type[T], value: Any) -> T:
    """`value` as `kind`: a pydantic model, a dataclass, a TypedDict or any other type that pydantic knows.

    Raises Damage, naming the first field that is not as it should be.
    """
    try:
        return _adapter(kind).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        raise Damage(first_fault(error)) from error
    except OverflowError as error:
        raise Damage("a number is too large") from error


def parse_json(text: str | bytes, place: str, fault: type[UserError], finite: bool = True) -> Any:
    """`json_value`, whose fault is `fault` and names the place."""
    try:
        return json_value(text, finite)
    except Damage as error:
        raise fault(f"{place}: {error}") from error


def read_json(path: Path, fault: type[UserError]) -> Any:
    """What a JSON file says. Raises `fault`, naming the file, where it cannot be read or is no JSON."""
    return parse_json(read_bytes(path, fault), str(path), fault)


def typed(kind: type[T], value: Any, place: str, fault: type[UserError]) -> T:
    """`typed_value`, whose fault is `fault` and names the place."""
    try:
        return typed_value(kind, value)
    except Damage as error:
        raise fault(f"{place}: {error}") from error


def read_record(path: Path, kind: type[T], fault: type[UserError], advice: str, finite: bool = True) -> T:
    """A JSON file of ours as `kind`. Raises `fault`, which names the file and ends with the advice, where it is not."""
    raw = read_bytes(path, fault)
    try:
        return typed_value(kind, json_value(raw, finite))
    except Damage as error:
        raise fault(f"{path} is damaged or of another version of RayRLHF ({error}): {advice}") from error


def first_fault(error: ValidationError) -> str:
    """`field: what is wrong with it`, of the first field that is not as it should be."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = printable(".".join(str(part) for part in first["loc"]))[:SHOWN]
    if first["type"] == "missing":
        return f"{field} is missing"
    return f"{field}{': ' if field else ''}{first['msg'].removeprefix('Value error, ')}"


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


class StrictJson:
    """Strict JSON: no NaN, no number beyond the floats, no key twice. Such faults are noted, and reading goes on."""

    def __init__(self) -> None:
        self._noted: list[str] = []
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object, parse_float=self._float, parse_constant=self._constant
        )

    def read(self, text: str, start: int) -> tuple[Any, int, str]:
        """Value, where it ends, and what is wrong with it, "" for nothing. Raises ValueError, RecursionError."""
        self._noted.clear()
        value, end = self._json.raw_decode(text, start)
        return value, end, self._noted[0] if self._noted else ""

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            text = json.dumps(twice)
            self._noted.append(f"the key {text if len(text) <= 40 else f'{text[:40]}...'} stands twice")
        return value

    def _float(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            self._noted.append(f"the number {text[:40]} is too large")
        return value

    def _constant(self, name: str) -> float:
        self._noted.append(f"{name} is no JSON")
        return 0.0


def csv_table(rows: Iterable[Sequence[object]], lineterminator: str = "\n") -> bytes:
    """A table for spreadsheets, UTF-8; half of a surrogate pair, which that cannot hold, as its escape.

    A text that a spreadsheet would take for a formula gets an apostrophe before it; numbers stay numbers.
    """
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=lineterminator).writerows([[_harmless(cell) for cell in row] for row in rows])
    return file.getvalue().encode("utf-8", "backslashreplace")


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


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Around what writes `path`: raises StorageError, which names it and says what to free, where the disk gives out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GIVEN_OUT:
            raise
        raise storage_error(path, error) from error


def fault_of_system(error: OSError) -> UserError | None:
    """The fault for people where nobody closer to the file has named it: a full disk, or a name that no file can have."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return storage_error(Path(error.filename or "a file"), error)
    if error.errno == errno.ENAMETOOLONG:  # a person or a file gave it: whoever asks for it, it is nowhere
        name = str(error.filename)
        shown = name if len(name) <= 100 else f"{name[:50]}...{name[-50:]}"
        return UserError(f"{shown}: no file has so long a name ({len(name)} characters)")
    return None


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
        try:
            os.replace(aside, path)
        except IsADirectoryError as error:
            aside.unlink()
            raise RunFolderError(f"{path} is a folder where a file is to be written: remove it") from error
        sync_folder(path.parent)


class LineWriter:
    """Appends to a file of ours, unbuffered: what one call writes is there for every reader at once, or not at all."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError where the disk gives out, RunFolderError where a link stands in the place of the file."""
        self._path = path
        with storing(path):
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
