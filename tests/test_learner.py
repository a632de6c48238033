"""The learner against a bare PyTorch loop and brute-force autograd; each trap of DeepSpeed that fails silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayrlhf.algorithm_config import AdamWConfig, SGDConfig
from rayrlhf.config import LearnerConfig, ModelConfig
from rayrlhf.errors import CheckpointError, LearnerError
from rayrlhf.learner import Learner, learning_rate
from rayrlhf.learner_state import load_random_state, restore_random_state, save_random_state
from rayrlhf.losses import Objective, PolicyGradientLoss, PolicyLoss
from rayrlhf.policy import load_policy, score_tokens
from rayrlhf.types import TrainingSequence
from rayrlhf.weights import checksum, load_into, verify
from tests.learner_process import (
    CASES,
    GRADIENTS,
    LOSSES,
    STAGES,
    Recordings,
    arrays_of,
    arrays_of_module,
    build,
    load_policy_plain,
    make_sequences,
    run,
    run_ranks,
    step,
)  # fmt: skip
from tests.strangers_pickle import Runs
from tests.tiny_models import build_tiny_model

WORLDS = (1, 2)

each_stage = pytest.mark.parametrize("stage", STAGES)
each_world = pytest.mark.parametrize("world", WORLDS)
pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner")
    for architecture in ("llama", "gpt2"):
        build_tiny_model(folder / architecture, architecture)
    return folder


@pytest.fixture(scope="module")
def tiny_model(folder: Path) -> Path:
    return folder / "llama"


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Recordings:
    return run_ranks(folder, run)


@each_stage
@each_world
def test_accumulation_with_a_clip_equals_distributed_data_parallel(recorded: Any, world: int, stage: int) -> None:
    """T1, T2, T4, T5: five updates of three micro-batches, clipped, to 1e-5 relative; the norm is the one before."""
    ours = recorded[world][0]["accumulation and clip", stage]
    loop = recorded[world][0]["accumulation and clip", "loop"]
    assert min(ours.micro_batches) >= 3 // world + 1
    assert min(loop.grad_norms) > 10 * CASES["accumulation and clip"].optimizer.max_grad_norm  # the clip bites
    np.testing.assert_allclose(ours.grad_norms, loop.grad_norms, rtol=1e-5)
    assert relative_difference(ours.arrays, loop.arrays) < 1e-5


@each_stage
@each_world
def test_one_micro_batch_unclipped_equals_it_bit_for_bit(recorded: Any, world: int, stage: int) -> None:
    """Llama's RMSNorm is several operations: at stage 3 DeepSpeed's hooks around modules sum the three gradients of its
    input in another order than PyTorch does, so there the last bits differ. GPT-2's LayerNorm is one operation."""
    rank = recorded[world][0]
    for case in ("neither", "neither, gpt2"):
        ours, loop = rank[case, stage], rank[case, "loop"]
        assert ours.micro_batches == [1] * 5
        if stage == 3 and case == "neither":
            assert relative_difference(ours.arrays, loop.arrays) < 1e-5
        else:
            assert checksum(ours.arrays) == checksum(loop.arrays), case


@each_stage
@each_world
def test_a_changing_number_of_micro_batches_steps_once_an_update(recorded: Any, world: int, stage: int) -> None:
    """T5: the engine counts micro-batches over its life; 3, 2, 1 of them must not step early, late or twice."""
    ours = recorded[world][0]["changing accumulation", stage]
    loop = recorded[world][0]["changing accumulation", "loop"]
    assert len(set(ours.micro_batches)) >= 2
    assert relative_difference(ours.arrays, loop.arrays) < 1e-5
    np.testing.assert_allclose(ours.grad_norms, loop.grad_norms, rtol=1e-5)


@pytest.fixture(scope="module")
def brute_force(tiny_model: Path) -> dict[str, dict[str, np.ndarray]]:
    """Loss -> gradient from one sequence at a time, float64 sums, the loss written out."""
    return {name: single_sequence_gradient(str(tiny_model), loss) for name, loss in LOSSES.items()}


@each_stage
@each_world
@pytest.mark.parametrize(("loss", "budget"), GRADIENTS)
def test_gradient_equals_autograd_over_single_sequences(
    recorded: Any, brute_force: Any, world: int, stage: int, loss: str, budget: int
) -> None:
    """X-1: whatever the micro-batch budget and the ranks, uneven shards included, to 1e-6 of the gradient's norm."""
    expected = brute_force[loss]
    norm = np.sqrt(sum((value**2).sum() for value in expected.values()))
    taken = recorded[world][0]["gradients", stage][loss, budget]
    difference = np.sqrt(sum(((taken[name] - value) ** 2).sum() for name, value in expected.items()))
    assert difference < 1e-6 * max(norm, 1.0), (difference, norm)


@each_stage
@each_world
def test_weights_after_construction_are_the_checkpoints(
    recorded: Any, tiny_model: Path, world: int, stage: int
) -> None:
    """T6: building under ZeRO stage 3's own context loses them without an error."""
    assert checksum(recorded[world][0]["neither", stage].start) == checksum(
        arrays_of_module(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32))
    )


@each_stage
@each_world
def test_a_resumed_learner_equals_an_uninterrupted_one(recorded: Any, world: int, stage: int) -> None:
    """Weights, moments, step count, version and random numbers, bit for bit, at every rank."""
    for rank in recorded[world]:
        result = rank["resume", stage]
        assert result["same metrics"]
        assert result["same random"]
    straight, resumed = (recorded[world][0]["resume", stage][key] for key in ("straight", "resumed"))
    assert resumed.version == straight.version == 4
    assert resumed.checksum == straight.checksum


@each_stage
@each_world
def test_the_saved_model_is_what_from_pretrained_loads(recorded: Any, folder: Path, world: int, stage: int) -> None:
    saved = folder / f"model-{world}-{stage}"
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert checksum(arrays_of_module(model)) == checksum(recorded[world][0]["resume", stage]["at save"])
    assert AutoTokenizer.from_pretrained(saved)("Tim").input_ids
    assert (saved / "model.safetensors").is_file()


@each_stage
@each_world
def test_an_infinite_loss_on_one_rank_stops_all_before_the_step(recorded: Any, world: int, stage: int) -> None:
    for rank in recorded[world]:
        result = rank["infinite loss", stage]
        assert "the loss is not finite on 1 of" in result["message"]
        assert "build it anew" in result["again"]
        assert result["version"] == 1
    assert recorded[world][0]["infinite loss", stage]["unchanged"]


@each_world
def test_a_nan_advantage_is_named_on_all_ranks(recorded: Any, world: int) -> None:
    for rank in recorded[world]:
        assert "advantages is not finite at scored token" in rank["nan advantage"]["message"]
        assert rank["nan advantage"]["again"] == ""  # nothing had begun: the learner goes on
    assert recorded[world][0]["nan advantage"]["version"] == 2


def test_a_state_of_another_world_size_or_stage_is_refused(recorded: Any, folder: Path, tiny_model: Path) -> None:
    learner = build(str(tiny_model), 0, 1, stage=2)
    with pytest.raises(CheckpointError, match=r"learner.ranks was 2 and is 1 now: set `learner.ranks: 2`"):
        learner.load_state(folder / "state-2-2")
    with pytest.raises(CheckpointError, match=r"learner.zero_stage was 3 and is 2 now: set `learner.zero_stage: 3`"):
        learner.load_state(folder / "state-1-3")
    with pytest.raises(CheckpointError, match="holds no learner state"):
        learner.load_state(folder / "nowhere")
    learner.close()


def test_a_state_of_a_cpu_is_taken_up_on_a_gpu(tmp_path: Path) -> None:
    """What a CPU's learner saved knows nothing of a GPU's random numbers."""
    save_random_state(tmp_path / "random", torch.device("cpu"))
    drawn = torch.rand(3)
    restore_random_state(load_random_state(tmp_path / "random"), torch.device("cuda"))
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("fault", ["code", "damage", "missing"])
def test_a_state_that_holds_code_or_is_damaged_is_refused(tmp_path: Path, tiny_model: Path, fault: str) -> None:
    """DeepSpeed's own loader runs whatever its pickles say."""
    learner = build(str(tiny_model), 0, 1, stage=2)
    step(learner, make_sequences(4, seed=0), 0)
    learner.save_state(tmp_path / "state")
    learner.load_state(tmp_path / "state")
    (shard,) = (tmp_path / "state").rglob("*optim_states.pt")
    if fault == "code":
        torch.save({"optimizer_state_dict": Runs(tmp_path / "ran")}, shard)
    elif fault == "damage":
        shard.write_bytes(shard.read_bytes()[:1000])
    else:
        (tmp_path / "state" / "random-0.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"the learner state in .* cannot be loaded"):
        learner.load_state(tmp_path / "state")
    assert not (tmp_path / "ran").exists()
    learner.close()


@each_stage
def test_a_resumed_bf16_learner_equals_an_uninterrupted_one(tmp_path: Path, tiny_model: Path, stage: int) -> None:
    """Also the fp32 master weights: two more updates give the same bits."""
    config = LearnerConfig(ranks=1, zero_stage=stage, precision="bf16", tokens_per_micro_batch=60,
                           max_mean_logprob_gap_bf16=100.0)  # fmt: skip
    batches = [make_sequences(9, seed) for seed in range(4)]
    checksums = []
    for resumed in (False, True):
        objective = Objective(PolicyGradientLoss(importance_cap=None))
        learner = Learner(str(tiny_model), objective, AdamWConfig(lr=1e-3), config, 1.0, 10, "cpu")
        if resumed:
            learner.load_state(tmp_path)
        for iteration in range(2 if resumed else 0, 4):
            if iteration == 2 and not resumed:
                learner.save_state(tmp_path)
            step(learner, batches[iteration], iteration)
        weights = learner.weights()
        assert weights is not None
        checksums.append(weights.checksum)
        learner.close()
    assert checksums[0] == checksums[1]


def on_policy(model: Path, temperature: float, count: int = 8) -> list[TrainingSequence]:
    """Sequences whose behaviour log-probabilities are those that the rollout side's own scoring gives."""
    sequences = make_sequences(count, seed=5)
    policy = load_policy(ModelConfig(path=str(model)))
    ids, starts = [s.input_ids for s in sequences], [s.start for s in sequences]
    scores = score_tokens(policy, ids, starts, temperature)
    return [
        TrainingSequence(s.input_ids, s.start, s.advantages, logprobs, s.weights)
        for s, logprobs in zip(sequences, scores)
    ]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_learner_and_scoring_agree_before_the_first_step(tiny_model: Path, temperature: float) -> None:
    """X-5, X-6: at the default limit of 1e-4 nats."""
    learner = build(str(tiny_model), 0, 1, 2, temperature=temperature, max_logprob_gap=1e-4, tokens_per_micro_batch=50)
    metrics = step(learner, on_policy(tiny_model, temperature), 0).metrics
    assert metrics["learner/logprob_gap_max"] < 1e-5
    assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["policy/approxkl"] < 1e-9
    assert metrics["policy/clipfrac"] == 0
    assert 0 < metrics["policy/entropy"] < np.log(320)
    learner.close()


@pytest.mark.parametrize("fault", ["temperature", "one token"])
def test_a_wrong_behaviour_logprob_stops_the_update_by_name(tiny_model: Path, fault: str) -> None:
    """X-5: sampled at another temperature, or one token of one sequence off by 0.001 nats."""
    sequences = on_policy(tiny_model, 0.7 if fault == "temperature" else 1.0)
    if fault == "one token":
        sequences[3].behaviour_logprobs[0] += 1e-3
    learner = build(str(tiny_model), 0, 1, 1, max_logprob_gap=1e-4)
    before = arrays_of(learner.weights())
    with pytest.raises(LearnerError, match=r"learner and sampler disagree.*learner.max_logprob_gap allows 0.0001"):
        step(learner, sequences, 0)
    assert checksum(arrays_of(learner.weights())) == checksum(before)
    learner.close()


def test_bf16_holds_to_the_mean_and_sends_its_bits(tiny_model: Path) -> None:
    """X-5 in bf16: single tokens may differ by more than 1e-4; weights travel as uint16 and come out equal."""
    config = LearnerConfig(ranks=1, zero_stage=2, precision="bf16")
    objective = Objective(PolicyGradientLoss(importance_cap=2.0))
    learner = Learner(str(tiny_model), objective, AdamWConfig(lr=1e-3), config, 1.0, 10, "cpu")
    metrics = step(learner, on_policy(tiny_model, 1.0), 0).metrics
    assert metrics["learner/logprob_gap_max"] > 1e-4
    assert metrics["learner/logprob_gap_mean"] < 0.02
    weights = learner.weights()
    assert weights is not None
    verify(weights)
    assert {array.dtype.name for array in weights.arrays.values()} == {"uint16"}
    receiver = load_policy(ModelConfig(path=str(tiny_model)), dtype=torch.bfloat16)
    load_into(receiver, weights)
    for name, parameter in learner._network.policy.named_parameters():
        assert torch.equal(parameter, dict(receiver.named_parameters())[name])
    wrong = on_policy(tiny_model, 0.5)
    with pytest.raises(LearnerError, match=r"learner.max_mean_logprob_gap_bf16 allows 0\.02"):
        step(learner, wrong, 1)
    learner.close()


def test_a_pad_id_that_is_the_eos_id_changes_nothing(tmp_path: Path) -> None:
    """X-2: EOS tokens in the text, scored and as input, count the same whether or not EOS is also the pad token."""
    reports, deltas = [], []
    for name, pad in (("own", 1), ("eos", 0)):
        model = build_tiny_model(tmp_path / name)
        config = (model / "config.json").read_text()
        (model / "config.json").write_text(config.replace('"pad_token_id": 1', f'"pad_token_id": {pad}'))
        sequences = make_sequences(6, seed=8)
        for sequence in sequences:
            sequence.input_ids[[0, 2, -1]] = 0  # EOS: as BOS, within, and at the end
        learner = build(str(model), 0, 1, 2, optimizer=SGDConfig(lr=1.0, max_grad_norm=None))
        before = arrays_of(learner.weights())
        reports.append(step(learner, sequences, 0).metrics)
        after = arrays_of(learner.weights())
        deltas.append({key: before[key] - after[key] for key in before})
        learner.close()
    assert reports[0] == reports[1]
    assert checksum(deltas[0]) == checksum(deltas[1])


def test_no_dropout(tmp_path: Path) -> None:
    """ALLIT-2: a model that ships with dropout trains without: two learners give the same bits."""
    model = build_tiny_model(tmp_path, architecture="gpt2")
    assert AutoModelForCausalLM.from_pretrained(model).config.resid_pdrop > 0
    checksums = []
    for _ in range(2):
        learner = build(str(model), 0, 1, 2)
        step(learner, make_sequences(6, seed=1), 0)
        weights = learner.weights()
        assert weights is not None
        checksums.append(weights.checksum)
        learner.close()
    assert checksums[0] == checksums[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": 0}, "start 0 must lie in 1"),
        ({"input_ids": np.full(9, 320)}, "outside the model's vocabulary of 320"),
        ({"weights": np.ones(3, np.float32)}, "weights has shape"),
        ({"input_ids": np.zeros(129, np.int64)}, "its 129 tokens are more than the 128"),
    ],
)
def test_a_malformed_sequence_is_named(tiny_model: Path, change: dict[str, Any], message: str) -> None:
    good = {
        "input_ids": np.arange(9), "start": 2, "advantages": np.ones(7, np.float32),
        "behaviour_logprobs": np.zeros(7, np.float32), "weights": np.ones(7, np.float32),
    }  # fmt: skip
    learner = build(str(tiny_model), 0, 1, 0)
    with pytest.raises(LearnerError, match=f"training sequence 1 of 2: .*{message}"):
        step(learner, [TrainingSequence(**good), TrainingSequence(**(good | change))], 0)  # type: ignore[arg-type]
    with pytest.raises(LearnerError, match="no training sequences"):
        step(learner, [], 0)
    learner.close()


def test_learning_rate_is_a_function_of_the_iteration() -> None:
    settings = AdamWConfig(lr=1.0, warmup_iterations=4, decay="none")
    assert [learning_rate(settings, i, 10) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    settings = AdamWConfig(lr=1.0, decay="linear")
    assert [learning_rate(settings, i, 4) for i in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.25]


def relative_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[n] - theirs[n]).max() / np.abs(theirs[n]).max()) for n in theirs)


def single_sequence_gradient(model: str, loss: PolicyLoss) -> dict[str, np.ndarray]:
    """Each sequence alone through the model in float64, logits of all positions, the formulas written out again."""
    policy = load_policy_plain(model).double()
    for sequence in make_sequences(5, seed=0):
        ids = torch.from_numpy(sequence.input_ids)
        logprobs = policy(ids[None], use_cache=False).logits[0].log_softmax(-1)
        for t in range(sequence.start, len(sequence)):
            k = t - sequence.start
            new, old = logprobs[t - 1, ids[t]], float(sequence.behaviour_logprobs[k])
            advantage = float(sequence.advantages[k])
            if isinstance(loss, PolicyGradientLoss):
                cap = loss.importance_cap
                weight = 1.0 if cap is None else min(float(torch.exp(new.detach() - old)), cap)
                value = -weight * advantage * new
            else:
                ratio = torch.exp(new - old)
                low, high = 1 - loss.clip_range, 1 + loss.clip_range  # type: ignore[attr-defined]
                value = -torch.minimum(advantage * ratio, advantage * ratio.clamp(low, high))
            (float(sequence.weights[k]) * value).backward(retain_graph=True)
    return {name: parameter.grad.numpy() for name, parameter in policy.named_parameters()}  # type: ignore[union-attr]
