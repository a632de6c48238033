"""A label file in lm-human-preferences' format with gwern's own shape, from import to export, a reward model between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from rayrlhf.cli import app
from rayrlhf.preferences.project import open_store
from rayrlhf.reward_models.folder import load_reward_network
from rayrlhf.reward_models.network import score_sequences
from rayrlhf.reward_models.sidecar import read_sidecar
from rayrlhf.types import IntArray
from tests.label_files import gpt2_like

LABELS = Path(__file__).parent / "data" / "labels" / "gwern.json"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of one narrow layer with a vocabulary of GPT-2's size."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = gpt2_like()
    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=len(tokenizer), n_positions=300, n_embd=16, n_layer=1, n_head=2, eos_token_id=50256)
    GPT2LMHeadModel(sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def test_gwerns_labels_go_all_the_way(ray_cluster: None, tmp_path: Path, gpt2: Path) -> None:
    """LMHP-1, LMHP-4, LMHP-7, GWERN-7, GWERN-17: queries of 2 ids, samples of 256, `broken`, ties as two records.

    LMHP-28: plain local paths from end to end, no account and no network.
    """
    project, model, out = tmp_path / "project", tmp_path / "model", tmp_path / "out.json"
    command("labels", "import", LABELS, project, "--tokenizer", gpt2, "--pad-id", 27)
    command("labels", "check", project, "--tokenizer", gpt2)
    told = command(
        "reward-model", project, model, "batch_size=4", "normalisation_samples=16", "automatic_share=0.3",
        "held_out_share=0", f"task.overrides=[model.path={gpt2}, rollout.max_new_tokens=8]",
    )  # fmt: skip
    assert "labels" in told
    assert "automatic comparisons over a share of 0.3" not in told or "left out" in told
    network, text_format = load_reward_network(model), read_sidecar(model).text_format
    with open_store(project) as store:
        vocabulary, items = store.meta()["tokenizer"], list(store.items().values())
    assert vocabulary == text_format.vocabulary
    sequences: list[IntArray] = [
        text_format.encode(gpt2_like(), item.prompt, item.text, item.text_ids, vocabulary)[0] for item in items
    ]
    assert max(map(len, sequences)) <= 1 + 2 + 256
    assert len(set(score_sequences(network, sequences).round(5))) > 10
    command("labels", "export", project, out, "--format", "openai_json", "--tokenizer", gpt2)
    assert json.loads(out.read_text()) == json.loads(LABELS.read_text())
