"""The kinds of TextWorld games that can be made: their parameters, what makes one, and how long one may be played."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args

from rayrlhf.errors import EpisodeError


@dataclass(frozen=True)
class CoinCollector:
    """Rooms in a chain with a coin at its end (Yuan et al. 2018); levels above 100 add dead ends.

    level: 1 to 300. The way to the coin has (level - 1) % 100 rooms; 101 to 200 have one dead end a room, above two.
    """

    level: int = 5

    name: ClassVar[str] = "coin_collector"

    def __post_init__(self) -> None:
        _in_range(self, "level", 1, 300)
        if self.rooms > 100:
            raise EpisodeError(
                f"coin_collector: level {self.level} has {self.rooms} rooms, and TextWorld makes at most 100: "
                "take a level of 1 to 100, 101 to 150 or 201 to 233"
            )

    @property
    def quest_length(self) -> int:
        return (self.level - 1) % 100 + 1

    @property
    def rooms(self) -> int:
        return ((self.level - 1) // 100 + 1) * self.quest_length

    @property
    def step_limit(self) -> int:
        return 3 * self.quest_length + 4

    def generate(self, options: Any) -> Any:
        return _challenge(self.name, {"level": self.level}, options)


@dataclass(frozen=True)
class TreasureHunter:
    """A maze with one thing to take and one to leave alone (Parisotto and Salakhutdinov 2017).

    level: 1 to 30; 1 to 10 have 5 rooms, 11 to 20 have 10 and things to open, 21 to 30 have 20 and locks.
    """

    level: int = 5

    name: ClassVar[str] = "treasure_hunter"

    def __post_init__(self) -> None:
        _in_range(self, "level", 1, 30)

    @property
    def step_limit(self) -> int:
        return 40

    def generate(self, options: Any) -> Any:
        return _challenge(self.name, {"level": self.level}, options)


@dataclass(frozen=True)
class Simple:
    """A house of six rooms: find some food and put it on the stove (SPEC TW-1).

    rewards: dense, balanced or sparse. goal: how it is told, detailed, brief or none.
    """

    rewards: str = "dense"
    goal: str = "detailed"

    name: ClassVar[str] = "simple"

    def __post_init__(self) -> None:
        _one_of(self, "rewards", ("dense", "balanced", "sparse"))
        _one_of(self, "goal", ("detailed", "brief", "none"))

    @property
    def step_limit(self) -> int:
        return 50

    def generate(self, options: Any) -> Any:
        return _challenge(self.name, {"rewards": self.rewards, "goal": self.goal, "test": False}, options)


@dataclass(frozen=True)
class Custom:
    """Rooms, objects and a quest of some length, drawn at random.

    objects: at least so many; the quest's own count.
    """

    rooms: int = 2
    objects: int = 3
    quest_length: int = 4

    name: ClassVar[str] = "custom"

    def __post_init__(self) -> None:
        _in_range(self, "rooms", 1, 100)
        _in_range(self, "objects", 1, 200)
        _in_range(self, "quest_length", 1, 100)

    @property
    def step_limit(self) -> int:
        return 3 * self.quest_length

    def generate(self, options: Any) -> Any:
        from textworld.generator import make_game

        options.nb_rooms, options.nb_objects, options.quest_length = self.rooms, self.objects, self.quest_length
        return make_game(options)


@dataclass(frozen=True)
class Cooking:
    """Find a recipe's ingredients, prepare and eat the meal (the First TextWorld Problems competition).

    recipe: ingredients, 1 to 5. take: how many of them must be found. go: locations, 1, 6, 9 or 12.
    open, cook, cut, drop: doors and containers are closed; food wants cooking; cutting; hands are full.
    foods: which ingredients and preparations, train, valid, test or all.
    """

    recipe: int = 1
    take: int = 0
    go: int = 1
    open: bool = False
    cook: bool = False
    cut: bool = False
    drop: bool = False
    foods: str = "all"

    name: ClassVar[str] = "cooking"

    def __post_init__(self) -> None:
        _in_range(self, "recipe", 1, 5)
        _in_range(self, "take", 0, self.recipe)
        _one_of(self, "go", (1, 6, 9, 12))
        _one_of(self, "foods", ("train", "valid", "test", "all"))

    @property
    def step_limit(self) -> int:
        return 80

    def generate(self, options: Any) -> Any:
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "foods"}
        split = None if self.foods == "all" else self.foods
        return _challenge(self.name, {**settings, "split": split, "recipe_seed": 0}, options)


GameKind = CoinCollector | TreasureHunter | Simple | Custom | Cooking
KINDS: dict[str, type[GameKind]] = {kind.name: kind for kind in get_args(GameKind)}


def game_kind(name: str, **parameters: Any) -> GameKind:
    """The kind of that name with its parameters checked.

    Raises:
        EpisodeError: there is no such kind, it has no such parameter, or a value that it cannot take.
    """
    if name not in KINDS:
        raise EpisodeError(f"there is no kind of game called {name!r}; the kinds are {', '.join(KINDS)}")
    kind = KINDS[name]
    known = [field.name for field in fields(kind)]
    for given in parameters:
        if given not in known:
            raise EpisodeError(f"{name} has no parameter {given}; it has {', '.join(known)}")
    for field in fields(kind):
        wanted, value = type(field.default), parameters.get(field.name, field.default)
        if type(value) is not wanted:
            raise EpisodeError(f"{name}: {field.name} is {value!r}; it wants {_TYPE_NAMES[wanted]}")
    return kind(**parameters)


_TYPE_NAMES: dict[type, str] = {int: "a whole number", bool: "true or false", str: "a word"}


def _in_range(kind: GameKind, name: str, least: int, most: int) -> None:
    if not least <= getattr(kind, name) <= most:
        raise EpisodeError(f"{kind.name}: {name} is {getattr(kind, name)}; it wants {least} to {most}")


def _one_of(kind: GameKind, name: str, choices: tuple[object, ...]) -> None:
    if getattr(kind, name) not in choices:
        wanted = ", ".join(map(str, choices))
        raise EpisodeError(f"{kind.name}: {name} is {getattr(kind, name)!r}; it wants one of {wanted}")


def _challenge(name: str, settings: dict[str, Any], options: Any) -> Any:
    from textworld.challenges import CHALLENGES

    return CHALLENGES[f"tw-{name}"][1](settings, options)
