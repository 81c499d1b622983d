"""The page at /: one HTML file that loads nothing else. Its form works without scripts; a script makes it live."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from importlib.resources import files
from typing import Any

import jinja2
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from ..errors import LabelspaceError
from .answers import labels_of, value_of
from .http import RefusedError, form_fields, number, refusal, require_once
from .service import Service
from .worker import BusyError, NotReadyError, Question

K, MOST = 5, 50
"""Labels that are shown first, and at most."""
OPENING = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>labelspace</title><p>The model is being opened; this page looks again in two seconds.</p>"""


def _policy(page: str) -> str:
    """A content security policy that allows the page's own script and style, and requests to where it came from."""

    def own(tag: str) -> str:
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return "'sha256-" + base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; script-src {own('script')}; style-src {own('style')}; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


def page_routes(service: Service) -> APIRouter:
    """The page, asked for and filled in."""
    router = APIRouter()
    source = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    headers = {
        "Content-Security-Policy": _policy(source),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }

    most = min(MOST, service.settings.max_k)

    def render(status: int = 200, more_headers: dict[str, str] | None = None, **values: Any) -> Response:
        try:
            told = service.described()
        except NotReadyError:
            return HTMLResponse(OPENING, 503, {**headers, "Retry-After": "2"})
        votes = told["voting"]["scoring"] == "votes"
        own = told["voting"]["weight"]
        shown: dict[str, Any] = {"text": "", "k": min(K, most), "threshold": 0.0, "weight": None}
        shown |= {"labels": None, "note": None, "error": None, **values}
        asked = shown["weight"]
        data = {"editable": told["editable"], "most": most, "weight": own, "asked": asked}
        shown["weight"] = own if asked is None else asked
        html = template.render(told=told, votes=votes, most=most, data=json.dumps(data), **shown)
        return HTMLResponse(html.encode("utf-8", "replace"), status, {**headers, **(more_headers or {})})

    @router.get("/")
    async def page() -> Response:
        return render()

    @router.post("/")
    async def ask(request: Request) -> Response:
        values: dict[str, Any] = {}  # of the fields that could be read, which an error leaves in the form
        try:
            fields = await form_fields(request)
            require_once(fields)
            values["text"] = text = fields.get("text", "").replace("\r\n", "\n")
            values["k"] = k = number(fields, "k", int, 1, most) or min(K, most)
            values["threshold"] = threshold = number(fields, "threshold", float, 0, 1) or 0.0
            weight = number(fields, "weight", float, 0, 1)
            voting = service.described()["voting"]
            if weight is not None and (voting["scoring"] != "votes" or abs(weight - voting["weight"]) < 0.0051):
                weight = None  # where the slider stands for the model's own
            values["weight"] = weight
            if not text.strip():
                raise RefusedError(422, "give a text")
            answer = await service.ask(Question([text], k, True, weight))
        except NotReadyError:
            return render()
        except (RefusedError, BusyError, LabelspaceError) as error:
            told = refusal(error)
            return render(told.status, told.headers, **values, error=told.message)
        if weight is not None:
            values["note"] = "There are no probabilities for this weight, only for the model's own."
        return render(**values, labels=_shown(labels_of(answer)[0], threshold))

    return router


def _shown(labels: list[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """Labels with what is shown as their value, and the lengths of bars in percent."""
    best = max((label["score"] for label in labels), default=1.0)
    shown = []
    for label in labels:
        value = value_of(label)
        if threshold and value < threshold:
            continue
        share = value if label["probability"] is not None else value / max(best, 1e-9)
        for reason in label["why"]:
            reason["times"] = math.exp(reason["similarity"]) if reason["kind"] == "words" else None
            reason["width"] = _percent(reason["share"] / max(label["score"], 1e-9))
        shown.append({**label, "value": value, "width": _percent(share)})
    return shown


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.1f}"
