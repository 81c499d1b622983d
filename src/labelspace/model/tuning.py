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
from ..memory.tune import DEFAULT_OBJECTIVE, DOCUMENTS, LEAST_GAIN, TOLERANCE, Tuned, best_shares, parse_objective
from ..memory.voting import LINEAR, Nearest, Voting
from ..types import Dataset, Labels, Predictions
from .calibrating import calibrate_if_possible
from .core import Core
from .editing import check_new, document_segment
from .predicting import QUERY_BLOCK, distinct, held_out
from .towers import Vectors

logger = logging.getLogger(__name__)

Numbers = npt.NDArray[np.int64]
Queries = Callable[[Numbers], Vectors]
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
    _add_training_documents(core, data, number, how)
    valid = data.valid.rows(_drawn(len(data.valid), how.documents))
    barred = metrics.barred_labels(valid.filter_pairs, *valid.targets.shape)
    right = metrics.binary_truth(valid.targets)
    usable = len(valid) if right.multiply(barred).nnz < right.nnz else 0  # with no right label no setting is better
    if usable < MIN_TUNING:
        _settle(core, how, usable)
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
    measured_on: dict[str, Any] = {
        "truth": truth, "label_weights": weights, "left_out": left_out, "barred": barred, "objective": how.objective
    }  # fmt: skip
    if len(core.towers) > 1:
        dims, shares = [tower.dim for tower in core.towers], [tower.share for tower in core.towers]
        set_shares(core, best_shares(core.memory, queries, dims, shares, **measured_on))
    tuned = grids.tune(core.memory, queries, **measured_on, grid=how.grid, tolerance=how.tolerance, until=how.until)
    core.memory.voting = tuned.voting
    learn = how.linear
    if learn and how.until is not None and time.monotonic() > how.until + LINEAR_GRACE_SECONDS:
        logger.warning("no time is left for a linear classifier; labelspace tune --linear learns one later")
        learn = False
    if learn is not None:
        core.memory.set_linear(_learned_linear(core, data, number, left_out, how) if learn else None)
    if core.memory.linear is not None:
        tuned = _weighed_linear(core, tuned, queries, texts, measured_on)
    core.info["tuning"] = tuned.as_dict()
    core.note("tune")
    if how.calibrated:
        depth = min(DEPTH, len(core.labels))
        best = core.memory.predict(core.memory.ask(queries, texts, left_out=left_out), depth)
        calibrate_if_possible(core, dataclasses.replace(data, valid=valid), Predictions(*best))
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


def vote_like(core: Core, other: Core, data: Dataset, how: TuneOptions) -> None:
    """`Model.vote_like`; of the options precision and batch size count."""
    name = other.folder or "the other model"
    if other.memory.voting.scoring == "similarity":
        raise ModelError(f"the keys of {name} do not vote; tune it first")
    if len(other.towers) != len(core.towers):
        count, own = len(other.towers), len(core.towers)
        raise ModelError(f"{name} has {count} encoders and this model {own}, so it cannot vote like that one")
    if (numbers_in(other.labels.ids, core.labels.ids) < 0).all():
        raise ModelError(f"{name} has no label id in common with this model")
    require_texts(data)
    number = _numbers_of(core, data.labels)
    _add_training_documents(core, data, number, how)
    if len(core.towers) > 1:
        set_shares(core, [tower.share for tower in other.towers])
    learn = other.memory.linear is not None
    core.memory.set_linear(_learned_linear(core, data, number, None, how) if learn else None)
    core.memory.voting = other.memory.voting
    core.calibration = other.calibration
    if core.calibration is not None:
        logger.info("probabilities are those of %s too", name)
    core.info.pop("tuning", None)
    core.note("tune")


def _weighed_linear(
    core: Core, tuned: Tuned, queries: torch.Tensor, texts: Sequence[str], measured_on: dict[str, Any]
) -> Tuned:
    """Choose by how much the linear classifier counts, or drop it; what was tuned, with the metrics of that."""
    objective = measured_on["objective"]
    voting, metrics, gain = grids.tune_linear(core.memory, queries, texts, **measured_on)
    if gain < LEAST_GAIN:
        logger.info("the linear classifier adds %.2f points of %s, and is left out", gain, objective)
        core.memory.set_linear(None)
        return tuned
    core.memory.voting = voting
    chosen = ", ".join(f"{name} {getattr(voting, name):g}" for name in LINEAR)
    logger.info("the linear classifier adds %.2f points of %s: %s", gain, objective, chosen)
    return dataclasses.replace(tuned, voting=voting, value=tuned.value + gain, metrics=metrics)


def _learned_linear(
    core: Core, data: Dataset, number: Numbers, left_out: npt.NDArray[np.bool_] | None, how: TuneOptions
) -> LinearClassifier | None:
    """A linear classifier of the training documents, those held out for validation aside."""
    targets = renumbered_targets(data.train.targets, number, len(core.labels))
    rows = data.fit_rows[np.diff(targets.indptr)[data.fit_rows] > 0]
    texts = [data.train.texts[row] for row in rows.tolist()]
    confused = _confused(core, data, rows, left_out, how)
    logger.info("a linear classifier is learned from %d documents", len(rows))
    return linear.fit(texts, sp.csr_array(targets[rows]), confused, core.labels.ids, threads=torch.get_num_threads())


def _confused(
    core: Core, data: Dataset, rows: Numbers, left_out: npt.NDArray[np.bool_] | None, how: TuneOptions
) -> Numbers:
    """The labels that the neighbours of training documents vote for, themselves aside; -1 for none."""
    keys = core.memory.document_keys
    confused = np.full((len(rows), linear.NEGATIVES), -1, dtype=np.int64)
    searched = _drawn(len(rows), linear.MOST_SEARCHED)
    names = distinct(data.train.ids)
    starts = {id(segment): int(start) for segment, start in zip(keys.segments, keys.starts, strict=False)}
    voting = Voting(weight=1.0, document_depth=linear.NEIGHBOURS, temperature=0.1)
    for start in range(0, len(searched), QUERY_BLOCK):
        part = searched[start : start + QUERY_BLOCK]
        if how.first is None:
            texts = [data.train.texts[row] for row in rows[part].tolist()]
            vectors = core.towers[0].queries(texts, how.batch_size, core.precision)
        else:
            vectors = how.first(rows[part])
        own = np.full(len(part), -1, dtype=np.int64)
        for i, row in enumerate(rows[part].tolist()):
            key = keys.find(names[row])
            if key is not None:
                own[i] = starts[id(key[0])] + key[1]
        similarities, places = keys.search(core.on_device(vectors[:, : keys.dim]), linear.NEIGHBOURS, left_out)
        itself = places == own[:, None]
        places, similarities = np.where(itself, -1, places), np.where(itself, -np.inf, similarities)
        none = np.empty((len(part), 0))
        nearest = Nearest(none.astype(np.float32), none.astype(np.int64), similarities, places)
        confused[part] = core.memory.rank(nearest, voting, linear.NEGATIVES)[0]
    return confused


def _drawn(count: int, most: int) -> Numbers:
    """Rows of ``count`` documents: all, or a fixed draw of the most that are looked at."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def set_shares(core: Core, shares: Sequence[float]) -> None:
    """Let towers count in the label keys by other shares."""
    factors = [torch.full((tower.dim,), share / tower.share) for tower, share in zip(core.towers, shares, strict=True)]
    scale = torch.cat(factors).to(core.memory.device)
    for segment in core.memory.label_keys.segments:
        segment.replace_keys((segment.keys.float() * scale).to(segment.keys.dtype))
    for tower, share in zip(core.towers, shares, strict=True):
        tower.share = float(share)
    logger.info("shares of the encoders in the label keys: %s", ", ".join(f"{share:.2f}" for share in shares))


def _add_training_documents(core: Core, data: Dataset, number: Numbers, how: TuneOptions) -> None:
    """Make those training documents keys that are not, and have a label of this model."""
    targets = renumbered_targets(data.train.targets, number, len(core.labels))
    names = distinct(data.train.ids)
    fresh = np.diff(targets.indptr) > 0
    n_removed, changed = 0, []
    for row in np.flatnonzero(fresh).tolist():
        key, text = core.memory.document_keys.find(names[row]), data.train.texts[row]
        if key is None:
            removed = core.memory.removed["documents"].get(names[row]) == digest(text)
            n_removed, fresh[row] = n_removed + removed, not removed
            continue
        segment, at = key
        if segment.texts[at] != text:
            raise DataError(
                f"the training document {names[row]!r} has the id of a document of the model with another text "
                f"({_shortened(segment.texts[at])!r}, here {_shortened(text)!r}); give the data "
                "ids of their own, or remove those documents from the model first"
            )
        known = core.memory.number_of[segment.slots[segment.indptr[at] : segment.indptr[at + 1]]]
        own = targets.indices[targets.indptr[row] : targets.indptr[row + 1]]
        if set(known[known >= 0].tolist()) == set(own.tolist()):
            fresh[row] = False
        else:
            changed.append(key)
    if n_removed:
        logger.warning("%d training documents were removed from the model and stay removed", n_removed)
    rows = np.flatnonzero(fresh)
    if not len(rows):
        return
    if changed:
        logger.warning("%d documents of the model have other labels in the data, and take these", len(changed))
    needed = 2 * 4 * len(rows) * core.memory.document_keys.dim
    require_memory(needed, f"keys of {len(rows)} documents", "give fewer documents, or an encoder of a smaller width")
    vectors = None if how.vectors is None else how.vectors[rows]
    names, texts = [names[i] for i in rows], [data.train.texts[i] for i in rows.tolist()]
    check_new(core, "documents", names, texts, replace=True)
    logger.info("%d training documents become keys", len(rows))
    own_targets = sp.csr_array(targets[rows])
    segment = document_segment(core, names, texts, own_targets, how.precision, how.batch_size, vectors)
    core.memory.document_keys.remove(changed)
    core.memory.document_keys.append(segment)
    core.note("add documents", names)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _numbers_of(core: Core, labels: Labels) -> Numbers:
    """The model's numbers of the labels of data, by id; -1 for none."""
    number = numbers_in(labels.ids, core.labels.ids)
    unknown = int((number < 0).sum())
    if unknown == len(number):
        raise DataError("the model and the data have no label id in common; is this the data that the model is for?")
    if unknown:
        logger.warning("%d labels of the data are unknown to the model and are left out", unknown)
    return number
