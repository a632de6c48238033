"""`rayrlhf compare A B`: which of two models writes better texts, judged without knowing who wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayrlhf.errors import RewardError, UserError
from rayrlhf.terminal_output import plain_console, say
from rayrlhf.trust_option import TrustOption


def compare(
    a: Annotated[str, typer.Argument(help="A run's folder, a model, or a JSONL file of samples.", show_default=False)],
    b: Annotated[str, typer.Argument(help="The other one.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the comparison; one that is there goes on.")
    ] = Path("comparison"),
    samples: Annotated[int, typer.Option(min=1, help="Pairs to judge: texts of each.")] = 100,
    prompt: Annotated[
        str | None, typer.Option(help="One prompt for all texts; else the runs' or the files' own.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest text in tokens, of both.")] = 64,
    temperature: Annotated[float, typer.Option(help="Sampling temperature of both, above 0.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    judge: Annotated[str | None, typer.Option(help="A reward that judges in your place.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", metavar="KEY=VALUE", help="A parameter of the judge.")
    ] = None,
    margin: Annotated[float, typer.Option(min=0, help="Scores of the judge this close are a tie.")] = 0.0,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds that the judge may take for a batch.")] = 600.0,
    rater: Annotated[str, typer.Option(help="Your name, kept with the verdicts.")] = "",
    allow_unequal: Annotated[
        bool, typer.Option("--allow-unequal", help="Compare texts that were sampled with different settings too.")
    ] = False,
    trust: TrustOption = None,
) -> None:
    """Compare two models blindly: you, or a reward, choose the better of two texts with the same prompt.

    Sides are drawn at random, and who wrote what is told at the end. Stop with x; the same command goes on.
    """
    from functools import partial

    from rayrlhf.plugin_cli import parsed_parameters
    from rayrlhf.preferences.compare import BlindComparison, judge_equal_texts, report
    from rayrlhf.preferences.compare_config import CompareConfig
    from rayrlhf.preferences.compare_samples import collect
    from rayrlhf.reading import typed
    from rayrlhf.trust import Trust

    if not 0 < temperature < float("inf"):
        raise UserError(f"--temperature must be a number above 0, not {temperature:g}")
    if param and judge is None:
        raise UserError("--param is of a judge: name one with --judge")
    parameters = parsed_parameters(param or (), RewardError, "--param ")
    given = {
        "a": a, "b": b, "samples": samples, "prompt": prompt, "max_new_tokens": max_new_tokens,
        "temperature": temperature, "seed": seed, "allow_unequal": allow_unequal, "judge": judge,
        "judge_parameters": parameters, "margin": margin,
    }  # fmt: skip
    config = typed(CompareConfig, given, "compare", UserError)
    with BlindComparison(output, config, partial(collect, trust=Trust.of(trust))) as comparison:
        for note in comparison.notes:
            say(f"note: {note}")
        if equal := judge_equal_texts(comparison):
            say(f"{equal} pairs of equal texts are ties")
        try:
            if judge is None:
                from rayrlhf.preferences.compare_terminal import judge_at_terminal
                from rayrlhf.preferences.terminal_keys import keys_of_standard_input

                with keys_of_standard_input() as keys:
                    judge_at_terminal(comparison, rater, plain_console(), keys)
            else:
                from rayrlhf.preferences.compare_judge import judge_all
                from rayrlhf.reward_parameters import named_part
                from rayrlhf.reward_process import RewardProcess

                with RewardProcess([named_part(judge, parameters)], timeout) as process:
                    judge_all(comparison, process, judge, margin)
        finally:
            comparison.write_results()
        waiting = len(comparison.waiting())
        for line in report(comparison.tally(), a, b):
            say(line)
        if waiting:
            say(f"{waiting} pairs wait: interval and test hold for a number of pairs that was fixed beforehand")
        say(f"written: {output / 'results.json'} and {output / 'results.jsonl'}")
