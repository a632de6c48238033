"""Every way in which log-probabilities are computed gives the same ones, for architectures that differ in all else.

A sampler with a cache, prompts padded on the left, rows that leave; the cache of prompts that grow; the reference's
scores; the learner's forward pass; all against one unpadded pass over the sequence alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rayrlhf.algorithm_config import AdamWConfig, HeadValueConfig, PPOConfig
from rayrlhf.algorithms.ppo import PPO
from rayrlhf.config import AgentConfig, LearnerConfig, ModelConfig
from rayrlhf.environments import EnvironmentSettings
from rayrlhf.errors import ModelError
from rayrlhf.learner import Learner
from rayrlhf.losses import selected_logprobs
from rayrlhf.metrics import read_metrics
from rayrlhf.model_config import stated_context
from rayrlhf.packed_sequences import Limits, pack_tokens
from rayrlhf.policy import check_policy, load_policy, load_tokenizer, score_tokens
from rayrlhf.policy_network import PolicyNetwork
from rayrlhf.prompts import Prompt
from rayrlhf.rollout import deal_specs
from rayrlhf.sampling.agreement import check_plain
from rayrlhf.sampling.plain_decoding import last_logits
from rayrlhf.sampling.prefix_cache import PrefixCache
from rayrlhf.sampling.transformers_engine import SamplingSettings, TransformersSampler, cached_way
from rayrlhf.trainer import train
from rayrlhf.types import EpisodeScore, ValueQuery
from rayrlhf.value import ValueHead, ValueNetwork, hidden_size, load_value, query_values, write_value
from rayrlhf.worker import RolloutWorker, WorkerSettings
from tests.model_families import FAMILIES, LENGTH_CHANGES_ALL, NOT_CAUSAL, random_model, write_family
from tests.rounding import FORWARD, rounding
from tests.test_training import small_config

VOCABULARY = 300
PROMPTS = [np.array([5, 6, 7, 1, 9]), np.array([9]), np.array([11, 12, 13]), np.array([9]), np.arange(20, 31)]
CACHED = (
    "gpt2",
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gpt_neox",
    "gptj",
    "opt",
    "phi3",
    "mixtral",
    "mistral",
)

TRAINED = ("bloom", "mpt", "opt_projected", "lfm2", "mamba", "mamba2", "recurrent_gemma", "qwen3_next")


def alone(model: torch.nn.Module, sequence: np.ndarray, start: int) -> np.ndarray:
    """Log-probabilities of the tokens [start:] by one pass over this sequence."""
    ids = torch.from_numpy(sequence)[None]
    with torch.no_grad():
        logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1).numpy()[start - 1 :]


@pytest.mark.parametrize("family", FAMILIES)
def test_sampler_reference_and_learner_agree(family: str) -> None:
    """X-3, X-5: 16 tokens a row, of which some leave early, with prompts of 1 to 11 tokens."""
    model = random_model(FAMILIES[family](VOCABULARY))
    check_plain(model, family)
    free = TransformersSampler(model, 10_000, SamplingSettings(16)).sample(PROMPTS, range(5))
    ends = [int(free[0].response_ids[2]), int(free[3].response_ids[5])]
    made = TransformersSampler(model, ends, SamplingSettings(16, score_prompt=True)).sample(PROMPTS, range(5))
    assert len({len(generation.response_ids) for generation in made}) > 1
    sequences = [np.concatenate([prompt, one.response_ids]) for prompt, one in zip(PROMPTS, made)]
    starts = [len(prompt) for prompt in PROMPTS]
    scored = score_tokens(model, sequences, starts, 1.0, tokens_per_batch=60)
    tokens = pack_tokens([ValueQuery(*pair) for pair in zip(sequences, starts)], "sequence", Limits(VOCABULARY, 128))
    ids = torch.from_numpy(tokens.padded(np.arange(5)))
    with torch.no_grad():
        every = torch.arange(ids.shape[1] - 1)
        learner, _ = PolicyNetwork(model)(ids, every, every[:1])
        learnt = selected_logprobs(learner, ids[:, 1:], 1.0).numpy()
    for row, (sequence, start, generation) in enumerate(zip(sequences, starts, made)):
        expected = alone(model, sequence, start)
        limit = rounding(FORWARD, expected)
        np.testing.assert_allclose(generation.logprobs, expected, rtol=0, atol=limit)
        np.testing.assert_allclose(scored[row], expected, rtol=0, atol=limit)
        np.testing.assert_allclose(learnt[row, start - 1 : len(sequence) - 1], expected, rtol=0, atol=limit)
        of_prompt = alone(model, sequence[:start], 1) if start > 1 else np.zeros(0)
        np.testing.assert_allclose(generation.prompt_logprobs, of_prompt, rtol=0, atol=2 * limit)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_grow_agree(family: str) -> None:
    """TW-3: unequal growth, tokens that are taken back, suffixes: where positions are columns, too."""
    model, rng = random_model(FAMILIES[family](VOCABULARY)), np.random.default_rng(0)
    cache = PrefixCache(model)
    prompts = [rng.integers(2, VOCABULARY, length) for length in (20, 9, 14)]
    for _ in range(3):
        rows, logits = cache.extend(range(3), prompts)
        suffixes = [rng.integers(2, VOCABULARY, length) for length in (1, 4, 2)]
        following = cache.following(rows.tolist(), suffixes)
        wanted = [*prompts, *(np.append(*pair) for pair in zip(prompts, suffixes))]
        for found, sequence in zip([*logits[rows], *following], wanted, strict=True):
            with torch.no_grad():
                expected = model(input_ids=torch.from_numpy(sequence)[None], use_cache=False).logits[0, -1].numpy()
            np.testing.assert_allclose(found, expected, atol=rounding(FORWARD, expected))
        prompts = [np.append(p[: len(p) - cut], rng.integers(2, VOCABULARY, 6)) for p, cut in zip(prompts, (0, 3, 1))]


@pytest.mark.parametrize("family", CACHED)
def test_the_usual_architectures_sample_with_their_cache(family: str) -> None:
    way = cached_way(random_model(FAMILIES[family](VOCABULARY)))
    assert way is not None
    assert way.mask_steps


def test_a_model_that_no_cache_serves_is_read_plainly() -> None:
    """Code that comes with a model may raise anything: here layers of a kind that no cache knows, and an assertion."""
    model = random_model(FAMILIES["gpt2"](VOCABULARY))
    model.config.layer_types = ["a kind of its own"] * model.config.num_hidden_layers
    model.register_forward_pre_hook(_no_cache, with_kwargs=True)
    assert cached_way(model) is None
    cache, prompt = PrefixCache(model), np.array([1, 2, 3])
    _, logits = cache.extend([0], [prompt])
    with torch.no_grad():
        assert torch.equal(logits, last_logits(model, [prompt]))


def _no_cache(model: torch.nn.Module, arguments: tuple[object, ...], options: dict[str, object]) -> None:
    assert not options.get("use_cache")


@pytest.mark.parametrize("family", NOT_CAUSAL)
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_a_model_that_looks_ahead_is_refused_by_name(family: str, sharpness: float) -> None:
    with pytest.raises(ModelError, match=rf"model my-{family} .*its tokens see those after them"):
        check_plain(random_model(NOT_CAUSAL[family](VOCABULARY), sharpness), f"my-{family}")


def test_a_context_ends_where_longer_texts_would_change_all_positions() -> None:
    """With such rotary positions a batch's longest text changes the numbers of the others."""
    config = LENGTH_CHANGES_ALL(VOCABULARY)
    assert config.max_position_embeddings == 128
    assert stated_context(config) == 16
    check_plain(random_model(config), "long")


def test_every_model_is_tried_when_it_is_loaded(tmp_path: Path) -> None:
    config = ModelConfig(path=str(write_family(tmp_path, NOT_CAUSAL["bert"])))
    with pytest.raises(ModelError, match="cannot be trained: its tokens see those after them"):
        check_policy(config, load_policy(config), load_tokenizer(config))


@pytest.mark.parametrize("family", ["opt_projected", "opt", "bloom", "mpt", "mamba", "recurrent_gemma", "gemma3"])
def test_a_value_head_has_the_width_of_the_hidden_states(tmp_path: Path, family: str) -> None:
    """OPT projects its hidden states to another width than its layers' own; and a head is read as it was trained."""
    model = random_model(FAMILIES[family](VOCABULARY))
    head = ValueHead(hidden_size(model), "linear")
    torch.nn.init.normal_(head.output.weight)
    network, columns = PolicyNetwork(model, head), torch.tensor([0, 4])
    with torch.no_grad():
        _, values = network(torch.from_numpy(PROMPTS[0])[None], columns, columns)
    write_value(tmp_path, HeadValueConfig(), model, dict(head.named_parameters()))
    read = load_value(tmp_path, model)
    [first], [last] = (
        query_values(read, [ValueQuery(PROMPTS[0], 1), ValueQuery(np.append(PROMPTS[0], 0), 5)])[0][:1],
        (query_values(read, [ValueQuery(np.append(PROMPTS[0], 0), 5)])[0]),
    )
    assert isinstance(read, ValueNetwork)
    assert values is not None
    np.testing.assert_allclose([first, last], values[0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAINED)
def test_families_train(tmp_path: Path, family: str, ray_cluster: None) -> None:
    """Two iterations of PPO with a value head on the policy, which compare sampler and learner themselves (X-5)."""
    model = write_family(tmp_path / "model", FAMILIES[family])
    config = small_config(
        model, tmp_path, family, iterations=2, baseline_episodes=6, learner={"ranks": 1},
        algorithm={"name": "ppo", "value": {"kind": "head"}},
    )  # fmt: skip
    train(config)
    gaps = [row["learner/logprob_gap_max"] for row in read_metrics(tmp_path / family) if row["iteration"] >= 0]
    assert len(gaps) == 2
    assert max(gaps) <= 1e-4


@pytest.mark.parametrize("family", TRAINED)
def test_worker_and_learner_agree_through_two_updates(tmp_path: Path, family: str) -> None:
    """The loop without Ray: play, value, update, publish, twice; the learner itself compares every token (X-5)."""
    model = ModelConfig(path=str(write_family(tmp_path, FAMILIES[family])))
    prompt = Prompt("hello", np.array([5, 6, 7]))
    worker = RolloutWorker(
        WorkerSettings(
            model, {"train": EnvironmentSettings("single_turn")}, (prompt,), AgentConfig(), SamplingSettings(12), 1,
            "cpu", "float32", 1,
        )
    )  # fmt: skip
    algorithm = PPO(PPOConfig.model_validate({"value": {"kind": "head"}, "epochs": 1}), 2)
    learner = Learner(
        model.path, algorithm.objective, AdamWConfig(lr=1e-2), LearnerConfig(ranks=1, zero_stage=0), 1.0, 2, "cpu",
        value=HeadValueConfig(),
    )  # fmt: skip
    try:
        for iteration in range(2):
            [specs] = deal_specs(0, iteration, 1, 6, 1)
            played = worker.play(specs, learner.weights() if iteration else None, learner.version).trajectories
            scores = [EpisodeScore(np.array([float(i)], np.float32), {}) for i in range(6)]
            batch, _ = algorithm.prepare(played, scores, learner.values(algorithm.value_queries(played)), iteration)
            metrics = learner.update(batch, iteration).metrics
            assert metrics["learner/logprob_gap_max"] <= 1e-4
            assert metrics["learner/grad_norm"] > 0
    finally:
        learner.close()
        worker.environments.close()
