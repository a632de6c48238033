"""What the tests of rating share: sessions of real parts, payloads for cross-site scripting, a page's skeleton."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rayrlhf.preferences.check_config import ChecksConfig
from rayrlhf.preferences.checks import load_checks
from rayrlhf.preferences.pairing import propose
from rayrlhf.preferences.pairing_config import PairingConfig
from rayrlhf.preferences.project import open_store
from rayrlhf.preferences.ranking_config import RankingConfig
from rayrlhf.preferences.rating_config import RatingConfig
from rayrlhf.preferences.rating_session import RatingSession
from rayrlhf.preferences.records import Item
from rayrlhf.preferences.store import RatingStore

VECTORS = Path(__file__).parent / "data" / "rating" / "xss_vectors.txt"
RANDOM_PAIRS = partial(propose, config=PairingConfig(), ranking=RankingConfig())


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def store_of(folder: Path, texts: Sequence[str], prompt: str = "Once") -> RatingStore:
    store = open_store(folder, create=True)
    store.add_items([Item(prompt, text, generator="hidden-generator") for text in texts])
    return store


def session_of(store: RatingStore, seed: int = 0, **settings: Any) -> RatingSession:
    """Without repeats unless asked for. settings: of RatingConfig, or checks, limit, clock, ask_again, propose."""
    parts = {name: settings.pop(name) for name in ("limit", "clock", "ask_again") if name in settings}
    checks = load_checks(settings.pop("checks", ChecksConfig()))
    pairs = settings.pop("propose", RANDOM_PAIRS)
    return RatingSession(store, pairs, checks, RatingConfig(**{"repeats": 0, **settings}), seed, **parts)


def xss_payloads() -> list[str]:
    """At least 500 different ones: classic vectors, each in the contexts that it would have to break out of."""
    contexts = [
        "{}", "\">{}", "'>{}", "--></style></script></title></textarea>{}", "</div></section></main>{}", "]]>{}",
        "&quot;&gt;{}", "\x00{}", "\ud800{}", "\u202e{}", "{}\n\n<!--", "a\r\nContent-Type: text/html\r\n\r\n{}",
    ]  # fmt: skip
    vectors = VECTORS.read_text(encoding="utf-8").splitlines()
    payloads = [context.replace("{}", vector) for context in contexts for vector in vectors]
    payloads += [vector.upper() for vector in vectors if vector.upper() != vector]
    return list(dict.fromkeys(payloads))


class Skeleton(HTMLParser):
    """The tags of a page with their attributes, but for those that change with every pair; and the texts of `.text`."""

    CHANGING = frozenset({"nonce", "data-left"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.texts: list[str] = []
        self.all_text = ""
        self._in_text = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        changing = self.CHANGING | ({"value"} if given.get("name") == "ticket" or tag == "progress" else set())
        self.tags.append((tag, tuple((name, value) for name, value in attrs if name not in changing)))
        if given.get("class") == "text":
            self._in_text = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", ()))
        self._in_text = False

    def handle_data(self, data: str) -> None:
        self.all_text += data
        if self._in_text:
            self.texts[-1] += data

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", ((data, None),)))

    def handle_decl(self, decl: str) -> None:
        self.tags.append((f"!{decl}", ()))
