"""Files: reading what anybody may have written, and writing what survives a crash.

What is read is data. `read_text`, `parse_json`, `read_json` and `typed` turn every way in which it can be damaged (no
UTF-8, no JSON, nested without end, a number of 5,000 digits, a record of another type) into one error that names the
place. `printable` makes any text safe to show.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from rayrlhf.errors import RunFolderError, UserError

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
    from pydantic import TypeAdapter, ValidationError  # slow to import, and of no use to a process that plays games

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


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Gives `path` the joined parts as its content at once: a reader, or a crash, finds the old content or the new.

    Raises RunFolderError where a link stands in the way of the file that is written aside.
    """
    aside = path.with_name(f".{path.name}.new")
    with open(open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_folder(path.parent)
