"""TextWorld games made from a kind, its parameters and a number, and kept on disk: equal ones are made once.

`game_file(game_kind("coin_collector", level=5), "train", 17)` is the path of that game, made where it is not there yet
(about a second); `make_games` makes many, in several processes. Train and held-out games never share a seed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rayrlhf.errors import EpisodeError, InstallationError
from rayrlhf.games.kinds import GameKind
from rayrlhf.python_path import safe_python_path
from rayrlhf.reading import expanded
from rayrlhf.terminal_output import plain_console
from rayrlhf.types import Split

FIRST_SEED: dict[Split, int] = {"train": 1_000_000, "held_out": 2_000_000}
"""Seed of game 0 of each split; game n has the seed n above."""
MOST_GAMES = 1_000_000
"""Games of one split: beyond, the seeds of the next split would begin."""
_RETRY_STRIDE = 10_000_000  # a seed that TextWorld finds no game for is tried again this much higher
_RETRIES = 20
_CACHE_FORMAT = 1  # goes up when a game of equal kind, parameters and seed would come out different


def require_textworld() -> None:
    """Raises InstallationError where TextWorld cannot be imported, and says why."""
    try:
        import textworld  # noqa: F401
    except ImportError as error:
        raise InstallationError(
            f"TextWorld games need the package textworld, which this Python lacks ({error}). It has wheels for Linux and "
            f"macOS on x86_64, and this machine is {platform.system()} on {platform.machine()}: "
            "where that is one of them, run `pip install 'textworld>=1.7'`"
        ) from error


def cache_folder() -> Path:
    """Where games are kept once they are made: $RAYRLHF_CACHE, else ~/.cache/rayrlhf."""
    folder = Path(os.environ.get("RAYRLHF_CACHE") or expanded("~/.cache/rayrlhf", EpisodeError))
    if not folder.is_absolute():  # it would be another one in each process: games are played in folders of their own
        raise EpisodeError(f"RAYRLHF_CACHE is {str(folder)!r}: give the folder's whole path, from / on")
    return folder


def games_folder(kind: GameKind) -> Path:
    """The folder of all games of a kind; its name says all that they follow from beside the number."""
    version = f"textworld-{importlib.metadata.version('textworld')}-{_CACHE_FORMAT}"
    values = "".join(f"-{name}-{str(value).lower()}" for name, value in asdict(kind).items())
    return cache_folder() / "games" / version / f"{kind.name}{values}"


def game_path(kind: GameKind, split: Split, number: int) -> Path:
    """The .z8 file of a game, whether it was made yet or not; number: 0 to MOST_GAMES - 1.

    The name must not begin with `tw-` as TextWorld's own do: jericho plays such files at a third of the speed.
    """
    if not 0 <= number < MOST_GAMES:
        raise EpisodeError(f"there is no game {number} of {kind.name}: they are numbered 0 to {MOST_GAMES - 1}")
    return games_folder(kind) / str(FIRST_SEED[split] + number) / "game.z8"


def is_made(path: Path) -> bool:
    """Whether a game's files are there and as they were written."""
    try:
        return path.with_suffix(".sha256").read_text() == _digests(path)
    except OSError:
        return False


def game_file(kind: GameKind, split: Split, number: int) -> Path:
    """The .z8 file of a game, its .json beside it; made where it is missing or damaged.

    Raises:
        EpisodeError: TextWorld finds no such game, for any of the seeds that are tried.
        InstallationError: TextWorld is not there.
    """
    path = game_path(kind, split, number)
    if not is_made(path):
        _make(kind, FIRST_SEED[split] + number, path)
    return path


def make_games(
    kind: GameKind, split: Split, count: int, processes: int = 1, progress: Callable[[int], object] | None = None
) -> list[Path]:
    """The files of games 0 to count - 1, those made that were missing or damaged.

    processes: so many make them side by side, each about one game a second.
    progress: called with 1 for each game that is there.

    Raises as `game_file` does, and EpisodeError where a process died.
    """
    require_textworld()
    told = progress or (lambda _: None)
    paths = [game_path(kind, split, number) for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not is_made(path)]
    told(count - len(missing))
    for _ in _each_made(partial(game_file, kind, split), missing, min(processes, len(missing))):
        told(1)
    return paths


def make_all(kind: GameKind, games: int, held_out_games: int, processes: int) -> dict[Split, list[Path]]:
    """The files of a kind's games of both splits, made with a progress bar where standard error is a terminal.

    Raises as `make_games` does.
    """
    console = plain_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"making {kind.name} games", total=games + held_out_games)
        return {
            "train": make_games(kind, "train", games, processes, partial(bar.advance, task)),
            "held_out": make_games(kind, "held_out", held_out_games, processes, partial(bar.advance, task)),
        }


def _each_made(make: Callable[[int], Path], numbers: Sequence[int], processes: int) -> Iterator[Path]:
    if processes <= 1:
        yield from map(make, numbers)
        return
    # Spawned: a fork would copy the threads' locks of a driver that has started Ray and torch.
    context = multiprocessing.get_context("spawn")
    with safe_python_path(), ProcessPoolExecutor(processes, context) as pool:
        try:
            yield from pool.map(make, numbers)
        except BrokenProcessPool as error:
            raise EpisodeError(
                "a process that made games was killed, as happens where memory runs out; games made so far are kept: "
                f"run it again with fewer than {processes} processes"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _make(kind: GameKind, seed: int, path: Path) -> None:
    """Makes the game's folder aside and renames it: nobody sees half a game, and of two who make it the first wins."""
    require_textworld()
    from textworld.generator import compile_game

    path.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=path.parent.parent) as aside:
        made = Path(aside, "new", path.name)
        game, options = _generate(kind, seed)
        game.metadata["uuid"] = f"{kind.name}-{seed}"
        options.path = str(made)
        compile_game(game, options)
        made.with_suffix(".ni").unlink()  # its source, of no more use
        made.with_suffix(".sha256").write_text(_digests(made))
        while not is_made(path):  # else another process was faster
            try:
                made.parent.rename(path.parent)
                return
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            if not is_made(path):
                with contextlib.suppress(FileNotFoundError):
                    path.parent.rename(Path(aside, f"damaged-{uuid.uuid4()}"))


def _generate(kind: GameKind, seed: int) -> tuple[Any, Any]:
    """TextWorld's Game and the GameOptions it came from; a seed that it finds none for is replaced, always alike."""
    import textworld
    from textworld.generator import QuestGenerationError

    reason: Exception | None = None
    for attempt in range(_RETRIES):
        tried = seed + attempt * _RETRY_STRIDE
        options = textworld.GameOptions()
        options.seeds = tried
        textworld.g_rng.set_seed(
            tried
        )  # what is drawn beside the options' own streams must not follow from earlier games
        try:
            return kind.generate(options), options
        except QuestGenerationError as error:
            reason = error
    raise EpisodeError(
        f"TextWorld finds no {kind.name} game with {json.dumps(asdict(kind))}: {_RETRIES} seeds failed, the last with "
        f"{str(reason).strip()!r}; ask for a shorter quest or more rooms and objects"
    )


def _digests(path: Path) -> str:
    """Names and SHA-256 of a game's two files, as `sha256sum` writes them."""
    files = (path.with_suffix(".json"), path)
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
