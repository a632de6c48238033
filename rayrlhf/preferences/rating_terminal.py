"""Rating in the terminal (SPEC GWERN-1, -2): the pairs of a `RatingSession`, one key a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.presenters import Audio, Block, Html, Presenter, Unshowable
from rayrlhf.preferences.rating_session import Progress, RatingSession, Ticket, is_verdict
from rayrlhf.preferences.terminal_keys import END, ENTER, Keys
from rayrlhf.preferences.text_command import run_on
from rayrlhf.reading import printable, read_bytes

_SIDE_BY_SIDE = 90  # columns of a terminal from which two texts fit beside each other
_HELP = """\
1  the first text is better     b  both are bad: neither is wanted
2  the second text is better    s  skip: not asked again (or Enter)
3  both are equally good        u  undo: take the last verdict back
p  play both again              r  stop; the checks decide what they can
?  this help                    x  stop"""


class TerminalRating:
    """One rater at a terminal."""

    def __init__(
        self,
        session: RatingSession,
        presenter: Presenter,
        question: str,
        rater: str,
        console: Console,
        keys: Keys,
        player: Sequence[str] = (),
        player_seconds: float = 10.0,
    ) -> None:
        """player: a command that gets each item on its standard input, at most for `player_seconds`; none: ()."""
        self._session = session
        self._presenter = presenter
        self._question = question
        self._rater = rater
        self._console = console
        self._keys = keys
        self._player = tuple(player)
        self._player_seconds = player_seconds

    def run(self) -> None:
        """Asks until there is nothing left or the rater stops. Each verdict is on the disk before the next pair."""
        self._say(_HELP)
        while (ticket := self._session.ticket(self._rater)) is not None:
            self._show(ticket)
            if not self._judged(ticket):
                return
        reached = self._session.limit_reached
        self._say("That was the last pair of this sitting." if reached else "There is nothing left to ask.")

    def _judged(self, ticket: Ticket) -> bool:
        """Reads keys until one of them ends the pair; False where the rater stops."""
        while True:
            key = self._keys.read(lambda: self._session.seconds_left(self._rater))
            if key in (END, "x"):
                return False
            if key == "r":
                self._auto_rate()
                return False
            if key == "u":
                if self._session.undo(self._rater):
                    self._say("taken back:")
                    return True
                self._say("there is nothing to take back")
            elif key == "p" and self._player:
                self._play(ticket)
            elif is_verdict(verdict := "s" if key == ENTER else key):
                return self._session.judge(self._rater, ticket.id, verdict)
            else:
                self._say(_HELP if key == "?" else f"{printable(key)!r} is no key here; ? shows them")

    def _auto_rate(self) -> None:
        decided, left = self._session.auto_rate(self._session.pairs_left())
        self._say(f"the checks decided {decided} pairs; {left} need a person and were left out")

    def _show(self, ticket: Ticket) -> None:
        first, second = ticket.items
        progress = self._session.progress(self._rater)
        places = " and ".join(str(self._session.position(item.id)) for item in ticket.items)
        self._console.rule(Text(f"{_counted(progress)}: items {places}", style="dim"))
        if first.prompt and first.prompt == second.prompt:
            self._console.print(
                Panel(Text(printable(first.prompt), style="dim"), title="both go on from", title_align="left")
            )
        panels = []
        for number, item in enumerate(ticket.items, start=1):
            text = Text(printable(item.prompt), style="dim") if first.prompt != second.prompt else Text()
            text.append(_as_text(self._presenter(item)), style="default")
            panels.append(Panel(text, title=str(number), title_align="left"))
        if self._console.width >= _SIDE_BY_SIDE:
            table = Table.grid(expand=True)
            table.add_column(ratio=1)
            table.add_column(ratio=1)
            table.add_row(*panels)
            self._console.print(table)
        else:
            self._console.print(*panels, sep="\n")
        if self._player:
            self._play(ticket)
        self._say(f"{self._question}  1 2 3 b s u r x ?")

    def _play(self, ticket: Ticket) -> None:
        for number, item in enumerate(ticket.items, start=1):
            block = self._presenter(item)
            if isinstance(block, Unshowable):
                continue  # the reason stands in its place already
            self._say(f"playing {number}")
            ran = run_on(self._player, _as_bytes(block), self._player_seconds)
            if ran.output:
                self._say(ran.output.decode("utf-8", "replace").rstrip("\n"))
            if ran.status:
                self._say(f"the player ended with status {ran.status}")

    def _say(self, text: str) -> None:
        self._console.print(Text(printable(text)))


def summary(progress: Progress) -> str:
    """What a rater did, in one or two sentences."""
    text = f"{progress.sitting} in this sitting, {progress.done} comparisons by you in all, {progress.by_all} by everybody."
    if progress.agreement.share is not None:
        share, agreement = progress.agreement.share, progress.agreement
        text += (
            f" Asked twice, you agreed with yourself on {agreement.agreed} of {agreement.decisive} "
            f"(95 % interval {share.low:.0%} to {share.high:.0%})."
        )
    return text


def _counted(progress: Progress) -> str:
    number = f"pair {progress.done + 1}"
    return f"{number}, {progress.by_all} of {progress.target} done" if progress.target else number


def _as_text(block: Block | Unshowable) -> str:
    if isinstance(block, Unshowable):
        return printable(block.reason)
    if isinstance(block, Audio):
        return f"sound: {printable(block.path.name)}"
    text = printable(block.source if isinstance(block, Html) else block.text)
    return text if text.strip() else "(nothing written)"


def _as_bytes(block: Block) -> bytes:
    if isinstance(block, Audio):
        return read_bytes(block.path, PreferenceError)
    return (block.source if isinstance(block, Html) else block.text).encode("utf-8", "surrogatepass")
