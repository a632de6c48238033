"""What a run's length decides, and a resumed run of another length: learning rates and KL coefficients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayrlhf.algorithms import build_algorithm
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config, load_config
from rayrlhf.errors import RunFolderError
from rayrlhf.metrics import read_metrics
from rayrlhf.run_folder import RunFolder
from rayrlhf.run_length import continued, learning_rate, spread_over_the_run
from rayrlhf.run_parts import learner_settings
from rayrlhf.trainer import train
from tests.test_training import small_config

LINEAR = {"name": "adamw", "lr": 1e-2, "decay": "linear"}
KL = {"coef": 0.1, "controller": {"kind": "schedule", "final": 0.4}}
RLOO = {"name": "rloo", "kl": KL}


def stopped_run(tmp_path: Path, done: int = 120, **settings: Any) -> dict[str, Any]:
    """The settings of a run of 120 iterations whose folder holds a checkpoint after `done` of them."""
    given = {"name": "longer", "storage_path": str(tmp_path), "iterations": 120, **settings}
    config = RunConfig.model_validate(given)
    RunFolder.create(config, dump_config(config)).close()
    if done:
        (tmp_path / "longer" / "checkpoints" / f"{done:06d}").mkdir(parents=True)
    return given


def resumed(given: dict[str, Any], **changes: Any) -> tuple[RunConfig, list[str]]:
    """As the command does: what the run goes on with is what its folder says from there on."""
    config, told = continued(RunConfig.model_validate({**given, **changes}))
    RunFolder.resume(config, dump_config(config)).close()
    return config, told


def rates(config: RunConfig) -> tuple[float, float]:
    """The learning rate and the KL coefficient of iteration 120 as the run's learner and algorithm are built."""
    algorithm = build_algorithm(config.algorithm, config.schedule_length)
    for _ in range(120):
        algorithm.updated({"objective/kl": 1.0, "objective/kl_per_token": 0.1}, 40)
    settings = learner_settings(config, config.model, algorithm.objective, "cpu")
    return learning_rate(settings.optimizer, 120, settings.iterations), algorithm.kl.coef


def test_more_iterations_are_refused_where_a_schedule_would_jump(tmp_path: Path) -> None:
    """120 of 120 done, then 200: the rate would go from 1e-2 / 120 to 1e-2 * 80 / 200, 48 times as much."""
    given = stopped_run(tmp_path, optimizer=LINEAR, algorithm=RLOO)
    before = (tmp_path / "longer" / "config.yaml").read_text()
    with pytest.raises(RunFolderError) as refused:
        resumed(given, iterations=200)
    message = str(refused.value)
    assert "\n" not in message
    for part in ("optimizer.lr from 8.333e-05 to 0.004", "algorithm.kl.coef from 0.4 to 0.2809", "schedule=keep",
                 "schedule=stretch", "iterations=120"):  # fmt: skip
        assert part in message
    assert (tmp_path / "longer" / "config.yaml").read_text() == before


def test_kept_schedules_stay_where_they_end(tmp_path: Path) -> None:
    given = stopped_run(tmp_path, optimizer=LINEAR, algorithm=RLOO)
    config, told = resumed(given, iterations=200, schedule="keep")
    assert rates(config) == (pytest.approx(1e-2 / 120), pytest.approx(0.4))
    assert told == [
        "optimizer.lr is spread over 120 iterations: 8.333e-05 in iteration 119, 8.333e-05 in iteration 120, 8.333e-05 in "
        "the last",
        "algorithm.kl.coef is spread over 120 iterations: 0.4 in iteration 119, 0.4 in iteration 120, 0.4 in the last",
    ]
    again, told = resumed(given, iterations=200)  # stopped once more and resumed: nobody has to say it twice
    assert (again.schedule_length, told) == (120, [])
    longer, _ = resumed(given, iterations=300, schedule="keep")
    assert longer.schedule_length == 120


def test_stretched_schedules_are_spread_over_the_new_length_and_the_jump_is_told(tmp_path: Path) -> None:
    given = stopped_run(tmp_path, optimizer=LINEAR, algorithm=RLOO)
    config, told = resumed(given, iterations=200, schedule="stretch")
    assert rates(config) == (pytest.approx(1e-2 * 80 / 200), pytest.approx(0.1 + 0.3 * 120 / 199))
    assert told[0] == (
        "optimizer.lr is spread over 200 iterations: 8.333e-05 in iteration 119, 0.004 in iteration 120, 5e-05 in the last"
    )
    again, _ = resumed(given, iterations=200)
    assert again.schedule_length == 200
    kept, _ = resumed(given, iterations=300, schedule="keep")
    assert kept.schedule_length == 200


@pytest.mark.parametrize("word", ["keep", "stretch"])
def test_what_was_said_of_one_resumption_is_not_said_of_the_next(tmp_path: Path, word: str) -> None:
    resumed(stopped_run(tmp_path, optimizer=LINEAR), iterations=200, schedule=word)
    again = load_config(str(tmp_path / "longer" / "config.yaml"), ["iterations=400"])
    assert (again.schedule, again.schedule_length) == (None, {"keep": 120, "stretch": 400}[word])
    if word == "stretch":
        with pytest.raises(RunFolderError, match="Say schedule=keep"):
            continued(again)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # constant rates
        {"algorithm": {"name": "rloo", "kl": {"controller": {"kind": "schedule", "final": 0.1, "iterations": 50}}}},
        {"algorithm": {"name": "rloo", "kl": {"controller": {"kind": "adaptive"}}}},
        {"optimizer": {"name": "adamw", "warmup_iterations": 10}},
    ],
)
def test_a_run_without_such_schedules_simply_goes_on(tmp_path: Path, settings: dict[str, Any]) -> None:
    config, told = resumed(stopped_run(tmp_path, **settings), iterations=200)
    assert (config.schedule_length, told) == (200, [])


def test_a_run_that_has_learned_nothing_yet_takes_its_new_length(tmp_path: Path) -> None:
    config, told = resumed(stopped_run(tmp_path, done=0, optimizer=LINEAR), iterations=200)
    assert (config.schedule_length, told) == (200, [])


def test_every_setting_that_is_spread_over_the_run_is_known() -> None:
    ppo = {
        "name": "ppo",
        "kl": KL,
        "kl_loss": {**KL, "estimator": "k3"},
        "value": {"kind": "separate", "optimizer": LINEAR},
    }
    config = RunConfig.model_validate({"optimizer": LINEAR, "algorithm": ppo})
    assert [one.option for one in spread_over_the_run(config)] == [
        "optimizer.lr", "algorithm.value.optimizer.lr", "algorithm.kl.coef", "algorithm.kl_loss.coef",
    ]  # fmt: skip


def test_a_longer_run_trains_with_the_rates_that_were_said(
    ray_cluster: None, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two iterations, then two more: refused; with `keep` the second's learning rate stays, in the updates themselves."""
    settings: dict[str, Any] = {
        "optimizer": {"name": "sgd", "lr": 1e-2, "decay": "linear"}, "baseline_episodes": 0,
        "rollout": {"workers": 1, "groups_per_iteration": 1}, "learner": {"ranks": 1, "zero_stage": 0},
    }  # fmt: skip
    train(small_config(tiny_model, tmp_path, "longer", iterations=2, **settings))
    with pytest.raises(RunFolderError, match=r"optimizer.lr from 0.005 to 0.005.*Say schedule=keep"):
        train(small_config(tiny_model, tmp_path, "longer", iterations=4, **settings), resume=True)
    train(small_config(tiny_model, tmp_path, "longer", iterations=4, schedule="keep", **settings), resume=True)
    assert "optimizer.lr is spread over 2 iterations" in capsys.readouterr().err
    found = [row["learner/lr"] for row in read_metrics(tmp_path / "longer")]
    assert found == pytest.approx([1e-2, 5e-3, 5e-3, 5e-3])
