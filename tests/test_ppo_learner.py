"""PPO at the learner against a plain reference that goes token by token in float64; and what may go wrong unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rayrlhf.algorithm_config import AdamWConfig, SeparateValueConfig, SGDConfig
from rayrlhf.config import LearnerConfig
from rayrlhf.errors import CheckpointError, LearnerError, ModelError
from rayrlhf.learner import Learner
from rayrlhf.losses import ClippedLoss, Objective, ValueObjective
from rayrlhf.types import Minibatch, TrainingBatch, TrainingSequence, ValueQuery
from rayrlhf.value import load_value, query_values
from rayrlhf.weights import checksum
from tests.learner_process import STAGES, Recordings, arrays_of, load_policy_plain, run_ranks
from tests.ppo_process import (
    COUNT,
    MINIBATCHES,
    OBJECTIVE,
    ppo_learner,
    ppo_sequences,
    queries,
    run,
    value_arrays,
    value_configs,
)
from tests.rounding import FORWARD, rounding
from tests.test_value import build_reward_model
from tests.tiny_models import build_tiny_model

WORLDS = (1, 2)
each_stage = pytest.mark.parametrize("stage", STAGES)
each_world = pytest.mark.parametrize("world", WORLDS)


pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    build_tiny_model(folder / "llama")
    build_reward_model(folder / "reward")
    return folder


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Recordings:
    return run_ranks(folder, run)


# The reference: one sequence at a time, one token at a time, float64, nothing padded, the formulas written out again.


@dataclass
class Reference:
    """A policy, the trunk of its values and their head, in float64, and what a step of them adds up to."""

    policy: nn.Module
    trunk: nn.Module
    head: dict[str, Tensor]
    shared: bool  # the trunk is the policy's
    detached: bool = False

    def parameters(self) -> dict[str, dict[str, Tensor]]:
        critic = {} if self.shared else {f"backbone.{name}": p for name, p in self.trunk.named_parameters()}
        prefix = "" if self.shared else "head."
        head = {f"{prefix}{name}": parameter for name, parameter in self.head.items()}
        return {"policy": dict(self.policy.named_parameters()), "value": critic | head}

    def value(self, hidden: Tensor) -> Tensor:
        hidden = hidden.detach() if self.detached else hidden
        layers = sorted({name.rsplit(".", 1)[0] for name in self.head})
        for layer in layers[:-1]:
            hidden = torch.relu(self.head[f"{layer}.weight"] @ hidden + self.head[f"{layer}.bias"])
        return (self.head[f"{layers[-1]}.weight"] @ hidden + self.head[f"{layers[-1]}.bias"])[0]


def token_logprobs(logits: Tensor, sequence: TrainingSequence, k: int) -> tuple[Tensor, Tensor]:
    """log pi of scored token k and the entropy there, over the tokens that were allowed."""
    token, allowed = int(sequence.input_ids[sequence.start + k]), sequence.allowed
    candidates = list(range(len(logits)))
    if allowed is not None and allowed.counts[k]:
        candidates = allowed.ids[allowed.offsets[k] : allowed.offsets[k + 1]].tolist()
    probabilities = torch.softmax(logits[candidates], 0)
    return probabilities[candidates.index(token)].log(), -(probabilities * probabilities.log()).sum()


def sequence_losses(reference: Reference, sequence: TrainingSequence, part: Minibatch) -> tuple[Tensor, Tensor, Tensor]:
    """The policy's loss with its bonus, the value loss, and the values at the scored tokens."""
    ids = torch.from_numpy(sequence.input_ids)[None]
    output = reference.policy(ids, use_cache=False, output_hidden_states=True)
    hidden = output.hidden_states[-1][0] if reference.shared else reference.trunk(ids).last_hidden_state[0]
    clip, limit, coef = 0.1, 0.1, 0.5
    of_policy, of_value, values = torch.zeros(()).double(), torch.zeros(()).double(), []
    for k in range(len(sequence) - sequence.start):
        place = sequence.start + k - 1
        logprob, entropy = token_logprobs(output.logits[0, place], sequence, k)
        ratio = torch.exp(logprob - float(sequence.behaviour_logprobs[k]))
        advantage = (float(sequence.advantages[k]) - part.advantage_shift) * part.advantage_scale
        surrogate = torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - clip, 1 + clip))
        of_policy = of_policy - float(sequence.weights[k]) * part.scale * (surrogate + 0.05 * entropy)
        value, old, target = reference.value(hidden[place]), float(sequence.values[k]), float(sequence.returns[k])
        near = old + (value - old).clamp(-limit, limit)
        error = torch.maximum((value - target) ** 2, (near - target) ** 2)
        of_value = of_value + float(sequence.value_weights[k]) * part.value_scale * coef * 0.5 * error
        values.append(value)
    return of_policy, of_value, torch.stack(values)


def reference_steps(
    reference: Reference, sequences: Sequence[TrainingSequence], parts: Sequence[Minibatch], lr: float, value_lr: float
) -> tuple[list[float], list[float]]:
    """Plain gradient steps on sums of single sequences' losses (TW-18); the losses of each step."""
    losses: tuple[list[float], list[float]] = ([], [])
    for part in parts:
        sums = [0.0, 0.0]
        for i in part.indices:
            of_policy, of_value, _ = sequence_losses(reference, sequences[i], part)
            (of_policy + of_value).backward()
            sums = [sums[0] + of_policy.item(), sums[1] + of_value.item()]
        for kind, rate in (("policy", lr), ("value", value_lr)):
            for parameter in reference.parameters()[kind].values():
                if parameter.grad is not None:
                    parameter.data -= rate * parameter.grad
                    parameter.grad = None
        losses[0].append(sums[0])
        losses[1].append(sums[1])
    return losses


def reference_of(folder: Path, name: str, before: dict[str, np.ndarray]) -> Reference:
    """Built from the models themselves; the learner's own numbers are taken for a head's inner layer alone."""
    policy = load_policy_plain(str(folder / "llama")).double()
    head = {
        key.removeprefix("head."): torch.tensor(array, dtype=torch.float64, requires_grad=True)
        for key, array in before.items()
        if key.startswith(("head.", "layers."))
    }
    if "head" in name:
        return Reference(policy, policy, head, shared=True, detached=name.startswith("detached"))
    start = folder / ("reward" if name == "reward model" else "llama")
    return Reference(policy, load_policy_plain(str(start)).model.double(), head, shared=False)  # type: ignore[union-attr, operator]


def difference(taken: dict[str, np.ndarray], expected: dict[str, Tensor]) -> tuple[float, float]:
    """Norms of the difference and of what is expected."""
    assert taken.keys() == expected.keys()
    gaps = sum(float(((taken[name] - value.detach().numpy()) ** 2).sum()) for name, value in expected.items())
    return gaps**0.5, sum(float((value.detach().numpy() ** 2).sum()) for value in expected.values()) ** 0.5


@pytest.fixture(scope="module")
def gradients(folder: Path, recorded: Recordings) -> dict[bool, tuple[dict[str, Any], tuple[list[float], list[float]]]]:
    """With allowed sets or without -> the reference's gradients, by network, and its losses."""
    found = {}
    for constrained in (True, False):
        key: Any = ("gradient", 2) if constrained else "gradient, free"
        reference = reference_of(folder, "reward model", recorded[1][0][key]["before"]["value"])
        start = {kind: {n: p.detach().clone() for n, p in of.items()} for kind, of in reference.parameters().items()}
        everything = Minibatch(tuple(range(COUNT)))
        losses = reference_steps(reference, ppo_sequences(constrained), [everything], 1.0, 1.0)
        after = reference.parameters()
        steps = {kind: {n: start[kind][n] - after[kind][n] for n in of} for kind, of in after.items()}
        found[constrained] = (steps, losses)
    return found


@each_world
@pytest.mark.parametrize(
    ("key", "constrained"), [*((("gradient", stage), True) for stage in STAGES), ("gradient, free", False)]
)
def test_loss_and_gradients_equal_the_reference(
    recorded: Recordings, gradients: Any, world: int, key: Any, constrained: bool
) -> None:
    """LMHP-23, WP-6, TW-18, X-1: of policy and value network, ragged, in micro-batches, to 1e-6 of the gradient's norm."""
    result = recorded[world][0][key]
    expected, losses = gradients[constrained]
    for kind in ("policy", "value"):
        before, after = result["before"][kind], result["after"][kind]
        gap, norm = difference({name: before[name] - after[name] for name in before}, expected[kind])
        assert norm > 0.05, kind
        assert gap < 1e-6 * max(norm, 1.0), (kind, gap, norm)
    metrics = result["metrics"]
    assert metrics["learner/loss"] == pytest.approx(losses[0][0], abs=rounding(FORWARD, losses[0][0]))
    assert metrics["val/loss"] == pytest.approx(losses[1][0], abs=rounding(FORWARD, losses[1][0]))
    assert metrics["learner/micro_batches"] > 1
    assert 0.1 < metrics["policy/clipfrac"] < 0.9  # the clips bite, and not everywhere
    assert 0.1 < metrics["val/clipfrac"] < 0.9


@pytest.fixture(scope="module")
def after_steps(folder: Path, recorded: Recordings) -> dict[str, tuple[Reference, tuple[list[float], list[float]]]]:
    """Kind of value network -> the reference after two epochs of two minibatches, and its losses."""
    found = {}
    for name in ("reward model", "own start", "head", "mlp head", "detached head"):
        reference = reference_of(folder, name, recorded[1][0][name, 2]["before"]["value"])
        found[name] = (reference, reference_steps(reference, ppo_sequences(True), MINIBATCHES, 0.05, 0.05))
    return found


@each_world
@pytest.mark.parametrize(
    ("name", "stage"),
    [
        *((name, stage) for name in ("reward model", "mlp head") for stage in STAGES),
        *((name, 2) for name in ("own start", "head", "detached head")),
    ],
)
def test_weights_after_two_epochs_of_two_minibatches(
    recorded: Recordings, after_steps: Any, world: int, name: str, stage: int
) -> None:
    """WP-6, TW-17, TW-18: own networks and heads on the trunk, linear and MLP, detached and not, at ZeRO 0 to 3."""
    result, (reference, losses) = recorded[world][0][name, stage], after_steps[name]
    for kind, expected in reference.parameters().items():
        gap, norm = difference(result["after"][kind], expected)
        assert gap < 1e-6 * max(norm, 1.0), (kind, gap, norm)
        moved = sum(float(np.abs(result["after"][kind][n] - result["before"][kind][n]).sum()) for n in expected)
        assert moved > 1e-3
    metrics = result["metrics"]
    assert metrics["policy/steps"] == 4
    assert metrics["policy/stopped_early"] == 0
    assert result["version"] == 1
    assert metrics["learner/loss"] == pytest.approx(np.mean(losses[0]), abs=rounding(FORWARD, losses[0]))
    assert metrics["val/loss"] == pytest.approx(np.mean(losses[1]), abs=rounding(FORWARD, losses[1]))
    assert ("learner/value_grad_norm" in metrics) == ("head" not in name)


def test_a_detached_head_leaves_the_trunk_alone(recorded: Recordings, after_steps: Any) -> None:
    """TW-17: the value loss moves the trunk where the head is attached; detached, the policy is that of no head at all."""
    attached, detached, own = (recorded[1][0][name, 2] for name in ("head", "detached head", "own start"))
    assert checksum(detached["after"]["policy"]) == checksum(own["after"]["policy"])
    gap, _ = difference(attached["after"]["policy"], dict(after_steps["detached head"][0].policy.named_parameters()))
    assert gap > 1e-5
    assert any(detached["after"]["value"][name].any() for name in detached["after"]["value"])


@each_world
@each_stage
@pytest.mark.parametrize("name", ["reward model", "mlp head"])
def test_values_equal_the_references_and_are_read_again_from_files(
    recorded: Recordings, after_steps: Any, world: int, stage: int, name: str
) -> None:
    """Complete at every rank; after the update they are those of the new weights, and of the folders that were saved."""
    result, reference = recorded[world][0][name, stage], after_steps[name][0]
    sequences = ppo_sequences(True)
    for sequence, values in zip(sequences, result["after"]["values"]):
        expected = sequence_losses(reference, sequence, Minibatch(()))[2].detach().numpy()
        np.testing.assert_allclose(values, expected, atol=1e-5)
    found = np.concatenate(result["after"]["values"])
    for rank in recorded[world]:
        assert np.array_equal(np.concatenate(rank[name, stage]["after"]["values"]), found)
    policy = AutoModelForCausalLM.from_pretrained(result["saved"] / "model").eval()
    again = query_values(load_value(result["saved"] / "value", policy), queries(sequences))
    np.testing.assert_allclose(np.concatenate(again), found, atol=rounding(FORWARD, found))


@each_stage
def test_a_head_is_no_part_of_what_is_published(recorded: Recordings, folder: Path, stage: int) -> None:
    """The policy's weights and its model folder hold the parameters that its start has, and no others."""
    names = set(dict(AutoModelForCausalLM.from_pretrained(folder / "llama").named_parameters()))
    result = recorded[2][0]["mlp head", stage]
    assert set(result["after"]["policy"]) == names
    saved, report = AutoModelForCausalLM.from_pretrained(result["saved"] / "model", output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    assert checksum(result["after"]["policy"]) == checksum({n: p.detach().numpy() for n, p in saved.named_parameters()})


@each_world
@pytest.mark.parametrize(("kind", "stage"), [*(("separate", stage) for stage in STAGES), ("head", 3)])
def test_resuming_takes_up_both_networks_bit_for_bit(recorded: Recordings, world: int, kind: str, stage: int) -> None:
    for rank in recorded[world]:
        (metrics, policy, value, values, version), resumed = (
            rank["resume", kind, stage][k] for k in ("straight", "resumed")
        )
        assert metrics == resumed[0]
        assert version == resumed[4] == 4
        assert checksum(policy) == checksum(resumed[1])
        assert checksum(value) == checksum(resumed[2])
        assert np.array_equal(np.concatenate(values), np.concatenate(resumed[3]))


def test_zero_stages_and_ranks_agree(recorded: Recordings) -> None:
    """T3: what is sharded over how many ranks changes no more than last bits, of joint losses too."""
    for name in ("reward model", "mlp head"):
        results = [recorded[world][0][name, stage]["after"] for world in WORLDS for stage in STAGES]
        for kind in ("policy", "value"):
            for other in results[1:]:
                for key, array in results[0][kind].items():
                    np.testing.assert_allclose(other[kind][key], array, atol=2e-6)


@each_world
def test_target_kl_ends_the_update_on_all_ranks_alike(recorded: Recordings, world: int) -> None:
    """LMHP-23's approxkl over the step's tokens of all ranks: the step that exceeds it is the last, and is taken."""
    assert recorded[world][0]["unlimited"]["metrics"]["policy/stopped_early"] == 0
    for rank in recorded[world]:
        limited, same = rank["limited"], rank["that many"]
        assert limited["metrics"]["policy/stopped_early"] == 1
        assert 1 <= limited["metrics"]["policy/steps"] < 5
        for kind in ("policy", "value"):
            assert checksum(limited[kind]) == checksum(same[kind])


@each_world
def test_a_loss_that_is_not_finite_in_a_later_step_does_not_claim_that_nothing_changed(
    recorded: Recordings, world: int
) -> None:
    for rank in recorded[world]:
        assert "the loss is not finite on 1 of" in rank["exploding"]
        assert "1 of 2 steps of this update were already taken" in rank["exploding"]
        assert "no weight was changed" not in rank["exploding"]


def on_policy(folder: Path, temperature: float) -> list[TrainingSequence]:
    """Constrained sequences with the log-probabilities that the policy gives them alone, in fp32, without padding."""
    policy = load_policy_plain(str(folder / "llama"))
    sequences = []
    for sequence in ppo_sequences(constrained=True, seed=4, count=16):
        with torch.no_grad():
            logits = policy(torch.from_numpy(sequence.input_ids)[None]).logits[0] / temperature
        places = range(sequence.start - 1, len(sequence) - 1)
        logprobs = [float(token_logprobs(logits[place], sequence, k)[0]) for k, place in enumerate(places)]
        sequences.append(replace(sequence, behaviour_logprobs=np.array(logprobs, np.float32)))
    return sequences


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_ratio_is_one_before_the_first_step_under_constrained_decoding(folder: Path, temperature: float) -> None:
    """X-5, X-6: at the default limit of 1e-4, though later minibatches of the same update have moved away."""
    value = value_configs(folder, 0.1)["own start"]
    learner = ppo_learner(folder, 0, 1, 2, value, max_logprob_gap=1e-4, temperature=temperature)
    steps = (Minibatch(tuple(range(8))), Minibatch(tuple(range(8, 16))))
    metrics = learner.update(TrainingBatch(tuple(on_policy(folder, temperature)), steps), 0).metrics
    assert metrics["learner/logprob_gap_max"] < 1e-5
    assert metrics["policy/ratio_max"] > 1.001
    learner.close()


@each_world
@each_stage
@pytest.mark.parametrize("kind", ["own start", "head"])
def test_a_later_minibatch_that_was_sampled_otherwise_stops_the_update_before_its_first_step(
    recorded: Recordings, world: int, stage: int, kind: str
) -> None:
    """X-5: one token of the third of four minibatches; all ranks raise, and no weight of either network has changed."""
    for rank in recorded[world]:
        result = rank["later minibatch off", kind, stage]
        assert "learner and sampler disagree" in result["message"]
        assert "No weight was changed" in result["message"]
        assert result["unchanged"]


def test_the_gap_that_is_reported_is_that_of_all_minibatches(folder: Path) -> None:
    """X-5: of every token once, as the first epoch's steps find them: the largest may stand in the last minibatch."""
    sequences = on_policy(folder, 1.0)
    place = int(np.flatnonzero(sequences[13].weights)[0])
    sequences[13].behaviour_logprobs[place] += np.float32(0.5)
    steps = (Minibatch(tuple(range(4))), Minibatch(tuple(range(4, 12))), Minibatch((12, 13, 14, 15))) * 2
    learner = ppo_learner(folder, 0, 1, 2, value_configs(folder, 0.1)["own start"], max_logprob_gap=1.0)
    metrics = learner.update(TrainingBatch(tuple(sequences), steps), 0).metrics
    learner.close()
    tokens = sum(np.count_nonzero(sequence.weights) for sequence in sequences)
    assert metrics["learner/logprob_gap_max"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["learner/logprob_gap_mean"] == pytest.approx(0.5 / tokens, rel=1e-2)
    assert metrics["learner/tokens"] == 2 * tokens


@pytest.mark.parametrize("kind", ["own start", "reward model", "mlp head"])
@pytest.mark.parametrize("stage", [0, 3])
def test_values_of_a_bf16_learner_are_not_rounded_to_bf16(folder: Path, kind: str, stage: int) -> None:
    """The head of a value network computes in fp32 on a bf16 trunk, of its own or the policy's, and learns."""
    value = value_configs(folder, 0.1)[kind]
    config = LearnerConfig(ranks=1, zero_stage=stage, precision="bf16", max_mean_logprob_gap_bf16=100)  # type: ignore[arg-type]
    learner = Learner(str(folder / "llama"), OBJECTIVE, SGDConfig(lr=0.1), config, 1.0, 10, "cpu", value=value)
    sequences = ppo_sequences(True, count=12)
    learner.update(TrainingBatch.one_step(sequences), 0)
    values = np.concatenate(learner.values(queries(sequences)))
    learner.close()
    rounded = torch.from_numpy(values).bfloat16().float().numpy()
    assert len(np.unique(values)) > 0.95 * len(values)
    assert (values != rounded).mean() > 0.9


def test_allowed_sets_dropped_at_the_learner_are_caught(folder: Path) -> None:
    """X-5, the negative control: the full vocabulary's log-probabilities are not those that were sampled with."""
    dropped = [replace(sequence, allowed=None) for sequence in on_policy(folder, 1.0)]
    learner = ppo_learner(folder, 0, 1, 2, value_configs(folder, 0.1)["own start"], max_logprob_gap=1e-4)
    before = checksum(arrays_of(learner.weights())), checksum(value_arrays(learner))
    with pytest.raises(LearnerError, match=r"learner and sampler disagree.*of the tokens allowed where decoding"):
        learner.update(TrainingBatch.one_step(dropped), 0)
    assert (checksum(arrays_of(learner.weights())), checksum(value_arrays(learner))) == before
    learner.close()


def test_the_entropy_bonus_raises_the_entropy(folder: Path) -> None:
    """With no advantage a step along its gradient is a step towards the uniform policy over the tokens allowed."""
    sequences = [replace(one, advantages=0 * one.advantages) for one in on_policy(folder, 1.0)]
    objective = Objective(ClippedLoss(0.2), 1.0, ValueObjective(None, 0.5))
    learner = ppo_learner(
        folder, 0, 1, 2, value_configs(folder, 0.1)["own start"], loss=objective, optimizer=SGDConfig(lr=0.3)
    )
    entropies = [learner.update(TrainingBatch.one_step(sequences), i).metrics["policy/entropy"] for i in range(4)]
    assert entropies == sorted(entropies)
    assert entropies[-1] > entropies[0] + 1e-3
    learner.close()


def test_bf16_trains_both_networks(folder: Path) -> None:
    """Values are float32 numbers of a bf16 network, near those of fp32, and move towards the returns."""
    sequences = [replace(one, returns=0 * one.returns + 1, values=0 * one.values) for one in on_policy(folder, 1.0)]
    config = LearnerConfig(ranks=1, zero_stage=2, precision="bf16", max_mean_logprob_gap_bf16=0.5)
    value = SeparateValueConfig(optimizer=AdamWConfig(lr=1e-2))
    objective = Objective(ClippedLoss(0.2), 0.0, ValueObjective(None, 0.5))
    learner = Learner(str(folder / "llama"), objective, AdamWConfig(lr=1e-3), config, 1.0, 10, "cpu", value=value)
    errors = [learner.update(TrainingBatch.one_step(sequences), i).metrics["val/error"] for i in range(4)]
    assert errors[0] == pytest.approx(1)
    assert errors[-1] < 0.9
    assert {values.dtype for values in learner.values(queries(sequences))} == {np.dtype(np.float32)}
    learner.close()


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    plain = Objective(OBJECTIVE.policy)
    configs = value_configs(folder, 0.1)
    with pytest.raises(LearnerError, match="a value network and an objective to fit it come together"):
        ppo_learner(folder, 0, 1, 2, configs["head"], loss=plain)
    learner = ppo_learner(folder, 0, 1, 2, None, loss=plain)  # type: ignore[arg-type]
    with pytest.raises(LearnerError, match="this learner has no value network: algorithms that ask for values"):
        learner.values([ValueQuery(np.array([1, 2]), 1)])
    with pytest.raises(LearnerError, match="no value network to save"):
        learner.save_value(tmp_path)
    learner.save_state(tmp_path / "state")
    learner.close()
    learner = ppo_learner(folder, 0, 1, 2, configs["head"])
    assert learner.values([]) == []
    with pytest.raises(CheckpointError, match=r"algorithm.value.kind was None and is head now"):
        learner.load_state(tmp_path / "state")
    bare = replace(ppo_sequences(True)[0], returns=np.zeros(0, np.float32))
    with pytest.raises(LearnerError, match=r"training sequence 0 of 1: returns has shape \(0,\)"):
        learner.update(TrainingBatch.one_step([bare]), 0)
    learner.close()
    small = AutoModelForCausalLM.from_pretrained(folder / "llama")
    small.resize_token_embeddings(100)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match="the value network knows 100 tokens, the policy"):
        ppo_learner(folder, 0, 1, 2, SeparateValueConfig(init=str(tmp_path / "small")))
