"""Environments that end their process, raise or hang at random, at the size of a run's batch: no batch is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrlhf.environments.pool import ProcessEnvironments
from tests.test_environment_pool import counts, settings, walks

pytestmark = pytest.mark.faults

BATCHES = 20
EPISODES = 20


@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("kind", "length"), [("exit", 10), ("raise", 10), ("hang", 3)])
def test_one_step_in_twenty_fails_and_every_batch_is_as_without_faults(kind: str, length: int, tmp_path: Path) -> None:
    """The default number of retries; which tries fail follows from the stream, so that every run of this injects alike."""
    walk = {"folder": str(tmp_path), "length": length}
    with ProcessEnvironments(settings("AtTimes", kind="never", **walk)) as sound:
        expected = walks(sound, range(EPISODES))
    injected = 0
    for batch in range(BATCHES):
        faulty = settings("AtTimes", 2.0, kind=kind, stream=f"{kind}{batch}", **walk)
        with ProcessEnvironments(faulty) as environments:
            assert walks(environments, range(EPISODES)) == expected
            retried = counts(environments)[f"retries_{kind}"]
        assert retried == len(list(tmp_path.glob(f"{kind}{batch}-*.{kind}")))
        injected += int(retried)
    assert injected > BATCHES
