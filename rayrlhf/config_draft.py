"""A config before it is checked: the plain values of a YAML file and of dotted overrides, and where each was written.

`Draft.read` reads a file, `Draft.override` applies one `key.key=value`; `config_faults.py` says what is wrong with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.scalarbool import ScalarBoolean

from rayrlhf.config import RunConfig
from rayrlhf.errors import ConfigError
from rayrlhf.reading import MAX_DEPTH, SHOWN, read_text
from rayrlhf.yaml_text import YamlFault, load_yaml

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of a config to one value."""


class Place(NamedTuple):
    """Where a value was written; places sort as a reader meets them."""

    order: int  # line in the file, or beyond every line for an override
    label: str  # `my.yaml:4` or `override rollout.workers=4`


FIRST_OVERRIDE = 1_000_000_000  # beyond every line number


_LONGEST_INDEX = 9  # digits


def dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


class _Constructor(RoundTripConstructor):
    """Dates stay the text that was written: no key of ours is a date, and a prompt may look like one."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str)


def _parser() -> YAML:
    yaml = YAML()  # YAML 1.2 (`1e-5` is a number), with the line of every key
    yaml.Constructor = _Constructor
    return yaml


class _Unusable(Exception):
    """YAML that is well formed and means nothing in a config, or leads nowhere; `path` is where."""

    def __init__(self, message: str, path: KeyPath = ()) -> None:
        super().__init__(message)
        self.path = path


def _plain(value: Any, path: KeyPath = ()) -> Any:
    """The value as plain dict, list, str, int, float, bool or None."""
    if isinstance(value, CommentedMap):
        return {str(key): _plain(item, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, CommentedSeq):
        return [_plain(item, (*path, index)) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | ScalarBoolean):
        return None if value is None else bool(value)
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise _Unusable(f"YAML tags such as {getattr(value, 'tag', type(value).__name__)} have no meaning here", path)


def _parse_file(text: str, origin: str) -> CommentedMap:
    """The file's top-level section, with line numbers."""
    try:
        document = load_yaml(text, _parser())
    except YamlFault as error:
        raise ConfigError(f"{origin}:{error.line}: {error}") from error
    if document is None:
        raise ConfigError(f"{origin}:1: the file is empty; write `key: value` lines, or leave the file out")
    if not isinstance(document, CommentedMap):
        kind = "a list" if isinstance(document, CommentedSeq) else "a single value"
        raise ConfigError(f"{origin}:{_first_line(document)}: the file holds {kind}, not `key: value` lines")
    return document


def _first_line(document: Any) -> int:
    return int(document.lc.line) + 1 if isinstance(document, CommentedSeq) else 1


def _lines(node: Any, path: KeyPath = ()) -> dict[KeyPath, int]:
    """Line of every key and list item below a node; what was merged in from an anchor has none of its own."""
    found: dict[KeyPath, int] = {}
    if isinstance(node, CommentedMap):
        for key, item in node.items():
            if key in node.lc.data:
                found[*path, str(key)] = node.lc.key(key)[0] + 1
            found.update(_lines(item, (*path, str(key))))
    elif isinstance(node, CommentedSeq):
        for index, item in enumerate(node):
            found[*path, index] = node.lc.item(index)[0] + 1
            found.update(_lines(item, (*path, index)))
    return found


class Draft:
    """The values of a config and where each was written.

    Attributes:
        tree: the values, plain and unchecked.
        origin: the file as the user named it.
        written: the place of each key and list item that the file or an override wrote.
    """

    def __init__(self, tree: dict[str, Any], origin: str, written: dict[KeyPath, Place]) -> None:
        self.tree = tree
        self.origin = origin
        self.written = written
        self._overrides = 0  # how many were applied

    @classmethod
    def read(cls, path: Path, origin: str, piped: bool = False) -> Draft:
        """Reads a YAML file. piped: it may be a pipe, as what a person gives may.

        Raises:
            ConfigError: the file cannot be read, is not UTF-8, not YAML, empty, or holds no `key: value` lines.
        """
        return cls.of_text(read_text(path, ConfigError, origin, piped), origin)

    @classmethod
    def of_text(cls, text: str, origin: str) -> Draft:
        """What a YAML file says. Raises ConfigError as `read`."""
        document = _parse_file(text, origin)
        lines = _lines(document)
        try:
            tree = _plain(document)
        except _Unusable as error:
            raise ConfigError(f"{origin}:{lines.get(error.path, 1)}: {dotted(error.path)}: {error}") from error
        written = {path: Place(line, f"{origin}:{line}") for path, line in lines.items()}
        return cls(tree, origin, written)

    def override(self, text: str) -> None:
        """Applies one `key.key=value`; the value is read as YAML, and a value that is left out is null.

        Raises:
            ConfigError: it is not of that form, or leads into what is no section.
        """
        key, equals, raw = text.partition("=")
        parts = key.strip().split(".")
        if len(parts) > MAX_DEPTH:
            raise ConfigError(f"override {text[:SHOWN]}...: its key leads through more than {MAX_DEPTH} sections")
        if not equals or not all(parts):
            raise ConfigError(f"override {text}: write KEY=VALUE with a dotted key, as in rollout.workers=4")
        try:
            value = _plain(load_yaml(raw, _parser()))
        except YamlFault as error:
            raise ConfigError(f"override {text}: the value is not YAML: {error}; try quotes") from error
        except _Unusable as error:
            raise ConfigError(f"override {text}: {error}") from error
        try:
            if parts[0] == "reward" and len(parts) > 1:
                self._open_reward(parts[1].isdecimal())
            path = self._assign(parts, value)
        except _Unusable as error:
            raise ConfigError(f"override {text}: {error}") from error
        self.written = {known: place for known, place in self.written.items() if known[: len(path)] != path}
        self.written[path] = Place(FIRST_OVERRIDE + self._overrides, f"override {text}")
        self._overrides += 1

    def _open_reward(self, by_index: bool) -> None:
        """Spells the reward out as a section or a list of sections, whichever an override goes on into."""
        reward = self.tree.get("reward")
        if reward is None:
            reward = [part.model_dump() for part in RunConfig.model_fields["reward"].default]
            reward = reward if by_index else reward[0]
        if isinstance(reward, str):
            reward = {"name": reward}
        if by_index and not isinstance(reward, list):
            reward = [reward]
            self.written = {
                ("reward", 0, *path[1:]) if len(path) > 1 and path[0] == "reward" else path: place
                for path, place in self.written.items()
            }
        if isinstance(reward, list):
            reward = [{"name": part} if isinstance(part, str) else part for part in reward]
        self.tree["reward"] = reward

    def _assign(self, parts: list[str], value: Any) -> KeyPath:
        """Puts a value where the dotted key says, making the sections on the way; returns the path."""
        node: Any = self.tree
        path: KeyPath = ()
        for position, part in enumerate(parts):
            last = position == len(parts) - 1
            if isinstance(node, dict):
                step: str | int = part
                if last:
                    node[part] = value
                elif node.get(part) is None:
                    node[part] = {}
            elif isinstance(node, list):
                step = _index(node, part, path)
                if step == len(node):
                    node.append(value if last else {})
                elif last:
                    node[step] = value
            else:
                raise _Unusable(f"{dotted(path)} is a value ({node}), not a section")
            path = (*path, step)
            node = node[step]
        return path


def _index(items: list[Any], part: str, path: KeyPath) -> int:
    """Index into a list; one past its end appends."""
    if not part.isdecimal():
        raise _Unusable(f"{dotted(path)} is a list: name an entry, as in {dotted(path)}.0.{part}")
    if len(part) > _LONGEST_INDEX or int(part) > len(items):
        raise _Unusable(f"{dotted(path)} has {len(items)} entries: the next one is {dotted(path)}.{len(items)}")
    return int(part)
