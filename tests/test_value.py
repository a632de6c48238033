"""Value networks without a learner: where they start from, their heads, and their files."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    Mamba2Config,
)

from rayrlhf.algorithm_config import HeadValueConfig, SeparateValueConfig
from rayrlhf.config import ModelConfig
from rayrlhf.errors import CheckpointError, LearnerError, ModelError
from rayrlhf.policy import vocabulary_fingerprint
from rayrlhf.policy_network import PolicyNetwork
from rayrlhf.reward_models.folder import finish_reward_model, load_reward_network, scalars_of, write_start
from rayrlhf.reward_models.network import new_reward_network, padded, score_sequences
from rayrlhf.reward_models.sidecar import Sidecar, read_sidecar, with_scalars
from rayrlhf.reward_models.text_format import TextFormat
from rayrlhf.types import ValueQuery
from rayrlhf.value import ValueHead, ValueNetwork, build_value_network, load_value, query_values, write_value
from tests.tiny_models import build_tiny_model


def build_reward_model(folder: Path, labels: int = 1, seed: int = 5, architecture: str = "llama") -> Path:
    """A sequence classifier with random weights over the tiny model's vocabulary."""
    build_tiny_model(folder, architecture, seed=seed)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    model.save_pretrained(folder)
    return folder


def random_queries(count: int, seed: int = 0) -> list[ValueQuery]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 30, count)
    return [ValueQuery(rng.integers(0, 300, length), int(rng.integers(1, length))) for length in lengths]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(path=str(build_tiny_model(tmp_path_factory.mktemp("policy"))))


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_new_head_starts_at_zero_and_learns(kind: str) -> None:
    """TW-17: linear, or linear-ReLU-linear with twice the width; LMHP-24: V starts at 0, and its gradient does not."""
    head = ValueHead(6, kind)  # type: ignore[arg-type]
    hidden = torch.randn(2, 3, 6)
    values = head(hidden)
    assert values.shape == (2, 3)
    assert not values.any()
    shapes = [tuple(parameter.shape) for parameter in head.parameters()]
    assert shapes == ([(1, 6), (1,)] if kind == "linear" else [(12, 6), (12,), (1, 12), (1,)])
    values.sum().backward()
    assert head.output.weight.grad is not None
    assert head.output.weight.grad.abs().max() > 0
    again = ValueHead(6, kind)  # type: ignore[arg-type]
    assert all(torch.equal(one, two) for one, two in zip(head.parameters(), again.parameters()))


def test_the_policys_own_start_is_the_backbone(policy: ModelConfig) -> None:
    """WP-6: a network of its own, with the policy's weights below a head that says 0."""
    network = build_value_network(SeparateValueConfig(), policy)
    trunk = AutoModelForCausalLM.from_pretrained(policy.path).model
    for name, parameter in network.backbone.named_parameters():
        assert torch.equal(parameter, dict(trunk.named_parameters())[name])
    assert not np.concatenate(query_values(network, random_queries(5))).any()


def test_a_reward_model_gives_its_trunk_and_its_score(policy: ModelConfig, reward_model: Path) -> None:
    """WP-6: V of a whole text is what the reward model scores it with, to begin with."""
    network = build_value_network(SeparateValueConfig(init=str(reward_model)), policy)
    classifier = AutoModelForSequenceClassification.from_pretrained(reward_model)
    for seed in range(5):
        ids = np.random.default_rng(seed).integers(2, 300, 4 + 3 * seed)
        (values,) = query_values(network, [ValueQuery(np.append(ids, 0), len(ids))])
        with torch.no_grad():
            score = classifier(input_ids=torch.from_numpy(ids)[None]).logits[0, 0]
        assert abs(float(score)) > 0.01
        assert values.tolist() == pytest.approx([float(score)], abs=1e-5)


class BiasedConfig(LlamaConfig):
    model_type = "biased-llama"


class BiasedModel(LlamaModel):
    config_class = BiasedConfig


class BiasedForSequenceClassification(LlamaForSequenceClassification):
    """A sequence classifier whose score has a bias: none of transformers' own has, a model with code of its own may."""

    config_class = BiasedConfig

    def __init__(self, config: BiasedConfig) -> None:
        super().__init__(config)
        self.score = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


def test_the_bias_of_a_score_is_in_the_value(policy: ModelConfig, reward_model: Path, tmp_path: Path) -> None:
    """WP-6: V of a whole text is what the classifier scores it with, its own bias included."""
    AutoConfig.register("biased-llama", BiasedConfig, exist_ok=True)
    AutoModel.register(BiasedConfig, BiasedModel, exist_ok=True)
    AutoModelForSequenceClassification.register(BiasedConfig, BiasedForSequenceClassification, exist_ok=True)
    settings = AutoConfig.from_pretrained(reward_model).to_dict()
    classifier = BiasedForSequenceClassification(BiasedConfig(**{**settings, "model_type": "biased-llama"})).eval()
    torch.nn.init.constant_(classifier.score.bias, 2.5)
    classifier.save_pretrained(tmp_path)
    network = build_value_network(SeparateValueConfig(init=str(tmp_path)), policy)
    ids = np.arange(2, 9)
    (values,) = query_values(network, [ValueQuery(np.append(ids, 0), len(ids))])
    with torch.no_grad():
        score = float(classifier(input_ids=torch.from_numpy(ids)[None]).logits[0, 0])
    assert abs(score) > 1
    assert values.tolist() == pytest.approx([score], abs=1e-5)


def test_a_reward_models_bias_and_gain_are_in_the_value(policy: ModelConfig, tmp_path: Path) -> None:
    """V of a whole text is the reward, to begin with: a reward model's folder has its bias beside the loaded score."""
    folder = tmp_path / "reward"
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    network = new_reward_network(policy.path, tokenizer, seed=3)
    network.rescale(mean=0.1, std=0.5, target_mean=-2.0, target_std=3.0)
    text_format = TextFormat(vocabulary_fingerprint(tokenizer), (0,), 128)
    write_start(folder, network, tokenizer, with_scalars(Sidecar(0.0, text_format), scalars_of(network)))
    assert read_sidecar(folder).gain == pytest.approx(6.0)
    for finished in (False, True):
        if finished:  # the gain is folded into the head
            finish_reward_model(folder, network, read_sidecar(folder))
            assert read_sidecar(folder).gain == 1
        values = build_value_network(SeparateValueConfig(init=str(folder)), policy)
        texts = [np.random.default_rng(seed).integers(2, 300, 4 + 3 * seed) for seed in range(5)]
        rewards = score_sequences(load_reward_network(folder).eval(), texts)
        found = query_values(values, [ValueQuery(np.append(ids, 0), len(ids)) for ids in texts])
        assert np.abs(rewards + 2.0).max() > 0.1
        np.testing.assert_allclose(np.concatenate(found), rewards, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_on_a_bf16_trunk_answers_in_fp32(kind: str, autocast: bool) -> None:
    """83 hidden states that lie close to each other have 83 values: in bf16 they would be a few."""
    head = ValueHead(64, kind)  # type: ignore[arg-type]
    torch.manual_seed(0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.constant_(head.output.bias, 5.0)
    head.bfloat16()
    hidden = (1 + 0.05 * torch.randn(83, 64)).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        values = head(hidden)
    exact = copy.deepcopy(head).double()(hidden.double()).detach()
    assert values.dtype == torch.float32
    assert len(values.unique()) == 83
    assert len(exact.bfloat16().unique()) < 30  # what rounding would leave
    torch.testing.assert_close(values.double(), exact, atol=1e-5, rtol=1e-5)


def test_a_reward_head_on_a_bf16_trunk_answers_in_fp32(policy: ModelConfig) -> None:
    network = new_reward_network(policy.path, AutoTokenizer.from_pretrained(policy.path), seed=3).bfloat16()
    ids, lengths = padded([np.random.default_rng(seed).integers(2, 300, 9) for seed in range(83)])
    with torch.no_grad():
        rewards = network(ids, lengths)
        hidden = network.classifier.model(input_ids=ids).last_hidden_state[:, -1]
    exact = hidden.double() @ network.head.weight.double().T
    assert rewards.dtype == torch.float32
    torch.testing.assert_close(rewards.double(), exact[:, 0], atol=1e-5, rtol=1e-5)
    assert len(rewards.unique()) == 83


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neo", "qwen2"])
def test_values_are_those_of_single_sequences(tmp_path: Path, architecture: str) -> None:
    """X-1, X-2: V of each prefix by itself, in float64: whatever stands beside it and behind it, to 1e-5."""
    reward = build_reward_model(tmp_path / "reward", architecture=architecture)
    network = build_value_network(SeparateValueConfig(init=str(reward)), ModelConfig(path=str(reward)))
    queries = random_queries(9, seed=3)
    found = query_values(network, queries, tokens_per_batch=90)
    exact = network.double()
    for query, values in zip(queries, found):
        assert values.dtype == np.float32
        assert len(values) == len(query.input_ids) - query.start
        for prefix, value in enumerate(values, start=query.start):
            ids = torch.from_numpy(query.input_ids[:prefix])[None]
            with torch.no_grad():
                alone = exact(ids, torch.tensor([prefix - 1]))
            assert float(value) == pytest.approx(float(alone), abs=1e-5)


def test_no_queries_no_values(policy: ModelConfig) -> None:
    assert query_values(build_value_network(SeparateValueConfig(), policy), []) == []


def test_a_malformed_query_is_named(policy: ModelConfig) -> None:
    network = build_value_network(SeparateValueConfig(), policy)
    good = ValueQuery(np.array([1, 2, 3]), 1)
    with pytest.raises(LearnerError, match=r"value query 1 of 2: start 3 must lie in 1 .. 2"):
        query_values(network, [good, ValueQuery(np.array([1, 2, 3]), 3)])
    with pytest.raises(LearnerError, match=r"value query 1 of 2: its 129 tokens are more than the 128"):
        query_values(network, [good, ValueQuery(np.zeros(129, np.int64), 3)])


def test_a_model_that_cannot_be_a_value_network_is_named(
    policy: ModelConfig, reward_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"reward model with a linear head: set algorithm.value.head: linear"):
        build_value_network(SeparateValueConfig(init=str(reward_model), head="mlp"), policy)
    with pytest.raises(ModelError, match="classifies into 3 labels"):
        build_value_network(SeparateValueConfig(init=str(build_reward_model(tmp_path / "three", labels=3))), policy)
    with pytest.raises(ModelError, match=r"\./nowhere: no such folder"):
        build_value_network(SeparateValueConfig(init="./nowhere"), policy)


def test_a_config_that_is_damaged_or_brings_code_is_told_as_of_any_model(tmp_path: Path, policy: ModelConfig) -> None:
    folder = build_tiny_model(tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "architectures": [1]}))
    build_value_network(SeparateValueConfig(init=str(folder)), policy)
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(ModelError, match=r"brings Python code of its own \(own.Config.*model.trust_remote_code"):
        build_value_network(SeparateValueConfig(init=str(folder)), policy)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path, policy: ModelConfig) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its tokens see those after them"):
        build_value_network(SeparateValueConfig(init=str(tmp_path)), policy)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_network_of_its_own_is_read_again(tmp_path: Path, policy: ModelConfig, kind: str) -> None:
    """All of it lies in the folder, which needs neither the policy nor what it started from."""
    config = SeparateValueConfig(head=kind)  # type: ignore[arg-type]
    network = build_value_network(config, policy)
    torch.nn.init.normal_(network.head.output.weight)
    write_value(tmp_path, config, network.backbone, dict(network.named_parameters()))
    again = load_value(tmp_path)
    assert not again.training
    queries = random_queries(6)
    for one, two in zip(query_values(network, queries), query_values(again, queries)):
        assert one.any()
        assert np.array_equal(one, two)


def test_a_network_whose_config_has_infinities_is_read_again(tmp_path: Path) -> None:
    config = Mamba2Config(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=1,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        chunk_size=8,
    )
    assert math.inf in config.time_step_limit
    network = ValueNetwork(AutoModel.from_config(config), ValueHead(32, "linear")).eval()
    torch.nn.init.normal_(network.head.output.weight)
    write_value(tmp_path, SeparateValueConfig(), network.backbone, dict(network.named_parameters()))
    again = load_value(tmp_path)
    assert tuple(again.backbone.config.time_step_limit) == config.time_step_limit  # type: ignore[union-attr, arg-type]
    [one], [two] = (query_values(each, random_queries(1)) for each in (network, again))
    assert one.any()
    assert np.array_equal(one, two)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neo", "qwen2"])
def test_a_head_is_read_again_with_its_policy(tmp_path: Path, architecture: str) -> None:
    """What the head says on the policy's last hidden states in training is what it says afterwards."""
    trunk = AutoModelForCausalLM.from_pretrained(build_tiny_model(tmp_path / "policy", architecture)).eval()
    head = ValueHead(32, "linear")
    torch.nn.init.normal_(head.output.weight)
    write_value(tmp_path / "value", HeadValueConfig(), trunk, dict(head.named_parameters()))
    assert "the policy" in json.loads((tmp_path / "value" / "value.json").read_text())["trunk"]
    network = load_value(tmp_path / "value", trunk)
    ids, columns = torch.randint(300, (3, 9)), torch.tensor([2, 5])
    with torch.no_grad():
        _, trained = PolicyNetwork(trunk, head)(ids, torch.tensor([0]), columns)
        torch.testing.assert_close(network(ids, columns), trained)
    with pytest.raises(CheckpointError, match="holds a head on the policy's trunk: load the policy too"):
        load_value(tmp_path / "value")


@pytest.mark.parametrize("fault", ["missing", "damaged", "pipe", "other tensors", "no width", "no backbone"])
def test_a_folder_that_holds_no_value_network_is_refused(tmp_path: Path, policy: ModelConfig, fault: str) -> None:
    config = SeparateValueConfig()
    network = build_value_network(config, policy)
    tensors = dict(network.named_parameters())
    if fault == "other tensors":
        del tensors["backbone.norm.weight"]
    write_value(tmp_path, config, network.backbone, tensors)
    if fault == "missing":
        (tmp_path / "value.json").unlink()
    elif fault == "pipe":
        (tmp_path / "value.safetensors").unlink()
        os.mkfifo(tmp_path / "value.safetensors")
    elif fault in ("no width", "no backbone"):
        told = json.loads((tmp_path / "value.json").read_text())
        changed = {**told["backbone"], "hidden_size": "x"} if fault == "no width" else {}
        (tmp_path / "value.json").write_text(json.dumps({**told, "backbone": changed}))
    elif fault == "damaged":
        (tmp_path / "value.safetensors").write_bytes((tmp_path / "value.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="holds no value network that can be read") as caught:
        load_value(tmp_path)
    assert "\n" not in str(caught.value)
