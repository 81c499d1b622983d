"""What every route needs: JSON out, errors as JSON with one sentence, bodies of a bounded size, form fields."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, ImmutableMultiDict
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import LabelspaceError, ResourceError
from .worker import BusyError, NotReadyError, UnsavedError

Fields = ImmutableMultiDict[str, str]
"""Of a form or of the query of an address; a name may come several times."""
MAX_FIELDS = 1000
"""Of a form."""
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
BODY_SECONDS = 20.0
"""How long the service waits for more of a body."""
DRAIN_SECONDS = 5.0
"""How long a body that is too large is read and thrown away: a client that still sends would not hear the answer."""


class OneSpelling:
    """Answers HEAD as GET without the body, and a path with too many slashes, or one at its end, as that without."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": re.sub("/+", "/", scope["path"]).rstrip("/") or "/"}
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def bare(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, bare)


class RefusedError(Exception):
    """A request that cannot be answered: the HTTP status, one sentence, and headers of the answer."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        self.status, self.message, self.headers = status, message, headers or {}
        super().__init__(message)


def refusal(error: Exception) -> RefusedError:
    """What a client is told of an error of the worker or of the model."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, BusyError):
        return RefusedError(429, str(error), {"Retry-After": str(error.seconds)})
    if isinstance(error, NotReadyError):
        return RefusedError(503, f"{error}; try again later", {"Retry-After": "1"})
    if isinstance(error, ResourceError):
        return RefusedError(503, str(error), {"Retry-After": "10"})
    return RefusedError(409 if isinstance(error, UnsavedError) else 422, str(error))


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON of dicts, lists, strings and finite numbers."""
    try:
        body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type="application/json")


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An answer that tells an error in one sentence."""
    return as_json({"error": {"status": status, "message": message}}, status, headers)


class BodyLimit:
    """Reads the body of a request before anything else does, and refuses those that have over ``limit`` bytes."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            body = await self._read(headers, receive)
            if body is not None:
                body = self._unzipped(body, headers.get("content-encoding", "").strip().lower())
            if body and _is_json(_content_type(headers)):
                _require_json(body)
        except RefusedError as error:
            await problem(error.status, error.message, error.headers)(scope, receive, send)
            return
        if body is None:
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None where the client has gone."""
        parts: list[bytes] = []
        size, until = 0, time.monotonic() + DRAIN_SECONDS
        announced = headers.get("content-length", "")
        length = int(announced) if announced.isdecimal() and len(announced) < 20 else 0
        # Whoever asks before it sends is refused unread: to receive would be to say "go on"
        more = length <= self.limit or headers.get("expect", "").strip().lower() != "100-continue"
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
                raise RefusedError(408, said, {"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= self.limit:
                parts.append(part)
            more = message.get("more_body", False)
        size = max(size, length)
        if size > self.limit:
            said = f"a request may have {self.limit} bytes at most, this one has {size}; send fewer texts"
            raise RefusedError(413, said, {"Connection": "close"})
        return b"".join(parts)

    def _unzipped(self, body: bytes, encoding: str) -> bytes:
        """The plain bytes of a body; a small one that would grow beyond the limit is refused before it has."""
        if encoding in ("", "identity"):
            return body
        if encoding not in ("gzip", "x-gzip"):
            said = f"a body is sent plain or with Content-Encoding: gzip, got {encoding[:50]!r}"
            raise RefusedError(415, said, {"Accept-Encoding": "gzip"})
        try:
            plain = gzip.GzipFile(fileobj=io.BytesIO(body)).read(self.limit + 1)
        except EOFError:
            raise RefusedError(400, "the gzip body is cut short") from None
        except (OSError, zlib.error):
            raise RefusedError(400, "the body is not gzip, as its Content-Encoding says") from None
        if len(plain) > self.limit:
            said = f"a request may have {self.limit} bytes at most, this one has more once unpacked; send fewer texts"
            raise RefusedError(413, said)
        return plain


def _require_json(body: bytes) -> None:
    """Refuse what is no JSON, and an object that has a key twice, of which a parser would silently take the last."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise RefusedError(400, f"the body has the key {twice[:50]!r} twice in one object; give each once")

    try:
        json.loads(body, object_pairs_hook=check)
    except json.JSONDecodeError as error:
        said = f"{error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}, column {error.colno}"
        raise RefusedError(400, f"the body is not JSON: {said}") from None
    except UnicodeDecodeError as error:
        raise RefusedError(400, f"the body is not JSON: byte {error.start + 1} of it is not {error.encoding}") from None
    except ValueError:  # of int
        raise RefusedError(400, "the body has a whole number of too many digits") from None
    except RecursionError:
        raise RefusedError(400, "the body is JSON nested too deep") from None


def _content_type(headers: Headers) -> str:
    return headers.get("content-type", "").split(";")[0].strip().lower()


def _is_json(kind: str) -> bool:
    return kind == "application/json" or kind.endswith("+json")


async def form_fields(request: Request) -> Fields:
    """The fields of a posted form; RefusedError where the body cannot be read so."""
    kind = _content_type(request.headers)
    if kind != "application/x-www-form-urlencoded":
        raise RefusedError(
            415, f"a form is read as application/x-www-form-urlencoded, got {kind or 'no Content-Type'!r}"
        )
    try:
        body = (await request.body()).decode()
        return Fields(parse_qsl(body, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError:  # not UTF-8 either
        raise RefusedError(400, f"the form cannot be read: it must be UTF-8 with at most {MAX_FIELDS} fields") from None


def require_once(fields: Fields, but: Sequence[str] = ()) -> None:
    """Refuse a field that is given twice, of which one would count silently; those of ``but`` are lists."""
    for name in fields:
        if name not in but and len(fields.getlist(name)) > 1:
            raise RefusedError(400, f"{name[:50]!r} is given twice; give it once")


def only(*once: str, but: Sequence[str] = ()) -> Callable[[Request], Awaitable[None]]:
    """What refuses an address whose query has other parameters than these; those of ``but`` are lists."""

    async def check(request: Request) -> None:
        require_once(request.query_params, but)
        for name in request.query_params:
            if name not in (*once, *but):
                known = " and ".join((*once, *but))
                said = f"the address takes {known} only" if known else "the address takes none: fields go into the body"
                raise RefusedError(422, f"there is no parameter {name[:50]!r} here; {said}")

    return check


def number(fields: Fields, name: str, kind: type[int] | type[float], low: float, high: float) -> Any:
    """The number, from low to high, in a field of a form or query; None where it is not given.

    Raises:
        RefusedError: not a number, or out of bounds.
    """
    text = fields.get(name, "").strip()
    if not text:
        return None
    try:
        value = kind(text) if len(text) < 100 else kind("")
    except ValueError:
        value = kind(low) - 1
    if not low <= value <= high:  # NaN too
        what = "a whole number" if kind is int else "a number"
        raise RefusedError(422, f"{name} must be {what} from {low} to {high}, got {text[:50]!r}")
    return value


def answer_errors(app: FastAPI) -> None:
    """Make every error of an app JSON with one sentence."""

    @app.exception_handler(RefusedError)
    @app.exception_handler(BusyError)
    @app.exception_handler(NotReadyError)
    @app.exception_handler(UnsavedError)
    @app.exception_handler(LabelspaceError)
    async def refused(request: Request, error: Exception) -> Response:
        told = refusal(error)
        return problem(told.status, told.message, told.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        told = _complaint(request, error)
        return problem(told.status, told.message)

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
            headers["Allow"] = ", ".join(method for method in METHODS if _takes(request, method))
        return problem(error.status_code, said, headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return problem(500, "something went wrong that should not have; the log of the service has the details")


def _takes(request: Request, method: str) -> bool:
    """Whether a route takes this method at the path of a request."""
    scope = {**request.scope, "method": "GET" if method == "HEAD" else method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


def _complaint(request: Request, error: RequestValidationError) -> RefusedError:
    """The first complaint in one sentence."""
    first = error.errors()[0]
    place = [part for part in first["loc"][1:] if part != "__root__"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    kind = _content_type(request.headers)
    if not place and not _is_json(kind):
        return RefusedError(415, f"the body must be JSON with Content-Type: application/json, got {kind or 'none'!r}")
    if first["type"] == "extra_forbidden":
        return RefusedError(422, f"there is no field {where!r} here; see /openapi.json for the fields")
    if first["type"] == "missing":
        return RefusedError(422, f"{where or 'the body'} is missing")
    message = str(first["msg"]).removeprefix("Value error, ")
    said = f"{where or first['loc'][0]}: {message[:1].lower()}{message[1:]}"
    if isinstance(first.get("input"), str | int | float | bool):
        said += f", got {str(first['input'])[:50]!r}"
    return RefusedError(422, said)


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
