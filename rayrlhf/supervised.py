"""Supervised training: a LightningModule under Lightning's Trainer in Ray Train's TorchTrainer, for any stage.

The driver (`supervised_run.py`) lays model and data down in a work folder that every node sees; each Ray Train worker
runs `train_on_worker`. An epoch of the Trainer is the stretch between two checkpoints, so a run always resumes at the
beginning of an epoch, with its data order, optimizer and schedule: on CPU bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import ray.train
import torch
import torch.distributed as dist
from torch import nn

from rayrlhf.errors import LearnerError, StorageError, UserError
from rayrlhf.files import append_to, replace_file, saving
from rayrlhf.strategy import bucket_elements, known_types_only, prepare_environment, ray_deepspeed

PROGRESS, MODEL = "progress.jsonl", "model"  # files of the work folder
TOO_MANY = "too-many.txt"  # another: how many examples a forward pass had when memory ran out, a line each
_CHECKPOINT = "lightning.ckpt"


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """What decides the result of a run, beside its data."""

    model: str  # what `from_pretrained` takes
    steps: int  # optimizer steps
    lr: float  # highest learning rate
    examples_per_step: int  # behind one optimizer step, over all workers
    examples_per_forward: int  # in one forward pass of one worker; the rest is accumulated
    tokens_per_example: int  # the length of a block, or a mean: what the shown speed is counted in
    workers: int
    zero_stage: Literal[0, 1, 2, 3]
    seed: int
    checkpoint_every: int  # steps
    warmup_steps: int  # steps of linear rise of the learning rate
    weight_decay: float
    max_grad_norm: float
    precision: Literal["32-true", "bf16-mixed"]
    device: Literal["cpu", "cuda"]
    schedule: Literal["cosine", "linear"] = "cosine"  # how the learning rate falls
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's
    adam_eps: float = 1e-8

    @property
    def accumulation(self) -> int:
        """Forward passes of one worker behind one optimizer step."""
        return self.examples_per_step // (self.workers * self.examples_per_forward)

    @property
    def stretches(self) -> int:
        return math.ceil(self.steps / self.checkpoint_every)

    def steps_of_stretch(self, stretch: int) -> range:
        """The optimizer steps, from 0, of one stretch between checkpoints."""
        first = stretch * self.checkpoint_every
        return range(first, min(self.steps, first + self.checkpoint_every))


def cosine_with_warmup(step: int, warmup_steps: int, steps: int, floor: float = 0.05) -> float:
    """Factor of the learning rate at a step from 0: a linear rise, then half a cosine down to `floor` (SGDR, 2017)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def linear_to_zero(step: int, warmup_steps: int, steps: int) -> float:
    """Factor of the learning rate at a step from 0: a linear rise, then 1 - step / steps (SPEC LMHP-11)."""
    return min(1.0, (step + 1) / warmup_steps if warmup_steps else 1.0) * (1 - step / steps)


class SupervisedModule(pl.LightningModule):
    """What all supervised stages share: optimizer and schedule, the loss of a step over its micro-batches.

    The model is built before the Trainer and handed in: built in `configure_model` under ZeRO 3 it would lose its
    initial weights without an error. A subclass has the data, the loss and how the finished model is written.
    """

    def __init__(self, model: nn.Module, settings: SupervisedSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.last_loss = torch.zeros(())  # of this worker's part of the last step
        self.validation_loss: float | None = None  # mean over all that was held out, if anything was
        self._micro_losses: list[torch.Tensor] = []
        self._validation_sums = torch.zeros(2, dtype=torch.float64)  # weighted losses, weights

    def loss(self, batch: Any) -> torch.Tensor:
        """The loss of one micro-batch: a step's loss is the mean of those of its micro-batches, over all workers."""
        raise NotImplementedError

    def validation_sums(self, batch: Any) -> torch.Tensor:
        """[2] the sum of the weighted losses of what was held out, and that of the weights, in one batch."""
        raise NotImplementedError

    def write(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Writes the finished model, whose gathered tensors are `state`, to an empty folder."""
        raise NotImplementedError

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout of a step depends on the step alone, or a resumed run would draw other masks.
        first = self.settings.steps_of_stretch(self.current_epoch).start * self.settings.accumulation
        torch.manual_seed(hash((self.settings.seed, first + batch_idx, self.global_rank)))
        self.model.train()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self._micro_losses.append(loss.detach())
        if len(self._micro_losses) == self.settings.accumulation:
            self.last_loss = torch.stack(self._micro_losses).mean()
            self._micro_losses.clear()
        # Under accumulation both Lightning and the DeepSpeed engine divide the loss by its length: once too often.
        return loss * self.settings.accumulation

    def on_validation_epoch_start(self) -> None:
        self._validation_sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._validation_sums += self.validation_sums(batch)

    def on_validation_epoch_end(self) -> None:
        dist.all_reduce(self._validation_sums)
        total, weight = self._validation_sums.tolist()
        self.validation_loss = total / weight if weight else None

    def configure_optimizers(self) -> Any:
        settings = self.settings
        matrices = [p for p in self.model.parameters() if p.requires_grad and p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.requires_grad and p.ndim < 2]  # norms, biases: no decay
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.adam_eps,
        )
        factor = cosine_with_warmup if settings.schedule == "cosine" else linear_to_zero
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: factor(step, settings.warmup_steps, settings.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ProgressAndCheckpoints(pl.Callback):
    """Appends progress lines, and at the end of each stretch saves a checkpoint and reports it to Ray Train."""

    def __init__(self, settings: SupervisedSettings, work: Path) -> None:
        self.settings, self.work = settings, work
        self.every = max(1, settings.steps // 50)
        self.since = time.monotonic()
        self.lines_at = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._line(step=trainer.global_step, pid=os.getpid())
        self.lines_at = trainer.global_step
        self.since = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        step = trainer.global_step
        if step == self.lines_at or (step % self.every and step != self.settings.steps):
            return
        steps, self.lines_at = step - self.lines_at, step
        loss = pl_module.last_loss.clone()
        dist.all_reduce(loss)
        mean = loss.item() / self.settings.workers
        now = time.monotonic()
        tokens = steps * self.settings.examples_per_step * self.settings.tokens_per_example
        self._line(step=step, loss=mean, tokens_per_s=tokens / (now - self.since))
        self.since = now
        _check_finite(mean, step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SupervisedModule)
        step, loss = trainer.global_step, pl_module.validation_loss
        if loss is not None:
            self._line(step=step, validation_loss=loss)
            _check_finite(loss, step)
        if step == self.settings.steps:
            # Before the report: whoever finds the last checkpoint finds the model as well.
            save_model(pl_module, self.work)
        folder = self.work / "staging" / f"step-{step}"
        with saving(self.work):
            trainer.save_checkpoint(folder / _CHECKPOINT)  # every rank writes its shards into the one folder
        rank = trainer.global_rank
        ray.train.report(
            {"step": step, "validation_loss": loss},
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)) if rank == 0 else None,
        )
        if rank == 0:
            shutil.rmtree(folder)
        self.since = time.monotonic()

    def _line(self, **values: float) -> None:
        if ray.train.get_context().get_world_rank() == 0:
            _append(self.work, **values)


def _append(work: Path, **values: float) -> None:
    with append_to(work / PROGRESS) as file:
        file.write(json.dumps(values).encode() + b"\n")


def _check_finite(loss: float, step: int) -> None:
    """Raises LearnerError on every worker at once: the loss it is given is that of all of them."""
    if not math.isfinite(loss):
        raise LearnerError(f"the loss is {loss} at step {step}: lower --lr, or look at the weights it started from")


def save_model(module: SupervisedModule, work: Path) -> None:
    """Writes the folder `work/model` from rank 0; every rank must call it (ZeRO 3 gathers)."""
    import deepspeed

    model, state, rank = module.model, {}, dist.get_rank()
    sharded = module.settings.zero_stage == 3
    for name, value in [*model.named_parameters(), *_saved_buffers(model)]:
        gathered = deepspeed.zero.GatheredParameters([value]) if sharded else contextlib.nullcontext()
        with gathered:
            if rank == 0:
                state[name] = (
                    value.detach().to("cpu", torch.float32, copy=True) if value.is_floating_point() else value.cpu()
                )
    if rank == 0:
        aside = work / f"{MODEL}.new"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(work / MODEL, ignore_errors=True)
        with saving(work):
            aside.mkdir()
            module.write(aside, state)
        for file in aside.glob("*.safetensors"):
            file.chmod((aside / "config.json").stat().st_mode)  # safetensors leaves them to the owner alone
        aside.rename(work / MODEL)


def _saved_buffers(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [(name, value) for name, value in model.state_dict().items() if name not in parameters]


Build = Callable[[SupervisedSettings, Path], SupervisedModule]
"""Makes a stage's module on a worker, from the settings and the work folder: a function at the top of its module."""


def fitting(settings: SupervisedSettings, work: Path) -> SupervisedSettings:
    """Half as many examples in a forward pass as last did not fit into memory, if any did not; the rest of a step is
    accumulated (SPEC LMHP-33)."""
    file = work / TOO_MANY
    if not file.is_file():
        return settings
    most = max(1, min(map(int, file.read_text().split())) // 2)
    share = settings.examples_per_step // settings.workers
    most = min(most, settings.examples_per_forward)
    return replace(settings, examples_per_forward=next(n for n in range(most, 0, -1) if share % n == 0))


def train_on_worker(config: Mapping[str, Any]) -> None:
    """One Ray Train worker: from the last checkpoint, if there is one, to the end. `config`: `as_config`'s."""
    work = Path(config["work"])
    if faults(work):  # raised, it was taken for a failure of the machine: this is the restart, which would repeat it
        return
    try:
        _train_on_worker(config, work)
    except StorageError:
        raise
    except UserError as error:
        context = ray.train.get_context()
        told = work / f"fault-{context.get_world_rank():06d}.txt"
        replace_file(told, [str(error).encode("utf-8", "surrogatepass")])
        if context.get_world_size() > 1:  # the others may wait for this worker
            raise


def faults(work: Path) -> list[Path]:
    """What workers said that the user can act on, a file each, in the order of their ranks."""
    return sorted(work.glob("fault-*.txt"))


def _train_on_worker(config: Mapping[str, Any], work: Path) -> None:
    settings = fitting(SupervisedSettings(**config["settings"]), work)
    build: Build = config["build"]
    prepare_environment(settings.device)
    if settings.device == "cpu":
        torch.set_num_threads(1)
    pl.seed_everything(settings.seed, verbose=False)
    module = build(settings, work)
    bucket = bucket_elements(module)
    from ray.train.lightning import RayLightningEnvironment, prepare_trainer

    trainer = prepare_trainer(
        pl.Trainer(
            accelerator="gpu" if settings.device == "cuda" else "cpu",
            devices="auto",
            strategy=ray_deepspeed(settings.zero_stage, reduce_bucket_size=bucket, allgather_bucket_size=bucket),
            plugins=[RayLightningEnvironment()],
            precision=settings.precision,
            max_epochs=settings.stretches,
            accumulate_grad_batches=settings.accumulation,
            gradient_clip_val=settings.max_grad_norm,  # unset, DeepSpeed would be told 0
            use_distributed_sampler=False,  # Lightning's own would shuffle
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            callbacks=[ProgressAndCheckpoints(settings, work)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            deterministic="warn" if settings.device == "cuda" else True,
        )
    )
    try:
        _fit_from_last_checkpoint(trainer, module)
    except torch.OutOfMemoryError:
        with append_to(work / TOO_MANY) as file:
            file.write(f"{settings.examples_per_forward}\n".encode())
        _append(work, out_of_memory=settings.examples_per_forward, pid=os.getpid())
        raise  # this process ends and frees its memory; the next one goes on from the last checkpoint


def _fit_from_last_checkpoint(trainer: pl.Trainer, module: SupervisedModule) -> None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        trainer.fit(module)
        return
    with checkpoint.as_directory() as folder:
        fit_from(trainer, module, Path(folder) / _CHECKPOINT)


def fit_from(trainer: pl.Trainer, module: SupervisedModule, path: Path) -> None:
    """Trains from a checkpoint. Raises LearnerError where it holds anything but tensors and what DeepSpeed writes."""
    try:
        with known_types_only():
            trainer.fit(module, ckpt_path=path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise LearnerError(
            f"the checkpoint {path} cannot be loaded: it holds more than tensors, or is damaged, and nothing in it was run"
        ) from error


def as_config(settings: SupervisedSettings, work: Path, build: Build) -> dict[str, Any]:
    """What `train_on_worker` takes."""
    return {"settings": asdict(settings), "work": str(work), "build": build}
