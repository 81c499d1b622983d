"""Texts -> predictions: encoded and answered a block at a time."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..base.checks import require_count, require_probability
from ..base.words import first_words, plain_words
from ..errors import DataError, ModelError
from ..evaluation import metrics
from ..evaluation.calibration import DEPTH, Calibration
from ..memory.explain import explain
from ..memory.memory import Memory
from ..memory.voting import Answer, Query, Scores
from ..training.label_heads import RANKINGS
from ..types import Dataset, Predictions, Reason
from .core import Core, require_room
from .towers import Vectors

QUERY_BLOCK = 4096
"""Texts encoded and answered at a time."""
DEFAULT_K = 5
"""Labels a text where neither k nor a threshold is given."""
UNFILLED: tuple[tuple[float, Any], ...] = ((-1, np.int64), (-np.inf, np.float32), (0, np.float32))
"""Label number, score and probability where a text has fewer labels than others, and their types."""

Encode = Callable[[slice], Vectors]
"""Queries of a slice of the texts; each slice is asked for once."""
Numbers = npt.NDArray[np.int64]
Arrays = list[npt.NDArray[Any]]
"""Label numbers and scores of n texts, (n, k), and probabilities where they are wanted."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of every text, as `Model.predict` takes it."""

    k: int | None = None
    labels: Iterable[str | int] | None = None
    threshold: float | None = None
    probabilities: bool = False
    why: bool = False
    left_out: npt.NDArray[np.bool_] | None = None


def predict(core: Core, texts: Sequence[str], encode: Encode, wanted: Wanted) -> Predictions:
    """`Model.predict` for checked texts."""
    left_out, count = _checked_mask(core, wanted.left_out), len(texts)
    if wanted.k is not None:
        require_count("k, the number of labels a text,", wanted.k)
    calibration = _calibration(core, wanted.threshold) if wanted.threshold is not None or wanted.probabilities else None
    if wanted.k is None and wanted.threshold is None:
        wanted = dataclasses.replace(wanted, k=DEFAULT_K)
    k = wanted.k
    if k is not None:
        require_room(count, k)
    chosen = None if wanted.labels is None else core.label_numbers(wanted.labels)
    reasons: list[list[list[Reason]]] | None = [] if wanted.why else None
    parts = 2 if calibration is None else 3
    whole = None if k is None else _gathered([], count, int(k), parts)
    blocks: list[Arrays] = []  # where only the end shows how many labels a text has
    for start in range(0, count, QUERY_BLOCK):
        part = slice(start, start + QUERY_BLOCK)
        # probabilities depend on what is found among all labels, so all of them take part
        allowed = chosen if calibration is None else None
        query = core.memory.ask(core.on_device(encode(part)), texts[part], allowed=allowed, left_out=left_out)
        if calibration is None:
            assert k is not None
            answer = core.memory.answer(query, min(int(k), len(core.labels)))
            block: Arrays = [answer.numbers, answer.scores]
        else:
            answer, block = _predict_probable(core, query, count, chosen, calibration, wanted)
        if reasons is not None:
            reasons += explain(core.memory, query, block[0], answer.nearest)
        if whole is None:
            blocks.append(block)
        else:
            _put(block, whole, start)
    if whole is None:
        widest = max((int((block[0] >= 0).sum(axis=1).max()) for block in blocks), default=0)
        whole = _gathered(blocks, count, max(1, widest), parts)
    labels, probabilities = core.labels, None if calibration is None else whole[2]
    return Predictions(whole[0], whole[1], labels.ids, labels.texts, probabilities=probabilities, reasons=reasons)


def _gathered(blocks: list[Arrays], count: int, k: int, parts: int) -> Arrays:
    """The answers of blocks of texts as those of all, in so many arrays (count, k)."""
    whole = [np.full((count, k), empty, kind) for empty, kind in UNFILLED[:parts]]
    for number, block in enumerate(blocks):
        _put(block, whole, QUERY_BLOCK * number)
    return whole


def _put(block: Arrays, whole: Arrays, start: int) -> None:
    """Write the answers of a block of texts into the rows from ``start`` on."""
    for array, into in zip(block, whole, strict=True):
        into[start : start + len(array), : array.shape[1]] = array[:, : into.shape[1]]


def _calibration(core: Core, threshold: float | None) -> Calibration:
    """What makes probabilities of scores; refused where there is none, or the threshold is no probability."""
    calibration = core.current_calibration()
    if calibration is None:
        raise ModelError(
            "this model is not calibrated, so its scores are no probabilities and no threshold holds for them; "
            "calibrate it on held-out documents: labelspace calibrate MODEL DATA, or Model.calibrate"
        )
    if threshold is not None:
        require_probability("threshold", threshold)
    return calibration


def rankings(core: Core, texts: Sequence[str], encode: Encode, wanted: Wanted) -> dict[str, Predictions]:
    """`Model.rankings` for checked texts; what is wanted beside k holds for the first of them."""
    heads, k = core.towers[0].heads, wanted.k or DEFAULT_K
    if heads is None or len(core.towers) > 1:
        return {"combined": predict(core, texts, encode, wanted)}
    keys = core.memory.keys
    memories = {name: Memory.of_labels(keys[:, heads.columns(name)]) for name in RANKINGS[1:]}
    others: dict[str, list[Arrays]] = {name: [] for name in memories}

    def encode_and_rank(part: slice) -> Vectors:
        vectors = encode(part)
        queries = torch.from_numpy(vectors).to(keys.device)
        for name, memory in memories.items():
            own = Query(queries[:, heads.columns(name)])
            numbers, scores = memory.predict(own, min(k, len(core.labels)))
            others[name].append([numbers, scores / np.float32(heads.weight(name))])
        return vectors

    rankings = {"combined": predict(core, texts, encode_and_rank, wanted)}
    for name, blocks in others.items():
        numbers, scores = _gathered(blocks, len(texts), k, parts=2)
        rankings[name] = Predictions(numbers, scores, core.labels.ids, core.labels.texts)
    return rankings


def with_weight(core: Core, weight: float) -> Core:
    """`Model.with_weight`."""
    if core.memory.voting.scoring == "similarity":
        raise DataError("this model has no documents that vote, so their votes can have no weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float | np.number) or not 0 <= weight <= 1:
        raise DataError(f"weight, of the documents' votes, must be from 0 to 1, got {weight!r}")
    other = copy.copy(core)
    other.memory = copy.copy(core.memory)
    other.memory.voting = dataclasses.replace(core.memory.voting, weight=float(weight))
    other.calibration = None
    return other


def _checked_mask(core: Core, left_out: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
    """A mask of document keys, refused where it is of other keys."""
    if left_out is None:
        return None
    mask, places = np.asarray(left_out), int(core.memory.document_keys.starts[-1])
    if mask.dtype != bool or mask.shape != (places,):
        raise DataError(
            f"left_out must be a mask of {places} True or False, one for each document key, got "
            f"{mask.dtype} of shape {mask.shape}; take that of held_out, anew after every change of the documents"
        )
    return mask


def _predict_probable(
    core: Core, query: Query, count: int, chosen: Numbers | None, calibration: Calibration, wanted: Wanted
) -> tuple[Answer, Arrays]:
    """The labels of enough probability: k a text, or all of them, as long as there is room for ``count`` texts."""
    size, depth = len(core.labels), DEPTH if wanted.k is None else int(wanted.k)
    while True:
        require_room(count, depth)
        answer, probable = _probable(core, query, min(depth, size), chosen, calibration)
        passed = (answer.numbers >= 0) & (probable >= (wanted.threshold or 0))
        if wanted.k is not None or depth >= size or not passed[:, -1].any():
            break
        depth *= 4  # more labels pass than were looked at
    arrays: Arrays = [answer.numbers, answer.scores, probable]
    return answer, [np.where(passed, x, kind(empty)) for x, (empty, kind) in zip(arrays, UNFILLED, strict=True)]


def _probable(
    core: Core, query: Query, depth: int, chosen: Numbers | None, calibration: Calibration
) -> tuple[Answer, Scores]:
    """The best labels of texts, all or some, and their probabilities, (n, depth)."""
    around = min(DEPTH, len(core.labels))
    if chosen is None:
        answer = core.memory.answer(query, max(depth, around))
        ranking = answer.scores
    else:  # features of the document come from all labels, as when the calibration was fitted
        answer = core.memory.answer(query, depth, among=chosen)
        ranking = core.memory.answer(query, around).scores if calibration.looks_around else answer.scores
    answer = Answer(answer.numbers[:, :depth], answer.scores[:, :depth], answer.nearest)
    probable = np.zeros(answer.scores.shape, dtype=np.float32)
    for rows in metrics.row_blocks(*answer.scores.shape):
        probable[rows] = calibration(answer.scores[rows], ranking[rows])
    return answer, probable


def held_out(core: Core, data: Dataset) -> npt.NDArray[np.bool_]:
    """`Model.held_out`."""
    names = distinct(data.train.ids)
    own = {names[i] for i in data.valid_rows.tolist()}
    starts = {first_words(text) for text in data.valid.texts}
    texts = {plain_words(text) for text in data.valid.texts}
    left_out = (
        name in own or (first_words(text) in starts and plain_words(text) in texts)
        for segment in core.memory.document_keys.segments
        for name, text in zip(segment.ids, segment.texts, strict=True)
    )
    return np.fromiter(left_out, dtype=bool)


def distinct(ids: Sequence[str]) -> list[str]:
    """Ids, those met before with a number behind them."""
    counts: Counter[str] = Counter()
    names, taken = [], set(ids)
    for name in ids:
        counts[name] += 1
        while counts[name] > 1 and f"{name}#{counts[name]}" in taken:
            counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return names
