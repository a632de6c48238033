"""A reward model's network and folder: the head, padding, the export to transformers, normalisation, its task."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rayrlhf.config import ModelConfig, RewardPart
from rayrlhf.config_loading import load_config
from rayrlhf.errors import ConfigError, LearnerError, ModelError
from rayrlhf.policy import load_tokenizer, resolve_model, vocabulary_fingerprint
from rayrlhf.reward_contract import example_trajectory
from rayrlhf.reward_mixture import RewardMixture
from rayrlhf.reward_models.folder import finish_reward_model, load_reward_network, scalars_of, write_start
from rayrlhf.reward_models.network import PAD, RewardNetwork, new_reward_network, padded, score_sequences
from rayrlhf.reward_models.normalisation import Scale, normalise, scale_of
from rayrlhf.reward_models.scoring import RewardScorer
from rayrlhf.reward_models.sidecar import SIDECAR, Sidecar, read_sidecar, with_scalars
from rayrlhf.reward_models.task_form import check_task, task_of
from rayrlhf.reward_models.text_format import TextFormat
from rayrlhf.run_parts import reward_parts
from rayrlhf.stories import generate_stories

TINY = load_config("alliteration").model


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str]]:
    """100 (query, response) pairs of mixed lengths; some end in the letters of EOS, some are empty."""
    stories = generate_stories(98, seed=3)
    pairs = [("Once upon a time", story[: 20 + 7 * i]) for i, story in enumerate(stories)]
    return [*pairs, ("", ""), ("A query alone", "")]


@pytest.fixture(scope="module")
def sequences(texts: list[tuple[str, str]]) -> list[np.ndarray]:
    """Their ids; every third one ends with a real EOS."""
    tokenizer = load_tokenizer(TINY)
    text_format = TextFormat.of(tokenizer, 512)
    encoded = [text_format.encode(tokenizer, query, text)[0] for query, text in texts]
    eos = np.array([tokenizer.eos_token_id])
    return [np.concatenate([ids, eos]) if i % 3 == 0 else ids for i, ids in enumerate(encoded)]


@pytest.fixture
def network(sequences: list[np.ndarray]) -> RewardNetwork:
    made = new_reward_network(resolve_model(TINY.path), load_tokenizer(TINY), seed=0).eval()
    normalise(made, sequences)
    return made


@pytest.fixture
def folder(tmp_path: Path, network: RewardNetwork) -> Path:
    """A finished folder of it."""
    tokenizer = load_tokenizer(TINY)
    text_format = TextFormat.of(tokenizer, 512)
    tokenizer.add_special_tokens({"pad_token": PAD})
    task = task_of(load_config("alliteration"))
    write_start(tmp_path, network, tokenizer, with_scalars(Sidecar(0.0, text_format, task=task), scalars_of(network)))
    finish_reward_model(tmp_path, network, read_sidecar(tmp_path))
    return tmp_path


def test_the_head_is_drawn_as_the_original_draws_it() -> None:
    """LMHP-9: N(0, 1/sqrt(d + 1)), bias 0; LMHP-10: gain 1 and bias 0, both trained."""
    made = new_reward_network(resolve_model(TINY.path), load_tokenizer(TINY), seed=0)
    weight = made.head.weight.detach()
    width = made.head.in_features
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(width + 1), rel=0.25)
    assert made.head.bias is None
    assert (made.gain.item(), made.bias.item()) == (1.0, 0.0)
    assert made.gain.requires_grad
    assert made.bias.requires_grad
    again = new_reward_network(resolve_model(TINY.path), load_tokenizer(TINY), seed=0)
    assert torch.equal(again.head.weight, made.head.weight)


def test_padding_is_never_read(network: RewardNetwork, sequences: list[np.ndarray]) -> None:
    """LMHP-7, GWERN-17 and X-2: whatever stands behind a text, and in whichever batch it is, its score is the same."""
    alone = np.array([score_sequences(network, [ids])[0] for ids in sequences])
    assert np.allclose(score_sequences(network, sequences), alone, atol=1e-5)
    ids, lengths = padded(sequences)
    filled = torch.where(torch.arange(ids.shape[1]) < lengths[:, None], ids, 27)
    with torch.inference_mode():
        assert np.allclose(network(filled, lengths), alone, atol=1e-5)


def test_the_head_reads_the_last_token_that_is_there(network: RewardNetwork, sequences: list[np.ndarray]) -> None:
    """LMHP-9, by hand: the trunk's hidden state of the last token times the head's weights."""
    ids = sequences[30]
    with torch.inference_mode():
        hidden: Any = network.classifier.model(torch.from_numpy(ids)[None]).last_hidden_state[0, -1]  # type: ignore[operator]
        by_hand = network.gain * (hidden @ network.head.weight[0]) + network.bias
    assert score_sequences(network, [ids])[0] == pytest.approx(by_hand.item(), abs=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_scores_in_pieces_have_the_same_gradient(
    network: RewardNetwork, sequences: list[np.ndarray], rows: int
) -> None:
    """LMHP-35: item by item with activations computed anew, for less memory."""
    ids, lengths = padded(sequences[:20])
    whole = torch.autograd.grad(network(ids, lengths).square().sum(), network.head.weight)[0]
    pieces = torch.autograd.grad(network.score_in_pieces(ids, lengths, rows).square().sum(), network.head.weight)[0]
    assert torch.allclose(whole, pieces, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 100])
def test_transformers_loads_the_folder_and_scores_alike(
    folder: Path, network: RewardNetwork, sequences: list[np.ndarray], batch_size: int
) -> None:
    """The class reads the last token that is not the pad: EOS at a text's end is read, and the sidecar's bias is added."""
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bias = json.loads((folder / SIDECAR).read_text())["bias"]
    scores: list[float] = []
    for start in range(0, len(sequences), batch_size):
        batch = tokenizer.pad(
            {"input_ids": [ids.tolist() for ids in sequences[start : start + batch_size]]}, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        scores += (logits[:, 0] + bias).tolist()
    assert np.allclose(scores, score_sequences(network, sequences), atol=1e-5)
    assert np.allclose(scores, score_sequences(load_reward_network(folder), sequences), atol=1e-5)


def test_normalised_scores_have_the_target(network: RewardNetwork, sequences: list[np.ndarray]) -> None:
    """LMHP-12, LMHP-13: mean and population deviation; gain and bias alone change."""
    before = network.head.weight.detach().clone()
    normalise(network, sequences, Scale(3.0, 0.5))
    reached = scale_of(score_sequences(network, sequences))
    assert (reached.mean, reached.std) == (pytest.approx(3.0, abs=1e-4), pytest.approx(0.5, abs=1e-4))
    assert torch.equal(network.head.weight, before)
    assert reached.std == pytest.approx(np.std(score_sequences(network, sequences), ddof=0), abs=1e-5)


def test_scores_that_cannot_be_normalised_are_refused(network: RewardNetwork, sequences: list[np.ndarray]) -> None:
    """LMHP-13: finite, and with a deviation above 0."""
    with pytest.raises(LearnerError, match="scores all 5 samples of the reference alike"):
        normalise(network, [sequences[0]] * 5)
    network.bias.data.fill_(math.nan)
    with pytest.raises(LearnerError, match="not finite"):
        normalise(network, sequences)


def test_text_never_becomes_a_special_token() -> None:
    """GWERN-16: the marker's letters stay letters, a sampled EOS stays EOS; ids of another tokenizer are not taken."""
    tokenizer = load_tokenizer(TINY)
    text_format = TextFormat.of(tokenizer, 512)
    spelled, _ = text_format.encode(tokenizer, "", tokenizer.eos_token)
    assert len(spelled) > 2
    assert tokenizer.eos_token_id not in spelled[1:]
    own = [5, 6, tokenizer.eos_token_id]
    assert text_format.encode(tokenizer, "", "x", own, vocabulary_fingerprint(tokenizer))[0][1:].tolist() == own
    assert text_format.encode(tokenizer, "", "x", own, "another")[0][1:].tolist() == tokenizer("x")["input_ids"]


def test_what_does_not_fit_is_counted() -> None:
    """LMHP-7: the query loses its beginning first, then the response its end."""
    tokenizer = load_tokenizer(TINY)
    text_format = TextFormat(vocabulary_fingerprint(tokenizer), (0,), context=8)
    query = tokenizer(" a b c d e f", add_special_tokens=False)["input_ids"]
    ids, dropped = text_format.encode(tokenizer, " a b c d e f", "", list(range(20, 24)), text_format.vocabulary)
    assert ids.tolist() == [0, *query[-3:], 20, 21, 22, 23]
    assert dropped == len(query) - 3
    ids, dropped = text_format.encode(tokenizer, " a", "", list(range(20, 30)), text_format.vocabulary)
    assert ids.tolist() == [0, *range(20, 27)]
    assert dropped == 4


def test_the_reward_by_its_path_scores_as_the_model_does(folder: Path, texts: list[tuple[str, str]]) -> None:
    """The plugin `reward_model`; it has no state and sees query and response alone (LMHP-36)."""
    mixture = RewardMixture([RewardPart.model_validate({"name": "reward_model", "path": str(folder)})])
    scores = mixture.score([example_trajectory(*pair) for pair in texts[:10]])
    expected = RewardScorer.load(folder).score_texts(texts[:10])
    assert np.allclose([score.total[-1] for score in scores], expected, atol=1e-5)


def test_a_run_on_another_form_of_text_is_refused(folder: Path) -> None:
    """LMHP-36: what the model was trained on is checked when it is loaded into a run."""
    trained = read_sidecar(folder).task
    overrides = [f"reward={{name: reward_model, path: {folder}}}"]
    same = load_config("alliteration", overrides)
    [part] = reward_parts(same)
    assert part.parameters["vocabulary"] == vocabulary_fingerprint(load_tokenizer(TINY))
    assert (part.in_actors, check_task("x", trained, same)) == (1, [])
    other = load_config("alliteration", [*overrides, "response.truncation={text: '.'}"])
    with pytest.raises(ConfigError, match=r"trained on texts of another form \(response"):
        reward_parts(other)
    longer = load_config("alliteration", [*overrides, "rollout.max_new_tokens=32"])
    assert "normalised at max_new_tokens 64, this run has 32" in check_task("x", trained, longer)[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"context": 0}, "text_format.context"),
        ({"context": True}, "text_format.context"),
        ({"start": [10**30]}, "text_format.start.0"),
        ({"start": [-1]}, "text_format.start.0"),
        ({"ends": ["x"]}, "text_format.ends.0"),
        ({"start": [10**6]}, "texts start with"),
        ({"context": 10**6}, "its texts have up to 1000000 tokens"),
        ({"context": 2, "start": [1, 1]}, "its texts have up to 2 tokens, 2 of them before each"),
    ],
)
def test_a_text_format_that_the_model_has_no_place_for_is_named(
    folder: Path, changes: dict[str, object], told: str
) -> None:
    told_before = json.loads((folder / SIDECAR).read_text())
    told_before["text_format"] |= changes
    (folder / SIDECAR).write_text(json.dumps(told_before))
    with pytest.raises(ModelError, match=told):
        load_reward_network(folder)


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_named(folder: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
    tokenizer.add_tokens([f"<{number}>" for number in range(5000)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"its tokenizer has \d+ tokens, its embedding only"):
        RewardScorer.load(folder)


def test_a_folder_that_holds_a_pipe_is_refused_before_a_library_waits_for_it(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    for read in (lambda: RewardScorer.load(folder), lambda: load_tokenizer(ModelConfig(path=str(folder)))):
        with pytest.raises(ModelError, match=r"tokenizer\.json: is no file but a pipe"):
            read()


def test_a_folder_that_is_no_reward_model_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no reward_model\.json is there"):
        read_sidecar(tmp_path / "elsewhere")
    (folder / SIDECAR).write_text('{"version": 99}')
    with pytest.raises(ModelError, match="version 99"):
        read_sidecar(folder)
    (folder / SIDECAR).write_text('{"version": 1}')
    with pytest.raises(ModelError, match="is damaged"):
        load_reward_network(folder)
