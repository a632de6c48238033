"""The one way to a terminal: what strangers wrote (a sample, a file's key, a game's text) is shown, never obeyed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from rayrlhf.reading import printable


def shown(text: str, encoding: str | None) -> str:
    """The text as a terminal of that encoding can show it: `printable`, and escapes for what the encoding lacks."""
    encoding = encoding or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def say(text: str, end: str = "\n", error: bool = False) -> None:
    """Prints text as it is: no markup, no folding. error: to the standard error."""
    file = sys.stderr if error else sys.stdout
    file.write(shown(text, file.encoding) + end)
    file.flush()


class PlainConsole(Console):
    """A rich console whose own marks alone reach the terminal: every text within a table, a panel, a line is `shown`."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment
            else:
                yield Segment(shown(segment.text, self.encoding), segment.style)


def plain_console(**settings: Any) -> Console:
    """A console of standard output, or as the settings of rich's say. What is printed holds no markup, unless they do."""
    return PlainConsole(**{"highlight": False, "markup": False, "emoji": False, **settings})
