"""The folder of a reward model: what `AutoModelForSequenceClassification` loads, its tokenizer, and a sidecar.

The gain is folded into the head's weights; the sidecar `reward_model.json` has the bias that is to be added to the
loaded model's score, the text format and the task that it was normalised on. Weights are safetensors, all else is JSON:
nothing that is loaded is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from rayrlhf.errors import ModelError
from rayrlhf.model_config import check_claims, first_line, stated_context
from rayrlhf.policy import load_whole
from rayrlhf.reward_models.network import RewardNetwork
from rayrlhf.reward_models.sidecar import Sidecar, read_sidecar, with_scalars, write_sidecar
from rayrlhf.reward_models.text_format import TextFormat

SCALARS = ("gain", "bias", "log_tie")  # of the network, beside its classifier
_PREFIX = "classifier."


def write_start(folder: Path, network: RewardNetwork, tokenizer: PreTrainedTokenizerBase, sidecar: Sidecar) -> None:
    """Writes a whole folder; `write_reward_model` and `finish_reward_model` make others of it."""
    network.classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_sidecar(folder, sidecar)


def write_reward_model(folder: Path, network: RewardNetwork, start: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Writes trained tensors, named as `network` names them; what is no tensor stays as it is in `start`."""
    own = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    network.classifier.save_pretrained(folder, state_dict=own)
    AutoTokenizer.from_pretrained(start, trust_remote_code=False).save_pretrained(folder)
    write_sidecar(folder, with_scalars(read_sidecar(start), {key: float(state[key]) for key in SCALARS}))


def finish_reward_model(folder: Path, network: RewardNetwork, sidecar: Sidecar) -> None:
    """Folds the gain into the head, in memory and in the folder, and writes the sidecar."""
    network.fold_gain()
    network.classifier.save_pretrained(folder)
    write_sidecar(folder, with_scalars(sidecar, scalars_of(network)))


def scalars_of(network: RewardNetwork) -> dict[str, float]:
    return {key: float(getattr(network, key).detach()) for key in SCALARS}


def load_reward_network(folder: Path) -> RewardNetwork:
    """The network in evaluation mode, in float32 on the CPU. Raises ModelError."""
    sidecar = read_sidecar(folder)
    if (folder / "config.json").is_file():
        check_claims(folder, str(folder))
    classifier = load_whole(AutoModelForSequenceClassification, folder, f"reward model {folder}", dtype=torch.float32)
    _check_format(folder, sidecar.text_format, classifier)
    return RewardNetwork(classifier, sidecar.gain, sidecar.bias, sidecar.log_tie).eval()


def _check_format(folder: Path, text_format: TextFormat, classifier: Any) -> None:
    """Raises ModelError where texts of the format would be more, or other, tokens than the model has a place for."""
    rows, most = classifier.get_input_embeddings().weight.shape[0], stated_context(classifier.config)
    if max(text_format.start, default=0) >= rows:
        raise ModelError(f"reward model {folder}: texts start with {list(text_format.start)}, it has {rows} tokens")
    if len(text_format.start) >= text_format.context or (most is not None and text_format.context > most):
        raise ModelError(
            f"reward model {folder}: its texts have up to {text_format.context} tokens, {len(text_format.start)} of them "
            f"before each, and it takes {most or 'any number'}"
        )


def load_reward_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises ModelError."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"reward model {folder}: its tokenizer does not load: {first_line(error)}") from error
    return tokenizer
