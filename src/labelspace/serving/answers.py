"""Predictions as plain lists and numbers, ready to be written as JSON or shown on the page."""

from __future__ import annotations

from typing import Any

from ..types import Reason, told_first
from .worker import Answer

REASON_CHARACTERS = 500
"""Of a reason's text that are told."""


def labels_of(answer: Answer, threshold: float | None = None, reasons: int = 10) -> list[list[dict[str, Any]]]:
    """For each text its labels, best first, as `schemas.PredictedLabel` has them.

    Args:
        answer: of the worker.
        threshold: only labels of at least this probability.
        reasons: keys told of a label.
    """
    predictions, k = answer.predictions, answer.k
    ids, texts = predictions.label_ids, predictions.label_texts
    assert ids is not None and texts is not None
    rows = slice(answer.rows.start, answer.rows.stop)
    indices, scores = predictions.indices[rows, :k].tolist(), predictions.scores[rows, :k].tolist()
    probabilities = None if predictions.probabilities is None else predictions.probabilities[rows, :k].tolist()
    rows_of_labels = []
    for row, numbers in enumerate(indices):
        labels: list[dict[str, Any]] = []
        for place, number in enumerate(numbers):
            if number < 0:
                break
            probability = None if probabilities is None else probabilities[row][place]
            if threshold is not None and (probability is None or probability < threshold):
                break
            label: dict[str, Any] = {"id": ids[number], "text": texts[number], "score": _rounded(scores[row][place])}
            label["probability"] = None if probability is None else _rounded(probability)
            label["why"] = label["more"] = None
            if predictions.reasons is not None:
                told, left = told_first(predictions.reasons[rows.start + row][place], reasons)
                label["why"] = [_reason(reason) for reason in told]
                if left:
                    label["more"] = {"keys": len(left), "share": _rounded(sum(reason.share for reason in left))}
            labels.append(label)
        rows_of_labels.append(labels)
    return rows_of_labels


def value_of(label: dict[str, Any]) -> float:
    """What a label is shown with: its probability, or without calibration its score."""
    return label["score"] if label["probability"] is None else label["probability"]


def _rounded(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")


def _reason(reason: Reason) -> dict[str, Any]:
    text = reason.text if len(reason.text) <= REASON_CHARACTERS else reason.text[:REASON_CHARACTERS] + "…"
    numbers = {"similarity": _rounded(reason.similarity), "share": _rounded(reason.share)}
    return {"kind": reason.kind, "id": reason.id, "text": text, **numbers}
