"""A picture of `rayrlhf play`: `python -m rayrlhf.play.recording RUN docs/play.gif` films a scripted session.

The session is a real one, with the run's policy: only the keys are given. Its frames are what a terminal would show.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib
import typer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from rayrlhf.environments import open_environments
from rayrlhf.errors import UserError
from rayrlhf.games.lookup import GameLookup
from rayrlhf.play.command import play_session, take_seat
from rayrlhf.play.decisions import Decision, View
from rayrlhf.play.setting import find_setting
from rayrlhf.play.terminal import PROMPT, Person, Screen
from rayrlhf.play.transcripts import PlayedTurn
from rayrlhf.terminal_output import plain_console

DEMO = ("", "m", "2", "u", "h", "", "a 8", "q")
"""What is typed: a move of the policy, the map, a move of one's own, its undoing, a hint, then the policy plays on."""

COLUMNS, LINES = 84, 26
FONT_PIXELS, LINE_PIXELS, MARGIN = 15, 19, 12
SHOWN_MS, TYPED_MS, PLAYED_MS, LAST_MS = 1400, 700, 1100, 5000  # how long frames stay
COLOURS = 48  # of the GIF's palette
_THEME = TerminalTheme(
    background=(24, 26, 31),
    foreground=(220, 223, 228),
    normal=[
        (24, 26, 31), (224, 108, 117), (120, 200, 120), (229, 192, 123),
        (97, 175, 239), (198, 120, 221), (86, 182, 194), (220, 223, 228),
    ],
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Frame:
    """What the terminal shows for a while."""

    lines: tuple[Text, ...]
    milliseconds: int


class Film:
    """A console whose output is kept, and frames of it."""

    def __init__(self) -> None:
        self._output = io.StringIO()
        self.console = plain_console(
            file=self._output,
            force_terminal=True,
            color_system="standard",
            width=COLUMNS,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
            _environ={"TERM": "xterm"},
        )
        self.frames: list[Frame] = []

    def take(self, milliseconds: int, typed: str = "") -> None:
        """A frame of the last lines, with what was typed after them."""
        lines = Text.from_ansi(self._output.getvalue() + typed).split("\n", allow_blank=bool(typed))
        self.frames.append(Frame(tuple(lines[-LINES:]), milliseconds))

    def echo(self, line: str) -> None:
        self._output.write(f"{line}\n")


class FilmedPerson:
    """A person with a script instead of a keyboard (see `play_decisions.Decider`), filmed."""

    def __init__(self, film: Film, title: str, lookup: GameLookup, script: Sequence[str]):
        self._film = film
        self._typed = self._typing(script)
        self._person = Person(Screen(film.console, title), lambda: next(self._typed), lookup, _no_saving)

    def decide(self, view: View) -> Decision:
        return self._person.decide(view)

    def played(self, turn: PlayedTurn) -> None:
        self._person.played(turn)
        self._film.take(PLAYED_MS)

    def _typing(self, script: Sequence[str]) -> Iterator[str]:
        for line in script:
            self._film.take(SHOWN_MS, typed=f"{PROMPT}▏")
            if line:
                self._film.take(TYPED_MS, typed=f"{PROMPT}{line}▏")
            self._film.echo(f"{PROMPT}{line}")
            yield line


def _no_saving(path: Path | None, record: Sequence[PlayedTurn]) -> Path:
    raise UserError("a filmed session saves nothing")


def draw(frame: Frame, console: Console) -> Image.Image:
    """The frame as a terminal would show it, in RGB."""
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    plain = ImageFont.truetype(fonts / "DejaVuSansMono.ttf", FONT_PIXELS)
    bold = ImageFont.truetype(fonts / "DejaVuSansMono-Bold.ttf", FONT_PIXELS)
    wide = plain.getlength("m")
    size = (round(COLUMNS * wide) + 2 * MARGIN, LINES * LINE_PIXELS + 2 * MARGIN)
    image = Image.new("RGB", size, _THEME.background_color)
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(frame.lines):
        column = 0
        for text, style, _ in line.render(console):
            shown = style or Style()
            place = (MARGIN + column * wide, MARGIN + row * LINE_PIXELS)
            pen.text(place, text, fill=_colour(shown), font=bold if shown.bold else plain)
            column += len(text)
    return image


def _colour(style: Style) -> tuple[int, int, int]:
    red, green, blue = style.color.get_truecolor(_THEME) if style.color else _THEME.foreground_color
    if style.dim:
        red, green, blue = (
            (part + behind) // 2 for part, behind in zip((red, green, blue), _THEME.background_color, strict=True)
        )
    return red, green, blue


def write_picture(film: Film, file: Path) -> None:
    """A GIF of all frames, or a PNG of the last. Raises UserError for another kind of file."""
    if file.suffix not in (".gif", ".png"):
        raise UserError(f"{file}: name a .gif, or a .png of the last frame")
    images = [draw(frame, film.console) for frame in film.frames]
    if file.suffix == ".png":
        images[-1].save(file, optimize=True)
        return
    wall = Image.new("RGB", (images[0].width, images[0].height * len(images)))
    for number, image in enumerate(images):
        wall.paste(image, (0, number * image.height))
    palette = wall.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # rare colours too
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    durations = [frame.milliseconds for frame in film.frames[:-1]]
    first.save(file, save_all=True, append_images=rest, duration=[*durations, LAST_MS], loop=0, optimize=True)


def record(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="As of `rayrlhf play`.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The picture to write, .gif or .png.")],
    game: Annotated[Path | None, typer.Option(help="Play this game file (.z8).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which of the environment's games.")] = 0,
    held_out: Annotated[bool, typer.Option("--held-out", help="One of the games that are not trained on.")] = False,
) -> None:
    """Film a scripted session of `rayrlhf play`."""
    setting = find_setting(source, game, "held_out" if held_out else "train")
    film = Film()
    player = FilmedPerson(film, setting.title, GameLookup(setting.environment), DEMO)
    seat = take_seat(setting, with_policy=True)
    with contextlib.closing(open_environments(setting.environment)) as environments:
        play_session(setting, environments, seat, player, lambda _: None, seed, greedy=True)
    write_picture(film, file)
    print(f"{file}: {len(film.frames)} frames, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    typer.run(record)
