"""The command line: `rayrlhf train`, `sweep`, `generate`, `rate`, `reward-model`, `loop`, `doctor` and the others.

A command imports its module when it runs, so that `--help` needs neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from rayrlhf.errors import UserError
from rayrlhf.ray_address import check_address, given_address
from rayrlhf.terminal_output import plain_console, say
from rayrlhf.trust_option import TrustOption

app = typer.Typer(
    help="Trains language models by reinforcement learning on Ray. Start with `rayrlhf train`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug's traceback stays plain, and complete in a log
)

# A command that is another module's: it reads its own arguments and --help, and is imported when it runs.
_ELSEWHERE = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


@app.command()
def train(
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="A recipe's name or a YAML file.", show_default="alliteration"),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as rollout.workers=4.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config as YAML and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of this name where it stopped.")] = False,
    trust: TrustOption = None,
) -> None:
    """Train a policy: `rayrlhf train alliteration algorithm.kl.coef=0.4 name=my-run`."""
    from rayrlhf.config_loading import dump_config, load_config
    from rayrlhf.trust import Trust, code_of_run, require_own_config

    file, words = split_arguments([word for word in (source, *(overrides or [])) if word is not None])
    config = load_config(file, words, piped=True)
    if dry_run:
        say(dump_config(config), end="")
        return
    require_own_config(file, code_of_run(config), words, Trust.of(trust))
    check_address(given_address())  # before what takes long to import
    from rayrlhf import trainer

    trainer.train(config, resume=resume)


@app.command()
def sweep(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A search space of tune/, a recipe's name or a YAML file of either.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE|KEY=DIMENSION",
            help="Settings of every trial, dimensions such as algorithm.kl.coef=grid:0,0.1,1, and the sweep's own, "
            "such as sweep.seeds=3.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the trials, and stop.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep of this name where it stopped.")
    ] = False,
    trust: TrustOption = None,
) -> None:
    """Run many trainings and compare them: `rayrlhf sweep alliteration algorithm.kl.coef=grid:0,0.1,1 sweep.seeds=2`."""
    from rayrlhf.tune.sweep_config import load_sweep

    request = load_sweep(source, words or [])
    if dry_run:
        from rayrlhf.tune.listing import print_trials

        print_trials(request)
        return
    from rayrlhf.trust import Trust

    check_address(given_address())
    from rayrlhf.tune.sweep import run_sweep
    from rayrlhf.tune.sweep_code import require_own_sweep

    require_own_sweep(source, request, words or [], Trust.of(trust))
    run_sweep(request, resume=resume, trust=Trust.of(trust))


def split_arguments(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Splits `[SOURCE] [KEY=VALUE]...` into the source, or None, and the overrides.

    Raises:
        UserError: two sources, or one behind an override.
    """
    source: str | None = None
    overrides = list(arguments)
    if overrides and ("=" not in overrides[0] or Path(overrides[0]).exists()):
        source = overrides.pop(0)
    for word in overrides:
        if "=" not in word:
            raise UserError(f"{word}: one recipe or file comes first, then KEY=VALUE; this is neither")
    return source, overrides


@app.command()
def generate(
    source: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="A run's folder, a model folder or its name.")],
    prompt: Annotated[str | None, typer.Option(help="Text to go on from; without it the model starts anew.")] = None,
    reward: Annotated[list[str] | None, typer.Option(help="Score the samples by this reward; may be repeated.")] = None,
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="How many samples.")] = 5,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest sample in tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="Sampling temperature, above 0.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal samples.")] = 0,
    trust: TrustOption = None,
) -> None:
    """Print samples of a model or of a run's policy, with their scores."""
    if not 0 < temperature < float("inf"):
        raise UserError(f"--temperature must be a number above 0, not {temperature:g}")
    from rayrlhf.generate import generate as print_samples
    from rayrlhf.trust import Trust

    print_samples(
        source=source,
        prompt=prompt,
        rewards=reward or [],
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        trust=Trust.of(trust),
    )


@app.command()
def evaluate(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, or a model with --recipe.")],
    recipe: Annotated[str | None, typer.Option(help="Whose environment a model plays: a recipe or YAML file.")] = None,
    games: Annotated[
        int | None, typer.Option(min=1, help="Held-out games.", show_default="evaluation.episodes of the config")
    ] = None,
    episodes_per_game: Annotated[int, typer.Option(min=1, help="Episodes a game, of players that draw.")] = 1,
    greedy: Annotated[bool, typer.Option("--greedy", help="Only the likeliest commands, nothing sampled.")] = False,
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Only sampled commands, at the run's temperature.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal figures.")] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures to this file.")] = None,
    trust: TrustOption = None,
) -> None:
    """Play a run's held-out games with its policy, beside a random player and the known solution."""
    from rayrlhf.evaluate import evaluate as play_and_print
    from rayrlhf.evaluation_results import PlayerName
    from rayrlhf.trust import Trust

    policy: tuple[PlayerName, ...] = ("greedy", "sampled")
    if greedy != sampled:
        policy = ("greedy",) if greedy else ("sampled",)
    play_and_print(
        source=source,
        recipe=recipe,
        games=games,
        episodes_per_game=episodes_per_game,
        players=(*policy, "random", "oracle"),
        seed=seed,
        json_file=json,
        trust=Trust.of(trust),
    )


@app.command()
def play(
    source: Annotated[
        str | None,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, or a model with --game.", show_default=False),
    ] = None,
    game: Annotated[Path | None, typer.Option(help="Play this game file (.z8).", show_default=False)] = None,
    human: Annotated[bool, typer.Option("--human", help="Play alone, without the policy.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look on while the policy plays one game.")] = False,
    delay: Annotated[float, typer.Option(min=0, help="Seconds between the moves of --watch.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Which of the environment's games.")] = 0,
    held_out: Annotated[bool, typer.Option("--held-out", help="One of the games that are not trained on.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Of the policy, above 0.", show_default="the run's, else 1")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="The policy takes its likeliest command.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Keep the transcript in this JSONL file.", show_default=False)
    ] = None,
    export_sft: Annotated[
        Path | None, typer.Option(help="Write the moves as prompt and completion (JSONL).", show_default=False)
    ] = None,
    export_preferences: Annotated[
        Path | None,
        typer.Option(
            help="Write your moves beside the policy's as prompt, chosen, rejected (JSONL).", show_default=False
        ),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Play this transcript again and check that it fits.", show_default=False)
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Play a text game with a policy: take its moves or your own. `?` lists the keys."""
    from rayrlhf.play.command import PlayOptions, play, play_again
    from rayrlhf.play.outputs import Exports
    from rayrlhf.trust import Trust

    exports = Exports(export_sft, export_preferences)
    if replay is not None:
        if source or game or human or watch or save:
            raise UserError("--replay takes all from its transcript: of the others only --export-... go with it")
        raise typer.Exit(0 if play_again(replay, exports, Trust.of(trust)) else 1)
    play(
        PlayOptions(
            source=source,
            game=game,
            human=human,
            watch=watch,
            delay_s=delay,
            seed=seed,
            held_out=held_out,
            temperature=temperature,
            greedy=greedy,
            save=save,
            exports=exports,
            trust=Trust.of(trust),
        )
    )


@app.command()
def imitate(
    source: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name or a YAML file: games and model.")],
    output: Annotated[Path, typer.Argument(help="Folder for the trained model; it must not exist yet.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as optimizer.lr=1e-3.")
    ] = None,
    games: Annotated[int, typer.Option(min=1, help="Training games whose solutions are shown.")] = 200,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all turns.")] = 10,
    turns_per_step: Annotated[int, typer.Option(min=1, help="Turns behind one optimizer step.")] = 64,
    trust: TrustOption = None,
) -> None:
    """Train a policy on the known solutions of a recipe's games, to start reinforcement learning from it."""
    from rayrlhf.config_loading import load_config
    from rayrlhf.trust import Trust, code_of_run, require_own_config

    config = load_config(source, overrides or [], piped=True)
    require_own_config(source, code_of_run(config), overrides or [], Trust.of(trust))
    from rayrlhf.imitation import ImitationSettings
    from rayrlhf.imitation import imitate as train_on_solutions

    say(str(train_on_solutions(config, output, ImitationSettings(games, epochs, turns_per_step))))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run's or a sweep's, such as runs/my-run.")],
) -> None:
    """Write report.html of a run (its curves, samples side by side) or of a sweep (its frontier, what it recommends)."""
    if (folder / "sweep.yaml").is_file():
        from rayrlhf.tune.sweep_report import write_sweep_report as write
    else:
        from rayrlhf.report import write_report as write
    say(str(write(folder)))


@app.command()
def replay(
    batch: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A batch of a run, such as runs/x/alarms/000012-entropy.")
    ],
    trust: TrustOption = None,
) -> None:
    """Play a batch that an alarm kept once more: is it the same, and what does it read like?"""
    from rayrlhf.replay import replay as play_again
    from rayrlhf.trust import Trust

    raise typer.Exit(0 if play_again(batch, Trust.of(trust)) else 1)


@app.command()
def recipes() -> None:
    """List the recipes that `train` knows by name."""
    from rich.table import Table

    from rayrlhf.config_loading import recipes as shipped

    table = Table.grid(padding=(0, 2))
    for recipe in shipped():
        table.add_row(recipe.name, recipe.summary)
    plain_console(soft_wrap=False, highlight=False).print(table)


@app.command(context_settings=_ELSEWHERE, add_help_option=False)
def rewards(context: typer.Context) -> None:
    """List, show, test and time rewards."""
    from rayrlhf.rewards_cli import rewards_app

    _hand_over(rewards_app, context)


@app.command(context_settings=_ELSEWHERE, add_help_option=False)
def envs(context: typer.Context) -> None:
    """List, show, test and time environments, and make games."""
    from rayrlhf.environments.cli import envs_app

    _hand_over(envs_app, context)


@app.command(context_settings=_ELSEWHERE, add_help_option=False)
def sft(context: typer.Context) -> None:
    """Train a model on text by predicting the next token."""
    from rayrlhf.sft_cli import sft as command

    _hand_over(_alone(command), context)


@app.command(context_settings=_ELSEWHERE, add_help_option=False)
def labels(context: typer.Context) -> None:
    """Import, export and check people's preferences: comparisons and ratings."""
    from rayrlhf.preferences.labels_cli import labels_app

    _hand_over(labels_app, context)


@app.command(context_settings=_ELSEWHERE, add_help_option=False)
def rate(context: typer.Context) -> None:
    """Rate texts in pairs, on a page of this machine or in the terminal."""
    from rayrlhf.preferences.rate_cli import rate as command

    _hand_over(_alone(command), context)


@app.command(context_settings=_ELSEWHERE, add_help_option=False)
def rank(context: typer.Context) -> None:
    """Rank the items of a project by its comparisons, with intervals."""
    from rayrlhf.preferences.rank_cli import rank as command

    _hand_over(_alone(command), context)


@app.command(context_settings=_ELSEWHERE, add_help_option=False)
def compare(context: typer.Context) -> None:
    """Compare two models blindly, by a person or a judge."""
    from rayrlhf.preferences.compare_cli import compare as command

    _hand_over(_alone(command), context)


@app.command(name="reward-model", context_settings=_ELSEWHERE, add_help_option=False)
def reward_model(context: typer.Context) -> None:
    """Train a reward model on a project's comparisons and ratings."""
    from rayrlhf.reward_models.cli import reward_model as command

    _hand_over(_alone(command), context)


@app.command(context_settings=_ELSEWHERE, add_help_option=False)
def loop(context: typer.Context) -> None:
    """Go round: sample, check, rate, rank, train a reward model, optimise it, sample again."""
    from rayrlhf.preferences.loop_cli import loop as command

    _hand_over(_alone(command), context)


@app.command()
def doctor() -> None:
    """Check this machine: versions, devices, compiler, Ray, ports, disk; and what to do about each fault."""
    from rayrlhf.doctor import run

    raise typer.Exit(run())


def _alone(command: Callable[..., None]) -> typer.Typer:
    """A function of another module as a command line of its own."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command()(command)
    return alone


def _hand_over(command: typer.Typer, context: typer.Context) -> None:
    """Runs another module's command line on the arguments given after its name, with its exit code."""
    code = command(args=context.args, prog_name=context.command_path, standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)
