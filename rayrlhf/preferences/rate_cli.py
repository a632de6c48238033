"""`rayrlhf rate PROJECT`: people rate pairs of texts, on a page of this machine or in the terminal."""

from __future__ import annotations

import getpass
import math
import secrets
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayrlhf.errors import PreferenceError
from rayrlhf.extras import require
from rayrlhf.terminal_output import plain_console, say
from rayrlhf.trust_option import TrustOption

if TYPE_CHECKING:
    from rayrlhf.preferences.presenters import Presenter
    from rayrlhf.preferences.project import ProjectConfig
    from rayrlhf.preferences.rating_config import RatingConfig
    from rayrlhf.preferences.rating_session import RatingSession
    from rayrlhf.preferences.store import RatingStore


def rate(
    project: Annotated[Path, typer.Argument(help="Folder of the project.")],
    terminal: Annotated[bool, typer.Option("--terminal", help="Rate in this terminal instead of on a page.")] = False,
    rater: Annotated[
        str | None, typer.Option(help="Your name; the page asks each rater, the terminal takes the login name.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many pairs.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Time box of a pair; default: `rating.seconds` of the project.")
    ] = None,
    presenter: Annotated[
        str | None,
        typer.Option(help="text, abc, audio, html or module:Name; default: `rating.presenter` of the project."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address at which the page is served.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: a free one.")] = 0,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines reach the page at --host; it is not encrypted.")
    ] = False,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser; its address is printed anyway.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of sides, repeats and pairs; default: another each time.")
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Rate texts in pairs, on a page of this machine or in the terminal; verdicts are kept as they are given."""
    from rayrlhf.preferences.presenters import load_presenter
    from rayrlhf.preferences.project import load_project_config, open_store
    from rayrlhf.trust import Trust, code_of_rating, require_project

    if not terminal:
        require("rating", "the rating page (`--terminal` does without it)")
    if seconds is not None and not math.isfinite(seconds):
        raise PreferenceError(f"--seconds {seconds}: a time box is a number of seconds")
    config = load_project_config(project)
    said = [] if presenter is None else ["rating.presenter"]
    require_project(project, code_of_rating(config), said, Trust.of(trust))
    changes = {"seconds": seconds, "presenter": presenter}
    rating = config.rating.model_copy(update={name: value for name, value in changes.items() if value is not None})
    shown = load_presenter(rating.presenter, project)
    if not terminal:
        check_host(host, allow_remote)
    if rater is not None:
        rater = checked_name(rater)
    with open_store(project) as store:
        session = _session(store, config, rating, seed, count)
        if terminal:
            _rate_in_terminal(session, shown, rating, rater or checked_name(getpass.getuser()))
        else:
            _rate_on_page(session, shown, rating.question, rater, host, port, browser)


def check_host(host: str, allow_remote: bool) -> None:
    """Warns of, or refuses, a page that other machines can reach.

    Raises:
        PreferenceError: they could, and nobody allowed it.
    """
    from rayrlhf.preferences.page_guard import is_loopback

    if is_loopback(host):
        return
    if not allow_remote:
        raise PreferenceError(
            f"--host {host}: other machines could reach the page there. Add --allow-remote where that is meant, or "
            "leave --host out and forward the port, as in `ssh -L 8000:127.0.0.1:8000 MACHINE`"
        )
    say(
        f"warning: the page at {host} can be reached by other machines and is not encrypted: who reads along has the "
        "texts and the token.",
        error=True,
    )


def checked_name(given: str) -> str:
    """The name as it is recorded.

    Raises:
        PreferenceError: it is empty or too long.
    """
    from rayrlhf.preferences.rating_session import LONGEST_NAME, rater_name

    name = rater_name(given)
    if name is None:
        raise PreferenceError(f"--rater {given!r}: a name has 1 to {LONGEST_NAME} characters")
    return name


def _session(
    store: RatingStore, config: ProjectConfig, rating: RatingConfig, seed: int | None, count: int | None
) -> RatingSession:
    from rayrlhf.preferences.checks import load_checks
    from rayrlhf.preferences.pairing import propose
    from rayrlhf.preferences.rating_session import RatingSession

    pairing = config.pairing
    return RatingSession(
        store,
        partial(propose, config=pairing, ranking=config.ranking),
        load_checks(config.checks),
        rating,
        seed=secrets.randbits(32) if seed is None else seed,
        limit=count,
        ask_again=pairing.method not in ("random", "halves"),  # the others look for what is not settled yet
    )


def _rate_in_terminal(session: RatingSession, presenter: Presenter, rating: RatingConfig, rater: str) -> None:

    from rayrlhf.preferences.rating_terminal import TerminalRating, summary
    from rayrlhf.preferences.terminal_keys import keys_of_standard_input

    with suppress(KeyboardInterrupt), keys_of_standard_input() as keys:  # Ctrl-C stops anywhere: verdicts are kept
        TerminalRating(
            session, presenter, rating.question, rater, plain_console(), keys, rating.player, rating.player_seconds
        ).run()
    say(summary(session.progress(rater)))


def _rate_on_page(
    session: RatingSession, presenter: Presenter, question: str, rater: str | None, host: str, port: int, browser: bool
) -> None:
    import webbrowser

    from rayrlhf.preferences.page import create_app, listen, new_token, serve

    with listen(host, port) as listening:
        port = listening.getsockname()[1]
        token = new_token()
        app = create_app(session, presenter, question, token, host, port, rater)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/?token={token}"
        say(f"Rate at {address}\nWho has this address can rate. Ctrl-C ends it; all verdicts are kept.")
        if browser:
            webbrowser.open(address)
        with suppress(KeyboardInterrupt):  # the usual way to end it
            serve(app, listening, lambda: session.limit_reached)
    say(f"{session.by_all} comparisons by people in the project.")
