"""The agent's text: what the policy is shown at each turn, token in, token out (SPEC TW-6, TW-7).

Each piece of an environment's text is tokenised alone, once, and put together with the response ids that the policy
itself wrote: nothing it wrote is ever decoded and encoded again.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rayrlhf.config import AgentConfig
from rayrlhf.errors import ConfigError, PromptError
from rayrlhf.interfaces import Prompter
from rayrlhf.prompt_formats import CACHED_TEXTS, NOT_TAKEN, PromptFormat, current_text, past_text
from rayrlhf.prompt_frames import Frame, TextIds, chat_frame, plain_frame, start_ids
from rayrlhf.prompts import Prompt
from rayrlhf.types import GameState, IntArray, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_prompter(
    agent: AgentConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    context: int,
    max_new_tokens: int,
    ends: Collection[int] = (),
) -> Prompter:
    """The prompter of an agent.

    Args:
        agent: format, memory, limit and chat template.
        tokenizer: the policy's.
        prompts: those of a single-turn environment, which are shown as they are; empty for games.
        context: tokens the policy can attend to, prompt and response together.
        max_new_tokens: tokens of the longest response.
        ends: what ends a response, beside the tokenizer's EOS.

    Raises:
        ConfigError: a format or memory is asked for where there are no games.
        PromptError: no room for a prompt.
        ModelError: the tokenizer's chat template cannot be used.
    """
    if prompts:
        _refuse_game_settings(agent)
        return PlainPrompter(tokenizer, prompts)
    room = context - max_new_tokens
    limit = min(room, agent.max_prompt_tokens or room)
    texts = TextIds(tokenizer, ends)
    chat = agent.chat_template == "auto" and bool(tokenizer.chat_template)
    frame = chat_frame(texts, agent.prompt) if chat else plain_frame(texts, agent.prompt)
    if limit <= frame.tokens:
        raise PromptError(
            f"no room for a prompt: {max(limit, 0)} tokens are left of the model's context of {context}, of "
            f"agent.max_prompt_tokens and beside rollout.max_new_tokens {max_new_tokens}; agent.prompt {agent.prompt} "
            f"itself takes {frame.tokens}"
        )
    if agent.prompt == "transcript":
        return TranscriptPrompter(texts, frame, limit, max_new_tokens)
    if agent.prompt == "actions":
        return ActionsPrompter(texts, frame, limit, max_new_tokens, agent.memory_turns)
    return WindowPrompter(texts, frame, limit, max_new_tokens, agent.memory_turns, agent.prompt)


def _refuse_game_settings(agent: AgentConfig) -> None:
    default = AgentConfig()
    given = [
        key for key in ("prompt", "memory_turns", "max_prompt_tokens") if getattr(agent, key) != getattr(default, key)
    ]
    if given:
        raise ConfigError(
            f"agent.{given[0]} is of games: an environment of single prompts shows them as environment.prompts says; "
            "leave it out"
        )


class PlainPrompter:
    """Single-turn text: known prompts have their ids already, others are tokenised as the tokenizer does by default."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]):
        self._tokenizer = tokenizer
        self._known = {prompt.text: np.asarray(prompt.ids, np.int64) for prompt in prompts}

    def prompt(self, turns: Sequence[Turn], observation: str, state: GameState) -> IntArray:
        if observation in self._known:
            return self._known[observation]
        ids = np.asarray(self._tokenizer(observation)["input_ids"], np.int64)
        return ids if len(ids) else start_ids(self._tokenizer)

    def command_ids(self, command: str) -> IntArray:
        ids = self._tokenizer(command, add_special_tokens=False)["input_ids"]
        return np.asarray([*ids, self._tokenizer.eos_token_id], np.int64)

    def decode(self, ids: IntArray) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class GamePrompter:
    """What the prompters of games share: commands as ids, and the limit of tokens."""

    def __init__(self, texts: TextIds, frame: Frame, limit: int, longest_command: int):
        """`limit`: tokens of the longest prompt, more than the frame takes; `longest_command`: tokens left for a command."""
        self._texts = texts
        self._frame = frame
        self._limit = limit
        self._longest_command = longest_command
        self.cut = 0  # observations so far that were too long for a prompt and lost their beginning
        self._commands = functools.lru_cache(CACHED_TEXTS)(self._command_ids)

    def command_ids(self, command: str) -> IntArray:
        """The command's ids after the space that the format calls for, and the token that ends it: the one with which the
        chat template closes an answer, where that is an end of the model's, else the EOS.

        Raises PromptError for a command that is longer than a response may be.
        """
        return self._commands(command)

    def decode(self, ids: IntArray) -> str:
        """The text without the space that joins it to the prompt."""
        text = str(self._texts.tokenizer.decode(ids, skip_special_tokens=True))
        return text.removeprefix(self._frame.space)

    def _command_ids(self, command: str) -> IntArray:
        ids = np.append(
            self._texts.of_game(f"{self._frame.space}{command}"), self._texts.end_before(self._frame.closing)
        )
        if len(ids) > self._longest_command:
            raise PromptError(
                f"the command {command!r} takes {len(ids)} tokens with its EOS, more than rollout.max_new_tokens "
                f"{self._longest_command}: raise it"
            )
        ids.flags.writeable = False
        return ids

    def _current(self, text: str) -> IntArray:
        """Ids of the text of the decision that is due, its beginning cut off where it is too long; at least one id."""
        ids, room = self._texts.of_game(text), self._limit - self._frame.tokens
        if len(ids) + self._frame.tokens == 0:
            return start_ids(self._texts.tokenizer)
        if len(ids) <= room:
            return ids
        self.cut += 1
        return ids[-room:]


class WindowPrompter(GamePrompter):
    """The last states and actions, then the current state: formats `observation`, `you`, `question`, `sentence`."""

    def __init__(
        self, texts: TextIds, frame: Frame, limit: int, longest_command: int, memory_turns: int, layout: PromptFormat
    ):
        super().__init__(texts, frame, limit, longest_command)
        self._memory_turns = memory_turns
        self._layout = layout

    def prompt(self, turns: Sequence[Turn], observation: str, state: GameState) -> IntArray:
        current = self._current(current_text(self._layout, observation, state))
        room = self._limit - self._frame.tokens - len(current)
        newest_first = reversed(turns[max(0, len(turns) - self._memory_turns) :])
        memory = _that_fit((self._remembered(turn) for turn in newest_first), room)
        return np.concatenate([self._frame.opening, *reversed(memory), current, self._frame.cue])

    def _remembered(self, turn: Turn) -> IntArray:
        text = self._texts.of_game(past_text(self._layout, turn.observation, turn.before))
        response = self._texts.without_end(turn.response_ids)
        return np.concatenate([text, self._frame.cue, response, self._frame.closing])


class ActionsPrompter(GamePrompter):
    """The last actions, newest first, a numbered line for each whether taken or not, then the current state."""

    def __init__(self, texts: TextIds, frame: Frame, limit: int, longest_command: int, memory_turns: int):
        super().__init__(texts, frame, limit, longest_command)
        between = "" if frame.space else " "  # a response has the space before it where the frame has one
        self._numbers = [texts.of_game(f"{1 + age}{between}") for age in range(memory_turns)]
        self._not_taken = texts.of_game(f"{frame.space}{NOT_TAKEN}")
        self._line_end = texts.of_game("\n")

    def prompt(self, turns: Sequence[Turn], observation: str, state: GameState) -> IntArray:
        current = self._current(current_text("actions", observation, state))
        slots = (self._slot(age, turns) for age in range(len(self._numbers)))
        memory = _that_fit(slots, self._limit - self._frame.tokens - len(current))
        return np.concatenate([self._frame.opening, *memory, current, self._frame.cue])

    def _slot(self, age: int, turns: Sequence[Turn]) -> IntArray:
        taken = age < len(turns)
        action = self._texts.without_end(turns[-1 - age].response_ids) if taken else self._not_taken
        return np.concatenate([self._numbers[age], action, self._line_end])


class TranscriptPrompter(GamePrompter):
    """All that happened: each prompt is the one before it, the response to it as it was, and what followed.

    The turns have to be those of an episode that was played with it. A transcript that grows too long goes on from its
    newest turns, as many as fill half the limit, so that it can grow again: it is not cut anew at every turn.
    """

    def prompt(self, turns: Sequence[Turn], observation: str, state: GameState) -> IntArray:
        if not turns:
            current = self._current(current_text("transcript", observation, state))
            return np.concatenate([self._frame.opening, current, self._frame.cue])
        text = self._texts.of_game(past_text("transcript", observation, state))
        grown = np.concatenate([turns[-1].prompt_ids, self._answer(turns[-1]), text, self._frame.cue])
        return grown if len(grown) <= self._limit else self._restarted(turns, observation, state)

    def _answer(self, turn: Turn) -> IntArray:
        """The response as it was written and what closes it; an end that both have stands once."""
        closing = self._frame.closing
        shared = self._texts.ends_with_end(turn.response_ids) and self._texts.ends_with_end(closing[:1])
        return np.concatenate([turn.response_ids, closing[1:] if shared else closing])

    def _restarted(self, turns: Sequence[Turn], observation: str, state: GameState) -> IntArray:
        current = self._current(current_text("transcript", observation, state))
        newest_first = (self._past(turn) for turn in reversed(turns))
        memory = _that_fit(newest_first, self._limit // 2 - self._frame.tokens - len(current))
        return np.concatenate([self._frame.opening, *reversed(memory), current, self._frame.cue])

    def _past(self, turn: Turn) -> IntArray:
        text = self._texts.of_game(past_text("transcript", turn.observation, turn.before))
        return np.concatenate([text, self._frame.cue, self._answer(turn)])


def _that_fit(pieces: Iterable[IntArray], room: int) -> list[IntArray]:
    """The pieces from the first on, as many as have room together."""
    kept: list[IntArray] = []
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return kept
