"""What stands around the texts and responses of a game's prompt, as token ids: a plain frame, or a chat template's."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rayrlhf.errors import ModelError
from rayrlhf.prompt_formats import CACHED_TEXTS, CUES, PromptFormat, written
from rayrlhf.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TW7_FORMATS = ("you", "question", "sentence")


class TextIds:
    """A tokenizer for pieces of text: no special tokens are added, each text is tokenised once while it is cached."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()):
        """ends: what ends a response, beside the tokenizer's EOS."""
        self.tokenizer = tokenizer
        self.eos = int(tokenizer.eos_token_id)
        self.ends = {self.eos, *ends}
        self.of_game = functools.lru_cache(CACHED_TEXTS)(functools.partial(self._ids, special=False))
        self.of_frame = functools.partial(self._ids, special=True)

    def _ids(self, text: str, special: bool) -> IntArray:
        """Ids [N], read-only. What a game says is letters even where it spells a special token; a template's is not."""
        encoded = self.tokenizer(
            written(text), add_special_tokens=False, split_special_tokens=not special, verbose=False
        )
        ids = np.asarray(encoded["input_ids"], np.int64)
        ids.flags.writeable = False
        return ids

    def added_bos(self) -> IntArray:
        """[0 or 1] the BOS token where the tokenizer puts one before a text."""
        first = list(self.tokenizer("")["input_ids"])[:1]
        return np.array(first if first == [self.tokenizer.bos_token_id] else [], np.int64)

    def ends_with_end(self, ids: IntArray) -> bool:
        return len(ids) > 0 and int(ids[-1]) in self.ends

    def without_end(self, response: IntArray) -> IntArray:
        return response[:-1] if self.ends_with_end(response) else response

    def end_before(self, closing: IntArray) -> int:
        """The end of a response that `closing` follows: its own first token where that is an end, else the EOS."""
        return int(closing[0]) if self.ends_with_end(closing[:1]) else self.eos

    def joins_words(self) -> bool:
        """Whether the tokenizer puts the space before a text itself, as sentencepiece ones do."""
        return bool(np.array_equal(self.of_game("go"), self.of_game("go go")[len(self.of_game("go")) :]))


def start_ids(tokenizer: PreTrainedTokenizerBase) -> IntArray:
    """What a policy starts from that is shown nothing: the BOS, or the EOS that ends the text before (SPEC LMHP-30)."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return np.array([start], np.int64)


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the turns of a prompt: opening, text, cue, response, closing, text, cue, ..."""

    opening: IntArray  # before the first text
    cue: IntArray  # between a text and the response to it
    closing: IntArray  # between a response, its EOS left out, and the next text
    space: str  # between the cue and a command

    @property
    def tokens(self) -> int:
        """Tokens of a prompt beside its texts."""
        return len(self.opening) + len(self.cue)


def plain_frame(texts: TextIds, layout: PromptFormat) -> Frame:
    """A BOS where the tokenizer adds one, the format's cue, a line's end after each response."""
    space = "" if texts.joins_words() else " "
    return Frame(texts.added_bos(), texts.of_game(CUES[layout]), texts.of_game("\n"), space)


def chat_frame(texts: TextIds, layout: PromptFormat) -> Frame:
    """The tokenizer's chat template around texts as user messages and responses as assistant messages.

    A response in the memory stands after the same tokens as when it was written, the template's generation prompt.

    Raises:
        ModelError: the template refuses such a conversation, or does not show its messages as they are.
    """
    first, answer, second = "<<observation 1>>", "<<action 1>>", "<<observation 2>>"
    opening, generation = _rendered(texts.tokenizer, [first])
    _, _, closing, _ = _rendered(texts.tokenizer, [first, answer, second])
    cue = CUES[layout] if layout in TW7_FORMATS else ""
    return Frame(
        opening=texts.of_frame(opening),
        cue=np.concatenate([texts.of_game(cue), texts.of_frame(generation)]),
        closing=texts.of_frame(closing),
        space="",
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[str]) -> list[str]:
    """What the chat template writes before, between and after messages of user and assistant in turn."""
    import jinja2

    roles = ("user", "assistant")
    conversation = [{"role": roles[i % 2], "content": message} for i, message in enumerate(messages)]
    try:
        rest = str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise ModelError(
            f"the model's chat template refuses a game: {error}; set agent.chat_template to never"
        ) from error
    parts = []
    for message in messages:
        before, found, rest = rest.partition(message)
        if not found:
            raise ModelError(
                "the model's chat template does not show every message of a game as it is: set agent.chat_template to never"
            )
        parts.append(before)
    return [*parts, rest]
