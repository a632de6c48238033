"""What a run says of its units and of settings that skew its numbers, before it starts."""

from __future__ import annotations

import pytest

from rayrlhf.announcements import conversions, warnings
from rayrlhf.config_loading import load_config


def test_parity_recipe_prints_its_conversion() -> None:
    """ALLIT-5, ALLIT-6, Q-1: 40 on the mean of 99 predictions is 0.404 a nat of the sequence; the sign is named."""
    [line] = conversions(load_config("alliteration-rloo-parity"), prompt_tokens=4)
    assert "the mean of at most 99 tokens (3 of the prompt among them): 0.404 a nat of the sequence" in line
    assert "40 * (CE_policy - CE_reference) that is added to the reward is the same" in line


def test_nothing_to_convert() -> None:
    assert conversions(load_config("alliteration"), prompt_tokens=4) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], None),
        (["algorithm.kl.controller.kind=adaptive"], "algorithm.kl.controller.horizon 10000 hardly lets"),
        (["algorithm.kl.controller={kind: adaptive, horizon: 500}"], None),
        (["algorithm.kl.estimator=full"], "algorithm.kl.estimator"),
        (["algorithm.kl.estimator=full", "algorithm.kl_loss.coef=0.4"], None),
        (["rollout.top_k=40"], "rollout.top_k / rollout.top_p sample from a truncated distribution"),
    ],
)
def test_warnings(overrides: list[str], words: str | None) -> None:
    """TW-16, GWERN-15 and GWERN-19: a penalty without its gradient, truncation, an immobile controller."""
    found = warnings(load_config("alliteration", overrides))
    assert [words in line for line in found if words] == [True] * (words is not None)
