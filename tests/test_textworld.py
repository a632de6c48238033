"""The TextWorld environment: its contract, the same play for the same seed, and the faults of TextWorld it is built around.

All play is of real games, made once for the whole file.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pickle
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import textworld
from gymnasium.utils.env_checker import check_env

from rayrlhf.envs.textworld import TextWorld
from rayrlhf.errors import EpisodeError, InstallationError
from rayrlhf.games.interpreter import object_table
from rayrlhf.games.kinds import game_kind
from rayrlhf.games.making import game_file
from rayrlhf.games.map import ascii_map, world_map
from rayrlhf.types import GameState

pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")  # TextWorld hides it, pytest shows it

Make = Callable[..., TextWorld]
COIN = {"kind": "coin_collector", "level": 3, "games": 2, "held_out_games": 1}
CUSTOM = {"kind": "custom", "rooms": 2, "objects": 3, "quest_length": 4, "games": 1, "held_out_games": 1}
SIMPLE = {"kind": "simple", "games": 1, "held_out_games": 1}
COOKING = {"kind": "cooking", "cook": True, "games": 1, "held_out_games": 1}


@pytest.fixture
def make() -> Iterator[Make]:
    """Builds environments that are closed with the test."""
    made: list[TextWorld] = []

    def build(**parameters: Any) -> TextWorld:
        made.append(TextWorld(**parameters))
        return made[-1]

    yield build
    for environment in made:
        environment.close()


def play(environment: TextWorld, *commands: str, seed: int = 0) -> list[tuple[str, float, bool, bool, dict[str, Any]]]:
    """The results of a reset, as a step's, and of the commands."""
    observation, info = environment.reset(seed=seed)
    return [(observation, 0.0, False, False, info), *map(environment.step, commands)]


def walkthrough(environment: TextWorld, seed: int = 0) -> tuple[str, ...]:
    return tuple(environment.reset(seed=seed)[1]["solution"])


# The contract


def test_reset_and_step_return_text_and_what_the_game_says_of_itself(make: Make) -> None:
    """TW-1: per game observation, score, done, and info {admissible commands, objective, won, lost}."""
    environment = make(**COIN)
    observation, info = environment.reset(seed=0)
    way = info["solution"]
    assert set(info) == {field.name for field in dataclasses.fields(GameState)}
    assert way[-1] == "take coin"
    assert len(way) == 3
    assert way[0] in info["commands"]
    assert list(info["commands"]) == sorted(info["commands"])
    assert "coin" in info["objective"]
    for index, command in enumerate(way):
        last = index == len(way) - 1
        observation, reward, terminated, truncated, info = environment.step(command)
        assert (reward, terminated, truncated) == (float(last), last, False)
        assert (info["score"], info["max_score"], info["won"], info["lost"]) == (float(last), 1.0, last, False)
    assert observation.endswith("*** The End ***\nYou scored 1 out of a possible 1.")


def test_gymnasiums_own_checker_accepts_it(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of spaces that are not its own
        check_env(make(**COIN), skip_render_check=True)


def test_rewards_are_changes_of_the_score(make: Make) -> None:
    """TextWorld's own score is cumulative: its sum over the steps would be 55, not 10."""
    environment = make(**SIMPLE)
    results = play(environment, *walkthrough(environment))
    assert sum(result[1] for result in results) == results[-1][4]["score"] == results[-1][4]["max_score"] == 10.0
    assert results[-1][4]["won"]
    assert results[-1][2]


def test_a_lost_game_is_over(make: Make) -> None:
    """TW-1: won and lost are told apart; the ingredient is eaten raw."""
    environment = make(**COOKING)
    commands = environment.reset(seed=0)[1]["commands"]
    eaten = next(command for command in commands if command.startswith("eat "))
    _, reward, terminated, truncated, info = environment.step(eaten)
    assert (reward, terminated, truncated, info["lost"], info["won"]) == (0.0, True, False, True, False)
    assert info["commands"] == info["solution"] == ()


def test_legal_repeats_are_valid_and_nonsense_is_not(make: Make) -> None:
    """TW-9: valid does not mean other than before; what works without being listed is valid too."""
    environment = make(**COIN)
    *way, _ = walkthrough(environment)
    results = play(environment, "look", "look", "sing a song", "take coin", *way, "get coin")
    assert [result[4]["valid"] for result in results] == [True, True, True, False, False, *[True] * len(way), True]
    assert results[-1][4]["won"]


def test_case_and_punctuation_of_free_text_do_not_matter(make: Make) -> None:
    """TW-4: what a policy writes is cleaned before it is played."""
    environment = make(**COIN)
    *way, take = walkthrough(environment)
    results = play(environment, *(f' "{command.upper()}!"\nand I wait' for command in way), f"{take}.")
    assert results[-1][4]["won"]
    assert all(result[4]["valid"] for result in results)


def test_an_episode_is_cut_off_after_max_steps(make: Make) -> None:
    environment = make(**COIN, max_steps=2)
    results = play(environment, "look", "look")
    assert [result[2:4] for result in results] == [(False, False), (False, False), (False, True)]
    assert len({result[4]["key"] for result in results}) == 3  # the same place, not as near to the end
    with pytest.raises(EpisodeError, match="call reset"):
        environment.step("look")


@pytest.mark.parametrize(
    ("kind", "parameters", "steps"),
    [("coin_collector", {"level": 5}, 19), ("coin_collector", {"level": 3}, 13), ("custom", {"quest_length": 8}, 24)],
)
def test_the_usual_step_limits(kind: str, parameters: dict[str, Any], steps: int) -> None:
    """As games of that kind are played elsewhere: coin level L for 3 L + 4 steps, quests for three times their length."""
    assert game_kind(kind, **parameters).step_limit == steps


def test_parts_of_an_observation_are_shown_in_the_order_given(make: Make) -> None:
    """TW-7: observation, description, inventory and objective on a dial; an inventory of nothing is left out."""
    environment = make(**COOKING, parts=("objective", "inventory", "feedback"))
    (first, *_, info), (second, *_) = play(environment, "look")
    carried = "You are carrying: a "
    assert first.startswith(f"{info['objective']}\n{carried}")
    assert second.startswith(f"{info['objective']}\n{carried}")
    assert first.count("-= Kitchen =-") == 1
    coin = make(**COIN, parts=("inventory", "description"))
    assert coin.reset(seed=0)[0].startswith("-= ")


def test_the_objective_is_in_no_observation_unless_it_is_asked_for(make: Make) -> None:
    for settings in (COIN, CUSTOM, SIMPLE, COOKING):
        observation, info = make(**settings).reset(seed=0)
        assert info["objective"]
        assert observation.startswith("-= ")
        assert info["objective"] not in observation


def test_pruned_commands_leave_the_list_and_work_still(make: Make) -> None:
    environment = make(**COIN, prune=["look", "inventory", "go"])
    whole = make(**COIN).reset(seed=0)[1]["commands"]
    commands = environment.reset(seed=0)[1]["commands"]
    assert commands == whole  # nothing would be left: the list stays whole
    environment = make(**COIN, prune=["look", "inv"])
    assert environment.reset(seed=0)[1]["commands"] == tuple(command for command in whole if command != "look")
    assert environment.step("look")[4]["valid"]


# The same seed, the same play


def test_epochs_meet_every_game_once_and_equal_seeds_the_same(make: Make) -> None:
    environment, other = make(**COIN), make(**COIN)
    names = [environment.reset(seed=seed)[1]["objective"] for seed in range(8)]
    assert all(len(set(names[start : start + 2])) == 2 for start in range(0, 8, 2))
    assert [other.reset(seed=seed)[1]["objective"] for seed in reversed(range(8))] == names[::-1]
    other.reset(seed=4)
    assert other.reset()[1]["objective"] == names[5]  # without a seed, the next
    held_out = make(**COIN, split="held_out")
    again = [held_out.reset(seed=seed)[1]["objective"] for seed in range(3)]
    assert len(set(again)) == 1
    assert again[0] not in names


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_first_seed_plays_the_same_game(make: Make, split: str) -> None:
    """Of all seeds that play one game it is the smallest, and the same for all of them."""
    environment = make(**COIN, split=split)
    count = {"train": 2, "held_out": 1}[split]
    keys = [environment.reset(seed=seed)[1]["key"] for seed in range(3 * count)]
    firsts = [environment.first_seed(seed) for seed in range(3 * count)]
    assert firsts == [keys.index(key) for key in keys]
    assert set(firsts) == set(range(count))


def test_equal_seeds_and_commands_give_equal_results_bit_for_bit(make: Make) -> None:
    rng = random.Random(3)
    first, second = make(**SIMPLE), make(**SIMPLE)
    second.reset(seed=1)
    second.step("look")
    expected = [first.reset(seed=0)]
    commands = []
    for _ in range(25):
        commands.append(rng.choice(first._shown.state.commands))  # type: ignore[union-attr]
        expected.append(first.step(commands[-1]))
    assert [second.reset(seed=0), *map(second.step, commands)] == expected


@pytest.mark.parametrize("settings", [COIN, CUSTOM, SIMPLE, COOKING], ids=lambda settings: settings["kind"])
def test_equal_keys_and_commands_give_equal_steps(make: Make, settings: dict[str, Any]) -> None:
    """Types: `key` names a state where play is deterministic, whatever led to it."""
    typed = ("take all", "drop all", "examine", "table", "take it", "x me", "put", "open", "wait", "sing")
    rng, environment = random.Random(0), make(**settings)
    known: dict[tuple[str, str], Any] = {}
    met_again = 0
    for episode in range(12):
        info = environment.reset(seed=episode)[1]
        for _ in range(25):
            action = rng.choice(typed if rng.random() < 0.2 else info["commands"])
            place = (info["key"], action)
            result = environment.step(action)
            info = result[4]
            met_again += place in known
            assert known.setdefault(place, result) == result, action
            if result[2]:
                break
    assert met_again > 10


def test_the_key_knows_in_which_order_things_were_taken(make: Make) -> None:
    """The facts are the same, and the inventory lists them in another order."""
    environment = make(**COOKING)
    take = [command for command in environment.reset(seed=0)[1]["commands"] if command.startswith("take ")][:2]
    one, other = (play(environment, *order, "inventory")[-1] for order in (take, take[::-1]))
    assert one[0] != other[0]
    assert one[4]["key"] != other[4]["key"]


def test_the_key_knows_what_was_rewarded_already(make: Make) -> None:
    """Facts and score alone would not do: of two quests, each worth 1, either may be the one that is done."""
    environment = make(**SIMPLE)
    start, opened, closed, again = play(environment, "open chest drawer", "close chest drawer", "open chest drawer")
    assert (opened[1], again[1]) == (1.0, 0.0)
    assert start[4]["key"] != closed[4]["key"]
    assert opened[4]["key"] == again[4]["key"]


def test_the_key_knows_of_a_question_that_waits_for_its_answer(make: Make) -> None:
    environment = make(**SIMPLE)
    start, asked, answered, after = play(environment, "examine", "chest drawer", "look")
    assert asked[0].endswith("?")
    assert start[4]["key"] != asked[4]["key"]
    assert "chest drawer" in answered[0]
    assert after[4]["key"] == answered[4]["key"] == start[4]["key"]
    assert play(environment, "chest drawer")[-1][0] != answered[0]


def test_words_that_mean_what_was_said_before_are_refused(make: Make) -> None:
    """A key says nothing of them: `take it` after `examine coin` is not `take it` after `look`."""
    observation, *_, info = play(make(**COIN), "take it")[-1]
    assert observation == "Say what you mean by its name."
    assert not info["valid"]


# Solutions


def test_the_solution_is_known_on_the_walkthrough_and_again_on_return(make: Make) -> None:
    environment = make(**COOKING)
    way = walkthrough(environment)
    assert "examine cookbook" in way  # changes nothing in the game, and is not left out
    results = play(environment, "look", "examine stove", *way[:2], "open fridge", "close fridge")
    expected = [way, way, way, way[1:], way[2:]]
    assert [result[4]["solution"] for result in results[:5]] == expected
    close, reopen = (play(environment, "close oven", "open oven")[index][4]["solution"] for index in (1, 2))
    assert close == ()
    assert way[-3:] == reopen[-3:]


def test_with_solutions_there_is_one_from_everywhere(make: Make) -> None:
    environment = make(**COIN, solutions=True)
    way = walkthrough(environment)
    back = {"go north": "go south", "go south": "go north", "go east": "go west", "go west": "go east"}
    info = play(environment, way[0], back[way[0]])[-1][4]
    assert info["solution"] == way
    while info["solution"]:
        info = environment.step(info["solution"][0])[4]
    assert info["won"]


# The faults of TextWorld


def test_game_files_are_not_named_as_jericho_names_those_it_plays_slowly(tmp_path: Path) -> None:
    """Fault 1: a file named tw-* has `look` and `inventory` played at each step."""
    ours = game_file(game_kind("coin_collector", level=3), "train", 0)
    for suffix in (".z8", ".json"):
        shutil.copy(ours.with_suffix(suffix), tmp_path / f"tw-1{suffix}")
    supported = {}
    for path in (ours, tmp_path / "tw-1.z8"):
        game = textworld.start(str(path))
        supported[path.name] = game.unwrapped._jericho.is_fully_supported
        game.close()
    assert supported == {"game.z8": False, "tw-1.z8": True}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("action", ["\\x", "\\", "look\0", "\0", "take coin\\", "tw-trace-actions", "tw-print player"])
def test_no_command_hangs_the_game_or_reaches_its_testing_verbs(make: Make, action: str) -> None:
    """Fault 2: a backslash or NUL blocks the process for ever."""
    start, refused, after = play(make(**COIN), action, "look")
    assert refused[0] == "That is no command of this game."
    assert refused[1:4] == (0.0, False, False)
    assert not refused[4]["valid"]
    assert refused[4]["key"] == start[4]["key"]
    assert after[4]["valid"]


@pytest.mark.parametrize("chain", [". ", "; ", ", ", " then ", ".", " and then "])
def test_several_commands_are_not_played_in_one_step(make: Make, chain: str) -> None:
    """Fault 3: `go south. take coin` would win in one move."""
    environment = make(**COIN)
    start, chained = play(environment, chain.join(walkthrough(environment)))
    assert chained[0] == "One command at a time, please."
    assert chained[4] == {**start[4], "valid": False}
    assert not environment.step("take coin")[2]


def test_of_several_lines_the_first_is_played(make: Make) -> None:
    environment = make(**COIN)
    way = walkthrough(environment)
    info = play(environment, "\n".join(way))[-1][4]
    assert info["solution"] == way[1:]


def test_saving_and_restoring_touch_neither_games_nor_files(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 4: save and restore go by a file in the working directory, from one game to another."""
    monkeypatch.chdir(tmp_path)
    one, other = make(**COIN), make(**COIN)
    *way, _ = walkthrough(one)
    play(one, *way, "save", "Save", "SAVE game")
    results = play(other, "restore", "load", "script", "transcript", "restart", "quit", "undo", "superbrief", "again")
    assert {result[0] for result in results[1:]} == {"That is no command of this game."}
    assert {result[4]["key"] for result in results} == {results[0][4]["key"]}
    assert os.listdir(tmp_path) == []
    assert other.step("look")[0] == results[0][0]


def test_a_finished_game_takes_no_further_step(make: Make) -> None:
    """Fault 5: TextWorld would go on with done=False and a question that no game asks."""
    environment = make(**COIN)
    with pytest.raises(EpisodeError, match="call reset"):
        environment.step("look")
    play(environment, *walkthrough(environment))
    with pytest.raises(EpisodeError, match="call reset"):
        environment.step("look")
    assert environment.reset(seed=0)[1]["solution"]


def test_neither_banner_nor_move_counter_is_shown(make: Make) -> None:
    """Fault 6: the status bar would tell a policy how many moves it made."""
    environment = make(**COIN)
    results = play(environment, *["look"] * 9, *walkthrough(environment))
    assert {result[0] for result in results[:10]} == {results[0][0]}
    for observation, *_ in results:
        assert "$" not in observation
        assert ">" not in observation
        assert "\n\n" not in observation
        assert observation == observation.strip()
        assert "turn" not in observation.splitlines()[-1]


def test_results_can_be_sent_to_another_process(make: Make) -> None:
    """Fault 7: TextWorld's own states hold pointers, or the whole game."""
    results = play(make(**COIN), "look")
    assert pickle.loads(pickle.dumps(results)) == results
    assert len(pickle.dumps(results[0])) < 2000
    assert type(results[1][1]) is float


def test_games_without_their_text_are_no_games(make: Make) -> None:
    """Fault 10: TextWorld plays a .json too, with a constant for its text."""
    path = game_file(game_kind("coin_collector", level=3), "train", 0)
    with pytest.raises(EpisodeError, match=r"game\.json.* no game file"):
        make(files=str(path.with_suffix(".json")))


def test_many_games_one_after_the_other_leave_no_memory_or_files_behind(make: Make) -> None:
    """Fault 12: the interpreter would keep every game's file that it ever played, 0.4 MB each."""
    environment, process = make(**COIN), psutil.Process()
    for seed in range(40):
        environment.reset(seed=seed)
    gc.collect()
    before, files = process.memory_info().rss, process.num_fds()
    for seed in range(120):
        environment.reset(seed=seed)
    assert environment._interpreter is not None
    assert len(environment._interpreter._jericho._cache) == 1
    assert process.memory_info().rss - before < 3_000_000
    assert process.num_fds() <= files


# Game files, the map, and what is wrong


def test_game_files_are_played_from_a_file_or_a_folder(make: Make, tmp_path: Path) -> None:
    for number in range(2):
        shutil.copytree(game_file(game_kind("coin_collector", level=3), "train", number).parent, tmp_path / str(number))
    both = make(files=str(tmp_path))
    names = {both.reset(seed=seed)[1]["objective"] for seed in range(2)}
    assert len(names) == 2
    one = make(files=[str(tmp_path / "0" / "game.z8")], split="held_out")
    assert {one.reset(seed=seed)[1]["objective"] for seed in range(3)} < names
    TextWorld.prepare(1, files=str(tmp_path))  # nothing is to be made


def test_runs_of_other_seeds_play_the_games_in_other_orders() -> None:
    """The first seed of a game is known in each; held-out games stay in their order."""
    for run_seed in range(3):
        environment = TextWorld(**{**COIN, "games": 40}, run_seed=run_seed)
        order = [environment._number_of(seed) for seed in range(40)]
        assert sorted(order) == list(range(40))
        again = [environment._number_of(seed) for seed in range(40, 80)]
        assert [environment.first_seed(40 + place) for place in range(40)] == [order.index(game) for game in again]
        held_out = TextWorld(**{**COIN, "held_out_games": 5}, split="held_out", run_seed=run_seed)
        assert [held_out._number_of(seed) for seed in range(5)] == list(range(5))
    orders = [TextWorld(**{**COIN, "games": 40}, run_seed=seed)._number_of(0) for seed in range(9)]
    assert len(set(orders)) > 3


def test_a_game_of_unknown_logic_is_played_without_commands_and_key(make: Make, tmp_path: Path) -> None:
    """Any Z-machine game: TextWorld's without its .json is one."""
    shutil.copy(game_file(game_kind("coin_collector", level=3), "train", 0), tmp_path / "game.z8")
    environment, known = make(files=str(tmp_path / "game.z8")), make(**COIN, split="train")
    seed = next(seed for seed in range(2) if known._file_of(seed).parent.name == "1000000")
    way = walkthrough(known, seed)
    results = play(environment, way[0], "sing a song", "save")
    assert [result[4]["valid"] for result in results] == [True, True, False, False]
    assert all(result[4]["commands"] == () and result[4]["key"] == "" for result in results)
    assert results[1][0] == play(known, way[0], seed=seed)[-1][0]


def test_a_file_that_is_no_game_is_named(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "letter.z5"
    path.write_text("Dear player, " * 100)
    with pytest.raises(EpisodeError, match=r"letter\.z5 is no game of the Z-machine"):
        make(files=str(path)).reset(seed=0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], r"not JSON"),
        (lambda text: "[" * 100_000, r"nested"),
        (lambda text: "{}", r"is damaged, or no game that this TextWorld knows: KeyError: 'KB'"),
        (lambda text: "[]", r"is damaged, or no game"),
        (lambda text: text.replace('"world"', '"word"'), r"is damaged, or no game.* KeyError: 'world'"),
        (lambda text: json.dumps({**json.loads(text), "infos": []}), r"is damaged, or no game"),
        (lambda text: json.dumps({**json.loads(text), "version": 9}), r"is damaged, or no game.*version 9"),
    ],
)
def test_a_damaged_description_of_a_game_is_named(
    make: Make, tmp_path: Path, damage: Callable[[str], str], message: str
) -> None:
    """By the run before it starts, or else by the first reset; other games can be played afterwards."""
    shutil.copytree(game_file(game_kind("coin_collector", level=3), "train", 0).parent, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    path = tmp_path / "b" / "game.json"
    path.write_text(damage(path.read_text()))
    environment = make(files=str(tmp_path))
    seeds = sorted(range(2), key=lambda seed: environment._file_of(seed).parent.name)
    for played in (lambda: environment.reset(seed=seeds[1]), lambda: world_map(path.with_suffix(".z8"))):
        with pytest.raises(EpisodeError, match=rf"^[^\n]*/b/game\.json[^\n]*{message}[^\n]*$"):
            played()
    assert environment.reset(seed=seeds[0])[1]["commands"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], r"is cut short: its header speaks of \d+ bytes"),
        (lambda content: content[:5000] + b"?" + content[5001:], r"is damaged: the sum of its bytes"),
        (lambda content: b"", r"is no game of the Z-machine"),
        (lambda content: b"\x00" * 100_000, r"is no game of the Z-machine"),
    ],
)
@pytest.mark.parametrize("described", [True, False])
def test_a_damaged_game_is_named(
    make: Make, tmp_path: Path, damage: Callable[[bytes], bytes], message: str, described: bool
) -> None:
    """Before the interpreter, which ends its process over some of them, sees it."""
    source = game_file(game_kind("coin_collector", level=3), "train", 0)
    path = tmp_path / "game.z8"
    path.write_bytes(damage(source.read_bytes()))
    if described:
        shutil.copy(source.with_suffix(".json"), tmp_path)
    for played in (lambda: make(files=str(path)).reset(seed=0), lambda: TextWorld.prepare(1, files=str(path))):
        with pytest.raises(EpisodeError, match=rf"^{path} {message}"):
            played()


def test_a_game_that_begins_with_its_end_is_named(make: Make, tmp_path: Path) -> None:
    """The quest holds where the game begins: TextWorld says no end, and its game takes no command any more."""
    from textworld.generator import compile_game
    from textworld.generator.game import Event, Quest

    maker = textworld.GameMaker(options=textworld.GameOptions())
    room = maker.new_room("hall")
    maker.set_player(room)
    box = maker.new(type="c", name="box")
    room.add(box)
    maker.add_fact("open", box)
    maker.quests = [Quest(win_events=[Event(conditions={maker.new_fact("open", box)})])]
    options = textworld.GameOptions()
    options.path = str(tmp_path / "game.z8")
    compile_game(maker.build(), options)
    for played in (lambda: make(files=options.path).reset(seed=0), lambda: TextWorld.prepare(1, files=options.path)):
        with pytest.raises(EpisodeError, match=r"game\.json is a game that is over before the first command"):
            played()


def test_the_object_table_of_both_formats() -> None:
    """The Z-Machine Standards Document 1.1, 12.3: objects of 9 bytes up to version 3, of 14 from 4 on."""
    for version, entry, defaults, links in ((3, 9, 31, 3), (8, 14, 63, 6)):
        memory = np.zeros(1000, np.uint8)
        memory[0], memory[10], memory[11] = version, 0, 100
        start = 100 + 2 * defaults
        properties = start + 2 * entry
        for number in range(2):
            at = start + number * entry
            memory[at : at + entry - 2] = np.arange(entry - 2) + 10 * number
            memory[at + entry - 2], memory[at + entry - 1] = divmod(properties + 5 * number, 256)
        table = object_table(memory)
        assert table.entries.shape == (2, entry)
        assert table.links.tolist() == [
            list(range(entry - 2 - links, entry - 2)),
            list(range(entry + 8 - links, entry + 8)),
        ]


def test_the_map_shows_rooms_doors_and_the_player(make: Make) -> None:
    """Fault 11: TextWorld's own pictures need a browser."""
    environment = make(**SIMPLE, render_mode="ansi")
    assert environment.render() is None
    environment.reset(seed=0)
    text = environment.render()
    assert text is not None
    rows = text.splitlines()
    assert rows[2].startswith("[@ bedroom]--#")  # the door is locked
    assert rows[2].index("[kitchen]") < rows[2].index("+") < rows[2].index("[backyard]")
    assert rows[0].strip() == "[bathroom]"
    assert rows[4].split("]")[0].strip() == "[living room"
    way = walkthrough(environment)
    for command in way[: way.index("go east") + 1]:
        environment.step(command)
    text = environment.render()
    assert text is not None
    assert "[@ kitchen]" in text
    assert "[bedroom]---/" in text
    assert make(**SIMPLE).render() is None


def test_the_map_of_a_game_without_logic_is_an_error(tmp_path: Path) -> None:
    path = game_file(game_kind("simple"), "train", 0)
    assert ascii_map(world_map(path)).count("@") == 1
    shutil.copy(path, tmp_path)
    with pytest.raises(EpisodeError, match=r"game\.z8 has no map"):
        world_map(tmp_path / "game.z8")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kind": "coins"}, "no kind of game called 'coins'; the kinds are coin_collector, "),
        ({"level": 0}, "coin_collector: level is 0; it wants 1 to 300"),
        ({"level": 180}, "level 180 has 160 rooms"),
        ({"rooms": 2}, "coin_collector has no parameter rooms; it has level"),
        ({"level": "five"}, "level is 'five'; it wants a whole number"),
        ({"kind": "simple", "goal": "vague"}, "goal is 'vague'; it wants one of detailed, brief, none"),
        ({"kind": "cooking", "recipe": 2, "take": 3}, "take is 3; it wants 0 to 2"),
        ({"kind": "cooking", "go": 2}, "go is 2; it wants one of 1, 6, 9, 12"),
        ({"kind": "cooking", "open": 1}, "open is 1; it wants true or false"),
        ({"games": 0}, "games is 0; it wants a whole number of at least 1"),
        ({"held_out_games": True}, "held_out_games is True"),
        ({"split": "test"}, "split has 'test'; it wants train or held_out"),
        ({"parts": ("score",)}, "parts has 'score'; it wants feedback or "),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"files": "no/such.z8"}, "files names no/such.z8, which is not there"),
        ({"files": []}, "files is empty"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(EpisodeError) as error:
        TextWorld(**parameters)
    assert message in str(error.value)


def test_where_textworld_is_missing_the_first_reset_says_so(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(InstallationError, match=r"package textworld.*Linux and macOS on x86_64"):
        make(**COIN).reset(seed=0)
