"""Finds a reward or an environment by its name: a file of `rewards/` or `envs/`, an entry point, or `module:Name`.

There is no registry: the plugin in `rewards/letter_count.py` is the class `LetterCount`, found by that name.
Environments have Gymnasium ids too: `rayrlhf/TextWorld-v0`, `MyText-v0`, or `module:MyText-v0`, which is imported first.
Hyphens and underscores in a name are the same.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from rayrlhf.error_location import location_of, shown_path
from rayrlhf.errors import EpisodeError, RewardError, UserError
from rayrlhf.python_path import own_module

Kind = Literal["reward", "environment"]

_PACKAGE: dict[Kind, str] = {"reward": "rayrlhf.rewards", "environment": "rayrlhf.envs"}
_ENTRY_POINT_GROUP: dict[Kind, str] = {"reward": "rayrlhf.rewards", "environment": "rayrlhf.environments"}
_FAULT: dict[Kind, type[UserError]] = {"reward": RewardError, "environment": EpisodeError}
_METHODS: dict[Kind, tuple[str, ...]] = {"reward": ("__call__",), "environment": ("reset", "step")}
_GYMNASIUM_ID = re.compile(r"(?:[\w.]+:)?(?:[\w-]+/)?[\w.-]+-v\d+|(?:[\w.]+:)?[\w-]+/[\w-]+")


class _Named(NamedTuple):
    """What somebody named: what it is for (`reward`), its name, and the error where it cannot be had."""

    what: str
    name: str
    fault: type[UserError]


def load(kind: Kind, name: str) -> Any:
    """What `name` names: a class; for environments also a function that makes one; for rewards also a plain function of
    a text, or an instance that is called as its class would be. `functools.partial` of any is as what it is of.

    Importing it is the only side effect, for `module:Name` with the working directory at the end of `sys.path`. Raises
    RewardError or EpisodeError where nothing has that name (the message suggests the nearest), where its module fails to
    import (the message has file, line and the original error), or where what was found is nothing of that kind.
    """
    if kind == "environment" and is_gymnasium_id(name):
        return _load_gymnasium(name)
    if ":" in name:
        plugin = load_reference(name, kind, _FAULT[kind])
    elif _is_built_in(kind, canonical(name)):
        _warn_of_hidden_entry_points(kind, canonical(name))
        plugin = _load_built_in(kind, canonical(name))
    else:
        plugin = _load_entry_point(kind, canonical(name))
    return _checked(kind, name, plugin)


def available(kind: Kind) -> dict[str, str]:
    """Name -> first line of its documentation, for built-in files and entry points, sorted by name.

    Built-in files are read, not imported; an entry point's line says where it leads, because reading its
    documentation would run code of strangers. An entry point that has a built-in's name is left out with a warning.
    """
    found = {name: _summary_of_file(path) for name, path in _built_in_files(kind).items()}
    for name in found:
        _warn_of_hidden_entry_points(kind, name)
    for entry_point in _entry_points(kind):
        found.setdefault(canonical(entry_point.name), f"{entry_point.value}, of {_distribution(entry_point)}")
    return dict(sorted(found.items()))


def is_gymnasium_id(name: str) -> bool:
    """Whether an environment's name is a Gymnasium id: it has a namespace (`rayrlhf/`) or a version (`-v0`)."""
    return _GYMNASIUM_ID.fullmatch(name) is not None


def is_own(kind: Kind, name: str) -> bool:
    """Whether the name leads to a file of `rewards/` or `envs/`, by itself or by a Gymnasium id of RayRLHF's own; decided
    without an import of anything else."""
    if kind == "environment" and is_gymnasium_id(name):
        return name.startswith("rayrlhf/")
    return ":" not in name and _is_built_in(kind, canonical(name))


def gymnasium_defaults(name: str) -> dict[str, Any]:
    """The constructor's arguments that a Gymnasium id was registered with; none for other names."""
    return dict(_gymnasium_spec(name).kwargs) if is_gymnasium_id(name) else {}


def origin(kind: Kind, name: str) -> str:
    """Where `load(kind, name)` looks: `built-in`, `entry point of PACKAGE VERSION`, `Gymnasium`, or `module:Name`."""
    if kind == "environment" and is_gymnasium_id(name):
        return "Gymnasium"
    if ":" in name:
        return name
    if _is_built_in(kind, canonical(name)):
        return "built-in"
    return f"entry point of {_distribution(_entry_point(kind, canonical(name)))}"


def canonical(name: str) -> str:
    """The one spelling of a name: `letter-count` is `letter_count`; `module:Name` stays as it is."""
    return name if ":" in name else name.strip().replace("-", "_")


def nearest(word: str, choices: Iterable[str]) -> str:
    """` did you mean `x`?` with a leading colon, or nothing where no choice is near."""
    close = difflib.get_close_matches(word.lower(), list(choices), n=2, cutoff=0.7)
    return f": did you mean {' or '.join(f'`{choice}`' for choice in close)}?" if close else "."


def _built_in_files(kind: Kind) -> dict[str, Path]:
    package = importlib.import_module(_PACKAGE[kind])
    files = sorted(path for folder in package.__path__ for path in Path(folder).glob("*.py"))
    return {path.stem: path for path in files if not path.stem.startswith("_")}


def _is_built_in(kind: Kind, name: str) -> bool:
    return name in _built_in_files(kind)


def _summary_of_file(path: Path) -> str:
    """First docstring line of the plugin's class, else of the module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and _names_match(node.name, path.stem)]
    documented: list[ast.ClassDef | ast.Module] = [*classes, tree]
    documentation = next(filter(None, (ast.get_docstring(node) for node in documented)), "")
    return documentation.partition("\n")[0]


def _names_match(class_name: str, file_name: str) -> bool:
    """CamelCase of a file's name, whatever the inner capitals: `LetterCount` in letter_count, `TextWorld` in textworld."""
    return class_name.lower() == file_name.replace("_", "").lower()


def _load_built_in(kind: Kind, name: str) -> Any:
    module = _import(_Named(kind, name, _FAULT[kind]), f"{_PACKAGE[kind]}.{name}")
    for attribute, value in vars(module).items():
        if inspect.isclass(value) and value.__module__ == module.__name__ and _names_match(attribute, name):
            return value
    class_name = "".join(word.capitalize() for word in name.split("_"))
    raise _FAULT[kind](f"the {kind} file {shown_path(str(module.__file__))} has no class `{class_name}`.")


def _load_gymnasium(name: str) -> Any:
    """What makes the environments of a Gymnasium id: mostly a class."""
    creator = _gymnasium_spec(name).entry_point
    if isinstance(creator, str):
        module_name, _, attribute = creator.partition(":")
        named = _Named("environment", name, EpisodeError)
        return _attribute(named, _import(named, module_name), attribute)
    return creator


def _gymnasium_spec(name: str) -> Any:
    import gymnasium  # rewards do without it

    importlib.import_module(_PACKAGE["environment"])  # registers the ids of our own
    module_name, _, identifier = name.rpartition(":")
    if module_name:
        _import_own(_Named("environment", name, EpisodeError), module_name)
    try:
        return gymnasium.spec(identifier)
    except gymnasium.error.Error as error:
        raise EpisodeError(
            f"no environment is registered as `{identifier}`: {error} An id that a module of your own registers is "
            f"written `module:{identifier}`."
        ) from error


def _entry_points(kind: Kind) -> list[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group=_ENTRY_POINT_GROUP[kind]))


def _distribution(entry_point: importlib.metadata.EntryPoint) -> str:
    return f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "an unknown package"


def _entry_point(kind: Kind, name: str) -> importlib.metadata.EntryPoint:
    found = {point.value: point for point in _entry_points(kind) if canonical(point.name) == name}
    if not found:
        raise _FAULT[kind](_unknown(kind, name))
    if len(found) > 1:
        claims = ", ".join(f"`{value}` of {_distribution(point)}" for value, point in sorted(found.items()))
        raise _FAULT[kind](f"several packages offer the {kind} `{name}`: name the one you want, {claims}.")
    return next(iter(found.values()))


def _load_entry_point(kind: Kind, name: str) -> Any:
    entry_point = _entry_point(kind, name)
    named = _Named(kind, name, _FAULT[kind])
    return _attribute(named, _import(named, entry_point.module), entry_point.attr)


def _warn_of_hidden_entry_points(kind: Kind, name: str) -> None:
    for entry_point in _entry_points(kind):
        if canonical(entry_point.name) == name:
            warnings.warn(
                f"{_distribution(entry_point)} offers a {kind} `{name}`, which is also the name of a built-in one: "
                f"the built-in one is used; for the other write `{entry_point.value}`.",
                stacklevel=3,
            )


def _unknown(kind: Kind, name: str) -> str:
    known = available(kind)
    message = f"no {kind} is named `{name}`{nearest(name, known)} Known: {', '.join(known) or 'none'}."
    if name.isidentifier() and os.path.isfile(f"{name}.py"):
        return f"{message} For a function or class of your own {name}.py write `{name}:Name`."
    return f"{message} One of your own is named `module:Name`."


def load_reference(name: str, what: str, fault: type[UserError]) -> Any:
    """What `module:Name` names, with the working directory at the end of `sys.path`.

    what: what it is for, as in "validity check". Raises `fault` where there is no such thing, its module fails to import
    (the message has file, line and the original error), or an installed one hides the user's own.
    """
    module_name, _, attribute = name.partition(":")
    words = [*module_name.split("."), *attribute.split(".")]
    if module_name.endswith(".py") or not all(word.isidentifier() for word in words):
        stem = module_name.removesuffix(".py").replace(os.sep, ".").strip(".")
        raise fault(
            f"`{name}` is no `module:Name`: write the module as Python imports it and the class or function in it, "
            f"as in `{stem or 'my_plugins'}:{attribute or 'Name'}`."
        )
    if module_name == "__main__":
        file = f"my_{what.rpartition(' ')[2]}s"
        raise fault(
            f"the {what} `{name}` is in the program that was started, which the processes of a run do not see: move it to a "
            f"file of its own, such as {file}.py in the working directory, and write `{file}:{attribute}`."
        )
    named = _Named(what, name, fault)
    return _attribute(named, _import_own(named, module_name), attribute)


def _import_own(named: _Named, module_name: str) -> ModuleType:
    """Imports the module of a `module:Name`. Raises where a file of the user's has that name and something else hides it."""
    top = module_name.partition(".")[0]
    own = own_module(top)
    module = _import(named, module_name)
    found = getattr(sys.modules.get(top), "__file__", None)
    if own is None or (found is not None and os.path.exists(found) and os.path.samefile(own, found)):
        return module
    what = (
        "a module of Python's standard library" if top in sys.stdlib_module_names else f"an installed package ({found})"
    )
    raise named.fault(
        f"the {named.what} `{named.name}`: `{top}` is {what}, which hides your {shown_path(own)}: "
        "give your file another name."
    )


def _import(named: _Named, module_name: str) -> ModuleType:
    """Imports a plugin's module; the working directory comes last, so that no file there hides what others need."""
    working_directory = os.getcwd()
    if working_directory not in sys.path and "" not in sys.path:
        sys.path.append(working_directory)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            modules = [path.stem for path in Path.cwd().glob("*.py")]
            raise named.fault(
                f"the {named.what} `{named.name}` needs a module `{missing}`, which is neither in the working directory "
                f"({working_directory}) nor installed{nearest(missing, modules)}"
            ) from error
        raise _import_failed(named, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(named, error) from error


def _import_failed(named: _Named, error: BaseException) -> UserError:
    if isinstance(error, SyntaxError) and error.filename:
        where, what = f"{shown_path(error.filename)}:{error.lineno}", error.msg
    else:
        where, what = location_of(error) or "an unknown place", str(error)
    return named.fault(f"the {named.what} `{named.name}` cannot be imported: {where}: {type(error).__name__}: {what}")


def _attribute(named: _Named, module: ModuleType, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            choices = {key.lower(): key for key, value in vars(found).items() if callable(value) and key[0] != "_"}
            close = difflib.get_close_matches(part.lower(), choices, n=1)
            suggestion = f": did you mean `{choices[close[0]]}`?" if close else "."
            file = getattr(module, "__file__", None)  # which those built into Python have not
            where = shown_path(file) if file else module.__name__
            raise named.fault(f"the {named.what} `{named.name}`: {where} has no `{part}`{suggestion}")
        found = getattr(found, part)
    return found


def _checked(kind: Kind, name: str, plugin: Any) -> Any:
    """`plugin` if it can be one of its kind, judged without calling it."""
    made_of = underlying(plugin)
    if inspect.isclass(made_of):
        missing = missing_methods(kind, made_of)
        if missing:
            raise _FAULT[kind](f"the {kind} `{name}` is a class without `{'` and `'.join(missing)}`.")
        if kind == "reward":
            _refuse_columns(name, made_of.__call__)
    elif kind == "environment" and not missing_methods(kind, type(made_of)):
        raise EpisodeError(
            f"the environment `{name}` is an instance, and every episode that is played beside others needs one of its "
            "own: name its class, or a function that makes one."
        )
    elif not callable(made_of):
        kinds = "a class, a function, or an instance that can be called" if kind == "reward" else _ENVIRONMENT_KINDS
        raise _FAULT[kind](f"the {kind} `{name}` is {_shown(plugin)}: it has to be {kinds}.")
    elif kind == "reward":
        _refuse_columns(name, made_of)
    return plugin


_ENVIRONMENT_KINDS = "a class, or a function that makes environments"


def underlying(plugin: Any) -> Any:
    """What a `functools.partial` is of; anything else as it is."""
    while isinstance(plugin, functools.partial):
        plugin = plugin.func
    return plugin


def is_instance(plugin: Any) -> bool:
    """Whether a reward is an object that the user has made, ready to be called with trajectories."""
    made_of = underlying(plugin)
    return not (inspect.isclass(made_of) or inspect.isroutine(made_of) or hasattr(made_of, "__name__"))


def missing_methods(kind: Kind, cls: type) -> list[str]:
    """Of those that a class of this kind has to have."""
    methods = {method for base in cls.__mro__ for method in vars(base)}
    return [method for method in _METHODS[kind] if method not in methods]


def _refuse_columns(name: str, function: Any) -> None:
    """Raises RewardError for a reward of lists of prompts and completions, the shape that TRL's trainers call."""
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):  # of a function written in C
        return
    if "completions" in parameters:
        raise RewardError(
            f"the reward `{name}` takes lists of prompts and `completions`, and is not called so here: write a function "
            f"of one episode's text, `def {name.rpartition('.')[2].rpartition(':')[2]}(text: str) -> float`, or a class "
            "with `__call__(self, trajectories)`, where each trajectory has `turns[0].observation` (the prompt), "
            "`turns[-1].action` (the completion) and `text` (both)."
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
