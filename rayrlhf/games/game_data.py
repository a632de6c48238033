"""Game files that anybody may have made or damaged: read, checked, and blamed by name where TextWorld fails over them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayrlhf.errors import EpisodeError, UserError
from rayrlhf.files import read_bytes, read_json

_HEADER_BYTES = 64
_LENGTH, _CHECKSUM = 26, 28  # addresses of the header's words
_UNITS = {1: 2, 2: 2, 3: 2, 4: 4, 5: 4, 6: 8, 7: 8, 8: 8}
"""Version of the Z-machine -> bytes that its header's length counts in."""


def read_game(path: Path) -> bytes:
    """The bytes of a Z-machine's game. The interpreter would take the process with it over those of anything else.

    Raises EpisodeError where the file is missing, cut short or damaged, as far as its header knows its length and sum
    (The Z-Machine Standards Document 1.1, section 11.1); some of the oldest know neither.
    """
    if not path.is_file():
        raise EpisodeError(f"there is no game file {path}")
    content = read_bytes(path, EpisodeError)
    if len(content) < _HEADER_BYTES or content[0] not in _UNITS:
        raise EpisodeError(f"{path} is no game of the Z-machine: it does not begin with a version of 1 to 8")
    length = _word(content, _LENGTH) * _UNITS[content[0]]
    if len(content) < length:
        raise EpisodeError(f"{path} is cut short: its header speaks of {length} bytes, and it has {len(content)}")
    if length and sum(content[_HEADER_BYTES:length]) % 65536 != _word(content, _CHECKSUM):
        raise EpisodeError(f"{path} is damaged: the sum of its bytes is not the one in its header; get or make it anew")
    return content


def load_game(path: Path) -> Any:
    """TextWorld's Game of the .json that its games have beside them. Raises EpisodeError, naming the file, for any other."""
    from textworld.generator.game import Game

    data = read_json(path, EpisodeError)
    with blamed(path):
        return Game.deserialize(data)


@contextlib.contextmanager
def blamed(path: Path) -> Iterator[None]:
    """What TextWorld raises within is the file's fault: an EpisodeError that names it.

    No further try would help, unlike with faults of the machine's, which are let through.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        raise EpisodeError(
            f"{path} is damaged, or no game that this TextWorld knows: {type(error).__name__}: {error}"
        ) from error


def _word(memory: bytes, address: int) -> int:
    return memory[address] * 256 + memory[address + 1]
