"""The generated corpus and the shipped model that was trained on it."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rayrlhf
from rayrlhf import story_words
from rayrlhf.stories import MAX_WORDS, MIN_WORDS, generate_stories

ASSET = Path(rayrlhf.__file__).parent / "assets" / "tiny-stories"


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return list(generate_stories(20_000, seed=0))


def adjacent_initials(text: str) -> int:
    """SPEC ALLIT-1, reward B, written anew."""
    words = text.split()
    return sum(a[0].lower() == b[0].lower() for a, b in itertools.pairwise(words))


def test_a_seed_gives_the_same_stories_whatever_the_count() -> None:
    ten = list(generate_stories(10, seed=3))
    assert ten == list(generate_stories(10, seed=3))
    assert ten[:4] == list(generate_stories(4, seed=3))
    assert ten != list(generate_stories(10, seed=4))


def test_the_vocabulary_is_rich_and_stories_differ(stories: list[str]) -> None:
    counts = Counter(word for story in stories for word in re.findall(r"[a-z'-]+", story.lower()))
    assert len(counts) >= 2500
    assert len(set(stories)) == len(stories)
    assert max(counts.values()) / sum(counts.values()) < 0.1
    assert sum(story.startswith("Once upon a time, ") for story in stories) / len(stories) >= 0.5


def test_lengths_are_in_range(stories: list[str]) -> None:
    assert {MIN_WORDS <= len(story.split()) <= MAX_WORDS for story in stories} == {True}


def test_sentences_are_well_formed(stories: list[str]) -> None:
    """Articles follow the sound, sentences start with capitals, no slot or gap is left, no word stands twice in a row."""
    for story in stories[:3000]:
        for article, word in re.findall(r"\b(a|an|A|An) ([A-Za-z][\w-]*)", story):
            if word[:3] not in ("uni", "use", "usu", "hou", "hon"):
                assert (article.lower() == "an") == (word[0].lower() in "aeiou"), (article, word)
        assert not re.search(r"[{}]|  | [.,!?]|\.\.", story), story
        assert not re.search(r"(^|[.!?] \"?|\.\" \"?)[a-z]", story), story
        assert story.count('"') % 2 == 0, story
        assert story[-1] in '.!?"', story
        assert not re.search(r"\b(\w+) \1\b", story), story


def test_pronouns_agree_with_the_hero(stories: list[str]) -> None:
    """A hero of a girl's name is never `he` at the start of the next sentence."""
    girls, boys = set(story_words.GIRLS), set(story_words.BOYS)
    assert not girls & boys
    checked = 0
    for story in stories:
        match = re.match(r"Once upon a time, there was an? [^.]*? (?:named|called) (\w+)\. (She|He) ", story)
        if match:
            checked += 1
            assert (match[2] == "She") == (match[1] in girls), story
    assert checked > 100


def test_every_kind_of_word_has_many_initials() -> None:
    """A policy can move toward equal initials only if each slot offers several words of most letters."""
    for words in (
        story_words.GIRLS + story_words.BOYS, story_words.ANIMALS + story_words.PEOPLE, story_words.THINGS,
        story_words.CHARACTER_ADJECTIVES, story_words.THING_ADJECTIVES, story_words.PLACE_ADJECTIVES,
        story_words.PLACES, story_words.ADVERBS, story_words.THING_VERBS, story_words.ACTION_VERBS,
    ):  # fmt: skip
        assert len(set(words)) == len(words)
        by_letter: dict[str, int] = defaultdict(int)
        for word in words:
            by_letter[word[0].lower()] += 1
        assert sum(count >= 3 for count in by_letter.values()) >= 12, by_letter


def test_alliteration_is_at_a_natural_rate(stories: list[str]) -> None:
    """In 49 words about as many adjacent pairs start alike as chance says of their initials."""
    words = [story.split()[:49] for story in stories[:5000]]
    observed = statistics.mean(adjacent_initials(" ".join(story)) for story in words)
    initials = Counter(word[0].lower() for story in words for word in story)
    chance = 48 * sum((count / initials.total()) ** 2 for count in initials.values())
    assert 3 < observed < 8
    assert 0.5 < observed / chance < 1.6


@pytest.mark.parametrize(
    ("function", "word", "expected"),
    [
        (story_words.plural, "fox", "foxes"), (story_words.plural, "pony", "ponies"),
        (story_words.plural, "monkey", "monkeys"), (story_words.plural, "mouse", "mice"),
        (story_words.past, "carry", "carried"), (story_words.past, "skip", "skipped"),
        (story_words.past, "unwrap", "unwrapped"), (story_words.past, "run/ran", "ran"),
        (story_words.past, "admit", "admitted"), (story_words.past, "gobble", "gobbled"),
        (story_words.present_participle, "run/ran", "running"), (story_words.present_participle, "smile", "smiling"),
        (story_words.present_participle, "tie", "tying"), (story_words.present_participle, "agree", "agreeing"),
        (story_words.superlative, "big", "biggest"), (story_words.superlative, "happy", "happiest"),
        (story_words.superlative, "good", "best"), (story_words.superlative, "beautiful", "most beautiful"),
        (story_words.superlative, "nice", "nicest"), (story_words.superlative, "quiet", "quietest"),
        (story_words.article, "owl", "an"), (story_words.article, "unicorn", "a"), (story_words.article, "honest", "an"),
        (story_words.article, "unusual", "an"), (story_words.article, "useful", "a"), (story_words.article, "bear", "a"),
    ],
)  # fmt: skip
def test_words_are_inflected(function: object, word: str, expected: str) -> None:
    assert callable(function)
    assert function(word) == expected


def test_the_shipped_model_is_small_and_has_tokens_of_its_own() -> None:
    """SPEC X-2, X-3, X-9: pad is no EOS, padding is left, and everything fits the package."""
    assert sum(file.stat().st_size for file in ASSET.iterdir()) <= 8_000_000
    assert "rayrlhf sft" in (ASSET / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert 1000 <= len(tokenizer) <= 1500
    assert tokenizer.decode(tokenizer("Zoë's 3 cats — “hi”\n")["input_ids"]) == "Zoë's 3 cats — “hi”\n"
    model = AutoModelForCausalLM.from_pretrained(ASSET)
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 1_300_000
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_samples_of_the_shipped_model_are_varied_stories() -> None:
    """What the default job starts from: 50 texts of 64 new tokens at temperature 1 after "Once upon a time"."""
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    model = AutoModelForCausalLM.from_pretrained(ASSET, dtype=torch.float32).eval()
    prompt = tokenizer(["Once upon a time"] * 50, return_tensors="pt")
    torch.manual_seed(0)
    ids = model.generate(
        input_ids=prompt.input_ids, attention_mask=prompt.attention_mask, do_sample=True, top_k=0, max_new_tokens=64
    )
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    bigrams = [pair for text in texts for pair in itertools.pairwise(text.lower().split())]
    assert len(set(bigrams)) / len(bigrams) > 0.5
    assert 2.5 < statistics.mean(map(adjacent_initials, texts)) < 8
    corpus = {word for story in generate_stories(20_000, seed=0) for word in re.findall(r"[\w'-]+", story)}
    sampled = [word for text in texts for word in re.findall(r"[\w'-]+", text)[:-1]]  # the last may be cut off
    assert sum(word in corpus for word in sampled) / len(sampled) > 0.95
