"""Games played as their known solutions say: demonstrations for supervised training."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from rayrlhf.baselines import SolutionActor
from rayrlhf.errors import EpisodeError
from rayrlhf.interfaces import Environments, Prompter
from rayrlhf.rollout import play_episodes
from rayrlhf.sampling.command_trie import CommandTries
from rayrlhf.types import AllowedTokens, EpisodeSpec, IntArray, Turn

GAMES_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What a policy would have to say at one turn."""

    prompt_ids: IntArray  # [P]
    response_ids: IntArray  # [T] EOS included
    allowed: AllowedTokens  # what the game's commands left to choose from at each response token


def walkthroughs(environments: Environments, prompter: Prompter, games: int) -> list[Demonstration]:
    """All turns of the solutions of the environment's seeds 0 to `games` - 1, each played to its end, in order.

    Raises:
        EpisodeError: the environment gives no solution, or one that does not win.
    """
    tries = CommandTries(prompter.command_ids)
    shown: list[Demonstration] = []
    for first in range(0, games, GAMES_AT_ONCE):
        seeds = range(first, min(first + GAMES_AT_ONCE, games))
        specs = [EpisodeSpec(group=seed, index=seed, environment_seed=seed, sampling_seed=seed) for seed in seeds]
        episodes = play_episodes(specs, environments, SolutionActor(prompter), prompter, max_turns=sys.maxsize)
        for episode in episodes:
            if not episode.turns[-1].after.won:
                raise EpisodeError(f"the known solution of the game of seed {episode.environment_seed} does not win it")
            shown += [
                Demonstration(turn.prompt_ids, turn.response_ids, _allowed(turn, tries)) for turn in episode.turns
            ]
    return shown


def _allowed(turn: Turn, tries: CommandTries) -> AllowedTokens:
    """The sets that constrained decoding would have chosen from; all tokens where the solution is no listed command."""
    commands = turn.before.commands
    if turn.action not in commands:
        return AllowedTokens.everything(len(turn.response_ids))
    path = tries.of(commands).path(commands.index(turn.action))
    unscored = np.zeros(len(path.allowed_ids), np.float32)
    return AllowedTokens(path.allowed_ids, path.offsets, unscored, unscored)
