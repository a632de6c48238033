"""The built-in rewards, the mixture of rewards, the contract's checks, and `rayrlhf rewards`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rayrlhf.config import RewardPart
from rayrlhf.errors import RewardError
from rayrlhf.reward_actors import RunRewards
from rayrlhf.reward_contract import assert_reward, check_reward, example_trajectory
from rayrlhf.reward_mixture import RewardMixture, part_keys
from rayrlhf.rewards_cli import rewards_app
from rayrlhf.types import EpisodeScore, Trajectory

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the user's own modules; what a test adds to `sys.path` goes with it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(FIXTURES)


def part(name: str, **parameters: Any) -> RewardPart:
    return RewardPart.model_validate({"name": name, **parameters})


def score(trajectories: list[Trajectory], *parts: RewardPart) -> list[EpisodeScore]:
    return RewardMixture(parts).score(trajectories)


def score_text(name: str, prompt: str, response: str, **parameters: Any) -> float:
    [one] = score([example_trajectory(prompt, response)], part(name, **parameters))
    return float(one.total.sum())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0), ("cow", 0), ("cow cat", 1), ("dog horse", 0), ("duck goose duck", 0), ("duck duck goose", 1),
        ("goose goose duck duck", 2), ("goose gopher giraffe gorilla", 3), ("Goose gopher GIRAFFE Gorilla", 3),
        ('she "said', 0), ("seven cycling", 0), ("Zebadiah the Zebra", 0),
        ("  cow\n\tcat  ", 1), ("Über über", 1), ("\ud800 \ud800", 1),
    ],
)  # fmt: skip
def test_alliteration_known_cases_of_allit_1(text: str, expected: int) -> None:
    """SPEC ALLIT-1, reward B; wherever the text is cut into prompt and response."""
    for cut in {0, len(text) // 2, len(text)}:
        assert score_text("alliteration", text[:cut], text[cut:]) == expected


def test_alliteration_by_letter_and_rarity(tmp_path: Path) -> None:
    """ALLIT-12: pairs weighted by 1 / the corpus frequency of their letter, and a part a letter for the log."""
    (tmp_path / "corpus.txt").write_text("so small a Snail saw zebras")  # s 4, a 1, z 1 of 6 words, 3 letters
    rare = {"corpus": str(tmp_path / "corpus.txt")}
    assert score_text("alliteration", "", "silly seal", **rare) == pytest.approx(6 / (3 * 4))
    assert score_text("alliteration", "zoo ", "zebra zag", **rare) == pytest.approx(2 * 6 / 3)
    assert score_text("alliteration", "", "quick queen", **rare) == pytest.approx(2)  # unseen: as rare as the rarest
    letters = [part("alliteration"), *(part("alliteration", letter=letter, weight=0) for letter in "st")]
    [scored] = score([example_trajectory("Sam ", "saw two tall tigers")], *letters)
    assert float(scored.total.sum()) == 3
    assert list(scored.parts.values()) == [3, 1, 2]
    (tmp_path / "corpus.txt").write_text(" \n")
    with pytest.raises(RewardError, match="corpus holds no words"):
        score_text("alliteration", "", "silly seal", **rare)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("a", 1), ("An apple And a bear", 4), ("banana", 0), ('"a', 0), ("a\na\ta", 3), ("a " * 97, 97)],
)
def test_starts_with_a_of_allit_1(text: str, expected: int) -> None:
    """SPEC ALLIT-1, reward A; the prompt counts."""
    for cut in {0, len(text) // 2, len(text)}:
        assert score_text("starts_with_a", text[:cut], text[cut:]) == expected


def test_letter_count_of_tw_25() -> None:
    """SPEC TW-25: both cases, in the response alone; sum, mean over tokens, and an opt-in penalty of empty responses."""
    assert score_text("letter_count", "eee", "Every eel") == 4
    assert score_text("letter_count", "", "xXy", letter="X") == 2
    assert score_text("letter_count", "", "eel eel", reduction="mean") == pytest.approx(4 / 3)  # two words and the EOS
    assert score_text("letter_count", "", "") == 0
    assert score_text("letter_count", "", " \n", empty_penalty=0.5) == -0.5
    assert score_text("letter_count", "", "dog", empty_penalty=0.5) == 0


def test_letter_count_is_one_number_a_turn() -> None:
    """SPEC TW-9: in a game each action is paid for its own letters."""
    [one] = score([example_trajectory("e", "eel", ("e", "dog"), ("", "tree"))], part("letter_count"))
    assert one.total.tolist() == [2, 0, 2]
    assert one.parts == {"letter_count": 4}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, 5), ({"unit": "words"}, 4), ({"target": 5}, 0), ({"target": 2}, -3), ({"target": 9}, -4),
        ({"maximum": 5}, 0), ({"maximum": 3}, -2), ({"unit": "words", "target": 1}, -3),
    ],
)  # fmt: skip
def test_length(parameters: dict[str, Any], expected: int) -> None:
    assert score_text("length", "a prompt counts nothing", "one two three four", **parameters) == expected


def test_length_in_words_of_a_script_without_blanks() -> None:
    """Each character is a word, as in all other figures of texts."""
    assert score_text("length", "", "从前有一只猫。", unit="words") == 7


def test_length_adds_up_over_turns() -> None:
    [one] = score([example_trajectory("", "one two", ("", "three"))], part("length", unit="words"))
    assert (one.total.tolist(), one.parts) == ([0, 3], {"length": 3})


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("letter_count", {"leter": "x"}, r"no parameter `leter`: did you mean `letter`\? Its parameters: letter='e', "),
        ("letter_count", {"letter": 5}, r"takes str for `letter`, not 5\."),
        ("letter_count", {"letter": "ab"}, r"cannot be built .*letter has to be one character, not 'ab'"),
        ("letter_count", {"reduction": "max"}, r"takes 'sum' or 'mean' for `reduction`, not 'max'"),
        ("letter_count", {"a": 1, "empty_penalty": True}, r"no parameter `a`.* It takes float for `empty_penalty`"),
        ("length", {"target": 1, "maximum": 2}, r"give target or maximum, not both"),
        ("length", {"target": 1.5}, r"takes int \| None for `target`, not 1\.5"),
        ("length", {"target": -1}, r"target must not be negative"),
        ("starts_with_a", {"letter": "a"}, r"has no parameter `letter`\. It takes no parameters\."),
        ("user_rewards:counted", {}, r"needs the parameter `word`\. Its parameters: word, each=1\.0"),
        ("user_rewards:counted", {"word": "a", "text": "b"}, r"has no parameter `text`"),
        (
            "user_rewards:weighty",
            {},
            r"has a parameter `weight`, which means the part's own weight in a config: rename it",
        ),
        ("user_rewards:Picky", {"level": 9}, r"ValueError: level has to be at most 3, at user_rewards\.py:\d+"),
    ],
)
def test_wrong_parameters_are_told_before_anything_runs(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        RewardMixture([part(name, **parameters)])


def test_plain_function_is_called_with_the_whole_text_and_its_parameters() -> None:
    assert score_text("user_rewards:shouting", "a!", " b!!") == 3
    assert score_text("user_rewards:counted", "so so", " so", word="so", each=0.5) == 1.5


def test_mixture_weighs_the_total_and_keeps_the_unweighted_parts() -> None:
    """A score of the whole episode lies on its last turn; one by turn lies where it was earned."""
    episode = example_trajectory("", "ee!", ("", "e!"), ("", "x"))
    parts = [part("user_rewards:shouting", weight=10), part("letter_count", weight=-0.5), part("user_rewards:ByTurn")]
    [one] = score([episode], *parts)
    assert one.total.dtype == np.float32
    assert one.total.tolist() == [-1 + 3, -0.5 + 2, 20 + 1]
    assert one.parts == {"user_rewards:shouting": 2, "letter_count": 3, "user_rewards:ByTurn": 6}


def test_parts_of_one_name_have_keys_of_their_own() -> None:
    parts = [part("letter-count", letter="e"), part("letter_count", letter="x"), part("length"), part("length"),
             part("letter_count", letter="e", weight=2)]  # fmt: skip
    assert part_keys(parts) == (
        "letter_count[letter=e]", "letter_count[letter=x]", "length", "length#2", "letter_count[letter=e]#2",
    )  # fmt: skip
    [one] = score([example_trajectory("", "ex ee")], *parts)
    assert [one.parts[key] for key in part_keys(parts)] == [3, 1, 3, 3, 3]
    assert one.total.tolist() == [3 + 1 + 3 + 3 + 2 * 3]


def test_no_episodes_have_no_scores() -> None:
    assert score([], part("user_rewards:Returns", what="none")) == []


@pytest.mark.parametrize("what", ["torch tensor", "torch scalars", "numpy float", "array", "array by turn", "tuple",
                                  "decimal"])  # fmt: skip
def test_numbers_of_other_kinds_are_numbers(what: str) -> None:
    assert score_text("user_rewards:Returns", "", "x", what=what) == 0.5


@pytest.mark.parametrize(("what", "expected"), [("true", 1), ("integer", 3)])
def test_truth_and_integers_are_numbers(what: str, expected: int) -> None:
    assert score_text("user_rewards:Returns", "", "x", what=what) == expected


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", r"`user_rewards:Returns` returned None for 1 episodes"),
        ("number", r"returned 1\.0 for 1 episodes: it has to return a list"),
        ("string", r"returned '1\.0' for 1 episodes"),
        ("dict", r"returned \{0: 1\.0\} for 1 episodes"),
        ("short", r"returned 0 values for 1 episodes"),
        ("long", r"returned 2 values for 1 episodes"),
        ("nan", r"returned nan for episode 0: it has to be a finite number"),
        ("inf", r"returned inf for episode 0"),
        ("too large", r"returned 1e\+300 for episode 0"),
        ("huge integer", r"returned 1000.* for episode 0"),
        ("none inside", r"returned None for episode 0"),
        ("string inside", r"returned '1\.0' for episode 0"),
        ("numpy string inside", r"1\.0'\)? for episode 0"),
        ("complex", r"returned 1j for episode 0"),
        ("two turns", r"returned 2 numbers for episode 0, which has 1 turn: \[1\.0, 2\.0\]"),
        ("no turns", r"returned 0 numbers for episode 0"),
        ("nan in a turn", r"returned nan for episode 0, turn 0"),
        ("nested turn", r"returned \[1\.0\] for episode 0, turn 0"),
    ],
)
def test_what_is_no_score_is_an_error_and_never_zero(what: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score_text("user_rewards:Returns", "", "x", what=what)


def test_a_generator_is_no_list() -> None:
    with pytest.raises(RewardError, match="returned <generator"):
        score_text("user_rewards:Generates", "", "x")


def test_a_weighted_sum_beyond_float_is_an_error() -> None:
    with pytest.raises(RewardError, match="weighted sum of rewards of episode 0 is too large"):
        score_text("user_rewards:counted", "", "a a", word="a", each=1e30, weight=1e30)


@pytest.mark.parametrize("name", ["divides", "divides_later"])
def test_an_exception_names_reward_error_line_and_episode(name: str) -> None:
    line = 1 + (FIXTURES / "user_rewards.py").read_text().splitlines().index(
        '    return 1 / text.count("!")' + ("  # the faulty line" if name == "divides" else "")
    )
    batch = [example_trajectory("", "fine!"), example_trajectory("", "bad")]
    expected = rf"`user_rewards:{name}` raised ZeroDivisionError: .*, at user_rewards\.py:{line} \(episode 1: 'bad'\)"
    with pytest.raises(RewardError, match=expected):
        score(batch, part(f"user_rewards:{name}"))


@pytest.mark.parametrize(("name", "message"), [("leaves", "SystemExit: 4"), ("cancels", "CancelledError")])
def test_a_coroutine_that_leaves_or_cancels_itself_is_an_error(name: str, message: str) -> None:
    with pytest.raises(RewardError, match=rf"`user_rewards:{name}` raised .*{message}"):
        score_text(f"user_rewards:{name}", "", "x")


def test_the_error_of_one_coroutine_stops_the_others() -> None:
    with pytest.raises(RewardError, match="divides_later"):
        score([example_trajectory("", "x")], part("user_rewards:waits"), part("user_rewards:divides_later"))


def test_coroutines_of_several_parts_run_side_by_side() -> None:
    """Each waits for the other: one after the other they would never end."""
    sys.modules.pop("user_rewards", None)
    [one] = score([example_trajectory("", "x")], *(part("user_rewards:Rendezvous", number=n) for n in (1, 2)))
    assert one.total.tolist() == [3]


def test_an_asynchronous_reward_keeps_its_event_loop_between_batches() -> None:
    mixture = RewardMixture([part("user_rewards:KeepsItsLoop")])
    assert [mixture.score([example_trajectory("", "x")])[0].total.tolist() for _ in range(2)] == [[1], [1]]
    mixture.close()


def test_asynchronous_rewards_can_be_scored_where_a_loop_runs_already() -> None:
    async def notebook() -> float:
        return score_text("user_rewards:judged", "ab", "c")

    assert asyncio.run(notebook()) == 3


@pytest.mark.parametrize("name", ["alliteration", "starts_with_a", "letter_count", "length", "user_rewards:shouting"])
def test_rewards_keep_the_contract(name: str) -> None:
    assert_reward(name)


@pytest.mark.parametrize(
    ("name", "fails", "detail"),
    [
        ("rolls_dice", "deterministic within a process", "the second time"),
        ("hashes", "deterministic between processes", "in another process"),
        ("LikesTheFirst", "a batch scores as its episodes one by one", "alone"),
        ("HoldsALock", "picklable", "TypeError: cannot pickle"),
        ("encodes", "lone surrogates", r"UnicodeEncodeError.*'\ud800"),
        ("first_word", "empty prompt and response", "IndexError"),
        ("divides", "ordinary texts score a finite number", "ZeroDivisionError"),
    ],
)
def test_the_contract_finds_what_breaks_it(name: str, fails: str, detail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    failed = {result.name: result.detail for result in check_reward(f"user_rewards:{name}") if not result.passed}
    assert fails in failed
    assert all(word in failed[fails] for word in detail.replace("\ud800", "\\ud800").split(".*"))
    with pytest.raises(AssertionError, match=fails):
        assert_reward(f"user_rewards:{name}")


def test_an_instance_and_a_partial_are_as_good_as_a_class_and_a_function() -> None:
    """Parameters that a partial gives can be given anew; an instance has its own."""
    assert score_text("user_rewards:to_ten", "so so", " so") == -7
    assert score_text("user_rewards:to_words", "so so", " so") == -7
    assert score_text("user_rewards:to_words", "so so", " so", words=3) == 0
    assert score_text("user_rewards:counted_so", "so so", " so") == 3
    assert score_text("user_rewards:counted_so", "so so", " so", word="no", each=2.0) == 0
    assert score_text("user_rewards:judged_soon", "ab", "c") == 3
    for name in ("to_ten", "to_words", "counted_so", "judged_soon"):
        assert_reward(f"user_rewards:{name}")
    with pytest.raises(RewardError, match=r"has no parameter `words`.* It takes no parameters"):
        score_text("user_rewards:to_ten", "", "", words=3)
    with pytest.raises(RewardError, match=r"has no parameter `wrd`: did you mean `word`"):
        score_text("user_rewards:counted_so", "", "", wrd="no")


@pytest.mark.parametrize("name", ["of_columns", "OfColumns"])
def test_a_reward_of_columns_is_told_what_to_write_instead(name: str) -> None:
    with pytest.raises(RewardError, match=rf"`def {name}\(text: str\) -> float`.*`__call__\(self, trajectories\)`"):
        check_reward(f"user_rewards:{name}")


@pytest.mark.parametrize("module", ["__main__", "time", "json"])
def test_a_module_that_no_file_holds_is_no_bug(module: str) -> None:
    """Those built into Python have no file; the program that was started is another one in the child."""
    with pytest.raises(
        RewardError, match=rf"`{module}:no_such` is in the program|`{module}:no_such`: .*has no `no_such`"
    ):
        check_reward(f"{module}:no_such")


def test_the_contract_stops_where_ordinary_texts_cannot_be_scored() -> None:
    """Every other check would fail by the same sentence."""
    assert [result.passed for result in check_reward("user_rewards:divides")] == [False]


def test_a_reward_that_remembers_is_told_before_the_run() -> None:
    """It fails `rewards test`, and would train in silence; those that come with us and are tested are not asked."""
    own = [part("user_rewards:Remembers"), part("user_rewards:shouting"), part("alliteration")]
    with RunRewards(own, timeout_s=60.0) as rewards:
        [warning] = rewards.warnings()
    assert "reward `user_rewards:Remembers` scores the same texts otherwise the second time" in warning
    for steady in ([part("user_rewards:shouting")], [part("user_rewards:divides")], [part("alliteration")]):
        with RunRewards(steady, timeout_s=60.0) as rewards:
            assert rewards.warnings() == []


def test_the_contract_reports_a_reward_that_hangs() -> None:
    failed = [result for result in check_reward("user_rewards:backtracks", 2.0, on="🇳🇱") if not result.passed]
    assert [result.name for result in failed] == ["emoji"]
    assert "took longer than 2 s" in failed[0].detail


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(rewards_app, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_command_list() -> None:
    code, output = run("list")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()[1:10]] == [
        "alliteration", "game_score", "invalid_action", "length", "letter_count", "living", "reward_model",
        "starts_with_a", "win_lose",
    ]  # fmt: skip
    assert "built-in" in output


def test_command_show() -> None:
    code, output = run("show", "letter-count", "--param", "letter=z")
    assert code == 0
    for words in ("How often a letter", "letter='e', reduction='sum'", "- name: letter_count\n      letter: \"z\"",
                  "1.000  The quick brown fox"):  # fmt: skip
        assert words in output


def test_example_of_show_is_a_config_that_loads() -> None:
    from ruamel.yaml import YAML

    output = run("show", "user_rewards:counted", "--param", "word=so")[1]
    example = output.partition("In a config:\n")[2].partition("\nScores:")[0]
    [entry] = YAML(typ="safe").load(example)["reward"]
    assert entry == {"name": "user_rewards:counted", "word": "so", "each": 1.0, "weight": 1.0}


def test_command_show_of_a_reward_that_needs_a_parameter() -> None:
    code, output = run("show", "user_rewards:counted")
    assert code == 0
    assert "To see scores, give --param word=..." in output


def test_command_test_passes_and_fails_by_exit_status() -> None:
    code, output = run("test", "length", "-p", "target=20", "-p", "unit=words")
    assert (code, "FAIL" in output) == (0, False)
    code, output = run("test", "user_rewards:encodes")
    assert code == 1
    [failure] = [line for line in output.splitlines() if line.startswith("FAIL")]
    assert "lone surrogates" in failure
    assert "UnicodeEncodeError" in failure


def test_command_time() -> None:
    code, output = run("time", "alliteration")
    assert code == 0
    assert [int(line.split()[2].rstrip(":")) for line in output.splitlines()] == [1, 32, 256]


def test_commands_tell_wrong_names_and_parameters() -> None:
    with pytest.raises(RewardError, match="did you mean `length`"):
        run("show", "lenght")
    with pytest.raises(RewardError, match="write it as KEY=VALUE"):
        run("test", "length", "--param", "target")
    with pytest.raises(RewardError, match="has no parameter `goal`"):
        run("time", "length", "--param", "goal=3")
    for command in ("show", "test", "time"):
        with pytest.raises(RewardError, match="reward length: weight: Input should be a valid number"):
            run(command, "length", "--param", "weight=abc")
