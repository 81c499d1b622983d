"""The model as a project of Annif (annif.org), so that Annif's ``http`` backend and its clients can use it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from .answers import labels_of
from .http import RefusedError, as_json, form_fields, number
from .schemas import Project, Projects, SuggestAnswer, SuggestBatch, SuggestBatchItem
from .service import ERRORS, Service
from .worker import Answer

ProjectId = Annotated[str, Path(description="What the model is called, see `/projects`.", examples=["books"])]
LIMIT = 10
"""Labels a text where none is asked for, as in Annif."""


def annif_routes(service: Service) -> APIRouter:
    """Routes in the shape of Annif's, where a model is one project.

    Args:
        service: that answers.
    """
    router = APIRouter(tags=["Annif"], responses={code: ERRORS[code] for code in (404, 422, 503)})
    most = service.settings.max_k
    usual = min(LIMIT, most)

    def project() -> dict[str, Any]:
        told = service.described()
        return {
            "project_id": service.settings.name,
            "name": service.settings.name,
            "language": service.language,
            "backend": {"backend_id": "labelspace"},
            "is_trained": True,
            "modification_time": told["changed"],
        }

    def known(project_id: str) -> None:
        if project_id != service.settings.name:
            raise RefusedError(
                404, f"there is no project {project_id[:50]!r}; the only one is {service.settings.name!r}"
            )

    def subjects(answer: Answer, limit: int, threshold: float) -> list[list[dict[str, Any]]]:
        found = []
        for labels in labels_of(answer):
            row = []
            for label in labels[:limit]:
                value = label["score"] if label["probability"] is None else label["probability"]
                score = min(1.0, max(0.0, value))
                if score >= threshold:
                    row.append({"uri": label["id"], "label": label["text"], "notation": None, "score": score})
            found.append(row)
        return found

    @router.get("/projects", response_model=Projects)
    async def projects() -> Any:
        """All projects: the model."""
        return as_json({"projects": [project()]})

    @router.get("/projects/{project_id}", response_model=Project)
    async def show_project(project_id: ProjectId) -> Any:
        """The model as a project."""
        known(project_id)
        return as_json(project())

    form: dict[str, Any] = {
        "type": "object",
        "required": ["text"],
        "properties": {
            "text": {"type": "string", "description": "The text."},
            "limit": {
                "type": "integer",
                "default": usual,
                "minimum": 0,
                "maximum": most,
                "description": "Labels, at most.",
            },
            "threshold": {
                "type": "number",
                "default": 0.0,
                "minimum": 0,
                "maximum": 1,
                "description": "Only labels whose score is at least this.",
            },
        },
        "example": {"text": "old railway lines", "limit": 2},
    }

    @router.post(
        "/projects/{project_id}/suggest",
        response_model=SuggestAnswer,
        responses={code: ERRORS[code] for code in (400, 413, 415, 429)},
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": form}}}
        },
    )
    async def suggest(project_id: ProjectId, request: Request) -> Response:
        """Labels of one text. Other fields of the form, as Annif sends them, are not looked at."""
        known(project_id)
        fields = await form_fields(request)
        if "text" not in fields:
            raise RefusedError(422, "text is missing")
        limit = number(fields, "limit", int, 0, most)
        threshold = number(fields, "threshold", float, 0, 1) or 0.0
        limit = usual if limit is None else limit
        answer = await service.ask([fields["text"]], max(1, limit))
        return as_json({"results": subjects(answer, limit, threshold)[0]})

    @router.post(
        "/projects/{project_id}/suggest-batch",
        response_model=list[SuggestBatchItem],
        responses={code: ERRORS[code] for code in (400, 413, 415, 429)},
        openapi_extra={
            "parameters": [
                {
                    "in": "query",
                    "name": name,
                    "required": False,
                    "example": example,
                    "description": form["properties"][name]["description"],
                    "schema": form["properties"][name],
                }
                for name, example in (("limit", min(2, most)), ("threshold", 0.0))
            ]
        },
    )
    async def suggest_batch(project_id: ProjectId, body: SuggestBatch, request: Request) -> Response:
        """Labels of several texts."""
        known(project_id)
        fields = dict(request.query_params)
        limit = number(fields, "limit", int, 0, most)
        threshold = number(fields, "threshold", float, 0, 1) or 0.0
        limit = usual if limit is None else limit
        if not body.documents:
            return as_json([])
        answer = await service.ask([document.text for document in body.documents], max(1, limit))
        found = subjects(answer, limit, threshold)
        return as_json(
            [
                {"document_id": document.document_id, "results": results}
                for document, results in zip(body.documents, found, strict=True)
            ]
        )

    return router
