"""Children's stories from a grammar: the corpus that the shipped tiny language model is trained on.

`generate_stories(20_000, seed=0)` yields stories of 40 to 120 words. A story has a cast (a hero, a friend, a thing, a
place), one of several plots, and many free choices of adjectives, adverbs and verbs, so that its text varies far more
than its plot. Words come from `story_words.py`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate

from rayrlhf import story_words as words

_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=(\w[\w-]*))")
_SENTENCE_START = re.compile(r'(^"?|[.!?] "?|\." "?)([a-z])')
_REPEATED = re.compile(r"\b(\w+)(?:,| and)? \1\b", re.IGNORECASE)  # "a happy happy dog", "sad and sad"

MIN_WORDS, MAX_WORDS = 40, 120

_DEEDS = [verb for verb in words.THING_VERBS if words.base(verb) not in words.STATE_VERBS]  # what one can propose to do

# Slots of lower case are filled afresh at each use; the cast's (`name`, `friend`, `thing`, ...) stay through the story.
_PHRASES: dict[str, Sequence[str]] = {
    "the_thing": (
        "the {thing}", "the {look} {thing}", "the {look} {thing}", "the {adj} {look} {thing}", "{his} {adj} {thing}",
    ),
    "a_thing": ("a {adj} {noun}", "a {adj} {noun}", "a {adj} {adj} {noun}", "a {noun}"),
    "things": (
        "{adj} {nouns}", "{adj} {nouns}", "{adj} {adj} {nouns}", "{nouns} and {nouns}",
        "{adj} {nouns} and {adj} {nouns}",
    ),
    "a_place": ("a {padj} {spot}", "a {padj} {padj} {spot}"),
    "the_place": ("the {place}", "the {padj} {place}", "the {scenery} {place}", "the {padj} {scenery} {place}"),
    "somewhere": ("the {spot}", "the {padj} {spot}", "the {padj} {padj} {spot}"),
    "someone": ("a {cadj} {kind}", "a {cadj} {cadj} {kind}", "a {kind}"),
    "the_friend": ("{friend}", "{friend}", "{friend} the {friend_kind}", "the {cadj} {friend_kind}", "{cadj} {friend}"),
    "the_hero": ("{name}", "{name}", "{name}", "{name} the {hero_kind}", "the {nature} {hero_kind}", "{nature} {name}"),
    "meal": ("{adj_food} {food}", "{adj_food} {food}", "{food} and {food}", "{adj_food} {food} and {adj_food} {food}"),
    "toward": ("to", "to", "toward", "through", "past", "around"),
    "the_thing_new": ("a {look} {thing}", "a {adj} {look} {thing}"),
    "the_thing_now": ("the {thing}", "the {look} {thing}", "my {look} {thing}", "this {adj} {thing}"),
    "how": ("{manner}", "very {manner}", "so {manner}", "{manner} and {manner}"),
    "mood": ("{feel}", "very {feel}", "so {feel}", "{feel} and {feel}"),
    "many": ("many", "some", "two", "three", "four", "five", "six", "seven", "ten", "a few", "lots of"),
    "when": (
        "one day", "one {weather} day", "one {weather} morning", "one {weather} afternoon", "that evening", "on Monday",
        "on Sunday", "one {weather}, {weather} day", "in the morning", "the next day", "on a {weather} Saturday",
    ),
}  # fmt: skip

_OPENINGS = (
    "Once upon a time, there was a {nature} {hero_kind} named {name}.",
    "Once upon a time, there was a {nature} {cadj} {hero_kind} called {name}.",
    "Once upon a time, a {nature} {hero_kind} named {name} lived in {a_place}.",
    "Once upon a time, a {nature} {cadj} {hero_kind} lived near {a_place}. {His} name was {name}.",
    "Once upon a time, {name} the {nature} {hero_kind} and {friend} the {cadj} {friend_kind} {motion} to {a_place}.",
    "Once upon a time, in {a_place}, {nature} {name} the {hero_kind} {did} {a_thing}.",
    "Once upon a time, {nature} {name} had {a_thing}.",
    "Once upon a time, {name}, a {nature} {hero_kind}, had a {cadj} friend, {friend} the {friend_kind}.",
)
_OTHER_OPENINGS = (
    "{name} was a {nature} {cadj} {hero_kind} who loved {things}.",
    "One {weather} day, {nature} {name} {adv} {motion} to {somewhere}.",
    "There was a {nature} {hero_kind} named {name} in {a_place}.",
    "Long ago, a {nature} {hero_kind} called {name} lived beside {a_place}.",
    "In {a_place} lived a {nature} {cadj} {hero_kind}, {name}.",
    "{nature} {name} and {cadj} {friend} were {cadj} friends.",
    "It was a {weather} {weather} day, and {name} the {hero_kind} {felt} {mood}.",
)
_INTRODUCTIONS = (
    "{name} wanted to {do} the {noun} that was near the {spot}.",
    "{He} had a {cadj} family, a {cadj} {kind} and a house in the {spot}.",
    "{name} had a {look} {thing}. It was the thing that {he} liked best of all.",
    "{name} loved to {act_b} and {act_b}.",
    "{name} liked {acting}, {acting} and {acting}.",
    "Every day {name} {did} {things} in {somewhere}.",
    "{name} {adv} {did} {things} and {adv} {did} {things}.",
    "{nature} {name} was {mood}, because {he} had {many} {cadj} {friends}.",
    "{name} {often} {motion} {toward} {somewhere} with {cadj} {friend} the {friend_kind}.",
    "{name} had a {cadj} friend named {friend}, a {cadj} {friend_kind}.",
    "{name} had the {superlative} {noun} in {the_place}.",
    "{name} had {the_thing_new}, and {he} {often} {did} it.",
)
_JOURNEYS = (
    "{when}, {name} brought the {thing} home from the {place}.",
    "{when}, {name} and {friend} saw {someone} in the {place}.",
    "{name} went with {friend} and played near the {place}.",
    "{when}, {the_hero} {adv} {motion} {toward} {the_place}.",
    "{when}, {name} and {friend} {motion} {toward} {the_place}.",
    "{name} {motion} and {motion} until {he} came to {the_place}.",
    "{when}, {cadj} {friend} and {nature} {name} were {moving} {toward} {the_place}.",
    "So {the_hero} {how} {motion} {toward} {somewhere} and {motion} {toward} {the_place}.",
)
_MEETINGS = (
    "{name} saw a {cadj} {kind} who was {acting}.",
    "Then the {friend_kind} asked {name} to {act_b} and {act_b}.",
    "There {he} met {friend}, a {cadj} {cadj} {friend_kind}.",
    "{the_friend} {adv} {acted} and {acted}.",
    "{friend} the {cadj} {friend_kind} was {adv} {acting} there.",
    "{many} {cadj} {friends} {adv} {acted} nearby.",
    "A {cadj} {kind} {social} {the_hero} and {adv} {acted}.",
)
_LOOKING = (
    "{name} searched the {place}, but the {thing} was not there.",
    "{He} {did} the {noun} and looked in the {spot}.",
    "{name} looked under {a_thing}, behind {a_thing} and inside {somewhere}.",
    "{name} {adv} {did} {many} {nouns}, but {he} could not see {the_thing}.",
    "{the_friend} {adv} {motion} {toward} {somewhere} and {did} {a_thing}.",
    "They {adv} {did} {things} in {the_place}.",
)
_HELP = (
    "{friend} and {name} carried the {thing} back through {the_place}.",
    "Then {friend} {did} the {thing}, and {the_hero} {did} {a_thing}.",
    "{the_friend} {adv} {social} {name}, and they {adv} {did} {the_thing}.",
    "{friend} {adv} {did} {the_thing} and {social} {nature} {name}.",
    "Together they {motion} {toward} {the_place} and {adv} {did} {the_thing}.",
    "A {cadj} {cadj} {kind} {motion} by and {adv} {social} them.",
    "Then {cadj} {friend} {how} {did} {the_thing} while {name} {acted}.",
)
_TALK = (
    '"{let_us} {do} {the_thing_now}," {said} {the_friend}.',
    '"{Exclaim}! {what} {adj} {adj} {thing}!" {said} {name}.',
    '"Can you {do} {the_thing_now}?" {asked} {the_hero} {adv}.',
    '"I am {mood}," {friend} {said}. "I {want} {a_thing}."',
    '{name} {adv} {said}, "Please {do} {the_thing_now}, {cadj} {friend}."',
    '"Do not {act_b}," {the_friend} {said} {adv}. "We can {do} {things}."',
    '"You are a {cadj} {cadj} {hero_kind}," {said} {friend}.',
    '"Yes, {nature} {name}," {said} {the_friend}, {acting} {adv}.',
)
_FEELINGS = (
    "{name} was {feel}, but {he} wanted to {act_b} with {his} friend.",
    "{He} thought that it was the best day of all.",
    "{name} {felt} {mood}.",
    "{the_friend} {felt} {mood} and {adv} {acted}.",
    "{name} {acted} and {acted}, for {he} was {mood}.",
    "{name} {adv} {acted}, and {cadj} {friend} {acted} too.",
)
_MEALS = (
    "They sat at the table and {ate} the {food} that {friend} had made.",
    "They {adv} {ate} {meal}, {adj_food} {food} and {adj_food} {food}.",
    "{friend} {ate} {meal} with {the_hero}.",
    "{name} {adv} {ate} {meal}.",
    "{many} {cadj} {friends} brought {meal} and {things}.",
)
_ENDINGS = (
    "Soon {name} was {feel}, and {friend} was {feel}.",
    "{He} said that {he} would {do} the {thing} with {friend} every day.",
    "From that day on, {name} and {friend} were {cadj} friends.",
    "And they all lived happily ever after.",
    "{name} {adv} {motion} home and {acted} with {the_thing}.",
    "{the_friend} and {the_hero} {acted} {adv} until the {weather} evening came.",
    "{name} learned to be {feel} and {feel}.",
    "At last, {the_hero} {felt} {mood} and {adv} {acted}.",
    "After that, {nature} {name} {often} {did} {things}.",
)
_LOSS = (
    "But {name} could not find the {thing}, for the {kind} had taken it.",
    "But then {the_thing} was gone!",
    "But then {the_hero} lost {his} {adj} {look} {thing} near {the_place}.",
    "Suddenly, {someone} {adv} took {the_thing} and {motion} {toward} {somewhere}.",
    "Oh no! {the_thing} fell near {somewhere}.",
)
_RECOVERY = (
    "At last {friend} {adv} saw {the_thing} beside {a_thing}.",
    "{the_thing} was in {somewhere}, under {a_thing}!",
    "{the_friend} {adv} gave {name} {the_thing}.",
)
_DISCOVERY = (
    "{name} found it under {a_thing} in the {place}.",
    "There {he} {adv} found {a_thing} and {the_thing_new}.",
    "In {the_place}, {the_hero} saw {the_thing_new}.",
    "{name} {did} {the_thing_new} near {somewhere}.",
)
_GIFT = (
    "{He} wanted to make {friend} {feel} with the {thing}.",
    "{name} wanted to {do} {the_thing_new} for {the_friend}.",
    "It was the birthday of {the_friend}.",
    "{the_hero} {adv} {did} {things}, {things} and {a_thing}.",
    "{name} {how} {did} {the_thing} with {things}.",
)
_FRIGHT = (
    "{someone} said there was a {cadj} {kind} in the {place}.",
    "Suddenly, {someone} {adv} {acted} in {somewhere}.",
    "A {cadj} {cadj} {kind} {adv} {motion} {toward} {the_place}!",
    "It was {weather} and {weather}, and {name} {felt} {mood}.",
)
_GAME = (
    "{friend} and {name} {did} the {thing} and {acted}.",
    "They played with {the_thing} and {adv} {motion} {toward} {somewhere}.",
    "{name} {adv} {motion}, {friend} {adv} {motion}, and {someone} {acted}.",
    "{many} {cadj} {friends} {motion} and {acted} in {the_place}.",
    "{the_friend} {motion} faster than {many} {cadj} {friends}.",
)

_PLOTS: Sequence[Sequence[Sequence[str]]] = (
    (_LOSS, _FEELINGS, _LOOKING, _TALK, _HELP, _RECOVERY, _TALK, _FEELINGS),
    (_JOURNEYS, _DISCOVERY, _TALK, _MEETINGS, _HELP, _FEELINGS),
    (_GIFT, _JOURNEYS, _LOOKING, _TALK, _MEALS, _FEELINGS),
    (_JOURNEYS, _MEETINGS, _TALK, _MEALS, _GAME, _FEELINGS),
    (_JOURNEYS, _FRIGHT, _FEELINGS, _TALK, _HELP, _MEALS),
    (_MEETINGS, _GAME, _TALK, _LOSS, _HELP, _FEELINGS),
)


class _Story:
    """One story's cast and its expansion of templates."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        name, pronouns = self._person()
        friend, _ = self._person()
        while friend == name:
            friend, _ = self._person()
        he, his = pronouns
        self._cast = {
            "name": name, "friend": friend, "he": he, "his": his, "He": he.capitalize(), "His": his.capitalize(),
            "hero_kind": self._kind(), "friend_kind": self._kind(),
            "thing": self._common(words.THINGS), "look": self._common(words.THING_ADJECTIVES),
            "nature": self._common(words.CHARACTER_ADJECTIVES), "scenery": self._common(words.PLACE_ADJECTIVES),
            "place": self._common(words.PLACES),
        }  # fmt: skip
        pick = self._common
        self._fresh: dict[str, Callable[[], str]] = {
            "adj": lambda: pick(words.THING_ADJECTIVES),
            "padj": lambda: pick(words.PLACE_ADJECTIVES),
            "cadj": lambda: pick(words.CHARACTER_ADJECTIVES),
            "superlative": lambda: words.superlative(pick(words.CHARACTER_ADJECTIVES + words.THING_ADJECTIVES)),
            "noun": lambda: pick(words.THINGS),
            "nouns": lambda: words.plural(pick(words.THINGS)),
            "food": lambda: pick(words.FOODS),
            "spot": lambda: pick(words.PLACES),
            "kind": self._kind,
            "friends": lambda: words.plural(self._kind()),
            "adv": lambda: pick(words.ADVERBS) if rng.random() < 0.6 else "",  # `_polish` closes the gap
            "manner": lambda: pick(words.ADVERBS),
            "feel": lambda: pick(words.FEELINGS),
            "weather": lambda: pick(words.WEATHERS),
            "motion": lambda: words.past(pick(words.MOTION_VERBS)),
            "moving": lambda: words.present_participle(pick(words.MOTION_VERBS)),
            "did": lambda: words.past(pick(words.THING_VERBS)),
            "do": lambda: words.base(pick(_DEEDS)),
            "social": lambda: words.past(pick(words.PEOPLE_VERBS)),
            "acted": lambda: words.past(pick(words.ACTION_VERBS)),
            "act_b": lambda: words.base(pick(words.ACTION_VERBS)),
            "acting": lambda: words.present_participle(pick(words.ACTION_VERBS)),
            "said": lambda: words.past(pick(words.SAY_VERBS)),
            "felt": lambda: rng.choice(("felt", "was", "became")),
            "ate": lambda: words.past(pick(words.FOOD_VERBS)),
            "adj_food": lambda: pick(words.FOOD_ADJECTIVES),
            "often": lambda: pick(words.TIME_ADVERBS),
            "asked": lambda: rng.choice(("asked", "said", "begged", "whispered", "wondered", "pleaded", "demanded")),
            "want": lambda: rng.choice(("want", "like", "love", "need")),
            "let_us": lambda: rng.choice(("Let us", "We can", "I will", "You must")),
            "Exclaim": lambda: rng.choice(("Oh", "Look", "Wow", "Hooray", "Hello", "Goodness")),
            "what": lambda: rng.choice(("What a", "It is a", "I see a")),
        }

    def _person(self) -> tuple[str, tuple[str, str]]:
        girl = self._rng.random() < 0.5
        return self._common(words.GIRLS if girl else words.BOYS, 12), ("she", "her") if girl else ("he", "his")

    def _kind(self) -> str:
        return self._common(words.ANIMALS if self._rng.random() < 0.6 else words.PEOPLE)

    def _common(self, choices: Sequence[str], flatness: int = 3) -> str:
        """Draws with weight 1 / (rank + flatness), as words of a language fall off (Mandelbrot 1953)."""
        weights = _cumulative(len(choices), flatness)
        return self._rng.choices(choices, cum_weights=weights)[0]

    def expand(self, template: str) -> str:
        def fill(match: re.Match[str]) -> str:
            slot = match[1]
            if slot in self._cast:
                return self._cast[slot]
            if slot in _PHRASES:
                return self.expand(self._rng.choice(_PHRASES[slot]))
            return self._fresh[slot]()

        return _SLOT.sub(fill, template)

    def text(self) -> str:
        rng = self._rng
        opening = rng.choice(_OPENINGS if rng.random() < 0.7 else _OTHER_OPENINGS)
        beats = [rng.choice(_INTRODUCTIONS)]
        beats += [rng.choice(beat) for beat in rng.choice(_PLOTS) if rng.random() < 0.85]
        sentences = [opening, *dict.fromkeys(beats), rng.choice(_ENDINGS)]
        return _polish(" ".join(self.expand(sentence) for sentence in sentences))


@cache
def _cumulative(length: int, flatness: int) -> list[float]:
    return list(accumulate(1 / (rank + flatness) for rank in range(length)))


def _polish(text: str) -> str:
    """No gaps, articles by sound, capitals at sentence starts."""

    def article(match: re.Match[str]) -> str:
        chosen = words.article(match[2])
        return (chosen.capitalize() if match[1] == "A" else chosen) + " "

    text = re.sub(r" +(?=[.,!?])", "", re.sub(r" +", " ", text))
    text = _ARTICLE.sub(article, text)
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def generate_stories(count: int, seed: int) -> Iterator[str]:
    """Yields `count` stories of 40 to 120 words each; the same seed gives the same stories, whatever the count."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        story = _Story(rng).text()
        if MIN_WORDS <= len(story.split()) <= MAX_WORDS and not _REPEATED.search(story):
            yield story
            made += 1
