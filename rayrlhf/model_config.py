"""What a model's files say of it before anything of it is built: the one place that asks its config.

A config.json is a stranger's text: what it claims is held against the weights' own headers first, since building what it
claims could take for ever.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rayrlhf.config import ModelConfig
from rayrlhf.ends import end_tokens
from rayrlhf.errors import ModelError
from rayrlhf.reading import SHOWN, parse_json, printable, read_json, typed_line
from rayrlhf.trust import code_of_model

CONTEXT_NAMES = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length",
    "context_length",
)  # fmt: skip
"""What architectures call the most tokens that they take, the usual first."""
UNSTATED_CONTEXT = 2048
"""Tokens of a model that names no limit, such as a recurrent one, where `model.context` gives none either."""
BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary positions that change for all tokens once a text is longer than the original context."""
LARGEST_CONFIG = 10_000_000  # bytes of a config.json
LARGEST_HEADER = 100_000_000  # bytes, as in safetensors' own reader
UNSEEN_LAYERS = 10_000  # most layers where no header says how many tensors there are
LARGEST_NUMBER = 2**40  # of anything that a config counts

SAMPLE_BYTES, SAMPLES = 65_536, 256  # of each weights file, in its fingerprint

_LAYERS = re.compile(
    r"(^|_)(num_hidden_layers|num_layers|n_layers?|num_(en|de)coder_layers|(en|de)coder_layers|num_blocks)$"
)
_WIDTHS = re.compile(
    r"^(vocab_size|hidden_size|n_embd|d_model|.*intermediate_size|n_inner|d_inner|d_ff|ffn_dim|.*head_dim|n_heads?|"
    r"num_.*heads|(num|n)_.*experts.*|state_size|max_position_embeddings)$"
)


@dataclass(frozen=True, slots=True)
class Held:
    """What the headers of a folder's weights name."""

    tensors: int
    elements: int


def check_claims(folder: Path, name: str) -> None:
    """Holds the numbers of a local model's config.json against the headers of its weights.

    Raises ModelError where it claims more layers than there are tensors, or a width that no weights could have.
    """
    file = folder / "config.json"
    if file.stat().st_size > LARGEST_CONFIG:
        raise ModelError(f"model {name}: its config.json has {file.stat().st_size:,} bytes, which no model needs")
    content = read_json(file, ModelError, finite=False)
    if not isinstance(content, dict):
        raise ModelError(f"model {name}: its config.json does not load: it holds no object")
    check_numbers(content, _held(folder), name)


def check_numbers(content: Mapping[str, Any], held: Held | None, name: str) -> None:
    """Raises ModelError where a config claims what the weights `held` cannot be; None: there is nothing to hold it to."""
    for key, value in _numbers(content):
        shown = f"model {name}: its config.json claims {printable(key)} {value:,}"
        if _LAYERS.search(key) and value < 1:
            raise ModelError(f"{shown}: a model has at least one")
        if _LAYERS.search(key) and value > (UNSEEN_LAYERS if held is None else held.tensors):
            raise ModelError(f"{shown}, and its weights are " + _weights(held))
        if _WIDTHS.search(key) and value > LARGEST_NUMBER:
            raise ModelError(f"{shown}, more than any weights have")
        rows = key in ("vocab_size", "hidden_size", "n_embd", "d_model")
        if rows and held is not None and value > held.elements:
            raise ModelError(f"{shown}, and its weights are " + _weights(held))


def _weights(held: Held | None) -> str:
    return "not there to bear it out" if held is None else f"{held.tensors:,} tensors of {held.elements:,} numbers"


def _numbers(content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Whole numbers by their names, those of parts of the model included."""
    for key, value in content.items():
        if isinstance(value, int) and not isinstance(value, bool):
            yield str(key), value
        elif isinstance(value, dict) and (key.endswith("config") or key in ("decoder", "encoder")):
            yield from _numbers(value)


def _held(folder: Path) -> Held | None:
    """Of all weights in the folder; None where there are none as safetensors, or a header is damaged (the loader says)."""
    headers = [_header(file) for file in _weights_files(folder)]
    if not headers or None in headers:
        return None
    tensors = [entry for header in headers if header for name, entry in header.items() if name != "__metadata__"]
    return Held(len(tensors), sum(_elements(entry) for entry in tensors))


def _weights_files(folder: Path, *patterns: str) -> list[Path]:
    """By their names; a pipe is none, and would never be read to its end."""
    found = (file for pattern in patterns or ("*.safetensors",) for file in folder.glob(pattern))
    return sorted(file for file in found if file.is_file())


def _elements(entry: Any) -> int:
    count = 1
    for length in entry.get("shape", []) if isinstance(entry, dict) else []:
        count *= length if isinstance(length, int) else 1
    return count


def _header(file: Path) -> dict[str, Any] | None:
    try:
        with open(file, "rb") as opened:
            [length] = struct.unpack("<Q", opened.read(8))
            if length > min(LARGEST_HEADER, file.stat().st_size):
                return None
            content = parse_json(opened.read(length), str(file), ModelError)
    except (OSError, struct.error, ModelError):
        return None
    return content if isinstance(content, dict) else None


def other_shapes(factory: Any, path: str | Path, **options: Any) -> str:
    """The first tensor of a folder's weights that has not the shape which the model's config gives it; "" where none is
    found. Nothing is allocated: the model is built without memory."""
    headers = [_header(file) or {} for file in _weights_files(Path(path))]
    try:
        trust = options.get("trust_remote_code", False)
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        with torch.device("meta"):
            expected = factory.from_config(config, trust_remote_code=trust).state_dict()
        for key, entry in ((key, entry) for header in headers for key, entry in header.items() if key in expected):
            wanted = list(expected[key].shape)
            if wanted != entry["shape"]:
                return f"{printable(key)} is of shape {entry['shape']}, and its config.json makes it {wanted}"
    except Exception:  # what is wrong is more than shapes, and is told as it was met
        return ""
    return ""


def fingerprint(folder: Path) -> dict[str, str]:
    """Names what a local model is: its config, and its weights by their headers and samples of their bytes. Training
    changes all weights, so what a folder's weights are is told without reading all of them."""
    weights = hashlib.sha256()
    for file in _weights_files(folder, "*.safetensors", "*.bin"):
        size = file.stat().st_size
        weights.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as opened:
            for place in range(0, size, max(SAMPLE_BYTES, size // SAMPLES)):
                opened.seek(place)
                weights.update(opened.read(SAMPLE_BYTES))
    config = hashlib.sha256((folder / "config.json").read_bytes())
    return {"config": config.hexdigest()[:16], "weights": weights.hexdigest()[:16]}


def read_model_config(config: ModelConfig, path: str) -> PretrainedConfig:
    """The config of the causal language model at `path`, a folder or a hub name.

    Raises ModelError where it does not load, or is of a model that is no causal language model.
    """
    loaded = config_of_model(f"model {config.path}", path, config.trust_remote_code)
    own = "AutoModelForCausalLM" in (getattr(loaded, "auto_map", None) or {})
    kinds = {loaded.model_type, loaded.get_text_config(decoder=True).model_type}
    if not own and not kinds & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise ModelError(
            f"model {config.path}: {printable(loaded.model_type) or 'its architecture'} is no causal language model; "
            "give one such as Llama, Qwen, Gemma or GPT-2"
        )
    if classifier := classifier_of(loaded):
        raise ModelError(
            f"model {config.path}: this is a reward model ({printable(classifier)}), which scores texts and writes none; "
            "give the language model that it was made from"
        )
    return loaded


def config_of_model(name: str, path: str, trusted: bool) -> PretrainedConfig:
    """The config of the model at `path`, a folder or a hub name. Raises ModelError, which calls it `name`."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trusted)
    except Exception as error:
        raise ModelError(f"{name}: its config.json does not load: {why_not(path, trusted, error)}") from error


def classifier_of(config: PretrainedConfig) -> str:
    """The architecture of a sequence classifier, as reward models are; "" of any other model."""
    given = config.architectures
    names = [str(name) for name in given] if isinstance(given, list | tuple) else []
    return names[0] if names and all(name.endswith("ForSequenceClassification") for name in names) else ""


def stated_context(config: PretrainedConfig) -> int | None:
    """The most tokens a model takes, prompt and response together; None where its config names no limit.

    Where longer texts change what the positions of all their tokens mean, the original context is the limit: a batch's
    longest text would change the numbers of the others.
    """
    text = config.get_text_config(decoder=True)
    named = (getattr(text, name, None) for name in CONTEXT_NAMES)
    stated = next((value for value in named if isinstance(value, int) and value >= 2), None)
    rotary = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if stated is None or not isinstance(rotary, dict) or rotary.get("rope_type", rotary.get("type")) not in BY_LENGTH:
        return stated
    original = rotary.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
    return min(stated, original) if isinstance(original, int) and original >= 2 else stated


def context_length(config: ModelConfig, path: str) -> int:
    """The most tokens of prompt and response together: `model.context`, or what the model's config names.

    Raises ModelError where `model.context` is more than that.
    """
    stated = stated_context(read_model_config(config, path))
    if config.context is not None and stated is not None and config.context > stated:
        raise ModelError(
            f"model.context {config.context} is more than the {stated} tokens that model {config.path} takes"
        )
    return config.context or stated or UNSTATED_CONTEXT


def model_ends(config: ModelConfig, path: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All tokens that end what the model says, the tokenizer's end-of-sequence token first.

    Raises ModelError where its files name as an end what is no token's number.
    """
    file = "generation_config.json"
    try:
        generation = GenerationConfig.from_pretrained(path)
    except Exception:  # it has none of its own that can be read: what its config says goes for it
        file = "config.json"
        generation = GenerationConfig.from_model_config(read_model_config(config, path))
    try:
        return end_tokens(tokenizer, generation)
    except (TypeError, ValueError) as error:
        shown = printable(repr(generation.eos_token_id))[:SHOWN]
        raise ModelError(
            f"model {config.path}: the eos_token_id of its {file} is {shown}: write a token's number, or a list of them"
        ) from error


def why_not(path: str | Path, trusted: bool, error: Exception) -> str:
    """Why a model did not load: where it brings code that was not run, that and who may say otherwise."""
    code = [] if trusted else code_of_model(str(path))
    if not code and "trust_remote_code" not in str(error):
        return typed_line(error)
    named = printable(", ".join(entry.what for entry in code))[:SHOWN]
    return (
        f"it brings Python code of its own{f' ({named})' if named else ''}, which was not run. If you know what it does, "
        "name the folder or model with --trust, or train with model.trust_remote_code=true"
    )
