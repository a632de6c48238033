"""Playing in the terminal: sessions over a real pseudo-terminal and a pipe, transcripts, and the data made of them."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from rayrlhf.actions import ConstrainedActor
from rayrlhf.agent_text import make_prompter
from rayrlhf.algorithm_config import SeparateValueConfig
from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.config import AgentConfig, EnvironmentConfig, ModelConfig, RolloutConfig, RunConfig, ScratchConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.environments import EnvironmentSettings, open_environments
from rayrlhf.errors import EpisodeError, UserError
from rayrlhf.games.kinds import game_kind
from rayrlhf.games.lookup import GameLookup
from rayrlhf.games.making import game_file
from rayrlhf.interfaces import Environments
from rayrlhf.play.code_points import CodePointPrompter, from_code_points
from rayrlhf.play.command import Seat, header_of, play_again, play_session, take_seat
from rayrlhf.play.decisions import Decision, OwnMove, PolicyMove, Quit, Restart, SetTemperature, Undo, View
from rayrlhf.play.keys import Autoplay, InputError, Save, Show, Typed, read_typed
from rayrlhf.play.outputs import Exports, TranscriptFile
from rayrlhf.play.recording import Film, FilmedPerson, write_picture
from rayrlhf.play.replay import ScriptedActor, first_difference
from rayrlhf.play.session import PlaySession
from rayrlhf.play.setting import Setting, find_setting
from rayrlhf.play.terminal import Person, Screen, Watcher
from rayrlhf.play.transcripts import (
    PlayedTurn,
    Transcript,
    TranscriptError,
    human_actions,
    preference_rows,
    read_transcript,
    sft_rows,
    write_transcript,
)
from rayrlhf.policy import context_length, load_policy, load_tokenizer
from rayrlhf.reading import printable
from rayrlhf.rollout import play_episodes
from rayrlhf.run_folder import RunFolder
from rayrlhf.scratch import environment_texts, make_scratch_model
from rayrlhf.types import EpisodeSpec, GameState, Situation, StepResult
from rayrlhf.value import build_value_network, load_value, write_value

pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")

PARAMETERS = {"kind": "coin_collector", "level": 2, "games": 2, "held_out_games": 1}
GAMES = EnvironmentSettings("textworld", PARAMETERS)
AGENT = AgentConfig(prompt="actions", memory_turns=2)
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, games: Environments) -> Path:
    """The folder of a run with one checkpoint: a random policy, and a value network whose V is not 0."""
    folder = tmp_path_factory.mktemp("runs")
    texts = environment_texts(games, games=2, steps=5)
    sizes = ScratchConfig(hidden_size=32, layers=1, heads=2, context=256, vocabulary=400)
    config = RunConfig(
        name="coin",
        storage_path=str(folder),
        environment=EnvironmentConfig(name="textworld", max_turns=20, **PARAMETERS),
        agent=AGENT,
        rollout=RolloutConfig(max_new_tokens=16, temperature=TEMPERATURE),
    )
    RunFolder.create(config, dump_config(config)).close()
    store = CheckpointStore(folder / "coin" / "checkpoints", 1, 1)
    partial = store.begin(1)
    make_scratch_model(sizes, texts, 0, partial / "model")
    network = build_value_network(SeparateValueConfig(), ModelConfig(path=str(partial / "model")))
    torch.nn.init.normal_(network.head.output.weight, generator=torch.Generator().manual_seed(0))
    write_value(partial / "value", SeparateValueConfig(), network.backbone, network.state_dict())
    (partial / "trainer").mkdir()
    (partial / "trainer" / "state").write_text("the learner's")
    store.commit(partial, 1, {})
    return folder / "coin"


@pytest.fixture(scope="module")
def solutions(games: Environments) -> dict[int, tuple[str, ...]]:
    """Seed -> commands that win."""
    return {seed: start.state.solution for seed, start in enumerate(games.reset([0, 1]))}


@pytest.fixture(scope="module")
def setting(run: Path) -> Setting:
    return find_setting(str(run), None, "train")


@pytest.fixture(scope="module")
def games() -> Iterator[Environments]:
    with closing(open_environments(GAMES)) as environments:
        yield environments


@pytest.fixture(scope="module")
def seat(setting: Setting) -> Seat:
    return take_seat(setting, with_policy=True)


class Session:
    """One scripted session in this process."""

    def __init__(self, setting: Setting, games: Environments, seat: Seat, *lines: str, greedy: bool = False):
        self.output = io.StringIO()
        screen = Screen(Console(file=self.output, width=100, highlight=False, markup=False), setting.title)
        script = iter(lines)
        self.header = header_of(setting, seat, seed=0)
        file = TranscriptFile(self.header, None)
        person = Person(screen, lambda: _next(script), GameLookup(setting.environment), file.save)
        self.changes: list[int] = []
        self.record = play_session(setting, games, seat, person, lambda r: self.changes.append(len(r)), 0, greedy)

    @property
    def transcript(self) -> Transcript:
        return Transcript(self.header, tuple(self.record))


def _next(script: Iterator[str]) -> str:
    for line in script:
        return line
    raise EOFError


# Over a terminal and a pipe


class Terminal:
    """A process at a pseudo-terminal of its own."""

    def __init__(self, folder: Path, *arguments: str, term: str = "xterm-256color"):
        self._fd, its = pty.openpty()
        environment = {**os.environ, "TERM": term, "COLUMNS": "100", "LINES": "40", "PYTHONUTF8": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rayrlhf", "play", *arguments],
            cwd=folder, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(its)
        self.output = ""
        self._seen = 0

    def wait_for(self, text: str, timeout_s: float = 60) -> str:
        """Everything up to the next time the terminal shows this text."""
        deadline = time.monotonic() + timeout_s
        while (found := self.output.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.output[self._seen :]!r}"
            self._read(0.2)
        passed = self.output[self._seen : found + len(text)]
        self._seen = found + len(text)
        return passed

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def end(self, timeout_s: float = 30) -> int:
        """The exit code."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.1)
        self._read(0)
        os.close(self._fd)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def _read(self, patience_s: float) -> None:
        if select.select([self._fd], [], [], patience_s)[0]:
            try:
                self.output += os.read(self._fd, 1 << 16).decode("utf-8", "replace")
            except OSError:  # the other end was closed
                time.sleep(0.05)


def _take_terminal() -> None:
    """Makes standard input the terminal that sends this process Ctrl-C."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_session_at_a_terminal_wins_takes_over_undoes_and_saves(
    run: Path, solutions: Mapping[int, tuple[str, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TW-2, TW-26: a real pseudo-terminal; the transcript replays to the same states, in another process."""
    exports = ["--export-sft", "sft.jsonl", "--export-preferences", "pairs.jsonl"]
    terminal = Terminal(tmp_path, str(run), "--save", "played.jsonl", *exports)
    shown = terminal.wait_for("value ")
    assert "textworld coin_collector level 2 · seed 0 · moves 0 · score 0/1" in shown
    assert "\x1b[" in shown  # colours
    assert "━" in shown
    terminal.type("\n")
    terminal.wait_for("(policy, 0.")
    terminal.wait_for("moves 1 ")
    terminal.type("u\n")
    terminal.wait_for("moves 0 ")
    terminal.type("no such thing, 9\n")
    terminal.wait_for("(you)")
    terminal.type("u\n99\n")
    terminal.wait_for("there is no command 99: the commands are numbered 1 to")
    for number, command in enumerate(solutions[0], start=1):
        terminal.type(f"{command}\n")
        terminal.wait_for(f"moves {number} ")
    terminal.wait_for(f"Won in {len(solutions[0])} moves.")
    assert "reward +1" in terminal.output
    terminal.type("\n")
    terminal.wait_for("the game is over: u takes the last move back")
    terminal.type("m\n")
    terminal.wait_for("[@ ")
    terminal.type("r 1\n")
    terminal.wait_for("seed 1 · moves 0")
    terminal.wait_for("value ")
    terminal.wait_for("> ")  # before its prompt a terminal would take Ctrl-D for something else
    terminal.type("\x04")
    terminal.wait_for("transcript in played.jsonl")
    assert terminal.end() == 0

    played = read_transcript(tmp_path / "played.jsonl")
    assert [(t.who, t.undone) for t in played.turns[:2]] == [("policy", True), ("human", True)]
    assert [t.action for t in played.turns[2:]] == list(solutions[0])
    assert played.turns[-1].won
    assert play_again(tmp_path / "played.jsonl", Exports())
    assert "leads to the same states: 2 moves, and 2 that were undone" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in rows] == [f" {command}" for command in solutions[0]]
    assert (tmp_path / "pairs.jsonl").exists()


def test_ctrl_c_at_a_dumb_terminal_ends_cleanly_and_nothing_is_lost(
    run: Path, tmp_path: Path, solutions: Mapping[int, tuple[str, ...]]
) -> None:
    terminal = Terminal(tmp_path, str(run), "--human", "--save", "played.jsonl", term="dumb")
    terminal.wait_for("moves 0 ")
    terminal.type("\n")
    terminal.wait_for("there is no policy here")
    terminal.type(f"{solutions[0][0]}\n")
    terminal.wait_for("moves 1 ")
    terminal.wait_for("> ")
    time.sleep(1)  # Ctrl-C between the prompt and the read behind it is only seen with the next key
    terminal.type("\x03")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.output
    assert "\x1b" not in terminal.output
    [turn] = read_transcript(tmp_path / "played.jsonl").turns
    assert (turn.who, turn.action, turn.probabilities) == ("human", solutions[0][0], ())


def test_a_session_over_a_pipe_is_plain_text_and_ends_with_its_input(
    run: Path, tmp_path: Path, solutions: Mapping[int, tuple[str, ...]]
) -> None:
    game = game_file(game_kind("coin_collector", level=2), "train", 0)
    model = run / "checkpoints" / "000001" / "model"
    ended = subprocess.run(
        [sys.executable, "-m", "rayrlhf", "play", str(model), "--game", str(game), "--temperature", "0.5"],
        input="a 2\n\xff\nt hot\nr 5\n1\n?".encode("latin-1"), capture_output=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    printed = ended.stdout.decode()
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stderr == b""
    assert "\x1b" not in printed
    assert "game.z8 · seed 0 · moves 0 · score 0/1 · T 0.5 ---" in printed
    assert printed.count("(policy, 0.") == 2
    assert "there is no key '\ufffd'" in printed
    assert "t wants a temperature above 0, as in t 0.5, not 'hot'" in printed
    assert "seed 5 · moves 0" in printed
    assert "(you, 0." in printed
    assert printed.endswith("just now.\n")
    assert list(tmp_path.iterdir()) == []  # nothing is written that was not asked for


# What is shown is what is trained


def test_shown_probabilities_are_those_of_training(
    setting: Setting, run: Path, games: Environments, seat: Seat
) -> None:
    """TW-7: the prompts are the training prompter's, token for token; the probabilities are the training actor's."""
    session = Session(setting, games, seat, "look", "inventory", "1", "")
    recorded = session.record
    model, tokenizer = setting.model, load_tokenizer(setting.model)
    network = load_policy(model)
    prompter = make_prompter(AGENT, tokenizer, (), context_length(model), 16)
    actor = ScriptedActor([turn.action for turn in recorded], prompter)
    [trajectory] = play_episodes([EpisodeSpec(0, 0, 0, 0)], games, actor, prompter, max_turns=len(recorded))
    for turn, trained in zip(recorded, trajectory.turns):
        assert turn.prompt_ids == tuple(trained.prompt_ids.tolist())
        assert turn.response_ids == tuple(trained.response_ids.tolist())
        situation = Situation(0, trained.prompt_ids, trained.observation, trained.before, seed=0)
        [logprobs] = ConstrainedActor(network, prompter, TEMPERATURE).command_logprobs([situation])
        assert turn.commands == trained.before.commands
        np.testing.assert_allclose(turn.probabilities, np.exp(logprobs), atol=1e-5)
        assert sum(turn.probabilities) == pytest.approx(1, abs=1e-5)
        assert turn.probability == pytest.approx(dict(zip(turn.commands, turn.probabilities))[turn.action], abs=1e-5)
        assert turn.prompt.endswith("\n>")
        assert turn.completion == f" {turn.action}"
    assert [turn.who for turn in recorded] == ["human", "human", "human", "policy"]


def test_the_value_is_that_of_the_prompt(setting: Setting, run: Path, games: Environments, seat: Seat) -> None:
    [turn] = Session(setting, games, seat, "1").record
    network = load_value(run / "checkpoints" / "000001" / "value")
    with torch.inference_mode():
        [[value]] = network(torch.tensor([turn.prompt_ids]), torch.tensor([len(turn.prompt_ids) - 1])).tolist()
    assert value != 0
    assert turn.value == pytest.approx(value, abs=1e-5)


def test_temperature_and_greedy_hold_from_then_on(setting: Setting, games: Environments, seat: Seat) -> None:
    """softmax(z / T): on the first state's commands, which part at their first token, p**(T1/T2) up to a factor."""
    session = Session(setting, games, seat, "1", "u", "t 0.1", "g", "")
    before, after = session.record
    assert (before.temperature, after.temperature) == (TEMPERATURE, 0.1)
    cold = np.array(before.probabilities) ** (TEMPERATURE / 0.1)
    first_words = [command.split()[0] for command in before.commands]
    assert len(set(first_words)) == len(first_words)
    np.testing.assert_allclose(after.probabilities, cold / cold.sum(), atol=1e-3)
    assert after.action == after.commands[int(np.argmax(after.probabilities))]
    assert "· T 0.1 " in session.output.getvalue()
    assert "· greedy" in session.output.getvalue()


def test_a_policy_that_writes_freely_shows_how_likely_it_writes_each_command(
    setting: Setting, games: Environments
) -> None:
    free = replace(setting, agent=AGENT.model_copy(update={"actions": "free"}))
    written, own = Session(free, games, take_seat(free, with_policy=True), "", "1").record
    network = load_policy(setting.model)
    tokenizer = load_tokenizer(setting.model)
    for command, probability in zip(own.commands, own.probabilities):
        answer = [*tokenizer(f" {command}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = network(input_ids=torch.tensor([[*own.prompt_ids, *answer]])).logits[0].double() / TEMPERATURE
        places = range(len(own.prompt_ids) - 1, len(own.prompt_ids) - 1 + len(answer))
        expected = np.prod([float(logits[at].softmax(-1)[token]) for at, token in zip(places, answer)])
        assert probability == pytest.approx(expected, rel=1e-3)
    assert 0 < sum(own.probabilities) < 1
    assert written.who == "policy"


# Moves taken back, games begun anew


def test_undo_plays_again_from_the_seed(
    setting: Setting, solutions: Mapping[int, tuple[str, ...]], games: Environments, seat: Seat
) -> None:
    first, second = solutions[0]
    session = Session(setting, games, seat, first, "look", "inventory", "u 2", second, "u", "u", "u", first, second)
    assert [(t.turn, t.action, t.undone) for t in session.record] == [
        (0, first, True), (1, "look", True), (2, "inventory", True), (1, second, True),
        (0, first, False), (1, second, False),
    ]  # fmt: skip
    assert {turn.game for turn in session.record} == {0}
    assert session.record[3].prompt_ids == session.record[1].prompt_ids == session.record[5].prompt_ids
    assert session.record[5].won
    assert session.changes == [1, 2, 3, 3, 4, 4, 4, 4, 5, 6]  # told of moves and of undoing, not of moves played again


def test_restart_with_a_seed_is_another_game(
    setting: Setting, solutions: Mapping[int, tuple[str, ...]], games: Environments, seat: Seat
) -> None:
    won = [*solutions[0], "r 1", *solutions[1], "r", "look", "r 0", "look"]
    session = Session(setting, games, seat, *won)
    assert {(turn.game, turn.seed) for turn in session.record} == {(0, 0), (1, 1), (2, 1), (3, 0)}
    assert [turn.action for turn in session.record if turn.won] == [solutions[0][-1], solutions[1][-1]]
    with closing(open_environments(GAMES)) as others:  # which remember nothing
        assert first_difference(session.transcript, others) is None


def test_autoplay_stops_at_the_end_and_the_limit_cuts_a_game_off(
    setting: Setting, games: Environments, seat: Seat
) -> None:
    short = replace(setting, max_turns=3)
    session = Session(short, games, seat, "look", "look", "a", "", "u", "a 5", "q")
    assert [(t.who, t.undone) for t in session.record] == [
        ("human", False), ("human", False), ("policy", True), ("policy", False),
    ]  # fmt: skip
    assert "Cut off: 3 moves is the limit." in session.output.getvalue()
    assert "the game is over" in session.output.getvalue()


class Drifting:
    """Environments that answer otherwise each time (`interfaces.Environments`)."""

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, seeds: Sequence[int]) -> list[StepResult]:
        return [StepResult("start", 0.0, False, False, GameState()) for _ in seeds]

    def step(self, actions: Mapping[int, str]) -> dict[int, StepResult]:
        self.steps += 1
        return {slot: StepResult(f"step {self.steps}", 0.0, False, False, GameState()) for slot in actions}

    def counts(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None: ...


class Script:
    """A player with its decisions made (`play_decisions.Decider`)."""

    def __init__(self, *decisions: Decision):
        self.decisions = iter(decisions)

    def decide(self, view: View) -> Decision:
        return next(self.decisions)

    def played(self, turn: PlayedTurn) -> None: ...


def test_undo_in_an_environment_that_is_not_deterministic_is_an_error() -> None:
    player = Script(OwnMove("a"), OwnMove("b"), Undo(1), Quit())
    session = PlaySession(Drifting(), CodePointPrompter(), from_code_points, None, player, lambda _: None, 10)
    with pytest.raises(EpisodeError, match=r"seed 4, move 1: 'a' played again has led elsewhere"):
        session.play(4)


# What is typed


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("", PolicyMove()), ("  ", PolicyMove()), ("2", OwnMove("go east")), ("Go  East", OwnMove("go east")),
        ("u", OwnMove("u")), ("u 1", Undo(1)), ("> u", OwnMove("u")), ("> 7", OwnMove("7")), ("a", Autoplay(None)),
        ("a 3", Autoplay(3)), ("r", Restart(None)), ("r 7", Restart(7)), ("t .5", SetTemperature(0.5)), ("s", Save(None)),
        ("s my file", Save(Path("my file"))), ("m", Show("map")), ("h", Show("hint")), ("o", Show("objective")),
        ("?", Show("help")), ("q", Quit()), ("examine the lamp", OwnMove("examine the lamp")), ("LOOK", OwnMove("look")),
    ],
)  # fmt: skip
def test_what_is_typed_is_a_key_a_number_or_a_command(line: str, typed: Typed) -> None:
    """A single letter is a key unless the game lists it as a command just now."""
    commands = ("go east", "look", "u")
    assert read_typed(line, commands, ("u", "go east", "look"), over=False, has_policy=True) == typed


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("0", "there is no command 0: the commands are numbered 1 to 2"), ("x", "there is no key 'x'"),
        ("a 0", "a wants a whole number of at least 1, not '0'"), ("a \u0663", "a wants a whole number"),
        ("u -1", "u wants a whole number of at least 1"), ("r x", "r wants a whole number of at least 0, not 'x'"),
        ("t", "t wants a temperature above 0"), ("t nan", "t wants a temperature"), ("t -1", "t wants a temperature"),
        ("m 1", "m stands alone"), (">", "> wants a text"), ("go eats", "did you mean 'go east'?"),
        ("9" * 30, "there is no command"), ("\u00b2", "there is no key"), ("r " + "9" * 30, "r wants"),
    ],
)  # fmt: skip
def test_wrong_input_is_answered_with_a_line(line: str, answer: str) -> None:
    with pytest.raises(InputError, match=re.escape(answer)) as fault:
        read_typed(line, ("go east", "look"), ("go east", "look"), over=False, has_policy=True)
    assert "\n" not in str(fault.value)


def test_map_hint_and_objective(
    setting: Setting, solutions: Mapping[int, tuple[str, ...]], games: Environments, seat: Seat
) -> None:
    """The hint holds off the game's own way too, where the environment itself tells no solution."""
    output = Session(setting, games, seat, "m", "h", solutions[0][0], "inventory", "h", "o").output.getvalue()
    output = " ".join(output.split())
    assert re.search(r"\[@ \w+", output)
    assert f"hint: {solutions[0][0]}, then 1 more" in output
    assert f"hint: {solutions[0][1]}, and it is won" in output
    assert "you're the winner" in output


def test_a_game_cannot_write_to_the_terminal() -> None:
    assert printable("a\x1b[31mred\x07\r\n\tb\u202e\ud800") == "a\u241b[31mred\u2407\n\tb\ufffd\ufffd"


def test_a_policy_is_watched_until_the_end(setting: Setting, games: Environments, seat: Seat) -> None:
    output = io.StringIO()
    watcher = Watcher(Screen(Console(file=output, width=100), "coin"), delay_s=0)
    record = play_session(replace(setting, max_turns=5), games, seat, watcher, lambda _: None, 0, greedy=False)
    assert output.getvalue().count("(policy, 0.") == len(record) <= 5
    assert re.search(r"Won in|Cut off", output.getvalue())


# Transcripts


def test_replay_names_the_first_difference(
    setting: Setting, solutions: Mapping[int, tuple[str, ...]], games: Environments
) -> None:
    transcript = Session(setting, games, take_seat(setting, with_policy=False), *solutions[0]).transcript
    first, second = transcript.turns

    def difference(*turns: PlayedTurn) -> str | None:
        return first_difference(replace(transcript, turns=turns), games)

    assert difference(first, second) is None
    other = difference(first, second.model_copy(update={"observation": "a cellar"}))
    assert other is not None
    assert other.startswith(f"game 0, seed 0, move 2 ({second.action!r}): the observation was 'a cellar' and is ")
    longer = difference(first, second, second.model_copy(update={"turn": 2}))
    assert longer == "game 0, seed 0: over after 2 moves, it was not before move 3"
    end = difference(first.model_copy(update={"next_observation": "dark"}))
    assert end is not None
    assert end.startswith("game 0, seed 0, the end: it was 'dark' and is ")


def test_a_transcript_reads_back_equal_and_faults_name_their_line(
    setting: Setting, tmp_path: Path, games: Environments, seat: Seat
) -> None:
    transcript = Session(setting, games, seat, "", "u", "1").transcript
    path = tmp_path / "played.jsonl"
    write_transcript(path, transcript)
    assert read_transcript(path) == transcript
    assert transcript.header.agent["prompt"] == "actions"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "{}"]))
    with pytest.raises(TranscriptError, match=r"played\.jsonl:3: game is missing"):
        read_transcript(path)
    path.write_text(lines[0].replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(TranscriptError, match="schema version 2"):
        read_transcript(path)
    path.write_text("hello")
    with pytest.raises(TranscriptError, match=r"played\.jsonl:1: not JSON"):
        read_transcript(path)
    with pytest.raises(TranscriptError, match="cannot be read"):
        read_transcript(tmp_path / "missing.jsonl")


def test_training_data_of_a_session(setting: Setting, games: Environments, seat: Seat) -> None:
    """Chosen: a person's moves that stand; rejected: the policy's likeliest, and what was undone in the same place."""
    session = Session(setting, games, seat, "1", "u", "2", "nonsense", "u", "3", "1", greedy=True)
    likeliest, taken, refused, third, agreed = session.record
    place = session.record[0]
    ranked = [command for _, command in sorted(zip(place.probabilities, place.commands), reverse=True)]
    assert [likeliest.action, taken.action] == ranked[:2]
    assert preference_rows(session.record) == [
        {"prompt": taken.prompt, "chosen": f" {taken.action}", "rejected": f" {likeliest.action}"},
        {"prompt": third.prompt, "chosen": f" {third.action}", "rejected": third.likeliest_completion},
        {"prompt": third.prompt, "chosen": f" {third.action}", "rejected": " nonsense"},
    ]
    assert not refused.valid
    assert agreed.completion == agreed.likeliest_completion  # no preference: the policy would have done the same
    assert [row["completion"] for row in sft_rows(session.record)] == [t.completion for t in (taken, third, agreed)]
    by_key = human_actions(session.transcript)
    assert all(turn.action in by_key[turn.game_key] for turn in (taken, third, agreed))
    assert sum(map(len, by_key.values())) == 3  # neither what was undone nor what the game refused


def test_files_of_anything_else_are_never_written_over(
    setting: Setting, tmp_path: Path, games: Environments, seat: Seat
) -> None:
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    session = Session(
        setting, games, seat, "look", f"s {mine}", f"s {tmp_path / 'a.jsonl'}", "look", "s", "s /no/such/folder/x"
    )
    output = "".join(session.output.getvalue().splitlines())
    assert "is there already: give another file, or remove it" in output
    assert "there is no folder /no/such/folder" in output
    assert mine.read_text() == "mine"
    assert len(read_transcript(tmp_path / "a.jsonl").turns) == 2
    with pytest.raises(TranscriptError, match=r"notes\.txt is there already"):
        Exports(sft=mine).check()


# What can be played


def test_what_cannot_be_played_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run's folder, so name what to play: --game FILE\.z8"):
        find_setting("tiny-stories", None, "train")
    with pytest.raises(UserError, match="which is not there"):
        alone(tmp_path / "missing.z8", "look")
    config = RunConfig(name="stories", storage_path=str(tmp_path))
    RunFolder.create(config, dump_config(config)).close()
    with pytest.raises(UserError, match="no intact checkpoint"):
        find_setting(str(tmp_path / "stories"), None, "train")
    (tmp_path / "stories" / "checkpoints").mkdir()
    shutil.copytree(run / "checkpoints" / "000001", tmp_path / "stories" / "checkpoints" / "000001")
    with pytest.raises(UserError, match="is no game but single prompts: use `rayrlhf generate"):
        find_setting(str(tmp_path / "stories"), None, "train")


def alone(game: Path, *lines: str) -> Session:
    """A person without a policy at a game file."""
    setting = find_setting(None, game, "train")
    with closing(open_environments(setting.environment)) as games:
        return Session(setting, games, take_seat(setting, with_policy=False), *lines)


def test_a_person_plays_any_game_file_alone(tmp_path: Path) -> None:
    game = game_file(game_kind("coin_collector", level=2), "train", 1)
    session = alone(game, "look")
    [turn] = session.record
    assert turn.prompt == turn.observation == from_code_points(np.array(turn.prompt_ids))
    assert (turn.completion, session.header.tokenizer, session.header.model) == ("look", "code points", None)
    bare = tmp_path / "bare.z8"
    bare.write_bytes(game.read_bytes())  # a game of another origin: it lists no commands, and has no keys and no map
    session = alone(bare, "look", "3", "m", "h")
    assert (session.record[0].commands, session.record[0].game_key) == ((), "")
    for answer in ("this game lists no commands", "bare.z8 has no map", "no solution is known from here"):
        assert answer in session.output.getvalue()


def test_a_filmed_session_is_a_picture(setting: Setting, tmp_path: Path, games: Environments, seat: Seat) -> None:
    film = Film()
    person = FilmedPerson(film, "coin", GameLookup(setting.environment), ("", "m", "q"))
    play_session(setting, games, seat, person, lambda _: None, 0, greedy=True)
    write_picture(film, tmp_path / "play.gif")
    write_picture(film, tmp_path / "play.png")
    with Image.open(tmp_path / "play.gif") as picture:
        assert picture.n_frames == len(film.frames) == 6  # three prompts, two lines typed, one move
    with Image.open(tmp_path / "play.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 16)) > 10  # colours, and letters' edges
    with pytest.raises(UserError, match=r"name a \.gif"):
        write_picture(film, tmp_path / "play.jpg")
