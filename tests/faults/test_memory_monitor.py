"""Memory that runs out, as Ray's own monitor sees it: each kind of worker that it ends is named, with what to lower."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The monitor ends workers where more than 1 % of the machine's memory is in use, which it always is.
SETTINGS = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100", "RAY_ADDRESS": ""}
PROGRAM = """
import sys
from pathlib import Path

from rayrlhf.cluster import ray_cluster
from rayrlhf.config import RewardPart
from rayrlhf.errors import UserError
from rayrlhf.learner_group import LearnerGroup
from rayrlhf.losses import Objective, PolicyGradientLoss
from rayrlhf.reward_actors import ActorReward
from rayrlhf.run_parts import learner_settings
from tests.faults.job import small_config
from tests.test_worker import make_pool

model = Path(sys.argv[1])
config = small_config(model, model, "memory")


def learner():
    group = LearnerGroup(learner_settings(config, config.model, Objective(PolicyGradientLoss(None)), "cpu"))
    group.start()


with ray_cluster(8):
    for start in (
        learner,
        lambda: make_pool(model).ready(),
        lambda: ActorReward(RewardPart(name="alliteration", actors=1), "alliteration", 60.0).ready(),
    ):
        try:
            start()
        except UserError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
"""


@pytest.mark.faults
def test_a_worker_that_rays_monitor_ends_is_named_with_what_to_lower(tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_model)],
        env={**os.environ, **SETTINGS}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    learner, rollout, reward = done.stdout.splitlines()
    for said, kind, setting in (
        (learner, "LearnerError: the learner did not start", "learner.tokens_per_micro_batch"),
        (rollout, "RolloutError: a rollout worker did not start", "rollout.workers"),
        (reward, "RewardError: reward `alliteration`: an actor did not start", "`actors`"),
    ):
        assert said.startswith(kind)
        assert "Ray's memory monitor ended its process" in said
        assert "lower" in said
        assert setting in said
