"""Which model a name stands for, and what is answered where it stands for none; what its files may claim."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import transformers as hf
from huggingface_hub import constants

from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.config import ModelConfig
from rayrlhf.errors import ModelError
from rayrlhf.evaluate import find_subject
from rayrlhf.generate import find_model
from rayrlhf.model_config import UNSTATED_CONTEXT, check_claims, fingerprint, read_model_config, stated_context
from rayrlhf.model_paths import _tell, reach_hub, resolve_model
from rayrlhf.policy import check_policy, context_length, end_ids, load_policy, load_tokenizer
from rayrlhf.trust import code_of_model
from tests.tiny_models import build_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_tiny_model(tmp_path / "model")


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A run's folder with checkpoints after 1 and 2 iterations."""
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=5, keep_trainer_state=1)
    (tmp_path / "run" / "config.yaml").write_text("name: run\n")
    for iteration in (1, 2):
        partial = store.begin(iteration)
        shutil.copytree(model, partial / "model")
        (partial / "trainer").mkdir()
        (partial / "trainer" / "state").write_text("x")
        store.commit(partial, iteration, {})
    return tmp_path / "run"


def changed(model: Path, **entries: object) -> ModelConfig:
    """The model with other entries in its config.json; None takes one away."""
    content = json.loads((model / "config.json").read_text()) | entries
    (model / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return ModelConfig(path=str(model))


def test_a_runs_or_checkpoints_model_is_taken_and_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = str((run / "checkpoints/000002/model").resolve())
    _tell.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert resolve_model(str(run)) == newest
        assert resolve_model(str(run / "checkpoints")) == newest
        assert resolve_model(str(run / "checkpoints/000001")) == newest.replace("000002", "000001")
        assert resolve_model(str(run)) == newest
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert str(run / "checkpoints/000002/model") in said[0]


def test_a_damaged_checkpoint_is_no_model(run: Path) -> None:
    (run / "checkpoints/000001/model/config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"model/config.json has 2 bytes"):
        resolve_model(str(run / "checkpoints/000001"))


def test_a_folder_around_models_names_them(tmp_path: Path, model: Path, run: Path) -> None:
    with pytest.raises(ModelError, match=f"no config.json.*there are models in {re.escape(str(model))}"):
        resolve_model(str(tmp_path))
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="the folder of a run that has no checkpoint yet"):
        resolve_model(str(run))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("models/lamma", r"model models/lamma: no such folder; did you mean models/llama\?"),
        ("models/zzz", r"no such folder; in models there are llama, qwen"),
        ("./lama/model", r"no such folder; in \. there are models"),
        ("/nowhere/at/all", r"model /nowhere/at/all: no such folder"),
        ("", "names no model"),
        ("x" * 5000, "this is no path"),
        ("a\0b", "names no model"),
    ],
)
def test_what_looks_local_is_answered_with_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, answer: str
) -> None:
    """No hub is asked: the name of a folder that is there comes first."""
    for folder in ("llama", "qwen"):
        (tmp_path / "models" / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match=answer) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_one_line_after_one_retry(tmp_path: Path) -> None:
    """What answers here is no hub: it hangs up at once, and is asked twice."""
    asked: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, address = server.accept()
                    asked.append(address)
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        hub = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub")}
        done = subprocess.run(
            [sys.executable, "-m", "rayrlhf", "generate", "tiny-storys"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.match(
        r"error: model tiny-storys: there is no folder .*did you mean tiny-stories\?\), and the hub", done.stderr
    )
    assert "cannot be reached" in done.stderr
    assert 2 <= len(asked) <= 4  # a client may open a connection anew within one try


def test_a_hub_that_is_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reach_hub.cache_clear()
    with pytest.raises(ModelError, match="the hub is off"):
        resolve_model("someone/some-model")


@pytest.mark.parametrize(
    ("entries", "answer"),
    [
        ({"num_hidden_layers": 10**9}, "claims num_hidden_layers 1,000,000,000, and its weights are 20 tensors"),
        ({"num_hidden_layers": -3}, "claims num_hidden_layers -3: a model has at least one"),
        ({"vocab_size": 10**9}, "claims vocab_size 1,000,000,000, and its weights are 20 tensors"),
        ({"max_position_embeddings": 10**15}, "more than any weights have"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "claims num_hidden_layers 1,000,000,000"),
        ({"intermediate_size": 65}, r"mlp\.\w+\.weight is of shape \[\d+, \d+\], and its config.json makes it"),
        ({"num_hidden_layers": 3}, r"lacks weights and would start at random: model\.layers\.2\."),
    ],
)
def test_what_a_config_claims_is_held_against_the_weights(
    model: Path, entries: dict[str, object], answer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line, and nothing is built of what cannot be."""
    config = changed(model, **entries)
    with pytest.raises(ModelError, match=answer) as caught:
        load_policy(config)
    assert "\n" not in str(caught.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize("value", ["[0.0, Infinity]", "[0.0, -Infinity]", "NaN"])
def test_a_config_with_infinities_is_one_of_a_model(model: Path, value: str) -> None:
    """`Infinity` stands in files that transformers wrote before it encoded infinities."""
    text = (
        (model / "config.json")
        .read_text()
        .replace("{", '{"time_step_limit": ' + value + ', "auto_map": {"A": "b.C"},', 1)
    )
    (model / "config.json").write_text(text)
    assert resolve_model(str(model)) == str(model.resolve())
    assert [code.what for code in code_of_model(str(model))] == ["b.C"]


def test_a_pipe_among_the_weights_is_passed_over(model: Path) -> None:
    before = fingerprint(model)
    os.mkfifo(model / "other.safetensors")
    os.mkfifo(model / "other.bin")
    check_claims(model, "mine")
    assert fingerprint(model) == before
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        load_policy(ModelConfig(path=str(model)))


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (hf.GPT2Config(n_positions=96), 96),
        (hf.MptConfig(max_seq_len=77), 77),
        (hf.LlamaConfig(max_position_embeddings=88), 88),
        (hf.BloomConfig(seq_length=66), 66),
        (hf.BloomConfig(n_ctx=55), 55),
        (hf.MambaConfig(context_length=44), 44),
        (hf.BloomConfig(), None),
        (hf.MambaConfig(), None),
        (hf.RecurrentGemmaConfig(), None),
        (hf.XLNetConfig(), None),
    ],
)
def test_the_context_is_read_by_the_names_in_use(config: hf.PretrainedConfig, context: int | None) -> None:
    assert stated_context(config) == context


def test_a_context_that_no_config_names_is_the_settings(tmp_path: Path) -> None:
    hf.MambaConfig(hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    assert context_length(ModelConfig(path=str(tmp_path))) == UNSTATED_CONTEXT
    assert context_length(ModelConfig(path=str(tmp_path), context=300)) == 300


def test_a_shorter_context_is_a_setting_and_a_longer_one_an_error(model: Path) -> None:
    assert context_length(ModelConfig(path=str(model), context=20)) == 20
    with pytest.raises(ModelError, match=r"model\.context 200 is more than the 128 tokens"):
        context_length(ModelConfig(path=str(model), context=200))


@pytest.mark.parametrize(
    ("config", "answer"),
    [
        (hf.T5Config(), "t5 is no causal language model"),
        (hf.LlamaConfig(architectures=["LlamaForSequenceClassification"]), "this is a reward model"),
    ],
)
def test_what_is_no_causal_language_model_is_called_so(
    tmp_path: Path, config: hf.PretrainedConfig, answer: str
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=answer):
        read_model_config(ModelConfig(path=str(tmp_path)), str(tmp_path))
    with pytest.raises(ModelError, match=answer):
        context_length(ModelConfig(path=str(tmp_path)))


def test_the_ends_are_the_tokenizers_and_the_generation_configs(model: Path) -> None:
    config = ModelConfig(path=str(model))
    tokenizer = load_tokenizer(config)
    for named, ends in (([7, 9], (0, 7, 9)), (5, (0, 5)), ([9, 0], (0, 9)), (None, (0,))):
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        assert end_ids(config, tokenizer) == ends
    (model / "generation_config.json").unlink()
    assert end_ids(config, tokenizer) == (0,)
    assert end_ids(changed(model, eos_token_id=[0, 8]), tokenizer) == (0, 8)


@pytest.mark.parametrize("named", ["<|im_end|>", [[1]], {"a": 1}, 2.5, ["7"]])
def test_an_end_that_is_no_token_is_named(model: Path, named: object) -> None:
    config = ModelConfig(path=str(model))
    tokenizer, policy = load_tokenizer(config), load_policy(config)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    with pytest.raises(
        ModelError, match=rf"{model}: the eos_token_id of its generation_config.json is .*{re.escape(repr(named))}"
    ):
        check_policy(config, policy, tokenizer)


def test_a_generation_config_that_is_none_is_passed_over(model: Path) -> None:
    (model / "generation_config.json").write_text("[1]")
    config = changed(model, eos_token_id=[0, 8])
    assert end_ids(config, load_tokenizer(config)) == (0, 8)


def test_a_checkpoint_given_as_a_model_is_found_once(run: Path) -> None:
    """To find it all its files are held against their checksums, which takes minutes where they are large."""
    checkpoint, model = str(run / "checkpoints/000001"), str((run / "checkpoints/000001/model").resolve())
    assert find_model(checkpoint)[0].path == model
    assert find_subject(checkpoint, "alliteration").model.path == model


def test_a_fingerprint_tells_configs_and_weights_apart(model: Path) -> None:
    before = fingerprint(model)
    assert fingerprint(model) == before
    loaded = load_policy(ModelConfig(path=str(model)))
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1e-4)
    loaded.save_pretrained(model)  # type: ignore[operator]
    trained = fingerprint(model)
    assert trained["weights"] != before["weights"]
    changed(model, rms_norm_eps=1e-3)
    assert fingerprint(model)["config"] != trained["config"]
    assert fingerprint(model)["weights"] == trained["weights"]


def test_generate_answers_a_missing_run_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs" / "none-such").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "rayrlhf", "generate", "runs/nope"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: model runs/nope: no such folder; in runs there are none-such\n"
