"""`rayrlhf play`: a person, a policy, or both at a text game in the terminal. Ray is not started."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rayrlhf.agent_text import make_prompter
from rayrlhf.config import ModelConfig
from rayrlhf.environments import EnvironmentSettings, open_environments
from rayrlhf.errors import UserError
from rayrlhf.games.lookup import GameLookup
from rayrlhf.interfaces import Environments, Prompter
from rayrlhf.play.code_points import CodePointPrompter, from_code_points
from rayrlhf.play.decisions import Decider
from rayrlhf.play.outputs import Exports, TranscriptFile, check_new
from rayrlhf.play.policy import PlayPolicy
from rayrlhf.play.replay import first_difference
from rayrlhf.play.session import PlaySession
from rayrlhf.play.setting import Setting, find_setting
from rayrlhf.play.terminal import Person, Screen, Watcher, keyboard
from rayrlhf.play.transcripts import Header, PlayedTurn, read_transcript
from rayrlhf.policy import (
    check_policy,
    context_length,
    end_ids,
    load_policy,
    load_tokenizer,
    resolve_model,
    vocabulary_fingerprint,
)
from rayrlhf.terminal_output import plain_console
from rayrlhf.trust import NOBODY, Trust, code_of_environment
from rayrlhf.types import IntArray
from rayrlhf.value import load_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PlayOptions:
    """What the command line says."""

    source: str | None  # a run's folder, a model folder or its name
    game: Path | None
    human: bool
    watch: bool
    delay_s: float
    seed: int
    held_out: bool
    temperature: float | None  # None: the run's
    greedy: bool
    save: Path | None
    exports: Exports
    trust: Trust = NOBODY

    def check(self) -> None:
        """Raises UserError for what does not go together, and for files that are there already."""
        if self.source is None and not self.human:
            raise UserError("play with whom? Give a run's folder or a model, or --human to play alone")
        if self.watch and self.human:
            raise UserError("--watch lets the policy play and --human plays without one: give one of them")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise UserError(f"--temperature must be a number above 0, not {self.temperature:g}")
        if self.save is not None:
            check_new(self.save)
        self.exports.check()


@dataclass(frozen=True, slots=True)
class Seat:
    """What a player needs of the model: how the game is read, and the policy, unless a person plays alone."""

    prompter: Prompter
    text_of: Callable[[IntArray], str]  # ids as the text that makes them
    vocabulary: str  # fingerprint of what the ids mean
    policy: PlayPolicy | None


def play(options: PlayOptions) -> None:
    """Plays until the player leaves, Ctrl-C included, and writes the files that were asked for. Raises UserError."""
    options.check()
    setting = find_setting(options.source, options.game, "held_out" if options.held_out else "train", options.trust)
    if options.temperature is not None:
        setting = replace(setting, sampling=replace(setting.sampling, temperature=options.temperature))
    seat = take_seat(setting, with_policy=not options.human)
    transcript = TranscriptFile(header_of(setting, seat, options.seed), options.save)
    console = plain_console(highlight=False, markup=False, emoji=False)
    screen = Screen(console, setting.title)
    player: Decider
    if options.watch:
        player = Watcher(screen, options.delay_s)
    else:
        player = Person(screen, keyboard(), GameLookup(setting.environment), transcript.save)
    with contextlib.closing(open_environments(setting.environment)) as environments:
        record = play_session(setting, environments, seat, player, transcript.keep_up, options.seed, options.greedy)
    if options.save is not None and record:
        console.print(f"transcript in {options.save}", soft_wrap=True)
    for line in options.exports.write(record):
        console.print(line, soft_wrap=True)


def play_again(file: Path, exports: Exports, trust: Trust = NOBODY) -> bool:
    """Plays a transcript again and prints whether it leads to the same states; returns that. Raises UserError."""
    exports.check()
    transcript = read_transcript(file)
    header, console = transcript.header, plain_console(highlight=False, markup=False, emoji=False)
    trust.require(file, code_of_environment(header.environment))
    settings = EnvironmentSettings(header.environment, header.parameters, header.split)
    with contextlib.closing(open_environments(settings)) as environments:
        difference = first_difference(transcript, environments)
    undone = sum(turn.undone for turn in transcript.turns)
    told = f"{len(transcript.turns) - undone} moves, and {undone} that were undone"
    console.print(f"{file}: {difference or f'leads to the same states: {told}'}", soft_wrap=True)
    for line in exports.write(transcript.turns):
        console.print(line, soft_wrap=True)
    return difference is None


def play_session(
    setting: Setting,
    environments: Environments,
    seat: Seat,
    player: Decider,
    on_change: Callable[[Sequence[PlayedTurn]], None],
    seed: int,
    greedy: bool,
) -> Sequence[PlayedTurn]:
    """Plays in the setting until the player leaves, by Ctrl-C too; returns the record."""
    session = PlaySession(
        environments=environments,
        prompter=seat.prompter,
        text_of=seat.text_of,
        policy=seat.policy,
        player=player,
        on_change=on_change,
        max_turns=setting.max_turns,
        split=setting.environment.split,
        greedy=greedy,
    )
    with contextlib.suppress(KeyboardInterrupt):
        session.play(seed)
    return session.record


def take_seat(setting: Setting, with_policy: bool) -> Seat:
    """Loads what the setting's model is needed for. Raises UserError where it cannot be used."""
    model = setting.model
    if model is None:
        return Seat(CodePointPrompter(), from_code_points, "code points", None)
    tokenizer = load_tokenizer(model)
    context, sampling = context_length(model), setting.sampling
    ends = end_ids(model, tokenizer)
    prompter = make_prompter(setting.agent, tokenizer, (), context, sampling.max_new_tokens, ends)
    policy = None
    if with_policy:
        network = load_policy(model)
        check_policy(model, network, tokenizer)
        folder = value_folder(model)
        value = load_value(folder, network) if folder.is_dir() else None
        policy = PlayPolicy(network, ends, prompter, setting.agent, sampling, value, setting.response)
    return Seat(prompter, text_maker(tokenizer, ends), vocabulary_fingerprint(tokenizer), policy)


def value_folder(model: ModelConfig) -> Path:
    """Where a checkpoint has its value network: beside the policy."""
    return Path(resolve_model(model.path)).parent / "value"


def text_maker(tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()) -> Callable[[IntArray], str]:
    """Ids as text with special tokens, but without an end at their end and the BOS that the tokenizer adds by itself."""
    adds_bos = list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]

    def text_of(ids: IntArray) -> str:
        kept = ids.tolist()
        if kept and kept[-1] in (tokenizer.eos_token_id, *ends):
            kept = kept[:-1]
        if adds_bos and kept[:1] == [tokenizer.bos_token_id]:
            kept = kept[1:]
        return str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return text_of


def header_of(setting: Setting, seat: Seat, seed: int) -> Header:
    return Header(
        model=None if setting.model is None else setting.model.path,
        tokenizer=seat.vocabulary,
        environment=setting.environment.name,
        parameters=dict(setting.environment.parameters),
        split=setting.environment.split,
        max_turns=setting.max_turns,
        seed=seed,
        agent=setting.agent.model_dump(),
    )
