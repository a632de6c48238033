"""The raters' page in a headless browser: keys, undo, phone, frames, 500 payloads in three places (SPEC GWERN-1, -2)."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI

from rayrlhf.preferences.page import create_app, listen, new_token, serve
from rayrlhf.preferences.presenters import load_presenter
from rayrlhf.preferences.rating_session import RatingSession
from rayrlhf.preferences.records import Item
from rayrlhf.preferences.store import RatingStore
from rayrlhf.reading import printable
from tests.rating_parts import session_of, store_of, xss_payloads

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, FloatRect, Page, Request

CHROMIUM = shutil.which("chromium")
NO_CHROMIUM = "no `chromium` is on the PATH; with one, as by `apt install chromium`, they are run"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
sync_api = pytest.importorskip("playwright.sync_api")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
TAGS = """() => [...document.querySelectorAll('*')].map(element => element.tagName + ' ' + [...element.attributes]
    .filter(attribute => !['nonce', 'value', 'data-left'].includes(attribute.name))
    .map(attribute => attribute.name + '=' + attribute.value).join(' '))"""
TEXTS = "() => [...document.querySelectorAll('.text')].map(element => element.textContent)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def served(make: Callable[[str, int], FastAPI]) -> Iterator[str]:
    """Serves what `make` builds of token and port; yields the address with the token."""
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    token = new_token()
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(make(token, port), listening, stop.is_set, 0.0))
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/?token={token}"
    finally:
        stop.set()
        thread.join()
        listening.close()


@contextmanager
def page_of(
    browser: Browser, session: RatingSession, folder: Path, presenter: str = "text", rater: str | None = "Ann",
    **context: Any,
) -> Iterator[Page]:  # fmt: skip
    """The page as a rater has it who opened the printed address; fails where it asks other sites for anything.

    What its policy stops never leaves the browser; the `.invalid` names of the payloads fail otherwise.

    context: of the browser's window.
    """

    def make(token: str, port: int) -> FastAPI:
        return create_app(
            session, load_presenter(presenter, folder), "Which is better?", token, "127.0.0.1", port, rater
        )

    with served(make) as address:
        window = browser.new_context(**context)
        page = window.new_page()
        faults: list[str] = []

        def opened(dialog: Dialog) -> None:
            faults.append(f"dialog {dialog.message}")
            dialog.dismiss()

        def failed(request: Request) -> None:
            if request.failure != "csp":
                faults.append(request.url)

        page.on("dialog", opened)
        page.on("pageerror", lambda error: faults.append(f"error {error}"))
        page.on("requestfailed", failed)
        page.goto(address)
        yield page
        assert faults == []
        window.close()


def press(page: Page, key: str) -> None:
    """Presses a key that brings the next page."""
    with page.expect_navigation():
        page.keyboard.press(key)


def boxes(page: Page, selector: str) -> list[FloatRect]:
    """Where the elements are, in pixels."""
    found = [element.bounding_box() for element in page.query_selector_all(selector)]
    return [box for box in found if box is not None]


def verdicts(store: RatingStore) -> list[object]:
    return [record.best for record in store.comparisons()]


def test_a_rater_at_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    """GWERN-1: 1 2 3 b s u and ?, in the real page; the name is typed in once."""
    with store_of(tmp_path, [f"text {number}" for number in range(8)]) as store:
        with page_of(browser, session_of(store), tmp_path, rater=None) as page:
            page.wait_for_selector("#name:focus")
            page.keyboard.type("Ann Lee")
            press(page, "Enter")
            assert page.inner_text("h1") == "Which is better?"
            for key in "123b":
                press(page, key)
            assert verdicts(store) == [0, 1, "tie", "both_bad"]
            assert {record.rater for record in store.comparisons()} == {"Ann Lee"}
            press(page, "s")
            assert len(store.skips()) == 1
            before = page.evaluate(TEXTS)
            press(page, "u")
            press(page, "u")
            assert verdicts(store) == [0, 1, "tie"]
            assert store.skips() == []
            press(page, "1")
            press(page, "1")
            assert page.evaluate(TEXTS) == before
            page.keyboard.press("?")
            assert page.is_visible("dialog")
            page.keyboard.press("2")  # is no verdict while the help is open
            page.keyboard.press("Escape")
            assert not page.is_visible("dialog")
            page.keyboard.press("Control+1")
            page.keyboard.press("9")
        assert verdicts(store) == [0, 1, "tie", 0, 0]
        assert all(record.seconds is not None and 0 < record.seconds < 60 for record in store.comparisons())


def test_a_key_that_is_held_or_pressed_twice_counts_once(browser: Browser, tmp_path: Path) -> None:
    with store_of(tmp_path, [f"text {number}" for number in range(8)]) as store:
        with page_of(browser, session_of(store), tmp_path) as page:
            with page.expect_navigation():
                page.evaluate(
                    "() => { for (const key of ['1', '1', '2']) document.dispatchEvent(new KeyboardEvent('keydown', "
                    "{key})); }"
                )
            page.evaluate("() => document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: true}))")
            assert page.inner_text("h1") == "Which is better?"
        assert verdicts(store) == [0]


def test_without_scripts_the_buttons_do_the_same(browser: Browser, tmp_path: Path) -> None:
    with store_of(tmp_path, [f"text {number}" for number in range(5)]) as store:
        with page_of(browser, session_of(store), tmp_path, java_script_enabled=False) as page:
            page.click("button[data-key='2']")
            page.click("button[data-key='3']")
            page.click("button[data-key='u']")
            page.click("a[data-key='?']")
            assert page.is_visible("dialog")
            page.click("#close")
            assert not page.is_visible("dialog")
        assert verdicts(store) == [1]


def test_the_time_box_counts_down(browser: Browser, tmp_path: Path) -> None:
    """GWERN-2: a visible countdown; after its end the pair can still be rated, and is marked."""
    with store_of(tmp_path, ["one", "two", "three"]) as store:
        with page_of(browser, session_of(store, seconds=1.2), tmp_path) as page:
            assert page.inner_text(".clock").strip() in ("1 s", "2 s")
            page.wait_for_selector(".clock.late")
            assert page.inner_text(".clock").strip() == "time is up"
            press(page, "1")
        assert [dict(record.extra) for record in store.comparisons()] == [{"late": True}]


@pytest.mark.parametrize("presenter", ["text", "abc", "html"])
def test_a_phone_needs_no_sideways_scrolling(browser: Browser, tmp_path: Path, presenter: str) -> None:
    """360 pixels wide, with words that are longer than that; the texts stand below each other, buttons fit thumbs."""
    long = "W" * 400 + " and\n" + "some more words " * 30
    with store_of(tmp_path, [long, long + "2"], prompt="P" * 200) as store:
        phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
        rater = "n" * 80
        with page_of(browser, session_of(store, target=9), tmp_path, presenter, rater, **phone) as page:
            assert page.evaluate("() => document.documentElement.scrollWidth") == 360
            upper, lower = boxes(page, ".card")
            assert upper["x"] == lower["x"]
            assert lower["y"] >= upper["y"] + upper["height"]
            buttons = boxes(page, ".verdicts button")
            assert len(buttons) == 6
            for size in buttons:
                assert size["height"] >= 44
                assert size["width"] >= 44
                assert size["x"] + size["width"] <= 360


def test_line_breaks_are_shown(browser: Browser, tmp_path: Path) -> None:
    with store_of(tmp_path, ["a", "a\nb\n\nc"]) as store, page_of(browser, session_of(store), tmp_path) as page:
        heights = [box["height"] for box in boxes(page, ".card .text")]
        assert max(heights) == pytest.approx(4 * min(heights), rel=0.02)


def batches(payloads: Sequence[str], size: int) -> list[str]:
    return ["\n".join(payloads[start : start + size]) for start in range(0, len(payloads), size)]


def test_payloads_do_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    """500 payloads, 75 a page in each of three places: no dialog, no script, no request, the same elements, all shown."""
    joined = batches(xss_payloads(), 75)
    plain: list[str] = []
    for number, payload in enumerate(["plain", *joined]):
        texts = [payload, payload + "\ntoo"]
        with (
            store_of(tmp_path / str(number), texts, prompt=payload) as store,
            page_of(browser, session_of(store), tmp_path, rater=payload) as page,
        ):
            tags = page.evaluate(TAGS)
            shown = page.evaluate(TEXTS)
            name = page.text_content(".who span")
        plain = plain or tags
        assert tags == plain
        assert sorted(shown) == sorted(printable(text) for text in [payload, *texts])
        assert name == printable(payload)


def test_documents_are_shown_and_run_nothing(browser: Browser, tmp_path: Path) -> None:
    """The html presenter: styles apply, scripts do not, nothing is loaded, and the page around it stays."""
    styled = "<style>b { color: rgb(1, 2, 3) }</style><b>bold</b><script>document.body.remove()</script>"
    with store_of(tmp_path, []) as store, socket.create_server(("127.0.0.1", 0)) as elsewhere:
        site = f"//127.0.0.1:{elsewhere.getsockname()[1]}"
        hostile = "\n".join(xss_payloads()).replace("//evil.invalid", site) + (
            f"<script>top.location = 'http:{site}/'</script><img src=http:{site}/><form action=http:{site}>"
            f"<iframe src=http:{site}></iframe><meta http-equiv=refresh content='0;url=http:{site}'>"
        )
        store.add_items([Item("", styled), Item("", hostile)])
        with page_of(browser, session_of(store), tmp_path, "html") as page:
            frames = [frame for frame in page.frames if "/frame/" in frame.url]
            assert len(frames) == 2
            [bold] = [frame for frame in frames if frame.query_selector("body > b:first-of-type") is not None][:1]
            assert bold.text_content("b") == "bold"
            assert bold.eval_on_selector("b", "element => getComputedStyle(element).color") == "rgb(1, 2, 3)"
            assert page.inner_text("h1") == "Which is better?"
            press(page, "1")
        assert verdicts(store) == [0]
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has come
            elsewhere.accept()
