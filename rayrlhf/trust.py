"""Whose code is run. A folder or file that somebody made is data: what it names beyond RayRLHF's own plugins never counts.

What counts is the person's own word: a config, or `--trust FOLDER` on the command line of the command that reads it.
What a person's own config said of a folder that was made here is remembered in a file of theirs, outside of the
folder, so that their run or project goes on; a copy, a folder moved, or one that says another thing is a stranger's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rayrlhf.errors import ModelError, UserError
from rayrlhf.plugins import Kind, is_own
from rayrlhf.reading import SHOWN, expanded, printable, read_json
from rayrlhf.terminal_output import say

if TYPE_CHECKING:
    from rayrlhf.config import ModelConfig, RunConfig
    from rayrlhf.preferences.project import ProjectConfig

_MADE_BESIDE = (
    "sessions.jsonl", "metrics.jsonl", "samples.jsonl", "checkpoints", "batch.json", "trials.jsonl", "ratings.sqlite",
    "rounds",
)  # fmt: skip
"""What lies beside a config in the folder of a run, a kept batch, a sweep or a project, and beside none that a person
keeps elsewhere."""


class UntrustedCodeError(UserError):
    """A folder or a file names code that does not come with RayRLHF, and nobody said that it may run."""


class Code(NamedTuple):
    """Code that a config names."""

    key: str  # where it says so, a dotted key
    what: str  # for people


@dataclass(frozen=True, slots=True)
class Trust:
    """What the command line gave with --trust."""

    sources: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Sequence[str] | None) -> Trust:
        return cls(tuple(given or ()))

    def covers(self, source: str | Path) -> bool:
        """Whether `source`, a folder, a file or a model's name, was named, or lies in a folder that was."""
        return any(str(source) == given or _lies_in(expanded(source), expanded(given)) for given in self.sources)

    def require(self, source: str | Path, code: Sequence[Code]) -> None:
        """Says what `source` is about to run, where it runs anything that is not RayRLHF's own.

        Raises:
            UntrustedCodeError: it would, and the command line does not trust it; nothing was run.
        """
        if not code:
            return
        listed = "".join(f"\n  {printable(entry.key)}: {printable(entry.what)[:SHOWN]}" for entry in code)
        if not self.covers(source):
            raise UntrustedCodeError(
                f"{source} names code that does not come with RayRLHF:{listed}\nNothing was run. If you know who made it "
                f"and what this code does, give --trust {source}"
            )
        say(f"--trust {source}: this code runs:{listed}", error=True)


NOBODY = Trust()


def code_of_plugins(config: RunConfig) -> list[Code]:
    """The environment and the rewards of a run's config that are no files of `envs/` and `rewards/`."""
    return [*code_of_environment(config.environment.name), *code_of_rewards(config)]


def code_of_environment(name: str) -> list[Code]:
    return _plugin("environment", name, "environment.name")


def code_of_rewards(config: RunConfig) -> list[Code]:
    return [
        code
        for index, part in enumerate(config.reward)
        for code in _plugin("reward", part.name, f"reward.{index}.name")
    ]


def code_of_run(config: RunConfig) -> list[Code]:
    """All that a run's config names: `model.trust_remote_code` as well."""
    model = config.model
    remote = [Code("model.trust_remote_code", f"Python code that comes with the model {model.path}")]
    return [*(remote if model.trust_remote_code else []), *code_of_plugins(config)]


def code_of_rating(config: ProjectConfig) -> list[Code]:
    """What shows, checks and plays the texts of a project; its regular expressions too, which some texts stop at for
    ever."""
    checks, rating = config.checks, config.rating
    header = checks.compressibility.header if checks.compressibility is not None else None
    patterns = {"checks.pattern": checks.pattern, "checks.compressibility.header": header}
    found = [Code(key, f"the regular expression {pattern}") for key, pattern in patterns.items() if pattern is not None]
    if checks.validity is not None:
        found.append(Code("checks.validity", checks.validity))
    if checks.command:
        found.append(Code("checks.command", " ".join(checks.command)))
    if ":" in rating.presenter:
        found.append(Code("rating.presenter", rating.presenter))
    if rating.player:
        found.append(Code("rating.player", " ".join(rating.player)))
    return found


def code_of_task(config: ProjectConfig) -> list[Code]:
    """What the recipe of a project's task names, as it stands and with the settings of the loop's runs."""
    found = dict.fromkeys(
        Code(f"task.{code.key}", code.what) for _, run in _task_runs(config) for code in code_of_run(run)
    )
    rater = config.loop.rater
    return [*found, *(_plugin("reward", rater.rule, "loop.rater.rule") if rater is not None else [])]


def _task_runs(config: ProjectConfig) -> list[tuple[Sequence[str], RunConfig]]:
    """The overrides of a project's task, and of its loop's runs, each with what the recipe is with them."""
    from rayrlhf.config_loading import load_config

    task = config.task
    both = (task.overrides, (*task.overrides, *config.loop.optimise))
    return [(words, load_config(task.recipe, words)) for words in both]


def code_of_project(config: ProjectConfig) -> list[Code]:
    return [*code_of_rating(config), *code_of_task(config)]


def code_of_model(path: str) -> list[Code]:
    """The Python files that the config or the tokenizer of a model's folder asks for; none of a hub name."""
    found: dict[Code, None] = {}
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        try:
            told = read_json(Path(path, name), ModelError)
        except ModelError:
            continue  # whoever loads it says what is wrong
        classes = told.get("auto_map") if isinstance(told, dict) else None
        if isinstance(classes, dict):
            found |= {Code(name, str(given)): None for given in classes.values()}
    return list(found)


def trusted_model(model: ModelConfig, source: str | Path, trust: Trust) -> ModelConfig:
    """The model of a folder: its own code runs where the command line trusts the folder, whatever the folder says."""
    covered = trust.covers(source)
    if covered:
        local = expanded(model.path).is_dir()
        trust.require(source, code_of_model(model.path) if local else [Code("model", f"any code of {model.path}")])
    return model.model_copy(update={"trust_remote_code": covered})


def require_own_config(source: str | None, code: Sequence[Code], overrides: Iterable[str], trust: Trust) -> None:
    """For a config that is the person's own word, unless it lies in the folder of a run, sweep or project, which is data.

    overrides: KEY=VALUE of the command line: what they say is the person's word.

    Raises:
        UntrustedCodeError: see `Trust.require`.
    """
    if source is None or not (made := made_folder(expanded(source))):
        return
    left = _undecided(code, overrides)
    if left and not is_remembered(made, left):
        trust.require(made if trust.covers(made) or not trust.covers(source) else source, left)


def require_own_project(file: Path, config: ProjectConfig, trust: Trust) -> None:
    """As `require_own_config`, of a file of settings that is to be a project's, and of the recipe that it names.

    Raises:
        UntrustedCodeError: see `Trust.require`.
    """
    require_own_config(str(file), code_of_project(config), (), trust)
    for words, run in _task_runs(config):
        require_own_config(config.task.recipe, code_of_run(run), words, trust)


def require_project(folder: Path, code: Sequence[Code], overrides: Iterable[str], trust: Trust) -> None:
    """As `require_own_config`, of what project.yaml in a project's folder names."""
    left = _undecided(code, overrides)
    if not is_remembered(folder, left):
        trust.require(folder, left)


def made_folder(config: Path) -> Path | None:
    """The folder of the run, kept batch, sweep or project that a config file lies in; None where it lies elsewhere."""
    if not config.is_file():
        return None
    folder = config.absolute().parent
    if any(os.path.lexists(folder / name) for name in _MADE_BESIDE):
        return folder
    if os.path.lexists(folder.parent / "trials.jsonl"):  # one of a sweep's configs
        return folder.parent
    return None


def remember(folder: Path, code: Sequence[Code]) -> None:
    """Notes that this person's own config let `folder` run this code. Where nothing can be noted, --trust does it."""
    with contextlib.suppress(OSError, RuntimeError):
        for note in (_note(folder, entry) for entry in code):
            note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            note.touch(mode=0o600)


def is_remembered(folder: Path, code: Sequence[Code]) -> bool:
    """Whether `remember` noted the folder at this path with all of this code."""
    try:
        return all(_note(folder, entry).is_file() for entry in code)
    except (OSError, RuntimeError):  # nobody's home
        return False


def _note(folder: Path, entry: Code) -> Path:
    """A file of this user's, outside of any folder that can be handed on."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    told = json.dumps([str(folder.resolve()), *entry])
    return state / "rayrlhf" / "own" / hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def _plugin(kind: Kind, name: str, key: str) -> list[Code]:
    return [] if is_own(kind, name) else [Code(key, name)]


def decides(override: str, place: str) -> bool:
    """Whether KEY=VALUE says all that stands at `place`: `reward=...` and `reward.0.name=...` what is at `reward.0.name`,
    `reward.0.weight=...` nothing of it."""
    key = override.partition("=")[0].strip()
    if key.startswith("reward.") and not key.split(".")[1].isdecimal():  # the one reward that is no list
        key = key.replace("reward.", "reward.0.", 1)
    return f"{place}.".startswith(f"{key}.")


def _undecided(code: Sequence[Code], overrides: Iterable[str]) -> list[Code]:
    """What of the code no override names."""
    words = list(overrides)
    return [entry for entry in code if not any(decides(word, entry.key) for word in words)]


def _lies_in(path: Path, folder: Path) -> bool:
    """Links resolved: a link in a trusted folder leads out of it."""
    try:
        return os.path.lexists(folder) and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False
