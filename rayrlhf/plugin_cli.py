"""What the command lines of rewards and of environments share: parameters as words, checks as lines, plain text."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from rayrlhf.errors import UserError
from rayrlhf.files import Damage, json_value
from rayrlhf.plugin_contract import CheckResult
from rayrlhf.terminal_output import say


def parsed_parameters(words: Sequence[str], fault: type[UserError], option: str = "") -> dict[str, Any]:
    """`letter=e` and `target=20` as a dict; a value that is JSON is read as JSON, any other is a string.

    option: how a word is given on the command line, such as `--param `. Raises `fault` for a word without a key.
    """
    parsed: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise fault(f"{option}{word}: write it as KEY=VALUE, as in {option}letter=e")
        try:
            parsed[key] = json_value(value)
        except Damage:
            parsed[key] = value
    return parsed


def yaml_parameters(known: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> list[str]:
    """A config's lines for a plugin's parameters: each as given, else its default, `...` where it has none."""
    lines = []
    for key, parameter in known.items():
        value = given.get(key, "..." if parameter.default is parameter.empty else parameter.default)
        lines.append(f"{key}: {json.dumps(value, default=str, ensure_ascii=False)}")
    return lines


def say_results(results: Sequence[CheckResult]) -> None:
    """One line a check and one for all; ends the command with exit status 1 where one failed."""
    for result in results:
        say(f"{'pass' if result.passed else 'FAIL'}  {result.name}{f': {result.detail}' if result.detail else ''}")
    failed = sum(not result.passed for result in results)
    say(f"{len(results) - failed} of {len(results)} checks passed.")
    if failed == len(results) == 1:
        say("Nothing else was checked: nothing can be as long as this is so.")
    if failed:
        raise typer.Exit(1)
