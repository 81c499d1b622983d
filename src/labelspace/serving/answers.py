"""Predictions as plain lists and numbers, ready to be written as JSON or shown on the page."""

from __future__ import annotations

from typing import Any

from ..types import Reason, told_first
from .worker import Answer

REASON_TEXT = 500
"""Characters of a reason's text that are told."""


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
    found = []
    for row, numbers in enumerate(indices):
        labels: list[dict[str, Any]] = []
        for place, number in enumerate(numbers):
            if number < 0:
                break
            probability = None if probabilities is None else probabilities[row][place]
            if threshold is not None and (probability is None or probability < threshold):
                break
            label = {"id": ids[number], "text": texts[number], "score": short(scores[row][place])}
            label["probability"] = None if probability is None else short(probability)
            label["why"] = label["more"] = None
            if predictions.reasons is not None:
                told, left = told_first(predictions.reasons[rows.start + row][place], reasons)
                label["why"] = [_reason(reason) for reason in told]
                if left:
                    label["more"] = {"keys": len(left), "share": short(sum(reason.share for reason in left))}
            labels.append(label)
        found.append(labels)
    return found


def short(value: float) -> float:
    """Six significant digits.

    Args:
        value: any number.
    """
    return float(f"{value:.6g}")


def _reason(reason: Reason) -> dict[str, Any]:
    text = reason.text if len(reason.text) <= REASON_TEXT else reason.text[:REASON_TEXT] + "…"
    return {
        "kind": reason.kind,
        "id": reason.id,
        "text": text,
        "similarity": short(reason.similarity),
        "share": short(reason.share),
    }
