"""What the KL coefficient does, on the shipped model and the real path: short runs at none, some and a huge one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayrlhf.config_loading import load_config
from rayrlhf.metrics import read_metrics, read_samples
from rayrlhf.text_statistics import distinct_n
from rayrlhf.trainer import train

SMALL = [
    "iterations=30", "baseline_episodes=100", "rollout.cpus_per_worker=0.1",
    "learner.cpus_per_rank=0.1", "optimizer.lr=3e-4",
]  # fmt: skip


def last(folder: Path) -> tuple[float, float, float]:
    """Mean reward and KL of the last four iterations, distinct-2 of the last 50 texts."""
    rows = read_metrics(folder)[-4:]
    texts = [sample.text for sample in read_samples(folder)[-50:]]
    return (
        float(np.mean([row["objective/score"] for row in rows])),
        float(np.mean([row["objective/kl"] for row in rows])),
        distinct_n(texts, 2),
    )


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_reward_and_kl_fall_as_the_coefficient_rises(tmp_path: Path) -> None:
    """ALLIT-11 (i, iii), ALLIT-6: 0 goes furthest in reward and KL, 0.4 less far, 1000 stays at the base model."""
    outcome = {}
    for coefficient in (0, 0.4, 1000):
        name = f"coef-{coefficient}"
        train(
            load_config(
                "alliteration", [*SMALL, f"name={name}", f"storage_path={tmp_path}", f"algorithm.kl.coef={coefficient}"]
            )
        )
        outcome[coefficient] = last(tmp_path / name)
    base = np.array([sample.score for sample in read_samples(tmp_path / "coef-0") if sample.iteration == -1])
    print({coefficient: [round(value, 3) for value in values] for coefficient, values in outcome.items()}, base.mean())
    reward, kl, diversity = ({coefficient: values[i] for coefficient, values in outcome.items()} for i in range(3))
    assert reward[0] > reward[0.4] > base.mean()
    assert kl[0] > kl[0.4] > kl[1000]
    assert diversity[0] < diversity[1000]
    assert abs(kl[1000]) < kl[0.4] * 0.6
    assert abs(reward[1000] - base.mean()) < 3 * base.std() * np.sqrt(1 / len(base) + 1 / 160)
