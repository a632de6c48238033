"""One rank of the learner: turns training batches into optimizer steps. Free of Ray; Fabric and DeepSpeed inside.

Every rank is handed all sequences of an update and takes its share of the plan; ranks only ever add sums.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rayrlhf.algorithm_config import (
    HeadValueConfig,
    OptimizerConfig,
    OptimizerSettings,
    SeparateValueConfig,
    ValueConfig,
)
from rayrlhf.batch_loss import agreement, policy_loss, value_loss
from rayrlhf.config import LearnerConfig, ModelConfig
from rayrlhf.engine import Engine, launch_fabric
from rayrlhf.errors import LearnerError, ModelError
from rayrlhf.learner_state import load_random_state, read_version, restore_random_state, save_random_state, write_state
from rayrlhf.losses import Objective
from rayrlhf.micro_batches import MicroBatch, collate, plan_micro_batches
from rayrlhf.packed_sequences import (
    Limits,
    PackedSequences,
    check_minibatches,
    pack_sequences,
    pack_tokens,
    unseen_in_first,
)
from rayrlhf.policy import load_policy, load_tokenizer
from rayrlhf.policy_network import FrozenReference, PolicyNetwork
from rayrlhf.run_length import learning_rate
from rayrlhf.strategy import Device
from rayrlhf.types import FloatArray, Minibatch, TrainingBatch, UpdateReport, ValueQuery, Weights
from rayrlhf.update_checks import check_agreement, check_finite, check_gradients, check_weights
from rayrlhf.update_statistics import (
    Step,
    StepStatistics,
    TokenStatistics,
    ValueStatistics,
    update_metrics,
    variance_explained,
)
from rayrlhf.value import (
    ValueHead,
    ValueNetwork,
    build_value_network,
    compute_values,
    hidden_size,
    limits_of,
    split_values,
    write_value,
)
from rayrlhf.weights import checksum, to_array


class Learner:
    """The policy in training and its value network. All methods are collective: every rank calls them in one order."""

    def __init__(
        self,
        model_path: str,
        objective: Objective,
        optimizer: OptimizerConfig,
        config: LearnerConfig,
        temperature: float,
        iterations: int,
        device: Device,
        rank: int = 0,
        world: int = 1,
        trust_remote_code: bool = False,
        value: ValueConfig | None = None,
    ):
        """Loads the policy from `model_path` and joins the other ranks (`engine.launch_fabric` says where they meet).

        The model at `model_path` is the reference of the objective's KL loss as well, whatever state is loaded later.

        `temperature` is the sampler's: the differentiated distribution is the sampled one (SPEC X-5, X-6).
        `iterations` is what the learning rates are spread over. `value` is the network that `objective.value`
        fits: neither comes without the other.

        Raises:
            ModelError: the policy or the value network does not load, or they do not fit each other.
            LearnerError, InstallationError: from `launch_fabric`.
        """
        if (objective.value is None) != (value is None):
            raise LearnerError("a value network and an objective to fit it come together: give both or neither")
        self._objective = objective
        self._config = config
        self._temperature = temperature
        self._iterations = iterations
        self._model = ModelConfig(path=model_path, trust_remote_code=trust_remote_code)
        self._value_config = value
        self.rank = rank
        self.world = world
        self.version = 0  # updates behind the weights
        self._stopped = False  # an update failed, and nothing but a new learner goes on
        self._halfway = False  # it failed after some of its steps

        self._bf16 = config.precision == "bf16" or (
            config.precision == "auto" and device == "cuda" and torch.cuda.is_bf16_supported()
        )
        precision = "bf16-mixed" if self._bf16 else "32-true"
        fabric = launch_fabric(config.zero_stage, precision, device, rank, world)
        self._device = fabric.device
        self._network = _policy_network(load_policy(self._model), value)
        self._limits = limits_of(self._network.policy)
        self._reference: FrozenReference | None = None
        if objective.kl is not None and objective.kl.vocabulary is not None:
            dtype = torch.bfloat16 if self._bf16 else torch.float32
            self._reference = FrozenReference(load_policy(self._model, dtype), self._device)
        self._engines = {"policy": Engine(fabric, self._network, optimizer)}
        self._rates: dict[str, OptimizerSettings] = {"policy": optimizer}
        self._critic: ValueNetwork | None = None
        if isinstance(value, SeparateValueConfig):
            self._critic = build_value_network(value, self._model)
            self._limits = _common_limits(self._limits, self._critic.limits)
            self._engines["value"] = Engine(fabric, self._critic, value.optimizer, "algorithm.value.optimizer")
            self._rates["value"] = value.optimizer

    def update(self, batch: TrainingBatch, iteration: int) -> UpdateReport:
        """One optimizer step for each minibatch, in order, on the sum over its sequences and scored tokens of weights x
        loss (`types.TrainingSequence`, `types.Minibatch`), until a step's approxkl is above `batch.target_kl`.

        `batch` is the same on every rank, sampled and valued with the weights as they are now. `version` rises by one.
        `update_statistics.update_metrics` says what the metrics are.

        Raises:
            LearnerError: on all ranks. A sequence is malformed, or learner and sampler disagree about log-probabilities in
                any of the minibatches (SPEC X-5): before any weight has changed. NotFiniteError: a loss or a gradient is
                not finite, which all ranks find before any engine steps; or the weights are not, after the steps.
        """
        began = time.perf_counter()
        if self._stopped:
            raise LearnerError("this learner stopped in an update; build it anew and load the last checkpoint")
        check_minibatches(batch)
        kl, with_values = self._objective.kl, self._objective.value is not None
        packed = pack_sequences(batch.sequences, self._limits, with_values, kl is not None and kl.vocabulary is None)
        rates = {
            name: batch.lr_scale * learning_rate(rate, iteration, self._iterations)
            for name, rate in self._rates.items()
        }
        self._stopped = True  # until the last step is done: one that fails leaves half a gradient in the engine
        later = self._agreement(packed, unseen_in_first(batch))
        steps: list[Step] = []
        for minibatch in batch.minibatches:
            step = self._step(packed, minibatch, rates, batch.kl_coef, later, len(steps), len(batch.minibatches))
            steps.append(step)
            self._halfway = True
            if batch.target_kl is not None and step.statistics.tokens.approxkl > batch.target_kl:
                break
        check_weights(self._finite_weights(), f"after {len(steps)} steps of this update")
        self._stopped = self._halfway = False
        self.version += 1
        metrics = update_metrics(steps, with_values, with_kl=kl is not None, later=later)
        metrics |= {"learner/lr" if name == "policy" else "learner/value_lr": rate for name, rate in rates.items()}
        metrics["policy/stopped_early"] = float(len(steps) < len(batch.minibatches))
        if with_values:
            metrics["val/var_explained"] = variance_explained(packed.values, packed.returns, packed.value_weights != 0)
        seconds = torch.tensor(time.perf_counter() - began, dtype=torch.float64, device=self._device)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return UpdateReport(version=self.version, metrics=metrics, seconds=float(seconds))

    @torch.no_grad()
    def _agreement(self, packed: PackedSequences, indices: Sequence[int]) -> TokenStatistics:
        """How the policy's log-probabilities of the sequences at `indices` differ from the sampler's; of all ranks.

        What a forward pass says before the first step is all that X-5 needs of the later minibatches: their gradients are
        of a policy that has moved.
        """
        if not indices:
            return TokenStatistics.zero(torch.device("cpu"))
        found = TokenStatistics.zero(self._device)
        budget, lengths = self._config.tokens_per_micro_batch, packed.tokens.lengths
        plan = plan_micro_batches([int(lengths[i]) for i in indices], self.world, budget)
        for members in plan.ranks[self.rank]:
            batch = collate(packed, [indices[i] for i in members]).to(self._device)
            logits, _ = self._engines["policy"].forward(batch.input_ids, batch.columns, batch.value_columns)
            found += agreement(logits, batch, self._temperature)
        return found.reduced()

    def _step(
        self,
        packed: PackedSequences,
        minibatch: Minibatch,
        rates: Mapping[str, float],
        kl_coef: float,
        later: TokenStatistics,
        behind: int,
        of: int,
    ) -> Step:
        """The optimizer step after `behind` others of an update of `of`. `later`: what `_agreement` found beyond the first
        minibatch."""
        indices = np.asarray(minibatch.indices, np.int64)
        budget = self._config.tokens_per_micro_batch
        plan = plan_micro_batches(packed.tokens.lengths[indices].tolist(), self.world, budget)
        for name, engine in self._engines.items():
            engine.begin(rates[name], plan.micro_batches)
        statistics = StepStatistics.zero(self._device)
        for number, members in enumerate(plan.ranks[self.rank], start=1):
            batch = collate(packed, indices[list(members)].tolist(), minibatch).to(self._device)
            statistics += self._backward(batch, kl_coef)
            if number < plan.micro_batches:
                for engine in self._engines.values():
                    engine.next_micro_batch()
        statistics = statistics.reduced()
        state = "no weight was changed" if not behind else f"{behind} of {of} steps of this update were already taken"
        check_finite(statistics, state)
        if not behind:
            check_agreement(statistics.tokens + later, self._config, self._bf16, self._temperature)
        norms = {name: engine.grad_norm() for name, engine in self._engines.items()}
        check_gradients({self._engines[name].option: norm for name, norm in norms.items()}, state)
        for engine in self._engines.values():
            engine.finish()
        return Step(statistics, norms["policy"], norms.get("value"), plan.padding, plan.micro_batches)

    def _backward(self, batch: MicroBatch, kl_coef: float) -> StepStatistics:
        """Adds the gradients of this micro-batch's share of the loss to the engines'."""
        policy, objective = self._engines["policy"], self._objective
        reference = self._reference.logits(batch.input_ids, batch.columns) if self._reference is not None else None
        logits, values = policy.forward(batch.input_ids, batch.columns, batch.value_columns)
        loss, of_tokens = policy_loss(logits, batch, objective, self._temperature, kl_coef, reference)
        if objective.value is None:
            policy.backward(loss)
            return StepStatistics(of_tokens, ValueStatistics.zero(self._device), _losses(loss, torch.zeros_like(loss)))
        if "value" not in self._engines:
            of_value, of_values = value_loss(values, batch, objective.value)
            policy.backward(loss + of_value)  # one joint loss: every parameter has a gradient in every step
        else:
            policy.backward(loss)
            values = self._engines["value"].forward(batch.input_ids, batch.value_columns)
            of_value, of_values = value_loss(values, batch, objective.value)
            self._engines["value"].backward(of_value)
        return StepStatistics(of_tokens, of_values, _losses(loss, of_value))

    def values(self, queries: Sequence[ValueQuery]) -> list[FloatArray]:
        """V of what `queries` ask for, [S] each, the same at every rank.

        Raises:
            LearnerError: there is no value network, a query is malformed, or a value is not finite.
        """
        if self._objective.value is None:
            raise LearnerError("this learner has no value network: algorithms that ask for values need algorithm.value")
        if not queries:
            return []
        tokens = pack_tokens(queries, "value query", self._limits)
        plan = plan_micro_batches(tokens.lengths.tolist(), self.world, self._config.tokens_per_micro_batch)
        values = compute_values(self._value_forward, tokens, plan.ranks[self.rank], self._device)
        dist.all_reduce(values, dist.ReduceOp.SUM)  # each rank has zeros where others have values
        if not values.isfinite().all():
            raise LearnerError("the value network's values are not finite: it has diverged; lower its learning rate")
        return split_values(values, tokens)

    def _value_forward(self, input_ids: Tensor, columns: Tensor) -> Tensor:
        if "value" in self._engines:
            return self._engines["value"].forward(input_ids, columns)
        return self._engines["policy"].forward(input_ids, columns[:1], columns)[1]

    def weights(self) -> Weights | None:
        """The policy's parameters with their version and checksum, at rank 0; None at the others.

        float32, or the bits of bfloat16 as uint16 where that is the learner's precision (`weights.load_into` takes
        both). One tensor at a time is gathered.
        """
        gathered = self._engines["policy"].gather(self._network.policy)
        arrays = {name: to_array(tensor) for name, tensor in gathered if self.rank == 0}
        return Weights(self.version, checksum(arrays), arrays) if self.rank == 0 else None

    def _finite_weights(self) -> bool:
        """Whether all weights of all ranks and engines are finite. Collective."""
        faults = sum(not engine.finite_weights() for engine in self._engines.values())
        total = torch.tensor(float(faults), device=self._device)
        dist.all_reduce(total, dist.ReduceOp.SUM)
        return not total

    def save_model(self, folder: Path) -> None:
        """Writes a `from_pretrained` folder of policy and tokenizer; when this returns, on any rank, it is whole.

        Raises:
            LearnerError: on all ranks, and nothing is written. The last update failed halfway, or a weight, the value
                network's included, is not finite.
        """
        if self._halfway:
            raise LearnerError("the last update failed after some of its steps: its weights are of no whole iteration")
        check_weights(self._finite_weights(), "nothing is saved")
        gathered = self._engines["policy"].gather(self._network.policy)
        tensors = {name: tensor.cpu().clone() for name, tensor in gathered if self.rank == 0}
        if self.rank == 0:
            self._network.policy.save_pretrained(folder, state_dict=tensors)  # type: ignore[operator]
            load_tokenizer(self._model).save_pretrained(folder)
        dist.barrier()

    def save_value(self, folder: Path) -> None:
        """Writes the value network for `value.load_value`; when this returns, on any rank, it is whole."""
        part: nn.Module
        if self._critic is not None:
            name, part, trunk = "value", self._critic, self._critic.backbone
        elif self._network.head is not None:
            name, part, trunk = "policy", self._network.head, self._network.policy
        else:
            raise LearnerError("this learner has no value network to save")
        gathered = self._engines[name].gather(part)
        tensors = {name: tensor.cpu().clone() for name, tensor in gathered if self.rank == 0}
        if self.rank == 0 and self._value_config is not None:
            write_value(Path(folder), self._value_config, trunk, tensors)
        dist.barrier()

    def save_state(self, folder: Path) -> None:
        """Writes all that `load_state` needs, each rank its shard, into a folder that all ranks see."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, engine in self._engines.items():
            engine.save(folder / name)
        save_random_state(folder / f"random-{self.rank}.safetensors", self._device)
        if self.rank == 0:
            write_state(folder, self.version, self._layout())
        dist.barrier()

    def load_state(self, folder: Path) -> None:
        """Takes up, bit for bit, where `save_state` left off.

        Raises:
            CheckpointError: no such state, a damaged one, or another world size, ZeRO stage, precision or value network
                wrote it.
        """
        folder = Path(folder)
        version = read_version(folder, self._layout())
        random = load_random_state(folder / f"random-{self.rank}.safetensors")
        for name, engine in self._engines.items():
            engine.load(folder / name)
        restore_random_state(random, self._device)
        self.version = version
        dist.barrier()

    def _layout(self) -> dict[str, Any]:
        """The settings that decide what the state looks like, by their names in the config."""
        return {
            "learner.ranks": self.world,
            "learner.zero_stage": self._config.zero_stage,
            "learner.precision": "bf16" if self._bf16 else "fp32",
            "algorithm.value.kind": self._value_config.kind if self._value_config else None,
            "algorithm.value.head": self._value_config.head if self._value_config else None,
        }

    def close(self) -> None:
        """Frees the engines; the process stays joined to the other ranks until it ends."""
        for engine in self._engines.values():
            engine.close()


def _policy_network(policy: nn.Module, value: ValueConfig | None) -> PolicyNetwork:
    if isinstance(value, HeadValueConfig):
        return PolicyNetwork(policy, ValueHead(hidden_size(policy), value.head), value.detach)
    return PolicyNetwork(policy)


def _common_limits(policy: Limits, value: Limits) -> Limits:
    """What both networks take. Raises ModelError where there are tokens that the value network does not know."""
    if value.vocabulary < policy.vocabulary:
        raise ModelError(
            f"the value network knows {value.vocabulary} tokens, the policy {policy.vocabulary}: algorithm.value.init "
            "must be a model with the policy's tokenizer"
        )
    contexts = [limits.context for limits in (policy, value) if limits.context is not None]
    return Limits(policy.vocabulary, min(contexts, default=None))


def _losses(policy: Tensor, value: Tensor) -> Tensor:
    return torch.stack([policy.detach(), value.detach()]).double()
