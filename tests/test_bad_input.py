"""What users get wrong in models, prompts and rewards, through the training command: each one clear message, no hang.

Bad configs are in test_config.py, bad rewards by themselves in test_reward_process.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from rayrlhf import cluster
from rayrlhf.config import ExampleTurnsConfig, ModelConfig, PromptsConfig, RewardPart, RunConfig
from rayrlhf.config_loading import load_config
from rayrlhf.environments import EnvironmentSettings, open_environments
from rayrlhf.errors import ConfigError, LearnerError, ModelError, PromptError, RewardError, RunFolderError, UserError
from rayrlhf.examples import make_examples
from rayrlhf.metrics import read_metrics
from rayrlhf.play.setting import with_game
from rayrlhf.policy import load_tokenizer
from rayrlhf.prompts import load_prompts
from rayrlhf.reward_contract import example_trajectory
from rayrlhf.reward_mixture import build_reward
from rayrlhf.reward_process import RewardProcess
from rayrlhf.run_folder import path_of as run_path
from rayrlhf.run_parts import reward_parts
from rayrlhf.trainer import train
from rayrlhf.tune.folder import path_of as sweep_path
from rayrlhf.tune.sweep_config import load_sweep
from tests.test_training import small_config
from tests.tiny_models import build_tiny_model


def cut_weights(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def no_eos(model: Path) -> None:
    for name in ("tokenizer_config.json", "tokenizer.json"):
        config = json.loads((model / name).read_text())
        config.pop("eos_token", None)
        (model / name).write_text(json.dumps(config))


def too_few_embeddings(model: Path) -> None:
    build_tiny_model(model.parent / "other")
    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.resize_token_embeddings(200)
    loaded.save_pretrained(model)


def no_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def not_a_language_model(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "vit"}')


def broken_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def lacks_weights(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def no_numbers(model: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        loaded.model.layers[0].mlp.up_proj.weight[3] = float("nan")
    loaded.save_pretrained(model)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_numbers, r"32 of the 2048 weights of model\.layers\.0\.mlp\.up_proj\.weight are no finite numbers"),
        (cut_weights, "does not load"),
        (no_eos, "no end-of-sequence token"),
        (too_few_embeddings, "its embedding only 200"),
        (no_tokenizer, "its tokenizer does not load"),
        (not_a_language_model, "vit is no causal language model"),
        (broken_config, r"config\.json: not JSON"),
        (lacks_weights, "model.norm.weight"),
        (lambda model: (model / "config.json").unlink(), "no config.json"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_bad_models_are_named(tmp_path: Path, damage: Any, message: str, ray_cluster: None) -> None:
    model = build_tiny_model(tmp_path / "model")
    damage(model)
    with pytest.raises(ModelError, match=message) as caught:
        train(small_config(model, tmp_path, "bad", rollout={"workers": 1}, learner={"ranks": 1, "zero_stage": 0}))
    assert "Traceback" not in str(caught.value)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"environment": {"prompts": {"text": "word " * 200}}}, PromptError, "1000 tokens"),
        ({"environment": {"prompts": {"text": ""}}}, PromptError, "is empty"),
        ({"environment": {"prompts": {"file": "no-such-file.txt"}}}, PromptError, "no-such-file.txt"),
        ({"rollout": {"max_new_tokens": 500}}, PromptError, "leaves no room"),
        ({"environment": {"name": "single_trun"}}, UserError, "single_turn"),
        ({"reward": "aliteration"}, RewardError, "alliteration"),
        ({"reward": {"name": "letter_count", "leter": "e"}}, RewardError, "letter"),
        ({"reward": "tests.fixtures.no_such_module:Reward"}, RewardError, "no_such_module"),
        ({"device": "cuda"}, ConfigError, "gpus_per_worker"),
    ],
)
def test_bad_parts_are_named_before_anything_starts(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        train(small_config(tiny_model, tmp_path, "bad", **changes))
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "bad").exists(), "nothing was begun"


def test_resources_that_never_fit_are_named(tiny_model: Path, tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(LearnerError, match="asks for 1000"):
        train(small_config(tiny_model, tmp_path, "big", learner={"cpus_per_rank": 500}))


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"rollout": {"cpus_per_worker": 9}}, "rollout.cpus_per_worker 9"),
        ({"learner": {"gpus_per_rank": 3}}, "learner.gpus_per_rank 3"),
        (
            {"reward": [{"name": "length"}, {"name": "length", "actors": 1, "gpus_per_actor": 4}]},
            "reward.1.gpus_per_actor 4",
        ),
        ({"reward": [{"name": "length", "cpus_per_actor": 99}]}, None),  # in no actor
    ],
)
def test_an_actor_that_fits_on_no_node_is_named(
    changes: dict[str, Any], setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight nodes of 8 CPUs and 2 GPUs each: all that the run asks for is there, but nowhere together."""
    node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node] * 8)
    monkeypatch.setattr(cluster, "grows", lambda: False)
    config = small_config(tmp_path, tmp_path, "wide", **changes)
    if setting is None:
        cluster.check_resources(config)
    else:
        with pytest.raises(LearnerError, match=rf"^{setting}: no node of the cluster has more than [28] [CG]PU"):
            cluster.check_resources(config)


def test_a_storage_path_that_is_a_file(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(RunFolderError, match="file"):
        train(small_config(tiny_model, file, "run"))
    assert file.read_text() == "kept"


REWARDS = """
import time

def raises(text: str) -> float:
    raise ZeroDivisionError("the sheep ran out")

def not_a_number(text: str) -> float:
    return float("nan")

def a_list(text: str) -> float:
    return [1.0, 2.0]

def hangs(text: str) -> float:
    time.sleep(3600)
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [("raises", "the sheep ran out"), ("hangs", "2 s")],
)
def test_a_failing_reward_stops_the_run_by_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None, function: str, message: str
) -> None:
    """Never a zero reward: what cannot be scored is an error that names the reward, and nothing is recorded of it."""
    (tmp_path / "sheep_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = small_config(
        tiny_model, tmp_path, "run", reward=f"sheep_rewards:{function}", reward_timeout_s=2, rollout={"workers": 1},
        learner={"ranks": 1, "zero_stage": 0},
    )  # fmt: skip
    with pytest.raises(RewardError, match=message) as caught:
        train(config)
    assert f"sheep_rewards:{function}" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert read_metrics(tmp_path / "run") == []


@pytest.mark.parametrize(("function", "message"), [("not_a_number", "nan"), ("a_list", r"\[1.0, 2.0\]")])
def test_what_is_no_score_is_an_error_of_the_same_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, message: str
) -> None:
    """The trainer does not tell one RewardError from another: how a run stops by one is the test above."""
    (tmp_path / "sheep_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    parts = [RewardPart(name=f"sheep_rewards:{function}")]
    with RewardProcess(parts, 60) as process, pytest.raises(RewardError, match=message) as caught:
        process.score([example_trajectory("", "a sheep")])
    assert f"sheep_rewards:{function}" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_model_that_ends_at_once_is_counted(tmp_path: Path, ray_cluster: None) -> None:
    """TW-25: empty answers are episodes like others; `text/empty_rate` tells of them and nothing divides by zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = build_tiny_model(tmp_path / "model")
    config = LlamaConfig.from_pretrained(folder, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "embed" in name or "norm" in name else 0.0)
        model.lm_head.weight[config.eos_token_id] = 3.0  # logit 3 x 32 against 0
    model.save_pretrained(folder)
    run: RunConfig = small_config(
        folder, tmp_path, "silent", iterations=1, rollout={"workers": 1}, learner={"ranks": 1, "zero_stage": 0}
    )
    train(run)
    [row] = read_metrics(tmp_path / "silent")
    assert row["text/empty_rate"] == 1.0
    assert row["rollout/finished"] == 1.0
    assert row["objective/zero_variance_groups"] == 1.0


NOWHERE = "~nobody-of-that-name/x"
LEADS_TO = {
    "a config": lambda: load_config(NOWHERE),
    "a sweep": lambda: load_sweep(NOWHERE),
    "storage_path": lambda: run_path(RunConfig(storage_path=NOWHERE)),
    "sweep.storage_path": lambda: sweep_path(load_sweep("alliteration", [f"sweep.storage_path={NOWHERE}"]).config),
    "a file of prompts": lambda: load_prompts(PromptsConfig(file=NOWHERE), load_tokenizer(ModelConfig()), 512, 9),
    "a folder of prompts": lambda: load_prompts(PromptsConfig(folder=NOWHERE), load_tokenizer(ModelConfig()), 512, 9),
    "a transcript": lambda: make_examples(ExampleTurnsConfig(mode="human", transcript=NOWHERE)),
    "a reward model": lambda: reward_parts(RunConfig(reward=[RewardPart(name="reward_model", path=NOWHERE)])),
    "a corpus": lambda: build_reward("alliteration", {"corpus": NOWHERE}),
    "games": lambda: open_environments(EnvironmentSettings("textworld", {"files": NOWHERE})),
    "a game": lambda: with_game(EnvironmentSettings("textworld"), Path(NOWHERE)),
}


@pytest.mark.parametrize("lead", LEADS_TO.values(), ids=LEADS_TO.keys())
def test_a_home_of_nobody_is_named(lead: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=f"{NOWHERE}: there is no such home folder: write the whole path"):
        lead()
