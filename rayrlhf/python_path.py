"""Where modules are looked for: the standard library and what is installed first, the user's working folder last.

A folder of somebody's own may hold a `queue.py` or a `types.py`. In front of the standard library it would take its
place, in every process and for every package. Little but the standard library is imported here.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rayrlhf.errors import UserError

LAST = "RAYRLHF_PATH_LAST"
"""The environment variable that tells a process of ours which folders come last."""


def working_folder_last() -> None:
    """Orders this process's search, and what the processes that it starts inherit: see `last_folders`.

    Raises UserError where the working folder is gone.
    """
    try:
        last = last_folders()
    except FileNotFoundError as error:
        raise UserError("the working folder is no longer there: go to one that is") from error
    kept = [folder for folder in _python_path() if folder not in last]
    os.environ[LAST] = os.pathsep.join(last)
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    move_last(last)


def last_folders() -> list[str]:
    """Folders that come last: those of PYTHONPATH that would hide the standard library, then the working folder."""
    here = os.getcwd()
    inherited = filter(None, os.environ.get(LAST, "").split(os.pathsep))
    hiding = [folder for folder in _python_path() if hidden_modules(folder)]
    return list(dict.fromkeys([folder for folder in (*inherited, *hiding) if folder != here] + [here]))


def child_python_path() -> str:
    """PYTHONPATH for a process of ours that is started with `LAST`: without the folders that come last."""
    last = last_folders()
    return os.pathsep.join(folder for folder in _python_path() if folder not in last)


@contextlib.contextmanager
def safe_python_path() -> Iterator[None]:
    """Pythons that are started in this block do not look in the working folder until they are told to."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def move_last(folders: Sequence[str]) -> None:
    """Puts `folders` at the end of `sys.path`, in their order."""
    asked = [os.path.abspath(folder) for folder in folders]
    first = [entry for entry in sys.path if os.path.abspath(entry) not in asked]
    if sys.path != [*first, *asked]:
        sys.path[:] = [*first, *asked]


def hidden_modules(folder: str) -> list[str]:
    """Modules of the standard library that a folder in front of it would hide, sorted."""
    try:
        entries = os.listdir(folder)
    except OSError:
        return []
    return sorted({name for name in map(_module_of, entries) if name in sys.stdlib_module_names})


def own_module(name: str) -> str | None:
    """The file of a top-level module in the working folder, whatever else has its name; None where there is none."""
    for file in (f"{name}.py", os.path.join(name, "__init__.py")):
        path = os.path.join(os.getcwd(), file)
        if os.path.isfile(path):
            return path
    return None


class KeptLast:
    """A finder that finds nothing: before each search it moves folders back to the end of `sys.path`.

    Ray puts the driver's folder in front of it when a worker gets its first task, after all else of ours has run.
    """

    def __init__(self, folders: Iterable[str]) -> None:
        self._folders = [os.path.abspath(folder) for folder in folders]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if path is None and (
            sys.path[-len(self._folders) :] != self._folders
            or any(entry in self._folders for entry in sys.path[: -len(self._folders)])
        ):
            move_last(self._folders)


def _python_path() -> list[str]:
    return [os.path.abspath(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


def _module_of(entry: str) -> str:
    """What a folder's entry is imported as; a folder without any dot in its name may be a package."""
    stem, dot, suffix = entry.partition(".")
    return stem if not dot or suffix == "py" or suffix.endswith("so") else ""
