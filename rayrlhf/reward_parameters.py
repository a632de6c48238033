"""A reward's parameters, and the check of what a config gives for them, before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rayrlhf.config import RewardPart
from rayrlhf.errors import RewardError
from rayrlhf.plugin_parameters import listing, named_parameters, parameter_faults, signature_of
from rayrlhf.plugins import is_instance, underlying
from rayrlhf.reading import typed

_TAKEN = frozenset({"name", "weight"})
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


def parameters_of(plugin: Any) -> dict[str, inspect.Parameter]:
    """Name -> parameter that a config may give: of a class its constructor's, of a function all after the text, of an
    instance none."""
    if is_instance(plugin):
        return {}
    parameters = list(signature_of(plugin).parameters.values())
    if not inspect.isclass(underlying(plugin)):
        parameters = parameters[1:]
    return named_parameters(parameters)


def named_part(name: str, parameters: Mapping[str, Any]) -> RewardPart:
    """The part that a command line names. Raises RewardError where what every part has (weight, actors) is given wrongly."""
    return typed(RewardPart, {**parameters, "name": name}, f"reward {name}", RewardError)


def described(plugin: Any) -> str:
    """The parameters and their defaults on one line, as in `letter='e', empty_penalty=0.0`."""
    return listing(parameters_of(plugin))


def check_parameters(name: str, plugin: Any, given: Mapping[str, Any]) -> None:
    """Raises RewardError for parameters that are unknown, missing, or not of their annotated plain type.

    Which types are checked: see `plugin_parameters.parameter_faults`.
    """
    kinds = [parameter.kind for parameter in signature_of(plugin).parameters.values()]
    if not inspect.isclass(underlying(plugin)) and not (kinds and kinds[0] in _POSITIONAL):
        raise RewardError(f"reward `{name}`: the function's first argument has to be the episode's text.")
    known = parameters_of(plugin)
    for key in _TAKEN.intersection(known):
        raise RewardError(
            f"reward `{name}` has a parameter `{key}`, which means the part's own {key} in a config: rename it."
        )
    faults = parameter_faults(plugin, known, given)
    if faults:
        known_listing = f"Its parameters: {described(plugin)}." if known else "It takes no parameters."
        raise RewardError(f"reward `{name}` {' It '.join(faults)} {known_listing}")
