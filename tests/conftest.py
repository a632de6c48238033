"""Fixtures that several test files share: tiny random models, and one Ray cluster a session."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny_models import build_tiny_model

_STATE = tempfile.TemporaryDirectory(prefix="rayrlhf-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name  # what a person's own configs said is noted there, not in who runs the tests

torch.set_num_threads(1)
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background job ignores it, and so would all we start
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as under nohup

LONGEST_FILES = (
    "test_readme", "test_training", "test_supervised", "test_game_training", "test_worker", "test_sweep", "test_loop",
    "test_reward_model_training", "test_gwern_labels", "test_rating_browser", "test_learner", "test_ppo_learner",
    "test_response_rules", "test_environment_pool", "test_start_up", "test_cluster", "test_coin_learning", "test_imitation",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: they are dealt out whole, and one that comes last would run alone."""
    rank = {name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))  # stable: all else stays in its order


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, None, None]:
    """Says at the very end what was not run, by its cause, and what would run it."""
    yield
    reports = terminalreporter.stats.get("skipped", [])
    causes = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    left_out = [name for name in ("slow", "faults") if f"not {name}" in (config.option.markexpr or "")]
    if causes or left_out:
        terminalreporter.section("not run")
    for cause, count in sorted(causes.items()):
        terminalreporter.line(f"{count} skipped: {cause}")
    for name in left_out:
        terminalreporter.line(f"those marked `{name}`: `make test-{name}` runs them")


@pytest.fixture(scope="session", autouse=True)
def _games(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Text games are made once for all tests, in all processes that share the tests, whose children inherit the name."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYRLHF_CACHE", str(shared / "games"))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 30,000 parameters with a pad token of its own."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="module")
def own_environment() -> Iterator[None]:
    """Lightning and DeepSpeed write ranks and ports into the environment; other tests must not inherit them."""
    kept = dict(os.environ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster with 16 logical CPUs for all tests of the session."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, object_store_memory=500_000_000
        )
    yield
    ray.shutdown()
