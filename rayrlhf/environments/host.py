"""The child process that plays games for `ProcessEnvironments`: many games, one after the other.

It starts in a third of a second: nothing that it imports needs torch.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rayrlhf.child_process import Channel, enter_child
from rayrlhf.environments import EnvironmentSettings, Game, described_error
from rayrlhf.errors import UserError

GameRequest = tuple[int, int | None, tuple[str, ...]]
"""Number of the game; the seed it is reset with first, or None to go on; actions."""


def main(connection_fd: int, dump_fd: int, parent_pid: int) -> None:
    """Plays what the parent asks for until it is gone.

    The first message is (settings, prompts, folder to play in); then come lists of `GameRequest`. Answers, in order:
    ("built", None) where a game had to be built, ("played", StepResult) for each reset and action; in their place
    ("raised", description), after which the game is gone, and the rest of its request, or
    ("failed", message) for what no further try can mend.
    """
    channel, requests = enter_child(connection_fd, dump_fd, parent_pid)
    sys.path[:] = [os.path.abspath(path) for path in sys.path]  # those that are relative mean the parent's folder
    settings, prompts, folder = requests.get()
    _serve(channel, requests, _Games(settings, prompts, folder))


def _serve(channel: Channel, requests: queue.SimpleQueue[Any], games: _Games) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: nobody is there to be told
        while (request := requests.get()) is not None:
            for game, seed, actions in request:
                _play(channel, games, game, seed, actions)
    for game in list(games):
        games.drop(game)


def _play(channel: Channel, games: _Games, number: int, seed: int | None, actions: Sequence[str]) -> None:
    try:
        if number not in games:
            games.build(number)
            channel.send(("built", None))
        game = games[number]
        if seed is not None:
            channel.send(("played", game.reset(seed)))
        for action in actions:
            channel.send(("played", game.step(action)))
    except UserError as error:
        channel.send(("failed", str(error)))
    except BrokenPipeError:
        raise
    except Exception as error:
        games.drop(number)
        with games.at_home():  # where the places of errors are told from
            description = described_error(error)
        channel.send(("raised", description))


class _Games(dict[int, Game]):
    """The games of this process by their numbers.

    A constructor runs in the folder where the run was started, so that relative paths mean what the user meant; resets
    and steps run in a private one, where the files that a game writes meet nobody else's.
    """

    def __init__(self, settings: EnvironmentSettings, prompts: Sequence[str], folder: str) -> None:
        super().__init__()
        self._settings = settings
        self._prompts = prompts
        self._home = os.open(".", os.O_RDONLY)
        self._folder = folder

    def build(self, number: int) -> None:
        with self.at_home():
            self[number] = Game(self._settings, self._prompts)

    @contextlib.contextmanager
    def at_home(self) -> Iterator[None]:
        """In the folder where the run was started."""
        os.fchdir(self._home)
        try:
            yield
        finally:
            os.chdir(self._folder)

    def drop(self, number: int) -> None:
        """Closes a game and forgets it."""
        game = self.pop(number, None)
        if game is not None:
            with contextlib.suppress(Exception):  # a game that is broken may be unable to close
                game.close()
