"""`rayrlhf envs make-games KIND`: makes TextWorld games before a run needs them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from rayrlhf.terminal_output import plain_console


def make_games_command(
    kind: Annotated[
        str, typer.Argument(help="coin_collector, treasure_hunter, simple, custom or cooking.", show_default=False)
    ],
    games: Annotated[int, typer.Option(help="Games to train on.", min=0)] = 230,
    held_out: Annotated[int, typer.Option(help="Games to evaluate on, of other seeds.", min=0)] = 40,
    processes: Annotated[int, typer.Option(help="Make so many games side by side.", min=1)] = 2,
    level: Annotated[int | None, typer.Option(help="coin_collector, treasure_hunter: how hard.")] = None,
    rewards: Annotated[str | None, typer.Option(help="simple: dense, balanced or sparse.")] = None,
    goal: Annotated[str | None, typer.Option(help="simple: detailed, brief or none.")] = None,
    rooms: Annotated[int | None, typer.Option(help="custom: rooms.")] = None,
    objects: Annotated[int | None, typer.Option(help="custom: least number of objects.")] = None,
    quest_length: Annotated[int | None, typer.Option(help="custom: commands that the quest takes.")] = None,
    recipe: Annotated[int | None, typer.Option(help="cooking: ingredients.")] = None,
    take: Annotated[int | None, typer.Option(help="cooking: ingredients that must be found.")] = None,
    go: Annotated[int | None, typer.Option(help="cooking: locations, 1, 6, 9 or 12.")] = None,
    open: Annotated[bool | None, typer.Option("--open", help="cooking: doors and containers are closed.")] = None,
    cook: Annotated[bool | None, typer.Option("--cook", help="cooking: food wants cooking.")] = None,
    cut: Annotated[bool | None, typer.Option("--cut", help="cooking: food wants cutting.")] = None,
    drop: Annotated[bool | None, typer.Option("--drop", help="cooking: the player can carry little.")] = None,
    foods: Annotated[str | None, typer.Option(help="cooking: train, valid, test or all ingredients.")] = None,
) -> None:
    """Make TextWorld games, about one a second and process, and keep them; those that are there are not made again."""
    from rayrlhf.games.kinds import game_kind
    from rayrlhf.games.making import games_folder, make_all

    given: dict[str, Any] = {
        "level": level, "rewards": rewards, "goal": goal, "rooms": rooms, "objects": objects,
        "quest_length": quest_length, "recipe": recipe, "take": take, "go": go, "open": open, "cook": cook,
        "cut": cut, "drop": drop, "foods": foods,
    }  # fmt: skip
    wanted = game_kind(kind, **{name: value for name, value in given.items() if value is not None})
    make_all(wanted, games, held_out, processes)
    text = f"{games} games to train on and {held_out} held-out ones are in {games_folder(wanted)}"
    plain_console(highlight=False).print(Text(text), soft_wrap=True)
