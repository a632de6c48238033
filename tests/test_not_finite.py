"""What is not finite stops an update on every rank before any weight or optimizer state has moved, and never is saved."""

from __future__ import annotations

import pytest

from tests.finite_process import run
from tests.learner_process import STAGES, Recordings, run_ranks
from tests.tiny_models import build_tiny_model

BATCH = ("log-probability nan", "log-probability inf", "reward nan", "reward inf", "loss nan", "loss inf")
CASES = (  # ranks, which learner, fault
    *((world, "alone", fault) for world in (1, 2) for fault in (*BATCH, "policy gradient nan")),
    *((2, "with value", fault) for fault in (*BATCH, "value gradient inf")),
    *((world, "save", "policy gradient inf") for world in (1, 2)),
)


pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    folder = tmp_path_factory.mktemp("finite")
    build_tiny_model(folder / "llama")
    return run_ranks(folder, run)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("world", "learner", "fault"), CASES)
def test_a_fault_moves_nothing_on_any_rank(
    recorded: Recordings, stage: int, world: int, learner: str, fault: str
) -> None:
    """GWERN-12, X-5: NaN or inf in loss, gradient (of one rank and one network alone), reward or log-probability."""
    for rank in recorded[world]:
        message, unchanged = rank[learner, stage][fault]
        assert message.startswith("NotFiniteError: "), message
        assert unchanged
    assert len({rank[learner, stage][fault][0] for rank in recorded[world]}) == 1  # all ranks say the same


@pytest.mark.parametrize("stage", STAGES)
def test_a_network_holds_the_other_back(recorded: Recordings, stage: int) -> None:
    """The value network's gradient alone is infinite: the policy, whose own is sound, has not stepped either (above)."""
    message, _ = recorded[2][0]["with value", stage]["value gradient inf"]
    assert "(algorithm.value.optimizer)" in message
    assert "no weight was changed" in message


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", [1, 2])
def test_weights_that_are_not_finite_are_never_saved(recorded: Recordings, stage: int, world: int) -> None:
    """GWERN-12: a NaN in the share of one rank alone is refused by all, before anything is written."""
    for rank in recorded[world]:
        message, written = rank["save", stage]["save"]
        assert message.startswith("NotFiniteError: nothing is saved")
        assert not written
