"""`rayrlhf envs list | show | test | time | make-games`: look at environments, check one, see how fast it is."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from rayrlhf import plugins
from rayrlhf.errors import EpisodeError
from rayrlhf.games.cli import make_games_command
from rayrlhf.plugin_cli import parsed_parameters, say_results, yaml_parameters
from rayrlhf.terminal_output import plain_console, say

envs_app = typer.Typer(
    help="List, show, test and time environments; make games.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[
    str,
    typer.Argument(help="A built-in environment, an entry point, module:Name, or a Gymnasium id.", show_default=False),
]
Parameters = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Parameters of the environment, such as level=5.")
]
Timeout = Annotated[float, typer.Option(help="Seconds that one step may take.", min=0.01)]

_SIDE_BY_SIDE = (1, 8, 32, 128)
_TIMED_FOR_S = 1.0


@envs_app.command("list")
def list_environments() -> None:
    """The environments that can be named: what each one is, and where it is from."""
    table = Table("name", "what it is", "from", box=None, pad_edge=False)
    for name, summary in plugins.available("environment").items():
        table.add_row(Text(name), Text(summary), Text(plugins.origin("environment", name)))
    plain_console().print(table)
    say(
        "\nA class of your own is named module:Name, as in my_games:Dungeon; a registered Gymnasium environment with "
        "text spaces by its id, as in MyText-v0, or my_games:MyText-v0 where importing my_games registers it."
    )


@envs_app.command()
def show(name: Name, parameters: Parameters = None) -> None:
    """An environment's documentation, its parameters, an example for a config, and how its first episode begins."""
    from rayrlhf.environments import EnvironmentSettings, constructor_parameters, takes_prompts
    from rayrlhf.environments.contract import EXAMPLE_PROMPTS
    from rayrlhf.environments.pool import ProcessEnvironments
    from rayrlhf.plugin_parameters import listing

    given = parsed_parameters(parameters or (), EpisodeError)
    known = constructor_parameters(name)
    say(f"{name} ({plugins.origin('environment', name)})\n")
    say(inspect.getdoc(plugins.underlying(plugins.load("environment", name))) or "It has no documentation.")
    say(f"\nParameters: {listing(known) or 'none'}")
    lines = [f"name: {json.dumps(name) if ':' in name else name}", *yaml_parameters(known, given)]
    say("\nIn a config:\n  environment:\n    " + "\n    ".join(lines))
    missing = [key for key, value in known.items() if value.default is value.empty and key not in given]
    if missing:
        say(f"\nTo see an episode begin, give {' '.join(f'{key}=...' for key in missing)}")
        return
    prompts = EXAMPLE_PROMPTS if takes_prompts(name) else ()
    with ProcessEnvironments(EnvironmentSettings(name, given, step_timeout_s=60.0), prompts) as environments:
        start = environments.reset([0])[0]
    say(f"\nEpisode 0 begins:\n{start.observation}")
    if start.state.commands:
        say(f"\nCommands: {', '.join(start.state.commands)}")


@envs_app.command("test")
def check(name: Name, parameters: Parameters = None, timeout: Timeout = 20.0) -> None:
    """Check an environment against the contract, one line a check; exit status 1 where one fails."""
    from rayrlhf.environments.contract import check_contract

    say_results(check_contract(name, timeout, **parsed_parameters(parameters or (), EpisodeError)))


@envs_app.command("time")
def measure(name: Name, parameters: Parameters = None, timeout: Timeout = 60.0) -> None:
    """Steps a second of 1, 8, 32 and 128 episodes side by side in one process, played and remembered."""
    from rayrlhf.environments import EnvironmentSettings, takes_prompts
    from rayrlhf.environments.contract import EXAMPLE_PROMPTS
    from rayrlhf.environments.pool import ProcessEnvironments

    settings = EnvironmentSettings(name, parsed_parameters(parameters or (), EpisodeError), step_timeout_s=timeout)
    prompts = EXAMPLE_PROMPTS if takes_prompts(name) else ()
    for side_by_side in _SIDE_BY_SIDE:
        speeds = []
        for entries in (0, 50_000):
            with ProcessEnvironments(settings, prompts, memo_entries=entries) as environments:
                speeds.append(_steps_a_second(environments, side_by_side))
        say(f"{side_by_side:3d} side by side: {speeds[0]:9,.0f} steps/s, {speeds[1]:11,.0f} with memory")


def _steps_a_second(environments: Any, side_by_side: int) -> float:
    """Of a scripted policy, resets included, once every game was started and played through."""
    from rayrlhf.environments.contract import play

    seeds: Sequence[int] = [slot % 8 for slot in range(side_by_side)]
    play(environments, seeds, seeds)
    start, steps, episodes = time.perf_counter(), 0, 0
    while (seconds := time.perf_counter() - start) < _TIMED_FOR_S:
        played = play(environments, seeds, [episodes % 4 + slot for slot in seeds])
        steps += sum(len(episode) - 1 for episode in played)
        episodes += 1
    return steps / seconds


envs_app.command("make-games")(make_games_command)
