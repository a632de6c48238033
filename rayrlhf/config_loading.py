"""From a recipe or a YAML file and dotted overrides to a `RunConfig`, and back to YAML."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from rayrlhf.config import RunConfig
from rayrlhf.config_draft import Draft
from rayrlhf.config_faults import faults_of, suggestion
from rayrlhf.errors import ConfigError
from rayrlhf.reading import expanded

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "alliteration"

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A config that ships with the package."""

    name: str
    path: Path
    summary: str  # its first comment line


def recipes() -> list[Recipe]:
    """The shipped recipes by name."""
    found = []
    for path in RECIPES.glob("*.yaml"):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        found.append(Recipe(path.stem, path, first.removeprefix("#").strip()))
    return sorted(found, key=lambda recipe: recipe.name)


def load_config(source: str | None = None, overrides: Sequence[str] = (), piped: bool = False) -> RunConfig:
    """Reads a run's config.

    Args:
        source: a recipe's name or the path of a YAML file; None is the recipe `alliteration`. A recipe goes before
            a file of the same name; `./name` is always the file.
        overrides: dotted keys with YAML values, applied in order: `rollout.workers=4`, `reward=[a, b]`,
            `reward.0.weight=0.5`, `environment.prompts.text=` (null).
        piped: whether the source may be a pipe (`rayrlhf train <(make-config)`): only where a person gave it.

    Raises:
        ConfigError: with a line for each fault, all at once: `my.yaml:4: rollout.wrokers: unknown key, did you
            mean rollout.workers?` or `override rollout.wrokers=4: unknown key, ...`.
    """
    path, origin = _locate(DEFAULT_RECIPE if source is None else source)
    draft = Draft.read(path, origin, piped)
    faults: list[str] = []
    for override in overrides:
        try:
            draft.override(override)
        except ConfigError as error:
            faults.append(str(error))
    return checked(draft, RunConfig, faults)


def checked(draft: Draft, section: type[Config], faults: Sequence[str] = ()) -> Config:
    """The draft as a config of this kind. faults: known already, they come last.

    Raises:
        ConfigError: with a line for each fault, all at once.
    """
    _name_default_members(draft.tree, section)
    config, invalid = _validated(draft.tree, section)
    placed = sorted(faults_of(draft, invalid, section), key=lambda fault: fault[0])
    lines = [f"{place.label}: {message}" for place, message in placed] + list(faults)
    if lines or config is None:
        raise ConfigError("\n".join(lines))
    return config


class _Representer(RoundTripRepresenter):
    """Writes `null`, which says more than nothing after a key, and quotes text with line breaks of any kind."""

    def null(self, value: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")

    def text(self, value: str) -> ScalarNode:
        # in single quotes or plain, line breaks such as U+0085 would come back as others
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')


_Representer.add_representer(type(None), _Representer.null)
_Representer.add_representer(str, _Representer.text)


def dump_config(config: BaseModel) -> str:
    """The whole config as YAML, every key of it; `load_config` reads a run's back as an equal one."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.allow_unicode = True
    yaml.width = 10**6  # no line is folded: what is in a file can be searched for
    stream = io.StringIO()
    yaml.dump(config.model_dump(mode="json"), stream)
    return stream.getvalue()


def _locate(source: str) -> tuple[Path, str]:
    """The file behind a source, and its name in messages."""
    known = {recipe.name: recipe.path for recipe in recipes()}
    if source in known:
        return known[source], f"recipes/{source}.yaml"
    path = expanded(source)
    if path.is_dir():
        inside = path / "config.yaml"
        hint = f"; did you mean {inside}?" if inside.is_file() else "; give a YAML file or a recipe"
        raise ConfigError(f"{source}: is a folder{hint}")
    if path.exists():
        return path, source
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ConfigError(f"{source}: there is no such file (in {Path.cwd()})")
    near = suggestion(source, list(known))
    guess = f"did you mean {near}? All recipes" if near else "the recipes"
    raise ConfigError(f"{source}: no recipe and no file has this name; {guess}: {', '.join(known)}")


def _name_default_members(tree: dict[str, Any], section: type[BaseModel]) -> None:
    """A section of a tagged union without its tag is the default member, as every key left out has its default."""
    for key, field in section.model_fields.items():
        below = tree.get(key)
        if not isinstance(below, dict):
            continue
        tag, default = field.discriminator, field.default
        if isinstance(tag, str):
            below.setdefault(tag, getattr(default, tag))
            members: list[type[BaseModel]] = [part for part in get_args(field.annotation) if isinstance(part, type)]
            chosen = next((m for m in members if m.model_fields[tag].default == below[tag]), None)
            if chosen is not None:
                _name_default_members(below, chosen)
        elif isinstance(default, BaseModel):
            _name_default_members(below, type(default))


def _validated(tree: dict[str, Any], section: type[Config]) -> tuple[Config | None, ValidationError | None]:
    try:
        return section.model_validate(copy.deepcopy(tree)), None
    except ValidationError as error:
        return None, error
