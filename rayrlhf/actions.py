"""How a policy acts: writing freely, choosing a command token by token (the default), or ranking whole commands.

All are `interfaces.Actor`s: deterministic functions of the weights, the situations and the calls since `reset`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor, nn

from rayrlhf.errors import ConfigError
from rayrlhf.interfaces import Actor, Prompter
from rayrlhf.response_config import NO_RULES, ResponseConfig
from rayrlhf.response_rules import ResponseRules
from rayrlhf.sampling.command_trie import Branch, CommandTrie, CommandTries
from rayrlhf.sampling.constrained import branch_logprobs, draw
from rayrlhf.sampling.prefix_cache import PrefixCache
from rayrlhf.sampling.stopping import clean_action, ends_sentence
from rayrlhf.sampling.transformers_engine import SamplingSettings, TransformersSampler, uniform_stream
from rayrlhf.types import Action, FloatArray, Generation, IntArray, Situation

ActionKind = Literal["auto", "free", "constrained", "rank"]
Place = tuple[int, Branch, IntArray]  # a row of the prefix cache, a branch, and the tokens from the one to the other


class PolicyActor(Actor, Protocol):
    """An actor that plays with a model's weights."""

    def reset(self) -> None:
        """Forgets earlier calls. Due before each batch of episodes and after each change of the weights."""
        ...


@dataclass(slots=True)
class Choosing:
    """One situation on its way through its trie."""

    trie: CommandTrie
    row: int  # of the prefix cache: its prompt and the trie's opening
    at: Branch | int
    uniforms: NDArray[np.float64]
    greedy: bool
    logprobs: list[FloatArray] = field(default_factory=list)  # [C] of each choice so far

    @property
    def branch(self) -> Branch:
        """Where it stands, as long as there is something to choose."""
        assert isinstance(self.at, Branch)
        return self.at

    @property
    def place(self) -> Place:
        return self.row, self.branch, self.branch.path[len(self.trie.opening) :]


class ConstrainedActor:
    """Chooses among the situation's commands token by token: pi(command) is the product over its branches of
    softmax(logits[tokens that may follow] / temperature), which adds to 1 over the commands.

    Forced tokens have log-probability 0 and no forward pass of their own. Equal situations are computed once.
    """

    def __init__(self, model: nn.Module, prompter: Prompter, temperature: float):
        self.temperature = temperature
        self._cache = PrefixCache(model)
        self._tries = CommandTries(prompter.command_ids)

    def reset(self) -> None:
        self._cache.reset()

    def act(self, situations: Sequence[Situation]) -> list[Action]:
        """One command each. Raises EpisodeError where a situation has none or two are the same tokens."""
        tries = [self._tries.of(situation.state.commands) for situation in situations]
        rows, opened = self._open(situations, tries)
        walks = [
            Choosing(trie, int(row), trie.root, uniform_stream(s.seed, len(trie.branches)), s.greedy)
            for s, trie, row in zip(situations, tries, rows, strict=True)
        ]
        due = [walk for walk in walks if isinstance(walk.at, Branch)]
        while due:
            self._choose(due, opened)
            due = [walk for walk in due if isinstance(walk.at, Branch)]
        return [_command(walk.trie, walk.at, walk.logprobs) for walk in walks]

    def command_logprobs(self, situations: Sequence[Situation]) -> list[FloatArray]:
        """Exact log-probabilities of all commands of each situation, [len(commands)] nats in their order."""
        tries = [self._tries.of(situation.state.commands) for situation in situations]
        rows, opened = self._open(situations, tries)
        skips = {
            (row, b): len(trie.opening) for row, trie in zip(rows.tolist(), tries, strict=True) for b in trie.branches
        }
        places = [(row, branch, branch.path[skip:]) for (row, branch), skip in skips.items()]
        at = dict(zip(skips, self._logprobs(places, opened), strict=True)) if places else {}
        return [
            np.array(
                [sum(at[row, b][child] for b, child in trie.path(i).choices) for i in range(len(trie.commands))],
                np.float32,
            )
            for row, trie in zip(rows.tolist(), tries, strict=True)
        ]

    def _open(self, situations: Sequence[Situation], tries: Sequence[CommandTrie]) -> tuple[IntArray, Tensor]:
        """Cache rows [B] of the prompts with the trie's opening, and the rows' logits [R, V]; R = 0 where nobody has a
        choice."""
        if not any(trie.branches for trie in tries):
            return np.zeros(len(tries), np.int64), torch.zeros(0, 0)
        return self._cache.extend(
            [situation.episode for situation in situations],
            [np.concatenate([s.prompt_ids, trie.opening]) for s, trie in zip(situations, tries, strict=True)],
        )

    def _choose(self, due: Sequence[Choosing], opened: Tensor) -> None:
        """Takes each one step: to the next branch or to its command."""
        numbers: dict[tuple[int, Branch], int] = {}
        index = [numbers.setdefault((walk.row, walk.branch), len(numbers)) for walk in due]
        places = [due[index.index(number)].place for number in range(len(numbers))]
        logprobs = self._logprobs(places, opened)[index]
        uniforms = np.array([walk.uniforms[len(walk.logprobs)] for walk in due])
        chosen = draw(logprobs, uniforms, np.array([walk.greedy for walk in due]))
        for walk, values, child in zip(due, logprobs, chosen, strict=True):
            branch = walk.branch
            walk.logprobs.append(values[: len(branch.ids)])
            walk.at = branch.children[child]

    def _logprobs(self, places: Sequence[Place], opened: Tensor) -> FloatArray:
        """Log-probabilities [N, largest C] of what may follow at each place; `opened`: the logits of the cache's rows."""
        at_once = [i for i, (_, _, suffix) in enumerate(places) if len(suffix) == 0]
        later = [i for i, (_, _, suffix) in enumerate(places) if len(suffix) > 0]
        logits = opened.new_empty(len(places), opened.shape[1])
        logits[at_once] = opened[[places[i][0] for i in at_once]]
        if later:
            logits[later] = self._cache.following([places[i][0] for i in later], [places[i][2] for i in later])
        return branch_logprobs(logits, [branch for _, branch, _ in places], self.temperature)


def _command(trie: CommandTrie, settled: Branch | int, logprobs: Sequence[FloatArray]) -> Action:
    assert isinstance(settled, int)
    return Action(trie.commands[settled], trie.path(settled).generation(logprobs))


class RankActor:
    """Scores every command whole: pi(command) = softmax(mean log-probability of its tokens / temperature).

    The mean, for a sum prefers short commands whatever they say. The distribution differs from `ConstrainedActor`'s, so
    what this one plays is evaluated and shown, never trained on. Its generations carry the command's log-probability on
    their first token and 0 on the others.
    """

    def __init__(self, model: nn.Module, prompter: Prompter, temperature: float):
        self.temperature = temperature
        self._cache = PrefixCache(model)
        self._tries = CommandTries(prompter.command_ids)

    def reset(self) -> None:
        self._cache.reset()

    def act(self, situations: Sequence[Situation]) -> list[Action]:
        """One command each. Raises EpisodeError where a situation has none or two are the same tokens."""
        actions = []
        for situation, logprobs in zip(situations, self.command_logprobs(situations), strict=True):
            uniforms, greedy = uniform_stream(situation.seed, 1), np.array([situation.greedy])
            chosen = int(draw(logprobs[None], uniforms, greedy)[0])
            trie = self._tries.of(situation.state.commands)
            actions.append(Action(trie.commands[chosen], _ranked(trie.path(chosen).ids, logprobs[chosen])))
        return actions

    def command_logprobs(self, situations: Sequence[Situation]) -> list[FloatArray]:
        """Log-probabilities of all commands of each situation, [len(commands)] nats in their order."""
        if not situations:
            return []
        tries = [self._tries.of(situation.state.commands) for situation in situations]
        rows, opened = self._cache.extend(
            [situation.episode for situation in situations], [situation.prompt_ids for situation in situations]
        )
        distinct = list(dict.fromkeys(zip(rows.tolist(), tries, strict=True)))
        tokens = iter(
            self._cache.continuation_logprobs(
                opened,
                [row for row, trie in distinct for _ in trie.commands],
                [np.array(sequence) for _, trie in distinct for sequence in trie.sequences],
            )
        )
        scores = {place: np.array([next(tokens).mean() for _ in place[1].commands]) for place in distinct}
        return [
            log_softmax(scores[place] / self.temperature).astype(np.float32)
            for place in zip(rows.tolist(), tries, strict=True)
        ]


def _ranked(ids: IntArray, logprob: np.float32) -> Generation:
    logprobs = np.zeros(len(ids), np.float32)
    logprobs[0] = logprob
    return Generation(ids, logprobs, logprobs, np.zeros(0, np.float32), "eos")


class FreeActor:
    """Writes whatever the policy says; with `stop_at_sentence` up to the end of a sentence (SPEC TW-4), with rules for
    responses up to their stop (SPEC LMHP-15).

    The sampler's model is whole on every worker, so batches may stop at different lengths: the equal number of forward
    passes of SPEC TW-5 is for models whose parameters are sharded over ranks.
    """

    def __init__(
        self,
        sampler: TransformersSampler,
        prompter: Prompter,
        stop_at_sentence: bool = False,
        response: ResponseConfig = NO_RULES,
    ):
        """`response`: rules that end no response where `stop_at_sentence` does."""
        self.sampler = sampler
        self.prompter = prompter
        self.rules = ResponseRules(response, prompter.decode, sampler.ends)
        self.clean = stop_at_sentence
        self.ends: Callable[[IntArray], bool] | None = None
        if stop_at_sentence:
            self.ends = ends_sentence(prompter.decode, sampler.ends)
        elif self.rules.stops_sampling:
            self.ends = self.rules.ends

    def reset(self) -> None:
        """There is nothing to forget."""

    def act(self, situations: Sequence[Situation]) -> list[Action]:
        generations = self.sampler.sample(
            [situation.prompt_ids for situation in situations],
            [situation.seed for situation in situations],
            [situation.greedy for situation in situations],
            self.ends,
        )
        return [self._action(generation) for generation in generations]

    def _action(self, generation: Generation) -> Action:
        marks = self.rules.marks(generation.response_ids)
        text = self.prompter.decode(generation.response_ids[: marks.shown_tokens])
        return Action(clean_action(text) if self.clean else text, generation, marks.shown_tokens, marks.missing_stop)


class AutoActor:
    """Chooses among a situation's commands token by token, and writes freely where it has none."""

    def __init__(self, constrained: ConstrainedActor, free: FreeActor):
        self.constrained = constrained
        self.free = free

    def reset(self) -> None:
        self.constrained.reset()

    def act(self, situations: Sequence[Situation]) -> list[Action]:
        choosing = [i for i, situation in enumerate(situations) if situation.state.commands]
        if choosing:
            _refuse_truncation(self.free.sampler.settings)
            _refuse_rules(self.free.rules)
        writing = [i for i, situation in enumerate(situations) if not situation.state.commands]
        actions: dict[int, Action] = {}
        if choosing:
            actions |= zip(choosing, self.constrained.act([situations[i] for i in choosing]), strict=True)
        if writing:
            actions |= zip(writing, self.free.act([situations[i] for i in writing]), strict=True)
        return [actions[i] for i in range(len(situations))]


def make_actor(
    kind: ActionKind,
    sampler: TransformersSampler,
    prompter: Prompter,
    stop_at_sentence: bool = False,
    response: ResponseConfig = NO_RULES,
) -> PolicyActor:
    """The actor of `agent.actions`, with the sampler's model and temperature.

    Raises ConfigError where top-k, top-p or rules for responses meet a choice among commands; with `auto` once a
    situation has some.
    """
    free = FreeActor(sampler, prompter, stop_at_sentence, response)
    if kind == "free":
        return free
    if kind == "auto":
        return AutoActor(ConstrainedActor(sampler.model, prompter, sampler.settings.temperature), free)
    _refuse_truncation(sampler.settings)
    _refuse_rules(free.rules)
    actor = ConstrainedActor if kind == "constrained" else RankActor
    return actor(sampler.model, prompter, sampler.settings.temperature)


def _refuse_truncation(settings: SamplingSettings) -> None:
    if settings.top_k is not None or settings.top_p is not None:
        raise ConfigError(
            "rollout.top_k and rollout.top_p cut the vocabulary, and here the policy chooses among the game's commands: "
            "leave them out, or set agent.actions to free"
        )


def _refuse_rules(rules: ResponseRules) -> None:
    if rules.active:
        raise ConfigError(
            "response.truncation and response.missing_stop are rules for what is written freely, and here the policy "
            "chooses among the game's commands: leave them out, or set agent.actions to free"
        )
