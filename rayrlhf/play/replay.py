"""Plays a transcript again and says whether it leads to the same states."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rayrlhf.interfaces import Environments, Prompter
from rayrlhf.play.code_points import CodePointPrompter
from rayrlhf.play.transcripts import PlayedTurn, Transcript, standing
from rayrlhf.prompt_formats import written
from rayrlhf.rollout import example_action, play_episodes
from rayrlhf.types import Action, EpisodeSpec, Situation, Split, Turn


class ScriptedActor:
    """Takes the commands of one episode, one after the other."""

    def __init__(self, commands: Sequence[str], prompter: Prompter):
        self._commands = iter(commands)
        self._prompter = prompter

    def act(self, situations: Sequence[Situation]) -> list[Action]:
        return [example_action(next(self._commands), self._prompter) for _ in situations]


def first_difference(transcript: Transcript, environments: Environments) -> str | None:
    """Where the moves that stand, played again, lead elsewhere, in a line; None where all is as it was."""
    for game, turns in groupby(_in_order(transcript.turns), key=lambda turn: turn.game):
        difference = _difference_of(game, list(turns), environments, transcript.header.split)
        if difference:
            return difference
    return None


def _in_order(turns: Sequence[PlayedTurn]) -> list[PlayedTurn]:
    return sorted(standing(turns), key=lambda turn: (turn.game, turn.turn))


def _difference_of(game: int, recorded: Sequence[PlayedTurn], environments: Environments, split: Split) -> str | None:
    spec = EpisodeSpec(group=0, index=0, environment_seed=recorded[0].seed, sampling_seed=0, split=split)
    prompter = CodePointPrompter()
    actor = ScriptedActor([turn.action for turn in recorded], prompter)
    [again] = play_episodes([spec], environments, actor, prompter, max_turns=len(recorded))
    where = f"game {game}, seed {spec.environment_seed}"
    for number, (turn, now) in enumerate(zip(recorded, again.turns, strict=False), start=1):
        for name, (then, value) in _compared(turn, now).items():
            if then != value:
                return f"{where}, move {number} ({turn.action!r}): {name} was {then!r} and is {value!r}"
    if len(again.turns) < len(recorded):
        return f"{where}: over after {len(again.turns)} moves, it was not before move {len(recorded)}"
    last = recorded[-1]
    if last.next_observation != written(again.final_observation):
        return f"{where}, the end: it was {last.next_observation!r} and is {again.final_observation!r}"
    return None


def _compared(turn: PlayedTurn, now: Turn) -> dict[str, tuple[object, object]]:
    """What was recorded of a turn, and what it is now."""
    return {
        "the observation": (turn.observation, written(now.observation)),
        "the list of commands": (turn.commands, tuple(written(command) for command in now.before.commands)),
        "the key of the state": (turn.game_key, now.before.key),
        "the reward": (turn.reward, now.reward),
        "the score": (turn.score, now.after.score),
        "won": (turn.won, now.after.won),
        "lost": (turn.lost, now.after.lost),
        "valid": (turn.valid, now.after.valid),
        "the key of the next state": (turn.next_key, now.after.key),
    }
