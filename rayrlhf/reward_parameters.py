"""A reward's parameters, read from its signature, and the check of what a config gives for them, before it runs."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from rayrlhf.errors import RewardError
from rayrlhf.plugins import nearest

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_TAKEN = frozenset({"name", "weight"})
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


def parameters_of(plugin: Any) -> dict[str, inspect.Parameter]:
    """Name -> parameter that a config may give: of a class its constructor's, of a function all after the text."""
    parameters = list(_signature(plugin).parameters.values())
    if not inspect.isclass(plugin):
        parameters = parameters[1:]
    return {parameter.name: parameter for parameter in parameters if parameter.kind in _NAMED}


def described(plugin: Any) -> str:
    """The parameters and their defaults on one line, as in `letter='e', empty_penalty=0.0`."""
    return ", ".join(
        name if parameter.default is inspect.Parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in parameters_of(plugin).items()
    )


def check_parameters(name: str, plugin: Any, given: Mapping[str, Any]) -> None:
    """Raises RewardError for parameters that are unknown, missing, or not of their annotated plain type.

    Checked types: int, float (an int will do), str, bool, None, Literal, and unions of them; others are taken as given.
    """
    kinds = [parameter.kind for parameter in _signature(plugin).parameters.values()]
    if not inspect.isclass(plugin) and not (kinds and kinds[0] in _POSITIONAL):
        raise RewardError(f"reward `{name}`: the function's first argument has to be the episode's text.")
    known = parameters_of(plugin)
    hints = _hints(plugin)
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    for key in _TAKEN.intersection(known):
        raise RewardError(
            f"reward `{name}` has a parameter `{key}`, which means the part's own {key} in a config: rename it."
        )
    faults = [f"has no parameter `{key}`{nearest(key, known)}" for key in given if key not in known and not takes_any]
    faults += [
        f"needs the parameter `{key}`."
        for key, parameter in known.items()
        if parameter.default is parameter.empty and key not in given
    ]
    faults += [
        f"takes {_described_type(hints[key])} for `{key}`, not {value!r}."
        for key, value in given.items()
        if key in known and key in hints and not _accepts(hints[key], value)
    ]
    if faults:
        listing = f"Its parameters: {described(plugin)}." if known else "It takes no parameters."
        raise RewardError(f"reward `{name}` {' It '.join(faults)} {listing}")


def _signature(plugin: Any) -> inspect.Signature:
    try:
        return inspect.signature(plugin)
    except (ValueError, TypeError):  # some functions written in C have none
        anything = [inspect.Parameter("text", inspect.Parameter.POSITIONAL_ONLY)]
        return inspect.Signature([] if inspect.isclass(plugin) else anything)


def _hints(plugin: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(plugin.__init__ if inspect.isclass(plugin) else plugin)
    except Exception:  # an annotation that names what is imported for type checkers alone, or no annotations at all
        return {}


def _accepts(annotation: Any, value: Any) -> bool:
    kind = typing.get_origin(annotation)
    if kind is Literal:
        return any(type(choice) is type(value) and choice == value for choice in typing.get_args(annotation))
    if kind in (Union, types.UnionType):
        return any(_accepts(option, value) for option in typing.get_args(annotation))
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool, types.NoneType):
        return isinstance(value, annotation)
    return True


def _described_type(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(annotation))
    return inspect.formatannotation(annotation)
