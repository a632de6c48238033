"""A prompter for games without a policy: there is no tokenizer, so the ids are code points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayrlhf.types import GameState, IntArray, Turn


class CodePointPrompter:
    """The observation as it is (see `interfaces.Prompter`); an empty one is a blank."""

    def prompt(self, turns: Sequence[Turn], observation: str, state: GameState) -> IntArray:
        return code_points(observation or " ")

    def command_ids(self, command: str) -> IntArray:
        return code_points(command)

    def decode(self, ids: IntArray) -> str:
        return from_code_points(ids)


def code_points(text: str) -> IntArray:
    """[characters]"""
    return np.array([ord(character) for character in text], np.int64)


def from_code_points(ids: IntArray) -> str:
    return "".join(map(chr, ids.tolist()))
