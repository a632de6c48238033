"""A person, a policy, or both at one game: `play_episodes` with an actor that asks. Knows nothing of the terminal.

A move is taken back by playing again from the seed with the moves before it; so is a game begun anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rayrlhf.errors import EpisodeError
from rayrlhf.interfaces import Environments, Prompter
from rayrlhf.play.decisions import (
    Decider,
    Decision,
    OwnMove,
    PolicyMove,
    Quit,
    Restart,
    SetTemperature,
    SwitchGreedy,
    Undo,
    View,
)
from rayrlhf.play.policy import Advice, PlayPolicy
from rayrlhf.play.transcripts import PlayedTurn, Who
from rayrlhf.prompt_formats import written
from rayrlhf.rollout import episode_seed, example_action, play_episodes
from rayrlhf.types import Action, EpisodeSpec, IntArray, Situation, Split, StepResult


@dataclass(frozen=True, slots=True)
class Chosen:
    """A move on its way to the environment."""

    situation: Situation
    action: Action
    who: Who
    advice: Advice | None
    temperature: float | None  # of the policy


@dataclass(frozen=True, slots=True)
class Kept:
    """A move of the game that stands."""

    action: Action
    place: int  # of its turn in the record


@dataclass(frozen=True, slots=True)
class Start:
    """Where an episode begins."""

    game: int  # of the session
    seed: int
    replay: tuple[Kept, ...]  # moves to play again first


class LeftError(Exception):
    """Not a fault: the player leaves the episode, to go on from `start`, or not at all."""

    def __init__(self, start: Start | None):
        self.start = start


class PlaySession:
    """Games one after the other in one environment, with a record of all moves."""

    def __init__(
        self,
        environments: Environments,
        prompter: Prompter,
        text_of: Callable[[IntArray], str],
        policy: PlayPolicy | None,
        player: Decider,
        on_change: Callable[[Sequence[PlayedTurn]], None],
        max_turns: int,
        split: Split = "train",
        greedy: bool = False,
    ):
        """`text_of`: token ids as the text that makes them. `on_change`: told the record whenever it has changed."""
        self._environments = environments
        self._prompter = prompter
        self._text_of = text_of
        self._policy = policy
        self._player = player
        self._on_change = on_change
        self._max_turns = max_turns
        self._split = split
        self._greedy = greedy
        self._record: list[PlayedTurn] = []
        self._starts = 0

    @property
    def record(self) -> tuple[PlayedTurn, ...]:
        """All moves so far."""
        return tuple(self._record)

    def play(self, seed: int) -> None:
        """Plays until the player quits, the first game with this seed."""
        start: Start | None = Start(0, seed, ())
        while start is not None:
            start = self._play_once(start)

    def act(self, situations: Sequence[Situation]) -> list[Action]:
        """The one episode's next action (`interfaces.Actor`): of those that are played again, or as the player says."""
        [situation] = situations
        if self._replay:
            self._pending: Chosen | Kept = self._replay.popleft()
        else:
            self._pending = self._choose(situation)
        return [self._pending.action]

    def started(self, result: StepResult) -> None:
        """The environment's first answer."""
        self._now = result

    def answered(self, result: StepResult) -> None:
        """The environment's answer to the last action."""
        self._now = result
        move = self._pending
        if isinstance(move, Chosen):
            turn = self._turn(move, result)
            self._moves.append(Kept(move.action, len(self._record)))
            self._record.append(turn)
            self._on_change(self.record)
            self._player.played(turn)
            return
        turn = self._record[move.place]
        if (written(result.observation), result.state.key) != (turn.next_observation, turn.next_key):
            raise EpisodeError(
                f"seed {turn.seed}, move {turn.turn + 1}: {turn.action!r} played again has led elsewhere, so the "
                "environment is not deterministic and no move can be taken back"
            )
        self._moves.append(move)

    def _play_once(self, start: Start) -> Start | None:
        """One episode, to its end or to where it is left; returns how to go on, None for not at all."""
        self._game, self._seed, self._replay = start.game, start.seed, deque(start.replay)
        self._moves: list[Kept] = []
        spec = EpisodeSpec(
            group=0,
            index=0,
            environment_seed=start.seed,
            sampling_seed=episode_seed(start.seed, 0, self._starts),  # what follows an undo is drawn anew
            split=self._split,
        )
        self._starts += 1
        if self._policy is not None:
            self._policy.reset()
        try:
            play_episodes([spec], Overheard(self._environments, self), self, self._prompter, max_turns=self._max_turns)
            raise self._left(self._player.decide(self._view(None)))
        except LeftError as left:
            return left.start

    def _choose(self, situation: Situation) -> Chosen:
        """Asks until the decision is a move."""
        while True:
            policy = self._policy
            advice = None if policy is None else policy.advise(situation)
            decision = self._player.decide(self._view(advice))
            temperature = None if policy is None else policy.temperature
            if isinstance(decision, OwnMove):
                action = example_action(decision.command, self._prompter)
                return Chosen(situation, action, "human", advice, temperature)
            if isinstance(decision, PolicyMove) and policy is not None:
                action = policy.act(replace(situation, greedy=self._greedy))
                return Chosen(situation, action, "policy", advice, temperature)
            if isinstance(decision, SetTemperature) and policy is not None:
                self._policy = policy.at(decision.temperature)
            elif isinstance(decision, SwitchGreedy):
                self._greedy = not self._greedy
            else:
                raise self._left(decision)

    def _left(self, decision: Decision) -> LeftError:
        """How to go on after a decision that ends this episode."""
        if isinstance(decision, Quit):
            return LeftError(None)
        if isinstance(decision, Restart):
            return LeftError(Start(self._game + 1, self._seed if decision.seed is None else decision.seed, ()))
        if isinstance(decision, Undo):
            kept = self._moves[: max(0, len(self._moves) - decision.moves)]
            for move in self._moves[len(kept) :]:
                self._record[move.place] = self._record[move.place].model_copy(update={"undone": True})
            self._on_change(self.record)
            return LeftError(Start(self._game, self._seed, tuple(kept)))
        raise ValueError(f"{decision} cannot be done here")

    def _view(self, advice: Advice | None) -> View:
        return View(
            seed=self._seed,
            moves=tuple(move.action.text for move in self._moves),
            now=self._now,
            limit=self._max_turns,
            advice=advice,
            temperature=None if self._policy is None else self._policy.temperature,
            greedy=self._greedy,
            record=self.record,
        )

    def _turn(self, move: Chosen, result: StepResult) -> PlayedTurn:
        situation, action, advice = move.situation, move.action, move.advice
        before, after = situation.state, result.state
        probabilities = () if advice is None else tuple(advice.probabilities.tolist())
        of_command = dict(zip(before.commands, probabilities, strict=False))
        likeliest = max(of_command, key=of_command.__getitem__, default=None)
        return PlayedTurn(
            game=self._game,
            seed=self._seed,
            turn=len(self._moves),
            who=move.who,
            observation=written(situation.observation),
            commands=tuple(written(command) for command in before.commands),
            probabilities=probabilities,
            temperature=move.temperature,
            value=None if advice is None else advice.value,
            action=written(action.text),
            probability=_probability(move, of_command),
            prompt=self._text_of(situation.prompt_ids),
            completion=self._text_of(action.generation.response_ids),
            likeliest_completion=None if likeliest is None else self._text_of(self._prompter.command_ids(likeliest)),
            prompt_ids=tuple(situation.prompt_ids.tolist()),
            response_ids=tuple(action.generation.response_ids.tolist()),
            logprobs=tuple(action.generation.logprobs.tolist()) if move.who == "policy" else (),
            valid=after.valid,
            reward=result.reward,
            score=after.score,
            max_score=after.max_score,
            won=after.won,
            lost=after.lost,
            terminated=result.terminated,
            truncated=result.truncated,
            game_key=before.key,
            next_observation=written(result.observation),
            next_key=after.key,
        )


def _probability(move: Chosen, of_command: Mapping[str, float]) -> float | None:
    """Of the action under the policy; None of a person's own words."""
    if move.who == "human":
        return of_command.get(move.action.text)
    return float(np.exp(move.action.generation.logprobs.sum()))


class Overheard:
    """Environments of one episode whose answers a session is told."""

    def __init__(self, environments: Environments, session: PlaySession):
        self._environments = environments
        self._session = session

    def reset(self, seeds: Sequence[int]) -> list[StepResult]:
        results = self._environments.reset(seeds)
        self._session.started(results[0])
        return results

    def step(self, actions: Mapping[int, str]) -> dict[int, StepResult]:
        results = self._environments.step(actions)
        self._session.answered(results[0])
        return results

    def counts(self) -> Mapping[str, float]:
        return self._environments.counts()

    def close(self) -> None:
        self._environments.close()
