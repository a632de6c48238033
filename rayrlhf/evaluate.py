"""`rayrlhf evaluate`: a policy on held-out games, greedy and sampled, beside the random and the oracle baselines.

No Ray: the policy plays in this process, the games run in a child process as in training.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from rayrlhf.algorithms.base import discounted_scores
from rayrlhf.baselines import RandomActor, SolutionActor, UnknownToBaselineError
from rayrlhf.checkpoint import newest_model
from rayrlhf.config import ModelConfig, RunConfig
from rayrlhf.config_loading import load_config
from rayrlhf.environments import EnvironmentSettings, constructor_parameters, has_held_out_games, open_environments
from rayrlhf.errors import ConfigError
from rayrlhf.evaluation_results import (
    EVALUATION,
    HEADINGS,
    Evaluation,
    EvaluationSetting,
    PlayerName,
    ValueFit,
    notes,
    player_result,
    table_rows,
    write_evaluation,
)
from rayrlhf.interfaces import Actor, Environments, Prompter
from rayrlhf.intervals import mean
from rayrlhf.model_paths import resolve_model
from rayrlhf.player import Player
from rayrlhf.policy import check_policy, context_length, load_policy, load_tokenizer
from rayrlhf.report import write_report
from rayrlhf.response_rules import ResponseScorer
from rayrlhf.reward_process import RewardProcess
from rayrlhf.rollout import deal_specs, play_episodes
from rayrlhf.run_folder import RunFolder
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.terminal_output import plain_console
from rayrlhf.trust import NOBODY, Trust, code_of_environment, code_of_rewards, require_own_config, trusted_model
from rayrlhf.types import Trajectory, Turn, ValueQuery
from rayrlhf.value import load_value, query_values

EPISODES_AT_ONCE = 32

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated: a policy, and the config whose environment it plays in."""

    name: str
    model: ModelConfig
    config: RunConfig
    checkpoint: int | None = None  # iterations behind it; None: it is no run's
    value: Path | None = None  # folder of its value network


def evaluate(
    source: str,
    recipe: str | None,
    games: int | None,
    episodes_per_game: int,
    players: Sequence[PlayerName],
    seed: int,
    json_file: Path | None,
    trust: Trust = NOBODY,
) -> Evaluation:
    """Evaluates a run's latest checkpoint, or a model under a recipe's environment, and prints the table.

    Of a run it writes `evaluation.json`, and the report anew where there is one. For the arguments and errors see
    `find_subject` and `evaluate_policy`; ConfigError too where the folder of `json_file` is missing.
    """
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"--json {json_file}: there is no folder {json_file.parent}")
    subject = find_subject(source, recipe, trust)
    with plain_console(stderr=True).status("") as status:
        evaluation = evaluate_policy(subject, games, episodes_per_game, players, seed, status.update)
    if subject.checkpoint is not None:
        run = RunFolder.open(Path(source))
        write_evaluation(run.path / EVALUATION, evaluation)
        if run.report.exists():
            write_report(run.path)
    if json_file is not None:
        write_evaluation(json_file, evaluation)
    show(plain_console(), evaluation)
    return evaluation


def find_subject(source: str, recipe: str | None, trust: Trust = NOBODY) -> Subject:
    """The run at the folder `source` with its latest checkpoint, or the model `source` under the recipe's config.

    Raises:
        ConfigError: a run with a recipe, a model without one.
        CheckpointError: the run has no intact checkpoint.
        UntrustedCodeError: the run's config names code that nobody trusts, or the recipe is a run's and does.
    """
    folder = Path(source)
    if (folder / "config.yaml").is_file():
        if recipe is not None:
            raise ConfigError(f"{source} is a run, which has a config of its own: leave out --recipe {recipe}")
        run = RunFolder.open(folder)
        config = run.read_config()
        model = newest_model(run.checkpoints)
        value = model.parent / "value"
        rewards = code_of_rewards(config) if value.is_dir() else []  # it is only V that is held against them
        trust.require(source, [*code_of_environment(config.environment.name), *rewards])
        return Subject(
            name=run.name,
            model=trusted_model(config.model.at(model), source, trust),
            config=config,
            checkpoint=int(model.parent.name),
            value=value if value.is_dir() else None,
        )
    if recipe is None:
        raise ConfigError(f"{source} is no run's folder; to evaluate a model say in which environment: --recipe NAME")
    config = load_config(recipe, piped=True)
    require_own_config(recipe, code_of_environment(config.environment.name), (), trust)
    return Subject(
        Path(source).absolute().name, trusted_model(ModelConfig(path=resolve_model(source)), source, trust), config
    )


def evaluate_policy(
    subject: Subject,
    games: int | None,
    episodes_per_game: int,
    players: Sequence[PlayerName],
    seed: int,
    progress: Progress = lambda _: None,
) -> Evaluation:
    """Plays the held-out games with each player.

    games: how many; None: as many as the config's evaluations play. episodes_per_game: of players that draw; the
    others would repeat themselves and play each game once. seed: of what is drawn. progress: told what goes on.

    Raises:
        ConfigError: the environment has no held-out games, or not as many.
    """
    config = subject.config
    settings = environment_settings(config)
    games = games or config.evaluation.episodes
    policy, player = load_player(subject)
    not_played: dict[str, str] = {}
    played: dict[PlayerName, list[Trajectory]] = {}
    with contextlib.closing(open_environments(settings)) as environments:
        progress("starting the games")
        check_games(environments, games, config.environment.name)
        for name in players:
            progress(f"{name}: playing {games} games")
            try:
                played[name] = play_games(name, player, environments, games, episodes_per_game, seed)
            except UnknownToBaselineError as reason:
                not_played[name] = str(reason)
    setting = EvaluationSetting(
        environment=config.environment.name,
        parameters=stated_parameters(settings),
        games=games,
        seed=seed,
        max_turns=config.environment.max_turns,
        prompt=config.agent.prompt,
        actions=config.agent.actions,
        temperature=config.rollout.temperature,
        objective_in_prompt=objective_in_prompt(next(iter(played.values()), []), player.prompter),
        checkpoint=subject.checkpoint,
    )
    results = tuple(player_result(name, episodes, len(episodes) // games) for name, episodes in played.items())
    return Evaluation(subject.name, setting, results, not_played, value_fit(subject, policy, played, games))


def environment_settings(config: RunConfig) -> EnvironmentSettings:
    """The held-out games of a run's environment. Raises ConfigError where it has none."""
    environment = config.environment
    if not has_held_out_games(environment.name):
        raise ConfigError(
            f"environment {environment.name} has no held-out games, so there is nothing to evaluate on; "
            "`rayrlhf generate` shows what a policy writes"
        )
    return EnvironmentSettings.of(environment, "held_out")


def load_player(subject: Subject) -> tuple[nn.Module, Player]:
    """The policy and what plays it, as in training. Raises ModelError."""
    config, rollout = subject.config, subject.config.rollout
    device = "cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu"
    tokenizer = load_tokenizer(subject.model)
    policy = load_policy(subject.model, device=device)
    check_policy(subject.model, policy, tokenizer)
    player = Player(
        policy=policy,
        tokenizer=tokenizer,
        context=context_length(subject.model),
        agent=config.agent,
        prompts=(),
        sampling=SamplingSettings(rollout.max_new_tokens, rollout.temperature, rollout.top_k, rollout.top_p),
        max_turns=config.environment.max_turns,
        response=config.response,
    )
    return policy, player


def check_games(environments: Environments, games: int, name: str) -> None:
    """Raises ConfigError where the held-out games begin again before there were as many as asked for."""
    keys: list[str] = []
    for first in range(0, games, EPISODES_AT_ONCE):
        starts = environments.reset(range(first, min(first + EPISODES_AT_ONCE, games)))
        keys += [start.state.key for start in starts if start.state.key]
    if len(set(keys)) < len(keys):
        raise ConfigError(
            f"environment {name} has {len(set(keys))} different held-out games, not {games}: "
            f"play --games {len(set(keys))}"
        )


def play_games(
    name: PlayerName, player: Player, environments: Environments, games: int, episodes_per_game: int, seed: int
) -> list[Trajectory]:
    """The episodes of one player, those of a game next to each other.

    Raises:
        UnknownToBaselineError: the environment does not say what this baseline plays by.
    """
    repeats = episodes_per_game if name in ("sampled", "random") else 1
    batches = deal_specs(
        seed, 0, games, repeats, max(1, EPISODES_AT_ONCE // repeats), split="held_out", greedy=name == "greedy"
    )
    if name in ("greedy", "sampled"):
        return [episode for specs in batches for episode in player.play(specs, environments, weights_version=0)]
    prompter = player.prompter
    actor: Actor = RandomActor(prompter) if name == "random" else SolutionActor(prompter)
    return [
        episode
        for specs in batches
        for episode in play_episodes(specs, environments, actor, prompter, max_turns=player.max_turns)
    ]


def stated_parameters(settings: EnvironmentSettings) -> dict[str, Any]:
    """The environment's parameters, those among them that were left to defaults other than null."""
    defaults = {name: parameter.default for name, parameter in constructor_parameters(settings.name).items()}
    stated = {**defaults, **settings.parameters}
    return {name: value for name, value in stated.items() if value not in (None, inspect.Parameter.empty)}


def objective_in_prompt(trajectories: Sequence[Trajectory], prompter: Prompter) -> bool | None:
    """Whether the first prompt of any game says what the game asks for; None where none states it."""
    starts = [trajectory.turns[0] for trajectory in trajectories if trajectory.turns[0].before.objective]
    if not starts:
        return None
    return any(_words(turn.before.objective) in _words(prompter.decode(turn.prompt_ids)) for turn in starts)


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def value_fit(
    subject: Subject, policy: nn.Module, played: Mapping[PlayerName, Sequence[Trajectory]], games: int
) -> ValueFit | None:
    """How well the checkpoint's value network foretells the discounted reward; None without network or policy's play.

    Of the sampled policy where it played: that is what V was fitted to.
    """
    name: PlayerName = "sampled" if "sampled" in played else "greedy"
    if subject.value is None or name not in played:
        return None
    episodes, config = played[name], subject.config
    network = load_value(subject.value, policy, str(next(policy.parameters()).device))
    values = query_values(network, [_first_choice(episode.turns[0]) for episode in episodes])
    with RewardProcess(config.reward, config.reward_timeout_s) as rewards:
        scorer = ResponseScorer(rewards, config.response, config.rollout.max_new_tokens)
        reached = discounted_scores(scorer.score(episodes), config.algorithm.turn_discount)
    errors = np.reshape(np.concatenate(values) - reached, (games, -1)).tolist()
    return ValueFit(name, mean(errors), mean(np.abs(errors).tolist()))


def _first_choice(turn: Turn) -> ValueQuery:
    """Asks for V before the turn's first token that was a choice, or its first: where training asks for it."""
    skipped = int(turn.choices.argmax())
    ids = np.concatenate([turn.prompt_ids, turn.response_ids[: skipped + 1]])
    return ValueQuery(ids, len(turn.prompt_ids) + skipped)


def show(console: Console, evaluation: Evaluation) -> None:
    """Prints the table, and the setting under it."""
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for row in table_rows(evaluation):
        table.add_row(*(Text.assemble(cell.value, "\n", (cell.interval, "dim")) for cell in row))
    console.print(table)
    for line in notes(evaluation):
        console.print(line, markup=False, highlight=False)
