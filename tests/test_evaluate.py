"""`rayrlhf evaluate`, its baselines and its intervals, on generated TextWorld games (issue 3, part 7; SPEC TW-1)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from typer.testing import CliRunner

from rayrlhf.agent_text import make_prompter
from rayrlhf.algorithm_config import SeparateValueConfig
from rayrlhf.baselines import RandomActor, SolutionActor, UnknownToBaselineError
from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.cli import app
from rayrlhf.config import AgentConfig, EnvironmentConfig, ModelConfig, RunConfig
from rayrlhf.config_loading import dump_config, load_config
from rayrlhf.environments import EnvironmentSettings, open_environments
from rayrlhf.errors import CheckpointError, ConfigError
from rayrlhf.evaluate import Subject, check_games, evaluate, evaluate_policy, find_subject, value_fit
from rayrlhf.evaluation_results import Evaluation, notes, player_result, read_evaluation
from rayrlhf.generate import find_model
from rayrlhf.interfaces import Environments, Prompter
from rayrlhf.intervals import mean, wilson, won_share
from rayrlhf.play.setting import find_setting
from rayrlhf.policy import ASSETS, context_length, load_policy, load_tokenizer
from rayrlhf.report import write_report
from rayrlhf.rollout import deal_specs, play_episodes
from rayrlhf.run_folder import RunFolder
from rayrlhf.run_parts import scratch_model
from rayrlhf.types import GameState, Situation
from rayrlhf.value import build_value_network, write_value
from tests.game_episodes import episode, turn
from tests.tiny_models import build_tiny_model

GAMES = 3


@pytest.fixture(scope="module")
def coin_games() -> Iterator[Environments]:
    """The held-out games of the run that `make_run` makes."""
    environments = open_environments(
        EnvironmentSettings("textworld", {"level": 2, "held_out_games": GAMES}, split="held_out")
    )
    yield environments
    environments.close()


@pytest.fixture(scope="module")
def prompter(tiny_model: Path) -> Prompter:
    return make_prompter(AgentConfig(prompt="actions"), load_tokenizer(ModelConfig(path=str(tiny_model))), (), 128, 24)


def make_run(storage: Path, *overrides: str, checkpoints: Sequence[int] = (2, 3)) -> Path:
    """A run in coin games of two rooms, its checkpoints those of random models with a value network each."""
    settings = [
        f"storage_path={storage}", "name=coins", "environment.level=2", "environment.max_turns=6",
        f"environment.held_out_games={GAMES}", f"evaluation.episodes={GAMES}", "environment.games=3",
        "rollout.max_new_tokens=24",
    ]  # fmt: skip
    config = load_config("textworld-coin", [*settings, *overrides])
    with RunFolder.create(config, dump_config(config)) as folder:
        store = CheckpointStore(folder.checkpoints, keep=2, keep_trainer_state=1)
        for iteration in checkpoints:
            partial = store.begin(iteration)
            build_tiny_model(partial / "model", seed=iteration)
            value = SeparateValueConfig()
            network = build_value_network(value, ModelConfig(path=str(partial / "model")))
            write_value(partial / "value", value, network.backbone, network.state_dict())
            (partial / "trainer").mkdir()
            (partial / "trainer" / "state").write_text("of the learner")
            store.commit(partial, iteration, {})
    return folder.path


def test_wilson_by_hand() -> None:
    """3 of 4 with z = 1.96: centre (0.75 + 0.48) / 1.96 = 0.6275, half width 1.96 sqrt(0.0469 + 0.06) / 1.96 = 0.327."""
    low, high = wilson(0.75, 4)
    assert (low, high) == (pytest.approx(0.3006, abs=1e-4), pytest.approx(0.9544, abs=1e-4))
    assert wilson(1.0, 40) == (pytest.approx(40 / (40 + norm.ppf(0.975) ** 2)), 1.0)  # all won: n / (n + z^2)
    for won in range(8):
        exact = binomtest(won, 7).proportion_ci(method="wilson")
        assert wilson(won / 7, 7) == (pytest.approx(exact.low, abs=1e-12), pytest.approx(exact.high, abs=1e-12))


def test_episodes_of_a_game_count_as_fewer() -> None:
    """p (1 - p) / Var: shares 0, 1, 1/2, 1 have p = 0.625, Var = (0.6875 / 3) / 4 = 0.0573, 4.09 of 8 episodes."""
    share = won_share([0, 2, 1, 2], 2)
    assert share.value == 0.625
    assert (share.low, share.high) == wilson(0.625, pytest.approx(0.234375 / (0.6875 / 12)).expected)
    alike, unlike, certain = won_share([0, 2, 2, 0], 2), won_share([1, 1, 1, 1], 2), won_share([2, 2, 2, 2], 2)
    assert (alike.low, alike.high) == wilson(0.5, 4)  # each episode says what its game's other one says
    assert (unlike.low, unlike.high) == wilson(0.5, 8)
    assert (certain.low, certain.high) == wilson(1.0, 4)
    assert won_share([1, 0], 1) == won_share([1, 0], 1)
    assert (won_share([1, 0], 1).low, won_share([1, 0], 1).high) == wilson(0.5, 2)


def test_bootstrap_of_means_by_brute_force() -> None:
    """All 27 resamples of three games, the values of a game staying together; and what has no interval."""
    games = [[0.0, 2.0], [4.0], [6.0, 6.0, 6.0]]
    drawn = [
        sum(map(sum, chosen)) / sum(map(len, chosen))
        for chosen in ((a, b, c) for a in games for b in games for c in games)
    ]
    estimate = mean(games)
    assert estimate.value == 4.0  # 24 / 6
    assert estimate.low == pytest.approx(np.percentile(drawn, 2.5, method="inverted_cdf")) == 1.0
    assert estimate.high == pytest.approx(np.percentile(drawn, 97.5, method="inverted_cdf")) == 6.0
    assert mean(games) == mean(games)
    assert mean([[3.0, 5.0]]).value == 4.0
    assert mean([[3.0, 5.0]]).low is mean([[3.0, 5.0]]).high is None


def test_bootstrap_agrees_with_the_standard_error_of_many_games() -> None:
    values = np.random.default_rng(1).normal(size=400)
    estimate = mean([[value] for value in values])
    error = values.std() / 20
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def situation(commands: tuple[str, ...], solution: tuple[str, ...] = (), seed: int = 0) -> Situation:
    return Situation(0, np.array([1]), "A room.", GameState(commands=commands, solution=solution), seed)


def test_random_actor_is_uniform_and_follows_the_seed(prompter: Prompter) -> None:
    """Each of 4 commands within 4 standard errors of a quarter of 4,000 draws; log-probability -log 4."""
    commands = ("go east", "go north", "look", "take coin")
    situations = [situation(commands, seed=seed) for seed in range(4000)]
    actor = RandomActor(prompter)
    actions = actor.act(situations)
    counts = Counter(action.text for action in actions)
    assert set(counts) == set(commands)
    assert all(abs(count - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75) for count in counts.values())
    assert [action.text for action in actor.act(situations[:50])] == [action.text for action in actions[:50]]
    generation = actions[0].generation
    assert generation.response_ids.tolist() == prompter.command_ids(actions[0].text).tolist()
    assert float(generation.logprobs.sum()) == pytest.approx(-np.log(4))
    with pytest.raises(UnknownToBaselineError, match="names none"):
        actor.act([situation(())])


def test_solution_actor_wins_every_game_on_the_shortest_way(coin_games: Environments, prompter: Prompter) -> None:
    """TW-1: the oracle's episodes are whole trajectories of games won; level 2 has one way to go, then the coin."""
    [specs] = deal_specs(0, 0, GAMES, 1, GAMES, split="held_out")
    played = play_episodes(specs, coin_games, SolutionActor(prompter), prompter, max_turns=6)
    result = player_result("oracle", played, 1)
    assert (result.won, result.episodes) == (GAMES, GAMES)
    assert [len(trajectory.turns) for trajectory in played] == [2] * GAMES
    assert all(trajectory.turns[-1].action == "take coin" and trajectory.terminated for trajectory in played)
    assert result.score is not None
    assert result.score.value == 1.0
    with pytest.raises(UnknownToBaselineError, match="knows none"):
        SolutionActor(prompter).act([situation(("look",))])


def test_figures_of_a_player_by_hand() -> None:
    """Two games of two episodes: won after 1 and 3 turns of 1, 2, 3, 2; an unknown most of the score leaves it out."""
    lengths, won = (1, 2, 3, 2), (True, False, True, False)
    episodes = [episode([turn(1)] * (n - 1) + [turn(1, won=wins)]) for n, wins in zip(lengths, won)]
    result = player_result("sampled", episodes, 2)
    assert (result.won, result.episodes, result.won_share.value) == (2, 4, 0.5)
    assert result.turns.value == 2.0
    assert result.turns_won is not None
    assert result.turns_won.value == 2.0
    assert result.score is None
    assert player_result("sampled", [episodes[1], episodes[3]], 1).turns_won is None


def test_the_held_out_games_must_be_as_many_as_asked_for(coin_games: Environments) -> None:
    check_games(coin_games, GAMES, "textworld")
    with pytest.raises(ConfigError, match=rf"has {GAMES} different held-out games, not 6: play --games {GAMES}"):
        check_games(coin_games, 6, "textworld")


@dataclass(frozen=True)
class Evaluated:
    """A run that the command line has evaluated once, two episodes a game where they are drawn."""

    folder: Path
    own_file: Path
    printed: str

    @property
    def evaluation(self) -> Evaluation:
        found = read_evaluation(self.folder)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = make_run(tmp_path_factory.mktemp("runs"))
    own = folder.parent / "own.json"
    write_report(folder)
    ended = CliRunner().invoke(app, ["evaluate", str(folder), "--episodes-per-game", "2", "--json", str(own)])
    assert ended.exception is None, ended.output
    return Evaluated(folder, own, ended.output)


def test_evaluate_a_run_from_the_command_line(evaluated: Evaluated) -> None:
    """Issue 3, part 7: greedy and sampled beside both baselines, as a table, as a file, in the report."""
    evaluation = evaluated.evaluation
    assert evaluated.own_file.read_bytes() == (evaluated.folder / "evaluation.json").read_bytes()
    by_name = {result.player: result for result in evaluation.results}
    assert list(by_name) == ["greedy", "sampled", "random", "oracle"]
    assert [result.episodes for result in evaluation.results] == [GAMES, 2 * GAMES, 2 * GAMES, GAMES]
    assert by_name["oracle"].won == GAMES
    assert 2 < by_name["random"].turns.value <= 6
    setting = evaluation.setting
    assert (setting.environment, setting.games, setting.max_turns, setting.checkpoint) == ("textworld", GAMES, 6, 3)
    assert setting.parameters["kind"] == "coin_collector"
    assert setting.parameters["level"] == 2
    assert setting.parameters["prune"] == []
    assert setting.objective_in_prompt is False
    for place in (evaluated.printed, (evaluated.folder / "report.html").read_text()):
        assert "oracle" in place
        assert f"{GAMES} of {GAMES}" in place
        assert "objective in the prompt: no" in place
    assert list(evaluated.folder.glob(".*.new")) == []


def test_equal_seeds_give_equal_figures(evaluated: Evaluated) -> None:
    """And another player beside changes none of them."""
    again = evaluate_policy(find_subject(str(evaluated.folder), None), None, 2, ("sampled", "random"), seed=0)
    before = evaluated.evaluation
    assert again.results == before.results[1:3]
    assert again.value_fit == before.value_fit


def test_a_runs_checkpoints_are_shown_as_much_as_its_policy_was(tmp_path: Path) -> None:
    """`model.context` of the run goes for whoever reads its checkpoint, not only for its training."""
    run = make_run(tmp_path, "model.context=100")
    config = RunFolder.open(run).read_config()
    setting = find_setting(str(run), None, "train")
    assert setting.model is not None
    read = [find_subject(str(run), None).model, find_model(str(run))[0], setting.model, scratch_model(config, {}, run)]
    assert [(model.context, model.scratch) for model in read] == [(100, None)] * 4
    assert context_length(read[0]) == 100


def test_the_value_is_held_against_the_discounted_reward(evaluated: Evaluated) -> None:
    """V starts at 0, and a coin that is taken in the second turn is 0.97 seen from the first."""
    subject = find_subject(str(evaluated.folder), None)
    won = [episode([turn(1), turn(1, reward=1.0, won=True)]) for _ in range(2)]
    fit = value_fit(subject, load_policy(subject.model), {"sampled": won}, 2)
    assert fit is not None
    assert fit.error.value == pytest.approx(-0.97)
    assert fit.absolute_error.value == pytest.approx(0.97)


def test_evaluate_a_model_under_a_recipe(evaluated: Evaluated, tmp_path: Path) -> None:
    """Any model folder plays in any environment; the objective is seen where the prompt has it."""
    recipe = tmp_path / "own.yaml"
    recipe.write_text((evaluated.folder / "config.yaml").read_text().replace("prompt: actions", "prompt: question"))
    shutil.copytree(ASSETS / "tiny-stories", tmp_path / "my-model")
    evaluation = evaluate(
        str(tmp_path / "my-model"), str(recipe), games=1, episodes_per_game=1, players=("greedy", "oracle"), seed=0,
        json_file=tmp_path / "out.json",
    )  # fmt: skip
    assert (evaluation.name, evaluation.setting.checkpoint) == ("my-model", None)
    assert evaluation.setting.objective_in_prompt is True
    assert evaluation.value_fit is None
    assert json.loads((tmp_path / "out.json").read_bytes())["results"][1]["won"] == 1
    assert "my-model, a model folder: 1 held-out games of textworld" in notes(evaluation)[0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["my-model", "out.json", "own.yaml"]


def test_what_cannot_be_evaluated_says_why(evaluated: Evaluated, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run's folder; to evaluate a model say in which environment: --recipe"):
        find_subject(str(tmp_path), None)
    with pytest.raises(ConfigError, match="has a config of its own: leave out --recipe textworld-coin"):
        find_subject(str(evaluated.folder), "textworld-coin")
    with pytest.raises(ConfigError, match=r"--json absent/out.json: there is no folder absent"):
        evaluate(str(evaluated.folder), None, None, 1, ("greedy",), 0, Path("absent/out.json"))
    single = Subject("single", ModelConfig(path="tiny-stories"), RunConfig())
    with pytest.raises(ConfigError, match="environment single_turn has no held-out games"):
        evaluate_policy(single, None, 1, ("greedy",), 0)
    with pytest.raises(CheckpointError, match="holds no intact checkpoint: train until the first one is written"):
        find_subject(str(make_run(tmp_path, checkpoints=())), None)


def test_a_baseline_that_cannot_play_is_named() -> None:
    """An environment that names no solution leaves the oracle out; the others are evaluated."""
    environment = EnvironmentConfig(name="tests.test_evaluate:Untold")
    subject = Subject("untold", ModelConfig(path="tiny-stories"), RunConfig(environment=environment))
    evaluation = evaluate_policy(subject, 2, 1, ("random", "oracle"), 0)
    assert [result.player for result in evaluation.results] == ["random"]
    assert list(evaluation.not_played) == ["oracle"]
    assert "oracle did not play: the oracle plays the known solution" in "\n".join(notes(evaluation))
    assert evaluation.setting.objective_in_prompt is None


class Untold:
    """A game of one turn that is won by `yes`, and says so to nobody."""

    metadata = {"in_process": True}  # noqa: RUF012

    def __init__(self, split: str = "train") -> None:
        self.split = split

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[str, dict[str, object]]:
        return "Well?", {"commands": ("no", "yes")}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, object]]:
        return "", float(action == "yes"), True, False, {"won": action == "yes"}
