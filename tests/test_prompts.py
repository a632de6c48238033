"""Prompts and the single-turn environment: every source, every limit, every fault (SPEC LMHP-30, LMHP-31, X-3, GWERN-16)."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from gymnasium.utils.env_checker import check_env
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import rayrlhf.envs  # registers the id
from rayrlhf.config import PromptsConfig, RunConfig
from rayrlhf.environments import open_environments
from rayrlhf.envs.single_turn import SingleTurn, TextSpace
from rayrlhf.errors import EpisodeError, PromptError
from rayrlhf.prompts import Prompts, load_prompts
from rayrlhf.run_parts import environment_settings

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no such role: ' + m.role) }}{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def chat(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that puts its BOS before every text, as Llama's does."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    return tokenizer


def load(tokenizer: PreTrainedTokenizerBase, context: int = 128, new: int = 64, **config: Any) -> Prompts:
    return load_prompts(PromptsConfig(**config), tokenizer, context, new)


def fault(tokenizer: PreTrainedTokenizerBase, context: int = 128, new: int = 64, **config: Any) -> str:
    with pytest.raises(PromptError) as caught:
        load(tokenizer, context, new, **config)
    return str(caught.value)


def written(path: Path, *rows: Any) -> str:
    """A JSONL file of these rows; its name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- one text, or none ---


@pytest.mark.parametrize("text", ["a", "Once upon a time", "Once upon a time a brave bear bought big blue balloons"])
def test_a_start_text_has_any_number_of_tokens_lmhp_31(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    prompts = load(tokenizer, text=text)
    (prompt,) = prompts.items
    assert prompt.text == text
    assert tokenizer.decode(prompt.ids) == text
    assert prompt.ids.dtype == np.int64
    assert tokenizer.pad_token_id not in prompt.ids  # padding is the sampler's, on the left
    assert (prompts.dropped, prompts.cut, prompts.source) == (0, 0, "environment.prompts.text")


def test_without_a_prompt_the_policy_starts_from_bos_or_else_from_eos_lmhp_30(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.bos_token = "<|pad|>"  # any token that is not the EOS
    (prompt,) = load(tokenizer).items
    assert (prompt.text, prompt.ids.tolist()) == ("", [tokenizer.bos_token_id])
    tokenizer.bos_token = None
    prompts = load(tokenizer, chat_template="auto")
    assert prompts.items[0].ids.tolist() == [tokenizer.eos_token_id]
    assert prompts.source == "no prompt: the EOS token"
    tokenizer.eos_token = None
    assert "neither: give environment.prompts.text" in fault(tokenizer)


def test_an_empty_text_is_an_error_that_says_to_leave_it_out(tokenizer: PreTrainedTokenizerBase) -> None:
    assert fault(tokenizer, text="").startswith("environment.prompts.text is empty: leave it out")


# --- files ---


def test_a_text_file_has_a_prompt_a_line_kept_to_the_last_space(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffOne \r\n\n  \nTwo\u2028and\x85a half\n\nÜ 猫".encode())
    prompts = load(tokenizer, file=str(path))
    assert [prompt.text for prompt in prompts.items] == ["One ", "Two\u2028and\x85a half", "Ü 猫"]
    assert (prompts.blank, prompts.source) == (3, str(path))


def test_jsonl_takes_the_field_of_each_object(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", {"q": "One\nline", "prompt": "not this"}, {"q": "Two"})
    assert [prompt.text for prompt in load(tokenizer, file=path, field="q").items] == ["One\nline", "Two"]


def test_a_folder_is_all_its_files_in_the_order_of_their_names(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    written(tmp_path / "b.jsonl", {"prompt": "two"})
    (tmp_path / "a.txt").write_text("one\n")
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["three", "four"], "n": [1, 2]}), tmp_path / "c.parquet")
    (tmp_path / "README.md").write_text("not a prompt\n")
    prompts = load(tokenizer, folder=str(tmp_path))
    assert [prompt.text for prompt in prompts.items] == ["one", "two", "three", "four"]


BAD_ROWS = {
    "not JSON": ('{"prompt": "a"}\n{"prompt": \n', ":2: not JSON: "),
    "not an object": ('"a"\n', ':1: a JSONL row is an object such as {"prompt": "..."}, not "a"'),
    "no such field": ('{"q": "a", "n": 1}\n', ":1: no field 'prompt'; it has q, n: say which in environment.prompts.field"),
    "a number": ('{"prompt": 5}\n', ":1: field 'prompt' is int, not text or a list of messages"),
    "empty": ('\n{"prompt": ""}\n', ":2: the prompt is empty; take the row out"),
    "no messages": ('{"prompt": []}\n', ":1: the list of messages is empty; take the row out"),
    "bad message": ('{"prompt": [{"role": "user"}]}\n', ":1: a message is {"),
    "messages in another field": (
        '{"messages": [{"role": "user", "content": "a"}], "n": 1}\n',
        ":1: no field 'prompt'; it has messages: set environment.prompts.field=messages",
    ),
    "parts": (
        '{"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}\n',
        ":1: the content of a message is a list of parts: write their text as one",
    ),
    "half a surrogate pair": ('{"prompt": "a\\ud800"}\n', ":1: character 2 of the prompt is no Unicode text"),
    "messages without a template": (
        '{"prompt": [{"role": "user", "content": "a"}]}\n',
        ":1: the prompt is a list of messages, but the model has no chat template",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_by_file_and_line(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    assert fault(tokenizer, file=str(path)).startswith(f"{path}{words}")


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("p.json", 'write it as JSONL, a line such as {"prompt": "..."} for each prompt'),
        ("p.csv", "write it as JSONL"),
        ("p.jsonl.gz", "unpack it first, and name the file that was in it (`gunzip p.jsonl.gz`)"),
        ("p.zip", "unpack it first"),
    ],
)
def test_a_file_of_another_form_is_refused_with_what_to_write(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, name: str, instead: str
) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b[")
    assert instead in fault(tokenizer, file=str(tmp_path / name))


def test_bad_files_and_folders_are_named(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    assert fault(tokenizer, file="no.txt").startswith("no.txt: there is no such file")
    assert "name it as environment.prompts.folder" in fault(tokenizer, file=str(tmp_path))
    assert fault(tokenizer, folder="none").startswith("none: there is no such folder")
    (tmp_path / "data").mkdir()
    assert fault(tokenizer, folder=str(tmp_path)).endswith("file in it; perhaps they are in its folder data")
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    assert fault(tokenizer, file=str(blank)) == f"{blank}: there is no prompt in it"
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"one\ncaf\xe9\n")
    assert fault(tokenizer, file=str(latin)) == f"{latin}:2: not UTF-8 text (byte 0xe9)"
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1")
    assert fault(tokenizer, file=str(torn)).startswith(f"{torn}: cannot be read as parquet: ")
    mislabelled = tmp_path / "latin.parquet"
    latin_column = pyarrow.Array.from_buffers(
        pyarrow.string(),
        1,
        [None, pyarrow.py_buffer(np.array([0, 4], np.int32).tobytes()), pyarrow.py_buffer(b"caf\xe9")],
    )
    pyarrow.parquet.write_table(pyarrow.table({"prompt": latin_column}), mislabelled)
    assert "latin.parquet: cannot be read as parquet: 'utf-8' codec" in fault(tokenizer, file=str(mislabelled))
    os.mkfifo(tmp_path / "pipe.parquet")
    for strange in (tmp_path / "pipe.parquet", Path("/dev/null")):
        assert fault(tokenizer, file=str(strange)).startswith(f"{strange}: is no file but a pipe or a device")
    table = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", None]}), table)
    assert fault(tokenizer, file=str(table)).startswith(f"{table} row 2: field 'prompt' is NoneType")
    assert "no column 'q'; it has prompt" in fault(tokenizer, file=str(table), field="q")


# --- chat ---


def test_a_chat_model_reads_its_template_up_to_the_answer(chat: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    prompts = load(chat, file=written(tmp_path / "p.jsonl", {"prompt": "Hi"}, {"prompt": messages}))
    assert [prompt.text for prompt in prompts.items] == [
        "<user>Hi\n<assistant>",
        "<system>Be kind.\n<user>Hi\n<assistant>",
    ]
    assert [chat.decode(prompt.ids) for prompt in prompts.items] == [prompt.text for prompt in prompts.items]


def test_a_template_gets_no_second_bos_and_can_be_left_out(with_bos: PreTrainedTokenizerBase) -> None:
    with_bos.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    bos = with_bos.bos_token_id
    assert load(with_bos, text="Hi").items[0].ids.tolist().count(bos) == 1
    plain = load(with_bos, text="Hi", chat_template="never").items[0]
    assert (plain.text, plain.ids.tolist().count(bos)) == ("Hi", 1)


def test_a_template_that_is_missing_or_refuses_is_an_error(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    assert "has no chat template" in fault(tokenizer, text="Hi", chat_template="always")
    assert "there is no prompt" in fault(tokenizer, chat_template="always")
    tokenizer.chat_template = CHAT_TEMPLATE
    path = written(tmp_path / "p.jsonl", {"prompt": [{"role": "bard", "content": "a"}]})
    assert fault(tokenizer, file=path) == (
        f"{path}:1: the model's chat template refuses this prompt: no such role: bard"
    )
    assert fault(tokenizer, file=path, chat_template="never").endswith("a list of messages, but chat_template is never")


# --- special tokens spelled out (SPEC GWERN-16) ---


def test_a_special_token_that_is_spelled_out_is_that_token_and_counted_gwern_16(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "p.txt"
    path.write_text("One\nTwo<|endoftext|>three\n")
    with caplog.at_level(logging.WARNING, logger="rayrlhf.prompts"):
        prompts = load(tokenizer, file=str(path))
    assert prompts.special == 1
    assert tokenizer.eos_token_id in prompts.items[1].ids
    assert f"1 of 2 prompts spell a special token (first: <|endoftext|> in {path}:2)" in caplog.text


# --- too long ---


def test_too_long_prompts_are_an_error_that_names_them_and_their_tokens(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = tmp_path / "p.txt"
    path.write_text("cat\n" + "0123456789\n" * 7)
    lines = fault(tokenizer, context=20, new=12, file=str(path)).splitlines()
    assert lines == [
        *[f"{path}:{line}: the prompt has 10 tokens" for line in range(2, 7)],
        "and 2 more",
        "8 fit (the context's 20 less rollout.max_new_tokens 12); set environment.prompts.too_long to drop or cut to go on",
    ]  # fmt: skip


def test_too_long_prompts_are_dropped_and_counted(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("0123456789\ncat\n01234567\n012345678\n")
    prompts = load(tokenizer, file=str(path), too_long="drop", max_tokens=8)
    assert ([prompt.text for prompt in prompts.items], prompts.dropped, prompts.cut) == (["cat", "01234567"], 2, 0)
    path.write_text("01234\n0123\n")
    assert fault(tokenizer, file=str(path), too_long="drop", max_tokens=2) == (
        f"{path}: all 2 prompts are too long and dropped: the shortest has 4 tokens ({path}:2), 2 fit "
        "(environment.prompts.max_tokens)"
    )


def test_a_cut_prompt_loses_its_oldest_tokens_and_its_text_follows(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = load(tokenizer, text="0123456789", too_long="cut", max_tokens=4)
    (prompt,) = prompts.items
    assert (prompt.text, tokenizer.decode(prompt.ids), prompts.cut, prompts.dropped) == ("6789", "6789", 1, 0)
    assert prompt.ids.tolist() == tokenizer("0123456789").input_ids[-4:]


def test_a_cut_starts_at_a_whole_character(tokenizer: PreTrainedTokenizerBase) -> None:
    """猫 is three bytes and here three tokens; a cut through it takes what is left of it along."""
    assert len(tokenizer("猫").input_ids) == 3
    for tokens, text in [(7, "猫猫7"), (6, "猫7"), (5, "猫7"), (4, "猫7"), (3, "7"), (1, "7")]:
        (prompt,) = load(tokenizer, text="猫猫猫7", too_long="cut", max_tokens=tokens).items
        assert prompt.text == text
        assert tokenizer.decode(prompt.ids) == text


def test_a_cut_keeps_the_bos_that_the_tokenizer_adds(with_bos: PreTrainedTokenizerBase) -> None:
    (prompt,) = load(with_bos, text="0123456789", too_long="cut", max_tokens=4).items
    assert prompt.text == "789"
    assert prompt.ids.tolist() == [with_bos.bos_token_id, *with_bos("789", add_special_tokens=False).input_ids]
    assert "no room beside the BOS token" in fault(with_bos, text="0123456789", too_long="cut", max_tokens=1)


def test_an_answer_as_long_as_the_context_leaves_no_room(tokenizer: PreTrainedTokenizerBase) -> None:
    for new in (128, 129):
        assert fault(tokenizer, new=new, text="a").startswith(f"rollout.max_new_tokens {new} leaves no room")
        assert fault(tokenizer, new=new).endswith("it must be at most 127")
    assert len(load(tokenizer, new=127).items) == 1


# --- the environment ---


def test_gymnasium_accepts_the_environment() -> None:
    made = gymnasium.make("rayrlhf/SingleTurn-v0", prompts=["one", "two", "three"])
    assert isinstance(made.unwrapped, SingleTurn)
    check_env(made.unwrapped)
    assert rayrlhf.envs.single_turn.SingleTurn is SingleTurn


def test_every_epoch_shows_every_prompt_once_in_an_order_of_its_own() -> None:
    texts = [f"prompt {number}" for number in range(50)]
    environment = SingleTurn(texts)
    epochs = [[environment.reset(seed=50 * epoch + place) for place in range(50)] for epoch in range(3)]
    for epoch, shown in enumerate(epochs):
        assert Counter(text for text, _ in shown) == Counter(texts)
        assert all(texts[info["prompt"]] == text for text, info in shown)
        assert [info["prompt"] for _, info in shown] == np.random.default_rng(epoch).permutation(50).tolist()
    assert epochs[0] != epochs[1]


def test_runs_of_other_seeds_meet_the_prompts_in_other_orders() -> None:
    """Every prompt once an epoch in each of them; the order of seed 0 is that of the epoch alone."""
    config = RunConfig()
    orders = []
    for seed in range(3):
        settings = environment_settings(config.model_copy(update={"seed": seed}))["train"]
        played = open_environments(settings, [f"prompt {number}" for number in range(50)])
        orders.append([result.observation for result in played.reset(range(50))])
    assert [set(order) for order in orders] == [set(orders[0])] * 3
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == [f"prompt {number}" for number in np.random.default_rng(0).permutation(50)]


def test_a_seed_shows_its_prompt_whatever_came_before_and_no_seed_goes_on() -> None:
    played, fresh = SingleTurn(list("abcdef")), SingleTurn(list("abcdef"))
    for seed in (5, 40, 3):
        played.reset(seed=seed)
    assert played.reset(seed=17) == fresh.reset(seed=17)
    assert played.reset() == fresh.reset(seed=18)
    assert played.reset(seed=2**63) == fresh.reset(seed=2**63)


def test_one_step_ends_it_and_steps_out_of_turn_are_errors() -> None:
    environment = SingleTurn(["a"])
    with pytest.raises(EpisodeError, match="call reset"):
        environment.step("b")
    environment.reset(seed=0)
    assert environment.step("b") == ("", 0.0, True, False, {})
    with pytest.raises(EpisodeError, match="call reset"):
        environment.step("b")
    for prompts in ([], "text"):
        with pytest.raises(EpisodeError, match="at least one text"):
            SingleTurn(prompts)


def test_the_text_space_holds_any_text_and_nothing_else() -> None:
    space = TextSpace(seed=1)
    samples = [space.sample() for _ in range(200)]
    assert all(text in space and text == text.encode().decode() for text in samples)
    assert max(max(map(ord, text), default=0) for text in samples) > 0xFFFF
    assert "" in space
    assert "\x00猫" in space
    assert 5 not in space
    assert space == TextSpace()
    assert space != gymnasium.spaces.Text(5)
