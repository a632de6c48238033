"""What an evaluation found and under which setting: the record in `evaluation.json`, and the table made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rayrlhf.errors import RunFolderError
from rayrlhf.files import replace_file
from rayrlhf.intervals import Estimate, mean, won_share
from rayrlhf.reading import read_record
from rayrlhf.types import GameState, Trajectory

EVALUATION = "evaluation.json"
"""Its name in a run's folder."""

PlayerName = Literal["greedy", "sampled", "random", "oracle"]
HEADINGS = ("player", "won", "share won", "score", "turns, won", "turns, all")


@dataclass(frozen=True, slots=True)
class EvaluationSetting:
    """What stands beside every figure: other settings are other tasks."""

    environment: str
    parameters: Mapping[str, Any]  # of the environment, those left to their defaults among them
    games: int  # held-out games, each played by every player
    seed: int  # of what is drawn
    max_turns: int
    prompt: str  # agent.prompt
    actions: str  # agent.actions
    temperature: float  # of the sampled policy
    objective_in_prompt: bool | None  # None: the games state none
    checkpoint: int | None  # iterations behind the policy; None: it is no run's


@dataclass(frozen=True, slots=True)
class PlayerResult:
    """How one player fared. Intervals are 95 %, over games."""

    player: PlayerName
    episodes_per_game: int
    episodes: int
    won: int
    won_share: Estimate
    score: Estimate | None  # of a game's most; None where a game does not say what that is
    turns: Estimate  # an episode
    turns_won: Estimate | None  # an episode that was won; None where none was


@dataclass(frozen=True, slots=True)
class ValueFit:
    """How far V of an episode's start is from the discounted reward that came, the KL penalty not counted."""

    player: PlayerName  # who played
    error: Estimate  # mean of V less the reward
    absolute_error: Estimate  # mean of the same without its sign


@dataclass(frozen=True, slots=True)
class Evaluation:
    name: str  # of the run or the model
    setting: EvaluationSetting
    results: tuple[PlayerResult, ...]
    not_played: Mapping[str, str]  # player -> why it could not play
    value_fit: ValueFit | None = None  # None without a value network


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table."""

    value: str
    interval: str = ""  # its 95 % interval, where it has one


def player_result(player: PlayerName, trajectories: Sequence[Trajectory], episodes_per_game: int) -> PlayerResult:
    """The figures of one player's episodes, those of a game next to each other; a game is `Trajectory.group`."""
    starts = range(0, len(trajectories), episodes_per_game)
    games = [trajectories[start : start + episodes_per_game] for start in starts]
    ends = [[episode.turns[-1].after for episode in game] for game in games]
    won = [
        [len(e.turns) for e, end in zip(game, states, strict=True) if end.won]
        for game, states in zip(games, ends, strict=True)
    ]
    scored = all(end.max_score for states in ends for end in states)
    won_games = [lengths for lengths in won if lengths]
    return PlayerResult(
        player=player,
        episodes_per_game=episodes_per_game,
        episodes=len(trajectories),
        won=sum(len(lengths) for lengths in won),
        won_share=won_share([len(lengths) for lengths in won], episodes_per_game),
        score=mean([[_normalised(end) for end in states] for states in ends]) if scored else None,
        turns=mean([[len(episode.turns) for episode in game] for game in games]),
        turns_won=mean(won_games) if won_games else None,
    )


def _normalised(end: GameState) -> float:
    return end.score / end.max_score


def table_rows(evaluation: Evaluation) -> list[tuple[Cell, ...]]:
    """A row for each player, under `HEADINGS`."""
    return [
        (
            Cell(result.player),
            Cell(f"{result.won} of {result.episodes}"),
            _cell(result.won_share, "{:.1%}"),
            _cell(result.score, "{:.3f}"),
            _cell(result.turns_won, "{:.1f}"),
            _cell(result.turns, "{:.1f}"),
        )
        for result in evaluation.results
    ]


def notes(evaluation: Evaluation) -> list[str]:
    """The setting in words, a line each, and what else belongs beside the table."""
    setting = evaluation.setting
    objective = {None: "none is stated", True: "yes", False: "no"}[setting.objective_in_prompt]
    checkpoint = "a model folder" if setting.checkpoint is None else f"checkpoint after {setting.checkpoint} iterations"
    parameters = ", ".join(f"{name} {_value(value)}" for name, value in setting.parameters.items())
    lines = [
        f"{evaluation.name}, {checkpoint}: {setting.games} held-out games of {setting.environment}"
        + (f" ({parameters})" if parameters else ""),
        f"objective in the prompt: {objective}; prompt {setting.prompt}, actions {setting.actions}, "
        f"at most {setting.max_turns} turns, temperature {setting.temperature:g} where sampled, seed {setting.seed}",
        "Intervals are 95 % over games: Wilson's for shares, the bootstrap's for means.",
    ]
    lines += [f"{player} did not play: {reason}" for player, reason in evaluation.not_played.items()]
    if evaluation.value_fit is not None:
        fit = evaluation.value_fit
        lines.append(
            f"value of the first state less the discounted reward that came ({fit.player}): "
            f"mean {_in_line(fit.error, '{:+.3f}')}, without its sign {_in_line(fit.absolute_error, '{:.3f}')}"
        )
    return lines


def _cell(estimate: Estimate | None, form: str) -> Cell:
    if estimate is None:
        return Cell("–")
    if estimate.low is None or estimate.high is None:
        return Cell(form.format(estimate.value))
    return Cell(form.format(estimate.value), f"[{form.format(estimate.low)}, {form.format(estimate.high)}]")


def _in_line(estimate: Estimate, form: str) -> str:
    cell = _cell(estimate, form)
    return f"{cell.value} {cell.interval}".rstrip()


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(str(item) for item in value) or "none"
    return str(value)


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Writes the record at once: a reader finds the old one or the new."""
    replace_file(path, [json.dumps(asdict(evaluation), indent=1, allow_nan=False).encode() + b"\n"])


def read_evaluation(folder: Path) -> Evaluation | None:
    """The record in the run at `folder`; None where it was never evaluated. RunFolderError names a damaged one."""
    path = folder / EVALUATION
    if not path.exists():
        return None
    return read_record(path, Evaluation, RunFolderError, "remove it, or run `rayrlhf evaluate` again")
