"""What is wrong with a config, a line a fault: `my.yaml:4: rollout.wrokers: unknown key, did you mean rollout.workers?`

Turns pydantic's errors about a `Draft` into words a user can act on. The schema is read from `config.py` itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rayrlhf.config import RewardPart, RunConfig
from rayrlhf.config_draft import Draft, KeyPath, Place, dotted

Section = type[BaseModel]


def faults_of(draft: Draft, error: ValidationError | None, root: Section = RunConfig) -> list[tuple[Place, str]]:
    """Every fault of a draft as (where, `key: what is wrong`), unordered. Empty if there is none.

    root: the section that the draft is a config of.
    """
    details = [] if error is None else error.errors(include_url=False)
    found = [_explain(draft, detail, root) for detail in details if not _is_echo(detail)]
    named = {path for path, _ in found}
    found += [(path, message) for path, message in _stray_booleans(draft, root) if path not in named]
    return [_placed(draft, path, message) for path, message in found]


def suggestion(word: str, candidates: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The candidate nearest to a word, or None; case and the kind of separator do not count."""
    scored = [(_likeness(word, candidate), candidate) for candidate in candidates]
    best = max(scored, default=(0.0, None), key=lambda pair: pair[0])
    return best[1] if best[0] >= cutoff else None


def _likeness(word: str, candidate: str) -> float:
    first, second = (re.sub(r"[-_. ]+", "_", text.lower()) for text in (word, candidate))
    return SequenceMatcher(None, first, second).ratio()


# --- the schema, read ---


def _sections(annotation: Any) -> tuple[Section, ...]:
    """The sections that an annotation may hold: one, the members of a tagged union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(section for part in get_args(annotation) for section in _sections(part))


def _tag_key(section: Section) -> str:
    """The key by which a member of a tagged union is chosen: the one that can have a single value."""
    return next(key for key, field in section.model_fields.items() if len(_literals(field.annotation)) == 1)


def _tag(section: Section) -> str:
    """The value of that key that chooses this member."""
    return str(section.model_fields[_tag_key(section)].default)


class Spot(NamedTuple):
    """Where in the schema a fault lies."""

    path: KeyPath  # as written: without the tags that pydantic puts into its locations
    owner: Section | None  # the section whose key is the path's last part
    family: tuple[Section, ...]  # the tagged union that the owner is a member of, or empty
    field: FieldInfo | None  # None for an unknown key


def _find(location: Sequence[str | int], tree: Any, root: Section) -> Spot:
    """Follows a location, pydantic's or one of the tree, through values and schema together."""
    path: KeyPath = ()
    node = tree
    members: tuple[Section, ...] = (root,)
    spot = Spot(path, None, (), None)
    for part in location:
        if len(members) > 1 and part in [_tag(member) for member in members]:
            continue
        if isinstance(part, int):
            if isinstance(node, list):  # the schema lists a lone reward itself: such an index was never written
                path = (*path, part)
                node = node[part] if part < len(node) else None
            spot = spot._replace(path=path)
            continue
        owner = _chosen(members, node)
        field = owner.model_fields.get(part) if owner else None
        path = (*path, part)
        spot = Spot(path, owner, members if len(members) > 1 else (), field)
        members = _sections(field.annotation) if field else ()
        node = node.get(part) if isinstance(node, dict) else None
    return spot


def _chosen(members: tuple[Section, ...], node: Any) -> Section | None:
    if len(members) < 2:
        return members[0] if members else None
    given = node if isinstance(node, dict) else {}
    return next((member for member in members if _tag(member) == given.get(_tag_key(member))), None)


def _keys_below(section: Section) -> Iterator[str]:
    """Every dotted key under a section, relative to it."""
    for key, field in section.model_fields.items():
        yield key
        for child in _sections(field.annotation):
            yield from (f"{key}.{below}" for below in _keys_below(child))


# --- words ---


def _explain(draft: Draft, detail: ErrorDetails, root: Section) -> tuple[KeyPath, str]:
    spot = _find(detail["loc"], draft.tree, root)
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return spot.path, _unknown_key(spot, root)
    if kind == "union_tag_invalid":
        members = _sections(spot.field.annotation) if spot.field else ()
        return (*spot.path, _tag_key(members[0])), _none_of(str(context["tag"]), [_tag(member) for member in members])
    if kind in ("model_type", "model_attributes_type"):
        return spot.path, _not_a_section(spot, value)
    if kind == "literal_error" and spot.field is not None:
        return spot.path, _none_of(value, _literals(spot.field.annotation))
    if kind == "value_error":
        return spot.path, str(context["error"])
    return spot.path, _wrong_value(kind, value, context, detail["msg"])


def _unknown_key(spot: Spot, root: Section) -> str:
    key, prefix, owner = str(spot.path[-1]), spot.path[:-1], spot.owner or root
    if "." in key and key in set(_keys_below(owner)):
        head, rest = key.split(".", 1)
        return f"a file has no dotted keys: write `{head}:` with `{rest}:` under it"
    if near := suggestion(key, list(_keys_below(owner))):
        return f"unknown key, did you mean {dotted((*prefix, near))}?"
    others = {name: member for member in spot.family for name in member.model_fields}
    if near := suggestion(key, list(others), cutoff=0.8):
        having = [_tag(member) for member in spot.family if near in member.model_fields]
        return f"{_tag(owner)} has no {near} ({' and '.join(having)} {'has' if len(having) == 1 else 'have'})"
    shallowest_first = sorted(_keys_below(root), key=lambda name: name.count("."))
    everywhere = {name.rsplit(".", 1)[-1]: name for name in reversed(shallowest_first)}
    if near := suggestion(key, list(everywhere), cutoff=0.8):
        return f"unknown key, did you mean {everywhere[near]}?"
    return f"unknown key; the keys here are {', '.join(sorted(owner.model_fields))}"


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _literals(part)]


def _none_of(value: Any, choices: Sequence[Any]) -> str:
    near = suggestion(value, [str(choice) for choice in choices]) if isinstance(value, str) else None
    guess = f", did you mean {near}?" if near else ""
    return f"must be one of {', '.join(str(choice) for choice in choices)}, not {_shown(value)}{guess}"


def _not_a_section(spot: Spot, value: Any) -> str:
    members = _sections(spot.field.annotation) if spot.field else ()
    if members == (RewardPart,):
        return f"must be a reward's name or {{name: ..., weight: ...}}, not {_shown(value)}"
    key = (
        _tag_key(members[0]) if len(members) > 1 else "name" if any("name" in m.model_fields for m in members) else None
    )
    guess = f", did you mean {dotted(spot.path)}.{key}: {value}?" if key and isinstance(value, str) else ""
    return f"must be a section of `key: value` lines, not {_shown(value)}{guess}"


_BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
_BOUND_WORDS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
_KINDS = {"int": "a whole number", "float": "a number", "string": "text", "bool": "true or false", "tuple": "a list"}


def _wrong_value(kind: str, value: Any, context: dict[str, Any], message: str) -> str:
    if kind == "missing":
        return "is missing"
    if kind in _BOUNDS:
        bound = _BOUNDS[kind]
        return f"must be {_BOUND_WORDS[bound]} {context[bound]:g}, not {_shown(value)}"
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        entries = f"least {context['min_length']}" if least else f"most {context['max_length']}"
        return f"must have at {entries} entries, not {len(value)}"
    if kind == "finite_number":
        return f"must be a finite number, not {_shown(value)}"
    if kind == "string_pattern_mismatch":
        return f"must match the pattern {context['pattern']}, not be {_shown(value)}"
    if (wanted := _KINDS.get(kind.split("_")[0])) and kind.split("_")[1] in ("type", "parsing", "from"):
        quotes = "; put it in quotes" if wanted == "text" and value is not None else ""
        return f"must be {wanted}, not {_shown(value)}{quotes}"
    return f"{message[:1].lower()}{message[1:]}, not {_shown(value)}"


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return "an empty list" if not value else "a list"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:56]}...{shown[-1]}"


def _is_echo(detail: ErrorDetails) -> bool:
    """A list of faulty items counts as too short a list for pydantic, beside the faults of the items."""
    return detail["type"] == "too_short" and bool(detail["input"])


def _stray_booleans(draft: Draft, root: Section) -> Iterator[tuple[KeyPath, str]]:
    """Python's `True` is the number 1, a config's `true` is not."""
    for path, value in _leaves(draft.tree):
        field = _find(path, draft.tree, root).field
        if isinstance(value, bool) and field is not None and not _takes_boolean(field.annotation):
            yield path, f"must be {_wanted(field.annotation)}, not {_shown(value)}"


def _leaves(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(node, dict | list):
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(item, (*path, key))
    else:
        yield path, node


def _takes_boolean(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_boolean(part) for part in get_args(annotation))


def _wanted(annotation: Any) -> str:
    if choices := _literals(annotation):
        return f"one of {', '.join(str(choice) for choice in choices)}"
    kinds = [annotation, *get_args(annotation)]
    return "a whole number" if int in kinds else "a number" if float in kinds else "another kind of value"


# --- places ---


def _placed(draft: Draft, path: KeyPath, message: str) -> tuple[Place, str]:
    """Where a fault was written, and its key before the message unless the place says the key already."""
    place = _place(draft, path, message)
    says_key = place.label.startswith(f"override {dotted(path)}=")
    return place, message if says_key or not path else f"{dotted(path)}: {message}"


def _place(draft: Draft, path: KeyPath, message: str) -> Place:
    """The key itself, or for a fault between keys the last written of those it names, or the section around it."""
    if not path:
        named = [place for known, place in draft.written.items() if dotted(known) in message and len(known) > 1]
        return max(named, default=Place(0, draft.origin))
    below = [place for known, place in draft.written.items() if known[: len(path)] == path]
    if below and max(below).label.startswith("override "):
        return max(below)
    while path and path not in draft.written:
        path = path[:-1]
    return draft.written.get(path, Place(0, draft.origin))
