"""Games played as their known solutions say: demonstrations for supervised training."""

from __future__ import annotations

import sys

from rayrlhf.baselines import SolutionActor
from rayrlhf.errors import EpisodeError
from rayrlhf.interfaces import Environments, Prompter
from rayrlhf.rollout import play_episodes
from rayrlhf.types import EpisodeSpec, IntArray

GAMES_AT_ONCE = 20


def walkthrough_pairs(environments: Environments, prompter: Prompter, games: int) -> list[tuple[IntArray, IntArray]]:
    """What a policy would have to say: (prompt ids [P], response ids [T], EOS included) of each turn of the solutions.

    The games are those of the environment's seeds 0 to `games` - 1, each played to its end, in order.

    Raises:
        EpisodeError: the environment gives no solution, or one that does not win.
    """
    pairs: list[tuple[IntArray, IntArray]] = []
    for first in range(0, games, GAMES_AT_ONCE):
        seeds = range(first, min(first + GAMES_AT_ONCE, games))
        specs = [EpisodeSpec(group=seed, index=seed, environment_seed=seed, sampling_seed=seed) for seed in seeds]
        episodes = play_episodes(specs, environments, SolutionActor(prompter), prompter, max_turns=sys.maxsize)
        for episode in episodes:
            if not episode.turns[-1].after.won:
                raise EpisodeError(f"the known solution of the game of seed {episode.environment_seed} does not win it")
            pairs += [(turn.prompt_ids, turn.response_ids) for turn in episode.turns]
    return pairs
