"""Where a text ends for a reward model: a text that was written down and the same one as it was sampled are one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayrlhf.config import ModelConfig
from rayrlhf.policy import end_ids, load_tokenizer, resolve_model, vocabulary_fingerprint
from rayrlhf.reward_models.folder import scalars_of, write_start
from rayrlhf.reward_models.network import new_reward_network
from rayrlhf.reward_models.scoring import RewardScorer
from rayrlhf.reward_models.sidecar import SIDECAR, Sidecar, read_sidecar, with_scalars
from rayrlhf.reward_models.text_format import TextFormat

TINY, QUERY, ANSWER = ModelConfig(), "Once upon a time", " there was a bear."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained reward model."""
    made, tokenizer = tmp_path_factory.mktemp("reward") / "model", load_tokenizer(TINY)
    text_format = TextFormat.of(tokenizer, 512, end_ids(TINY, tokenizer))
    network = new_reward_network(resolve_model(TINY.path), tokenizer, seed=0).eval()
    write_start(made, network, tokenizer, with_scalars(Sidecar(0.0, text_format), scalars_of(network)))
    return made


def score(scorer: RewardScorer, ids: np.ndarray) -> float:
    vocabulary = vocabulary_fingerprint(load_tokenizer(TINY))
    encoded, _ = scorer.text_format.encode(scorer.tokenizer, QUERY, ANSWER, ids, vocabulary)
    return float(scorer._score([encoded])[0])


def test_a_sampled_end_does_not_change_a_score(folder: Path) -> None:
    scorer, tokenizer = RewardScorer.load(folder), load_tokenizer(TINY)
    ids = np.array(tokenizer(ANSWER, add_special_tokens=False)["input_ids"])
    assert scorer.text_format.ends == (tokenizer.eos_token_id,)
    [written] = scorer.score_texts([(QUERY, ANSWER)])
    assert score(scorer, ids) == written
    assert score(scorer, np.append(ids, tokenizer.eos_token_id)) == written


def test_only_ends_at_the_end_are_left_out() -> None:
    tokenizer = load_tokenizer(TINY)
    text_format = TextFormat.of(tokenizer, 512, (0, 7))
    assert text_format.ends == (0, 7)

    def read(*ids: int) -> list[int]:
        encoded, _ = text_format.encode(tokenizer, "", "", np.array(ids, np.int64), text_format.vocabulary)
        return encoded[len(text_format.start) :].tolist()

    assert read(5, 0, 6, 7) == [5, 0, 6]
    assert read(5, 7, 0) == [5]
    assert read(0) == []
    assert read() == []


def test_a_folder_of_before_reads_ends_as_it_was_trained_to(folder: Path, tmp_path: Path) -> None:
    """Its weights have seen them."""
    content = json.loads((folder / SIDECAR).read_text())
    assert content["text_format"].pop("ends") == [0]
    (tmp_path / SIDECAR).write_text(json.dumps(content))
    before = read_sidecar(tmp_path).text_format
    assert before == replace(read_sidecar(folder).text_format, ends=())
    tokenizer = load_tokenizer(TINY)
    encoded, _ = before.encode(tokenizer, "", "", np.array([5, 0]), before.vocabulary)
    assert encoded[-2:].tolist() == [5, 0]
