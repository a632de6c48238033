"""Next-token training of causal language models: the loss and the data of `rayrlhf sft` on the supervised path."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rayrlhf.corpus import block_order
from rayrlhf.policy import load_whole
from rayrlhf.supervised import SupervisedModule, SupervisedSettings
from rayrlhf.types import IntArray

TRAINING_BLOCKS, VALIDATION_BLOCKS = "training.npy", "validation.npy"  # files of the work folder
MAX_VALIDATION_BLOCKS = 256


class _Blocks(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Blocks at the given rows, each with its weight; it has a length, without which Lightning prefetches a batch."""

    def __init__(self, blocks: IntArray, rows: IntArray, weights: IntArray) -> None:
        self.blocks, self.rows, self.weights = blocks, rows, weights

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        block = np.asarray(self.blocks[self.rows[index]], dtype=np.int64)
        return torch.from_numpy(block), torch.tensor(self.weights[index])


def training_rows(settings: SupervisedSettings, blocks: int, stretch: int, rank: int) -> IntArray:
    """The blocks that one worker sees in one stretch, in order. Together the workers see each step's blocks once."""
    steps = settings.steps_of_stretch(stretch)
    per_step = settings.examples_per_step
    order = block_order(blocks, range(steps.start * per_step, steps.stop * per_step), settings.seed)
    return order.reshape(-1, settings.workers, settings.examples_per_forward)[:, rank].reshape(-1)


class NextTokenModule(SupervisedModule):
    """Cross-entropy over all targets of packed blocks, in nats a target."""

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, settings: SupervisedSettings, work: Path) -> None:
        super().__init__(model, settings)
        self.training_blocks: IntArray = np.load(work / TRAINING_BLOCKS, mmap_mode="r")
        self.validation_blocks: IntArray = np.load(work / VALIDATION_BLOCKS, mmap_mode="r")[:MAX_VALIDATION_BLOCKS]

    def _token_losses(self, blocks: torch.Tensor) -> torch.Tensor:
        """[blocks, block_size] nats."""
        logits = self.model(input_ids=blocks[:, :-1], use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten(), reduction="none")
        return losses.view(blocks.shape[0], -1)

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self._token_losses(batch[0]).mean()  # blocks are full and steps even: the mean of means is the mean

    def validation_sums(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        losses = self._token_losses(batch[0]).double() * batch[1][:, None]
        return torch.stack([losses.sum(), batch[1].sum() * losses.shape[1]])

    def write(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        self.model.save_pretrained(folder, state_dict=state)
        AutoTokenizer.from_pretrained(self.settings.model, trust_remote_code=False).save_pretrained(folder)

    def train_dataloader(self) -> DataLoader[Any]:
        rows = training_rows(self.settings, len(self.training_blocks), self.current_epoch, self.global_rank)
        data = _Blocks(self.training_blocks, rows, np.ones(len(rows), dtype=np.int64))
        return DataLoader(data, batch_size=self.settings.examples_per_forward, shuffle=False)

    def val_dataloader(self) -> DataLoader[Any]:
        # Every worker runs the same number of forward passes, or ZeRO 3 waits for ever; filling has weight 0.
        rows = np.arange(self.global_rank, len(self.validation_blocks), self.settings.workers)
        length = math.ceil(len(self.validation_blocks) / self.settings.workers)
        weights = (np.arange(length) < len(rows)).astype(np.int64)
        rows = np.concatenate([rows, np.zeros(length - len(rows), dtype=np.int64)])
        return DataLoader(
            _Blocks(self.validation_blocks, rows, weights), batch_size=self.settings.examples_per_forward, shuffle=False
        )


def build(settings: SupervisedSettings, work: Path) -> NextTokenModule:
    """The module of a worker."""
    model = load_whole(AutoModelForCausalLM, settings.model, f"model {settings.model}", dtype=torch.float32)
    return NextTokenModule(model, settings, work)
