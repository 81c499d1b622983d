"""What every route needs: JSON out, errors as JSON with one sentence, bodies of a bounded size, form fields."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import LabelspaceError, ResourceError
from .worker import BusyError, NotReadyError, UnsavedError

logger = logging.getLogger(__name__)

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
BODY_SECONDS = 20.0
"""How long the service waits for more of a body."""
DRAIN_SECONDS = 5.0
"""How long a body that is too large is read and forgotten, so that the client hears the answer."""


class HeadAsGet:
    """Answers HEAD as GET, without the body.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def bare(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, bare)


class RefusedError(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        message: one sentence.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        self.status, self.message, self.headers = status, message, headers or {}
        super().__init__(message)


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON.

    Args:
        content: dicts, lists, strings and finite numbers.
        status: of HTTP.
        headers: of the answer.
    """
    try:
        body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type="application/json")


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error.

    Args:
        status: of HTTP.
        message: one sentence.
        headers: of the answer.
    """
    return as_json({"error": {"status": status, "message": message}}, status, headers)


class BodyLimit:
    """Reads the body of a request before anything else does, and refuses those that are too large with 413.

    Args:
        app: what answers.
        limit: bytes.
    """

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        parts: list[bytes] = []
        size, more, until = 0, True, time.monotonic() + DRAIN_SECONDS
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        length = int(announced) if announced.isdigit() and len(announced) < 20 else 0
        while more:
            too_large = max(size, length) > self.limit
            try:
                message = await asyncio.wait_for(
                    receive(), max(0.0, until - time.monotonic()) if too_large else BODY_SECONDS
                )
            except TimeoutError:
                if too_large:
                    break
                said = f"no more of the body came for {BODY_SECONDS:g} seconds"
                await problem(408, said, {"Connection": "close"})(scope, receive, send)
                return
            if message["type"] == "http.disconnect":
                return
            part = message.get("body", b"")
            size += len(part)
            if size <= self.limit:
                parts.append(part)
            more = message.get("more_body", False)
        if size > self.limit or length > self.limit:
            said = f"a request may have {self.limit} bytes at most, this one has {max(size, length)}; send fewer texts"
            await problem(413, said, {"Connection": "close"})(scope, receive, send)
            return
        kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        twice = _key_twice(b"".join(parts)) if b"json" in kind else None
        if twice is not None:
            said = f"the body has the key {twice[:50]!r} twice in one object; give each once"
            await problem(400, said)(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


class _TwiceError(Exception):
    """A key that an object has twice."""


def _key_twice(body: bytes) -> str | None:
    """A key that an object of a JSON text has twice, of which a parser would silently take the last; None for none."""

    def checked(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise _TwiceError(next(key for key in keys if keys.count(key) > 1))

    try:
        json.loads(body, object_pairs_hook=checked)
    except _TwiceError as error:
        return str(error)
    except (ValueError, RecursionError):  # no JSON, which is told elsewhere
        pass
    return None


async def form_fields(request: Request) -> dict[str, str]:
    """The fields of a posted form; of those given twice the last.

    Args:
        request: with a body of ``application/x-www-form-urlencoded``.

    Raises:
        RefusedError: another kind of body, or one that cannot be read.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise RefusedError(
            415, f"a form is read as application/x-www-form-urlencoded, got {kind or 'no Content-Type'!r}"
        )
    try:
        body = (await request.body()).decode()
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=100, errors="strict"))
    except ValueError:  # not UTF-8 either
        raise RefusedError(400, "the form cannot be read: it must be UTF-8 with at most 100 fields") from None


def number(fields: dict[str, str], name: str, kind: type[int] | type[float], low: float, high: float) -> Any:
    """A number among the fields of a form or query; None where it is not given.

    Args:
        fields: by name.
        name: of the field.
        kind: int or float.
        low: the least it may be.
        high: the most.

    Raises:
        RefusedError: not a number, or out of bounds.
    """
    given = fields.get(name, "").strip()
    if not given:
        return None
    try:
        value = kind(given) if len(given) < 100 else kind("")
    except ValueError:
        value = kind(low) - 1
    if not low <= value <= high:  # NaN too
        what = "a whole number" if kind is int else "a number"
        raise RefusedError(422, f"{name} must be {what} from {low} to {high}, got {given[:50]!r}")
    return value


def answer_errors(app: FastAPI) -> None:
    """Make every error of an app JSON with one sentence.

    Args:
        app: whose errors.
    """

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return problem(error.status, error.message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _invalid(request, error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:200]
        said = {
            404: f"there is nothing at {path!r}; see /openapi.json for what there is",
            405: f"{path!r} does not take {request.method}; see /openapi.json for what it takes",
            400: "the body cannot be read as JSON",
        }.get(error.status_code, f"{error.detail}")
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the router names those of the first route of the path alone
            headers["Allow"] = ", ".join(
                method
                for method in METHODS
                if any(
                    route.matches({**request.scope, "method": "GET" if method == "HEAD" else method})[0] is Match.FULL
                    for route in request.app.routes
                )
            )
        return problem(error.status_code, said, headers)

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> Response:
        return problem(429, str(error), {"Retry-After": str(error.seconds)})

    @app.exception_handler(NotReadyError)
    async def unready(request: Request, error: NotReadyError) -> Response:
        return problem(503, f"{error}; try again later", {"Retry-After": "1"})

    @app.exception_handler(UnsavedError)
    async def unsaved(request: Request, error: UnsavedError) -> Response:
        return problem(409, str(error))

    @app.exception_handler(ResourceError)
    async def short_of_memory(request: Request, error: ResourceError) -> Response:
        return problem(503, str(error), {"Retry-After": "10"})

    @app.exception_handler(LabelspaceError)
    async def wrong(request: Request, error: LabelspaceError) -> Response:
        return problem(422, str(error))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return problem(500, "something went wrong that should not have; the log of the service has the details")


def _invalid(request: Request, error: RequestValidationError) -> Response:
    """The first complaint in one sentence."""
    first = error.errors()[0]
    place = [part for part in first["loc"][1:] if part != "__root__"]
    if first["type"] == "json_invalid":
        return problem(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if not place and not (kind == "application/json" or kind.endswith("+json")):
        return problem(415, f"the body must be JSON with Content-Type: application/json, got {kind or 'none'!r}")
    message = str(first["msg"]).removeprefix("Value error, ")
    said = f"{where or first['loc'][0]}: {message[:1].lower()}{message[1:]}"
    if first["type"] == "extra_forbidden":
        said = f"there is no field {where!r} here; see /openapi.json for the fields"
    elif first["type"] == "missing":
        said = f"{where or 'the body'} is missing"
    elif isinstance(first.get("input"), str | int | float | bool):
        said += f", got {str(first['input'])[:50]!r}"
    return problem(422, said)


def json_protocol() -> type[asyncio.Protocol]:
    """uvicorn's protocol, with JSON in place of plain text where a request cannot be read as HTTP."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class JsonProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def send_400_response(self, msg: str) -> None:
            body = problem(400, "the request cannot be read as HTTP").body
            head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            self.transport.write(
                f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + bytes(body)
            )
            self.transport.close()

    return JsonProtocol
