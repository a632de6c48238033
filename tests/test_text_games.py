"""Making TextWorld games and keeping them; what is cut from a game's text, and what of a player's reaches a game."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import textworld
import typer
from textworld.generator import QuestGenerationError
from typer.testing import CliRunner

from rayrlhf.envs.textworld import TextWorld
from rayrlhf.errors import EpisodeError
from rayrlhf.games import making as text_games
from rayrlhf.games.cli import make_games_command
from rayrlhf.games.kinds import KINDS, game_kind
from rayrlhf.games.making import FIRST_SEED, MOST_GAMES, cache_folder, game_file, game_path, is_made, make_games
from rayrlhf.games.text import RefusedCommandError, asks, cleaned, command, observation, without

SMALL = game_kind("custom", rooms=1, objects=2, quest_length=1)

pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")  # TextWorld hides it, pytest shows it


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYRLHF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def game(_cache: None) -> Path:
    return game_file(SMALL, "train", 0)


def stamps(path: Path) -> list[int]:
    return [file.stat().st_mtime_ns for file in sorted(path.parent.iterdir())]


# Games on disk


def test_a_game_is_made_once(game: Path) -> None:
    before = stamps(game)
    counted: list[int] = []
    assert make_games(SMALL, "train", 1, 2, counted.append) == [game]
    assert game_file(SMALL, "train", 0) == game
    assert stamps(game) == before
    assert sum(counted) == 1
    assert sorted(file.name for file in game.parent.iterdir()) == ["game.json", "game.sha256", "game.z8"]


def test_a_made_game_says_in_its_path_all_that_it_follows_from(game: Path) -> None:
    assert game.is_relative_to(cache_folder() / "games" / f"textworld-{textworld.__version__}-1")
    assert game.parent.name == "1000000"
    kinds = {name: game_kind(name) for name in KINDS} | {"level 4": game_kind("coin_collector", level=4)}
    folders = [text_games.games_folder(kind) for kind in kinds.values()]
    assert len(set(folders)) == len(kinds)
    assert {folder.name.split("-")[0] for folder in folders} == set(KINDS)  # no name begins with tw-: fault 1


def test_a_damaged_game_is_made_anew(game: Path) -> None:
    whole = {file: file.read_bytes() for file in game.parent.iterdir()}
    damages = {
        "cut": (game, whole[game][:1000]),
        "changed": (game.with_suffix(".json"), whole[game.with_suffix(".json")].replace(b"take", b"drop", 1)),
        "other": (game.with_suffix(".sha256"), b""),
    }
    for file, content in damages.values():
        file.write_bytes(content)
        assert not is_made(game)
        file.write_bytes(whole[file])
        assert is_made(game)
    game.write_bytes(whole[game][:1000])
    game.with_suffix(".sha256").unlink()
    assert game_file(SMALL, "train", 0) == game
    assert {
        file: file.read_bytes() for file in game.parent.iterdir()
    } == whole  # byte for byte: equal seeds, equal games
    assert [folder.name for folder in game.parent.parent.iterdir() if folder.name.startswith(".")] == []


def test_of_two_processes_that_make_the_same_game_the_first_wins(game: Path) -> None:
    before = stamps(game)
    text_games._make(SMALL, FIRST_SEED["train"], game)  # as one does that looked before the other was done
    assert stamps(game) == before


def test_several_processes_make_games_side_by_side() -> None:
    counted: list[int] = []
    paths = make_games(SMALL, "held_out", 2, 2, counted.append)
    assert [path.parent.name for path in paths] == ["2000000", "2000001"]
    assert all(map(is_made, paths))
    assert sum(counted) == 2


def test_train_and_held_out_games_have_no_seed_in_common() -> None:
    """TextWorld draws its four seeds from ours; retries are counted in."""
    ours = {
        split: {
            first + number + attempt * text_games._RETRY_STRIDE for number in (0, MOST_GAMES - 1) for attempt in (0, 19)
        }
        for split, first in FIRST_SEED.items()
    }
    low, high = min(ours["train"]), max(ours["train"])
    assert high < 2**32
    assert all(seed % text_games._RETRY_STRIDE // MOST_GAMES == 1 for seed in ours["train"])
    assert all(seed % text_games._RETRY_STRIDE // MOST_GAMES == 2 for seed in ours["held_out"])
    assert low == 1_000_000
    drawn = {split: {theirs(first + number) for number in range(300)} for split, first in FIRST_SEED.items()}
    assert len(drawn["train"] | drawn["held_out"]) == 600


def theirs(seed: int) -> tuple[int, ...]:
    options = textworld.GameOptions()
    options.seeds = seed
    return tuple(options.seeds.values())


@dataclass(frozen=True)
class Picky:
    """A kind of game that TextWorld finds for few seeds."""

    least_seed: int

    name: ClassVar[str] = "picky"

    def generate(self, options: Any) -> Any:
        if options.seeds["map"] < self.least_seed:
            raise QuestGenerationError("no quest of this length")
        return dict(options.seeds)


def test_a_seed_without_a_game_is_replaced_always_alike() -> None:
    seed = next(seed for seed in range(100) if theirs(seed)[0] < 40_000)
    attempts = [theirs(seed + attempt * text_games._RETRY_STRIDE) for attempt in range(20)]
    replacement = next(seeds for seeds in attempts[1:] if seeds[0] >= 40_000)
    for _ in range(2):
        assert tuple(text_games._generate(Picky(40_000), seed)[0].values()) == replacement  # type: ignore[arg-type]
    with pytest.raises(EpisodeError, match=r'no picky game with {"least_seed": 70000}.*no quest of this length'):
        text_games._generate(Picky(70_000), seed)  # type: ignore[arg-type]


def test_a_game_beyond_the_last_seed_and_a_cache_that_moves_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (-1, MOST_GAMES):
        with pytest.raises(EpisodeError, match="numbered 0 to 999999"):
            game_path(SMALL, "train", number)
    monkeypatch.setenv("RAYRLHF_CACHE", "cache")
    with pytest.raises(EpisodeError, match="RAYRLHF_CACHE is 'cache': give the folder's whole path"):
        game_path(SMALL, "train", 0)


@pytest.mark.parametrize(("level", "rooms", "way"), [(5, 5, 5), (100, 100, 100), (105, 10, 5), (233, 99, 33)])
def test_levels_of_the_coin_collector(level: int, rooms: int, way: int) -> None:
    kind = game_kind("coin_collector", level=level)
    assert (kind.rooms, kind.quest_length) == (rooms, way)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["custom", "treasure_hunter"])
def test_other_kinds_make_games_that_their_walkthrough_wins(name: str) -> None:
    environment = TextWorld(name, games=1, held_out_games=1)
    _, info = environment.reset(seed=0)
    for step in info["solution"]:
        info = environment.step(step)[4]
    assert info["won"]
    environment.close()


def test_prepare_and_the_command_make_all_games_that_are_missing(game: Path) -> None:
    TextWorld.prepare(1, kind="custom", rooms=1, objects=2, quest_length=1, games=1, held_out_games=2)
    before = stamps(game)
    app = typer.Typer()
    app.command()(make_games_command)
    options = ["--rooms", "1", "--objects", "2", "--quest-length", "1", "--games", "1", "--held-out", "2"]
    ran = CliRunner().invoke(app, ["custom", *options, "--processes", "1"], catch_exceptions=False)
    assert ran.exit_code == 0
    assert "1 games to train on and 2 held-out ones are in" in ran.output
    assert game.parent.parent.name in ran.output
    assert stamps(game) == before
    with pytest.raises(EpisodeError, match="custom has no parameter level"):
        CliRunner().invoke(app, ["custom", "--level", "3"], catch_exceptions=False)


def test_every_kind_has_its_parameters_in_the_environment_and_the_command() -> None:
    wanted = {field.name for kind in KINDS.values() for field in fields(kind)}
    for callable_ in (TextWorld.__init__, make_games_command):
        assert wanted <= set(inspect.signature(callable_).parameters)


# Text to and from a game


@pytest.mark.parametrize(
    ("text", "played"),
    [
        ("go north", "go north"),
        ("  Go   NORTH!\nand then east", "go north"),
        ('"take the king-size bed."', "take the king-size bed"),
        ("take Henderson's style key", "take henderson's style key"),
        ("\n\nlook", "look"),
        ("open type 2 box?", "open type 2 box"),
        ("savour the meal", "savour the meal"),
        ("strengthen", "strengthen"),
    ],
)
def test_text_as_a_command(text: str, played: str) -> None:
    """TW-4: cleaned to letters, digits, blanks, ' and -; the first line counts."""
    assert command(text) == played


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "You have to say what to do."),
        (" \n . ", "You have to say what to do."),
        ("go east. take coin", "One command at a time, please."),
        ("north, south", "One command at a time, please."),
        ("a;b", "One command at a time, please."),
        ("look then take coin", "One command at a time, please."),
        ("\\x", "That is no command of this game."),
        ("look \\", "That is no command of this game."),
        ("look\0", "That is no command of this game."),
        ("Save", "That is no command of this game."),
        ("restart game", "That is no command of this game."),
        ("tw-trace-actions", "That is no command of this game."),
        ("g", "That is no command of this game."),
        ("café", "That is no command of this game."),
        ("<description>", "That is no command of this game."),
        ("[looking - succeeded]", "That is no command of this game."),
        ("take coin " * 11, "That is no command of this game."),
    ],
)
def test_text_that_reaches_no_game(text: str, told: str) -> None:
    """Faults 2 to 4 of TextWorld: it would hang, chain, save, or print its own tags."""
    with pytest.raises(RefusedCommandError) as refusal:
        command(text)
    assert str(refusal.value) == told


def test_pronouns_are_for_games_whose_states_have_no_key() -> None:
    assert command("take it") == "take it"
    with pytest.raises(RefusedCommandError, match="by its name"):
        command("take it", pronouns=False)
    assert command("examine item", pronouns=False) == "examine item"


BANNER = """

                    ________  ________
                   |        \\|        \\
                    \\$$$$$$$$| $$$$$$$$
                       \\$$    \\$$$$$$$$

"""
STATUS = "\n\n>" + 120 * " " + "-= Vault =-0/21"
END = "*** The End ***\n\nYou scored 1 out of a possible 1, in 26 turns.\n\n\n"
ASKED = "Would you like to RESTART, RESTORE a saved game, QUIT or UNDO the last command?"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (
            f"{BANNER}Welcome!\n\n-= Vault =-\nA vault.   \n\n\nAn exit.\n\n{STATUS}",
            "Welcome!\n-= Vault =-\nA vault.\nAn exit.",
        ),
        (f"\nYou have -= gold =- here.{STATUS}", "You have -= gold =- here."),
        ("A sign: 3 > 2\nYes.\n>  ", "A sign: 3 > 2\nYes."),
        (f"{END}{ASKED}{STATUS}", "*** The End ***\nYou scored 1 out of a possible 1."),
        ("You scored 0, in 1 turn.", "You scored 0."),
        ("", ""),
    ],
)
def test_text_of_a_game_cleaned(raw: str, shown: str) -> None:
    """TW-7 and fault 6: banner, double newlines and the status bar's move counter are stripped."""
    assert cleaned(raw) == shown


def test_questions_are_told_from_texts_with_a_question_in_them() -> None:
    assert asks(f"\nWhat do you want to open?{STATUS}")
    assert asks("Which do you mean, the red key or the blue key?\n\n>")
    assert not asks(f"You need an exit? Try going south.{STATUS}")


def test_an_observation_has_a_line_for_each_part_that_says_something() -> None:
    """TW-7: an empty inventory is omitted."""
    assert observation(["Hello.\n\n", "You are carrying nothing.", "", "Find the coin."]) == "Hello.\nFind the coin."


def test_the_objective_is_found_though_inform_changes_its_apostrophes() -> None:
    """Inform prints `you"re` for some `you're`."""
    assert (
        without("If so, you're the winner! (At last?)", 'Hello. If so, you"re the winner! (At last?) Go.')
        == "Hello.  Go."
    )
    assert without("", "Hello.") == "Hello."
