"""Where in the user's own code an error comes from: file and line, past the frames of this package and of libraries."""

from __future__ import annotations

import os
import sysconfig
import traceback

_CORE = os.path.dirname(os.path.abspath(__file__))
_PLUGIN_FOLDERS = tuple(os.path.join(_CORE, folder) + os.sep for folder in ("rewards", "envs"))
_LIBRARIES = tuple(
    {sysconfig.get_paths()[key] + os.sep for key in ("stdlib", "platstdlib", "purelib", "platlib")} | {_CORE + os.sep}
)


def is_user_file(path: str) -> bool:
    """Whether a source file is a plugin or the user's, rather than this package's core, a library or generated code."""
    if path.startswith("<"):
        return False
    absolute = os.path.abspath(path)
    return absolute.startswith(_PLUGIN_FOLDERS) or not absolute.startswith(_LIBRARIES)


def shown_path(path: str) -> str:
    """The path relative to the working directory where it lies inside it, else absolute."""
    absolute, here = os.path.abspath(path), os.getcwd() + os.sep
    return absolute.removeprefix(here)


def is_raised_in(folder: str, error: BaseException) -> bool:
    """Whether it is code in this folder that raised, rather than what that code called."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and os.path.abspath(frames[-1].filename).startswith(os.path.abspath(folder) + os.sep)


def location_of(error: BaseException, file: str | None = None) -> str | None:
    """`file:line` of the innermost frame in `file`, else in a user's file, else of all; None without any frame."""
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    own = [frame for frame in frames if file is not None and os.path.abspath(frame.filename) == os.path.abspath(file)]
    users = [frame for frame in frames if is_user_file(frame.filename)]
    for frame in [*own, *users, *frames]:
        return f"{shown_path(frame.filename)}:{frame.lineno}"
    return None
