"""A plugin's parameters, read from its signature, and what is wrong with those that a config gives, before it runs."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union

from rayrlhf.plugins import nearest, underlying

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def signature_of(plugin: Any) -> inspect.Signature:
    """The signature of a class's constructor, of a function or of a `functools.partial`; of one written in C, which may
    have none: one argument."""
    try:
        return inspect.signature(plugin)
    except (ValueError, TypeError):
        anything = [inspect.Parameter("text", inspect.Parameter.POSITIONAL_ONLY)]
        return inspect.Signature([] if inspect.isclass(plugin) else anything)


def named_parameters(parameters: Iterable[inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Name -> parameter, of those that can be given by name."""
    return {parameter.name: parameter for parameter in parameters if parameter.kind in _NAMED}


def listing(parameters: Mapping[str, inspect.Parameter]) -> str:
    """The parameters and their defaults on one line, as in `letter='e', empty_penalty=0.0`."""
    return ", ".join(
        name if parameter.default is inspect.Parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in parameters.items()
    )


def parameter_faults(
    plugin: Any,
    known: Mapping[str, inspect.Parameter],
    given: Mapping[str, Any],
    other_keys: Callable[[], Iterable[str]] = tuple,
) -> list[str]:
    """What is wrong with `given`: keys that are unknown, missing, or not of their annotated plain type.

    Checked types: int, float (an int will do), str, bool, None, Literal, and unions of them; others are taken as given.
    other_keys: words that an unknown key may have meant beside the parameters' names; asked where there is one.
    """
    hints = _hints(underlying(plugin))
    kinds = [parameter.kind for parameter in signature_of(plugin).parameters.values()]
    unknown = [key for key in given if key not in known and inspect.Parameter.VAR_KEYWORD not in kinds]
    words = [*known, *other_keys()] if unknown else []
    faults = [f"has no parameter `{key}`{nearest(key, words)}" for key in unknown]
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
    return faults


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
