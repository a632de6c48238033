"""Loads what a user names as `module:Name` for a project of preferences: a validity check, a presenter, a judge."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rayrlhf.error_location import location_of
from rayrlhf.errors import PreferenceError
from rayrlhf.plugins import load_reference


def load_callable(name: str, what: str) -> Callable[..., Any]:
    """The function that `name` names, or an instance of the class that it names, made without arguments.

    what: what it is for, as in "validity check".

    Raises:
        PreferenceError: there is no such thing, its module fails to import (`plugins.load_reference`), its class cannot be
            made so, or it cannot be called.
    """
    found = load_reference(name, what, PreferenceError)
    try:
        made = found() if inspect.isclass(found) else found
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        place = location_of(error) or "an unknown place"
        raise PreferenceError(
            f"the {what} `{name}` cannot be made: {place}: {type(error).__name__}: {error}"
        ) from error
    if not callable(made):
        raise PreferenceError(f"the {what} `{name}` cannot be called: make it a function or a class with `__call__`")
    return made
