"""The map of a TextWorld game: rooms on a grid, the ways between them, and a drawing of it for the terminal."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrlhf.errors import EpisodeError
from rayrlhf.games.game_data import blamed, load_game

_GAP = 5  # columns between two rooms
_DOORS = {"open": "/", "closed": "+", "locked": "#"}


@dataclass(frozen=True, slots=True)
class Room:
    """A room and its place on the grid; x grows to the east, y to the north."""

    name: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Way:
    """Two neighbouring rooms by name, and the door between them: "", or open, closed or locked."""

    rooms: tuple[str, str]
    door: str


@dataclass(frozen=True, slots=True)
class WorldMap:
    rooms: tuple[Room, ...]
    ways: tuple[Way, ...]
    player: str  # name of the room


def world_map(game_file: Path, facts: Collection[Any] = ()) -> WorldMap:
    """The map of a game of TextWorld.

    facts: of its logic, as they hold now; without them, as they are when the game begins.

    Raises:
        EpisodeError: there is no .json beside the file, as with other games than TextWorld's, or it is damaged.
    """
    from textworld.generator import World
    from textworld.render import load_state

    description = game_file.with_suffix(".json")
    if not description.is_file():
        raise EpisodeError(
            f"{game_file.name} has no map: only TextWorld's own games have one, in the .json beside them"
        )
    game = load_game(description)
    with blamed(description):
        now = World.from_facts(list(facts), game.kb) if facts else game.world
        # The grid grows from the player's room: from the one where the game begins, so that the map stays as it is.
        rooms = load_state(game.world, dict(game.infos))["rooms"]
        ways = load_state(now, dict(game.infos))["connections"]
        return WorldMap(
            tuple(Room(room["name"], int(room["position"][0]), int(room["position"][1])) for room in rooms),
            tuple({_way(way["src"], way["dest"], way["door"]): None for way in ways}),  # each is listed from both ends
            game.infos[now.player_room.name].name,
        )


def _way(start: str, end: str, door: Any) -> Way:
    first, second = sorted((start, end))
    return Way((first, second), door["ocl"] if door else "")


def ascii_map(world: WorldMap) -> str:
    """The map as lines of text, the player's room with an @; doors on the way are / open, + closed, # locked."""
    labels = {room.name: f"[@ {room.name}]" if room.name == world.player else f"[{room.name}]" for room in world.rooms}
    places = {room.name: room for room in world.rooms}
    columns = range(min(room.x for room in world.rooms), max(room.x for room in world.rooms) + 1)
    widths = [max((len(labels[room.name]) for room in world.rooms if room.x == x), default=1) for x in columns]
    middles = {
        x: sum(widths[:index]) + index * _GAP + width // 2
        for index, (x, width) in enumerate(zip(columns, widths, strict=True))
    }
    top = max(room.y for room in world.rooms)
    lines = 2 * (top - min(room.y for room in world.rooms)) + 1
    canvas = [[" "] * (sum(widths) + _GAP * len(widths)) for _ in range(lines)]
    for way in world.ways:
        first, second = (places[name] for name in way.rooms)
        _draw_way(canvas, [(middles[room.x], 2 * (top - room.y)) for room in (first, second)], way.door)
    for room in world.rooms:
        label = labels[room.name]
        start = middles[room.x] - len(label) // 2
        canvas[2 * (top - room.y)][start : start + len(label)] = label
    return "\n".join("".join(line).rstrip() for line in canvas)


def _draw_way(canvas: list[list[str]], ends: list[tuple[int, int]], door: str) -> None:
    """Draws a straight line between the middles of two rooms, whose labels are written over its ends."""
    left, right = sorted(column for column, _ in ends)
    top, bottom = sorted(line for _, line in ends)
    for line in range(top, bottom + 1):
        for column in range(left, right + 1):
            canvas[line][column] = "-" if top == bottom else "|"
    if door:
        canvas[(top + bottom) // 2][(left + right) // 2] = _DOORS[door]
