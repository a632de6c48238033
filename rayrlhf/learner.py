"""One rank of the learner: turns training sequences into optimizer steps. Free of Ray; Fabric and DeepSpeed inside.

Every rank is handed all sequences of an update and takes its share of the plan; ranks only ever add sums.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rayrlhf.config import LearnerConfig, ModelConfig, OptimizerConfig, OptimizerSettings
from rayrlhf.engine import Engine, launch_fabric
from rayrlhf.errors import CheckpointError, LearnerError
from rayrlhf.losses import PolicyLoss, TokenStatistics, entropies, selected_logprobs, token_statistics
from rayrlhf.micro_batches import MicroBatch, MicroBatchPlan, collate, plan_micro_batches
from rayrlhf.policy import load_policy, load_tokenizer
from rayrlhf.strategy import Device
from rayrlhf.types import TrainingSequence, UpdateReport, Weights
from rayrlhf.weights import checksum, to_array

STATE_FILE = "learner.json"


def learning_rate(settings: OptimizerSettings, iteration: int, iterations: int) -> float:
    """The learning rate of iteration 0, 1, ... of a run of `iterations`: a pure function, so nothing of it is saved.

    It rises as 1/W, 2/W, ... over W warm-up iterations; linear decay falls from 1 to 1/iterations at the last one,
    0 lying just beyond it.
    """
    lr = settings.lr
    if iteration < settings.warmup_iterations:
        lr *= (iteration + 1) / settings.warmup_iterations
    if settings.decay == "linear":
        lr *= max(0.0, 1 - iteration / iterations)
    return lr


class Learner:
    """The policy in training. All methods are collective: every rank calls them in the same order."""

    def __init__(
        self,
        model_path: str,
        loss: PolicyLoss,
        optimizer: OptimizerConfig,
        config: LearnerConfig,
        temperature: float,
        iterations: int,
        device: Device,
        rank: int = 0,
        world: int = 1,
        trust_remote_code: bool = False,
    ):
        """Loads the policy from `model_path` and joins the other ranks (`engine.launch_fabric` says where they meet).

        `temperature` is the sampler's: the differentiated distribution is the sampled one (SPEC X-5, X-6).
        `iterations` is the length of the run, for the learning rate.

        Raises:
            ModelError: the model does not load.
            LearnerError, InstallationError: from `launch_fabric`.
        """
        self._loss = loss
        self._optimizer = optimizer
        self._config = config
        self._temperature = temperature
        self._iterations = iterations
        self._model = ModelConfig(path=model_path, trust_remote_code=trust_remote_code)
        self.rank = rank
        self.world = world
        self.version = 0  # optimizer updates behind the weights
        self._stopped = False

        bf16 = config.precision == "bf16" or (
            config.precision == "auto" and device == "cuda" and torch.cuda.is_bf16_supported()
        )
        self._precision = "bf16-mixed" if bf16 else "32-true"
        fabric = launch_fabric(config.zero_stage, self._precision, device, rank, world)
        self._device = fabric.device
        policy = load_policy(self._model)
        _count_pad_embedding(policy)
        self._vocabulary = policy.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        self._context = getattr(policy.config, "max_position_embeddings", None)
        self._keeps_logits = "logits_to_keep" in inspect.signature(policy.forward).parameters
        self._policy = Engine(fabric, policy, optimizer)

    def update(self, sequences: Sequence[TrainingSequence], iteration: int) -> UpdateReport:
        """One optimizer step on the sum over all sequences and scored tokens of weights x loss.

        `sequences` are all sequences of the update, the same on every rank, sampled with the weights as they are now.
        Metrics are means over the scored tokens of all ranks that carry loss; lengths and norms in their own units.

        Raises:
            LearnerError: before any weight has changed, on all ranks: a sequence is malformed, a loss or a gradient is
                not finite, or learner and sampler disagree about log-probabilities (SPEC X-5).
        """
        began = time.perf_counter()
        if self._stopped:
            raise LearnerError("this learner stopped in an update; build it anew and load the last checkpoint")
        self._check_sequences(sequences)
        lengths = [len(sequence) for sequence in sequences]
        plan = plan_micro_batches(lengths, self.world, self._config.tokens_per_micro_batch)
        lr = learning_rate(self._optimizer, iteration, self._iterations)
        self._stopped = True  # until the step is done: an update that fails leaves half a gradient in the engine

        self._policy.begin(lr, plan.micro_batches)
        statistics = TokenStatistics.zero(self._device)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for number, indices in enumerate(plan.ranks[self.rank], start=1):
            loss, of_tokens = self._forward(collate([sequences[i] for i in indices]).to(self._device))
            statistics += of_tokens
            total += loss.detach()
            self._policy.backward(loss)
            if number < plan.micro_batches:
                self._policy.next_micro_batch()
        statistics, total = self._reduce(statistics, total)
        self._agree(statistics, float(total))
        grad_norm = self._policy.finish()

        self._stopped = False
        self.version += 1
        seconds = torch.tensor(time.perf_counter() - began, dtype=torch.float64, device=self._device)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return UpdateReport(
            version=self.version,
            metrics={**statistics.metrics(), **_step_metrics(float(total), grad_norm, lr, plan)},
            seconds=float(seconds),
        )

    def _forward(self, batch: MicroBatch) -> tuple[Tensor, TokenStatistics]:
        """This micro-batch's share of the global loss (a scalar with gradient), and its tokens' statistics."""
        columns = slice(batch.first, batch.last)
        extra: dict[str, Any] = {}
        if self._keeps_logits:  # the vocabulary is by far the widest layer: no logits of prompts
            extra["logits_to_keep"] = torch.arange(batch.first, batch.last, device=self._device)
        logits = self._policy.forward(batch.input_ids, use_cache=False, return_dict=False, **extra)[0]
        if not self._keeps_logits:
            logits = logits[:, columns]
        behaviour, advantages = batch.behaviour_logprobs[:, columns], batch.advantages[:, columns]
        weights = batch.weights[:, columns]
        # A token of weight 0 is in neither loss nor statistics: its behaviour log-probability need not mean anything.
        scored = batch.mask[:, columns] & (weights != 0)

        logprobs = selected_logprobs(logits, batch.targets[:, columns], self._temperature)
        losses = self._loss(logprobs, behaviour, advantages)
        clipped = self._loss.clipped(logprobs.detach(), behaviour, advantages)
        token_entropies = entropies(logits, self._temperature)
        statistics = token_statistics(losses.detach(), logprobs.detach(), behaviour, token_entropies, clipped, scored)
        return (weights * losses).sum(), statistics

    def _reduce(self, statistics: TokenStatistics, total: Tensor) -> tuple[TokenStatistics, Tensor]:
        sums = torch.cat([statistics.sums, total.reshape(1)])
        maxima = statistics.maxima.clone()
        dist.all_reduce(sums, dist.ReduceOp.SUM)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return TokenStatistics(sums[:-1], maxima), sums[-1]

    def _agree(self, statistics: TokenStatistics, loss: float) -> None:
        """Raises LearnerError on all ranks, whose numbers are the same here, where the step must not be taken."""
        metrics = statistics.metrics()
        tokens = int(metrics["learner/tokens"])
        bad = int(statistics.sums[-1])
        if bad or not np.isfinite(loss):
            raise LearnerError(
                f"the loss is not finite on {bad} of {tokens} scored tokens (sum {loss}); no weight was changed. Check "
                "the rewards' scale, and that optimizer.lr has not made the policy diverge in the updates before."
            )
        gaps = metrics["learner/logprob_gap_max"], metrics["learner/logprob_gap_mean"]
        if self._precision == "bf16-mixed":
            gap, limit, option = gaps[1], self._config.max_mean_logprob_gap_bf16, "max_mean_logprob_gap_bf16"
        else:
            gap, limit, option = gaps[0], self._config.max_logprob_gap, "max_logprob_gap"
        if gap > limit:
            raise LearnerError(
                f"learner and sampler disagree about the log-probabilities of {tokens} scored tokens: by {gaps[0]:.3g} "
                f"nats on the worst, by {gaps[1]:.3g} on the mean token; learner.{option} allows {limit:g}. No weight "
                "was changed. Check that both have the same model, weights version and temperature, that the behaviour "
                "log-probabilities are those of the full vocabulary, and that each stands at its own token."
            )

    def _check_sequences(self, sequences: Sequence[TrainingSequence]) -> None:
        """Raises LearnerError by number: what one rank alone would trip over leaves the others waiting for it."""
        if not sequences:
            raise LearnerError("no training sequences: an update needs at least one")
        for number, sequence in enumerate(sequences):
            fault = _fault(sequence, self._vocabulary, self._context)
            if fault:
                raise LearnerError(f"training sequence {number} of {len(sequences)}: {fault}; no weight was changed")

    def weights(self) -> Weights | None:
        """The policy's parameters with their version and checksum, at rank 0; None at the others.

        float32, or the bits of bfloat16 as uint16 where that is the learner's precision (`weights.load_into` takes
        both). One tensor at a time is gathered.
        """
        arrays = {name: to_array(tensor) for name, tensor in self._policy.gather() if self.rank == 0}
        return Weights(self.version, checksum(arrays), arrays) if self.rank == 0 else None

    def save_model(self, folder: Path) -> None:
        """Writes a `from_pretrained` folder of policy and tokenizer; when this returns, on any rank, it is whole."""
        tensors = {name: tensor.cpu().clone() for name, tensor in self._policy.gather() if self.rank == 0}
        if self.rank == 0:
            self._policy.module.save_pretrained(folder, state_dict=tensors)  # type: ignore[operator]
            load_tokenizer(self._model).save_pretrained(folder)
        dist.barrier()

    def save_state(self, folder: Path) -> None:
        """Writes all that `load_state` needs, each rank its shard, into a folder that all ranks see."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._policy.save(folder / "policy")
        save_file(_random_state(self._device), folder / f"random-{self.rank}.safetensors")
        if self.rank == 0:
            (folder / STATE_FILE).write_text(json.dumps({"version": self.version, **self._layout()}, indent=1))
        dist.barrier()

    def load_state(self, folder: Path) -> None:
        """Takes up, bit for bit, where `save_state` left off.

        Raises:
            CheckpointError: no such state, a damaged one, or another world size, ZeRO stage or precision wrote it.
        """
        folder = Path(folder)
        try:
            saved = json.loads((folder / STATE_FILE).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} holds no learner state that can be read: {error}") from error
        layout = self._layout()
        others = [
            f"{key} was {saved.get(key)} and is {value} now: set `{key}: {saved.get(key)}`"
            for key, value in layout.items()
            if saved.get(key) != value
        ]
        if others:
            raise CheckpointError(
                f"the learner state in {folder} is sharded for the settings it was written with. {'; '.join(others)}, "
                "or start a new run from its model folder."
            )
        try:
            random = load_file(folder / f"random-{self.rank}.safetensors")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"the learner state in {folder} cannot be loaded: {error}") from error
        self._policy.load(folder / "policy")
        _restore_random_state(random, self._device)
        self.version = saved["version"]
        dist.barrier()

    def _layout(self) -> dict[str, Any]:
        """The settings that decide how the state is sharded, by their names in the config."""
        precision = "bf16" if self._precision == "bf16-mixed" else "fp32"
        return {
            "learner.ranks": self.world,
            "learner.zero_stage": self._config.zero_stage,
            "learner.precision": precision,
        }

    def close(self) -> None:
        """Frees the engine; the process stays joined to the other ranks until it ends."""
        self._policy.close()


def _step_metrics(loss: float, grad_norm: float, lr: float, plan: MicroBatchPlan) -> dict[str, float]:
    return {
        "learner/loss": loss,
        "learner/grad_norm": grad_norm,
        "learner/lr": lr,
        "learner/padding": plan.padding,
        "learner/micro_batches": float(plan.micro_batches),
    }


def _fault(sequence: TrainingSequence, vocabulary: int, context: int | None) -> str | None:
    """What is wrong with a sequence, or None."""
    scored = len(sequence) - sequence.start
    if not 1 <= sequence.start < len(sequence):
        return f"start {sequence.start} must lie in 1 .. {len(sequence) - 1}, its tokens less one"
    if context is not None and len(sequence) > context:
        return f"its {len(sequence)} tokens are more than the {context} that the model takes"
    if sequence.input_ids.min() < 0 or sequence.input_ids.max() >= vocabulary:
        return f"a token id lies outside the model's vocabulary of {vocabulary}"
    for name in ("advantages", "behaviour_logprobs", "weights"):
        values = getattr(sequence, name)
        if values.shape != (scored,):
            return f"{name} has shape {values.shape} for {scored} scored tokens"
        if not np.isfinite(values).all():
            return f"{name} is not finite at scored token {int(np.argmin(np.isfinite(values)))}"
    return None


def _count_pad_embedding(module: nn.Module) -> None:
    """An embedding gives its padding id no gradient. Here masks say what padding is, and where the pad id is also the
    EOS or BOS id it stands in real text (SPEC X-2)."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            part.padding_idx = None


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
