"""`rayrlhf reward-model`: trains a reward model on the labels of a project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayrlhf.terminal_output import say
from rayrlhf.trust_option import TrustOption


def reward_model(
    project: Annotated[Path, typer.Argument(help="The project's folder, with ratings.sqlite.")],
    output: Annotated[Path, typer.Argument(help="Folder for the reward model; it must not exist yet.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of the section reward_model, such as objective=latent or epochs=3, or of the task, such as "
            "task.recipe=alliteration.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")] = False,
    trust: TrustOption = None,
) -> None:
    """Train a reward model on people's comparisons or ratings, with Lightning and DeepSpeed in Ray Train."""
    from rayrlhf.config_loading import load_config
    from rayrlhf.preferences.project import ProjectConfig, load_project_config, open_store
    from rayrlhf.reward_models.project_labels import project_labels
    from rayrlhf.reward_models.training import make_reward_model
    from rayrlhf.trust import Trust, code_of_task, require_project

    sections = ProjectConfig.model_fields
    words = [word if word.split(".")[0] in sections else f"reward_model.{word}" for word in overrides or []]
    config = load_project_config(project, words)
    require_project(project, code_of_task(config), words, Trust.of(trust))
    task = load_config(config.task.recipe, config.task.overrides)
    with open_store(project) as store:
        labels = project_labels(store, config.ranking, config.reward_model)
    request = {"project": str(project.resolve()), "model": task.model.path, **config.model_dump(mode="json")}
    make_reward_model(
        output, labels, task, config.reward_model, request, resume, say, kept_samples=project / "reference"
    )
    say(f"{output}: use it as `reward={{name: reward_model, path: {output}}}`")
