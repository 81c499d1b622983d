"""How keys vote, chosen on validation documents or taken over from another model; the documents become keys before."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from ..base.machine import require_memory
from ..data.loading import require_texts
from ..encoders import Precision
from ..errors import DataError, ModelError, SettingsError
from ..evaluation import metrics
from ..evaluation.calibration import DEPTH
from ..evaluation.metrics import label_counts, propensity_constants, weights_of_counts
from ..labels import numbers_in, renumbered_pairs, renumbered_targets
from ..memory import linear
from ..memory import tune as grids
from ..memory.grid import Grid, described
from ..memory.keys import digest
from ..memory.linear import LinearClassifier
from ..memory.tune import (
    DEFAULT_OBJECTIVE,
    DOCUMENTS,
    LEAST_GAIN,
    TOLERANCE,
    Tuned,
    best_shares,
    parse_objective,
    tune_linear,
)
from ..memory.voting import LINEAR, Nearest, Voting
from ..types import Dataset, Labels, Predictions
from .calibrating import calibrate_if_possible
from .core import Core, Vectors
from .editing import check_new, document_segment
from .predicting import QUERY_BLOCK, distinct, held_out

logger = logging.getLogger(__name__)

Queries = Callable[[npt.NDArray[np.int64]], Vectors]
"""From rows of the training documents to their queries (n, D) of the first tower."""

MIN_TUNING = 20
"""With fewer validation documents than this nothing is tuned."""


LINEAR_GRACE_SECONDS = 30.0
"""Seconds after the end of tuning by which a linear classifier may begin."""


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """How a model is tuned, as `Model.tune` takes it."""

    objective: str = DEFAULT_OBJECTIVE
    grid: Grid | None = None
    tolerance: float = TOLERANCE
    precision: Precision = "float32"
    batch_size: int = 256
    vectors: Vectors | None = None
    calibrated: bool = True
    documents: int = DOCUMENTS
    until: float | None = None
    linear: bool | None = None
    first: Queries | None = None


def tune(core: Core, data: Dataset, how: TuneOptions) -> Tuned | None:
    """`Model.tune`."""
    parse_objective(how.objective)
    if not 0 <= how.tolerance <= 100:
        raise SettingsError(f"tolerance must be from 0 to 100 points, got {how.tolerance}")
    require_texts(data)
    number = _numbers_of(core, data.labels)
    _remember(core, data, number, how.precision, how.batch_size, how.vectors)
    rows = np.arange(len(data.valid))
    if len(rows) > how.documents:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), how.documents, replace=False))
    valid = data.valid.rows(rows)
    barred = metrics.barred_labels(valid.filter_pairs, *valid.targets.shape)
    right = metrics.binary_truth(valid.targets)
    told = len(rows) if right.multiply(barred).nnz < right.nnz else 0  # where no label is right, no setting is better
    if told < MIN_TUNING:
        _settle(core, how, told)
        return None
    texts = list(valid.texts)
    queries = core.on_device(core.encode_many(core.encode, texts, how.batch_size))
    counts = label_counts(data.train.targets)
    own = np.zeros(len(core.labels), dtype=np.int64)
    own[number[number >= 0]] = counts[number >= 0]
    weights = weights_of_counts(own, len(data.train), *propensity_constants(data.name))
    left_out = held_out(core, data)
    truth = renumbered_targets(valid.targets, number, len(core.labels))
    barred = renumbered_pairs(barred, number, len(core.labels))
    options: dict[str, Any] = {"left_out": left_out, "barred": barred, "objective": how.objective}
    if len(core.towers) > 1:
        dims, shares = [tower.dim for tower in core.towers], [tower.share for tower in core.towers]
        set_shares(core, best_shares(core.memory, queries, dims, shares, truth, weights, **options))
    limits: dict[str, Any] = {"grid": how.grid, "tolerance": how.tolerance, "until": how.until}
    tuned = grids.tune(core.memory, queries, truth, weights, **limits, **options)
    core.memory.voting = tuned.voting
    learn = how.linear
    if learn and how.until is not None and time.monotonic() > how.until + LINEAR_GRACE_SECONDS:
        logger.warning("no time is left for a linear classifier; labelspace tune --linear learns one later")
        learn = False
    if learn is not None:
        made = _learned_linear(core, data, number, left_out, how.batch_size, how.first) if learn else None
        core.memory.set_linear(made)
    if core.memory.linear is not None:
        tuned = _weighed_linear(core, tuned, queries, texts, truth, weights, options)
    core.info["tuning"] = tuned.as_dict()
    core.note("tune")
    if how.calibrated:
        depth = min(DEPTH, len(core.labels))
        query = core.memory.ask(queries, texts, left_out=left_out)
        best = Predictions(*core.memory.predict(query, depth))
        calibrate_if_possible(core, dataclasses.replace(data, valid=valid), best)
    return tuned


def _settle(core: Core, how: TuneOptions, documents: int) -> None:
    """Take the settings of a grid that have one value, where there are too few documents to choose any other by."""
    dropped = how.linear is False and core.memory.linear is not None
    if dropped:
        core.memory.set_linear(None)
    voting = core.memory.voting
    settled = (how.grid or Grid()).settled(Voting() if voting.scoring == "similarity" else voting)
    moved = settled != voting and bool(core.memory.n_documents or settled != Voting())
    if moved:
        core.memory.voting = settled
    if moved or dropped:
        core.info.pop("tuning", None)
        core.note("tune")
    logger.warning(
        "only %d validation documents with labels that count, and tuning needs %d: keys vote by %s; "
        "tune --like MODEL takes over what was chosen for another model",
        *(documents, MIN_TUNING, described(core.memory.voting)),
    )
    if how.linear:
        logger.warning("no linear classifier is learned, since how much it counts is tuned")


def vote_like(core: Core, other: Core, data: Dataset, precision: Precision, batch_size: int) -> None:
    """`Model.vote_like`."""
    if other.memory.voting.scoring == "similarity":
        raise ModelError(f"the keys of {other.folder or 'the other model'} do not vote; tune it first")
    if len(other.towers) != len(core.towers):
        raise ModelError(
            f"{other.folder or 'the other model'} has {len(other.towers)} encoders and this model "
            f"{len(core.towers)}, so it cannot vote like that one"
        )
    if (numbers_in(other.labels.ids, core.labels.ids) < 0).all():
        raise ModelError(f"{other.folder or 'the other model'} has no label id in common with this model")
    require_texts(data)
    number = _numbers_of(core, data.labels)
    _remember(core, data, number, precision, batch_size, None)
    if len(core.towers) > 1:
        set_shares(core, [tower.share for tower in other.towers])
    made = None
    if other.memory.linear is not None:
        made = _learned_linear(core, data, number, None, batch_size, None)
    core.memory.set_linear(made)
    core.memory.voting = other.memory.voting
    core.calibration = other.calibration
    if core.calibration is not None:
        logger.info("probabilities are those of %s too", other.folder or "the other model")
    core.info.pop("tuning", None)
    core.note("tune")


def _weighed_linear(
    core: Core,
    found: Tuned,
    queries: torch.Tensor,
    texts: Sequence[str],
    truth: sp.csr_array,
    weights: npt.NDArray[np.float64],
    options: dict[str, Any],
) -> Tuned:
    """Choose by how much the linear classifier counts, or drop it; what was tuned, with the metrics of that."""
    objective = options["objective"]
    voting, metrics, gain = tune_linear(core.memory, queries, texts, truth, weights, **options)
    if gain < LEAST_GAIN:
        logger.info("the linear classifier adds %.2f points of %s, and is left out", gain, objective)
        core.memory.set_linear(None)
        return found
    core.memory.voting = voting
    logger.info(
        "the linear classifier adds %.2f points of %s: %s",
        gain,
        objective,
        ", ".join(f"{name} {getattr(voting, name):g}" for name in LINEAR),
    )
    return dataclasses.replace(found, voting=voting, value=found.value + gain, metrics=metrics)


def _learned_linear(
    core: Core,
    data: Dataset,
    number: npt.NDArray[np.int64],
    left_out: npt.NDArray[np.bool_] | None,
    batch_size: int,
    first: Queries | None,
) -> LinearClassifier | None:
    """A linear classifier of the training documents, those held out for validation aside."""
    targets = renumbered_targets(data.train.targets, number, len(core.labels))
    rows = data.fit_rows[np.diff(targets.indptr)[data.fit_rows] > 0]
    texts = [data.train.texts[row] for row in rows.tolist()]
    confused = _confused(core, data, rows, texts, left_out, batch_size, first)
    logger.info("a linear classifier is learned from %d documents", len(rows))
    return linear.fit(texts, sp.csr_array(targets[rows]), confused, core.labels.ids, threads=torch.get_num_threads())


def _confused(
    core: Core,
    data: Dataset,
    rows: npt.NDArray[np.int64],
    texts: Sequence[str],
    left_out: npt.NDArray[np.bool_] | None,
    batch_size: int,
    first: Queries | None,
) -> npt.NDArray[np.int64]:
    """The labels that the neighbours of training documents vote for, themselves aside; -1 for none."""
    keys = core.memory.document_keys
    out = np.full((len(rows), linear.NEGATIVES), -1, dtype=np.int64)
    some = np.arange(len(rows))
    if len(some) > linear.MOST_SEARCHED:
        some = np.sort(np.random.default_rng(0).choice(len(some), linear.MOST_SEARCHED, replace=False))
    names = distinct(data.train.ids)
    starts = {id(segment): int(start) for segment, start in zip(keys.segments, keys.starts, strict=False)}
    voting = Voting(weight=1.0, document_depth=linear.NEIGHBOURS, temperature=0.1)
    for start in range(0, len(some), QUERY_BLOCK):
        part = some[start : start + QUERY_BLOCK]
        if first is None:
            made = core.towers[0].queries([texts[i] for i in part.tolist()], batch_size, core.precision)
        else:
            made = first(rows[part])
        own = np.full(len(part), -1, dtype=np.int64)
        for i, row in enumerate(rows[part].tolist()):
            at = keys.find(names[row])
            if at is not None:
                own[i] = starts[id(at[0])] + at[1]
        queries = torch.from_numpy(np.ascontiguousarray(made[:, : keys.dim])).to(core.memory.device)
        similarities, places = keys.search(queries, linear.NEIGHBOURS, left_out)
        itself = places == own[:, None]
        places, similarities = np.where(itself, -1, places), np.where(itself, -np.inf, similarities)
        none = np.empty((len(part), 0))
        nearest = Nearest(none.astype(np.float32), none.astype(np.int64), similarities, places)
        out[part] = core.memory.rank(nearest, voting, linear.NEGATIVES)[0]
    return out


def set_shares(core: Core, shares: Sequence[float]) -> None:
    """Let towers count in the label keys by other shares."""
    factors = [torch.full((tower.dim,), share / tower.share) for tower, share in zip(core.towers, shares, strict=True)]
    scale = torch.cat(factors).to(core.memory.device)
    for segment in core.memory.label_keys.segments:
        segment.replace_keys((segment.keys.float() * scale).to(segment.keys.dtype))
    for tower, share in zip(core.towers, shares, strict=True):
        tower.share = float(share)
    logger.info("shares of the encoders in the label keys: %s", ", ".join(f"{share:.2f}" for share in shares))


def _remember(
    core: Core,
    data: Dataset,
    number: npt.NDArray[np.int64],
    precision: Precision,
    batch_size: int,
    vectors: npt.NDArray[np.float32] | None,
) -> None:
    """Make those training documents keys that are not, and have a label of this model."""
    targets = renumbered_targets(data.train.targets, number, len(core.labels))
    names = distinct(data.train.ids)
    fresh = np.diff(targets.indptr) > 0
    gone, changed = 0, []
    for row in np.flatnonzero(fresh).tolist():
        there = core.memory.document_keys.find(names[row])
        if there is None:
            removed = core.memory.removed["documents"].get(names[row]) == digest(data.train.texts[row])
            gone, fresh[row] = gone + removed, not removed
            continue
        segment, at = there
        if segment.texts[at] != data.train.texts[row]:
            raise DataError(
                f"the training document {names[row]!r} has the id of a document of the model with another text "
                f"({_shortened(segment.texts[at])!r}, here {_shortened(data.train.texts[row])!r}); give the data "
                "ids of their own, or remove those documents from the model first"
            )
        votes = slice(segment.indptr[at], segment.indptr[at + 1])
        kept = core.memory.number_of[segment.slots[votes]]
        own = targets.indices[targets.indptr[row] : targets.indptr[row + 1]]
        if set(kept[kept >= 0].tolist()) == set(own.tolist()):
            fresh[row] = False
        else:
            changed.append(there)
    if gone:
        logger.warning("%d training documents were removed from the model and stay removed", gone)
    rows = np.flatnonzero(fresh)
    if not len(rows):
        return
    if changed:
        logger.warning("%d documents of the model have other labels in the data, and take these", len(changed))
    needed = 2 * 4 * len(rows) * core.memory.document_keys.dim
    require_memory(needed, f"keys of {len(rows)} documents", "give fewer documents, or an encoder of a smaller width")
    chosen = vectors if vectors is None else vectors[rows]
    texts = [data.train.texts[i] for i in rows.tolist()]
    check_new(core, "documents", [names[i] for i in rows], texts, replace=True)
    logger.info("%d training documents become keys", len(rows))
    segment = document_segment(
        core, [names[i] for i in rows], texts, sp.csr_array(targets[rows]), precision, batch_size, chosen
    )
    core.memory.document_keys.remove(changed)
    core.memory.document_keys.append(segment)
    core.note("add documents", [names[i] for i in rows])


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _numbers_of(core: Core, labels: Labels) -> npt.NDArray[np.int64]:
    """The model's numbers of the labels of data, by id; -1 for none."""
    number = numbers_in(labels.ids, core.labels.ids)
    if (number < 0).all():
        raise DataError("the model and the data have no label id in common; is this the data that the model is for?")
    if (number < 0).any():
        logger.warning("%d labels of the data are unknown to the model and are left out", int((number < 0).sum()))
    return number
