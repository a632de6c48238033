"""What a policy is held against: a player who chooses at random, and one who knows the solution.

Both are `interfaces.Actor`s and play through `play_episodes` like any policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayrlhf.errors import EpisodeError
from rayrlhf.interfaces import Prompter
from rayrlhf.types import Action, Generation, Situation


class UnknownToBaselineError(EpisodeError):
    """The environment does not say what a baseline plays by."""


class RandomActor:
    """Chooses uniformly among the commands the game understands, from the situation's seed, greedy or not."""

    def __init__(self, prompter: Prompter):
        self._prompter = prompter

    def act(self, situations: Sequence[Situation]) -> list[Action]:
        """Raises UnknownToBaselineError where a situation names no commands."""
        return [self._chosen(situation) for situation in situations]

    def _chosen(self, situation: Situation) -> Action:
        commands = situation.state.commands
        if not commands:
            raise UnknownToBaselineError(
                "the random baseline chooses among a game's commands, and this environment names none: "
                "give info['commands']"
            )
        command = commands[int(np.random.default_rng(situation.seed).integers(len(commands)))]
        return _action(command, 1 / len(commands), self._prompter)


class SolutionActor:
    """Plays the known solution: what a game can be won with at best."""

    def __init__(self, prompter: Prompter):
        self._prompter = prompter

    def act(self, situations: Sequence[Situation]) -> list[Action]:
        """Raises UnknownToBaselineError where no solution is known."""
        return [self._next(situation) for situation in situations]

    def _next(self, situation: Situation) -> Action:
        if not situation.state.solution:
            raise UnknownToBaselineError(
                "the oracle plays the known solution, and this environment knows none of a game it is in: "
                "give info['solution']"
            )
        return _action(situation.state.solution[0], 1.0, self._prompter)


def _action(command: str, probability: float, prompter: Prompter) -> Action:
    """A command as a generation whose first token bears its log-probability."""
    ids = prompter.command_ids(command)
    logprobs = np.zeros(len(ids), np.float32)
    logprobs[0] = np.log(probability)
    return Action(command, Generation(ids, logprobs, logprobs, np.zeros(0, np.float32), "eos"))
