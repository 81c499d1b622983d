"""What requests and answers look like: checked on the way in, described in OpenAPI with examples."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _valid_unicode(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, and no file can hold it
        raise ValueError("text must be Unicode, and holds half of a surrogate pair") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it must not be empty")
    return text


Text = Annotated[str, AfterValidator(_valid_unicode)]
Name = Annotated[Text, AfterValidator(_not_blank)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _example(**example: Any) -> ConfigDict:
    """The setting of a schema that shows an example in OpenAPI."""
    return ConfigDict(json_schema_extra={"examples": [example]})


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PredictRequest(_Request):
    """Texts to predict labels for."""

    model_config = _example(texts=["old railway lines"], k=2, labels=["railways", "hiking"], threshold=None, why=True)
    texts: list[Text] = Field(min_length=1, description="Texts; the service limits their number, see `/v1/model`.")
    k: int = Field(5, ge=1, description="Labels a text, at most; limited too.")
    labels: list[Name] | None = Field(
        None, min_length=1, description="Ids or texts of the labels to choose from; null for all."
    )
    threshold: Share | None = Field(
        None, description="Only labels whose probability is at least this; for a calibrated model."
    )
    why: bool = Field(False, description="Whether to tell which keys voted for each label.")
    reasons: int = Field(10, ge=1, le=1000, description="With `why`: keys told of a label, those that added most.")
    weight: Share | None = Field(
        None,
        description="Weight of the documents' votes (lambda), 0 to 1, instead of the model's own. "
        "There are no probabilities then, and no threshold.",
    )


class Reason(BaseModel):
    """A key that voted for a label, or the words by which a linear classifier changed the votes."""

    kind: Literal["label", "document", "words"] = Field(
        description="The label's own key, a document that has the label, or what a linear classifier made of the words."
    )
    id: str = Field(description="Of the label or document; of words empty.")
    text: str = Field(description="Its text; of a long one the first 500 characters.")
    similarity: float = Field(
        description="Inner product of query and key; of words the logarithm of what they multiply the votes by."
    )
    share: float = Field(description="What its vote added to the score; below 0 where words lowered it.")


class More(BaseModel):
    """Keys that are not told one by one."""

    keys: int
    share: float = Field(description="What they added to the score together.")


class PredictedLabel(BaseModel):
    """A label and how well it fits."""

    id: str
    text: str
    score: float
    probability: float | None = Field(description="Null for a model without calibration, and with `weight`.")
    why: list[Reason] | None = Field(description="Largest share first; null if not asked for.")
    more: More | None = Field(description="The keys that `why` leaves out; null if there are none.")


class Prediction(BaseModel):
    """The labels of one text, best first."""

    labels: list[PredictedLabel]


class Served(BaseModel):
    """What answered."""

    name: str
    revision: int = Field(description="Grows with every change of the model.")


REASON = {"kind": "document", "id": "7", "text": "High speed trains of Japan", "similarity": 0.436, "share": 0.069}
PREDICTED = {
    "id": "railways", "text": "railways", "score": 0.5529, "probability": None, "why": [REASON],
    "more": {"keys": 3, "share": 0.4839},
}  # fmt: skip


class PredictAnswer(BaseModel):
    """One prediction a text, in the order of the texts."""

    model_config = _example(predictions=[{"labels": [PREDICTED]}], model={"name": "books", "revision": 3}, note=None)
    predictions: list[Prediction]
    model: Served
    note: str | None = Field(description="What to know about these scores, if anything.")


class Label(BaseModel):
    """A label."""

    model_config = _example(id="railways", text="railways")
    id: str
    text: str


class LabelsAnswer(BaseModel):
    """Labels that were found."""

    model_config = _example(labels=[{"id": "railways", "text": "railways"}])
    labels: list[Label]


class NewDocument(_Request):
    """A document that shall vote."""

    text: Name
    labels: list[Name] = Field(min_length=1, description="Ids of its labels, or their texts.")
    id: Name | None = Field(None, description="Its id; a new one is made when not given.")


class AddDocuments(_Request):
    """Documents that shall vote for their labels from now on."""

    model_config = _example(
        documents=[{"text": "Narrow gauge lines of the Harz mountains", "labels": ["railways", "hiking"]}]
    )
    documents: list[NewDocument] = Field(min_length=1)
    replace: bool = Field(False, description="Whether documents that are there take the new text and labels.")


class NewLabel(_Request):
    """A label that shall be predicted."""

    text: Name
    id: Name | None = Field(None, description="Its id, for good; its text when not given.")


class AddLabels(_Request):
    """Labels that shall be predicted from now on."""

    model_config = _example(labels=[{"text": "cycling"}])
    labels: list[NewLabel] = Field(min_length=1)


class RenamedLabel(_Request):
    """A label and its new text."""

    id: Name
    text: Name


class RenameLabels(_Request):
    """New texts of labels; ids stay."""

    model_config = _example(labels=[{"id": "cycling", "text": "bicycle tours"}])
    labels: list[RenamedLabel] = Field(min_length=1)


class Ids(_Request):
    """What shall be removed."""

    model_config = _example(ids=["added-11"])
    ids: list[Text] = Field(min_length=1)


class Changed(BaseModel):
    """What a change did; it is on disk."""

    model_config = _example(ids=["added-11"], labels=8, documents=11, model={"name": "books", "revision": 4})
    ids: list[str] = Field(description="Of the documents or labels that were added, renamed or removed.")
    labels: int = Field(description="Labels of the model now.")
    documents: int = Field(description="Documents of the model now.")
    model: Served


class Limits(BaseModel):
    """What a request may ask for."""

    texts: int = Field(description="Texts, documents or labels of a request.")
    k: int
    body_bytes: int
    queue: int = Field(description="Texts that may wait.")


class ModelAnswer(BaseModel):
    """The model that is served."""

    model_config = _example(
        name="books", revision=3, labels=8, documents=10, dimensions=384, recipe="dexml", encoder="static",
        voting={"scoring": "votes", "weight": 0.2}, calibrated=False, changed="2026-01-31T12:00:00+00:00",
        editable=False, limits={"texts": 256, "k": 200, "body_bytes": 4194304, "queue": 1024}, labelspace="0.1.0",
    )  # fmt: skip
    name: str
    revision: int
    labels: int
    documents: int
    dimensions: int
    recipe: str | None
    encoder: str | None
    voting: dict[str, Any] = Field(description="How keys vote; `weight` is that of the documents' votes.")
    calibrated: bool = Field(description="Whether there are probabilities.")
    changed: str | None = Field(description="When the model was last made or changed.")
    editable: bool = Field(description="Whether documents and labels can be changed here, with the token.")
    limits: Limits
    labelspace: str = Field(description="Version.")


class State(BaseModel):
    """How the service is."""

    status: Literal["alive", "ready"]


class Problem(BaseModel):
    """What went wrong."""

    status: int = Field(description="The HTTP status.")
    message: str = Field(description="One sentence.")


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: Problem


class Subject(BaseModel):
    """A label as Annif has it."""

    uri: str
    label: str
    notation: str | None
    score: float = Field(description="The probability, or without calibration the score, from 0 to 1.")


SUBJECT = {"uri": "railways", "label": "railways", "notation": None, "score": 0.5529}


class SuggestAnswer(BaseModel):
    """The labels of a text, best first."""

    model_config = _example(results=[SUBJECT])
    results: list[Subject]


class SuggestBatchItem(SuggestAnswer):
    """The labels of one of several texts."""

    model_config = _example(document_id="b1", results=[SUBJECT])
    document_id: str | None


class SuggestDocument(BaseModel):
    """A text; Annif's `metadata` is not looked at."""

    text: Text
    document_id: str | None = None


class SuggestBatch(BaseModel):
    """Texts."""

    model_config = _example(documents=[{"text": "old railway lines", "document_id": "b1"}])
    documents: list[SuggestDocument]


class Backend(BaseModel):
    """What Annif calls the kind of a project."""

    backend_id: str


PROJECT: dict[str, Any] = {
    "project_id": "books", "name": "books", "language": "en", "backend": {"backend_id": "labelspace"},
    "is_trained": True, "modification_time": "2026-01-31T12:00:00+00:00",
}  # fmt: skip


class Project(BaseModel):
    """The model as an Annif project."""

    model_config = _example(**PROJECT)
    project_id: str
    name: str
    language: str
    backend: Backend
    is_trained: bool
    modification_time: str | None


class Projects(BaseModel):
    """All projects: one."""

    model_config = _example(projects=[PROJECT])
    projects: list[Project]
