"""The prefix trie of a situation's commands: at each token of a command, which tokens may follow.

Only its branches are kept as nodes, for nothing is chosen between them: tokens there are forced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from rayrlhf.errors import EpisodeError
from rayrlhf.types import AllowedTokens, FloatArray, Generation, IntArray

TRIES_KEPT = 512  # some 10 KiB each: more than the situations of a batch of games
COMMANDS_KEPT = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A place in the trie where more than one token may follow."""

    path: IntArray  # [t] response tokens up to here; the choice is token t
    ids: IntArray  # [C] tokens that may follow, rising, C >= 2
    children: tuple[Branch | int, ...]  # C of: the next branch, or the number of the command that is settled by it


@dataclass(frozen=True, slots=True, eq=False)
class CommandPath:
    """One command as a response, and the choices on its way."""

    ids: IntArray  # [T] its closing token included
    choices: tuple[tuple[Branch, int], ...]  # branches from the root on, and which of their C tokens is this command's
    allowed_ids: IntArray  # [A] as in AllowedTokens
    offsets: IntArray  # [T+1]

    def generation(self, chosen: Sequence[FloatArray]) -> Generation:
        """This command as it was sampled; `chosen`: the log-probabilities [C] at each of its choices."""
        logprobs, allowed = np.zeros(len(self.ids), np.float32), np.zeros(len(self.allowed_ids), np.float32)
        for (branch, child), values in zip(self.choices, chosen, strict=True):
            t = len(branch.path)
            logprobs[t] = values[child]
            allowed[self.offsets[t] : self.offsets[t + 1]] = values
        return Generation(
            response_ids=self.ids,
            logprobs=logprobs,
            filtered_logprobs=logprobs,
            prompt_logprobs=np.zeros(0, np.float32),
            finish="eos",
            allowed=AllowedTokens(self.allowed_ids, self.offsets, allowed, np.zeros_like(allowed)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class CommandTrie:
    """The commands of one situation."""

    commands: tuple[str, ...]
    root: Branch | int  # the first branch; 0, the number of the command, where there is only one
    branches: tuple[Branch, ...]  # all of them, the root first, each before those under it
    sequences: tuple[tuple[int, ...], ...]  # the ids of each command
    _paths: dict[int, CommandPath] = field(default_factory=dict)  # made when first asked for

    @property
    def opening(self) -> IntArray:
        """[t] tokens that all commands begin with; none where there is only one command."""
        return self.root.path if isinstance(self.root, Branch) else np.zeros(0, np.int64)

    def path(self, command: int) -> CommandPath:
        """Of the command with this number."""
        if command not in self._paths:
            self._paths[command] = _path(self.root, self.sequences[command])
        return self._paths[command]

    @classmethod
    def build(cls, commands: tuple[str, ...], ids: Sequence[IntArray]) -> CommandTrie:
        """The trie of commands and their ids [T] each, closing token included.

        Raises EpisodeError where there is no command, or two are the same tokens; ValueError where the ids of one begin
        those of another, which their closing token rules out.
        """
        if not commands:
            raise EpisodeError("there is no command to choose from: use agent.actions free for such environments")
        sequences = tuple(tuple(command.tolist()) for command in ids)
        _check(commands, sequences)
        root = _grow(sequences, list(range(len(commands))), 0)
        return cls(commands, root, tuple(_walk(root)), sequences)


class CommandTries:
    """Tries by their commands, the latest kept: the same commands are to choose from again and again."""

    def __init__(self, command_ids: Callable[[str], IntArray]):
        self._command_ids = lru_cache(COMMANDS_KEPT)(command_ids)
        self.of = lru_cache(TRIES_KEPT)(self._build)

    def _build(self, commands: tuple[str, ...]) -> CommandTrie:
        return CommandTrie.build(commands, [self._command_ids(command) for command in commands])


def _check(commands: tuple[str, ...], sequences: Sequence[tuple[int, ...]]) -> None:
    order = sorted(range(len(commands)), key=lambda i: sequences[i])
    for i, j in pairwise(order):
        if sequences[i] == sequences[j]:
            raise EpisodeError(
                f"the commands {commands[i]!r} and {commands[j]!r} are the same tokens {list(sequences[i])}, so the "
                "policy cannot tell them apart: the environment must name each command once, and the tokenizer must "
                "have tokens for what they differ in"
            )
        if sequences[i] == sequences[j][: len(sequences[i])]:
            raise ValueError(f"the ids of command {commands[i]!r} begin those of {commands[j]!r}: no closing token")


def _grow(sequences: Sequence[tuple[int, ...]], members: list[int], depth: int) -> Branch | int:
    """The first branch among the commands `members`, which share `depth` tokens."""
    while len(members) > 1:
        following: dict[int, list[int]] = {}
        for member in members:
            following.setdefault(sequences[member][depth], []).append(member)
        if len(following) > 1:
            tokens = sorted(following)
            return Branch(
                path=np.array(sequences[members[0]][:depth], np.int64),
                ids=np.array(tokens, np.int64),
                children=tuple(_grow(sequences, following[token], depth + 1) for token in tokens),
            )
        depth += 1
    return members[0]


def _walk(node: Branch | int) -> list[Branch]:
    if not isinstance(node, Branch):
        return []
    return [node, *(branch for child in node.children for branch in _walk(child))]


def _path(root: Branch | int, sequence: tuple[int, ...]) -> CommandPath:
    choices: list[tuple[Branch, int]] = []
    allowed: list[IntArray] = []
    node, ids = root, np.array(sequence, np.int64)
    for t in range(len(ids)):
        if isinstance(node, Branch) and len(node.path) == t:
            child = int(np.searchsorted(node.ids, ids[t]))
            choices.append((node, child))
            allowed.append(node.ids)
            node = node.children[child]
        else:
            allowed.append(ids[t : t + 1])
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(tokens) for tokens in allowed], out=offsets[1:])
    return CommandPath(ids, tuple(choices), np.concatenate(allowed), offsets)
