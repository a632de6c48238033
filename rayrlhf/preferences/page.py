"""The raters' page: FastAPI with pages rendered on the server, which work without scripts too."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Annotated, Protocol
from urllib.parse import parse_qs, quote, unquote

import jinja2
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from rayrlhf.errors import PreferenceError, UserError
from rayrlhf.preferences.page_guard import FRAME_HEADERS, PageGuard, allowed_hosts
from rayrlhf.preferences.presenters import AUDIO_TYPES, Audio, Html, Presenter
from rayrlhf.preferences.rating_session import LONGEST_NAME, VERDICTS, RatingSession, is_verdict, rater_name
from rayrlhf.report_page import environment

_STATIC = {"rate.css": "text/css", "rate.js": "text/javascript"}
_WATCH_S = 0.25
LINGER_S = 30.0  # the last verdict can be taken back for so long
_HERE = files(__package__)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form that was sent; of several with one name the last."""
    body = await request.body()  # the guard has bounded it
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=16)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    return {name: values[-1] for name, values in fields.items()}


Form = Annotated[dict[str, str], Depends(_form)]


def _to(path: str) -> Response:
    return RedirectResponse(path, 303)


class Render(Protocol):
    """Fills a template in."""

    def __call__(
        self, request: Request, template: str, context: Mapping[str, object], status: int = 200
    ) -> Response: ...


def _renderer(**shared: object) -> Render:
    """shared: what all templates get."""
    templates = environment(jinja2.PackageLoader(__package__, "templates"))

    def render(request: Request, template: str, context: Mapping[str, object], status: int = 200) -> Response:
        page = templates.get_template(template).render({**shared, **context, "nonce": request.state.nonce})
        return HTMLResponse(page, status)

    return render


def create_app(
    session: RatingSession,
    presenter: Presenter,
    question: str,
    token: str,
    host: str,
    port: int,
    only_rater: str | None = None,
) -> FastAPI:
    """The page as an ASGI app.

    token: who has it may rate (`new_token`). host, port: where it is served. only_rater: the name under which
    everybody rates; None: each is asked for theirs once.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(PageGuard, token=token, port=port, host_allowed=allowed_hosts(host, port))
    render = _renderer(question=question, name_is_fixed=only_rater is not None, longest_name=LONGEST_NAME)
    cookie = f"rayrlhf_rater_{port}"

    def rater(request: Request) -> str | None:
        return only_rater or rater_name(unquote(request.cookies.get(cookie, "")))

    @app.exception_handler(UserError)
    def failed(request: Request, error: UserError) -> Response:
        return render(request, "failed.html", {"message": str(error)}, 500)

    _add_names(app, render, cookie)
    _add_pairs(app, session, presenter, render, rater)
    _add_items(app, session, presenter)
    return app


def _add_names(app: FastAPI, render: Render, cookie: str) -> None:
    @app.post("/name")
    def name(request: Request, form: Form) -> Response:
        name = rater_name(form.get("name", ""))
        if name is None:
            return render(request, "name.html", {"wrong": True}, 422)
        answer = _to("/")
        answer.set_cookie(cookie, quote(name), httponly=True, samesite="strict")
        return answer

    @app.post("/leave")
    def leave() -> Response:
        answer = _to("/")
        answer.delete_cookie(cookie, httponly=True, samesite="strict")
        return answer


def _add_pairs(
    app: FastAPI,
    session: RatingSession,
    presenter: Presenter,
    render: Render,
    rater_of: Callable[[Request], str | None],
) -> None:
    @app.get("/")
    def show(request: Request, again: bool = False) -> Response:
        rater = rater_of(request)
        if rater is None:
            return render(request, "name.html", {"wrong": False})
        ticket = session.ticket(rater)
        context = {"rater": rater, "progress": session.progress(rater)}
        if ticket is None:
            return render(request, "done.html", {**context, "limit_reached": session.limit_reached})
        pair = {"ticket": ticket, "blocks": [presenter(item) for item in ticket.items], "again": again}
        timing = {"seconds": session.seconds, "left": max(0.0, session.seconds_left(rater))}
        return render(request, "pair.html", {**context, **pair, **timing})

    @app.post("/verdict")
    def judge(request: Request, form: Form) -> Response:
        verdict = form.get("verdict", "")
        if not is_verdict(verdict):
            raise HTTPException(400, f"no such verdict; there are {', '.join(VERDICTS)}")
        rater = rater_of(request)
        if rater is None:
            return _to("/")
        return _to("/" if session.judge(rater, form.get("ticket", ""), verdict) else "/?again=1")

    @app.post("/undo")
    def undo(request: Request) -> Response:
        rater = rater_of(request)
        if rater is not None:
            session.undo(rater)
        return _to("/")


def _add_items(app: FastAPI, session: RatingSession, presenter: Presenter) -> None:
    def block(item_id: str) -> object:
        item = session.item(item_id)
        return presenter(item) if item is not None else None

    @app.get("/sound/{item_id}")
    def sound(item_id: str) -> Response:
        shown = block(item_id)
        if not isinstance(shown, Audio):
            raise HTTPException(404)
        return FileResponse(shown.path, media_type=AUDIO_TYPES[shown.path.suffix.lower()])

    @app.get("/frame/{item_id}")
    def frame(item_id: str) -> Response:
        shown = block(item_id)
        if not isinstance(shown, Html):
            raise HTTPException(404)
        return HTMLResponse(shown.source.encode("utf-8", "replace"), headers=FRAME_HEADERS)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise HTTPException(404)
        return Response((_HERE / "static" / name).read_bytes(), media_type=_STATIC[name])


def new_token() -> str:
    return secrets.token_urlsafe(32)


def listen(host: str, port: int) -> socket.socket:
    """A socket for `serve`; port 0 takes a free one.

    Raises:
        PreferenceError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # so that who opens the address before the server runs waits for it
    except OSError as error:
        raise PreferenceError(f"the raters' page cannot be served at {host}, port {port}: {error}") from error
    return listening


def serve(app: FastAPI, listening: socket.socket, finished: Callable[[], bool], linger_s: float = LINGER_S) -> None:
    """Serves until Ctrl-C, or until `finished` has been true for `linger_s` seconds."""
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none")
    )
    ended = threading.Event()

    def watch() -> None:
        finished_at: float | None = None
        while not ended.wait(_WATCH_S):
            if not finished():
                finished_at = None
            elif finished_at is None:
                finished_at = time.monotonic()
            elif time.monotonic() - finished_at >= linger_s:
                server.should_exit = True

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        server.run(sockets=[listening])
    finally:
        ended.set()
        watcher.join()
