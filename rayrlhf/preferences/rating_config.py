"""How items are shown to raters: the section `rating` of a project's config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayrlhf.config_section import NonNegativeInt, PositiveFloat, PositiveInt, Section

Share = Annotated[float, Field(ge=0, le=1)]


class RatingConfig(Section):
    """What a rater sees and for how long."""

    question: str = "Which text is better?"
    """What raters are asked about each pair."""
    seconds: PositiveFloat = 20.0
    """Time box of a pair: a countdown runs, and a verdict after its end counts and is marked `late`."""
    repeats: Share = 0.05
    """Share of pairs that a rater is asked again with the sides swapped, to see how far they agree with themselves."""
    repeat_after: PositiveInt = 10
    """A pair is asked again after at least so many others."""
    target: NonNegativeInt = 0
    """Comparisons by people that the project wants in all, for the progress shown; 0: no target."""
    broken: Literal["decide", "hide", "show"] = "decide"
    """Pairs with a text that fails a check: `decide` records their verdict without asking, `hide` leaves such texts
    out, `show` asks about them like the others. A pair is decided once: later changes of `checks` do not change it."""
    presenter: str = "text"
    """How an item is shown: text, abc, audio, html, or `module:Name` of your own."""
    player: tuple[str, ...] = ()
    """Command that plays an item in the terminal, as a list of arguments: it gets the item on its standard input."""
    player_seconds: PositiveFloat = 10.0
    """The player is stopped after so long."""
