"""How an item is shown to raters: as text, ABC notation, audio, HTML, or by a presenter of the user's own.

A presenter says what is to be shown, as one of a few typed blocks; page and terminal decide how. Nothing that a model
wrote is run or gets into the page as markup.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rayrlhf.error_location import location_of
from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.plugin_reference import load_callable
from rayrlhf.preferences.records import Item

AUDIO_TYPES = {
    ".wav": "audio/wav", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".flac": "audio/flac",
    ".m4a": "audio/mp4", ".aac": "audio/aac", ".weba": "audio/webm",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prose:
    """Text with its line breaks, in a proportional font."""

    text: str


@dataclass(frozen=True, slots=True)
class Preformatted:
    """Text in which columns matter, in a font of fixed width."""

    text: str


@dataclass(frozen=True, slots=True)
class Audio:
    """A sound file inside the project's folder; its suffix is one of `AUDIO_TYPES`."""

    path: Path


@dataclass(frozen=True, slots=True)
class Html:
    """A document of its own: the page shows it in a frame without scripts, the terminal shows its source."""

    source: str


@dataclass(frozen=True, slots=True)
class Unshowable:
    """Stands for an item that its presenter could not show, so that a rater sees why and can skip the pair."""

    reason: str


Block = Prose | Preformatted | Audio | Html
Presenter = Callable[[Item], Block | Unshowable]


def load_presenter(name: str, project: Path) -> Presenter:
    """name: text, abc, audio, html, or `module:Name` of a callable, Item -> Prose, Preformatted, Audio or Html.

    project: the folder outside which no sound file is served.

    Raises:
        PreferenceError: there is no such presenter.
    """
    if name in _BUILT_IN:
        present: Callable[[Item], object] = _BUILT_IN[name]
    elif ":" in name:
        present = load_callable(name, "presenter")
    else:
        raise PreferenceError(f"no presenter is named `{name}`. Known: {', '.join(_BUILT_IN)}, or `module:Name`")

    def presenter(item: Item) -> Block | Unshowable:
        try:
            block = present(item)
        except Exception as error:  # the user's code may raise anything
            place = location_of(error) or "an unknown place"
            return Unshowable(
                f"the presenter {name} failed on item {item.id}: {place}: {type(error).__name__}: {error}"
            )
        if isinstance(block, Audio):
            return _served(block, project, item)
        if isinstance(block, Prose | Preformatted | Html | Unshowable):
            return block
        return Unshowable(
            f"the presenter {name} returned a {type(block).__name__} for item {item.id}, which is no block"
        )

    return presenter


def _audio(item: Item) -> Block | Unshowable:
    file = item.extra.get("audio")
    if not isinstance(file, str) or not file:
        return Unshowable(f"item {item.id} has no sound file: the presenter audio shows the file named in `audio`")
    return Audio(Path(file))


def _served(block: Audio, project: Path, item: Item) -> Block | Unshowable:
    """The block with its path resolved, links and `..` included, if it is a sound file inside the project."""
    root = project.resolve()
    try:
        path = (root / block.path).resolve()
        if not path.is_relative_to(root):
            return Unshowable(f"item {item.id}: the sound file {block.path} is not inside the project's folder")
        if path.suffix.lower() not in AUDIO_TYPES:
            return Unshowable(f"item {item.id}: {block.path} is no sound file; known are {' '.join(AUDIO_TYPES)}")
        if not path.is_file():
            return Unshowable(f"item {item.id}: the sound file {block.path} is missing")
    except (OSError, ValueError) as error:  # a name that no file can have
        return Unshowable(f"item {item.id}: the sound file cannot be used: {error}")
    return Audio(path)


_BUILT_IN: dict[str, Callable[[Item], Block | Unshowable]] = {
    "text": lambda item: Prose(item.text),
    "abc": lambda item: Preformatted(item.text),
    "audio": _audio,
    "html": lambda item: Html(item.text),
}
