"""A project of preferences: a folder with its rating store, its config, and what the rounds of its loop made.

my-project/
  project.yaml      settings; a project without it has the defaults
  ratings.sqlite    items, comparisons, ratings
  ranking/          what `rayrlhf rank` draws
  rounds/000/ ...   what `rayrlhf loop` made
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rayrlhf.config_draft import Draft
from rayrlhf.config_loading import checked
from rayrlhf.config_section import Section
from rayrlhf.errors import ConfigError, PreferenceError
from rayrlhf.files import check_plain, replace_file
from rayrlhf.preferences.check_config import ChecksConfig
from rayrlhf.preferences.loop_config import LoopConfig
from rayrlhf.preferences.pairing_config import PairingConfig
from rayrlhf.preferences.ranking_config import RankingConfig
from rayrlhf.preferences.rating_config import RatingConfig
from rayrlhf.preferences.store import FILE_NAME, RatingStore
from rayrlhf.preferences.task_config import TaskConfig
from rayrlhf.reading import decoded, read_bytes
from rayrlhf.reward_models.config import RewardModelConfig

CONFIG = "project.yaml"
_FILES = ("report.html", "rounds.json")
_OWN = (CONFIG, *_FILES, "ranking", "rounds", "reference")  # the store looks after its own


class ProjectConfig(Section):
    """All settings of a project."""

    task: TaskConfig = TaskConfig()
    rating: RatingConfig = RatingConfig()
    checks: ChecksConfig = ChecksConfig()
    pairing: PairingConfig = PairingConfig()
    ranking: RankingConfig = RankingConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    loop: LoopConfig = LoopConfig()


def load_project_config(folder: Path, overrides: Sequence[str] = ()) -> ProjectConfig:
    """The settings of a project's folder, `key.key=value` overrides applied; the defaults where it has no project.yaml.

    Raises:
        ConfigError: with a line for each fault, all at once.
        RunFolderError: something of the project's is a link.
    """
    check_plain(folder, _OWN, _FILES)
    path = folder / CONFIG
    draft = Draft.read(path, str(path)) if path.is_file() else Draft({}, str(path), {})
    for override in overrides:
        draft.override(override)
    return checked(draft, ProjectConfig)


def settle_project(
    folder: Path, file: Path, check: Callable[[ProjectConfig], object] = lambda settings: None
) -> ProjectConfig:
    """Makes a file of settings, which may be a pipe, the project's own; returns what it says.

    check: called with that before anything is written; what it raises stops it.

    Raises:
        ConfigError: the file is wrong, with a line for each fault.
        PreferenceError: the project has other settings already.
    """
    content = read_bytes(file, ConfigError, piped=True)
    settings = checked(Draft.of_text(decoded(content, str(file), ConfigError), str(file)), ProjectConfig)
    check(settings)
    path = folder / CONFIG
    if path.is_file() and read_bytes(path, PreferenceError) != content:
        raise PreferenceError(f"{path} is there already and is not {file}: edit it, or use another folder")
    folder.mkdir(parents=True, exist_ok=True)
    check_plain(folder, _OWN, _FILES)
    replace_file(path, [content])
    return settings


def open_store(folder: Path, create: bool = False) -> RatingStore:
    """The rating store of a project. create: make folder and store where there are none.

    Raises:
        PreferenceError: there is no project there.
    """
    path = folder / FILE_NAME
    if not path.is_file() and not create:
        raise PreferenceError(
            f"{folder}: no project of preferences is there (it has no {FILE_NAME}); `rayrlhf labels import FILE "
            f"{folder}` makes one from a file of labels or samples"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return RatingStore(path)
