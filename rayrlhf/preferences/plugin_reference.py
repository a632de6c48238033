"""Loads what a user names as `module:Name` for a project of preferences: a validity check, a presenter, a judge."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from rayrlhf.error_location import location_of
from rayrlhf.errors import PreferenceError


def load_callable(name: str, what: str) -> Callable[..., Any]:
    """The function that `name` names, or an instance of the class that it names, made without arguments.

    The module is looked for in the working directory first. what: what it is for, as in "validity check".

    Raises:
        PreferenceError: there is no such thing, its module fails to import, or it cannot be called.
    """
    module_name, _, path = name.partition(":")
    if not path or not all(word.isidentifier() for word in [*module_name.split("."), *path.split(".")]):
        raise PreferenceError(f"the {what} `{name}` is no `module:Name`, as in `my_checks:{path or 'Name'}`")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
        for word in path.split("."):
            found = getattr(found, word)
        made = found() if inspect.isclass(found) else found
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        place = location_of(error) or "an unknown place"
        raise PreferenceError(
            f"the {what} `{name}` cannot be loaded: {place}: {type(error).__name__}: {error}"
        ) from error
    if not callable(made):
        raise PreferenceError(f"the {what} `{name}` cannot be called: make it a function or a class with `__call__`")
    return made
