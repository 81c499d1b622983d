"""The model as a project of Annif (annif.org), so that Annif's ``http`` backend and its clients can use it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from .answers import labels_of, value_of
from .http import Fields, RefusedError, as_json, form_fields, number, require_once
from .schemas import Project, Projects, SuggestAnswer, SuggestBatch, SuggestBatchItem
from .service import Service, errors
from .worker import Question

ProjectId = Annotated[str, Path(description="What the model is called, see `/projects`.", examples=["books"])]
LIMIT = 10
"""Labels a text where none is asked for, as in Annif."""


def annif_routes(service: Service) -> APIRouter:
    """Routes in the shape of Annif's, where a model is one project."""
    router = APIRouter(tags=["Annif"], responses=errors(404, 422, 503))
    name, most = service.settings.name, service.settings.max_k
    usual = min(LIMIT, most)

    def project() -> dict[str, Any]:
        changed = service.described()["changed"]
        return {
            "project_id": name, "name": name, "language": service.language, "backend": {"backend_id": "labelspace"},
            "is_trained": True, "modification_time": changed,
        }  # fmt: skip

    def require_known(project_id: str) -> None:
        if project_id != name:
            raise RefusedError(404, f"there is no project {project_id[:50]!r}; the only one is {name!r}")

    async def suggestions(texts: list[str], fields: Fields) -> list[list[dict[str, Any]]]:
        """For each text its labels, as `SuggestAnswer` has them, by limit, threshold and labels among the fields."""
        require_once(fields, but=("labels",))
        limit = number(fields, "limit", int, 0, most)
        threshold = number(fields, "threshold", float, 0, 1) or 0.0
        limit = usual if limit is None else limit
        if not texts:
            return []
        labels = tuple(fields.getlist("labels")) or None
        answer = await service.ask(Question(texts, max(1, limit), labels=labels))
        rows = [[_subject(label) for label in labels[:limit]] for labels in labels_of(answer)]
        return [[subject for subject in row if subject["score"] >= threshold] for row in rows]

    @router.get("/projects", response_model=Projects)
    async def projects() -> Any:
        """All projects: the model."""
        return as_json({"projects": [project()]})

    @router.get("/projects/{project_id}", response_model=Project)
    async def show_project(project_id: ProjectId) -> Any:
        """The model as a project."""
        require_known(project_id)
        return as_json(project())

    form: dict[str, Any] = {
        "type": "object",
        "required": ["text"],
        "properties": {
            "text": {"type": "string", "description": "The text."},
            "limit": {
                "type": "integer", "default": usual, "minimum": 0, "maximum": most, "description": "Labels, at most.",
            },
            "threshold": {
                "type": "number", "default": 0.0, "minimum": 0, "maximum": 1,
                "description": "Only labels whose score is at least this.",
            },
            "labels": {
                "type": "array", "items": {"type": "string"},
                "description": "Ids or texts of the labels to choose from, a field each; all where there is none.",
            },
        },
        "example": {"text": "old railway lines", "limit": 2},
    }  # fmt: skip
    parameters = [
        {
            "in": "query", "name": field, "required": False, "example": example,
            "description": form["properties"][field]["description"], "schema": form["properties"][field],
        }
        for field, example in (("limit", min(2, most)), ("threshold", 0.0), ("labels", ["railways", "hiking"]))
    ]  # fmt: skip

    @router.post(
        "/projects/{project_id}/suggest",
        response_model=SuggestAnswer,
        responses=errors(400, 413, 415, 429),
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": form}}}
        },
    )
    async def suggest(project_id: ProjectId, request: Request) -> Response:
        """Labels of one text. Other fields of the form, as Annif sends them, are not looked at."""
        require_known(project_id)
        fields = await form_fields(request)
        if "text" not in fields:
            raise RefusedError(422, "text is missing")
        (results,) = await suggestions([fields["text"]], fields)
        return as_json({"results": results})

    @router.post(
        "/projects/{project_id}/suggest-batch",
        response_model=list[SuggestBatchItem],
        responses=errors(400, 413, 415, 429),
        openapi_extra={"parameters": parameters},
    )
    async def suggest_batch(project_id: ProjectId, body: SuggestBatch, request: Request) -> Response:
        """Labels of several texts."""
        require_known(project_id)
        rows = await suggestions([document.text for document in body.documents], request.query_params)
        ids = [document.document_id for document in body.documents]
        return as_json([{"document_id": i, "results": results} for i, results in zip(ids, rows, strict=True)])

    return router


def _subject(label: dict[str, Any]) -> dict[str, Any]:
    score = min(1.0, max(0.0, value_of(label)))
    return {"uri": label["id"], "label": label["text"], "notation": None, "score": score}
