"""The data sets of the papers and the figures published for them, from the files in ``presets``; no torch."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import SettingsError
from .evaluating import Report

FOLDER = files("labelspace") / "presets"
METRICS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "R@100")
"""In the order of the papers' tables."""
SOURCES = {
    "ViXML": "arXiv 2511.13189, tables 7 and 13",
    "Renee": "MLSys 2023, tables 2 and 17",
    "ELMO": "arXiv 2510.11168",
    "RAE-XMC, restated": "table 1 of arXiv 2502.10615, as restated by others",
}
CHOSEN = "figures of DEXML may be too good: its code chooses the best epoch on the test documents by default"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set of the papers.

    Args:
        name: as the Extreme Classification Repository has it.
        documents: of its training part, as shipped.
        test_documents: of its test part.
        labels: of it.
        propensity: the constants (a, b) of the PSP that is published.
        files: it has.
        filters: files of pairs that must not be predicted.
    """

    name: str
    documents: int
    test_documents: int
    labels: int
    propensity: tuple[float, float]
    files: tuple[str, ...]
    filters: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a table: a method, its figures in percent by metric, and where they stand."""

    method: str
    figures: dict[str, float]
    source: str


def data_sets() -> dict[str, DataSet]:
    """The data sets of the papers by name."""
    return {name: DataSet(name=name, **frozen(entry)) for name, entry in toml("sets").items()}


def data_set(name: str) -> DataSet:
    """The data set of the papers that a name means, whatever case and signs between its words.

    Raises:
        SettingsError: none.
    """
    for known, found in data_sets().items():
        if _plain(known) == _plain(name):
            return found
    raise SettingsError(f"no figures are published for {name!r}, only for {', '.join(data_sets())}; name the folder so")


def published(name: str) -> list[Published]:
    """What is published for a data set, in the order of the papers.

    Raises:
        SettingsError: it is none of theirs.
    """
    rows = []
    for entry in toml("published")[data_set(name).name]:
        values = [*entry["P"], *entry.get("PSP", [float("nan")] * 3), entry.get("R", float("nan"))]
        figures = {metric: value for metric, value in zip(METRICS, values, strict=True) if value == value}
        rows.append(Published(method=entry["method"], figures=figures, source=entry["from"]))
    return rows


def caveats(name: str, report: Report, split: str, train_documents: int, learnt: int | None = None) -> list[str]:
    """Why figures do not compare with those that are published, or only with care; a sentence each.

    Args:
        name: of the data set.
        report: its figures.
        split: that was measured on.
        train_documents: of its training part.
        learnt: training documents that the model has learnt from, as far as that is known.
    """
    wanted, counts, found = data_set(name), report.counts, []
    size = train_documents, wanted.test_documents if split != "test" else counts["documents"], counts["labels"]
    if split != "test":
        found.append(f"the figures above are of {split} documents; the published ones are of test documents")
    if size != (wanted.documents, wanted.test_documents, wanted.labels):
        found.append(
            f"the published data set has {wanted.documents:,} training and {wanted.test_documents:,} test documents "
            f"and {wanted.labels:,} labels; this one has others"
        )
    if wanted.filters and report.filter == "none":
        found.append(f"{wanted.filters[-1]} is missing, so pairs count that the papers leave out")
    if report.skip_empty and counts["without_label"]:
        found.append("documents without a true label are left out here; the papers count them")
    used = report.propensity
    if used is not None and (used["a"], used["b"]) != wanted.propensity:
        found.append("PSP has other constants here than a = {}, b = {}, those of the papers".format(*wanted.propensity))
    if learnt is not None and learnt < train_documents:
        found.append(
            f"the model has learnt from {learnt:,} of the {train_documents:,} training documents; the papers from all"
        )
    if wanted.name == "LF-WikiSeeAlso-320K":
        found.append("DEXML's code computes PSP here with a = 0.55, b = 1.5, so that one does not compare")
    if any(row.method.startswith("DEXML") for row in published(name)):
        found.append(CHOSEN)
    return found


def table(name: str, report: Report, notes: list[str]) -> dict[str, Any]:
    """Figures beside those that are published, as plain values: ``rows`` and ``caveats``."""
    own = {metric: report.metrics[metric] for metric in METRICS if metric in report.metrics}
    rows = [Published(method="this", figures=own, source=""), *published(name)]
    return {"data_set": data_set(name).name, "rows": [dataclasses.asdict(row) for row in rows], "caveats": notes}


def frozen(entry: dict[str, Any]) -> dict[str, Any]:
    """Values of a table of a file, lists as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


@cache
def toml(stem: str) -> dict[str, Any]:
    """A file of ``presets``."""
    return tomllib.loads((FOLDER / f"{stem}.toml").read_text(encoding="utf-8"))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
