"""Constrained decoding: the trie, the prefix cache, the distribution over allowed tokens, and the reference's scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rayrlhf.errors import EpisodeError
from rayrlhf.policy import score_allowed, score_tokens
from rayrlhf.sampling.command_trie import Branch, CommandTrie, CommandTries
from rayrlhf.sampling.constrained import branch_logprobs, draw
from rayrlhf.sampling.prefix_cache import PrefixCache
from rayrlhf.types import AllowedTokens
from tests.tiny_models import build_tiny_model

EOS = 0


def sharp_model(folder: Path, architecture: str = "llama") -> torch.nn.Module:
    """A tiny model with matrices larger than at the start of training: its logits depend strongly on the context."""
    model = AutoModelForCausalLM.from_pretrained(build_tiny_model(folder, architecture), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


def next_logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """[V] after one unpadded sequence, by one forward pass without a cache."""
    with torch.inference_mode():
        return model(torch.from_numpy(ids)[None]).logits[0, -1].float().numpy()


@contextmanager
def counted_tokens(model: torch.nn.Module, argument: str = "input_ids") -> Iterator[list[tuple[int, int]]]:
    """The shapes [rows, columns] of all that is fed to the model; of `attention_mask`: with what is cached."""
    fed: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, keywords: fed.append(tuple(keywords[argument].shape)), with_kwargs=True
    )
    yield fed
    hook.remove()


def tokens(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


COMMANDS = {"go": (5, EOS), "go east": (5, 6, EOS), "go west": (5, 7, EOS), "take red key": (8, 9, 10, EOS)}


def test_a_trie_by_hand() -> None:
    """One command is the prefix of others: EOS is a child like any other token; forced tokens are no branches."""
    trie = CommandTrie.build(tuple(COMMANDS), [tokens(*ids) for ids in COMMANDS.values()])
    assert isinstance(trie.root, Branch)
    assert trie.root.ids.tolist() == [5, 8]
    after_go, take = trie.root.children
    assert take == 3
    assert isinstance(after_go, Branch)
    assert (after_go.path.tolist(), after_go.ids.tolist(), after_go.children) == ([5], [EOS, 6, 7], (0, 1, 2))
    assert trie.branches == (trie.root, after_go)
    east, key = trie.path(1), trie.path(3)
    assert east.allowed_ids.tolist() == [5, 8, EOS, 6, 7, EOS]
    assert east.offsets.tolist() == [0, 2, 5, 6]
    assert key.allowed_ids.tolist() == [5, 8, 9, 10, EOS]
    assert key.offsets.tolist() == [0, 2, 3, 4, 5]
    made = east.generation([np.log([0.25, 0.75]), np.log([0.1, 0.3, 0.6])])
    np.testing.assert_allclose(made.logprobs, np.log([0.25, 0.3, 1.0]), atol=1e-6)
    assert made.allowed is not None
    np.testing.assert_allclose(np.exp(made.allowed.logprobs), [0.25, 0.75, 0.1, 0.3, 0.6, 1.0], atol=1e-6)
    assert made.allowed.forced.tolist() == [False, False, True]
    assert made.allowed.reference_logprobs.tolist() == [0.0] * 6


def test_an_opening_that_all_commands_share_is_forced() -> None:
    trie = CommandTrie.build(("a", "b"), [tokens(3, 4, 5, EOS), tokens(3, 4, 6, EOS)])
    assert trie.opening.tolist() == [3, 4]
    assert trie.path(0).allowed_ids.tolist() == [3, 4, 5, 6, EOS]
    single = CommandTrie.build(("a",), [tokens(3, EOS)])
    assert (single.root, single.branches, single.opening.tolist()) == (0, (), [])


def test_commands_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(EpisodeError, match=r"'take key' and 'take  key' are the same tokens \[5, 0\]"):
        CommandTrie.build(("look", "take key", "take  key"), [tokens(4, EOS), tokens(5, EOS), tokens(5, EOS)])
    with pytest.raises(EpisodeError, match="no command to choose from"):
        CommandTrie.build((), [])
    with pytest.raises(ValueError, match="'go' begin those of 'go east': no closing token"):
        CommandTrie.build(("go east", "go"), [tokens(5, 6), tokens(5)])


def test_equal_commands_share_a_trie() -> None:
    tries = CommandTries(lambda command: tokens(*COMMANDS[command]))
    assert tries.of(("go", "go east")) is tries.of(("go", "go east"))
    assert tries.of(("go", "go east")) is not tries.of(("go east", "go"))


def test_branch_probabilities_by_hand() -> None:
    """TOOLCHAIN: softmax over the children's logits / T alone; the rest of the vocabulary does not count (X-6)."""
    logits = torch.full((2, 12), 50.0)
    logits[0, [5, 8]] = torch.tensor([0.0, 2 * np.log(3.0)], dtype=torch.float32)
    logits[1, [EOS, 6, 7]] = torch.tensor([2 * np.log(2.0), 0.0, 2 * np.log(5.0)], dtype=torch.float32)
    trie = CommandTrie.build(tuple(COMMANDS), [tokens(*ids) for ids in COMMANDS.values()])
    probabilities = np.exp(branch_logprobs(logits, trie.branches, temperature=2.0))
    np.testing.assert_allclose(probabilities, [[0.25, 0.75, 0.0], [0.25, 0.125, 0.625]], atol=1e-6)


def test_draws_by_hand() -> None:
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array([[0.25, 0.75, 0.0], [0.25, 0.125, 0.625]], np.float32))
    never = np.zeros(2, bool)
    for uniform, expected in [(0.0, [0, 0]), (0.2, [0, 0]), (0.3, [1, 1]), (0.4, [1, 2]), (1 - 2**-53, [1, 2])]:
        assert draw(logprobs, np.full(2, uniform), never).tolist() == expected
    assert draw(logprobs, np.zeros(2), ~never).tolist() == [1, 2]


ARCHITECTURES = ["llama", "gpt2", "qwen2", "gpt_neo"]


def assert_full(model: torch.nn.Module, logits: torch.Tensor, sequences: list[np.ndarray]) -> None:
    for row, sequence in zip(logits.numpy(), sequences, strict=True):
        np.testing.assert_allclose(row, next_logits(model, sequence), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_logits_are_those_of_full_forwards(tmp_path: Path, architecture: str) -> None:
    """TW-3, X-3: prompts that grow unequally (so that holes come between), share rows, part, leave and start anew."""
    model, rng = sharp_model(tmp_path, architecture), np.random.default_rng(0)
    cache = PrefixCache(model)
    prompts = {episode: rng.integers(2, 300, length) for episode, length in enumerate([20, 31, 9, 26, 14])}
    prompts[5] = prompts[1].copy()
    for turn in range(5):
        episodes = list(prompts)
        rows, logits = cache.extend(episodes, list(prompts.values()))
        assert_full(model, logits[rows], list(prompts.values()))
        suffixes = [rng.integers(2, 300, length) for length in [1, 4, 2, 7]]
        chosen = [episodes[i] for i in [2, 0, 2, 1]]
        following = cache.following([int(rows[episodes.index(e)]) for e in chosen], suffixes)
        assert_full(model, following, [np.concatenate([prompts[e], s]) for e, s in zip(chosen, suffixes)])
        prompts = {e: np.append(p, rng.integers(2, 300, rng.integers(1, 9))) for e, p in prompts.items()}
        if turn == 1:
            del prompts[3]  # its episode is over
            prompts[0] = np.append(prompts[0][:-4], rng.integers(2, 300, 3))  # tokens that were cached are taken back
        if turn == 2:
            prompts[4] = rng.integers(2, 300, 12)  # a prompt that starts over
            prompts[6] = rng.integers(2, 300, 40)  # an episode that is new, longer than all that is cached


def test_what_was_cached_whole_or_taken_back_is_as_a_full_forward(tmp_path: Path) -> None:
    """A prompt that is asked about again beside one that grows; one whose last tokens were replaced; one that was cut."""
    model, rng = sharp_model(tmp_path), np.random.default_rng(2)
    same, grows, changes, cut = (rng.integers(2, 300, 20) for _ in range(4))
    cache = PrefixCache(model)
    cache.extend(range(4), [same, grows, changes, cut])
    later = [same, np.append(grows, [5, 6, 7]), np.append(changes[:-3], [8, 9]), cut[:-4]]
    with counted_tokens(model) as fed:
        rows, logits = cache.extend(range(4), later)
    assert fed == [(4, 3)]
    assert_full(model, logits[rows], later)


def test_only_what_is_new_is_fed(tmp_path: Path) -> None:
    model, rng = sharp_model(tmp_path), np.random.default_rng(0)
    cache, prompts = PrefixCache(model), [rng.integers(2, 300, length) for length in [30, 25, 30]]
    prompts[2] = prompts[0]
    with counted_tokens(model) as fed:
        cache.extend([0, 1, 2], prompts)
        cache.extend([0, 1, 2], [np.append(prompt, new) for prompt, new in zip(prompts, [3, 4, 3])])
        cache.extend([0, 1], [np.append(prompts[0], [3, 4, 5]), np.append(prompts[1], [4, 6])])
        cache.extend([0, 9], [np.append(prompts[0], [3, 4, 5, 6, 7]), prompts[1]])
        cache.extend([0, 9], [rng.integers(2, 300, 30), rng.integers(2, 300, 20)])
        cache.following([1], [tokens(3, 4)])
        cache.reset()
        cache.extend([0, 9], [prompts[0], prompts[1]])
    assert fed == [(2, 30), (2, 1), (2, 2), (1, 2), (1, 25), (2, 30), (1, 2), (2, 30)]


def test_holes_do_not_pile_up(tmp_path: Path) -> None:
    """Whose turn it is to grow changes, so that each block is mostly padding: the cache starts afresh now and then."""
    model, rng = sharp_model(tmp_path), np.random.default_rng(0)
    cache, prompts = PrefixCache(model), [rng.integers(2, 300, 20) for _ in range(5)]
    for turn in range(12):
        with counted_tokens(model, "attention_mask") as attended:
            rows, logits = cache.extend(range(5), prompts)
        assert_full(model, logits[rows], prompts)
        assert attended[0][1] <= 2 * max(len(prompt) for prompt in prompts)
        prompts[turn % 5] = np.append(prompts[turn % 5], rng.integers(2, 300, 10))
        prompts = [np.append(prompt, 5) for prompt in prompts]


def test_windowed_models_are_fed_whole_sequences(tmp_path: Path) -> None:
    """GPT-Neo's window counts columns, so holes would push real tokens out of it: nothing is reused."""
    model = sharp_model(tmp_path, "gpt_neo")
    cache, prompt = PrefixCache(model), np.arange(2, 32)
    with counted_tokens(model) as fed:
        cache.extend([0], [prompt])
        cache.extend([0], [np.append(prompt, 5)])
        cache.following([0], [tokens(6)])
    assert fed == [(1, 30), (1, 31), (1, 32)]


def test_a_window_that_no_short_trial_meets_is_told_by_the_config(tmp_path: Path) -> None:
    """GPT-Neo with a window of 100 tokens: nothing is reused, though short sequences would agree."""
    config = AutoConfig.from_pretrained(build_tiny_model(tmp_path, "gpt_neo"))
    config.window_size = 100
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    cache, prompt = PrefixCache(model), np.arange(2, 32)
    with counted_tokens(model) as fed:
        cache.extend([0], [prompt])
        cache.extend([0], [np.append(prompt, 5)])
    assert fed == [(1, 30), (1, 31)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_continuations_are_scored_as_by_full_forwards(tmp_path: Path, architecture: str) -> None:
    model, rng = sharp_model(tmp_path, architecture), np.random.default_rng(1)
    cache, prompts = PrefixCache(model), [rng.integers(2, 300, length) for length in [12, 17]]
    rows, opened = cache.extend([0, 1], prompts)
    which = [0, 1, 1, 0]
    continuations = [rng.integers(2, 300, length) for length in [3, 1, 5, 1]]
    found = cache.continuation_logprobs(opened, [int(rows[i]) for i in which], continuations)
    sequences = [np.concatenate([prompts[i], c]) for i, c in zip(which, continuations)]
    expected = score_tokens(model, sequences, [len(prompts[i]) for i in which], 1.0)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_prompt_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        PrefixCache(sharp_model(tmp_path)).extend([0], [tokens()])


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_reference_is_scored_over_the_allowed_tokens(tmp_path: Path, temperature: float) -> None:
    """X-6: the reference's distribution over the same tokens at the same temperature; an empty range is the vocabulary."""
    model, rng = sharp_model(tmp_path), np.random.default_rng(2)
    sequences, starts, allowed = [], [], []
    for _ in range(6):
        prompt, response = rng.integers(2, 300, rng.integers(5, 20)), rng.integers(2, 300, 4)
        others = [rng.choice(np.setdiff1d(np.arange(300), response), count, replace=False) for count in (3, 0, 6)]
        ranges = [
            np.sort(np.append(others[0], response[0])),
            response[1:2],
            tokens(),
            np.append(others[2], response[3]),
        ]
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in ranges])])
        zeros = np.zeros(offsets[-1], np.float32)
        sequences.append(np.concatenate([prompt, response]))
        starts.append(len(prompt))
        allowed.append(AllowedTokens(np.concatenate(ranges), offsets, zeros, zeros))
    results = score_allowed(model, sequences, starts, allowed, temperature, tokens_per_batch=50)
    for sequence, start, sets, (of_sets, of_tokens) in zip(sequences, starts, allowed, results, strict=True):
        assert of_sets.dtype == of_tokens.dtype == np.float32
        for t in range(4):
            scores = next_logits(model, sequence[: start + t]).astype(np.float64) / temperature
            ids = sets.ids[sets.offsets[t] : sets.offsets[t + 1]]
            mass = np.exp(scores[ids] if len(ids) else scores).sum()
            np.testing.assert_allclose(
                of_sets[sets.offsets[t] : sets.offsets[t + 1]], scores[ids] - np.log(mass), atol=2e-5
            )
            assert abs(of_tokens[t] - (scores[sequence[start + t]] - np.log(mass))) < 2e-5
        assert of_tokens[1] == 0.0


def test_without_allowed_sets_the_scores_are_those_of_score_tokens(tmp_path: Path) -> None:
    model, sequences = sharp_model(tmp_path), [np.arange(2, 14), np.arange(30, 50)]
    starts = [8, 15]
    everything = [AllowedTokens.everything(len(s) - start) for s, start in zip(sequences, starts)]
    for (of_sets, of_tokens), expected in zip(
        score_allowed(model, sequences, starts, everything, 0.8), score_tokens(model, sequences, starts, 0.8)
    ):
        assert len(of_sets) == 0
        np.testing.assert_array_equal(of_tokens, expected)


def test_a_token_outside_its_range_is_an_error(tmp_path: Path) -> None:
    sets = AllowedTokens(tokens(5, 6), tokens(0, 2), np.zeros(2, np.float32), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="not among those that were allowed"):
        score_allowed(sharp_model(tmp_path), [tokens(3, 4, 7)], [2], [sets], 1.0)
