"""The learner's ranks as Ray actors in one placement group, updated, saved and rebuilt as one.

Each rank is one Fabric process, "one node with one device". When one dies the others would wait for it, so the whole
gang goes down at once and is built anew.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayrlhf.algorithm_config import OptimizerConfig, ValueConfig
from rayrlhf.cluster import START_TIMEOUT_S, actor_environment, get, kill
from rayrlhf.config import LearnerConfig, ModelConfig
from rayrlhf.errors import LearnerError
from rayrlhf.files import saving
from rayrlhf.gang import Gang
from rayrlhf.losses import Objective
from rayrlhf.policy import resolve_model
from rayrlhf.types import FloatArray, TrainingBatch, UpdateReport, ValueQuery, Weights
from rayrlhf.worker import PublishedWeights
from rayrlhf.worker_death import LEARNER_MEMORY, Died


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """What every rank of a run's learner is built from."""

    model: ModelConfig
    objective: Objective
    optimizer: OptimizerConfig
    learner: LearnerConfig
    temperature: float
    iterations: int  # that the learning rates are spread over
    device: str  # cpu or cuda
    value: ValueConfig | None = None  # the value network that the objective fits


@ray.remote
class LearnerRank:
    """The Ray actor around one rank's `Learner`."""

    def address(self) -> tuple[str, int]:
        """This node's address and a free port on it, for the ranks to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def build(self, settings: LearnerSettings, rank: int, world: int, address: tuple[str, int]) -> str:
        """Meets the other ranks and builds the learner; returns the node's id."""
        os.environ |= {
            "MASTER_ADDR": address[0],
            "MASTER_PORT": str(address[1]),
            "NODE_RANK": str(rank),
            "LOCAL_RANK": "0",
        }
        from rayrlhf.learner import Learner  # imports DeepSpeed, which reads the environment

        torch.set_num_threads(max(1, int(settings.learner.cpus_per_rank)))
        self.learner = Learner(
            model_path=resolve_model(settings.model.path),
            objective=settings.objective,
            optimizer=settings.optimizer,
            config=settings.learner,
            temperature=settings.temperature,
            iterations=settings.iterations,
            device=settings.device,  # type: ignore[arg-type]
            rank=rank,
            world=world,
            trust_remote_code=settings.model.trust_remote_code,
            value=settings.value,
        )
        return ray.get_runtime_context().get_node_id()

    def values(self, queries: Sequence[ValueQuery]) -> list[FloatArray] | None:
        """The values, at rank 0 alone: all ranks have them, and one copy of them need travel."""
        values = self.learner.values(queries)
        return values if self.learner.rank == 0 else None

    def update(self, batch: TrainingBatch, iteration: int) -> UpdateReport:
        return self.learner.update(batch, iteration)

    def weights(self) -> tuple[Weights | None, int]:
        """The weights, at rank 0 alone, and their version: two objects, so that the driver need not fetch the first."""
        return self.learner.weights(), self.learner.version

    def save(self, model_folder: Path, state_folder: Path, value_folder: Path | None) -> None:
        """Raises StorageError where the disk gives out."""
        with saving(model_folder.parent):
            self.learner.save_model(model_folder)
            self.learner.save_state(state_folder)
            if value_folder is not None:
                self.learner.save_value(value_folder)

    def load(self, state_folder: Path) -> int:
        """Returns the version of the weights that were loaded."""
        self.learner.load_state(state_folder)
        return self.learner.version


class LearnerGroup:
    """All ranks of the learner. Any method may raise `Died`; then `rebuild` and load a checkpoint."""

    def __init__(self, settings: LearnerSettings, gang: Gang | None = None):
        """gang: whose bundles the ranks take; None: a placement group of their own."""
        self.settings = settings
        self.config = settings.learner
        self.version = 0  # optimizer updates behind the weights
        self.rebuilds = 0
        self._settings = ray.put(settings)
        self._gang = gang
        self._group: PlacementGroup | None = None
        if gang is None:
            bundle = {"CPU": self.config.cpus_per_rank}
            if self.config.gpus_per_rank:
                bundle["GPU"] = self.config.gpus_per_rank
            self._group = placement_group([bundle] * self.config.ranks, strategy="PACK")
        self.ranks: list[Any] = []

    def start(self) -> list[str]:
        """Starts the ranks' processes and lets them meet; returns the ids of their nodes."""
        if self._group is not None and not self._group.wait(START_TIMEOUT_S):
            raise LearnerError(
                f"no room for {self.config.ranks} learner ranks of {self.config.cpus_per_rank:g} CPU and "
                f"{self.config.gpus_per_rank:g} GPU each within {START_TIMEOUT_S:g} s"
            )
        self.ranks = [
            LearnerRank.options(  # type: ignore[attr-defined]
                num_cpus=self.config.cpus_per_rank,
                num_gpus=self.config.gpus_per_rank,
                scheduling_strategy=self._place(rank),
                runtime_env=actor_environment(self.config.cpus_per_rank, distributed=True),
            ).remote()
            for rank in range(self.config.ranks)
        ]
        self.version = 0
        try:
            address = get([self.ranks[0].address.remote()], START_TIMEOUT_S)[0]
            return self._all("build", self._settings, timeout_s=START_TIMEOUT_S, each=address)
        except Died as error:
            raise LearnerError(f"the learner did not start: {error}{error.advice(LEARNER_MEMORY)}") from error

    def rebuild(self, reason: Died) -> None:
        """Ends all ranks and starts them anew from the base model. Raises LearnerError after `max_rebuilds`."""
        kill(self.ranks)
        self.rebuilds += 1
        if self.rebuilds > self.config.max_rebuilds:
            raise LearnerError(
                f"the learner died {self.rebuilds} times, last: {reason}{reason.advice(LEARNER_MEMORY)}"
            ) from reason
        self.start()

    def values(self, queries: Sequence[ValueQuery]) -> list[FloatArray]:
        """What the value network says of `queries`, [S] each, shared out over the ranks."""
        return self._all("values", ray.put(list(queries)))[0] if queries else []

    def update(self, batch: TrainingBatch, iteration: int) -> UpdateReport:
        """The optimizer steps over a batch, shared out over the ranks."""
        report: UpdateReport = self._all("update", ray.put(batch), iteration)[0]
        self.version = report.version
        return report

    def publish(self) -> PublishedWeights:
        """Gathers the policy's weights into the object store; they stay there as long as what this returns."""
        refs = [rank.weights.options(num_returns=2).remote() for rank in self.ranks]
        versions = get([version for _, version in refs], self.config.timeout_s)
        return PublishedWeights((refs[0][0],), versions[0])

    def save(self, model_folder: Path, state_folder: Path, value_folder: Path | None) -> None:
        """Writes a `from_pretrained` folder, what a resumed run needs beside it, and the value network, where there is
        one, for `value.load_value`; None: not wanted."""
        self._all("save", model_folder, state_folder, value_folder if self.settings.value is not None else None)

    def load(self, state_folder: Path) -> None:
        """Takes up weights and optimizer where a checkpoint left them."""
        self.version = self._all("load", state_folder)[0]

    def close(self) -> None:
        kill(self.ranks)
        if self._group is not None:
            remove_placement_group(self._group)

    def _place(self, rank: int) -> PlacementGroupSchedulingStrategy:
        if self._gang is not None:
            return self._gang.rank(rank)
        assert self._group is not None
        return PlacementGroupSchedulingStrategy(self._group, rank)

    def _all(self, method: str, *arguments: Any, timeout_s: float | None = None, each: Any = None) -> list[Any]:
        """Calls a method on all ranks at once and waits for all."""
        calls = []
        for number, rank in enumerate(self.ranks):
            own = (number, len(self.ranks), each) if each is not None else ()
            calls.append(getattr(rank, method).remote(*arguments, *own))
        return get(calls, timeout_s or self.config.timeout_s)
