"""The KL loss at the learner against a plain reference that goes token by token in float64; and what it does to a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rayrlhf.algorithm_config import AdamWConfig, RLOOConfig
from rayrlhf.algorithms import build_algorithm
from rayrlhf.config import AgentConfig, LearnerConfig, ModelConfig
from rayrlhf.environments import EnvironmentSettings
from rayrlhf.errors import LearnerError
from rayrlhf.kl_config import KLLossConfig, KLPenaltyConfig
from rayrlhf.kl_estimators import KLLoss, over_vocabulary
from rayrlhf.learner import Learner
from rayrlhf.losses import Objective, PolicyGradientLoss
from rayrlhf.prompts import Prompt
from rayrlhf.rewards.letter_count import LetterCount
from rayrlhf.rollout import deal_specs
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.types import EpisodeScore, TrainingBatch, TrainingSequence
from rayrlhf.worker import RolloutWorker, WorkerSettings
from tests.kl_process import CASES, KL_COEF, Case, run
from tests.learner_process import Recordings, load_policy_plain, make_sequences, run_ranks
from tests.ppo_process import ppo_sequences
from tests.rounding import FORWARD, rounding
from tests.tiny_models import build_tiny_model

each_world = pytest.mark.parametrize("world", [1, 2])


pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kl")
    for architecture in ("llama", "gpt2"):
        build_tiny_model(folder / architecture, architecture)
    return folder


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Recordings:
    return run_ranks(folder, run)


# The reference: one sequence at a time, one token at a time, float64, nothing padded, the formulas written out again.


def token_kl(loss: KLLoss, ours: Tensor, theirs: Tensor, taken: int, reference: float, behaviour: float) -> Tensor:
    """KL loss of one token: log-probabilities of the candidates under both models, and the stored ones of its token."""
    if loss.estimator == "full":
        return (ours.exp() * (ours - theirs)).sum()
    if loss.estimator == "forward":
        return (theirs.exp() * (theirs - ours)).sum()
    log_ratio, ratio = ours[taken] - reference, torch.exp(ours[taken] - behaviour)
    if loss.estimator == "forward_sampled":
        return -np.exp(reference - behaviour) * log_ratio
    if loss.estimator == "k2":
        return ratio.detach() * log_ratio**2 / 2
    value = log_ratio if loss.estimator == "k1" else torch.exp(-log_ratio) - 1 + log_ratio
    return ratio * value if loss.correction else value


def token_loss(case: Case, sequence: TrainingSequence, logits: Tensor, others: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The policy's loss with its entropy bonus, and the KL loss, of scored token k."""
    token, allowed, vocabulary = int(sequence.input_ids[sequence.start + k]), sequence.allowed, list(range(len(logits)))
    among = vocabulary if allowed is None else allowed.ids[allowed.offsets[k] : allowed.offsets[k + 1]].tolist()
    among = among or vocabulary
    ours, theirs = ((row[among] / case.temperature).log_softmax(0) for row in (logits, others))
    behaviour, taken = float(sequence.behaviour_logprobs[k]), among.index(token)
    ratio, advantage = torch.exp(ours[taken] - behaviour), float(sequence.advantages[k])
    surrogate = torch.minimum(advantage * ratio, advantage * ratio.clamp(0.9, 1.1))
    assert case.loss is not None
    kl = token_kl(case.loss, ours, theirs, taken, float(sequence.reference_logprobs[k]), behaviour)
    return -surrogate + 0.05 * (ours.exp() * ours).sum(), kl


def reference_update(folder: Path, case: Case, before: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], float, float]:
    """The gradient at the policy `before`, how much of its norm is the KL's, and the mean KL loss of a token."""
    policy, reference = (load_policy_plain(str(folder / case.model)).double() for _ in range(2))
    policy.load_state_dict({name: torch.from_numpy(array) for name, array in before.items()}, strict=False)
    total, penalty, kls = torch.zeros(()).double(), torch.zeros(()).double(), []
    for sequence in ppo_sequences(case.constrained):
        ids = torch.from_numpy(sequence.input_ids)[None]
        logits, others = policy(ids).logits[0], reference(ids).logits[0].detach()
        for k, weight in enumerate(sequence.weights.tolist()):
            place = sequence.start + k - 1
            loss, kl = token_loss(case, sequence, logits[place], others[place], k)
            total, penalty = total + weight * loss, penalty + weight * KL_COEF * kl
            kls += [kl.item()] if weight else []
    parameters = dict(policy.named_parameters())
    of_kl = torch.autograd.grad(penalty, list(parameters.values()), retain_graph=True)
    found = torch.autograd.grad(total + penalty, list(parameters.values()))
    norm = float(sum(float(part.square().sum()) for part in of_kl)) ** 0.5
    return dict(zip(parameters, found)), norm, float(np.mean(kls))


@each_world
@pytest.mark.parametrize("name", CASES)
def test_the_updates_gradient_equals_the_reference(folder: Path, recorded: Recordings, name: str, world: int) -> None:
    """TW-14, TW-15, TW-16, X-5, X-6: with every estimator, free and constrained, ragged, in micro-batches, ZeRO 0 to 3,
    with and without values, to 1e-6 of the gradient's norm; policy/kl_loss is the mean over tokens."""
    result = recorded[world][0][name]
    gradient, of_kl, kl = reference_update(folder, CASES[name], result["before"])
    taken = {key: result["before"][key] - result["after"][key] for key in gradient}
    gap = sum(float(((taken[key] - value.numpy()) ** 2).sum()) for key, value in gradient.items()) ** 0.5
    norm = sum(float((value.numpy() ** 2).sum()) for value in gradient.values()) ** 0.5
    assert norm > 0.05
    assert gap < 1e-6 * max(norm, 1.0), (gap, norm)
    assert of_kl > 1e-3  # a thousand times what is let pass
    assert result["metrics"]["policy/kl_loss"] == pytest.approx(kl, abs=rounding(FORWARD, kl))
    assert result["metrics"]["learner/micro_batches"] > 1


@each_world
def test_a_policy_that_is_its_reference_feels_no_kl(recorded: Recordings, world: int) -> None:
    """X-5: the KL over the vocabulary is exactly 0 before the first step, and that step is bit for bit the one without."""
    plain = recorded[world][0]["untouched", None]
    for estimator in ("full", "forward"):
        result = recorded[world][0]["untouched", estimator]
        assert result["metrics"]["policy/kl_loss"] == 0
        for name, array in plain["after"].items():
            np.testing.assert_array_equal(result["after"][name], array, err_msg=name)
        assert recorded[world][0][estimator]["metrics"]["policy/kl_loss"] > 1e-5  # and later it does


@each_world
@pytest.mark.parametrize("name", ["full", "full, free"])
def test_a_resumed_learner_has_the_reference_it_started_from(recorded: Recordings, name: str, world: int) -> None:
    """The reference is the model that the run started from, not the policy of the state that is loaded."""
    straight, resumed = recorded[world][0][name], recorded[world][0]["resumed", name]
    assert resumed["metrics"] == straight["metrics"]
    for key, array in straight["after"].items():
        np.testing.assert_array_equal(resumed["after"][key], array, err_msg=key)


def test_in_bf16_the_reference_computes_as_the_policy_does(folder: Path) -> None:
    """X-5 in bf16: equal weights have no KL, and the penalty works on."""
    config = LearnerConfig(ranks=1, zero_stage=2, precision="bf16", max_mean_logprob_gap_bf16=1e6)
    objective = Objective(PolicyGradientLoss(importance_cap=None), kl=KLLoss("full"))
    learner = Learner(str(folder / "llama"), objective, AdamWConfig(lr=1e-2), config, 1.0, 10, "cpu")
    batch = TrainingBatch(tuple(make_sequences(8, 0)), TrainingBatch.one_step(make_sequences(8, 0)).minibatches, 0.1)
    kls = [learner.update(batch, iteration).metrics["policy/kl_loss"] for iteration in range(3)]
    learner.close()
    assert kls[0] == 0
    assert 0 < kls[1] < kls[2]


def test_what_the_kl_loss_lacks_is_named(folder: Path) -> None:
    """A sampled loss without the reference's log-probabilities, and a coefficient that is no number."""
    objective = Objective(PolicyGradientLoss(importance_cap=None), kl=KLLoss("k3"))
    config = LearnerConfig(ranks=1, max_logprob_gap=1e6)
    learner = Learner(str(folder / "llama"), objective, AdamWConfig(), config, 1.0, 10, "cpu")
    batch = TrainingBatch.one_step(make_sequences(2, 0))
    with pytest.raises(LearnerError, match=r"reference_logprobs has shape \(0,\)"):
        learner.update(batch, 0)
    with pytest.raises(LearnerError, match="kl_coef must be finite, not nan"):
        learner.update(TrainingBatch(batch.sequences, batch.minibatches, float("nan")), 0)
    learner.close()


def kl_of_learning(
    model: Path, kl: KLPenaltyConfig, kl_loss: KLLossConfig | None, iterations: int = 12
) -> tuple[list[float], list[float]]:
    """Rewards and KLs of a run that learns to write the letter e, in this process."""
    algorithm = build_algorithm(RLOOConfig(kl=kl, kl_loss=kl_loss))
    settings = WorkerSettings(
        model=ModelConfig(path=str(model)), environments={"train": EnvironmentSettings("single_turn")},
        prompts=(Prompt("Once upon a time", np.array([5, 6, 7])),), agent=AgentConfig(),
        sampling=SamplingSettings(12), max_turns=1, device="cpu", dtype="float32", threads=1,
        vocabulary_kl=over_vocabulary(kl.estimator),
    )  # fmt: skip
    worker, reward = RolloutWorker(settings), LetterCount(letter="e")
    optimizer, config = AdamWConfig(lr=1e-2), LearnerConfig(ranks=1)
    learner = Learner(str(model), algorithm.objective, optimizer, config, 1.0, iterations, "cpu")
    rewards, kls = [], []
    for iteration in range(iterations):
        [specs] = deal_specs(0, iteration, groups=4, group_size=8, groups_per_batch=4)
        trajectories = worker.play(specs, learner.weights(), learner.version).trajectories
        scores = [EpisodeScore(np.array(value, np.float32), {}) for value in reward(trajectories)]
        batch, metrics = algorithm.prepare(trajectories, scores, [], iteration)
        report = learner.update(batch, iteration).metrics
        assert ("policy/kl_loss" in report) == (kl_loss is not None)
        rewards.append(metrics["objective/score"])
        kls.append(metrics["objective/kl"])
    learner.close()
    return rewards, kls


def test_a_kl_loss_holds_the_policy_where_the_reward_channel_does_not(folder: Path) -> None:
    """TW-16: a reward penalty of 0.02 a nat lets the policy drift to its reward; with kl_loss full at 3 beside one that
    is charged by the exact KL, sampled, scored and updated the same way, the KL stays under a fifth."""
    rewards, alone = kl_of_learning(folder / "llama", KLPenaltyConfig(coef=0.02), None)
    full = KLPenaltyConfig(coef=0.02, estimator="full")
    _, held = kl_of_learning(folder / "llama", full, KLLossConfig(estimator="full", coef=3.0))
    print(
        f"KL of the last 3 iterations: {np.mean(alone[-3:]):.2f} alone, {np.mean(held[-3:]):.2f} nats held; {rewards}"
    )
    assert np.mean(rewards[-3:]) > 2 * np.mean(rewards[:3])
    assert np.mean(alone[-3:]) > 2
    assert abs(np.mean(held[-3:])) < np.mean(alone[-3:]) / 5
