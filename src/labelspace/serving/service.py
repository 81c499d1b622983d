"""What all routes share: the settings, the worker with the model, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..model.manifest import read_manifest
from ..model.model import Model
from .http import RefusedError
from .labels import LabelSearch
from .schemas import ErrorAnswer
from .worker import Answer, Change, Question, Worker

_SAID = {
    400: "The body cannot be read.",
    401: "The token is missing or wrong.",
    403: "The service was started without `--allow-edit`.",
    404: "There is no such project.",
    409: "The change could not be saved and was taken back.",
    413: "The body, or the number of texts, is over the limit.",
    415: "The body is of another type.",
    422: "The request can be read but not answered.",
    429: "Too many texts wait; `Retry-After` tells when to come again.",
    503: "The model is not open yet.",
}
_HEADERS = {
    401: {"WWW-Authenticate": {"description": "How to show the token.", "schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
    503: {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
}


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of answers with these statuses."""
    return {
        code: {
            "model": ErrorAnswer,
            "description": _SAID[code],
            "content": {"application/json": {"example": {"error": {"status": code, "message": _SAID[code]}}}},
            **({"headers": _HEADERS[code]} if code in _HEADERS else {}),
        }
        for code in codes
    }


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is served.

    Args:
        name: what the model is called.
        token: what a client must show to change documents and labels; None lets nobody.
        max_texts: texts, documents or labels of a request.
        max_k: labels a text.
        max_body: bytes of a request.
        batch: texts that are predicted together.
        queue: texts that may wait.
        origins: of pages elsewhere whose scripts may read the answers, as `cors.origin` gives them; "*" for all.
    """

    name: str
    token: str | None = None
    max_texts: int = 256
    max_k: int = 200
    max_body: int = 4 << 20
    batch: int = 128
    queue: int = 1024
    origins: tuple[str, ...] = ()


class Service:
    """The model behind the routes; see `Worker` for what ``opening`` and ``failed`` are."""

    def __init__(self, opening: Callable[[], Model], settings: Settings, failed: Callable[[BaseException], None]):
        self.settings = settings
        self.worker = Worker(opening, batch=settings.batch, queue=settings.queue, opened=self._describe, failed=failed)
        self.search: LabelSearch | None = None
        self.language = "und"

    def _describe(self, model: Model) -> dict[str, Any]:
        """What is told of the model; called in its thread, whenever it changed."""
        settings = self.settings
        changed, revision = None, 0
        if model.folder is not None:
            manifest = read_manifest(model.folder)
            revision = manifest["revision"]
            changed = model.history[-1]["time"] if model.history else manifest.get("created")
        config = model.info.get("config") or {}
        data = model.info.get("data") or {}
        self.language = (data.get("options") or {}).get("language") or "und"
        if self.search is None or self.search.labels is not model.labels:
            self.search = LabelSearch(model.labels)
        return {
            "name": settings.name,
            "revision": revision,
            "labels": len(model.labels),
            "documents": model.memory.n_documents,
            "dimensions": model.memory.label_keys.dim,
            "recipe": model.info.get("recipe"),
            "encoder": (config.get("encoding") or config).get("encoder"),  # older records are flat
            "voting": model.memory.settings,
            "calibrated": model.calibration is not None,
            "changed": changed,
            "editable": settings.token is not None,
            "limits": {
                "texts": settings.max_texts,
                "k": settings.max_k,
                "body_bytes": settings.max_body,
                "queue": settings.queue,
            },
            "labelspace": __version__,
        }

    def described(self) -> dict[str, Any]:
        """What is told of the model, as `schemas.ModelAnswer` has it; NotReadyError where it is not open."""
        self.worker.require_ready()
        return self.worker.state

    async def ask(self, question: Question) -> Answer:
        """Predict, when it is its turn; errors as of `Worker.ask` and the model.

        Raises:
            RefusedError: too many texts or labels.
        """
        self.within("texts", len(question.texts))
        if question.k > self.settings.max_k:
            raise RefusedError(422, f"k may be {self.settings.max_k} at most, got {str(question.k)[:50]}")
        return await asyncio.wrap_future(self.worker.ask(question))

    async def change(self, change: Change) -> tuple[list[str], dict[str, Any]]:
        """Change the model and save it, when it is its turn; gives the ids, and what is told of the model now."""
        return await asyncio.wrap_future(self.worker.change(change))

    @staticmethod
    def served(described: dict[str, Any]) -> dict[str, Any]:
        """Name and revision of a model, of what is told of it."""
        return {"name": described["name"], "revision": described["revision"]}

    def within(self, what: str, count: int) -> None:
        """Refuse a request that has more texts, documents, labels or ids than the limit."""
        if count > self.settings.max_texts:
            raise RefusedError(
                413, f"a request may have {self.settings.max_texts} {what} at most, this one has {count}; send several"
            )
