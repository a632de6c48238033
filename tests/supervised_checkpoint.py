"""One process that trains, resumes from its checkpoint, and is then given one that would run code: `FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rayrlhf.strategy import CpuCapable, prepare_environment

prepare_environment("cpu")

import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from pytorch_lightning.plugins.environments import LightningEnvironment  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from rayrlhf.errors import LearnerError  # noqa: E402
from rayrlhf.supervised import SupervisedModule, SupervisedSettings, fit_from  # noqa: E402
from tests.strangers_pickle import Runs  # noqa: E402

FOLDER = Path(sys.argv[1])
CHECKPOINT = FOLDER / "lightning.ckpt"
SETTINGS = SupervisedSettings(
    model="", steps=4, lr=0.1, examples_per_step=2, examples_per_forward=2, tokens_per_example=1, workers=1, zero_stage=2,
    seed=1, checkpoint_every=2, warmup_steps=1, weight_decay=0.1, max_grad_norm=1.0, precision="32-true", device="cpu",
)  # fmt: skip


class Strategy(CpuCapable, pl.strategies.DeepSpeedStrategy):
    """That of `ray_deepspeed`, outside of Ray Train."""

    vendor = pl.strategies.DeepSpeedStrategy


class Module(SupervisedModule):
    def loss(self, batch: Any) -> torch.Tensor:
        return self.model(batch[0]).pow(2).mean()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.ones(4, 3)), batch_size=2)

    def on_train_epoch_end(self) -> None:
        self.trainer.save_checkpoint(CHECKPOINT)


def trainer(epochs: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, plugins=[LightningEnvironment()], logger=False,
        strategy=Strategy(stage=2, logging_batch_size_per_gpu=1, reduce_bucket_size=1000, allgather_bucket_size=1000),
        gradient_clip_val=1.0, use_distributed_sampler=False, num_sanity_val_steps=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def module() -> Module:
    return Module(torch.nn.Linear(3, 3), SETTINGS)


trainer(1).fit(module())
resumed = trainer(2)
fit_from(resumed, module(), CHECKPOINT)
print(f"resumed to step {resumed.global_step}")
for file in CHECKPOINT.rglob("*.pt"):
    torch.save({"x": Runs(FOLDER / "ran")}, file)
try:
    fit_from(trainer(3), module(), CHECKPOINT)
except LearnerError as error:
    print(f"refused: {error}")
