"""From a written config to the numbers that are trained on: losses, shaped rewards, targets and what is fitted.

Nothing here looks into a pure function: a config is written to a file and loaded as `rayrlhf train` does it, its
algorithm is handed episodes, and what comes out is held against numbers worked out in the test. A setting that is
read, checked and then not handed on fails here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rayrlhf.algorithms import build_algorithm
from rayrlhf.batch_loss import policy_loss, value_loss
from rayrlhf.config import ModelConfig, RunConfig
from rayrlhf.config_loading import load_config
from rayrlhf.errors import LearnerError
from rayrlhf.learner import Learner
from rayrlhf.micro_batches import collate
from rayrlhf.packed_sequences import Limits, pack_sequences
from rayrlhf.prompts import Prompts
from rayrlhf.reward_models.config import RewardModelConfig
from rayrlhf.reward_models.examples import Example, ExampleTable
from rayrlhf.reward_models.losses import TIE
from rayrlhf.reward_models.module import collate as collate_labels
from rayrlhf.reward_models.module import example_losses
from rayrlhf.reward_models.normalisation import label_scale
from rayrlhf.rollout import deal_specs
from rayrlhf.run_parts import StartingPoint, environment_settings, learner_settings, worker_settings
from rayrlhf.types import TrainingBatch, Trajectory, Turn
from rayrlhf.worker import RolloutWorker
from tests.game_episodes import episode, score_of, turn

Write = Callable[[str], RunConfig]
TABLE = np.random.default_rng(0).normal(size=(10, 10))  # the logits after each token of a policy that sees one token
REFERENCE = np.random.default_rng(1).normal(size=(10, 10))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a config's text to a file and loads that."""

    def written(text: str) -> RunConfig:
        (tmp_path / "run.yaml").write_text(text)
        return load_config(str(tmp_path / "run.yaml"))

    return written


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def prepared(algorithm: Any, trajectories: Sequence[Trajectory], values: Sequence[np.ndarray] = ()) -> TrainingBatch:
    """The update that an algorithm makes of episodes, whose scores are the environment's own."""
    return algorithm.prepare(trajectories, [score_of(t) for t in trajectories], values, 0)[0]


def first_step(
    config: RunConfig,
    trajectories: Sequence[Trajectory],
    values: Sequence[np.ndarray] = (),
    temperature: float = 1.0,
    table: torch.Tensor = torch.from_numpy(TABLE),  # noqa: B008 - nothing changes it
) -> tuple[torch.Tensor, torch.Tensor]:
    """The policy's and the values' loss of the first optimizer step, as the config has them, of the policy TABLE and a
    value network that says -1 everywhere."""
    algorithm = build_algorithm(config.algorithm, config.iterations)
    batch, objective = prepared(algorithm, trajectories, values), algorithm.objective
    sampled = objective.kl is not None and objective.kl.vocabulary is None
    packed = pack_sequences(batch.sequences, Limits(10, None), objective.value is not None, sampled)
    micro_batch = collate(packed, batch.minibatches[0].indices, batch.minibatches[0])
    shown = micro_batch.input_ids[:, micro_batch.columns]
    of_policy, _ = policy_loss(
        table[shown], micro_batch, objective, temperature, batch.kl_coef, torch.from_numpy(REFERENCE)[shown]
    )
    if objective.value is None:
        return of_policy, torch.zeros(())
    return of_policy, value_loss(torch.full(micro_batch.returns.shape, -1.0), micro_batch, objective.value)[0]


def losses(*arguments: Any, **options: Any) -> tuple[float, float]:
    """The same as numbers."""
    of_policy, of_values = first_step(*arguments, **options)
    return of_policy.item(), of_values.item()


def game() -> list[Trajectory]:
    """Two episodes: a turn of two tokens, an example, a turn of a forced token and one of three; and a turn without any
    choice before a turn of one token. Rewards 1, 2, 4 and -3, 0.5."""
    return [
        episode([
            turn(2, (1, 2), reward=1.0, ids=np.array([3, 4])),
            turn(2, (2, 3), reward=2.0, example=True),
            turn(2, (3, 4), reward=4.0, sizes=(1, 3), seed=1),
        ]),
        episode([turn(2, (4, 5), reward=-3.0, sizes=(1, 1)), turn(1, (5, 6), reward=0.5, ids=np.array([7]))], index=1),
    ]  # fmt: skip


GAME_VALUES = [np.array(v, np.float32) for v in ([0.5, -1], [3, 9], [9, 2], [1, 9], [0.25])]  # of each turn's tokens
TO_GO = np.array([7, 7, 4, 0.5])  # rewards that are still to come at each trained token
TRAINED_VALUES = np.array([0.5, -1, 2, 0.25])


def game_ratios() -> np.ndarray:
    """pi / behaviour of each trained token: 3 after 2, 4 after 3, 0 among {0, 1, 2} after 0, 7 after 6."""
    among = game()[0].turns[2].allowed
    assert among is not None
    ours = [log_softmax(TABLE[2])[3], log_softmax(TABLE[3])[4], log_softmax(TABLE[0, :3])[0], log_softmax(TABLE[6])[7]]
    return np.exp(np.array(ours) - [-1, -1, float(among.logprobs[1]), -1])


def clipped_loss(advantages: np.ndarray, ratios: np.ndarray, clip: float) -> np.ndarray:
    return np.maximum(-advantages * ratios, -advantages * np.clip(ratios, 1 - clip, 1 + clip))


PPO = """
iterations: 4
algorithm:
  name: ppo
  kl: {coef: 0}
  epochs: 1
  clip_range: 0.3
  value_clip_range: null
  value_coef: 0.7
  gae: {token_discount: 1, token_lambda: 1, turn_discount: 1, turn_lambda: 1}
"""


def whitened(values: np.ndarray, over: np.ndarray) -> np.ndarray:
    return (values - over.mean()) / np.sqrt(over.var() + 1e-8)


def test_ppos_advantages_are_whitened_over_the_tokens_that_are_trained(write: Write) -> None:
    """LMHP-21, TW-8: examples and forced tokens are steps of the episode, and no part of mean and deviation: over all
    six steps both would be others."""
    advantages = TO_GO - TRAINED_VALUES
    expected = clipped_loss(whitened(advantages, advantages), game_ratios(), 0.3).mean()
    of_policy, _ = losses(write(PPO + "  whiten_advantages: batch"), game(), GAME_VALUES)
    assert of_policy == pytest.approx(expected, rel=1e-5)


def test_ppo_whitens_over_the_tokens_of_an_episode(write: Write) -> None:
    """TW-17: each episode by itself."""
    advantages = TO_GO - TRAINED_VALUES
    each = np.append(whitened(advantages[:3], advantages[:3]), 0.0)  # the other episode has one token: it is its mean
    of_policy, _ = losses(write(PPO + "  whiten_advantages: episode"), game(), GAME_VALUES)
    assert of_policy == pytest.approx(clipped_loss(each, game_ratios(), 0.3).mean(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("whiten", ["none", "episode", "minibatch", "batch"])
def test_values_are_fitted_to_returns_that_no_whitening_touches(write: Write, whiten: str) -> None:
    """LMHP-22: R = A + V before the advantages are whitened, so the rewards still to come; the mean is over the five
    steps of turns that are no example, the turn without a choice among them."""
    returns = np.array([7, 7, 4, -2.5, 0.5])
    expected = 0.7 * 0.5 * np.square(-1 - returns).mean()
    _, of_values = losses(write(PPO + f"  whiten_advantages: {whiten}"), game(), GAME_VALUES)
    assert of_values == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("reduction", "of_policy", "of_values"),
    [
        ("token_mean", [1 / 4] * 4, [1 / 5] * 5),
        ("sequence_sum", [1 / 2] * 4, [1 / 2] * 5),
        ("sequence_mean", [1 / 6, 1 / 6, 1 / 6, 1 / 2], [1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4]),
        ("group_sum", [1 / 3, 1 / 3, 1 / 3, 1], [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]),
    ],
)
def test_ppos_losses_add_up_as_the_reduction_says(
    write: Write, reduction: str, of_policy: list[float], of_values: list[float]
) -> None:
    """TW-18: the policy's loss by its trained tokens, the values' by theirs; an example is none of either."""
    config = write(PPO + f"  whiten_advantages: none\n  loss_reduction: {reduction}")
    policy, values = losses(config, game(), GAME_VALUES)
    tokens = clipped_loss(TO_GO - TRAINED_VALUES, game_ratios(), 0.3)
    assert policy == pytest.approx(of_policy @ tokens, rel=1e-5)
    squares = np.square(-1 - np.array([7, 7, 4, -2.5, 0.5]))
    assert values == pytest.approx(0.7 * 0.5 * (of_values @ squares), rel=1e-5)


def test_episodes_without_a_choice_weigh_nothing_and_count(write: Write) -> None:
    """An episode whose every token was forced has no loss of its own; it is one of the N of sequence_mean all the same."""
    played = [*game(), episode([turn(2, (5, 6), sizes=(1, 1))], index=2)]
    config = write(PPO + "  whiten_advantages: none\n  loss_reduction: sequence_mean")
    policy, _ = losses(config, played, [*GAME_VALUES, np.zeros(2, np.float32)])
    tokens = clipped_loss(TO_GO - TRAINED_VALUES, game_ratios(), 0.3)
    assert policy == pytest.approx((tokens[:3].mean() + tokens[3]) / 3, rel=1e-5)


def test_the_written_value_clip_holds_the_value_loss(write: Write) -> None:
    """LMHP-23: V at most this far from its old value in the clipped half of the maximum; the network says -1 now."""
    config = write(PPO.replace("value_clip_range: null", "value_clip_range: 0.5"))
    old, returns = np.array([0.5, -1, 2, 1, 0.25]), np.array([7, 7, 4, -2.5, 0.5])
    near = np.clip(-1, old - 0.5, old + 0.5)
    expected = 0.35 * np.maximum(np.square(-1 - returns), np.square(near - returns)).mean()
    assert losses(config, game(), GAME_VALUES)[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("reduction", "share"), [("sum", 1.0), ("mean", 1 / 3)])
def test_ppos_rewards_are_charged_by_the_written_reduction(write: Write, reduction: str, share: float) -> None:
    """LMHP-19, ALLIT-6: R_t = -coef * KL_t, with `mean` over the three response tokens, one of which was forced and is
    no step; the loss of one episode is that of three advantages without any value."""
    config = write(
        PPO.replace("kl: {coef: 0}", f"kl: {{coef: 0.6, reduction: {reduction}}}").replace("lambda: 1", "lambda: 0")
        + "  whiten_advantages: none\n  loss_reduction: sequence_sum"
    )
    [first] = played = [episode([turn(3, (1,), sizes=(2, 1, 3), reward=5.0, seed=2)])]
    k = first.turns[0].logprobs.astype(float) - first.turns[0].reference_logprobs
    algorithm = build_algorithm(config.algorithm, config.iterations)
    [sequence] = prepared(algorithm, played, [np.zeros(3, np.float32)]).sequences
    expected = [-0.6 * share * k[0], 0, 5 - 0.6 * share * k[2]]
    assert abs(k[0]) > 0.1
    np.testing.assert_allclose(sequence.advantages, expected, rtol=1e-5, atol=1e-6)


def test_a_turns_value_is_that_of_what_the_policy_was_shown(write: Write) -> None:
    """The record of a turn has V before its first token, also where one sequence holds several turns."""
    grown = [turn(2, (1, 2), ids=np.array([3, 4])), turn(3, (1, 2, 3, 4, 5), ids=np.array([6, 7, 8]))]
    values = [np.array([0.5, 1.5, 9.0, 2.5, 3.5, 4.5], np.float32)]  # the third stands at the observation between them
    algorithm = build_algorithm(write(PPO).algorithm)
    assert algorithm.turn_values([episode(grown)], values) == [[0.5, 2.5]]


def test_a_cut_off_episode_goes_on_with_the_value_of_its_last_observation(write: Write) -> None:
    """LMHP-22: terminated means nothing comes after; a limit means V of what the policy would have been shown."""
    config = write(PPO.replace("turn_discount: 1", "turn_discount: 0.5") + "  whiten_advantages: none")
    values = [np.array([1.0, 2.0], np.float32)]
    for terminated, after in ((True, []), (False, [np.array([8.0], np.float32)])):
        played = [episode([turn(2, (1, 2), reward=3.0, ids=np.array([3, 4]))], terminated)]
        [sequence] = prepared(build_algorithm(config.algorithm), played, [*values, *after]).sequences
        np.testing.assert_allclose(sequence.returns, [3 + 0.5 * 8 * (not terminated)] * 2)


# The policy-gradient algorithms.


def pair(kl: Sequence[float] = (0.2, -0.1), rewards: Sequence[float] = (5.0, 2.0)) -> list[Trajectory]:
    """A group of two episodes of two tokens each, sampled at -2.5 and -1.5 nats, `kl` a token above the reference."""
    sampled = np.array([-2.5, -1.5], np.float32)
    return [
        episode([replace(
            turn(2, (1, 2), reward=reward, ids=np.array(ids)), logprobs=sampled, reference_logprobs=sampled - np.float32(k)
        )], index=i)
        for i, (k, reward, ids) in enumerate(zip(kl, rewards, ([3, 4], [5, 6])))
    ]  # fmt: skip


def pair_logprobs() -> np.ndarray:
    """log pi of the pair's tokens, [2, 2]."""
    logs = log_softmax(TABLE)
    return np.array([[logs[2, 3], logs[3, 4]], [logs[2, 5], logs[5, 6]]])


@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo"])
@pytest.mark.parametrize("importance", ["importance_cap: 0.7", "importance_cap: null", "clip_range: 0.3"])
def test_the_written_importance_weight_is_in_the_loss(write: Write, name: str, importance: str) -> None:
    """-w A log pi with w = min(pi / behaviour, cap) or 1, or PPO's clipped ratio, whichever the config has."""
    clip = "" if importance.startswith("clip") else ", clip_range: null"
    config = write(f"algorithm: {{name: {name}, kl: {{coef: 0}}, {importance}{clip}}}")
    advantages = {"reinforce": [1.5, -1.5], "rloo": [3.0, -3.0], "grpo": [1.5 / (4.5**0.5 + 1e-4)] * 2}[name]
    each = np.array([[abs(advantages[0])] * 2, [-abs(advantages[1])] * 2])
    logs = pair_logprobs()
    ratios = np.exp(logs - np.array([-2.5, -1.5]))
    expected = {
        "importance_cap: 0.7": -np.minimum(ratios, 0.7) * each * logs,
        "importance_cap: null": -each * logs,
        "clip_range: 0.3": clipped_loss(each, ratios, 0.3),
    }[importance]
    assert ratios.min() < 0.7 < 1.3 < ratios.max()
    assert losses(config, pair())[0] == pytest.approx(expected.sum() / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo", "ppo", "rejection_sampling"])
def test_the_written_entropy_bonus_is_in_the_loss(write: Write, name: str) -> None:
    """-entropy_coef * H of the differentiated distribution at each trained token, for every algorithm."""
    text = f"algorithm: {{name: {name}, kl: {{coef: 0}}, entropy_coef: %s}}"
    values = [np.zeros(2, np.float32)] * 2 if name == "ppo" else []
    plain, bonus = (losses(write(text % coef), pair(), values, temperature=0.8)[0] for coef in (0, 0.3))
    logs = log_softmax(TABLE / 0.8)
    entropies = -(np.exp(logs) * logs).sum(-1)
    means = {"rejection_sampling": (entropies[2] + entropies[3]) / 2}  # one turn of the two is kept
    places = np.array([entropies[2], entropies[3], entropies[2], entropies[5]])
    expected = means.get(name, places.mean() if name == "ppo" else places.sum() / 2)
    assert plain - bonus == pytest.approx(0.3 * expected, rel=1e-4)


def test_the_entropy_bonus_has_its_gradient_at_free_and_at_constrained_tokens(write: Write) -> None:
    """The gradient of -entropy_coef * H by the logits, against autograd over single tokens: one that was free, one among
    three allowed ones, and one of an episode that was free throughout."""
    played = [
        episode([turn(2, (1, 2), reward=1.0, sizes=(0, 3), seed=1, ids=np.array([4, 0]))]),
        episode([turn(1, (1, 5), reward=2.0, ids=np.array([6]))], index=1),
    ]
    text = "algorithm: {name: reinforce, kl: {coef: 0}, loss_reduction: token_mean, entropy_coef: %s}"
    for batch, rows in ((played, [(2, 10), (4, 3), (5, 10)]), (played[1:], [(5, 10)])):
        gradients = []
        for coef in (0.6, 0):
            table = torch.from_numpy(TABLE).clone().requires_grad_()
            first_step(write(text % coef), batch, temperature=0.8, table=table)[0].backward()
            assert table.grad is not None
            gradients.append(table.grad)
        expected = torch.from_numpy(TABLE).clone().requires_grad_()
        for row, size in rows:
            logs = (expected[row, :size] / 0.8).log_softmax(-1)
            (0.6 / len(rows) * (logs.exp() * logs).sum()).backward()
        torch.testing.assert_close(gradients[0] - gradients[1], expected.grad, atol=1e-6, rtol=1e-5)


ESTIMATES: dict[str, Callable[[float], float]] = {
    "k1": lambda k: k,
    "k2": lambda k: k * k / 2,
    "k3": lambda k: math.exp(-k) - 1 + k,
    "forward_sampled": lambda k: -k * math.exp(-k),
}


@pytest.mark.parametrize("estimator", ESTIMATES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_shaped_reward_is_charged_by_the_written_estimator(write: Write, estimator: str, reduction: str) -> None:
    """X-4: score - coef * KL of both turns of an episode, whose numbers are the estimator's; a mean is over all tokens."""
    kl = f"{{coef: 2, estimator: {estimator}, reduction: {reduction}}}"
    config = write(f"algorithm: {{name: reinforce, baseline_decay: null, kl: {kl}}}")
    played = [episode([turn(2, (1,), reward=5.0, kl=0.8), turn(1, (2,), reward=1.0, kl=-0.5)])]
    of_tokens = [ESTIMATES[estimator](k) for k in (0.8, 0.8, -0.5)]
    shaped = 6 - 2 * (sum(of_tokens) if reduction == "sum" else sum(of_tokens) / 3)
    algorithm = build_algorithm(config.algorithm)
    assert algorithm.shaped_rewards(played, [score_of(t) for t in played]) == pytest.approx([shaped], rel=1e-5)
    for sequence in prepared(algorithm, played).sequences:
        np.testing.assert_allclose(sequence.advantages, shaped, rtol=1e-5)


CONTROLLERS = {  # the pair has 0.1 nats the mean sequence, 0.05 the mean token
    "{kind: fixed}": 0.5,
    "{kind: adaptive, target: 0.05, horizon: 10}": 0.5 * (1 + 0.2 * 2 / 10),  # twice the target: counts as 0.2 over it
    "{kind: adaptive, target: 0.1, unit: token, horizon: 10, max_error: 0.9}": 0.5 * (1 - 0.5 * 2 / 10),
    "{kind: schedule, final: 2.5}": 0.5 + (2.5 - 0.5) / 3,  # the second of four updates
}


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("name", ["reinforce", "rloo", "rejection_sampling", "ppo"])
def test_rewards_are_charged_what_the_controller_says_now(write: Write, name: str, controller: str) -> None:
    """LMHP-20: after an update the coefficient is the one that the written controller moved to, not the config's."""
    extra = {
        "reinforce": "baseline_decay: null", "rloo": "epochs: 1", "rejection_sampling": "keep: 2",
        "ppo": "whiten_advantages: none, gae: {token_lambda: 0, turn_lambda: 0}",
    }[name]  # fmt: skip
    kl = f"{{coef: 0.5, controller: {controller}}}"
    config = write(f"iterations: 4\nalgorithm: {{name: {name}, kl: {kl}, {extra}}}")
    algorithm: Any = build_algorithm(config.algorithm, config.iterations)
    played, values = pair(kl=(0.1, 0.0)), [np.zeros(2, np.float32)] * 2 if name == "ppo" else []
    scores = [score_of(t) for t in played]
    _, objective = algorithm.prepare(played, scores, values, 0)
    algorithm.updated(objective, len(played))
    coef = CONTROLLERS[controller]
    batch, objective = algorithm.prepare(played, scores, values, 1)
    assert objective["objective/kl_coef"] == pytest.approx(coef, rel=1e-5)
    shaped = np.array([5 - coef * 0.2, 2.0])
    expected = {
        "reinforce": [shaped[0]] * 2,
        "rloo": [shaped[0] - shaped[1]] * 2,
        "ppo": [-coef * 0.1, 5 - coef * 0.1],
        "rejection_sampling": [1, 1],
    }[name]
    np.testing.assert_allclose(batch.sequences[0].advantages, expected, rtol=1e-5)
    assert objective.get("objective/kept_score", shaped.mean()) == pytest.approx(shaped.mean(), rel=1e-5)


@pytest.mark.parametrize("estimator", ["full", "forward", "k3"])
def test_the_written_kl_loss_is_in_the_loss_at_its_controllers_coefficient(write: Write, estimator: str) -> None:
    """TW-14, TW-16: kl_coef * KL at each token, at the policy's temperature for both, the coefficient being the
    schedule's of now; over the vocabulary, or from the sampled token with the importance weight."""
    kl_loss = f"{{estimator: {estimator}, coef: 0.5, controller: {{kind: schedule, final: 2.5}}}}"
    text = "iterations: 4\nalgorithm: {name: reinforce, baseline_decay: null, kl: {coef: 0}, kl_loss: %s}"
    config = write(text % kl_loss)
    algorithm = build_algorithm(config.algorithm, config.iterations)
    assert (algorithm.kl_loss_coef, build_algorithm(write(text % "null").algorithm).kl_loss_coef) == (0.5, 0.0)
    algorithm.updated({"objective/kl": 0.0, "objective/kl_per_token": 0.0}, 2)
    assert algorithm.kl_loss_coef == pytest.approx(0.5 + 2 / 3)
    with_kl, without = (losses(write(text % one), pair(), temperature=0.8)[0] for one in (kl_loss, "null"))
    ours, theirs = log_softmax(TABLE / 0.8), log_softmax(REFERENCE / 0.8)
    sums = (
        (np.exp(ours) * (ours - theirs)).sum(-1) if estimator == "full" else (np.exp(theirs) * (theirs - ours)).sum(-1)
    )
    of_tokens = sums[[2, 3, 2, 5]]
    if estimator == "k3":
        own = np.array([ours[2, 3], ours[3, 4], ours[2, 5], ours[5, 6]])
        k = own - np.array([-2.7, -1.7, -2.4, -1.4])  # what the pair's reference said
        of_tokens = np.exp(own - np.array([-2.5, -1.5] * 2)) * (np.exp(-k) - 1 + k)
    assert with_kl - without == pytest.approx(0.5 * of_tokens.sum() / 2, rel=1e-4)


@pytest.mark.parametrize("estimator", ["full", "forward"])
def test_the_kl_loss_of_a_constrained_turn_is_over_what_was_allowed(write: Write, estimator: str) -> None:
    """TW-15: over the vocabulary at the first token, over the three tokens that were allowed at the second."""
    text = "algorithm: {name: reinforce, baseline_decay: null, kl: {coef: 0}, kl_loss: %s}"
    mixed = [episode([turn(2, (1, 2), reward=1.0, sizes=(0, 3), seed=1, ids=np.array([4, 0]))])]
    kl_loss = f"{{estimator: {estimator}, coef: 0.5}}"
    with_kl, without = (losses(write(text % one), mixed, temperature=0.8)[0] for one in (kl_loss, "null"))
    total = 0.0
    for row, size in ((2, 10), (4, 3)):
        ours, theirs = log_softmax(TABLE[row, :size] / 0.8), log_softmax(REFERENCE[row, :size] / 0.8)
        over = (np.exp(ours) if estimator == "full" else -np.exp(theirs)) * (ours - theirs)
        total += over.sum()
    assert with_kl - without == pytest.approx(0.5 * total, rel=1e-4)


def test_each_turn_is_scored_after_the_prompt_that_it_had(write: Write) -> None:
    """A transcript that grows is one sequence; a prompt that is as long and says something else is not."""
    text = "algorithm: {name: reinforce, baseline_decay: null, importance_cap: null, kl: {coef: 0}}"
    logs = log_softmax(TABLE)
    for prompt, before in (((1, 2, 3, 4, 5), 5), ((5, 6, 7, 8, 9), 9)):
        played = [episode([turn(2, (1, 2), ids=np.array([3, 4])), turn(1, prompt, reward=2.0, ids=np.array([6]))])]
        expected = -2 * (logs[2, 3] + logs[3, 4] + logs[before, 6])
        assert losses(write(text), played)[0] == pytest.approx(expected, rel=1e-5)


def test_later_turns_count_less_by_the_written_discount(write: Write) -> None:
    """The first turn's reward counts whole, the next ones 0.5 and 0.25 of theirs, in every episode's shaped reward."""
    config = write("algorithm: {name: reinforce, baseline_decay: null, turn_discount: 0.5, kl: {coef: 0.1}}")
    played = [episode([turn(1, (1,), reward=8.0, kl=1.0), turn(1, (2,), reward=4.0), turn(1, (3,), reward=2.0)])]
    batch, objective = build_algorithm(config.algorithm).prepare(played, [score_of(t) for t in played], [], 0)
    for sequence in batch.sequences:
        np.testing.assert_allclose(sequence.advantages, [8 + 2 + 0.5 - 0.1], rtol=1e-6)
    assert objective["objective/score"] == 8 + 4 + 2  # what was won, for the report
    assert objective["objective/score_total"] == pytest.approx(8 + 2 + 0.5 - 0.1)


def test_prompts_count_in_loss_and_kl_and_those_of_examples_do_not(write: Write) -> None:
    """SPEC Q-5, TW-8: with include_prompt the tokens after the prompt's first bear the loss; an example's bear none,
    neither its prompt nor its command."""
    config = write(
        "algorithm: {name: reinforce, baseline_decay: null, include_prompt: true, kl: {coef: 0.5}, "
        "loss_reduction: sequence_mean, importance_cap: null}"
    )
    own = turn(2, (1, 2, 3), reward=2.0, kl=0.1, ids=np.array([4, 5]))
    minus = np.full(2, -1, np.float32)
    own = replace(own, prompt_logprobs=minus, prompt_reference_logprobs=minus - np.float32(0.3))
    played = [episode([own, turn(2, (6, 7), reward=1.0, example=True, ids=np.array([8, 9]))])]
    logs = log_softmax(TABLE)
    of_tokens = np.array([logs[1, 2], logs[2, 3], logs[3, 4], logs[4, 5]])
    shaped = 3 - 0.5 * (0.3 + 0.3 + 0.1 + 0.1)
    assert losses(config, played)[0] == pytest.approx(-shaped * of_tokens.mean(), rel=1e-5)


@pytest.mark.parametrize(("spread", "by_std"), [(2e-4, True), (6.0, True), (6.0, False)])
def test_grpo_divides_by_deviation_and_epsilon(write: Write, spread: float, by_std: bool) -> None:
    """Rewards r and r + spread: -+spread / 2 over spread / sqrt(2) + 1e-4, which holds a group back whose rewards hardly
    differ; or not divided at all."""
    config = write(f"algorithm: {{name: grpo, kl: {{coef: 0}}, normalize_by_std: {str(by_std).lower()}}}")
    batch = prepared(build_algorithm(config.algorithm), pair(rewards=(0.0, spread)))
    high = spread / 2 / (spread / 2**0.5 + 1e-4 if by_std else 1)
    np.testing.assert_allclose(batch.sequences[0].advantages, -high, rtol=1e-5)
    np.testing.assert_allclose(batch.sequences[1].advantages, high, rtol=1e-5)


@pytest.mark.parametrize(("turns", "kept"), [(1, 1), (2, 1), (3, 1), (5, 2), (6, 3)])
def test_rejection_sampling_fits_the_better_half_rounded_down(write: Write, turns: int, kept: int) -> None:
    """TW-20: with neither `keep` nor `keep_fraction`, int(n / 2) turns and at least one; the loss is their mean -log pi."""
    config = write("algorithm: {name: rejection_sampling, kl: {coef: 0}}")
    played = [episode([turn(1, (1, 2), reward=float(i), ids=np.array([i + 3]))], index=i) for i in range(turns)]
    logs = log_softmax(TABLE)[2, [i + 3 for i in range(turns)]]
    assert losses(config, played)[0] == pytest.approx(-logs[turns - kept :].mean(), rel=1e-5)


# Rollout workers.


class Played:
    """The batch that a written config's rollout worker plays, its policy's weights other than its reference's."""

    def __init__(self, config: RunConfig, model: Path, change: float):
        start = StartingPoint(ModelConfig(path=str(model)), Prompts((), 0, 0, "the environment"))
        worker = RolloutWorker(worker_settings(config, start, environment_settings(config)))
        with torch.no_grad():
            for number, parameter in enumerate(worker.policy.parameters()):
                parameter.add_(change * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        rollout = config.rollout
        [specs] = deal_specs(config.seed, 0, rollout.groups_per_iteration, rollout.group_size, 99)
        self.trajectories = worker.play(specs, None, 0).trajectories
        self.policy, self.reference = worker.policy.double(), worker.reference.double()

    def turns(self) -> Iterator[Turn]:
        return (turn for trajectory in self.trajectories for turn in trajectory.turns)

    def logprobs(self, turn: Turn, temperature: float) -> list[np.ndarray]:
        """log pi and log ref of each response token over all that was allowed, brute force: [T] of [choices]."""
        ids = torch.from_numpy(np.concatenate([turn.prompt_ids, turn.response_ids]))[None]
        rows = []
        for model in (self.policy, self.reference):
            with torch.no_grad():
                logits = model(ids).logits[0, len(turn.prompt_ids) - 1 : -1].numpy() / temperature
            of_model = []
            for t, row in enumerate(logits):
                allowed = (
                    turn.allowed.ids[turn.allowed.offsets[t] : turn.allowed.offsets[t + 1]] if turn.allowed else []
                )
                of_model.append(log_softmax(row[allowed] if len(allowed) else row))
            rows.append(of_model)
        return [np.stack(pair) for pair in zip(*rows)]


WORKER = """
environment: {name: "tests.corridor:Corridor", max_turns: 2}
agent: {actions: %s}
rollout: {temperature: 0.5, groups_per_iteration: 2, group_size: 2, max_new_tokens: 16}
learner: {ranks: 1}
algorithm: {name: reinforce, baseline_decay: null, kl: {coef: 0.5, estimator: %s}}
reward: [game_score]
"""


@pytest.mark.parametrize("estimator", ["k1", "full", "forward"])
@pytest.mark.parametrize("actions", ["constrained", "free"])
def test_the_reference_is_scored_at_the_written_temperature(
    write: Write, tiny_model: Path, actions: str, estimator: str
) -> None:
    """X-6: the reward of episodes that a worker played is charged the divergence of two distributions at temperature
    0.5, over the commands' tokens where they were constrained, and over the vocabulary elsewhere."""
    config = write(WORKER % (actions, estimator))
    played = Played(config, tiny_model, change=0.02)
    scores = [score_of(t) for t in played.trajectories]
    shaped = build_algorithm(config.algorithm).shaped_rewards(played.trajectories, scores)
    for trajectory, score, ours in zip(played.trajectories, scores, shaped):
        charged = 0.0
        for one in trajectory.turns:
            for t, (policy, reference) in enumerate(played.logprobs(one, 0.5)):
                among = (
                    one.allowed.ids[one.allowed.offsets[t] : one.allowed.offsets[t + 1]] if one.allowed else range(320)
                )
                at = list(among).index(one.response_ids[t])
                full = (np.exp(policy) * (policy - reference)).sum()
                forward = (np.exp(reference) * (reference - policy)).sum()
                charged += {"k1": policy[at] - reference[at], "full": full, "forward": forward}[estimator]
        assert abs(charged) > 1e-3
        assert ours == pytest.approx(score.total.sum() - 0.5 * charged, abs=1e-4)
    assert {one.allowed is None for one in played.turns()} == {actions == "free"}


# The learner.


def learner_of(config: RunConfig, model: Path, algorithm: Any) -> Learner:
    """The written config's learner in this process."""
    settings = learner_settings(config, ModelConfig(path=str(model)), algorithm.objective, "cpu")
    return Learner(
        settings.model.path, settings.objective, settings.optimizer, settings.learner, settings.temperature,
        settings.iterations, "cpu", value=settings.value,
    )  # fmt: skip


def updated(
    config: RunConfig, model: Path, trajectories: Sequence[Trajectory], values: Sequence[np.ndarray]
) -> Mapping[str, float]:
    """What the written config's learner reports of its update on these episodes, `values` being what it said of them."""
    algorithm = build_algorithm(config.algorithm, config.iterations)
    learner = learner_of(config, model, algorithm)
    said = learner.values(algorithm.value_queries(trajectories))
    assert [len(one) for one in said] == [len(one) for one in values]
    assert not np.concatenate(said).any()  # a new value network says 0
    metrics = learner.update(prepared(algorithm, trajectories, values), 0).metrics
    learner.close()
    return metrics


def sampled_turn(prompt: Sequence[int], ids: Sequence[int], behaviour: Sequence[float], reward: float) -> Turn:
    """A turn of tokens that were sampled with these log-probabilities, half a nat above the reference."""
    logprobs = np.array(behaviour, np.float32)
    one = turn(len(ids), prompt, reward=reward, ids=np.array(ids))
    return replace(one, logprobs=logprobs, reference_logprobs=logprobs - np.float32(0.5))


@pytest.mark.usefixtures("own_environment")
def test_an_update_minimises_the_written_objective(write: Write, tiny_model: Path) -> None:
    """One step of PPO against float64, token by token: policy loss, entropy bonus, KL loss and value loss at the written
    coefficients, clips and temperature, the norm of the policy's gradient, and what the values explain. One episode is
    a transcript that grows: the observation between its turns is in no loss."""
    config = write("""
rollout: {temperature: 0.7}
optimizer: {name: sgd, lr: 0.5, max_grad_norm: null, warmup_iterations: 4}
learner: {ranks: 1, zero_stage: 0, tokens_per_micro_batch: 6, max_logprob_gap: 1000}
algorithm:
  name: ppo
  kl: {coef: 0.25}
  kl_loss: {estimator: forward_sampled, coef: 0.35}
  epochs: 1
  clip_range: 0.1
  value_clip_range: 0.2
  value_coef: 0.6
  entropy_coef: 0.45
  whiten_advantages: none
  gae: {token_discount: 1, token_lambda: 1, turn_discount: 1, turn_lambda: 1}
""")
    played = [
        episode([sampled_turn((40, 50), (65, 66), (-5.9, -5.6), 2.0)]),
        episode([
            sampled_turn((41, 50), (67,), (-5.75,), -1.0),
            sampled_turn((41, 50, 67, 51, 52), (70, 71), (-6.2, -5.77), 0.5),
        ], index=1),
        episode([sampled_turn((43,), (72, 73), (-5.4, -5.8), 1.5)], index=2),
    ]  # fmt: skip
    values = [np.array(v, np.float32) for v in ([1.0, 0.5], [-2.0, 9.0, 9.0, 0.1, 0.4], [0.3, -0.7])]
    old = np.array([1.0, 0.5, -2.0, 0.1, 0.4, 0.3, -0.7])
    to_go = np.array([2.0, 2.0, -0.5, 0.5, 0.5, 1.5, 1.5]) - 0.125 * np.array([2, 1, 3, 2, 1, 2, 1])
    advantages = iter(to_go - old)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    loss = torch.zeros((), dtype=torch.float64)
    for of_turn in (one for trajectory in played for one in trajectory.turns):
        ids = torch.from_numpy(np.concatenate([of_turn.prompt_ids, of_turn.response_ids]))
        rows = (model(ids[None]).logits[0, len(of_turn.prompt_ids) - 1 : -1] / 0.7).log_softmax(-1)
        for t, row in enumerate(rows):
            own, sampled = row[of_turn.response_ids[t]], float(of_turn.logprobs[t])
            advantage, ratio = next(advantages), (own - sampled).exp()
            surrogate = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.9, 1.1))
            entropy = -(row.exp() * row).sum()
            reference = float(of_turn.reference_logprobs[t])
            kl = math.exp(reference - sampled) * (reference - own)
            loss = loss + (surrogate - 0.45 * entropy + 0.35 * kl) / 7
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
    errors = np.maximum(np.square(to_go), np.square(np.clip(0, old - 0.2, old + 0.2) - to_go))
    metrics = updated(config, tiny_model, played, values)
    assert metrics["learner/loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["val/loss"] == pytest.approx(0.6 * 0.5 * errors.mean(), rel=1e-5)
    assert metrics["learner/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["val/var_explained"] == pytest.approx(1 - (to_go - old).var() / to_go.var(), rel=1e-5)
    assert metrics["learner/lr"] == pytest.approx(0.5 / 4)


@pytest.mark.usefixtures("own_environment")
def test_every_minibatch_is_held_to_the_written_gap_before_the_first_step(write: Write, tiny_model: Path) -> None:
    """X-5: the four answers were sampled by the policy itself, but for 0.02 nats of a token that only the second
    minibatch has; learner.max_logprob_gap says whether that will do. `tests/test_ppo_learner.py` has it on two ranks."""
    text = """
rollout: {temperature: 0.7}
learner: {ranks: 1, zero_stage: 0, max_logprob_gap: %s}
algorithm: {name: rloo, kl: {coef: 0}, minibatches: 2, clip_range: 0.2}
"""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    played = []
    for index in range(4):
        ids = [40, 50, 60 + index, 70]
        logprobs = log_softmax(model(torch.tensor([ids])).logits[0, 1:3].detach().numpy() / 0.7)
        behaviour = [logprobs[0, ids[2]], logprobs[1, ids[3]] + 0.02 * (index == 3)]
        played.append(episode([sampled_turn(ids[:2], ids[2:], behaviour, float(index))], index=index))
    for limit in (0.001, 0.1):
        config = write(text % limit)
        algorithm = build_algorithm(config.algorithm, config.iterations)
        scores = [score_of(t) for t in played]
        batches = (algorithm.prepare(played, scores, [], seed)[0] for seed in count())
        batch = next(batch for batch in batches if 3 not in batch.minibatches[0].indices)
        learner = learner_of(config, tiny_model, algorithm)
        if limit == 0.1:
            assert learner.update(batch, 0).metrics["learner/logprob_gap_max"] == pytest.approx(0.02, abs=1e-4)
        else:
            with pytest.raises(LearnerError, match=r"disagree.* by 0\.02 nats on the worst.*No weight was changed"):
                learner.update(batch, 0)
        learner.close()


# Reward models.


def label_losses(written: Mapping[str, Any], examples: Sequence[Example], rewards: Sequence[float], nu: float) -> Any:
    """The loss of each label by the written settings, where the items of a table have these rewards."""
    config = RewardModelConfig.model_validate(written)
    rows = [row for example in examples for row in example.rows]
    table = ExampleTable(tuple(np.array([1, 2]) for _ in rewards), tuple(examples))
    batch = collate_labels(table, list(range(len(examples))), [1.0] * len(examples))
    by_sequence = torch.tensor([rewards[row] for row in rows], dtype=torch.float64)
    return example_losses(by_sequence, batch, config, torch.tensor([math.log(nu)], dtype=torch.float64)).tolist()


LABELS = [Example((0, 1), best=TIE), Example((1, 2, 3), best=TIE), Example((0, 1), best=0), Example((1, 2, 3), best=2)]
REWARDS = [1.0, 3.0, 2.0, -0.5]


def test_a_tie_of_davidson_stands_between_its_items() -> None:
    """P(tie) ~ nu * exp(mean reward), P(i) ~ exp(reward of i): for two items nu * sqrt(p q), Davidson's own."""
    nu, (a, b, c, d) = 0.7, np.exp(REWARDS)
    two, three = nu * math.sqrt(a * b), nu * (b * c * d) ** (1 / 3)
    expected = [two / (a + b + two), three / (b + c + d + three), a / (a + b + two), d / (b + c + d + three)]
    found = label_losses({"ties": "davidson"}, LABELS, REWARDS, nu)
    assert found == pytest.approx([-math.log(p) for p in expected], rel=1e-6)


def test_a_half_won_tie_is_shared_by_the_items_that_are_there() -> None:
    """LMHP-4: among two items each gets half a win, also where another label of the batch has three."""
    a, b, c, d = REWARDS
    pair, three = math.log(math.exp(a) + math.exp(b)), math.log(math.exp(b) + math.exp(c) + math.exp(d))
    expected = [pair - (a + b) / 2, three - (b + c + d) / 3, pair - a, three - d]
    assert label_losses({"ties": "half"}, LABELS, REWARDS, 1.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "mean", "std"),
    [("comparison", 0, 1), ("binary", 0, 1), ("rating", 2, 5), ("latent", 2, 5), ("difference", 0, 5 / 2)],
)
def test_a_reward_model_starts_at_its_labels_scale(objective: str, mean: float, std: float) -> None:
    """LMHP-12: numbers on their own scale; a difference is of two scores, so it counts half."""
    values = [-3.0, 7.0]
    table = ExampleTable((np.array([1]),), tuple(Example((0, 0), value=value) for value in values))
    scale = label_scale(table, RewardModelConfig.model_validate({"objective": objective}))
    assert (scale.mean, scale.std) == (mean, std)
