"""Answers that scripts of pages elsewhere may read (CORS), errors too."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from ..errors import SettingsError
from .http import METHODS, problem

USUAL_PORTS = {"http": ":80", "https": ":443"}


def origin(text: str) -> str:
    """An origin as browsers send it: in small letters, without the usual port; "*" stays.

    Raises:
        SettingsError: no origin.
    """
    if text.strip() == "*":
        return "*"
    found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:]+\]|[\w.-]+)(:\d{1,5})?/?", text.strip().lower())
    try:
        scheme, host, port = found.groups() if found else ("", "", None)
        host = host if host.startswith("[") else host.encode("idna").decode()
    except UnicodeError:
        host = ""
    if not host:
        raise SettingsError(
            f"--cors takes * or an origin such as https://app.example.org, without a path, got {text!r}"
        )
    return f"{scheme}://{host}{'' if port == USUAL_PORTS.get(scheme) else port or ''}"


class App(FastAPI):
    """FastAPI whose every answer, also one to an error that nobody foresaw, may be read from some origins."""

    def __init__(self, origins: tuple[str, ...], **options: Any):
        super().__init__(**options)
        self.origins = origins

    def build_middleware_stack(self) -> ASGIApp:
        """What answers: around all the rest, for an error is answered outside of all that is added as middleware."""
        app = super().build_middleware_stack()
        if not self.origins:
            return app
        return _Cors(app, self.origins, METHODS, ["*"], expose_headers=["Retry-After", "WWW-Authenticate"])


class _Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        """As of the framework, but a refusal is a sentence in JSON."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        asked = request_headers["origin"]
        if self.is_allowed_origin(asked):
            return problem(400, bytes(answer.body).decode(), {"Vary": answer.headers["Vary"]})
        said = f"pages of {asked[:100]!r} may not ask this service; start it with --cors {asked[:100]}"
        return problem(400, said, {"Vary": answer.headers["Vary"]})
