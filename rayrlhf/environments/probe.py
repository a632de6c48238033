"""The child process in which `environments.contract` tries what needs the environment itself in its hands."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any
from zlib import crc32

import gymnasium

from rayrlhf.child_process import enter_child
from rayrlhf.environments import described_error, make_environment
from rayrlhf.plugin_contract import ContractError

_MOST_STEPS = 500  # to the end of an episode

ODD_ACTIONS: dict[str, str] = {
    "empty": "",
    "whitespace alone": " \t\u00a0\u2003",
    "several lines": "look\ninventory\r\n\n",
    "a backslash first": "\\look",
    "NUL and control characters": "\x00 a\x00b \x07\x1b[31m\x7f",
    "emoji": "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1f3\U0001f1f1",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202e\u0645\u0631\u062d\u0628\u0627",
    "lone surrogates": "\ud800 \udc80\udfff",
    "punctuation": "look. look, then look; \"look\" ... !? -- ''",
    "words that end or save a game": "quit",
    "very long": "take the lamp and " * 5_000,
}
"""What a language model may well write: name -> action."""


def main(connection_fd: int, dump_fd: int, parent_pid: int) -> None:
    """Answers the name of each of `PROBES` with (whether it passed, detail), until the parent is gone.

    The first message is (settings, prompts, folder to play in).
    """
    channel, requests = enter_child(connection_fd, dump_fd, parent_pid)
    settings, prompts, folder = requests.get()
    home = os.open(".", os.O_RDONLY)
    while (name := requests.get()) is not None:
        os.fchdir(home)
        try:
            environment = make_environment(settings, prompts)
            os.chdir(folder)  # where files that a game writes are in nobody's way
            channel.send((True, PROBES[name](environment)))
        except ContractError as fault:
            channel.send((False, str(fault)))
        except Exception as error:
            os.fchdir(home)  # where the places of errors are told from
            channel.send((False, described_error(error)))


def _contains_any_text(environment: Any) -> str:
    for kind in ("observation_space", "action_space"):
        space = getattr(environment, kind, None)
        if space is None:
            return "it has none, and needs none"
        for title, text in ODD_ACTIONS.items():
            if not space.contains(text):
                raise ContractError(
                    f"the {kind} {space} does not contain every text ({title}): use "
                    "`rayrlhf.text_space.TextSpace()`, which does."
                )
    return ""


def _ends(environment: Any) -> str:
    _, info = environment.reset(seed=0)
    for number in range(_MOST_STEPS):
        actions = info.get("solution", ())[:1] or info.get("commands") or ["look"]
        _, _, terminated, truncated, info = environment.step(actions[crc32(b"%d" % number) % len(actions)])
        if terminated or truncated:
            break
    else:
        return f"no end was met within {_MOST_STEPS} steps"
    try:
        _, _, terminated, truncated, _ = environment.step(actions[0])
    except Exception:  # whatever it raises: it refuses
        return ""
    if not (terminated or truncated):
        raise ContractError("a step after the end goes on with the episode: let it raise an error there.")
    return ""


def _closes(environment: Any) -> str:
    if not hasattr(environment, "close"):
        return "it has none, and needs none"
    environment.reset(seed=0)
    environment.close()
    environment.close()
    return ""


def _passes_gymnasiums_check(environment: Any) -> str:
    if not isinstance(environment, gymnasium.Env):
        return "it is no gymnasium.Env, and need not be"
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_env(environment.unwrapped, skip_render_check=True)
        except Exception as error:
            raise ContractError(f"{type(error).__name__}: {error}") from error
    return ""


PROBES: dict[str, Callable[[Any], str]] = {
    "spaces contain any text": _contains_any_text,
    "steps after the end are refused": _ends,
    "close() works, also twice": _closes,
    "gymnasium's own check_env": _passes_gymnasiums_check,
}
