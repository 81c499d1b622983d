"""The routes of the service."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Query, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from .. import __version__
from ..model.model import Model
from .annif import annif_routes
from .answers import labels_of
from .cors import App
from .http import BodyLimit, OneSpelling, RefusedError, answer_errors, as_json, only
from .page import page_routes
from .schemas import (
    AddDocuments,
    AddLabels,
    Changed,
    Ids,
    LabelsAnswer,
    ModelAnswer,
    PredictAnswer,
    PredictRequest,
    RenameLabels,
    State,
)
from .service import Service, Settings, errors
from .worker import Change, Question

ABOUT = """Predicts labels for texts, tells why, and, where that is allowed, changes what it knows without training.

Every error is JSON: `{"error": {"status": 422, "message": "one sentence"}}`. HEAD goes wherever GET does."""

Removed = Annotated[
    Ids | None, Body(openapi_examples={"ids": {"value": {"ids": ["added-11"]}}}, description="What shall be removed.")
]
Named = Annotated[list[str], Query(description="What shall be removed, instead of a body.", examples=[["added-11"]])]
BEARER = HTTPBearer(auto_error=False, description="The token that was printed at the start, or LABELSPACE_TOKEN.")


def make_app(
    opening: Callable[[], Model], settings: Settings, failed: Callable[[BaseException], None] = lambda error: None
) -> FastAPI:
    """The service as an ASGI application; it opens the model when it starts, and finishes what it took when it ends.

    Args:
        opening: opens the model, in another thread.
        settings: how it is served.
        failed: called in that thread when the model cannot be opened.
    """
    service = Service(opening, settings, failed)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.stop()

    app = App(
        settings.origins,
        title="labelspace",
        version=__version__,
        description=ABOUT,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    answer_errors(app)
    app.add_middleware(BodyLimit, limit=settings.max_body)
    app.add_middleware(OneSpelling)
    _state(app, service)
    _predictions(app, service)
    _changes(app, service)
    annif = annif_routes(service)
    app.include_router(annif)
    app.include_router(annif, prefix="/v1", include_in_schema=False)  # where Annif itself has them
    app.include_router(page_routes(service), include_in_schema=False)
    return app


def _shown(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": example}}}}


def _state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_model=State, tags=["state"], responses=_shown({"status": "alive"}))
    async def healthz() -> Response:
        """Whether the process lives."""
        return as_json({"status": "alive"})

    @app.get("/readyz", response_model=State, tags=["state"], responses={**_shown({"status": "ready"}), **errors(503)})
    async def readyz() -> Response:
        """Whether the model is open."""
        service.described()
        return as_json({"status": "ready"})

    @app.get("/v1/model", response_model=ModelAnswer, tags=["state"], responses=errors(503))
    async def model() -> Response:
        """What is served, and what a request may ask for."""
        return as_json(service.described())


def _predictions(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/predict",
        response_model=PredictAnswer,
        tags=["predictions"],
        responses=errors(400, 413, 415, 422, 429, 503),
        dependencies=[Depends(only())],
    )
    async def predict(body: PredictRequest) -> Response:
        """Labels of texts, best first."""
        described = service.described()
        voting = described["voting"]
        own = voting["weight"] if voting["scoring"] == "votes" else None
        weight = None if body.weight == own else body.weight
        if body.threshold is not None and weight is not None:
            raise RefusedError(
                422, "a threshold needs probabilities, which there are for the model's own weight alone; leave one out"
            )
        if body.threshold is not None and not described["calibrated"]:
            raise RefusedError(
                422,
                "this model is not calibrated, so its scores are no probabilities and no threshold holds for them; "
                "calibrate it on held-out documents: labelspace calibrate MODEL DATA",
            )
        k = body.k if "k" in body.model_fields_set else min(body.k, service.settings.max_k)
        labels = None if body.labels is None else tuple(body.labels)
        answer = await service.ask(Question(body.texts, k, body.why, weight, labels))
        note = None
        if weight is not None:
            note = f"there are no probabilities, since the calibration holds for the model's own weight {own:g} alone"
        elif answer.predictions.probabilities is None:
            note = "the model is not calibrated: scores compare the labels of one text and are no probabilities"
        predictions = [{"labels": labels} for labels in labels_of(answer, body.threshold, body.reasons)]
        return as_json({"predictions": predictions, "model": service.served(answer.state), "note": note})

    @app.get(
        "/v1/labels",
        response_model=LabelsAnswer,
        tags=["labels"],
        responses=errors(400, 422, 503),
        dependencies=[Depends(only("q", "limit"))],
    )
    async def find_labels(
        q: Annotated[
            str, Query(max_length=1000, description="What the text of the label holds.", examples=["rail"])
        ] = "",
        limit: Annotated[int, Query(ge=1, le=1000, description="Labels, at most.", examples=[20])] = 20,
    ) -> Response:
        """Labels by text, or by id; those that begin with it first."""
        service.described()
        search = service.search
        assert search is not None
        rows = search(q, limit)
        ids, texts = search.labels.ids, search.labels.texts
        return as_json({"labels": [{"id": ids[row], "text": texts[row]} for row in rows]})


def _changes(app: FastAPI, service: Service) -> None:
    token = service.settings.token

    async def editor(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        if token is None:
            raise RefusedError(403, "documents and labels cannot be changed here: start the service with --allow-edit")
        shown = "" if credentials is None else credentials.credentials
        if not secrets.compare_digest(shown.encode("utf-8", "surrogateescape"), token.encode()):
            what = "is missing" if credentials is None else "is not the right one"
            raise RefusedError(
                401, f"the token {what}; send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    def shape(*queried: str) -> dict[str, Any]:
        return {
            "response_model": Changed,
            "dependencies": [Depends(editor), Depends(only(but=queried))],
            "responses": errors(400, 401, 403, 409, 413, 415, 422, 429, 503),
        }

    async def changed(change: Change, status: int = 200) -> Response:
        ids, now = await service.change(change)
        counts = {"labels": now["labels"], "documents": now["documents"]}
        return as_json({"ids": ids, **counts, "model": service.served(now)}, status)

    async def removed(remove: Callable[[Model, list[str]], None], body: Ids | None, queried: list[str]) -> Response:
        ids = queried if body is None else [*body.ids, *queried]
        if not ids:
            raise RefusedError(422, 'name what to remove, by {"ids": [...]} or by ?id=...')
        service.within("ids", len(ids))

        def change(model: Model) -> list[str]:
            remove(model, ids)
            return ids

        return await changed(change)

    @app.post("/v1/documents", status_code=201, tags=["documents"], **shape())
    async def add_documents(body: AddDocuments) -> Response:
        """Let documents vote for their labels from now on; nothing is trained."""
        service.within("documents", len(body.documents))
        texts = [document.text for document in body.documents]
        rows = [document.labels for document in body.documents]
        ids = _ids([document.id for document in body.documents])
        return await changed(lambda model: model.add_documents(texts, rows, ids, replace=body.replace), 201)

    @app.delete("/v1/documents", tags=["documents"], **shape("id"))
    async def remove_documents(body: Removed = None, id: Named = []) -> Response:  # noqa: B006
        """Let documents vote no more."""
        return await removed(Model.remove_documents, body, id)

    @app.post("/v1/labels", status_code=201, tags=["labels"], **shape())
    async def add_labels(body: AddLabels) -> Response:
        """Add labels; they are predicted from their texts at once, and from documents when these are added."""
        service.within("labels", len(body.labels))
        texts = [label.text for label in body.labels]
        ids = _ids([label.id for label in body.labels])
        return await changed(lambda model: model.add_labels(texts, ids), 201)

    @app.patch("/v1/labels", tags=["labels"], **shape())
    async def rename_labels(body: RenameLabels) -> Response:
        """Give labels new texts; ids, and the documents that vote for them, stay."""
        service.within("labels", len(body.labels))
        texts = {label.id: label.text for label in body.labels}
        if len(texts) < len(body.labels):
            raise RefusedError(422, "a label is given twice; give each one new text")

        def change(model: Model) -> list[str]:
            model.rename_labels(texts)
            return list(texts)

        return await changed(change)

    @app.delete("/v1/labels", tags=["labels"], **shape("id"))
    async def remove_labels(body: Removed = None, id: Named = []) -> Response:  # noqa: B006
        """Take labels away; documents that have no other label vote no more."""
        return await removed(Model.remove_labels, body, id)


def _ids(named: list[str | None]) -> list[str] | None:
    """The ids, or None where there are none at all."""
    ids = [name for name in named if name is not None]
    if ids and len(ids) < len(named):
        raise RefusedError(422, "give an id to all or to none")
    return ids or None
