"""Prompts of the single-turn environment: from the config to token ids, each checked against the model's context.

Sources: one fixed text, files (`prompt_files.py`), or none at all (SPEC LMHP-30). A text is any number of tokens long
(SPEC LMHP-31). Nothing is padded here: the sampler pads, on the left (SPEC X-3). A special token that a prompt spells
out (`<|endoftext|>`) becomes that token, as the model's own tokenizer reads it, never its letters; such prompts are
counted and warned about, since in data from elsewhere it is seldom meant (SPEC GWERN-16).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rayrlhf.config import PromptsConfig
from rayrlhf.errors import PromptError
from rayrlhf.prompt_files import Messages, Row, read_file, read_folder
from rayrlhf.reading import expanded, printable
from rayrlhf.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NAMED_FAULTS = 5  # so many too long prompts are named one by one
TOKENIZER_BATCH = 1024  # prompts tokenised at once


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one episode starts from. P = tokens, at least 1."""

    text: str  # what the ids spell, the chat template's markers included; "" for an episode without a prompt
    ids: IntArray  # [P]


@dataclass(frozen=True, slots=True)
class Prompts:
    """All prompts of a run, in the order of their source, and what became of the others."""

    items: tuple[Prompt, ...]  # at least one
    dropped: int  # prompts left out as too long
    cut: int  # prompts that lost their oldest tokens
    source: str  # what they were read from, for the log
    blank: int = 0  # blank lines passed over
    special: int = 0  # prompts that spell a special token


@dataclass(frozen=True, slots=True)
class _Limit:
    """How long a prompt may be, and why."""

    tokens: int
    reason: str


def load_prompts(
    config: PromptsConfig, tokenizer: PreTrainedTokenizerBase, context_length: int, max_new_tokens: int
) -> Prompts:
    """Reads and tokenises a run's prompts.

    Plain text is tokenised as the tokenizer does by default, with its BOS if it adds one. Where a chat template is in
    use (`config.chat_template`), a text is one user message, and the template alone says which special tokens stand
    in the prompt; it ends where the answer begins. A cut prompt keeps a BOS that the tokenizer added, starts at a
    whole character, and its text is decoded from the tokens that stayed.

    Args:
        config: the source of the prompts and what to do with those too long.
        tokenizer: the policy's.
        context_length: tokens the policy can attend to, prompt and response together.
        max_new_tokens: tokens of the longest response.

    Raises:
        PromptError: no room for a prompt, a source that is missing or damaged, an empty prompt, one that is too long
            under `too_long: error`, none left under `drop`, or a chat template that is missing or refuses a prompt.
    """
    limit = _limit(config, context_length, max_new_tokens)
    if config.text is None and config.file is None and config.folder is None:
        return _unprompted(config, tokenizer)
    rows, blank, source = _rows(config)
    _refuse_broken_text(rows)
    special = _warn_of_specials(rows, tokenizer)
    texts = [_render(row, config, tokenizer) for row in rows]
    templated = _uses_template(config, tokenizer)
    items: list[Prompt] = []
    too_long: list[tuple[Row, int]] = []
    cut = 0
    for row, text, ids in zip(rows, texts, _tokenised(texts, tokenizer, not templated), strict=True):
        if len(ids) == 0:
            raise PromptError(f"{row.place}: the tokenizer makes no token of this prompt")
        if len(ids) <= limit.tokens:
            items.append(Prompt(text, ids))
        elif config.too_long == "cut":
            items.append(_cut(text, ids, limit, tokenizer, not templated))
            cut += 1
        else:
            too_long.append((row, len(ids)))
    if too_long and config.too_long == "error":
        raise PromptError(_too_long_message(too_long, limit))
    if not items:
        row, length = min(too_long, key=lambda pair: pair[1])
        raise PromptError(
            f"{source}: all {len(too_long)} prompts are too long and dropped: the shortest has {length} tokens "
            f"({row.place}), {limit.tokens} fit ({limit.reason})"
        )
    return Prompts(tuple(items), len(too_long), cut, source, blank, special)


def _limit(config: PromptsConfig, context_length: int, max_new_tokens: int) -> _Limit:
    room = context_length - max_new_tokens
    if room < 1:
        raise PromptError(
            f"rollout.max_new_tokens {max_new_tokens} leaves no room for a prompt in the model's context of "
            f"{context_length} tokens: it must be at most {context_length - 1}"
        )
    if config.max_tokens is not None and config.max_tokens < room:
        return _Limit(config.max_tokens, "environment.prompts.max_tokens")
    return _Limit(room, f"the context's {context_length} less rollout.max_new_tokens {max_new_tokens}")


def _unprompted(config: PromptsConfig, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The policy starts from its BOS, or from the EOS that ends the text before (SPEC LMHP-30)."""
    if config.chat_template == "always":
        raise PromptError("environment.prompts.chat_template is always, but there is no prompt to put into one")
    name = "BOS" if tokenizer.bos_token_id is not None else "EOS"
    start = tokenizer.bos_token_id if name == "BOS" else tokenizer.eos_token_id
    if start is None:
        raise PromptError(
            "without a prompt a policy starts from its BOS or EOS token, and this tokenizer has neither: "
            "give environment.prompts.text"
        )
    return Prompts((Prompt("", np.array([start], dtype=np.int64)),), 0, 0, f"no prompt: the {name} token")


def _rows(config: PromptsConfig) -> tuple[list[Row], int, str]:
    """Rows, number of blank lines, and the name of the source."""
    if config.text is not None:
        if not config.text:
            raise PromptError(
                "environment.prompts.text is empty: leave it out (environment.prompts.text= on the command line) "
                "for a run without a prompt"
            )
        return [Row("environment.prompts.text", config.text)], 0, "environment.prompts.text"
    if config.file is not None:
        source, found = config.file, list(read_file(expanded(config.file), config.field))
    else:
        source, found = str(config.folder), list(read_folder(expanded(str(config.folder)), config.field))
    rows = [row for row in found if row is not None]
    if not rows:
        raise PromptError(f"{source}: there is no prompt in it")
    return rows, len(found) - len(rows), source


def _refuse_broken_text(rows: Sequence[Row]) -> None:
    """Half a surrogate pair (JSON can spell one) is no text: no tokenizer takes it."""
    for row in rows:
        try:
            _written(row.content).encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"{row.place}: character {error.start + 1} of the prompt is no Unicode text") from error


def _warn_of_specials(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> int:
    """Counts prompts that spell a special token and warns of the first."""
    tokens = [token for token in tokenizer.all_special_tokens if token]
    spelling = [
        (row, token)
        for row in rows
        if (token := next((token for token in tokens if token in _written(row.content)), None)) is not None
    ]
    if spelling:
        row, token = spelling[0]
        logger.warning(
            "%d of %d prompts spell a special token (first: %s in %s); the policy reads the token, not the letters",
            len(spelling), len(rows), printable(token), row.place,
        )  # fmt: skip
    return len(spelling)


def _written(content: str | Messages) -> str:
    return content if isinstance(content, str) else "\n".join(message["content"] for message in content)


def _uses_template(config: PromptsConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    if config.chat_template == "always" and not tokenizer.chat_template:
        raise PromptError(
            "environment.prompts.chat_template is always, but the model's tokenizer has no chat template: "
            "set it to auto or never, or use a chat model"
        )
    return config.chat_template != "never" and bool(tokenizer.chat_template)


def _render(row: Row, config: PromptsConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that is tokenised: the row's own, or its conversation in the chat template, up to the answer."""
    if not _uses_template(config, tokenizer):
        if isinstance(row.content, str):
            return row.content
        reason = "chat_template is never" if config.chat_template == "never" else "the model has no chat template"
        raise PromptError(f"{row.place}: the prompt is a list of messages, but {reason}")
    import jinja2

    messages = [{"role": "user", "content": row.content}] if isinstance(row.content, str) else row.content
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise PromptError(f"{row.place}: the model's chat template refuses this prompt: {error}") from error


def _tokenised(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool
) -> Iterator[IntArray]:
    """Ids [P] of each text, unpadded. A chat template writes its special tokens itself: none are added to it."""
    for start in range(0, len(texts), TOKENIZER_BATCH):
        batch = list(texts[start : start + TOKENIZER_BATCH])
        for ids in tokenizer(batch, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]:
            yield np.asarray(ids, dtype=np.int64)


def _cut(
    text: str, ids: IntArray, limit: _Limit, tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool
) -> Prompt:
    """Drops the oldest tokens until the prompt fits, all but a BOS that the tokenizer put there."""
    added = add_special_tokens and tokenizer.bos_token_id is not None and _adds_bos(tokenizer)
    head = ids[:1] if added else ids[:0]
    tail = ids[len(ids) - (limit.tokens - len(head)) :]
    while len(tail) > 1 and "\ufffd" not in text and _decoded(tail, tokenizer).startswith("\ufffd"):
        tail = tail[1:]  # the cut went through the bytes of one character
    if len(tail) == 0:
        raise PromptError(f"a prompt of {limit.tokens} token ({limit.reason}) has no room beside the BOS token")
    return Prompt(_decoded(tail, tokenizer), np.concatenate([head, tail]))


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]


def _decoded(ids: IntArray, tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _too_long_message(too_long: Sequence[tuple[Row, int]], limit: _Limit) -> str:
    named = [f"{row.place}: the prompt has {length} tokens" for row, length in too_long[:NAMED_FAULTS]]
    more = [f"and {len(too_long) - NAMED_FAULTS} more"] if len(too_long) > NAMED_FAULTS else []
    advice = f"{limit.tokens} fit ({limit.reason}); set environment.prompts.too_long to drop or cut to go on"
    return "\n".join([*named, *more, advice])
