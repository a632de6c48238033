"""A reward model on the supervised path: its examples, its loss and how it is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rayrlhf.errors import ModelError
from rayrlhf.files import read_record
from rayrlhf.reward_models.config import RewardModelConfig
from rayrlhf.reward_models.examples import Example, ExampleTable, epoch_order
from rayrlhf.reward_models.folder import load_reward_network, write_reward_model
from rayrlhf.reward_models.losses import best_of_k, best_of_k_or_tie, binary, difference, regression
from rayrlhf.reward_models.network import RewardNetwork, padded
from rayrlhf.supervised import SupervisedModule, SupervisedSettings
from rayrlhf.types import IntArray

TRAINING, HELD_OUT, CONFIG = "training.npz", "held-out.npz", "reward-model.json"  # files of the work folder


class RewardBatch(NamedTuple):
    """N examples and their S = sum k sequences."""

    input_ids: Tensor  # [S, L] padded on the right
    lengths: Tensor  # [S]
    places: Tensor  # [N, K] row of input_ids, -1 where an example has fewer items
    best: Tensor  # [N]
    values: Tensor  # [N]
    weights: Tensor  # [N] 0 for filling

    def rewards_of(self, rewards: Tensor) -> Tensor:
        """[S] rewards as [N, K], -inf where an example has fewer items."""
        return torch.where(self.places >= 0, rewards[self.places.clamp(min=0)], -math.inf)


def collate(table: ExampleTable, indices: list[int], weights: list[float]) -> RewardBatch:
    """The examples at `indices`; -1 is filling, which is computed like the first example and weighs nothing."""
    examples: list[Example] = [table.examples[max(0, index)] for index in indices]
    items = max(len(example.rows) for example in examples)
    places = torch.full((len(examples), items), -1)
    sequences: list[IntArray] = []
    for row, example in zip(places, examples, strict=True):
        row[: len(example.rows)] = torch.arange(len(sequences), len(sequences) + len(example.rows))
        sequences += [table.sequences[i] for i in example.rows]
    return RewardBatch(
        *padded(sequences),
        places,
        torch.tensor([example.best for example in examples]),
        torch.tensor([example.value for example in examples], dtype=torch.float32),
        torch.tensor(weights, dtype=torch.float32),
    )


class _Rows(Dataset[tuple[int, float]]):
    """Examples by their index, each with the factor of its loss."""

    def __init__(self, rows: list[tuple[int, float]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, float]:
        return self.rows[index]


def example_losses(rewards: Tensor, batch: RewardBatch, config: RewardModelConfig, log_tie: Tensor) -> Tensor:
    """[N] the loss of each example by the config's objective; rewards [S]."""
    by_item = batch.rewards_of(rewards)
    if config.objective == "comparison":
        if config.ties == "davidson":
            return best_of_k_or_tie(by_item, batch.best, log_tie)
        return best_of_k(by_item, batch.best)
    if config.objective == "difference":
        return difference(by_item, batch.values)
    if config.objective == "binary":
        return binary(by_item[:, 0], batch.values)
    return regression(by_item[:, 0], batch.values, config.huber_delta)


def step_shares(
    indices: IntArray, weights: NDArray[np.float64], workers: int, scale: float, rank: int
) -> list[tuple[int, float]]:
    """One worker's examples of a step, each with the factor of its loss: those of all workers add up to `scale`.

    indices: [examples of a step], -1 is filling, with factor 0. weights: of all examples.
    """
    total = weights[indices[indices >= 0]].sum()
    return [(int(i), scale * weights[i] / total if i >= 0 else 0.0) for i in indices[rank::workers]]


class RewardModule(SupervisedModule):
    """A step's loss is the weighted mean over its examples, however they are dealt to workers and forward passes."""

    model: RewardNetwork

    def __init__(
        self,
        network: RewardNetwork,
        settings: SupervisedSettings,
        config: RewardModelConfig,
        training: ExampleTable,
        held_out: ExampleTable,
        start: Path,
    ) -> None:
        super().__init__(network, settings)
        self.config, self.training_table, self.held_out, self.start = config, training, held_out, start
        self.order = epoch_order(len(training), settings.examples_per_step, config.epochs, config.seed)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.model.eval()  # no dropout (SPEC LMHP-9)

    def loss(self, batch: RewardBatch) -> Tensor:
        # Weights add up to `accumulation * workers` over a step, whose micro-batches are averaged.
        return (self._losses(batch) * batch.weights).sum()

    def validation_sums(self, batch: RewardBatch) -> Tensor:
        losses = self._losses(batch)
        return torch.stack([(losses * batch.weights).sum().double(), batch.weights.sum().double()])

    def _losses(self, batch: RewardBatch) -> Tensor:
        if self.config.recompute and self.training:
            rewards = self.model.score_in_pieces(batch.input_ids, batch.lengths, batch.places.shape[1])
        else:
            rewards = self.model(batch.input_ids, batch.lengths)
        return example_losses(rewards, batch, self.config, self.model.log_tie)

    def train_dataloader(self) -> DataLoader[Any]:
        settings, weights = self.settings, self.training_table.weights
        scale = settings.workers * settings.accumulation
        rows = [
            share
            for step in settings.steps_of_stretch(self.current_epoch)
            for share in step_shares(self.order[step], weights, settings.workers, scale, self.global_rank)
        ]
        return self._loader(self.training_table, rows)

    def val_dataloader(self) -> DataLoader[Any]:
        # Every worker runs the same number of forward passes, or ZeRO 3 waits for ever.
        workers, table = self.settings.workers, self.held_out
        length = math.ceil(len(table) / workers)
        own = list(range(self.global_rank, len(table), workers))
        rows = [(i, table.examples[i].weight) for i in own] + [(-1, 0.0)] * (length - len(own))
        return self._loader(table, rows)

    def _loader(self, table: ExampleTable, rows: list[tuple[int, float]]) -> DataLoader[Any]:
        def together(batch: list[tuple[int, float]]) -> RewardBatch:
            return collate(table, [index for index, _ in batch], [weight for _, weight in batch])

        return DataLoader(
            _Rows(rows), batch_size=self.settings.examples_per_forward, shuffle=False, collate_fn=together
        )

    def write(self, folder: Path, state: dict[str, Tensor]) -> None:
        write_reward_model(folder, self.model, self.start, state)


def build(settings: SupervisedSettings, work: Path) -> RewardModule:
    """The module of a worker."""
    config = read_record(work / CONFIG, RewardModelConfig, ModelError, "remove the folder to begin anew")
    start = Path(settings.model)
    training, held_out = ExampleTable.load(work / TRAINING), ExampleTable.load(work / HELD_OUT)
    return RewardModule(load_reward_network(start), settings, config, training, held_out, start)
