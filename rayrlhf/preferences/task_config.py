"""What a project's texts are samples of: the section `task` of its config."""

from __future__ import annotations

from rayrlhf.config_section import Section


class TaskConfig(Section):
    """The recipe of `rayrlhf train` whose model, prompts and sampling the project is about."""

    recipe: str = "alliteration"
    """A recipe's name or a YAML file; its model is the reference."""
    overrides: tuple[str, ...] = ()
    """KEY=VALUE settings of the recipe, such as rollout.max_new_tokens=32."""
