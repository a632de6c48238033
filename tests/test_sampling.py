"""The sampling engine against full forward passes of the same model, and its promises about seeds and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rayrlhf.sampling.transformers_engine import (
    SamplingSettings,
    TransformersSampler,
    filter_logprobs,
    uniform_stream,
)
from tests.rounding import rounding
from tests.tiny_models import build_tiny_model

PROMPTS = [np.array([5, 6, 7]), np.array([5, 6, 7]), np.array([9]), np.array([11, 12, 13, 14, 15]), np.array([5, 6, 7])]
NO_EOS = 10_000


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def full_logprobs(model: torch.nn.Module, prompt: np.ndarray, response: np.ndarray, temperature: float) -> np.ndarray:
    """[P + T - 1] log-probabilities of all tokens after the first, by one unpadded forward pass."""
    ids = torch.from_numpy(np.concatenate([prompt, response]))[None]
    with torch.inference_mode():
        logprobs = (model(ids).logits[0, :-1].float() / temperature).log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1).numpy()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neo"])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_a_full_forward(tmp_path: Path, architecture: str, temperature: float) -> None:
    """X-1, X-3, X-5: left padding, the cache, shared prefills and compaction change no log-probability."""
    model = load(build_tiny_model(tmp_path, architecture))
    settings = SamplingSettings(max_new_tokens=24, temperature=temperature, score_prompt=True)
    eos = int(TransformersSampler(model, NO_EOS, settings).sample(PROMPTS, range(5))[0].response_ids[3])
    generations = TransformersSampler(model, eos, settings).sample(PROMPTS, range(5))
    assert len({len(generation.response_ids) for generation in generations}) > 1
    for prompt, generation in zip(PROMPTS, generations):
        expected = full_logprobs(model, prompt, generation.response_ids, temperature)
        np.testing.assert_allclose(generation.logprobs, expected[len(prompt) - 1 :], atol=2e-5)
        np.testing.assert_allclose(generation.prompt_logprobs, expected[: len(prompt) - 1], atol=2e-5)
        np.testing.assert_array_equal(generation.logprobs, generation.filtered_logprobs)


def test_finish_says_why_and_eos_is_kept(tiny_model: Path) -> None:
    """X-2: a sampled EOS is a token like any other, and the length says where the response ends."""
    model = load(tiny_model)
    free = TransformersSampler(model, NO_EOS, SamplingSettings(12)).sample(PROMPTS, range(5))
    assert {generation.finish for generation in free} == {"length"}
    assert all(len(generation.response_ids) == 12 for generation in free)
    eos = int(free[0].response_ids[4])
    stopped = TransformersSampler(model, eos, SamplingSettings(12)).sample(PROMPTS, range(5))
    end = list(free[0].response_ids).index(eos) + 1
    assert stopped[0].finish == "eos"
    np.testing.assert_array_equal(stopped[0].response_ids, free[0].response_ids[:end])
    for before, after in zip(free, stopped):
        np.testing.assert_array_equal(before.response_ids[: len(after.response_ids)], after.response_ids)


def test_the_same_call_gives_the_same_bits(tiny_model: Path) -> None:
    model = load(tiny_model)
    sampler = TransformersSampler(model, 40, SamplingSettings(20))
    for first, second in zip(sampler.sample(PROMPTS, range(5)), sampler.sample(PROMPTS, range(5))):
        np.testing.assert_array_equal(first.response_ids, second.response_ids)
        np.testing.assert_array_equal(first.logprobs, second.logprobs)


def test_every_episode_draws_from_its_own_stream(tiny_model: Path) -> None:
    """The tokens of a (prompt, seed) do not depend on who else is in the batch."""
    model = load(tiny_model)
    sampler = TransformersSampler(model, NO_EOS, SamplingSettings(16))
    together = sampler.sample(PROMPTS, [7, 8, 9, 10, 7])
    alone = [sampler.sample([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, [7, 8, 9, 10, 7])]
    for one, other in zip(together, alone):
        np.testing.assert_array_equal(one.response_ids, other.response_ids)
    np.testing.assert_array_equal(together[0].response_ids, together[4].response_ids)
    assert not np.array_equal(together[0].response_ids, together[1].response_ids)
    assert not np.array_equal(uniform_stream(1, 8), uniform_stream(2, 8))


def test_frequencies_follow_the_distribution(tiny_model: Path) -> None:
    """X-5: what is drawn from is the model's distribution at the temperature, to 4 standard errors."""
    model = load(tiny_model)
    prompt, count = PROMPTS[0], 4000
    generations = TransformersSampler(model, NO_EOS, SamplingSettings(1, temperature=0.5)).sample(
        [prompt] * count, range(count)
    )
    tokens = np.array([generation.response_ids[0] for generation in generations])
    with torch.inference_mode():
        probabilities = (model(torch.from_numpy(prompt)[None]).logits[0, -1] / 0.5).softmax(-1).numpy()
    for token in np.argsort(-probabilities)[:20]:
        p = float(probabilities[token])
        assert abs((tokens == token).mean() - p) < 4 * np.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize(("top_k", "top_p"), [(3, None), (None, 0.3), (5, 0.5)])
def test_truncated_sampling_holds_for_every_token(tiny_model: Path, top_k: int | None, top_p: float | None) -> None:
    """LMHP-25: top-k and top-p apply to the first token too and to shrinking batches; GWERN-15: both log-probs are kept."""
    model = load(tiny_model)
    generations = TransformersSampler(model, 40, SamplingSettings(10, top_k=top_k, top_p=top_p)).sample(
        PROMPTS, range(5)
    )
    for prompt, generation in zip(PROMPTS, generations):
        ids = torch.from_numpy(np.concatenate([prompt, generation.response_ids]))[None]
        with torch.inference_mode():
            full = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        kept = filter_logprobs(full, top_k, top_p)
        drawn = kept.gather(-1, torch.from_numpy(generation.response_ids)[:, None]).squeeze(-1).numpy()
        assert np.isfinite(drawn).all()
        np.testing.assert_allclose(generation.filtered_logprobs, drawn, atol=2e-4)
        tolerance = rounding(8, generation.logprobs)  # of shifting by the logarithm of what is kept
        assert (generation.filtered_logprobs >= generation.logprobs - tolerance).all()
        assert (generation.filtered_logprobs > generation.logprobs + 0.1).any()


def test_filters_by_hand() -> None:
    logprobs = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    np.testing.assert_allclose(filter_logprobs(logprobs, 2, None).exp(), [[0.625, 0.375, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(filter_logprobs(logprobs, None, 0.6).exp(), [[0.625, 0.375, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(filter_logprobs(logprobs, None, 0.01).exp(), [[1, 0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(filter_logprobs(logprobs, 9, 1.0).exp(), logprobs.exp(), atol=1e-6)


def test_the_nucleus_ends_with_the_token_that_meets_its_mass() -> None:
    """The smallest set of that mass: tokens of mass 0.5, as rounded, are enough where top_p is just that."""
    logprobs = torch.tensor([[0.5, 0.25, 0.25]]).log()
    mass = float((logprobs.exp().cumsum(-1) - logprobs.exp())[0, 1])
    assert mass == pytest.approx(0.5, rel=1e-6)
    assert filter_logprobs(logprobs, None, mass).exp().tolist() == [[1, 0, 0]]
    assert (filter_logprobs(logprobs, None, mass + 1e-3)[0, 1:] > -torch.inf).sum() == 1


def test_a_prompt_without_tokens_is_refused(tiny_model: Path) -> None:
    sampler = TransformersSampler(load(tiny_model), 0, SamplingSettings(4))
    with pytest.raises(ValueError, match="no tokens"):
        sampler.sample([np.array([], np.int64)], [0])


def test_greedy_rows_leave_the_others_as_they_are(tiny_model: Path) -> None:
    """A greedy row takes the likeliest token of a full forward at each step, whatever its seed."""
    model = load(tiny_model)
    sampler = TransformersSampler(model, NO_EOS, SamplingSettings(8, temperature=0.7))
    sampled = sampler.sample(PROMPTS, range(5))
    mixed = sampler.sample(PROMPTS, range(5), greedy=[False, True, False, True, False])
    for i in (0, 2, 4):
        np.testing.assert_array_equal(mixed[i].response_ids, sampled[i].response_ids)
        np.testing.assert_array_equal(mixed[i].logprobs, sampled[i].logprobs)
    for i in (1, 3):
        ids = PROMPTS[i]
        with torch.inference_mode():
            for _ in range(8):
                ids = np.append(ids, int(model(torch.from_numpy(ids)[None]).logits[0, -1].argmax()))
        np.testing.assert_array_equal(mixed[i].response_ids, ids[len(PROMPTS[i]) :])
        expected = full_logprobs(model, PROMPTS[i], mixed[i].response_ids, 0.7)
        np.testing.assert_allclose(mixed[i].logprobs, expected[len(PROMPTS[i]) - 1 :], atol=2e-5)


def test_a_stopping_rule_takes_the_place_of_eos(tiny_model: Path) -> None:
    """TW-4: what ends a response is the rule's word alone, and the tokens up to there are those sampled without it."""
    model = load(tiny_model)
    free = TransformersSampler(model, NO_EOS, SamplingSettings(12)).sample(PROMPTS, range(5))
    third = {int(generation.response_ids[2]) for generation in free[:3]}
    sampler = TransformersSampler(model, int(free[0].response_ids[0]), SamplingSettings(12))
    stopped = sampler.sample(PROMPTS, range(5), ends=lambda ids: len(ids) > 2 and int(ids[-1]) in third)
    assert len(stopped[0].response_ids) == 3
    for whole, generation in zip(free, stopped):
        ids = generation.response_ids
        np.testing.assert_array_equal(ids, whole.response_ids[: len(ids)])
        assert generation.finish == ("length" if int(ids[-1]) not in third else "stop")
