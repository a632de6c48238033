"""A simulated cluster of two nodes: workers and ranks on both, every node seeing the run's folder."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from rayrlhf import cluster
from rayrlhf.cluster import _sees, actor_environment, check_shared_storage
from rayrlhf.errors import RunFolderError
from rayrlhf.run_folder import write_probe

PROGRAM = """
import os
import sys
from pathlib import Path

from ray.cluster_utils import Cluster

from rayrlhf.trainer import train
from tests.test_training import small_config

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
cluster.add_node(num_cpus=3)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
config = small_config(
    Path(sys.argv[1]), Path(sys.argv[2]), "two-nodes", iterations=2, baseline_episodes=0,
    rollout={"workers": 2, "cpus_per_worker": 1}, learner={"ranks": 2, "cpus_per_rank": 2},
)
train(config)
cluster.shutdown()
"""


@pytest.fixture(scope="module", autouse=True)
def blind(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> ray.ObjectRef:
    """The answer of a node that does not see a probe, which it looks for 10 s: asked for while the other test runs."""
    folder = tmp_path_factory.mktemp("storage")
    return _sees.remote(folder / "elsewhere", write_probe(folder))


def test_two_nodes_share_the_work(tiny_model: Path, tmp_path: Path) -> None:
    """X-8: one code path from a laptop to a cluster, which RAY_ADDRESS names; the ranks meet at an address of rank 0's
    node."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_model), str(tmp_path)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 rollout workers on 2 of 2 nodes, 2 learner ranks on 2" in done.stderr


def test_a_folder_that_a_node_does_not_see_is_named(tmp_path: Path, blind: ray.ObjectRef) -> None:
    """The check itself, as each node runs it."""
    assert ray.get(_sees.remote(tmp_path, write_probe(tmp_path)))
    assert not ray.get(blind, timeout=60)


@pytest.mark.parametrize("fault", ["late", "gone"])
def test_a_node_that_does_not_answer_is_a_fault_of_the_folder(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [node] = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: [node, node if fault == "late" else {**node, "NodeID": "e" * 56}])
    monkeypatch.setattr(cluster, "PROBE_TIMEOUT_S", 0.0 if fault == "late" else 60.0)
    with pytest.raises(RunFolderError, match=r"whether every node sees .* cannot be found out") as caught:
        check_shared_storage(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_actors_run_the_interpreter_that_started_the_run() -> None:
    """LMHP-29: not whatever `python` is on the PATH, and no count of processes but the config's."""
    assert shlex.split(actor_environment(2.0)["py_executable"]) == [sys.executable]
    assert actor_environment(2.0)["env_vars"]["OMP_NUM_THREADS"] == "2"
