"""The agent's text: formats, memory, limits, chat templates, and that no response is ever encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rayrlhf.agent_text import GamePrompter, PlainPrompter, make_prompter
from rayrlhf.config import AgentConfig
from rayrlhf.errors import ConfigError, ModelError, PromptError
from rayrlhf.prompt_formats import cleaned, command_list, tidied
from rayrlhf.prompts import Prompt
from rayrlhf.types import GameState, IntArray, Turn

FORMATS = ("observation", "you", "question", "sentence", "actions", "transcript")
COMMANDS = ("examine coin", "go east", "go north", "take coin")
STATE = GameState(commands=COMMANDS, objective="Find the coin.")
ROOM = (
    "\n\n\n                    ________  ________  \n                   |        \\|        \\|  \\ \n"
    "                    \\$$$$$$$$| $$$$$$$$| $$ \n\n-= Cookhouse =-\nYou are in a cookhouse.  \n\n\n\n"
    "There is an exit.\n\nYou are carrying nothing.\n\n\n\n>            -= Cookhouse =-0/2"
)
CLEAN = "You are in a cookhouse.\nThere is an exit."
CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def chat_tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    loaded = AutoTokenizer.from_pretrained(tiny_model)
    loaded.chat_template = CHATML
    return loaded


def game_prompter(tokenizer: PreTrainedTokenizerBase, room: int = 2000, **agent: object) -> GamePrompter:
    """`room`: tokens of the longest prompt."""
    prompter = make_prompter(AgentConfig.model_validate(agent), tokenizer, (), room + 20, 20)
    assert isinstance(prompter, GamePrompter)
    return prompter


def turn_of(
    prompter: GamePrompter, turns: Sequence[Turn], observation: str, response: Sequence[int], state: GameState = STATE
) -> Turn:
    ids = np.array(response, np.int64)
    none = np.zeros(0, np.float32)
    return Turn(
        observation=observation, action=prompter.decode(ids), prompt_ids=prompter.prompt(turns, observation, state),
        response_ids=ids, logprobs=none, filtered_logprobs=none, reference_logprobs=none, prompt_logprobs=none,
        prompt_reference_logprobs=none, reward=0.0, finish="eos", before=state,
    )  # fmt: skip


def played(prompter: GamePrompter, *rounds: tuple[str, str]) -> list[Turn]:
    """The turns of a game: (observation, command) each."""
    turns: list[Turn] = []
    for observation, command in rounds:
        turns.append(turn_of(prompter, turns, observation, prompter.command_ids(command).tolist()))
    return turns


def odd_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A spelling of the text, a token a byte, that the tokenizer would not choose itself."""
    ids = [i for letter in text for i in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    assert ids != tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def contains(ids: IntArray, part: Sequence[int]) -> bool:
    rows = np.lib.stride_tricks.sliding_window_view(ids, len(part))
    return bool((rows == np.asarray(part)).all(1).any())


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("observation", ROOM),
        ("you", f"Find the coin.\n{CLEAN}\nYour possible actions are go east, go north, or take coin.\nYou"),
        (
            "question",
            f"Find the coin.\n{CLEAN}\nYour possible actions are go east, go north, or take coin. What do you do?",
        ),
        (
            "sentence",
            f"Find the coin.\n{CLEAN}\nYour possible actions are go east, go north, or take coin."
            " You choose the action to",
        ),
        ("actions", f"1 -\n2 -\n{CLEAN}\n>"),
        ("transcript", f"-= Cookhouse =-\n{CLEAN}\nYou are carrying nothing.\n>"),
    ],
)
def test_formats(tokenizer: PreTrainedTokenizerBase, layout: str, expected: str) -> None:
    """TW-7: the formats letter by letter: banner, headline, double newlines and an empty inventory are gone, commands
    that examine are not listed, the objective stands in front."""
    prompter = game_prompter(tokenizer, prompt=layout, memory_turns=2)
    ids = prompter.prompt([], ROOM, STATE)
    assert tokenizer.decode(ids) == expected
    assert ids.dtype == np.int64


@pytest.mark.parametrize("layout", ["you", "question", "sentence", "actions", "transcript"])
def test_an_objective_that_the_observation_has_stands_once(tokenizer: PreTrainedTokenizerBase, layout: str) -> None:
    """TW-7: it is put in front only if absent."""
    prompter = game_prompter(tokenizer, prompt=layout, memory_turns=2)
    observation = f"{CLEAN}\n\nFind the coin.\n"
    turns = played(prompter, (observation, "go east"), (observation, "go north"))
    text = tokenizer.decode(prompter.prompt(turns, observation, STATE))
    assert text.count("Find the coin.") == 1
    assert text.count(CLEAN) == {"actions": 1, "transcript": 3}.get(layout, 3)


def test_command_list() -> None:
    """TW-7 (c)."""
    assert command_list(["a", "b", "c"]) == "Your possible actions are a, b, or c."
    assert command_list(["a", "examine b", "c"]) == "Your possible actions are a or c."
    assert command_list(["examine a", "examiner b"]) == "Your possible action is examiner b."
    assert command_list([]) == command_list(["examine a"]) == ""


@pytest.mark.parametrize(
    ("observation", "tidy", "clean"),
    [
        ("", "", ""),
        (" \n\n ", "", ""),
        ("You are carrying nothing.", "You are carrying nothing.", "You are carrying nothing."),
        ("You are carrying: a key.", "You are carrying: a key.", "You are carrying: a key."),
        ("a  \n \n b", "a\nb", "a\nb"),
        ("Taken.\n\n>    -= Dish-Pit =-12/30", "Taken.", "Taken."),
        ("-= A =-\nfirst\n-= B =-\nsecond", "-= A =-\nfirst\n-= B =-\nsecond", "first\nsecond"),
        ("-= A =-", "-= A =-", ""),
        ("It costs $$ or more <now> -> go!", "It costs $$ or more <now> -> go!", "It costs $$ or more <now> -> go!"),
        ("---\n🙂 !", "---\n🙂 !", "---\n🙂 !"),
    ],
)
def test_cleaning(observation: str, tidy: str, clean: str) -> None:
    """TW-7: what is stripped, and that nothing else is."""
    assert tidied(observation) == tidy
    assert cleaned(observation) == clean


def test_memory_of_the_last_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    """TW-6: the last N states and actions, in order, without their lists of commands; no turn of another episode."""
    prompter = game_prompter(tokenizer, prompt="sentence", memory_turns=2)
    turns = played(prompter, ("One.", "go east"), ("Two.", "go north"), ("Three.", "take coin"))
    commands = "Your possible actions are go east, go north, or take coin."
    cue = " You choose the action to"
    assert tokenizer.decode(prompter.prompt(turns, "Four.", STATE)) == (
        f"Two.{cue} go north\nThree.{cue} take coin\nFind the coin.\nFour.\n{commands}{cue}"
    )
    assert tokenizer.decode(prompter.prompt([], "Four.", STATE)) == f"Find the coin.\nFour.\n{commands}{cue}"


def test_the_oldest_turns_are_dropped_first(tokenizer: PreTrainedTokenizerBase) -> None:
    """TW-6: a budget of one token less than three turns take leaves two, and one of exactly three leaves three."""
    for layout in ("observation", "actions"):
        wide = game_prompter(tokenizer, prompt=layout, memory_turns=3)
        turns = played(wide, ("One.", "go east"), ("Two.", "go north"), ("Three.", "take coin"))
        whole = wide.prompt(turns, "Four.", STATE)
        exact = game_prompter(tokenizer, room=len(whole), prompt=layout, memory_turns=3)
        np.testing.assert_array_equal(exact.prompt(turns, "Four.", STATE), whole)
        less = game_prompter(tokenizer, room=len(whole) - 1, prompt=layout, memory_turns=3)
        text = tokenizer.decode(less.prompt(turns, "Four.", STATE))
        assert "go east" not in text
        assert "go north" in text
        assert "take coin" in text
        assert (exact.cut, less.cut) == (0, 0)


def test_actions_are_numbered_newest_first(tokenizer: PreTrainedTokenizerBase) -> None:
    """TW-6: one line for each of the last N actions, in the same places whether taken or not."""
    prompter = game_prompter(tokenizer, prompt="actions", memory_turns=3)
    turns = played(prompter, ("One.", "go east"), ("Two.", "go north"))
    assert tokenizer.decode(prompter.prompt(turns, "Three.", STATE)) == "1 go north\n2 go east\n3 -\nThree.\n>"
    seen = f"{STATE.objective} Three."
    assert tokenizer.decode(prompter.prompt([], seen, STATE)) == "1 -\n2 -\n3 -\nFind the coin.\nThree.\n>"


def test_a_too_long_observation_loses_its_beginning_and_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    """TW-6: the cue and the commands stay, the end of the observation stays, and nothing happens silently."""
    for layout in FORMATS:
        wide = game_prompter(tokenizer, prompt=layout)
        turns = played(wide, ("One.", "go east"))
        narrow = game_prompter(tokenizer, room=60, prompt=layout, memory_turns=1)
        observation = "A long tale. " * 50 + "The end."
        assert narrow.cut == 0
        ids = narrow.prompt(turns, observation, STATE)
        assert (len(ids), narrow.cut) == (60, 1)
        np.testing.assert_array_equal(ids, wide.prompt([], observation, STATE)[-60:])
        narrow.prompt(turns, "Short.", GameState())
        assert narrow.cut == 1


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_transcript_only_grows(tiny_model: Path, template: str | None) -> None:
    """TW-6: each prompt is the last one, the response to it id by id, and more; an unclosed response too."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    prompter = game_prompter(tokenizer, prompt="transcript")
    odd = odd_ids(tokenizer, " the cat")
    turns: list[Turn] = []
    for observation, response in [
        ("One.", prompter.command_ids("go east").tolist()), ("", odd), ("Three.", [*odd, tokenizer.eos_token_id]),
        ("Four.", [tokenizer.eos_token_id]),
    ]:  # fmt: skip
        turns.append(turn_of(prompter, turns, observation, response))
    ids = prompter.prompt(turns, "Five.", STATE)
    for turn in turns:
        start = np.concatenate([turn.prompt_ids, turn.response_ids])
        np.testing.assert_array_equal(ids[: len(start)], start)
        assert len(ids) > len(start)
    for observation in ("One.", "Three.", "Four.", "Five."):
        assert tokenizer.decode(ids).count(observation) == 1


def test_a_long_transcript_goes_on_from_its_newest_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    """TW-6: over the limit it starts again at half of it, at a turn's beginning, then grows for several turns."""
    prompter = game_prompter(tokenizer, room=120, prompt="transcript")
    turns: list[Turn] = []
    grew = []
    for number in range(60):
        turns.append(turn_of(prompter, turns, f"Room {number}.", prompter.command_ids("go east").tolist()))
        ids = turns[-1].prompt_ids
        assert len(ids) <= 120
        if number:
            before = np.concatenate([turns[-2].prompt_ids, turns[-2].response_ids])
            grew.append(len(ids) > len(before) and bool((ids[: len(before)] == before).all()))
            assert tokenizer.decode(ids).startswith("Room ")
            assert f"Room {number - 1}." in tokenizer.decode(ids)
            assert len(ids) <= 60 or grew[-1]
    assert 0 < grew.count(False) <= len(grew) // 3
    assert prompter.cut == 0


@pytest.mark.parametrize("layout", FORMATS)
def test_responses_stay_as_they_were_written(tokenizer: PreTrainedTokenizerBase, layout: str) -> None:
    """TW-6, token in, token out: an unusual spelling of a response is in the next prompt id by id."""
    prompter = game_prompter(tokenizer, prompt=layout, memory_turns=1)
    odd = odd_ids(tokenizer, " the cat")
    turns = [turn_of(prompter, [], "One.", [*odd, tokenizer.eos_token_id])]
    ids = prompter.prompt(turns, "Two.", STATE)
    assert contains(ids, odd)
    assert (tokenizer.eos_token_id in ids) == (layout == "transcript")


@pytest.mark.parametrize("layout", FORMATS)
def test_chat_templates(chat_tokenizer: PreTrainedTokenizerBase, layout: str) -> None:
    """TW-7: observations are user messages, responses assistant messages, id by id, as the template would render them;
    the generation prompt is at the end."""
    prompter = game_prompter(chat_tokenizer, prompt=layout, memory_turns=1)
    odd = odd_ids(chat_tokenizer, "the cat")
    turns = [turn_of(prompter, [], "One.", [*odd, chat_tokenizer.eos_token_id])]
    ids = prompter.prompt(turns, "Two.", GameState())
    assert contains(ids, odd)
    cue = {"you": "\nYou", "question": " What do you do?", "sentence": " You choose the action to"}.get(layout, "")
    messages = [{"role": "user", "content": f"One.{cue}"}, {"role": "assistant", "content": "the cat"}]
    if layout == "actions":
        messages = [{"role": "user", "content": "1 the cat\nTwo."}]
    elif layout == "transcript":
        messages.append({"role": "user", "content": "Two."})
    else:
        messages.append({"role": "user", "content": f"Two.{cue}"})
    rendered = chat_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat_tokenizer.decode(ids) == rendered
    never = game_prompter(chat_tokenizer, prompt=layout, chat_template="never")
    assert "<|start|>" not in chat_tokenizer.decode(never.prompt([], "One.", STATE))
    assert chat_tokenizer.decode(prompter.command_ids("go east")) == "go east<|endoftext|>"


def test_a_chat_template_that_cannot_be_used_is_named(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    for template, message in [
        ("{{ raise_exception('no games') }}", "refuses a game: no games"),
        ("{{ messages[0].content | upper }}", "does not show every message"),
    ]:
        chat_tokenizer.chat_template = template
        with pytest.raises(ModelError, match=message):
            game_prompter(chat_tokenizer, prompt="question")


def test_commands(tokenizer: PreTrainedTokenizerBase) -> None:
    """TW-7: a command is its own tokens after a space, and the EOS; decoded it is the command again."""
    prompter = game_prompter(tokenizer, prompt="transcript")
    for command in ("go north", "take the big blue balloon", "x"):
        ids = prompter.command_ids(command)
        alone = tokenizer(f" {command}", add_special_tokens=False)["input_ids"]
        assert ids.tolist() == [*alone, tokenizer.eos_token_id]
        assert prompter.decode(ids) == command
        assert prompter.command_ids(command) is ids


def test_a_tokenizer_that_joins_words_itself_gets_no_second_space() -> None:
    """Sentencepiece's way: `go` alone is already the word after a space, and ` go` would have two."""
    words = ["<s>", "</s>", *"▁gonrth", "▁g", "▁go", "▁n", "▁no", "▁nor", "▁nort", "▁north"]
    merges = [("▁", "g"), ("▁g", "o"), ("▁", "n"), ("▁n", "o"), ("▁no", "r"), ("▁nor", "t"), ("▁nort", "h")]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    prompter = game_prompter(tokenizer, prompt="observation")
    assert prompter.command_ids("go north").tolist() == [words.index("▁go"), words.index("▁north"), 1]
    assert prompter.decode(prompter.command_ids("go north")) == "go north"


def test_a_bos_opens_the_prompt_where_the_tokenizer_adds_one(tiny_model: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, bos)]
    )
    assert tokenizer("a")["input_ids"][0] == bos
    for layout in FORMATS:
        prompter = game_prompter(tokenizer, room=40, prompt=layout, memory_turns=1)
        for observation in ("One.", "A long tale. " * 20):
            ids = prompter.prompt([], observation, GameState())
            assert ids[0] == bos
            assert (ids == bos).sum() == 1
            assert len(ids) <= 40


def test_what_a_game_says_is_letters(tokenizer: PreTrainedTokenizerBase) -> None:
    """A special token that a game spells is no special token, half a surrogate pair is U+FFFD, nothing is one token."""
    prompter = game_prompter(tokenizer, prompt="observation")
    ids = prompter.prompt([], "a<|endoftext|>b", GameState())
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"
    assert tokenizer.decode(prompter.prompt([], "a\ud800b", GameState())) == "a\ufffdb"
    assert prompter.prompt([], "", GameState()).tolist() == [tokenizer.eos_token_id]


def test_a_single_prompt_is_what_it_was_tokenised_to(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = [Prompt("Once upon", np.array([5, 6])), Prompt("", np.array([7]))]
    prompter = make_prompter(AgentConfig(), tokenizer, prompts, 100, 20)
    assert isinstance(prompter, PlainPrompter)
    assert prompter.prompt([], "Once upon", GameState()).tolist() == [5, 6]
    assert prompter.prompt([], "", GameState()).tolist() == [7]
    assert prompter.prompt([], "The cat", GameState()).tolist() == tokenizer("The cat")["input_ids"]
    unprompted = make_prompter(AgentConfig(), tokenizer, prompts[:1], 100, 20)
    assert unprompted.prompt([], "", GameState()).tolist() == [tokenizer.bos_token_id]
    assert prompter.decode(np.array([*tokenizer(" cat")["input_ids"], tokenizer.eos_token_id])) == " cat"


@pytest.mark.parametrize(("setting", "value"), [("prompt", "sentence"), ("memory_turns", 1), ("max_prompt_tokens", 50)])
def test_settings_of_games_are_refused_for_single_prompts(
    tokenizer: PreTrainedTokenizerBase, setting: str, value: object
) -> None:
    agent = AgentConfig.model_validate({setting: value})
    with pytest.raises(ConfigError, match=f"agent.{setting} is of games"):
        make_prompter(agent, tokenizer, [Prompt("", np.array([7]))], 100, 20)


@pytest.mark.parametrize(("context", "agent"), [(20, {}), (21, {"prompt": "sentence"}), (99, {"max_prompt_tokens": 1})])
def test_no_room_for_a_prompt(tokenizer: PreTrainedTokenizerBase, context: int, agent: dict[str, object]) -> None:
    with pytest.raises(PromptError, match=f"model's context of {context}, .* rollout.max_new_tokens 20"):
        make_prompter(AgentConfig.model_validate({"prompt": "sentence", **agent}), tokenizer, (), context, 20)
