"""The raters' page without a browser: who gets in, what it answers, 500 payloads in three places (SPEC GWERN-1, -2)."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.check_config import ChecksConfig
from rayrlhf.preferences.page import create_app, new_token
from rayrlhf.preferences.page_guard import allowed_hosts
from rayrlhf.preferences.presenters import load_presenter
from rayrlhf.preferences.rate_cli import check_host
from rayrlhf.preferences.rating_session import RatingSession, rater_name
from rayrlhf.preferences.records import Comparison, Item, Skip
from rayrlhf.preferences.store import RatingStore
from rayrlhf.reading import printable
from tests.rating_parts import Skeleton, session_of, store_of, xss_payloads

TOKEN = new_token()
PORT = 8123
SITE = f"http://127.0.0.1:{PORT}"
OWN = {"origin": SITE}
RATER_COOKIE = f"rayrlhf_rater_{PORT}"


def client_of(
    session: RatingSession, folder: Path, presenter: str = "text", only_rater: str | None = None
) -> TestClient:
    app = create_app(
        session, load_presenter(presenter, folder), "Which is better?", TOKEN, "127.0.0.1", PORT, only_rater
    )
    return TestClient(app, base_url=SITE, raise_server_exceptions=False, follow_redirects=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RatingStore]:
    with store_of(tmp_path, [f"text {number}" for number in range(6)]) as opened:
        yield opened


@pytest.fixture
def stranger(store: RatingStore, tmp_path: Path) -> Iterator[TestClient]:
    """Knows neither token nor cookie."""
    with client_of(session_of(store), tmp_path) as client:
        yield client


@pytest.fixture
def ann(stranger: TestClient) -> TestClient:
    """Has come in by the printed address and given a name."""
    assert stranger.get("/", params={"token": TOKEN}).status_code == 200
    assert stranger.post("/name", data={"name": "Ann"}, headers=OWN).status_code == 200
    return stranger


class Page(Protocol):
    @property
    def text(self) -> str: ...


def ticket_on(page: Page) -> str:
    found = re.search(r'name="ticket" value="(\w+)"', page.text)
    assert found is not None, page.text
    return found[1]


PATHS = (
    "/",
    "/static/rate.js",
    "/frame/1",
    "/sound/1",
    "/verdict",
    "/undo",
    "/name",
    "/leave",
    "/docs",
    "/openapi.json",
)


@pytest.mark.parametrize(
    "token",
    [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "\ud800"],
    ids=["none", "empty", "wrong", "cut", "longer", "surrogate"],
)
def test_without_the_token_nothing_is_answered(stranger: TestClient, token: str | None) -> None:
    query = "" if token is None else f"?token={quote(token, errors='surrogatepass')}"
    for path in PATHS:
        for answer in (stranger.get(path + query), stranger.post(path + query, headers=OWN)):
            assert answer.status_code == 403
            assert "text" not in answer.text.replace("text/plain", "")


def test_a_wrong_cookie_is_no_token(stranger: TestClient) -> None:
    for value in ("wrong", "", quote(TOKEN) + "x"):
        assert stranger.get("/", headers={"cookie": f"rayrlhf_token_{PORT}={value}"}).status_code == 403
    assert stranger.get("/", headers={"cookie": f"rayrlhf_token_{PORT + 1}={TOKEN}"}).status_code == 403


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(stranger: TestClient) -> None:
    answer = stranger.get("/", params={"token": TOKEN}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "domain" not in cookie
    assert "Who is rating?" in stranger.get("/").text


FOREIGN_HOSTS = (
    "evil.invalid", f"evil.invalid:{PORT}", "127.0.0.1", "127.0.0.1:81", f"127.0.0.1.evil.invalid:{PORT}", "",
    f"127.0.0.1:{PORT}@evil.invalid", f"evil@127.0.0.1:{PORT}", f"10.0.0.1:{PORT}", f"127.0.0.1:{PORT}/x", "[::1",
)  # fmt: skip


def test_a_foreign_host_is_refused(ann: TestClient, store: RatingStore) -> None:
    """DNS rebinding: the browser is led to our address by another name, and sends that name."""
    form = {"ticket": ticket_on(ann.get("/")), "verdict": "1"}
    for host in FOREIGN_HOSTS:
        assert ann.get("/", headers={"host": host}).status_code == 421, host
        origin = {"host": host, "origin": f"http://{host}"}
        assert ann.post("/verdict", data=form, headers=origin).status_code == 421, host
    assert store.comparisons() == []


FOREIGN_ORIGINS = (
    None, "null", "http://evil.invalid", f"https://127.0.0.1:{PORT}", "http://127.0.0.1", f"http://localhost:{PORT}",
    f"{SITE}/", f"{SITE}.evil.invalid",
)  # fmt: skip


@pytest.mark.parametrize("path", ["/verdict", "/undo", "/name", "/leave"])
def test_a_foreign_origin_changes_nothing(ann: TestClient, store: RatingStore, path: str) -> None:
    ticket = ticket_on(ann.get("/"))
    form = {"ticket": ticket, "verdict": "1", "name": "Eve"}
    for origin in FOREIGN_ORIGINS:
        headers = {} if origin is None else {"origin": origin}
        assert ann.post(path, data=form, headers=headers).status_code == 403, origin
    assert store.comparisons() == []
    assert ticket_on(ann.get("/")) == ticket


def test_hosts_of_a_page_for_other_machines() -> None:
    """Any address, since rebinding needs a name; and the name that it was told to serve."""
    allowed = allowed_hosts("0.0.0.0", 80)
    assert [host for host in ("10.1.2.3", "10.1.2.3:80", "[fe80::1]:80", "localhost") if not allowed(host)] == []
    assert not any(allowed(host) for host in ("evil.invalid", "10.1.2.3:81", "10.1.2.3.evil.invalid"))
    assert allowed_hosts("gpu-box", 80)("gpu-box")
    assert allowed_hosts("GPU-Box", 80)("gpu-box")  # browsers send it in small letters, however it was given
    check_host("Localhost", allow_remote=False)


def test_another_machine_is_let_in_on_demand_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_host(host, allow_remote=False)
    assert capsys.readouterr().err == ""
    for host in ("0.0.0.0", "::", "192.168.0.7", "gpu-box"):
        with pytest.raises(PreferenceError, match="--allow-remote"):
            check_host(host, allow_remote=False)
    check_host("0.0.0.0", allow_remote=True)
    assert "warning" in capsys.readouterr().err


def test_headers_of_every_answer(ann: TestClient) -> None:
    refused = ann.get("/", headers={"host": "evil.invalid"})
    answers = [ann.get("/"), ann.get("/nowhere"), ann.get("/static/rate.css"), ann.put("/", headers=OWN), refused]
    nonces = set()
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        nonces.add(re.findall(r"'nonce-([\w-]{20,})'", policy)[0])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
    assert len(nonces) == len(answers)


def test_the_page_has_no_inline_script_style_or_handler(ann: TestClient) -> None:
    page = ann.get("/")
    nonce = re.findall(r"'nonce-([\w-]+)'", page.headers["content-security-policy"])[0]
    assert page.text.count(f'nonce="{nonce}"') == 2
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page.text) == []


def test_a_rater_without_scripts(ann: TestClient, store: RatingStore) -> None:
    """GWERN-1: verdict, skip, undo by forms alone; each is in the store when the next page comes."""
    first = ann.get("/")
    second = ann.post("/verdict", data={"ticket": ticket_on(first), "verdict": "2"}, headers=OWN)
    [record] = store.comparisons()
    assert (record.id, record.best, record.rater) == (ticket_on(first), 1, "Ann")
    assert "1</b> rated" in second.text
    ann.post("/verdict", data={"ticket": ticket_on(second), "verdict": "s"}, headers=OWN)
    assert len(store.skips()) == 1
    undone = ann.post("/undo", headers=OWN)
    assert store.skips() == []
    assert Skeleton(undone.text).texts == Skeleton(second.text).texts
    assert 'id="help"' in first.text
    assert 'href="#help"' in first.text


def test_a_form_that_is_sent_twice_counts_once_and_says_so(ann: TestClient, store: RatingStore) -> None:
    form = {"ticket": ticket_on(ann.get("/")), "verdict": "1"}
    assert "rated already" not in ann.post("/verdict", data=form, headers=OWN).text
    assert "rated already" in ann.post("/verdict", data=form, headers=OWN).text
    assert len(store.comparisons()) == 1


def test_an_unknown_verdict_is_refused(ann: TestClient, store: RatingStore) -> None:
    ticket = {"ticket": ticket_on(ann.get("/"))}
    for form in ({}, {"verdict": ""}, {"verdict": "4"}, {"verdict": "11"}, {"verdict": "tie"}):
        assert ann.post("/verdict", data={**form, **ticket}, headers=OWN).status_code == 400, form
    assert store.comparisons() == []


def answers_to(ann: TestClient, path: str, receive: Receive, **more: str) -> list[MutableMapping[str, Any]]:
    """What is sent to a request whose body comes by `receive`, sent in chunks unless `more` headers say otherwise."""
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    cookies = "; ".join(f"{name}={value}" for name, value in ann.cookies.items())
    headers = {"host": f"127.0.0.1:{PORT}", "cookie": cookies, "transfer-encoding": "chunked", **OWN, **more}
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http",
        "http_version": "1.1", "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", PORT), "app": ann.app,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(ann.app(scope, receive, send))
    return sent


def test_a_form_whose_sender_goes_before_its_end_says_nothing(ann: TestClient, store: RatingStore) -> None:
    form = f"ticket={ticket_on(ann.get('/'))}&verdict=1".encode()
    messages: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": form, "more_body": True}]

    async def receive() -> Message:
        return messages.pop()

    answers_to(ann, "/verdict", receive, **{"content-type": "application/x-www-form-urlencoded"})
    assert store.comparisons() == []


@pytest.mark.parametrize("path", ["/verdict", "/undo", "/name", "/leave"])
def test_a_body_without_end_is_read_to_a_bound(ann: TestClient, store: RatingStore, path: str) -> None:
    """Sent in chunks it names no length; on a page that takes no form as well nothing of it is kept."""
    read: list[int] = []

    async def receive() -> dict[str, object]:
        read.append(1)
        assert len(read) <= 20, "the body is read on and on"
        return {"type": "http.request", "body": b"x" * 8192, "more_body": True}

    sent = answers_to(ann, path, receive)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert store.comparisons() == []


@pytest.mark.parametrize(
    "header",
    [f"127.0.0.1:0{PORT}", f"127.0.0.1:{PORT} ", f"127.0.0.1:+{PORT}", f"a@127.0.0.1:{PORT}", "127.0.0.1:", "[::1"],
)
def test_a_host_is_written_as_browsers_write_it(header: str) -> None:
    assert allowed_hosts("127.0.0.1", PORT)(f"127.0.0.1:{PORT}")
    assert allowed_hosts("127.0.0.1", PORT)(f"LOCALHOST:{PORT}")
    assert allowed_hosts("::1", PORT)(f"[::1]:{PORT}")
    assert not allowed_hosts("127.0.0.1", PORT)(header)


def test_odd_bodies_are_refused(ann: TestClient, store: RatingStore) -> None:
    assert ann.post("/verdict", content=b"a=" + b"x" * 100_000, headers=OWN).status_code == 413
    assert ann.post("/verdict", content=b"&".join(b"a=1" for _ in range(100)), headers=OWN).status_code == 400
    assert ann.post("/verdict", content=b"\xff\x00%%%ff", headers=OWN).status_code == 400
    assert store.comparisons() == []


def test_two_raters_at_once_get_different_pairs(store: RatingStore, tmp_path: Path) -> None:
    session = session_of(store)
    pages = []
    for name in ("Ann", "Bob"):
        client = client_of(session, tmp_path)
        client.get("/", params={"token": TOKEN})
        pages.append(client.post("/name", data={"name": name}, headers=OWN))
    one, other = (frozenset(Skeleton(page.text).texts[1:]) for page in pages)
    assert len(one) == len(other) == 2
    assert one != other


def test_a_name_is_asked_for_once_and_can_be_changed(ann: TestClient) -> None:
    assert "Ann" in ann.get("/").text
    assert "Who is rating?" in ann.post("/leave", headers=OWN).text
    wrong = ann.post("/name", data={"name": "x" * 81}, headers=OWN)
    assert wrong.status_code == 422
    assert "1 to 80 characters" in wrong.text
    assert "Zoë <b>" in Skeleton(ann.post("/name", data={"name": "Zoë <b>"}, headers=OWN).text).all_text


def test_the_end_of_a_sitting(store: RatingStore, tmp_path: Path) -> None:
    client = client_of(session_of(store, limit=1), tmp_path, only_rater="Ann")
    page = client.get("/", params={"token": TOKEN})
    assert "change" not in page.text
    done = client.post("/verdict", data={"ticket": ticket_on(page), "verdict": "1"}, headers=OWN)
    assert "That was the last one" in done.text
    assert ticket_on(client.post("/undo", headers=OWN)) != ticket_on(page)


def test_what_wrote_a_text_stays_hidden(ann: TestClient) -> None:
    assert "hidden-generator" not in ann.get("/").text


def test_a_fault_of_the_users_is_shown_and_loses_nothing(store: RatingStore, tmp_path: Path) -> None:
    session = session_of(store, checks=ChecksConfig(command=("no-such-<b>command",)))
    client = client_of(session, tmp_path, only_rater="Ann")
    page = client.get("/", params={"token": TOKEN})
    assert page.status_code == 500
    assert "no-such-<b>command" in Skeleton(page.text).all_text


class InOrder:
    """Proposes neighbouring items: the texts 0 and 1, 2 and 3, ..."""

    def __call__(
        self, items: Sequence[Item], comparisons: Sequence[Comparison], skips: Sequence[Skip], *, count: int, seed: int,
        without: Collection[frozenset[str]],
    ) -> list[tuple[str, str]]:  # fmt: skip
        pairs = [(one.id, other.id) for one, other in zip(items[::2], items[1::2])]
        return [pair for pair in pairs if frozenset(pair) not in without][:count]


def test_payloads_leave_the_structure_of_the_page_as_it_is(tmp_path: Path) -> None:
    """500 payloads in three places at once, prompt, texts and rater's name: the same tags, and each shown as it stands."""
    payloads = xss_payloads()
    assert len(payloads) >= 500
    plain = ("plain", "Once upon", "a time", "another time")
    rows = [plain, *((payload[:80], payload, payload, payload + " too") for payload in payloads)]
    with store_of(tmp_path, []) as store:
        store.add_items(Item(row[1], text, generator=row[1]) for row in rows for text in row[2:])
        with client_of(session_of(store, propose=InOrder()), tmp_path) as client:
            client.get("/", params={"token": TOKEN})
            pages = []
            for rater, *_ in rows:
                client.cookies.set(RATER_COOKIE, quote(rater.encode("utf-8", "replace")), domain="127.0.0.1")
                pages.append(Skeleton(client.get("/").text))
    assert len(pages[0].tags) > 60
    for (rater, prompt, one, other), page in zip(rows, pages, strict=True):
        assert page.tags == pages[0].tags
        name = rater_name(rater.encode("utf-8", "replace").decode())
        assert name is not None
        assert printable(name) in page.all_text
        assert page.texts[0] == printable(prompt)
        assert sorted(page.texts[1:]) == sorted([printable(one), printable(other)])


def sound_project(folder: Path, sounds: Sequence[object]) -> RatingStore:
    (folder / "project" / "sounds").mkdir(parents=True)
    (folder / "project" / "sounds" / "a.wav").write_bytes(b"RIFF-not-really")
    (folder / "project" / "page.html").write_bytes(b"<script>alert(1)</script>")
    (folder / "secret.wav").write_bytes(b"secret")
    (folder / "project" / "link.wav").symlink_to(folder / "secret.wav")
    store = store_of(folder / "project", [])
    store.add_items(Item("", f"text {number}", extra={"audio": sound}) for number, sound in enumerate(sounds))
    return store


@pytest.mark.parametrize(
    ("sound", "status"),
    [
        ("sounds/a.wav", 200),
        ("sounds/../sounds/a.wav", 200),
        ("../secret.wav", 404),
        ("link.wav", 404),
        ("/etc/passwd", 404),
        ("sounds/missing.wav", 404),
        ("page.html", 404),
        ("ratings.sqlite", 404),
        ("a\x00.wav", 404),
        ("", 404),
        (3, 404),
    ],
)
def test_sounds_come_from_inside_the_project_alone(tmp_path: Path, sound: object, status: int) -> None:
    """A path out of the folder, by dots, link or root, is refused; what is refused is named on the page."""
    with sound_project(tmp_path, [sound, "sounds/a.wav"]) as store:
        client = client_of(session_of(store), tmp_path / "project", "audio", only_rater="Ann")
        page = client.get("/", params={"token": TOKEN})
        assert page.text.count("<audio controls") == (2 if status == 200 else 1)
        assert page.text.count('class="wrong"') == (0 if status == 200 else 1)
        first = next(iter(store.items()))
        answer = client.get(f"/sound/{first}")
        assert answer.status_code == status
        if status == 200:
            assert (answer.headers["content-type"], answer.content) == ("audio/wav", b"RIFF-not-really")
            assert client.get(f"/sound/{first}", headers={"range": "bytes=0-3"}).content == b"RIFF"
        assert client.get("/sound/..%2f..%2fsecret.wav").status_code == 404
        assert client.get(f"/frame/{first}").status_code == 404


def test_documents_go_in_a_frame_with_a_policy_of_their_own(tmp_path: Path) -> None:
    with store_of(tmp_path, ["<script>alert(1)</script><b>one</b>", "<style>b{color:red}</style><b>two</b>"]) as store:
        client = client_of(session_of(store), tmp_path, "html", only_rater="Ann")
        page = client.get("/", params={"token": TOKEN})
        assert page.text.count('<iframe sandbox="" ') == 2
        assert "alert" not in page.text
        for item in store.items().values():
            answer = client.get(f"/frame/{item.id}")
            assert answer.text == item.text
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("sandbox; default-src 'none';")
            assert "script-src" not in policy
            assert answer.headers["x-frame-options"] == "SAMEORIGIN"


def test_a_presenter_of_the_users_returns_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GWERN-2: a pluggable presenter; what it does wrong stands in the item's place, and the pair can be skipped."""
    (tmp_path / "my_presenters.py").write_text(
        "from rayrlhf.preferences.presenters import Preformatted\n"
        "class Upper:\n    def __call__(self, item):\n        return Preformatted(item.text.upper() + '<b>')\n"
        "def fails(item):\n    raise ValueError('<i>odd')\n"
        "def wrong(item):\n    return '<b>raw</b>'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with store_of(tmp_path, ["one", "two"]) as store:
        shown = {}
        for name in ("Upper", "fails", "wrong"):
            client = client_of(session_of(store), tmp_path, f"my_presenters:{name}", only_rater="Ann")
            page = client.get("/", params={"token": TOKEN})
            assert "<b>raw" not in page.text
            assert "<i>odd" not in page.text
            shown[name] = Skeleton(page.text)
    assert sorted(shown["Upper"].texts[1:]) == ["ONE<b>", "TWO<b>"]
    assert "my_presenters.py:6: ValueError: <i>odd" in shown["fails"].all_text
    assert "returned a str" in shown["wrong"].all_text
    with pytest.raises(PreferenceError, match="Known: text, abc, audio, html"):
        load_presenter("txt", tmp_path)


def test_visible_makes_what_cannot_be_seen_visible() -> None:
    assert printable("a\tb\nc\r\nd\re") == "a\tb\nc\nd\N{SYMBOL FOR CARRIAGE RETURN}e"
    assert printable("\x1b[31m\x00") == "\N{SYMBOL FOR ESCAPE}[31m\N{SYMBOL FOR NULL}"
    assert printable("\ud800\u202e\x9b") == "\ufffd\ufffd\ufffd"
    assert printable("𝄞 ü 日本") == "𝄞 ü 日本"


def test_the_command_serves_the_page_and_stops_after_the_last_pair(tmp_path: Path) -> None:
    """`rayrlhf rate PROJECT`: the printed address works, what is rated is in the store, Ctrl-C ends it in peace."""
    store_of(tmp_path, [f"text {number}" for number in range(6)]).close()
    command = [sys.executable, "-u", "-m", "rayrlhf", "rate", str(tmp_path), "--rater", "Ann", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            site = "http://" + urlsplit(address).netloc
            with httpx.Client(follow_redirects=True) as client:
                assert client.get(site).status_code == 403
                page = client.get(address)
                form = {"ticket": ticket_on(page), "verdict": "1"}
                assert client.post(f"{site}/verdict", data=form, headers={"origin": site}).status_code == 200
            with RatingStore(tmp_path / "ratings.sqlite") as store:
                assert [record.rater for record in store.comparisons()] == ["Ann"]
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=20)
            assert process.returncode == 0, output
            assert "1 comparisons by people in the project." in output
        finally:
            process.kill()
