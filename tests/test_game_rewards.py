"""Rewards of games: one number a turn, parts that add up, and what they say of a game that was played."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rayrlhf.config import RewardPart, RunConfig
from rayrlhf.errors import RewardError
from rayrlhf.reward_contract import assert_reward, example_trajectory
from rayrlhf.reward_mixture import RewardMixture
from rayrlhf.reward_process import RewardProcess
from rayrlhf.types import EpisodeScore, GameState, Trajectory

ACTIONS = ("go east", "Enter the cave", "enter", "enter", "take gem")
REWARDS = (0.0, 2.0, 0.0, 0.0, -1.0)
STATES = (
    GameState(), GameState(score=2), GameState(score=2, valid=False), GameState(score=2), GameState(score=1, won=True)
)  # fmt: skip


def game(lost: bool = False) -> Trajectory:
    """Five turns; the third was not understood, the fourth is the same again and was; the last wins, or loses."""
    episode = example_trajectory("A field.", ACTIONS[0], *(("More.", action) for action in ACTIONS[1:]))
    befores = (GameState(), *STATES[:-1])
    afters = (*STATES[:-1], GameState(lost=True)) if lost else STATES
    turns = tuple(
        replace(turn, reward=reward, before=before, after=after)
        for turn, reward, before, after in zip(episode.turns, REWARDS, befores, afters)
    )
    return replace(episode, turns=turns)


def score(*parts: dict[str, Any] | str, trajectory: Trajectory | None = None) -> EpisodeScore:
    named = [RewardPart.model_validate({"name": part} if isinstance(part, str) else part) for part in parts]
    [one] = RewardMixture(named).score([trajectory or game()])
    return one


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"name": "game_score"}, [0, 2, 0, 0, -1]),
        ({"name": "win_lose"}, [0, 0, 0, 0, 2]),
        ({"name": "win_lose", "win": 5}, [0, 0, 0, 0, 5]),
        ({"name": "living"}, [-0.1] * 5),
        ({"name": "living", "per_turn": 1}, [1] * 5),
        ({"name": "invalid_action"}, [0, 0, -1, 0, 0]),
        ({"name": "invalid_action", "penalty": -0.5}, [0, 0, -0.5, 0, 0]),
        ({"name": "letter_count", "letter": "e"}, [1, 4, 2, 2, 2]),
        ({"name": "letter_count", "letter": "E", "weight": 0.1}, [0.1, 0.4, 0.2, 0.2, 0.2]),
    ],
)
def test_each_reward_turn_by_turn(part: dict[str, Any], expected: list[float]) -> None:
    """TW-9; TW-25: small and capital letters of the action."""
    assert score(part).total == pytest.approx(expected)


def test_a_lost_game() -> None:
    """TW-9."""
    assert score("win_lose", trajectory=game(lost=True)).total.tolist() == [0, 0, 0, 0, -2]
    assert score({"name": "win_lose", "lose": -9}, trajectory=game(lost=True)).total.tolist() == [0, 0, 0, 0, -9]


def test_a_game_that_goes_on_is_won_once() -> None:
    """TW-9: points for having won are no income."""
    episode = game()
    after = replace(episode.turns[0], before=GameState(won=True), after=GameState(won=True))
    longer = replace(episode, turns=(*episode.turns, after, after))
    assert score("win_lose", trajectory=longer).total.tolist() == [0, 0, 0, 0, 2, 0, 0]


def test_doing_something_legal_again_is_no_fault() -> None:
    """TW-9: the source took every repetition for an invalid action."""
    episode = example_trajectory("", "go east", ("", "go east"), ("", "go east"))
    assert score("invalid_action", trajectory=episode).total.tolist() == [0, 0, 0]


def test_parts_add_up() -> None:
    """TW-9: by names alone. In the source the score took the place of what it was added to."""
    config = RunConfig.model_validate(
        {"reward": ["game_score", {"name": "letter_count", "letter": "e", "weight": 0.1}]}
    )
    [one] = RewardMixture(config.reward).score([game()])
    assert one.total == pytest.approx([0.1, 2.4, 0.2, 0.2, -0.8])
    assert one.parts == {"game_score": 1, "letter_count": 11}


def test_affine_reward() -> None:
    """TW-9: 0.5 * score - 0.25 a turn."""
    one = score({"name": "game_score", "weight": 0.5}, {"name": "living", "per_turn": -0.25})
    assert one.total.tolist() == [-0.25, 0.75, -0.25, -0.25, -0.75]
    assert one.parts == {"game_score": 1, "living": -1.25}


def test_example_turns_are_scored() -> None:
    """TW-8: what an example earned counts in the episode's reward; that it trains nothing is the algorithms' part."""
    episode = game()
    example = replace(episode, turns=tuple(replace(turn, example=True) for turn in episode.turns))
    assert (
        score("game_score", "living", trajectory=example).total.tolist() == score("game_score", "living").total.tolist()
    )


def test_in_the_process_of_a_run() -> None:
    """States travel to the reward's process with their turns."""
    parts = [RewardPart(name=name) for name in ("game_score", "win_lose", "invalid_action", "living")]
    with RewardProcess(parts, timeout_s=30) as process:
        [won, lost] = process.score([game(), game(lost=True)])
    assert won.total == pytest.approx([-0.1, 1.9, -1.1, -0.1, 0.9])
    assert lost.total == pytest.approx([-0.1, 1.9, -1.1, -0.1, -3.1])


@pytest.mark.parametrize("name", ["game_score", "win_lose", "living", "invalid_action"])
def test_rewards_keep_the_contract(name: str) -> None:
    assert_reward(name)


def test_parameters_are_checked() -> None:
    with pytest.raises(RewardError, match="did you mean `penalty`"):
        score({"name": "invalid_action", "penality": -1})
    with pytest.raises(RewardError, match="takes float for `per_turn`"):
        score({"name": "living", "per_turn": "cheap"})
