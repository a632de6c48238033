"""`rayrlhf loop`: the rounds of a project of preferences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayrlhf.terminal_output import say
from rayrlhf.trust_option import TrustOption


def loop(
    project: Annotated[Path, typer.Argument(help="The project's folder; it is made where there is none.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of the section loop, such as rounds=3 or comparisons_per_round=200, or of another, such as "
            "reward_model.objective=latent or task.recipe=alliteration.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Settings of a new project: they become its project.yaml.", show_default=False
        ),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Stop where people have to rate, instead of waiting for them.")
    ] = False,
    trust: TrustOption = None,
) -> None:
    """Go round: sample, check, rate, rank, train a reward model, optimise it. Stopped anywhere, it goes on there."""
    from rayrlhf.preferences.loop import run_loop
    from rayrlhf.preferences.project import ProjectConfig, load_project_config, settle_project
    from rayrlhf.trust import Trust, code_of_project, remember, require_own_project, require_project

    if config is not None:
        file = config
        own = settle_project(project, file, lambda own: require_own_project(file, own, Trust.of(trust)))
        remember(project, code_of_project(own))
    sections = ProjectConfig.model_fields
    words = [word if word.split(".")[0] in sections else f"loop.{word}" for word in overrides or []]
    settings = load_project_config(project, words)
    require_project(project, code_of_project(settings), words, Trust.of(trust))
    run_loop(project, settings, wait=not no_wait, show=say)
