"""The label page's server: on this machine alone, and for nobody who does not know its address."""

from __future__ import annotations

from collections.abc import Callable
import functools
import json
import secrets
import socket
import sys
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
import uvicorn

from tfds_rcm.errors import UserError
from tfds_rcm.labelling import journal, page
from tfds_rcm.labelling.session import Session

HOST = "127.0.0.1"
_MAX_BODY = 1 << 20
_HEADERS = {
  "cache-control": "no-store",  # pictures of patients stay out of the browser's cache
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",  # the address is the key
  "x-content-type-options": "nosniff",
}


def listen(port: int = 0) -> socket.socket:
  """A socket that this machine's own programs can reach; port 0 takes a free one.

  Raises:
    UserError: the port is taken.
  """
  server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
  server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    server.bind((HOST, port))
    server.listen()  # who comes before the server is ready waits
  except (OSError, OverflowError) as error:
    server.close()
    raise UserError(f"--port={port}: cannot be used ({error}); leave it out") from error
  return server


def serve(session: Session, server: socket.socket, token: str) -> None:
  """Answers until the process is asked to end."""
  app = make_app(session, server.getsockname()[1], token)
  config = uvicorn.Config(
    app, log_level="error", access_log=False, lifespan="off", ws="none", server_header=False,
    timeout_graceful_shutdown=2,
  )  # fmt: skip
  uvicorn.Server(config).run(sockets=[server])


def new_token() -> str:
  """A part of the address that nobody can guess."""
  return secrets.token_urlsafe(24)


def make_app(session: Session, port: int, token: str) -> ASGIApp:
  """The server as an ASGI application.

  Args:
    session: whose page it is.
    port: that it listens on.
    token: the address's first part.
  """
  routes = [
    Route("/", _page),
    Route("/overview", _get(session, lambda s, r: s.overview())),
    Route("/find", _get(session, lambda s, r: {"number": s.find(r.query_params["stack"])})),
    Route("/task/{number:int}", _get(session, lambda s, r: s.task(r.path_params["number"]))),
    Route("/task/{number:int}/slice/{t:int}", functools.partial(_slice, session)),
    Route("/task/{number:int}/answer", functools.partial(_answer, session), methods=["POST"]),
    Route("/task/{number:int}/prediction", functools.partial(_predict, session), methods=["POST"]),
  ]
  return Guard(Starlette(routes=routes), port, token)


class Guard:
  """Lets through only requests to this address, from this page, that know the token."""

  def __init__(self, app: ASGIApp, port: int, token: str):
    self._app = app
    self._prefix = f"/{token}/"
    self._hosts = tuple(f"{name}:{port}" for name in (HOST, "localhost"))

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      return
    refusal = self._refusal(scope)
    if refusal:
      await Response(refusal, 403, media_type="text/plain")(scope, receive, send)
      return
    path = scope["path"]
    if not secrets.compare_digest(path[: len(self._prefix)].encode(), self._prefix.encode()):
      await Response("not found", 404, media_type="text/plain")(scope, receive, send)
      return
    inner = path[len(self._prefix) - 1 :]
    await self._app({**scope, "path": inner, "raw_path": inner.encode()}, receive, send)

  def _refusal(self, scope: Scope) -> str:
    """Why a request is refused, empty if it is not.

    A foreign name in Host is another site that had its name point here (DNS rebinding).
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if headers.get(b"host", "") not in self._hosts:
      return "wrong host"
    origin = headers.get(b"origin")
    if origin is not None and origin not in [f"http://{host}" for host in self._hosts]:
      return "wrong origin"
    site = headers.get(b"sec-fetch-site", "none")
    opened = headers.get(b"sec-fetch-mode") == "navigate" and scope["method"] == "GET"
    if site not in ("none", "same-origin") and not opened:
      return "wrong site"
    return ""


def _page(request: Request) -> Response:
  del request
  nonce = secrets.token_urlsafe(16)
  policy = (
    f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )
  headers = {**_HEADERS, "content-security-policy": policy}
  return HTMLResponse(page.fill("label", {"nonce": nonce}), headers=headers)


def _get(session: Session, answer: Callable[[Session, Request], Any]) -> Callable:
  return lambda request: _told(functools.partial(answer, session, request), session)


def _told(make: Callable[[], Any], session: Session) -> Response:
  """JSON of what is made, or of why it cannot be.

  Messages that name files go to the terminal: they may name the patient.
  """
  try:
    return JSONResponse(make(), headers=_HEADERS)
  except (IndexError, KeyError):
    return _fault(404, "there is no such stack")
  except journal.Conflict as error:
    return JSONResponse(session.conflict(error), 409, headers=_HEADERS)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return _fault(422, "The server refused; why stands in its terminal.")
  except OSError as error:
    reason = f"{error.filename or session.journal.path}: {error.strerror or error}"
    print(f"error: {reason}; make room", file=sys.stderr, flush=True)
    return _fault(507, "The disk takes nothing more; why stands in the terminal.")


def _fault(code: int, message: str) -> Response:
  return JSONResponse({"error": message}, code, headers=_HEADERS)


def _slice(session: Session, request: Request) -> Response:
  number, t = request.path_params["number"], request.path_params["t"]
  try:
    png, levels = session.png(number, t)
  except (IndexError, UserError) as error:
    if isinstance(error, UserError):
      print(f"error: {error}", file=sys.stderr, flush=True)
    return _fault(404, "This slice cannot be read; why stands in the terminal.")
  headers = {**_HEADERS, "x-gray-levels": f"{levels[0]},{levels[1]}"}
  return Response(png, media_type="image/png", headers=headers)


async def _answer(session: Session, request: Request) -> Response:
  return await _post(
    session, request, lambda values: session.answer(request.path_params["number"], values)
  )


async def _predict(session: Session, request: Request) -> Response:
  def show(values):
    window = str(values.get("window", "")) if isinstance(values, dict) else ""
    return session.show_prediction(request.path_params["number"], window)

  return await _post(session, request, show)


async def _post(session: Session, request: Request, act: Callable[[Any], Any]) -> Response:
  if request.headers.get("content-type", "").partition(";")[0] != "application/json":
    return _fault(415, "expected JSON")
  body = b""
  async for chunk in request.stream():
    body += chunk
    if len(body) > _MAX_BODY:
      return _fault(413, "too long")
  try:
    values = json.loads(body)
  except ValueError:
    return _fault(400, "expected JSON")
  return await run_in_threadpool(_told, lambda: act(values), session)
