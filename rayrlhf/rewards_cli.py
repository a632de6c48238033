"""`rayrlhf rewards list | show | test | time`: look at rewards, check one against the contract, see how fast it is."""

from __future__ import annotations

import inspect
import json
import time
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from rayrlhf import plugins
from rayrlhf.errors import RewardError
from rayrlhf.plugin_cli import parsed_parameters, say_results, yaml_parameters
from rayrlhf.terminal_output import plain_console, say

rewards_app = typer.Typer(
    help="List, show, test and time rewards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(help="A built-in reward, an entry point, or module:Name.", show_default=False)]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="KEY=VALUE", help="A parameter of the reward; may be repeated."),
]
Timeout = Annotated[float, typer.Option(help="Seconds that one batch may take.", min=0.01)]

_BATCH_SIZES = (1, 32, 256)
_TIMED_FOR_S = 0.5


@rewards_app.command("list")
def list_rewards() -> None:
    """The rewards that can be named: what each one rewards, and where it is from."""
    table = Table("name", "what it rewards", "from", box=None, pad_edge=False)
    for name, summary in plugins.available("reward").items():
        table.add_row(Text(name), Text(summary), Text(plugins.origin("reward", name)))
    plain_console().print(table)
    say("\nA function or class of your own is named module:Name, as in my_rewards:shouting.")


@rewards_app.command()
def show(name: Name, param: Parameters = None) -> None:
    """A reward's documentation, its parameters, an example for a config, and its scores on example texts."""
    from rayrlhf.reward_contract import EXAMPLE_TEXTS, example_trajectory
    from rayrlhf.reward_parameters import described, named_part, parameters_of
    from rayrlhf.reward_process import RewardProcess

    plugin = plugins.load("reward", name)
    given = _parsed(param)
    say(f"{plugins.canonical(name)} ({plugins.origin('reward', name)})\n")
    say(inspect.getdoc(plugins.underlying(plugin)) or "It has no documentation.")
    say(f"\nParameters: {described(plugin) or 'none'}")
    needed = [key for key, parameter in parameters_of(plugin).items() if parameter.default is parameter.empty]
    missing = [key for key in needed if key not in given]
    say(f"\nIn a config:\n  reward:\n    - {_yaml_example(plugins.canonical(name), plugin, given)}\n      weight: 1.0")
    if missing:
        say(f"\nTo see scores, give {' '.join(f'--param {key}=...' for key in missing)}")
        return
    say("\nScores:")
    with RewardProcess([named_part(name, given)], timeout_s=60.0) as process:
        scores = process.score([example_trajectory(*texts) for texts in EXAMPLE_TEXTS])
    for (prompt, response), score in zip(EXAMPLE_TEXTS, scores, strict=True):
        say(f"  {float(score.total.sum()):8.3f}  {prompt}{response}")


@rewards_app.command("test")
def check(name: Name, param: Parameters = None, timeout: Timeout = 10.0) -> None:
    """Check a reward against the contract, one line a check; exit status 1 where one fails."""
    from rayrlhf.reward_contract import check_reward

    say_results(check_reward(name, timeout, **_parsed(param)))


@rewards_app.command("time")
def measure(name: Name, param: Parameters = None, timeout: Timeout = 60.0) -> None:
    """Episodes a second in batches of 1, 32 and 256, as a run has them scored: in a process of their own."""
    from rayrlhf.reward_contract import EXAMPLE_TEXTS, example_trajectory
    from rayrlhf.reward_parameters import named_part
    from rayrlhf.reward_process import RewardProcess

    with RewardProcess([named_part(name, _parsed(param))], timeout) as process:
        for size in _BATCH_SIZES:
            texts = [EXAMPLE_TEXTS[index % len(EXAMPLE_TEXTS)] for index in range(size)]
            batch = [example_trajectory(*pair, index=index) for index, pair in enumerate(texts)]
            process.score(batch)
            start, batches = time.perf_counter(), 0
            while (seconds := time.perf_counter() - start) < _TIMED_FOR_S:
                process.score(batch)
                batches += 1
            say(f"batch of {size:3d}: {size * batches / seconds:10,.0f} episodes/s")


def _parsed(parameters: list[str] | None) -> dict[str, Any]:
    return parsed_parameters(parameters or (), RewardError, "--param ")


def _yaml_example(name: str, plugin: Any, given: dict[str, Any]) -> str:
    """The lines of a config's list entry: the name, and each parameter as given, else its default."""
    from rayrlhf.reward_parameters import parameters_of

    lines = [f"name: {json.dumps(name) if ':' in name else name}", *yaml_parameters(parameters_of(plugin), given)]
    return "\n      ".join(lines)
