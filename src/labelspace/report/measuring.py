"""What one or several model folders are worth, as plain values: measured on a data set, or as the folders record it.

`measure` gathers the values, `report_page.render` makes a page of them. Models are opened one after the other. Of the
predictions only those of the first are kept, for the comparisons. Nothing depends on the time at which it is done.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from .. import __version__
from ..data.describe import describe
from ..data.loading import require_texts
from ..errors import DataError, ModelError, SettingsError
from ..evaluation import comparing, metrics
from ..evaluation import evaluating as evaluation
from ..labels import numbers_among, widened
from ..model.manifest import read_manifest
from ..model.model import Model
from ..training.config import RECIPES, defaults, flat
from ..types import Corpus, Dataset, Labels, Predictions, told_first
from .charts import clean

logger = logging.getLogger(__name__)

KS = (1, 3, 5)
DEPTH = 100
"""Labels that are predicted for a document."""
PAIRS = 15
"""Pairs of labels shown as mistaken for each other."""
EXAMPLES = 3
"""Best and worst documents shown of each run."""
REASONS = 3
"""Keys shown for a predicted label of an example."""
TEXT_CHARACTERS, NAME_CHARACTERS = 400, 120
"""Shown of a document, and of a label or a key."""
FREQUENCIES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Least documents of the bars in the chart of label frequency."""

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def measure(
    runs: Sequence[str | Path],
    data: Dataset | None = None,
    *,
    split: Literal["auto", "valid", "test"] = "auto",
    documents: int | None = None,
    draws: int = 2000,
    device: str = "auto",
    precision: Literal["auto", "float32", "bf16"] = "float32",
) -> dict[str, Any]:
    """Everything that a report shows, as plain dicts, lists, strings and numbers.

    Args:
        runs: model folders; the first is what the others are compared with.
        data: what to measure on, read with the seed of the runs; None reports what the folders record.
        split: documents to measure on; auto is ``test`` where there is one, else ``valid``.
        documents: measure on so many of them at most, drawn by a fixed seed; None for all.
        draws: bootstrap draws behind each interval.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: in which texts are encoded.

    Returns:
        ``labelspace``, the version; ``data``, None or what is measured on; ``runs``, for each what its folder records
        and ``measured``, None or its figures in percent; ``comparisons``, of each later run with the first, as
        `evaluation.compare` gives them; ``notes``, sentences on what limits the figures.

    Raises:
        ModelError: a folder that holds no model.
        SettingsError: no run, a run given twice, no documents in that split, a model that has no label of the data.
        DataError: documents without texts.
    """
    folders = [Path(run).expanduser() for run in runs]
    if not folders:
        raise SettingsError("there is nothing to report on: name at least one model folder")
    if documents is not None and documents < 1:
        raise SettingsError(f"documents, how many to measure on, must be at least 1, got {documents}")
    if draws < 1:
        raise SettingsError(f"draws must be at least 1, got {draws}")
    manifests = [_manifest(folder) for folder in folders]
    twice = [place for place, count in Counter(folder.resolve() for folder in folders).items() if count > 1]
    if twice:
        raise SettingsError(f"the run {twice[0]} is given twice; a run needs no comparison with itself")
    records = list(map(_recorded, _names(folders), folders, manifests))
    report: dict[str, Any] = {"labelspace": __version__, "data": None, "runs": records, "comparisons": [], "notes": []}
    if data is None:
        names = {run["data"] for run in records}
        if len(names) > 1:
            known = ", ".join(sorted(map(str, names)))
            report["notes"].append(f"The runs were made on different data ({known}): do not compare their figures.")
        return report
    part, corpus = _documents(data, split)
    require_texts(data, part)
    whole = len(corpus)
    rows = np.arange(whole)
    if documents is not None and documents < whole:
        rows = np.sort(np.random.default_rng(0).choice(whole, documents, replace=False))
        corpus = corpus.rows(rows)
    report["data"] = _described(data, part, corpus, whole)
    report["notes"] += _notes(data, part, manifests, records)
    evaluator = _Evaluator(data, part, corpus, draws)
    first: Predictions | None = None
    for folder, run in zip(folders, records, strict=True):
        logger.info("measuring %s on %d %s documents", run["name"], len(corpus), part)
        pred, run["measured"] = evaluator.measured(Model.load(folder, device, precision=precision))
        if first is None:
            first = pred
            continue
        differences = comparing.compare(first, pred, **evaluator.arguments(), draws=draws)
        report["comparisons"].append({"a": records[0]["name"], "b": run["name"], "metrics": differences})
    return report


# --- what a folder records --------------------------------------------------------------------------------------------


def _manifest(folder: Path) -> dict[str, Any]:
    beside = folder.with_name(f"{folder.name}.checkpoint")
    if not folder.exists() and beside.is_dir():
        raise ModelError(
            f"the run {folder} is not finished, so there is no model to report on; go on with it: "
            f"labelspace train DATA --resume {folder}"
        )
    return read_manifest(folder)


def _names(folders: list[Path]) -> list[str]:
    """The ends of paths, as short as they can be and distinct."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return [clean("/".join(part[-depth:])) for part in parts]


def _recorded(name: str, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    info = manifest["info"]
    config, fit, data = flat(_dict(info.get("config"))), _dict(info.get("fit")), _dict(info.get("data"))
    recorded = _dict(info.get("metrics"))
    log = _log(folder / "log.jsonl")
    curve = [point for point in fit.get("curve") or [] if isinstance(point, dict)]
    if not curve:
        curve = [{k: v for k, v in r.items() if k != "event"} for r in log if r.get("event") == "evaluation"]
    steps = [record for record in log if record.get("event") == "step"]
    peaks, rates = (
        [record[key] for record in steps if record.get(key) is not None]
        for key in ("peak_memory_gb", "texts_per_second")
    )
    recipe = str(info.get("recipe", "none"))
    default = defaults(RECIPES[recipe]) if recipe in RECIPES else {}
    fitted = _dict(_dict(manifest.get("calibration")).get("fitted"))
    return {
        "name": name,
        "recipe": recipe,
        "encoder": config.get("encoder"),
        "created": manifest.get("created"),
        "labelspace": manifest.get("labelspace_version"),
        "data": data.get("name"),
        "training_documents": data.get("documents"),
        "labels": manifest["labels"],
        "documents": manifest["documents"],
        "dimensions": manifest["dimensions"],
        "settings": {key: value for key, value in config.items() if key not in default or value != default[key]},
        "config": config,
        "validation": _dict(recorded.get("validation")),
        "rankings": _dict(recorded.get("rankings")),
        "curve": curve,
        "best_step": fit.get("best_step"),
        "stopped": fit.get("stopped"),
        "calibration": {key: fitted[key] for key in ("documents", "ece", "best_f1") if key in fitted} or None,
        "cost": {
            "seconds": fit.get("seconds"),
            "steps": fit.get("steps"),
            "texts_per_second": statistics.median(rates) if rates else None,
            "peak_memory_gb": max(peaks) if peaks else None,
            "bytes": sum(file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()),
        },
        "changes": len(manifest["history"]),
        "measured": None,
    }


def _dict(value: Any) -> dict[str, Any]:
    """A record, or nothing where it is of another kind: damaged folders are reported on too."""
    return value if isinstance(value, dict) else {}


def _log(file: Path) -> list[dict[str, Any]]:
    """The records of a run's log; a line that cannot be read is left out."""
    if not file.is_file():
        return []
    records = []
    with file.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                records.append(json.loads(line))
            except ValueError:
                logger.warning("%s: a line that is no record is left out", file)
    return [record for record in records if isinstance(record, dict)]


# --- what is measured on ----------------------------------------------------------------------------------------------


def _documents(data: Dataset, split: str) -> tuple[Literal["valid", "test"], Corpus]:
    if split not in ("auto", "valid", "test"):
        raise SettingsError(f"unknown split {split!r}; choose one of auto, valid, test")
    part: Literal["valid", "test"] = "valid" if split == "valid" or (split == "auto" and data.test is None) else "test"
    corpus: Corpus | None = getattr(data, part)
    if corpus is None or not len(corpus):
        other = "valid" if part == "test" else "test"
        raise SettingsError(
            f"{data.name} has no {part} documents to report on; choose --split {other}, or leave out --data"
        )
    return part, corpus


def _described(data: Dataset, part: str, corpus: Corpus, whole: int) -> dict[str, Any]:
    facts = describe(data)
    for name in ("training_memory_bytes", "available_memory_bytes"):  # of this machine
        del facts[name]
    facts["name"] = clean(data.name)
    for name in ("train", "valid", "test"):
        if facts[name] is not None and facts[name]["filter_file"] is not None:
            facts[name]["filter_file"] = clean(Path(facts[name]["filter_file"]).name)
    sizes = np.diff(data.train.targets.indptr)
    counts = metrics.label_counts(data.train.targets)
    edges = np.array(FREQUENCIES)
    frequency = np.bincount(np.searchsorted(edges, counts, side="right") - 1, minlength=len(edges)).tolist()
    while frequency and not frequency[-1]:
        frequency.pop()
    spans = [
        f"{low}" if high == low + 1 else f"{low}+" if low == FREQUENCIES[-1] else f"{low}–{high - 1}"
        for low, high in zip(FREQUENCIES, [*FREQUENCIES[1:], 0], strict=True)
    ]
    labels_a_document = np.bincount(np.minimum(sizes, 10), minlength=11).tolist()
    return {
        **facts,
        "split": part,
        "measured": len(corpus),
        "of": whole,
        "labels_a_document": {("10+" if i == 10 else str(i)): count for i, count in enumerate(labels_a_document)},
        "documents_a_label": dict(zip(spans, frequency, strict=False)),
    }


def _notes(data: Dataset, part: str, manifests: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[str]:
    notes = []
    if part == "valid":
        notes.append(
            "These are validation documents, on which runs choose their best weights and settings: the figures are a "
            "little too high. Take test documents for figures to publish."
        )
    for manifest, run in zip(manifests, records, strict=True):
        recorded = _dict(manifest["info"].get("data"))
        name, seed = recorded.get("name"), _dict(recorded.get("options")).get("seed")
        if name is not None and name != data.name:
            notes.append(f"{run['name']} was made on {clean(str(name))}, not on {clean(data.name)}.")
        elif part == "valid" and len(data.valid_rows) and seed not in (None, data.options.get("seed")):
            notes.append(
                f"{run['name']} held out other validation documents (seed {seed}, here {data.options.get('seed')}), so "
                "it was trained on some of these: its figures are too high."
            )
        if part == "test" and any(_dict(change).get("change") == "add documents" for change in manifest["history"]):
            notes.append(f"Documents were added to {run['name']} by hand; see that no test document is among them.")
    return notes


# --- measuring --------------------------------------------------------------------------------------------------------


class _Evaluator:
    """Documents with their true labels, on which models are measured, all in one numbering of labels.

    The labels of the data come first. Those that only models have follow, in the order in which they are met.
    """

    def __init__(self, data: Dataset, part: str, corpus: Corpus, draws: int):
        self.data, self.part, self.corpus, self.draws = data, part, corpus, draws
        self.number: dict[str, int] | None = None
        self.extra: list[tuple[str, str]] = []  # ids and texts of labels that only models have
        self.longest = evaluation.longest_filter_row(corpus.filter_pairs)

    @property
    def n_labels(self) -> int:
        return len(self.data.labels) + len(self.extra)

    def truth(self, targets: sp.csr_array) -> sp.csr_array:
        return widened(targets, self.n_labels)

    def arguments(self) -> dict[str, Any]:
        """What every evaluation is given beside predictions."""
        several = len(self.data.train) >= 2  # as propensities need
        return {
            "targets": self.truth(self.corpus.targets),
            "train_targets": self.truth(self.data.train.targets) if several else None,
            "ks": KS,
            "filter_pairs": self.corpus.filter_pairs,
            "name": self.data.name,
        }

    def label(self, number: int) -> dict[str, str]:
        """Id and text of a label, to be shown."""
        known, labels = len(self.data.labels), self.data.labels
        name, text = (labels.ids[number], labels.texts[number]) if number < known else self.extra[number - known]
        return {"id": clean(name), "text": _short(text, NAME_CHARACTERS)}

    def places(self, labels: Labels) -> IntArray | None:
        """The numbers of a model's labels here, with -1 at the end; None where they are the same."""
        ids = self.data.labels.ids
        if list(labels.ids) == list(ids):
            return None
        if self.number is None:
            self.number = {name: i for i, name in enumerate(ids)}
        place = numbers_among(labels.ids, self.number)
        if (place[:-1] >= len(ids)).all():
            raise DataError(
                f"the model and {self.data.name} have no label id in common; is this the data that the model is for?"
            )
        new = np.flatnonzero(place[:-1] >= self.n_labels).tolist()
        self.extra += [(labels.ids[i], labels.texts[i]) for i in new]
        return place

    def measured(self, model: Model) -> tuple[Predictions, dict[str, Any]]:
        """Predictions of a model, and its figures."""
        place = self.places(model.labels)
        corpus = self.corpus
        # validation documents of a memory of documents must not vote for themselves
        left_out = model.held_out(self.data) if model.memory.n_documents and self.part == "valid" else None
        pred = self.predicted(model, place, corpus.texts, DEPTH, left_out=left_out)
        figures = evaluation.report(pred, **self.arguments())
        limits = comparing.intervals(pred, **self.arguments(), draws=self.draws)
        indices, hits = evaluation.ranked(pred, self.truth(corpus.targets), corpus.filter_pairs)
        known = len(self.data.labels) if place is None else int((place[:-1] < len(self.data.labels)).sum())
        best, worst = self.chosen(indices, hits, pred)
        shown = self.examples(model, place, left_out, [*best, *worst])
        return pred, {
            "metrics": {
                name: limits.get(name, {"value": value, "low": None, "high": None})
                for name, value in figures.metrics.items()
            },
            "groups": figures.groups,
            "counts": figures.counts,
            "propensity": figures.propensity,
            "filter": "none" if figures.filter == "none" else "pairs of the data set",
            "calibration": figures.calibration,
            "labels_only_in_model": len(model.labels) - known,
            "labels_only_in_data": len(self.data.labels) - known,
            "mistaken": self.mistaken(indices, hits),
            "best": shown[: len(best)],
            "worst": shown[len(best) :],
        }

    def predicted(
        self, model: Model, place: IntArray | None, texts: Sequence[str], k: int, **options: Any
    ) -> Predictions:
        """The best k labels of texts, and more where filter pairs may delete some, in the numbering here."""
        depth = min(k + self.longest, len(model.labels))
        pred = model.predict(texts, k=depth, probabilities=model.calibration is not None, **options)
        labels = pred.indices if place is None else place[pred.indices]
        return Predictions(labels, pred.scores, probabilities=pred.probabilities, reasons=pred.reasons)

    def mistaken(self, indices: IntArray, hits: BoolArray) -> list[dict[str, Any]]:
        """Labels that came first and are wrong, beside the true labels that the first five places miss."""
        truth = metrics.binary_truth(self.truth(self.corpus.targets))
        wrong = np.flatnonzero((indices[:, 0] >= 0) & ~hits[:, 0])
        missed = truth[wrong].tocoo()
        rows, labels = wrong[missed.row], missed.col.astype(np.int64)
        among_five = np.zeros(len(rows), dtype=bool)
        for k in range(min(5, indices.shape[1])):  # one column at a time: all at once would take five times the memory
            among_five |= indices[rows, k] == labels
        pairs = labels[~among_five] * self.n_labels + indices[rows[~among_five], 0]
        keys, counts = np.unique(pairs, return_counts=True)
        of = metrics.label_counts(truth)
        mistaken: dict[tuple[int, int], dict[str, Any]] = {}
        for place in np.lexsort((keys, of[keys // self.n_labels], -counts)).tolist():
            true, wrongly = divmod(int(keys[place]), self.n_labels)
            if counts[place] < 2 or len(mistaken) == PAIRS:
                break
            if (wrongly, true) in mistaken:  # shown the other way round, which is at least as frequent
                continue
            mistaken[true, wrongly] = {
                "true": self.label(true),
                "predicted": self.label(wrongly),
                "documents": int(counts[place]),
                "of": int(of[true]),
                "other_way_round": int(counts[keys == wrongly * self.n_labels + true].sum()),
            }
        return list(mistaken.values())

    def chosen(self, indices: IntArray, hits: BoolArray, pred: Predictions) -> tuple[list[int], list[int]]:
        """Rows of the best and of the worst documents by nDCG@5.

        Of equals the best have the most hits; the worst have a first label that was given with the most confidence.
        """
        sizes = metrics.sizes(metrics.binary_truth(self.corpus.targets))
        values = metrics.ndcg(hits, sizes, 5).numerators
        scores = pred.scores if pred.probabilities is None else pred.probabilities
        sure = scores[np.arange(len(scores)), (pred.indices == indices[:, :1]).argmax(axis=1)]
        rows, right = np.flatnonzero(sizes), hits[:, :5].sum(axis=1)
        best = rows[np.lexsort((rows, -right[rows], -values[rows]))][:EXAMPLES]
        worst = rows[np.lexsort((rows, -sure[rows], values[rows]))]
        worst = worst[~np.isin(worst, best)][:EXAMPLES]
        return best[values[best] > 0].tolist(), worst[values[worst] < 1].tolist()

    def examples(
        self, model: Model, place: IntArray | None, left_out: BoolArray | None, rows: list[int]
    ) -> list[dict[str, Any]]:
        """Documents with their labels, and why these were given."""
        if not rows:
            return []
        part = self.corpus.rows(np.array(rows, dtype=np.int64))
        pred = self.predicted(model, place, part.texts, 5, why=True, left_out=left_out)
        indices, hits = evaluation.ranked(pred, self.truth(part.targets), part.filter_pairs)
        truth = metrics.binary_truth(part.targets)
        values = metrics.ndcg(hits, metrics.sizes(truth), 5).numerators
        examples = []
        for i in range(len(rows)):
            true = truth[[i]].indices.tolist()
            labels = [label for label in indices[i, :5].tolist() if label >= 0]
            at = {label: k for k, label in enumerate(pred.indices[i].tolist())}
            examples.append(
                {
                    "id": clean(part.ids[i]),
                    "text": _short(part.texts[i], TEXT_CHARACTERS),
                    "nDCG@5": 100.0 * float(values[i]),
                    "true": [{**self.label(label), "found": label in labels} for label in true],
                    "predicted": [
                        {**self.label(label), "right": label in true, **_shown(pred, i, at[label])} for label in labels
                    ],
                }
            )
        return examples


def _shown(pred: Predictions, row: int, k: int) -> dict[str, Any]:
    """Score, probability and reasons of the label at place k of a row."""
    assert pred.reasons is not None
    reasons = pred.reasons[row][k]
    return {
        "score": float(pred.scores[row, k]),
        "probability": None if pred.probabilities is None else float(pred.probabilities[row, k]),
        "keys": len(reasons),
        "why": [
            {
                "kind": reason.kind,
                "id": clean(reason.id),
                "text": _short(reason.text, NAME_CHARACTERS),
                "similarity": float(reason.similarity),
                "share": float(reason.share),
            }
            for reason in told_first(reasons, REASONS)[0]
        ],
    }


def _short(text: str, length: int) -> str:
    """A text to be shown, cut at a blank where that is near its end."""
    whole = clean(text[: 4 * length])
    if len(whole) <= length and len(text) <= 4 * length:
        return whole
    cut = whole[:length]
    return (cut.rsplit(" ", 1)[0] if " " in cut[length // 2 :] else cut).rstrip() + " …"


def differing(runs: Iterable[dict[str, Any]]) -> list[str]:
    """Names of settings worth showing: of one run those that are not the default, of several those that differ.

    What only the recipe of one run knows is shown where it is not the default.
    """
    runs = list(runs)
    if len(runs) == 1:
        return sorted(runs[0]["settings"])
    names = sorted({name for run in runs for name in run["config"]})
    texts = {name: {json.dumps(run["config"].get(name, "–"), sort_keys=True) for run in runs} for name in names}
    own = {name for run in runs for name in run["settings"]}
    return [n for n in names if len(texts[n]) > 1 and (n in own or all(n in run["config"] for run in runs))]
