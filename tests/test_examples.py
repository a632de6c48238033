"""Example turns: how often, which command, and what is said where the environment cannot give one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from rayrlhf.agent_text import make_prompter
from rayrlhf.baselines import SolutionActor
from rayrlhf.config import AgentConfig, ExampleTurnsConfig
from rayrlhf.environments import EnvironmentSettings, LocalEnvironments
from rayrlhf.errors import ConfigError, EpisodeError, UserError
from rayrlhf.examples import make_examples
from rayrlhf.play.transcripts import Header, PlayedTurn, Transcript, write_transcript
from rayrlhf.rollout import Examples, play_episodes, turn_seed
from rayrlhf.types import EpisodeSpec, GameState, Situation
from rayrlhf.walkthroughs import walkthroughs

CORRIDOR = EnvironmentSettings("tests.corridor:Corridor")
STATE = GameState(commands=("go east", "go west", "take coin"), solution=("go west", "take coin"), key="cave")


def examples(**config: object) -> Examples:
    made = make_examples(ExampleTurnsConfig.model_validate(config))
    assert made is not None
    return made


def situation(seed: int, state: GameState = STATE) -> Situation:
    return Situation(episode=0, prompt_ids=np.array([1]), observation="A cave.", state=state, seed=seed)


def chosen(choose: Examples, turns: int, state: GameState = STATE) -> list[str | None]:
    """What is chosen in the first `turns` turns of the episode of seed 7."""
    return [choose(situation(turn_seed(7, turn), state), turn) for turn in range(turns)]


def test_none_without_a_config() -> None:
    assert make_examples(None) is None


def test_probability_and_valid_commands() -> None:
    """TW-8: with probability p a uniformly random admissible command: 4 standard errors around 0.3 and 1/3."""
    made = chosen(examples(probability=0.3), 4000)
    played = [command for command in made if command is not None]
    assert abs(len(played) / 4000 - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    for command in STATE.commands:
        assert abs(played.count(command) / len(played) - 1 / 3) < 4 * (2 / 9 / len(played)) ** 0.5


def test_choice_follows_from_the_seed_alone() -> None:
    """TW-8: equal seeds choose alike whatever was asked before; the number of the turn counts, too."""
    choose = examples(probability=0.5)
    first = chosen(choose, 50)
    chosen(choose, 13)
    assert chosen(examples(probability=0.5), 50) == first
    assert [choose(situation(99), turn) for turn in range(50)] != [choose(situation(98), turn) for turn in range(50)]
    assert len({choose(situation(99), turn) for turn in range(50)}) == 4


def test_correct_is_the_next_of_the_solution() -> None:
    """TW-8; where no solution is known from here the policy plays itself."""
    choose = examples(probability=1, mode="correct")
    assert chosen(choose, 3) == ["go west"] * 3
    assert choose(situation(1, GameState(commands=("look",))), 1) is None


@pytest.mark.parametrize(
    ("mode", "state", "message"),
    [
        ("valid", GameState(), "does not name its commands"),
        ("correct", GameState(commands=("look",)), "no solution of this game"),
        ("human", GameState(commands=("look",)), "does not name its states"),
    ],
)
def test_an_environment_without_what_the_mode_needs(mode: str, state: GameState, message: str, tmp_path: Path) -> None:
    """TW-8: said at the first turn of an episode, whether that turn is an example or not."""
    transcript = write(tmp_path, move("cave", "go east")) if mode == "human" else None
    choose = examples(probability=1e-9, mode=mode, transcript=transcript)
    with pytest.raises(EpisodeError, match=f"agent.examples.mode {mode}: .*{message}"):
        choose(situation(1, state), 0)


def move(key: str, action: str, **other: Any) -> PlayedTurn:
    """A line of a transcript: what a person did in the state of that key."""
    line: dict[str, Any] = {
        "game": 0, "seed": 0, "turn": 0, "who": "human", "observation": "A cave.", "commands": (), "probabilities": (),
        "temperature": None, "value": None, "action": action, "probability": None, "prompt": "A cave.",
        "completion": f" {action}", "likeliest_completion": None, "prompt_ids": (), "response_ids": (), "logprobs": (),
        "valid": True, "reward": 0.0, "score": 0.0, "max_score": 0.0, "won": False, "lost": False, "terminated": False,
        "truncated": False, "game_key": key, "next_observation": "", "next_key": "",
    }  # fmt: skip
    return PlayedTurn.model_validate({**line, **other})


def write(folder: Path, *turns: PlayedTurn) -> str:
    header = Header(
        model=None, tokenizer="code points", environment="textworld", parameters={}, split="train", max_turns=9, seed=0,
        agent={},
    )  # fmt: skip
    write_transcript(folder / "play.jsonl", Transcript(header, turns))
    return str(folder / "play.jsonl")


def test_human_is_what_people_did_in_the_same_state(tmp_path: Path) -> None:
    """TW-8: as often as they did it, nothing that the policy did, and nothing in states that nobody was in."""
    did = [move("cave", action) for action in ("sing", "sing", "dig")]
    transcript = write(tmp_path, *did, move("lake", "swim"), move("cave", "go east", who="policy"))
    choose = examples(probability=1, mode="human", transcript=transcript)
    played = Counter(chosen(choose, 600))
    assert set(played) == {"sing", "dig"}
    assert abs(played["sing"] / 600 - 2 / 3) < 4 * (2 / 9 / 600) ** 0.5
    assert choose(situation(1, GameState(key="lake")), 3) == "swim"
    assert choose(situation(1, GameState(key="moon")), 0) is None


def test_a_transcript_without_a_persons_moves(tmp_path: Path) -> None:
    transcript = write(tmp_path, move("cave", "go east", who="policy"))
    with pytest.raises(ConfigError, match=r"play\.jsonl: no person moved"):
        examples(mode="human", transcript=transcript)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mode": "human"}, "needs agent.examples.transcript"),
        ({"mode": "valid", "transcript": "a.jsonl"}, "is of mode human, not of valid"),
        ({"mode": "human", "transcript": "missing.jsonl"}, "missing.jsonl: cannot be read"),
    ],
)
def test_settings_that_do_not_fit(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        examples(**config)


def test_examples_in_a_game(tiny_model: Path) -> None:
    """TW-8: an example is in the policy's memory; none of its tokens is the policy's choice. With correct examples in
    every turn the game is won as its solution says."""
    prompter = make_prompter(
        AgentConfig(prompt="transcript"), AutoTokenizer.from_pretrained(tiny_model), (), context=500, max_new_tokens=20
    )
    spec = EpisodeSpec(group=0, index=0, environment_seed=2, sampling_seed=5)
    choose = examples(probability=1, mode="correct")
    [episode] = play_episodes(
        [spec], LocalEnvironments(CORRIDOR), SolutionActor(prompter), prompter, max_turns=9, examples=choose
    )
    assert [turn.action for turn in episode.turns] == ["go east", "go east", "go east", "take coin"]
    assert episode.turns[-1].after.won
    for turn, following in zip(episode.turns, episode.turns[1:]):
        assert turn.example
        assert not turn.choices.any()
        start = np.concatenate([turn.prompt_ids, prompter.command_ids(turn.action)])
        np.testing.assert_array_equal(following.prompt_ids[: len(start)], start)


def test_walkthroughs(tiny_model: Path) -> None:
    """Each turn of each game's solution as prompt and response, as a policy would have been asked in training."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompter = make_prompter(AgentConfig(prompt="question", memory_turns=1), tokenizer, (), 500, 20)
    environments = LocalEnvironments(CORRIDOR)
    shown = walkthroughs(environments, prompter, games=22)
    lengths = [2 + seed % 3 for seed in range(22)]  # steps to the coin, and taking it
    assert len(shown) == sum(lengths)
    told = [tokenizer.decode(turn.response_ids) for turn in shown]
    assert told[:5] == [" go east<|endoftext|>", " take coin<|endoftext|>", *[" go east<|endoftext|>"] * 2,
                        " take coin<|endoftext|>"]  # fmt: skip
    assert all((turn.allowed.counts >= 1).all() and turn.allowed.counts.max() > 1 for turn in shown)
    [start] = environments.reset([0])
    np.testing.assert_array_equal(shown[0].prompt_ids, prompter.prompt([], start.observation, start.state))
    assert tokenizer.decode(shown[1].prompt_ids).startswith(
        "You are in room 0 of the corridor.\nThere is an exit. What do you do?"
    )


def test_walkthroughs_of_games_without_a_solution(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompter = make_prompter(AgentConfig(), tokenizer, (), 500, 20)
    unsolved = LocalEnvironments(EnvironmentSettings("tests.corridor:Corridor", {"solutions": False}))
    with pytest.raises(EpisodeError, match="knows none of a game"):
        walkthroughs(unsolved, prompter, games=1)
