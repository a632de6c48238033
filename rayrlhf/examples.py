"""Example turns: now and then a turn is played for the policy, to show it a good move (SPEC TW-8).

An example stands in the policy's memory and counts in the episode's rewards; its own tokens are never trained on.
Whether a turn is one, and which command it is, follows from the turn's seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayrlhf.config import ExampleTurnsConfig
from rayrlhf.errors import ConfigError, EpisodeError
from rayrlhf.play.transcripts import human_actions, read_transcript
from rayrlhf.reading import expanded
from rayrlhf.types import Situation

STREAM = 8  # sets these random numbers apart from those that the sampler draws with the same seed

Choice = Callable[[Situation, int, np.random.Generator], str | None]
"""Picks the command of an example turn of that number; None where none is known for this state."""


def make_examples(config: ExampleTurnsConfig | None) -> Callable[[Situation, int], str | None] | None:
    """`ExampleTurns.choose` as the config says; None without example turns.

    Raises:
        ConfigError: the mode's transcript is not given or shows nothing people did, or another mode is given one.
        TranscriptError: the transcript cannot be read.
    """
    if config is None:
        return None
    if config.mode == "human":
        if config.transcript is None:
            raise ConfigError("agent.examples.mode human needs agent.examples.transcript, a file of `rayrlhf play`")
        actions = human_actions(read_transcript(expanded(config.transcript, ConfigError)))
        if not actions:
            raise ConfigError(f"agent.examples.transcript {config.transcript}: no person moved in a state with a key")
        return ExampleTurns(config.probability, HumanChoice(actions)).choose
    if config.transcript is not None:
        raise ConfigError(f"agent.examples.transcript is of mode human, not of {config.mode}: leave it out")
    return ExampleTurns(config.probability, valid_choice if config.mode == "valid" else correct_choice).choose


@dataclass(frozen=True, slots=True)
class ExampleTurns:
    """Decides turn by turn whether an example is played and which."""

    probability: float
    choice: Choice

    def choose(self, situation: Situation, turn_number: int) -> str | None:
        """The command to play in this turn; None where the policy plays itself, or where no example is known.

        Raises:
            EpisodeError: the environment does not say what the choice needs. An episode's first turn shows it always.
        """
        random = np.random.default_rng([STREAM, situation.seed, turn_number])
        due = random.random() < self.probability
        if not due and turn_number > 0:
            return None
        command = self.choice(situation, turn_number, random)
        return command if due else None


def valid_choice(situation: Situation, turn_number: int, random: np.random.Generator) -> str:
    """A uniformly random admissible command. Raises EpisodeError where the environment names none."""
    commands = situation.state.commands
    if not commands:
        raise EpisodeError("agent.examples.mode valid: the environment does not name its commands (`commands` of info)")
    return commands[int(random.integers(len(commands)))]


def correct_choice(situation: Situation, turn_number: int, random: np.random.Generator) -> str | None:
    """The next command of the known solution; None in a state from which none is known.

    Raises EpisodeError where a game starts without a solution.
    """
    solution = situation.state.solution
    if not solution and turn_number == 0:
        raise EpisodeError(
            "agent.examples.mode correct: the environment gives no solution of this game (`solution` of info; "
            "textworld: environment.solutions=true)"
        )
    return solution[0] if solution else None


@dataclass(frozen=True, slots=True)
class HumanChoice:
    """One of the commands that people gave in the same state, each as likely as they gave it often."""

    actions: Mapping[str, Sequence[str]]  # key of a state -> actions of people in it

    def __call__(self, situation: Situation, turn_number: int, random: np.random.Generator) -> str | None:
        """None in a state that nobody was in. Raises EpisodeError where states have no keys to know them by."""
        key = situation.state.key
        if not key:
            raise EpisodeError(
                "agent.examples.mode human: the environment does not name its states (`key` of info), so it cannot be "
                "said what people did in the same one"
            )
        known = self.actions.get(key, ())
        return known[int(random.integers(len(known)))] if known else None
