"""Who may see the raters' page: those who have its token, on the address it is served at; and headers for all answers.

Against DNS rebinding the Host header is checked, against requests that other sites send the Origin header, and the
cookie is SameSite=Strict.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, forms of the page itself would come from Origin null
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; media-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
FRAME_HEADERS = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; form-action 'none'; "
        "base-uri 'none'; frame-ancestors 'self'"
    ),
    "X-Frame-Options": "SAMEORIGIN",
}
"""For a document that a model wrote: no scripts, nothing from the network, no forms, an origin of its own."""


LARGEST_BODY = 1 << 16  # bytes of a request, whether it says how many come or sends them in chunks
_BODY_S = 20.0  # within which they have to come
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9a-zA-Z._-]+))(?::(0|[1-9][0-9]{0,4}))?")
"""A Host header: name or address, and the port as browsers write it."""


def allowed_hosts(host: str, port: int) -> Callable[[str], bool]:
    """Whether a Host header is one under which the page is served at `host` and `port`.

    A rebinding attack comes under the attacker's domain name: of a page for other machines any address will do.
    """
    own = {"127.0.0.1", "localhost", "::1", host.lower()}  # names have no capitals of their own

    def allowed(header: str) -> bool:
        parts = _HOST.fullmatch(header)
        if parts is None or int(parts[3] or 80) != port:
            return False
        name = (parts[1] or parts[2]).lower()
        return name in own or (not is_loopback(host) and _is_address(name))

    return allowed


def is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class PageGuard:
    """ASGI middleware: refuses what it should, exchanges the token of the printed address for a cookie.

    Requests that pass have `state.nonce`, for the scripts and style sheets of the page.
    """

    def __init__(self, app: ASGIApp, token: str, port: int, host_allowed: Callable[[str], bool]) -> None:
        self._app = app
        self._token = token
        self._cookie = f"rayrlhf_token_{port}"  # cookies are shared by all ports of a host
        self._host_allowed = host_allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":  # a web socket: there are none
            return
        nonce = secrets.token_urlsafe(16)
        scope.setdefault("state", {})["nonce"] = nonce

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**_HEADERS, "Content-Security-Policy": _POLICY.format(nonce=nonce)}.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._answer(scope, Headers(scope=scope))
        if answer is None:
            body = await _read_body(receive)
            if body is None:
                answer = _refusal(413, f"A request holds at most {LARGEST_BODY} bytes, and comes at once.")
            else:
                receive = _once(body, receive)
        await (answer or self._app)(scope, receive, send_with_headers)

    def _answer(self, scope: Scope, headers: Headers) -> Response | None:
        """A refusal, or the exchange of the token; None where the page may answer."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._host_allowed(hosts[0]):
            return _refusal(421, "This page is not served under that host name: open the address that was printed.")
        if scope["method"] not in ("GET", "HEAD") and headers.getlist("origin") != [f"{scope['scheme']}://{hosts[0]}"]:
            return _refusal(403, "Another site sent this request: it was not carried out.")
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if given and scope["method"] == "GET" and self._is_token(given[-1]):
            exchanged = RedirectResponse("/", 303)
            exchanged.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return exchanged
        if given or not self._is_token(_cookie(headers, self._cookie)):
            return _refusal(403, "The token is missing or wrong: open the address that `rayrlhf rate` printed.")
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._token.encode())


async def _read_body(receive: Receive) -> bytes | None:
    """The body of a request; None where it is too large or too slow, or the client goes before its end."""
    body = b""
    try:
        async with asyncio.timeout(_BODY_S):
            while len(body) <= LARGEST_BODY:
                message = await receive()
                if message["type"] != "http.request":  # the client has gone: half a form says nothing
                    return None
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    return body if len(body) <= LARGEST_BODY else None
    except TimeoutError:
        pass
    return None


def _once(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then what else comes: that the client has gone."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _cookie(headers: Headers, name: str) -> str:
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return cookie.value if cookie is not None else ""


def _refusal(status: int, message: str) -> Response:
    return PlainTextResponse(message + "\n", status, {"Connection": "close"})  # what is left of the request goes unread
