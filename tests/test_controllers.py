"""KL controllers against their formulas, step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rayrlhf.algorithm_config import RLOOConfig
from rayrlhf.algorithms import build_algorithm
from rayrlhf.controllers import KLController, adaptation, immobility
from rayrlhf.kl_config import (
    AdaptiveControllerConfig,
    KLLossConfig,
    KLPenaltyConfig,
    ScheduleControllerConfig,
)


def controller(coef: float, **settings: Any) -> KLController:
    return KLController(KLPenaltyConfig(coef=coef, controller=AdaptiveControllerConfig(**settings)), 100)


def test_adaptive_follows_its_formula_step_by_step() -> None:
    """LMHP-20: e = clip(KL / target - 1, -0.2, 0.2); coef <- coef * (1 + e * n / horizon)."""
    adaptive = controller(0.5, target=10, horizon=100)
    expected = 0.5
    for kl, error in ((10.0, 0.0), (11.0, 0.1), (30.0, 0.2), (9.5, -0.05), (0.0, -0.2), (-4.0, -0.2)):
        adaptive.update(kl, 999.0, episodes=40)
        expected *= 1 + error * 40 / 100
        assert adaptive.coef == pytest.approx(expected, rel=1e-12)
    assert adaptive.coef == pytest.approx(0.5 * 1.04 * 1.08 * 0.98 * 0.92 * 0.92, rel=1e-12)


def test_adaptive_target_of_a_token() -> None:
    """GWERN-20: 6 nats over 24 tokens are 0.25 nats a token; the sequence's KL is not looked at then."""
    adaptive = controller(1.0, target=0.25, unit="token", horizon=10)
    adaptive.update(kl_per_sequence=1000.0, kl_per_token=0.275, episodes=1)
    assert adaptive.coef == pytest.approx(1 + 0.1 / 10)


def test_speed_of_the_published_settings() -> None:
    """GWERN-19: at 18 episodes the coefficient moves at most 0.036 % a step, at 512 1.02 %."""
    assert adaptation(1e9, 6, 18, 10_000, 0.2) - 1 == pytest.approx(0.00036, rel=1e-9)
    assert adaptation(0, 6, 512, 10_000, 0.2) - 1 == pytest.approx(-0.01024, rel=1e-9)


def test_a_horizon_that_makes_it_immobile_is_warned_of() -> None:
    """GWERN-19: 120 updates of 40 episodes cannot move a horizon of 10,000: 1,250 updates for a factor of e."""
    slow = KLPenaltyConfig(controller=AdaptiveControllerConfig())
    warning = immobility(slow, "algorithm.kl", episodes=40, iterations=120)
    assert warning is not None
    assert "1250 updates of 40 episodes" in warning
    assert "algorithm.kl.controller.horizon" in warning
    enough = 0.2 * 40 * 120 / math.log(2)
    assert f"set it to {enough:.0f} or less" in warning
    fast = KLPenaltyConfig(controller=AdaptiveControllerConfig(horizon=math.floor(enough)))
    assert immobility(fast, "algorithm.kl", 40, 120) is None
    assert immobility(KLPenaltyConfig(), "algorithm.kl", 40, 120) is None


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.4, 0.325, 0.25, 0.175, 0.1, 0.1, 0.1]),
        ("cosine", [0.4, 0.1 + 0.3 * (1 + math.sqrt(0.5)) / 2, 0.25, 0.1 + 0.3 * (1 - math.sqrt(0.5)) / 2, 0.1, 0.1]),
        ("exponential", [0.4, 0.4 * 0.25**0.25, 0.2, 0.4 * 0.25**0.75, 0.1, 0.1]),
    ],
)
def test_schedules(shape: Any, expected: list[float]) -> None:
    """The first update has `coef`, the last of the schedule `final`, and so have all after it."""
    config = KLPenaltyConfig(controller=ScheduleControllerConfig(final=0.1, shape=shape, iterations=5))
    scheduled = KLController(config, iterations=1000)
    seen = []
    for _ in expected:
        seen.append(scheduled.coef)
        scheduled.update(50.0, 1.0, 40)
    assert seen == pytest.approx(expected, rel=1e-12)


def test_a_schedule_without_a_length_spans_the_run() -> None:
    whole = KLController(KLPenaltyConfig(controller=ScheduleControllerConfig(final=0.0)), iterations=3)
    seen = []
    for _ in range(3):
        seen.append(whole.coef)
        whole.update(0, 0, 1)
    assert seen == pytest.approx([0.4, 0.2, 0.0])


def test_state_and_factor_survive_a_checkpoint() -> None:
    """A restored controller goes on as the old one would have, with what a rollback multiplied it by."""
    first, second = (controller(0.5, target=10, horizon=100) for _ in range(2))
    first.update(30.0, 1.0, 40)
    first.multiply(2.0)
    second.load_state_dict(first.state_dict())
    for one in (first, second):
        one.update(5.0, 1.0, 40)
    assert second.coef == first.coef == pytest.approx(0.5 * 1.08 * 2 * 0.92)


def test_the_two_channels_move_on_their_own() -> None:
    """TW-16: a coefficient and a controller each, in the reward and in the loss; both are in the algorithm's state."""
    config = RLOOConfig(
        kl=KLPenaltyConfig(coef=1.0, controller=AdaptiveControllerConfig(target=10, horizon=100)),
        kl_loss=KLLossConfig(coef=2.0, controller=ScheduleControllerConfig(final=0.0)),
    )
    algorithm, restored = build_algorithm(config, iterations=3), build_algorithm(config, iterations=3)
    algorithm.updated({"objective/kl": 30.0, "objective/kl_per_token": 1.0}, episodes=50)
    assert algorithm.kl.coef == pytest.approx(1.1)
    assert algorithm.kl_loss is not None
    assert algorithm.kl_loss.coef == pytest.approx(1.0)
    algorithm.multiply_kl(3.0)
    restored.load_state_dict(algorithm.state_dict())
    assert (restored.kl.coef, restored.kl_loss.coef) == pytest.approx((3.3, 3.0))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coef": 0.0, "controller": {"kind": "adaptive"}}, "coef must be above 0"),
        ({"coef": 0.0, "controller": {"kind": "schedule", "final": 1.0, "shape": "exponential"}}, "must be above 0"),
    ],
)
def test_coefficients_that_cannot_move(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KLPenaltyConfig.model_validate(settings)
