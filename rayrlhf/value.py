"""Value networks: a scalar head on a backbone's hidden states, in training, and read again without DeepSpeed.

Of a network of its own a value folder holds all (`value.json`, `value.safetensors`); of a head on the policy's trunk it
holds the head, and the policy's model folder is the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig

from rayrlhf.algorithm_config import SeparateValueConfig, ValueConfig
from rayrlhf.config import ModelConfig
from rayrlhf.errors import CheckpointError, ModelError
from rayrlhf.heads import HeadLinear
from rayrlhf.micro_batches import collate_queries, plan_micro_batches
from rayrlhf.model_config import Held, check_numbers, classifier_of, config_of_model, stated_context
from rayrlhf.packed_sequences import Limits, PackedTokens, pack_tokens
from rayrlhf.policy import load_whole, resolve_model
from rayrlhf.reading import json_value, read_json, typed, typed_line
from rayrlhf.reward_models.sidecar import SIDECAR, read_sidecar
from rayrlhf.types import FloatArray, ValueQuery

DESCRIPTION, TENSORS = "value.json", "value.safetensors"
FIRST_LAYER = "layers.0.weight"  # of a head: its width is that of the hidden states
HEAD_SEED = 0  # of the inner layer of an MLP head: the output layer starts at 0, so that V does
HeadKind = Literal["linear", "mlp"]


class ValueHead(nn.Module):
    """Hidden states [..., H] -> values [...] in fp32: linear, or linear (2H), ReLU, linear (SPEC TW-17). It starts at
    V = 0."""

    def __init__(self, hidden_size: int, kind: HeadKind):
        super().__init__()
        self.kind = kind
        width = hidden_size if kind == "linear" else 2 * hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(HEAD_SEED)
            inner = [] if kind == "linear" else [HeadLinear(hidden_size, width), nn.ReLU()]
            self.layers = nn.Sequential(*inner, HeadLinear(width, 1))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    @property
    def output(self) -> nn.Linear:
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden).squeeze(-1)


class ValueNetwork(nn.Module):
    """A backbone that gives hidden states, and a head on them."""

    def __init__(self, backbone: nn.Module, head: ValueHead):
        super().__init__()
        count_pad_embedding(backbone)
        self.backbone = backbone
        self.head = head

    @property
    def limits(self) -> Limits:
        return limits_of(self.backbone)

    def forward(self, input_ids: Tensor, columns: Tensor) -> Tensor:
        """V of the prefixes that end with each of the columns [D]: input_ids [B, L] -> [B, D]."""
        hidden = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.head(hidden[:, columns])


def count_pad_embedding(module: nn.Module) -> None:
    """An embedding gives its padding id no gradient. Here masks say what padding is, and where the pad id is also the
    EOS or BOS id it stands in real text (SPEC X-2)."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            part.padding_idx = None


@torch.no_grad()
def hidden_size(model: nn.Module) -> int:
    """Width of the hidden states that a trunk, or a policy's trunk, gives: some project them to another than their
    layers' own. Asked of the model itself, by one token."""
    trunk = getattr(model, "base_model", model)
    device = next(trunk.parameters()).device
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    return int(trunk(input_ids=ids, use_cache=False).last_hidden_state.shape[-1])


def limits_of(model: nn.Module) -> Limits:
    """What a transformers model takes."""
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    return Limits(rows, stated_context(model.config))  # type: ignore[arg-type]


def build_value_network(config: SeparateValueConfig, policy: ModelConfig) -> ValueNetwork:
    """The value network that a run starts from, whole and in evaluation mode (no dropout).

    `config.init` names its backbone, or a reward model: a sequence classifier with one label, whose score is then the
    head, with the gain and bias that a reward model's folder has beside it. Null is the policy's own start.

    Raises:
        ModelError: it does not load, lacks weights, is not causal, or its head is not the one that `config` asks for.
    """
    source = policy.model_copy(update={"path": resolve_model(policy.path if config.init is None else config.init)})
    if classifier_of(config_of_model(f"value network {source.path}", source.path, source.trust_remote_code)):
        network = _from_reward_model(source, config.head)
    else:
        backbone = _load_model(AutoModel, source)
        network = ValueNetwork(backbone, ValueHead(hidden_size(backbone), config.head))
    _check_causal(network.eval(), source.path)
    return network


def _from_reward_model(source: ModelConfig, kind: HeadKind) -> ValueNetwork:
    model = _load_model(AutoModelForSequenceClassification, source)
    score = getattr(model, "score", None)
    if model.num_labels != 1 or not isinstance(score, nn.Linear):
        raise ModelError(
            f"model {source.path} classifies into {model.num_labels} labels: a value network starts from a reward model "
            "with one label and a linear `score`, or from a language model"
        )
    if kind != "linear":
        raise ModelError(f"model {source.path} is a reward model with a linear head: set algorithm.value.head: linear")
    head = ValueHead(score.in_features, kind)
    folder, gain, bias = Path(source.path), 1.0, 0.0
    if (folder / SIDECAR).is_file():
        sidecar = read_sidecar(folder)
        gain, bias = sidecar.gain, sidecar.bias
    with torch.no_grad():
        head.output.weight.copy_(gain * score.weight)
        head.output.bias.fill_(bias)
        if score.bias is not None:
            head.output.bias.add_(gain * score.bias)
    return ValueNetwork(model.base_model, head)


def _load_model(factory: Any, source: ModelConfig) -> Any:
    options = {"dtype": torch.float32, "trust_remote_code": source.trust_remote_code}
    return load_whole(factory, source.path, f"value network {source.path}", **options)


@torch.no_grad()
def _check_causal(network: ValueNetwork, path: str) -> None:
    """A backbone that looks ahead would know what the policy is about to do, and see the padding."""
    one, other = (
        network.backbone(input_ids=torch.tensor([[0, token]]), use_cache=False).last_hidden_state[0, 0]
        for token in (0, 1)
    )
    if not torch.equal(one, other):
        raise ModelError(
            f"model {path}: its tokens see those after them; a value network needs a causal language model"
        )


def compute_values(
    forward: Callable[[Tensor, Tensor], Tensor],
    tokens: PackedTokens,
    batches: Iterable[Sequence[int]],
    device: torch.device,
) -> Tensor:
    """The queries of `batches`, a micro-batch each, through a network: [values of all queries], 0 where not asked."""
    values = torch.zeros(int(tokens.scored_offsets[-1]), device=device)
    with torch.no_grad():
        for indices in batches:
            batch = collate_queries(tokens, indices).to(device)
            values[batch.numbers] = forward(batch.input_ids, batch.columns)[batch.rows, batch.places].float()
    return values


def split_values(values: Tensor, tokens: PackedTokens) -> list[FloatArray]:
    """[values of all queries] -> [S] each."""
    return np.split(values.cpu().numpy(), tokens.scored_offsets[1:-1])


def query_values(
    network: ValueNetwork, queries: Sequence[ValueQuery], tokens_per_batch: int = 8192
) -> list[FloatArray]:
    """The values that `queries` ask for, [S] each, of a network outside of training.

    Raises:
        LearnerError: names the first malformed query.
    """
    if not queries:
        return []
    tokens = pack_tokens(queries, "value query", network.limits)
    plan = plan_micro_batches(tokens.lengths.tolist(), 1, tokens_per_batch)
    device = network.head.output.weight.device
    return split_values(compute_values(network, tokens, plan.ranks[0], device), tokens)


def write_value(folder: Path, config: ValueConfig, trunk: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Writes a value folder. `tensors` are the head's alone where `config` is of a head on the policy's trunk."""
    first = next(tensor for name, tensor in tensors.items() if name.endswith(FIRST_LAYER))
    description: dict[str, Any] = {"kind": config.kind, "head": config.head, "hidden_size": first.shape[1]}
    if config.kind == "separate":
        description["backbone"] = json_value(trunk.config.to_json_string(use_diff=False))  # type: ignore[union-attr, operator]
    else:
        description["trunk"] = "the policy: load its model folder and hand it to rayrlhf.value.load_value"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / TENSORS)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))


@dataclass(frozen=True, slots=True)
class _Description:
    """What a value folder says of its network."""

    kind: Literal["separate", "head"]
    head: HeadKind
    hidden_size: Annotated[int, Field(strict=True, gt=0, le=1_000_000)]
    backbone: dict[str, Any] = field(default_factory=dict)


def load_value(folder: Path, policy: nn.Module | None = None, device: str = "cpu") -> ValueNetwork:
    """Reads a value folder into a network in evaluation mode; `policy` is the trunk where the folder holds a head alone.

    Raises:
        CheckpointError: the folder holds no value network that can be read, or `policy` is missing or does not fit.
    """
    folder = Path(folder)
    for name in (DESCRIPTION, TENSORS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no value network that can be read: there is no {name} in it")
    try:
        found = read_json(folder / DESCRIPTION, CheckpointError)
        description = typed(_Description, found, str(folder / DESCRIPTION), CheckpointError)
        tensors = load_file(folder / TENSORS)
        first = next(tensor for name, tensor in tensors.items() if name.endswith(FIRST_LAYER))
        head = ValueHead(first.shape[1], description.head)
        if description.kind == "head":
            if policy is None:
                raise CheckpointError(f"{folder} holds a head on the policy's trunk: load the policy too")
            network = ValueNetwork(policy.base_model, head)  # type: ignore[arg-type]
            head.load_state_dict(tensors)
        else:
            held = Held(len(tensors), sum(tensor.numel() for tensor in tensors.values()))
            check_numbers(description.backbone, held, str(folder))
            decoded = PreTrainedConfig._decode_special_floats(description.backbone)  # JSON has no infinities
            config = AutoConfig.for_model(**decoded)
            network = ValueNetwork(AutoModel.from_config(config, trust_remote_code=False), head)
            found = network.load_state_dict(tensors, strict=False)  # buffers and tied names are not among the tensors
            unfit = {*found.unexpected_keys, *(dict(network.named_parameters()).keys() & found.missing_keys)}
            if unfit:
                raise ValueError(f"its tensors do not fit its backbone: {', '.join(sorted(unfit)[:5])}")
    except CheckpointError:
        raise
    except Exception as error:  # of transformers' as well, which builds what the folder claims
        raise CheckpointError(f"{folder} holds no value network that can be read: {typed_line(error)}") from error
    return network.to(device).eval()
