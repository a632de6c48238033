"""Models with several ends: one ends a document, another a turn. Any of them ends what is sampled, shown and scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from rayrlhf.agent_text import GamePrompter, make_prompter
from rayrlhf.config import AgentConfig, ModelConfig
from rayrlhf.ends import ends_beside
from rayrlhf.environments import EnvironmentSettings, open_environments
from rayrlhf.play.command import text_maker
from rayrlhf.player import Player
from rayrlhf.policy import end_ids, load_policy, load_tokenizer
from rayrlhf.prompts import Prompt
from rayrlhf.response_config import ResponseConfig
from rayrlhf.response_rules import ResponseRules
from rayrlhf.sampling.stopping import ends_sentence
from rayrlhf.sampling.transformers_engine import SamplingSettings, TransformersSampler
from rayrlhf.types import EpisodeSpec
from tests.tiny_models import build_tiny_model

EOS, TURN_END = 0, 7
CHATML = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% if m['role'] == 'assistant' %}"
    "{{ turn_end }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    """A model whose generation config names two ends."""
    folder = build_tiny_model(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, TURN_END]}))
    return ModelConfig(path=str(folder))


def saying(config: ModelConfig, token: int) -> torch.nn.Module:
    """The model, which says this token always."""
    model = load_policy(config)
    head = torch.nn.Linear(32, 320, bias=True)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[token] = 1000.0
    model.lm_head = head
    return model


@pytest.mark.parametrize(("token", "finish", "length"), [(EOS, "eos", 1), (TURN_END, "eos", 1), (9, "length", 12)])
def test_sampling_ends_at_any_end(config: ModelConfig, token: int, finish: str, length: int) -> None:
    tokenizer, model = load_tokenizer(config), saying(config, token)
    for ends in (tokenizer.eos_token_id, end_ids(config, tokenizer)):
        [made] = TransformersSampler(model, ends, SamplingSettings(12)).sample([np.array([5, 6])], [1])
        assert (made.finish, len(made.response_ids)) == (finish, length)


def test_an_end_that_no_config_names_with_others_stands_alone() -> None:
    generation = GenerationConfig(eos_token_id=[EOS, TURN_END])
    assert ends_beside(EOS, generation) == (EOS, TURN_END)
    assert ends_beside(9, generation) == (9,)
    assert ends_beside((9, EOS), generation) == (9, EOS)
    assert ends_beside(9, None) == (9,)


def test_a_player_ends_its_episodes_at_any_end(config: ModelConfig) -> None:
    model, prompt = saying(config, TURN_END), Prompt("hello", np.array([5, 6, 7]))
    player = Player(model, load_tokenizer(config), 128, AgentConfig(), [prompt], SamplingSettings(12), 1)
    environments = open_environments(EnvironmentSettings("single_turn"), ["hello"])
    [played] = player.play([EpisodeSpec(0, 0, 0, 1)], environments, 0)
    environments.close()
    assert played.turns[0].finish == "eos"
    assert played.turns[0].response_ids.tolist() == [TURN_END]


def test_rules_and_sentences_know_every_end() -> None:
    rules = ResponseConfig.model_validate({"missing_stop": {"mode": "fixed", "value": -1}})

    def decode(ids: np.ndarray) -> str:
        return "".join("abc"[i % 3] for i in ids.tolist() if i not in (EOS, TURN_END))

    several = ResponseRules(rules, decode, (EOS, TURN_END))
    assert not several.marks(np.array([3, TURN_END])).missing_stop
    assert not several.marks(np.array([3, EOS])).missing_stop
    assert several.marks(np.array([3, 4])).missing_stop
    ends = ends_sentence(decode, (EOS, TURN_END))
    assert ends(np.array([3, TURN_END]))
    assert not ends(np.array([TURN_END]))
    assert not ends_sentence(decode, EOS)(np.array([3, TURN_END]))


def test_commands_end_as_the_chat_template_ends_answers(config: ModelConfig) -> None:
    """Constrained play lets a policy say the end that it was trained to say, and an end stands once in a transcript."""
    tokenizer = load_tokenizer(config)
    turn_end = tokenizer.convert_ids_to_tokens(TURN_END)
    ends = end_ids(config, tokenizer)

    def prompter(template: str | None) -> GamePrompter:
        tokenizer.chat_template = template
        made = make_prompter(AgentConfig(prompt="transcript"), tokenizer, (), 128, 16, ends)
        assert isinstance(made, GamePrompter)
        return made

    assert prompter(None).command_ids("go")[-1] == EOS
    assert prompter(CHATML.replace("turn_end", f"'{turn_end}'")).command_ids("go")[-1] == TURN_END
    assert text_maker(tokenizer, ends)(np.array([5, TURN_END])) == text_maker(tokenizer)(np.array([5]))
