"""Figures as tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .evaluating import Report
from .published import METRICS, SOURCES

_SHARES = ("predicted", "observed")


def render_rankings(rankings: dict[str, dict[str, float]]) -> str:
    """The main figures of a model's rankings side by side, as plain text for a terminal: percent by metric, by
    ranking."""
    first = next(iter(rankings.values()))
    shown = [name for name in ("P@1", "P@3", "P@5", "nDCG@5", "PSP@1", "PSP@5", "R@10", "R@100") if name in first]
    rows = [[name, *(_number(metrics[metric]) for metric in shown)] for name, metrics in rankings.items()]
    return "\n".join(_table(["ranking", *shown], rows))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table: first column to the left, others to the right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in cells
    ]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _calibration_lines(calibration: dict[str, Any]) -> list[str]:
    lines = [
        f"probabilities of the best {calibration['top']} labels of each document: expected calibration error "
        f"{calibration['ece']:.4f} over {len(calibration['bins'])} bins of equal mass"
    ]
    rows = [
        [f"{row['low']:.3f} to {row['high']:.3f}", f"{row['pairs']:,}", *(f"{row[x]:.3f}" for x in _SHARES)]
        for row in calibration["bins"]
    ]
    lines += _table(["probability", "pairs", *_SHARES], rows)
    if calibration["groups"]:
        rows = [
            [name, f"{row['pairs']:,}", *(f"{row[x]:.3f}" for x in _SHARES), f"{row['ece']:.4f}"]
            for name, row in calibration["groups"].items()
        ]
        lines += ["", *_table(["labels by training frequency", "pairs", *_SHARES, "error"], rows)]
    if calibration["threshold"] is not None:
        lines += ["", *threshold_lines([calibration["threshold"]])]
    return lines


def threshold_lines(rows: Iterable[dict[str, float]]) -> list[str]:
    """What is predicted at thresholds, as `calibrate.at_thresholds` gives it, as lines of a table."""
    formats = {
        "threshold": ".3g", "precision": ".3f", "recall": ".3f", "f1": ".3f", "labels": ".2f", "abstained": ".3f"
    }  # fmt: skip
    header = ["threshold", "precision", "recall", "F1", "labels a document", "documents without"]
    return _table(header, ([format(row[name], form) for name, form in formats.items()] for row in rows))


def render_published(table: dict[str, Any]) -> str:
    """Figures beside those that are published, as `published.table` gives them, as plain text for a terminal."""
    rows = [
        [row["method"], *(_number(row["figures"][m]) if m in row["figures"] else "-" for m in METRICS), row["source"]]
        for row in table["rows"]
    ]
    wide = max(len(row[-1]) for row in rows)
    lines = _table(["published", *METRICS, "from".ljust(wide)], [[*row[:-1], row[-1].ljust(wide)] for row in rows])
    named = {row["source"] for row in table["rows"]} & SOURCES.keys()
    lines += ["", *(f"{name}: {SOURCES[name]}" for name in sorted(named))]
    return "\n".join([*lines, *(f"- {caveat}" for caveat in table["caveats"])])


def render(report: Report) -> str:
    """A report as plain text for a terminal."""
    counts = report.counts
    treated = "left out" if report.skip_empty else "counted as 0"
    lines = [f"data set     {report.name}"] if report.name else []
    lines += [
        f"documents    {counts['documents']:,}; {counts['without_label']:,} without a true label, {treated}",
        f"labels       {counts['labels']:,}; {counts['positives']:,} true pairs",
        f"predictions  {counts['depth']:,} per document; {counts['short']:,} documents have too few",
        f"filter       {report.filter}; {counts['filtered']:,} predictions deleted",
    ]
    if report.propensity is not None:
        a, b = report.propensity["a"], report.propensity["b"]
        constants = "" if a is None else f"a = {a}, b = {b}, "
        lines.append(f"propensity   {constants}from {report.propensity['source']}")
    if report.gains != "binary":
        lines.append(f"gains        {report.gains}, of relevances in nDCG; other metrics count each above 0 as 1")
    values = {(metric, int(k)): v for (metric, k), v in ((key.split("@"), v) for key, v in report.metrics.items())}
    ks = sorted({k for _, k in values})
    lines += ["", "percent"]
    lines += _table(
        ["metric", *(f"@{k}" for k in ks)],
        [
            [metric, *(_number(values[metric, k]) if (metric, k) in values else "" for k in ks)]
            for metric in dict.fromkeys(metric for metric, _ in values)
        ],
    )
    if report.groups:
        lines += ["", "labels by training frequency"]
        lines += _table(
            ["", *report.groups],
            [
                [row.replace("_", " "), *(_number(group[row]) for group in report.groups.values())]
                for row in next(iter(report.groups.values()))
            ],
        )
    if report.calibration is not None:
        lines += ["", *_calibration_lines(report.calibration)]
    return "\n".join(lines)
