"""Models from scratch: texts of a game, a vocabulary made of them, a random model, the same bytes each time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rayrlhf.agent_text import make_prompter
from rayrlhf.config import AgentConfig, ModelConfig, ScratchConfig
from rayrlhf.environments import EnvironmentSettings, LocalEnvironments
from rayrlhf.errors import ConfigError, EpisodeError
from rayrlhf.policy import check_vocabulary, context_length, load_policy, load_tokenizer
from rayrlhf.scratch import environment_texts, make_scratch_model
from rayrlhf.types import GameState
from tests.corridor import OBJECTIVE

CORRIDOR = EnvironmentSettings("tests.corridor:Corridor")
SMALL = ScratchConfig(hidden_size=32, layers=2, heads=2, context=128, vocabulary=400)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return environment_texts(LocalEnvironments(CORRIDOR), games=24, steps=10)


@pytest.fixture(scope="module")
def model(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("scratch") / "model"
    make_scratch_model(SMALL, texts, seed=3, folder=folder)
    return ModelConfig(path=str(folder))


def test_texts_are_what_the_games_say_and_understand(texts: list[str]) -> None:
    found = set(texts)
    assert {OBJECTIVE, "You take the coin.", "You carry nothing.", "You fall."} < found
    assert {" go east", " go west", " take coin", " inventory"} < found
    assert any("You are in room 2 of the corridor." in text for text in found)
    assert "" not in found
    assert texts.count(OBJECTIVE) == 24


def test_equal_arguments_give_equal_texts(texts: list[str]) -> None:
    """Also from environments that have played before."""
    environments = LocalEnvironments(CORRIDOR)
    environments.reset([5, 1])
    assert environment_texts(environments, games=24, steps=10) == texts
    assert environment_texts(environments, games=24, steps=10, seed=1) != texts


def test_an_environment_that_names_no_commands_is_told() -> None:
    with pytest.raises(EpisodeError, match=r"model\.scratch .*does not name its commands"):
        environment_texts(LocalEnvironments(EnvironmentSettings("tests.corridor:Corridor", {"commands": False})))


def test_a_model_that_loads(model: ModelConfig) -> None:
    tokenizer, policy = load_tokenizer(model), load_policy(model)
    check_vocabulary(model, policy, tokenizer)
    assert context_length(model) == 128
    assert len(tokenizer) <= 400
    assert tokenizer.eos_token_id == tokenizer.bos_token_id != tokenizer.pad_token_id
    assert policy.get_input_embeddings().weight is policy.get_output_embeddings().weight
    assert len(policy.model.layers) == 2
    assert policy.config.eos_token_id == tokenizer.eos_token_id
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


def test_words_of_games_and_formats_are_single_tokens(model: ModelConfig) -> None:
    """Commands are short, and so is what each prompt says (TW-7); any other text can be written as well."""
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    assert tokenizer.tokenize(" go east") == ["Ġgo", "Ġeast"]
    assert tokenizer.tokenize(" take coin") == ["Ġtake", "Ġcoin"]
    words = {" You choose the action to": 5, "Your possible actions are": 4, "\nYou": 2, "\n>": 2, " -": 1}
    assert {text: len(tokenizer.tokenize(text)) for text in words} == words
    assert tokenizer.tokenize(" What do you do?") == ["ĠWhat", "Ġdo", "Ġyou", "Ġdo", "?"]
    odd = "Übergröße 🙂 \x00 从前"
    assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd


def test_the_untrained_policy_is_near_uniform(model: ModelConfig) -> None:
    """No command is much likelier than another before training: entropy within 0.1 nats of the vocabulary's, logits
    within 1 of each other at two standard deviations."""
    tokenizer, policy = load_tokenizer(model), load_policy(model)
    prompter = make_prompter(AgentConfig(prompt="actions", memory_turns=4), tokenizer, (), 128, 8)
    ids = torch.from_numpy(prompter.prompt([], "You are in room 1 of the corridor.", GameState()))
    with torch.no_grad():
        logits = policy(input_ids=ids[None]).logits[0]
    logprobs = torch.log_softmax(logits, -1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    assert (math.log(len(tokenizer)) - entropy).max() < 0.1
    assert 0.01 < logits.std() < 0.5


def test_the_layers_are_not_too_small_for_their_width(model: ModelConfig) -> None:
    """Matrices of the layers have a standard deviation of 0.5 / sqrt(32), the embedding keeps 0.02."""
    policy = load_policy(model)
    deviations = [weight.std().item() for name, weight in policy.model.layers.named_parameters() if weight.ndim == 2]
    assert deviations == pytest.approx([0.5 / 32**0.5] * len(deviations), rel=0.05)
    assert policy.get_input_embeddings().weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_equal_arguments_write_equal_bytes(model: ModelConfig, texts: list[str], tmp_path: Path) -> None:
    """Whatever random numbers were drawn before, and in place of what was there; another seed is another model."""
    torch.rand(7)
    again, other = tmp_path / "again", tmp_path / "other"
    again.mkdir()
    (again / "left_over").touch()
    make_scratch_model(SMALL, iter(texts), seed=3, folder=again)
    make_scratch_model(SMALL, texts, seed=4, folder=other)
    files = sorted(file.name for file in Path(model.path).iterdir())
    assert sorted(file.name for file in again.iterdir()) == files
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    for file in files:
        assert (again / file).read_bytes() == (Path(model.path) / file).read_bytes(), file
    assert (other / "model.safetensors").read_bytes() != (again / "model.safetensors").read_bytes()
    assert (other / "tokenizer.json").read_bytes() == (again / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocabulary": 200}, r"model\.scratch\.vocabulary 200 is too small: .* 258"),
        ({"hidden_size": 30, "heads": 4}, r"model\.scratch\.hidden_size 30 is no multiple of .*heads 4"),
        ({"hidden_size": 12, "heads": 4}, r"model\.scratch\.hidden_size 12 is no multiple of twice"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scratch_model(ScratchConfig.model_validate(sizes), ["a"], 0, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
