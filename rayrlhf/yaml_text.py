"""YAML that anybody may have written, read within bounds: one error with the line, whatever the text does to a parser.

Bounded are the length (the parser is Python, some 30,000 characters a second), the depth, and what aliases multiply:
eight lines can stand for a hundred million values.
"""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from rayrlhf.errors import UserError
from rayrlhf.reading import MAX_DEPTH, first_line

MAX_CHARACTERS = 200_000
MAX_VALUES = 20_000  # what aliases repeat counted each time

_TOO_MANY = f"it stands for more than {MAX_VALUES:,} values"


class YamlFault(Exception):
    """Why a text is no YAML that is read here, and on which line, from 1."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


class _Composer(Composer):
    """Refuses what is nested too deeply, or holds too much, as soon as it does."""

    depth = 0
    values = 0

    def compose_node(self, parent: Node | None, index: Any) -> Any:
        self.depth += 1
        self.values += 1
        if self.depth > MAX_DEPTH:
            raise YamlFault(f"nested more than {MAX_DEPTH} levels deep", self.parser.peek_event().start_mark.line + 1)
        if self.values > MAX_VALUES:
            raise YamlFault(_TOO_MANY, self.parser.peek_event().start_mark.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def plain_parser() -> YAML:
    """Of plain values; no tag of the text's is obeyed."""
    return YAML(typ="safe", pure=True)


def load_yaml(text: str, parser: YAML) -> Any:
    """What a YAML text says, by a new parser. Raises YamlFault for any text that is none, or too large."""
    if len(text) > MAX_CHARACTERS:
        raise YamlFault(
            f"it has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read: put long texts in files"
        )
    parser.Composer = _Composer
    try:
        constructor, _ = parser.get_constructor_parser(text)
        node = constructor.composer.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return constructor.construct_document(node)
    except YamlFault:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlFault(_problem(error), mark.line + 1 if mark else 1) from error
    except YAMLError as error:  # characters that no YAML may hold; these know their position alone
        raise YamlFault(_problem(error), text.count("\n", 0, getattr(error, "position", 0)) + 1) from error
    except Exception as error:  # numbers of 5,000 digits, tags without sense: parsers raise anything
        raise YamlFault(f"it cannot be read: {first_line(error)}") from error


def parse_yaml(text: str, place: str, fault: type[UserError]) -> Any:
    """Plain values of a YAML text. Raises `fault`, naming place and line, for any text that is none."""
    try:
        return load_yaml(text, plain_parser())
    except YamlFault as error:
        raise fault(f"{place} is damaged (line {error.line}: {error})") from error


def _check_size(root: Node) -> None:
    """Raises YamlFault where aliases make a value part of itself, or more values of the text than are read."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise YamlFault("a value contains itself", node.start_mark.line + 1)
        open_nodes.add(id(node))
        found = 1 + sum(size(child) for child in _children(node))
        if found > MAX_VALUES:
            raise YamlFault(_TOO_MANY, node.start_mark.line + 1)
        open_nodes.discard(id(node))
        sizes[id(node)] = found
        return found

    size(root)


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) and not isinstance(node, ScalarNode) else []


def _problem(error: YAMLError) -> str:
    if isinstance(error, DuplicateKeyError):
        key = re.search(r'duplicate key "(.*?)"', str(error.problem))
        return f"the key {key.group(1)} stands here twice" if key else "a key stands here twice"
    if isinstance(error, MarkedYAMLError):
        return ", ".join(part for part in (error.context, error.problem) if part)
    return first_line(error)
