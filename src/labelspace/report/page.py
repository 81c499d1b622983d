"""A report as one HTML page: style and charts inside, no script, nothing fetched; for screen and paper."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import charts
from .charts import escape, number
from .measuring import PAIRS, differing

MAIN = ("P@1", "P@3", "P@5", "nDCG@5", "PSP@5", "R@100")
"""Metrics in charts, where there are that many places."""
CURVES = ("nDCG@5", "PSP@5", "R@100")
"""Metrics whose learning curves are drawn."""
MEANING = {
    "P": "share of the first k labels that are true",
    "nDCG": "P, counting the first places more",
    "PSP": "P, counting rare labels more",
    "PSnDCG": "nDCG, counting rare labels more",
    "coverage": "share of the labels that are found for at least one document",
    "R": "share of the true labels among the first k",
}

Run = dict[str, Any]


def render(report: dict[str, Any]) -> str:
    """The page.

    Args:
        report: what `report.measure` returned.
    """
    runs, data = report["runs"], report["data"]
    measured = data is not None
    sections = [
        ("metrics", "Metrics", _metrics(runs, data) if measured else _validation(runs)),
        ("differences", "Differences", _differences(report["comparisons"])),
        ("curves", "Learning curves", _curves(runs)),
        ("frequency", "Quality by label frequency", _frequency(runs) if measured else ""),
        ("calibration", "Calibration", _calibration(runs)),
        ("mistaken", "Labels mistaken for each other", _mistaken(runs) if measured else ""),
        ("examples", "Best and worst examples", _examples(runs) if measured else ""),
        ("data", "Data", _data(data) if measured else ""),
        ("cost", "Cost", _cost(runs)),
        ("settings", "Runs and settings", _settings(runs)),
    ]
    shown = [section for section in sections if section[2]]
    title = "Report on " + _and([run["name"] for run in runs])
    if measured:
        sample = f", drawn from {data['of']:,}" if data["measured"] < data["of"] else ""
        kind = "test" if data["split"] == "test" else "validation"
        lead = f"Measured on {data['measured']:,} {kind} documents of {data['name']}{sample}; figures in percent."
    else:
        lead = "What the model folders record. To measure on a test part, give the report the data."
    links = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in shown)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report["notes"])
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{escape(heading)}</h2>'
        f"{content}</section>"
        for name, heading, content in shown
    )
    return (
        '<!DOCTYPE html>\n<html lang="en" xmlns="http://www.w3.org/1999/xhtml">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:"/>\n'
        f'<meta name="generator" content="labelspace {escape(report["labelspace"])}"/>\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,"/>\n<style>\n{_STYLE}</style>\n</head>\n'
        "<body>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p>{notes}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main>{body}</main>\n'
        f"<footer><p>labelspace {escape(report['labelspace'])}</p></footer>\n</body>\n</html>\n"
    )


# --- sections ---------------------------------------------------------------------------------------------------------


def _metrics(runs: list[Run], data: dict[str, Any]) -> str:
    names = list(runs[0]["measured"]["metrics"])
    names = [name for name in names if all(name in run["measured"]["metrics"] for run in runs)]
    drawn = [name for name in MAIN if name in names]
    found = [[run["measured"]["metrics"][name] for name in drawn] for run in runs]
    chart = charts.bars(
        "chart-metrics",
        "Metrics with 95% intervals",
        _told(runs, lambda run: ", ".join(f"{n} {run['measured']['metrics'][n]['value']:.1f}" for n in drawn)),
        ("metric", "percent"),
        drawn,
        [[one["value"] for one in row] for row in found],
        [[None if one["low"] is None else (one["low"], one["high"]) for one in row] for row in found],
    )
    rows = []
    best = {name: max(run["measured"]["metrics"][name]["value"] for run in runs) for name in names}
    for name in names:
        cells = []
        for run in runs:
            one = run["measured"]["metrics"][name]
            value = f"{one['value']:.2f}"
            if len(runs) > 1 and one["value"] == best[name]:
                value = f"<strong>{value}</strong>"
            if one["low"] is not None:
                value += f' <span class="soft">{one["low"]:.1f}–{one["high"]:.1f}</span>'
            cells.append(value)
        rows.append([escape(name), *cells])
    counts = runs[0]["measured"]["counts"]
    facts = [f"{counts['documents']:,} documents with {counts['positives']:,} true labels"]
    if counts["without_label"]:
        facts.append(f"{counts['without_label']:,} documents without any count as 0")
    filtered = runs[0]["measured"]["filter"]
    if filtered != "none":
        facts.append(f"{counts['filtered']:,} predictions of the first run deleted by the {filtered}")
    propensity = runs[0]["measured"]["propensity"]
    if propensity is not None:
        facts.append(f"propensity constants a = {propensity['a']}, b = {propensity['b']} ({propensity['source']})")
    for run in runs:
        only = [
            f"{run['measured'][key]:,} labels only {where}"
            for key, where in (("labels_only_in_model", "in the model"), ("labels_only_in_data", "in the data"))
            if run["measured"][key]
        ]
        if only:
            facts.append(f"{run['name']}: {', '.join(only)}")
    kinds = dict.fromkeys(name.split("@")[0] for name in names)
    meaning = "; ".join(f"{kind}@k: {MEANING[kind]}" for kind in kinds if kind in MEANING)
    return (
        '<div class="charts">'
        + _figure("Metrics of each run, with 95% intervals", chart, runs)
        + _table(["metric", *(escape(run["name"]) for run in runs)], rows, "Metrics, in percent, with 95% intervals")
        + "</div>"
        + f'<p class="soft">{escape("; ".join(facts))}.</p>'
        + f'<p class="soft">{escape(meaning)}. The intervals come from a bootstrap over documents: they cover the '
        "choice of the documents, not the seed of training. Coverage has none.</p>"
    )


def _validation(runs: list[Run]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in _numbers(run["validation"])))
    if not names:
        return "<p>The folders record no validation metrics.</p>"
    drawn = [name for name in MAIN if all(name in _numbers(run["validation"]) for run in runs)]
    chart = ""
    if drawn:
        values = [[max(0.0, run["validation"][name]) for name in drawn] for run in runs]
        told = _told(runs, lambda run: ", ".join(f"{n} {run['validation'][n]:.1f}" for n in drawn))
        chart = _figure(
            "Validation metrics of each run",
            charts.bars("chart-metrics", "Validation metrics", told, ("metric", "percent"), drawn, values),
            runs,
        )
    rows = [[escape(name), *(_maybe(_numbers(run["validation"]).get(name), 2) for run in runs)] for name in names]
    parts = [chart, _table(["metric", *(escape(run["name"]) for run in runs)], rows, "Validation metrics, in percent")]
    for run in runs:
        rankings = {name: _numbers(values) for name, values in run["rankings"].items() if isinstance(values, dict)}
        shown = [name for name in MAIN if all(name in values for values in rankings.values())]
        if rankings and shown:
            lines = [[escape(name), *(f"{values[m]:.2f}" for m in shown)] for name, values in rankings.items()]
            parts.append(_table(["ranking", *shown], lines, f"{run['name']}: its rankings, on validation documents"))
    return "".join(parts) + (
        '<p class="soft">Each run records these on its own validation documents, by which its best weights were '
        "chosen, so they are a little too high.</p>"
    )


def _differences(comparisons: list[dict[str, Any]]) -> str:
    figures, tables = [], []
    for i, pair in enumerate(comparisons):
        names = f"{pair['b']} minus {pair['a']}"
        rows = [(name, one["difference"], one["low"], one["high"]) for name, one in pair["metrics"].items()]
        drawn = [row for row in rows if row[0] in MAIN]
        told = "; ".join(f"{name} {value:+.2f}, {_verdict(low, high)}" for name, value, low, high in drawn)
        chart = charts.differences(f"chart-difference-{i}", names, told, "points of percent", drawn)
        cells = [
            [
                escape(name),
                f"{pair['metrics'][name]['a']:.2f}",
                f"{pair['metrics'][name]['b']:.2f}",
                f"{value:+.2f}",
                f'<span class="line">{low:+.2f} to {high:+.2f}</span>',
                f'<span class="line {_kind(low, high)}">{_verdict(low, high)}</span>',
            ]
            for name, value, low, high in rows
        ]
        header = [
            "metric",
            escape(pair["a"]),
            escape(pair["b"]),
            "difference",
            "95% interval",
            escape(pair["b"]) + " is",
        ]
        figures.append(_figure(names, chart))
        tables.append(_table(header, cells, f"{names}, by metric"))
    if tables:
        tables.append(
            '<p class="soft">A paired bootstrap: the same documents are drawn for both runs. A difference is called '
            "clear when its interval leaves out 0. It does not cover the seed of training: a difference under 0.3 "
            "points needs several seeds. Of twenty comparisons of equals one looks clear by chance.</p>"
        )
    return f'<div class="charts">{"".join(figures)}</div>{"".join(tables)}' if figures else ""


def _kind(low: float, high: float) -> str:
    return "up" if low > 0 else "down" if high < 0 else "none"


def _verdict(low: float, high: float) -> str:
    return {"up": "clearly better", "down": "clearly worse", "none": "not clearly different"}[_kind(low, high)]


def _curves(runs: list[Run]) -> str:
    drawn: list[str] = []
    for metric in CURVES:
        for axis, label in (("seconds", "seconds"), ("step", "steps")):
            series = [
                [(float(point[axis]), float(point[metric])) for point in map(_numbers, run["curve"])
                 if axis in point and metric in point]
                for run in runs
            ]  # fmt: skip
            if not any(len(points) > 1 for points in series):
                continue
            ends = _told(
                [run for run, points in zip(runs, series, strict=True) if points],
                lambda run, axis=axis, metric=metric: _ends(run, axis, metric),  # type: ignore[misc]
            )
            name = f"chart-curve-{len(drawn)}"
            title = f"{metric} on validation documents by {label}"
            drawn.append(_figure(title, charts.lines(name, title, ends, (label, metric), series), runs))
    if not drawn:
        return ""
    best = [f"{run['name']} kept step {run['best_step']:,}" for run in runs if isinstance(run["best_step"], int)]
    stopped = [f"{run['name']}: {run['stopped']}" for run in runs if run["stopped"] is not None]
    facts = "; ".join([*best, *(["what ended the runs: " + ", ".join(stopped)] if stopped else [])])
    return f'<div class="charts">{"".join(drawn)}</div>' + (f'<p class="soft">{escape(facts)}.</p>' if facts else "")


def _ends(run: Run, axis: str, metric: str) -> str:
    points = [point for point in map(_numbers, run["curve"]) if axis in point and metric in point]
    a, b = points[0], points[-1]
    return f"from {a[metric]:.1f} at {number(round(a[axis]))} to {b[metric]:.1f} at {number(round(b[axis]))}"


def _frequency(runs: list[Run]) -> str:
    groups = runs[0]["measured"]["groups"]
    if not groups:
        return ""
    names = [name for name, group in groups.items() if group["labels"]]
    parts = []
    for metric, title in (("recall@5", "Recall at 5"), ("P@5 share", "What each group adds to P@5")):
        told = _told(runs, lambda run, m=metric: ", ".join(  # type: ignore[misc]
            f"{name} {run['measured']['groups'][name][m]:.1f}" for name in names))  # fmt: skip
        values = [[run["measured"]["groups"][name][metric] for name in names] for run in runs]
        chart = charts.bars(
            f"chart-{metric[:2].lower().replace('@', '')}-groups",
            title,
            told,
            ("label frequency", "percent"),
            names,
            values,
        )
        parts.append(_figure(f"{title}, by label frequency", chart, runs))
    rows = [
        [name, f"{groups[name]['labels']:,}", f"{groups[name]['train_pairs']:,}", f"{groups[name]['positives']:,}"]
        for name in names
    ]
    header = ["labels", "how many", "training pairs", "true pairs here"]
    for run in runs:
        header.append(f"recall@5 {escape(run['name'])}" if len(runs) > 1 else "recall@5")
        for row in rows:
            row.append(f"{run['measured']['groups'][row[0]]['recall@5']:.2f}")
    return (
        f'<div class="charts">{"".join(parts)}</div>'
        + _table(header, rows, "Labels by how often they occur in training")
        + '<p class="soft">Head, torso and tail hold a third of the training pairs each, the most frequent labels '
        "first; unseen labels have no training document. The shares of P@5 add up to P@5.</p>"
    )


def _calibration(runs: list[Run]) -> str:
    known = [run for run in runs if run["measured"] is not None and run["measured"]["calibration"] is not None]
    parts = []
    if known:
        series = [
            [(one["predicted"], one["observed"]) for one in run["measured"]["calibration"]["bins"]]
            if run in known
            else []
            for run in runs
        ]
        told = _told(known, lambda run: f"expected calibration error {run['measured']['calibration']['ece']:.3f}")
        chart = charts.reliability(
            "chart-reliability", "Reliability", told, ("predicted probability", "share that is true"), series
        )
        rows = [
            [
                escape(run["name"]),
                f"{run['measured']['calibration']['ece']:.4f}",
                f"{run['measured']['calibration']['pairs']:,}",
                *(
                    f"{run['measured']['calibration']['groups'][name]['ece']:.4f}"
                    if name in run["measured"]["calibration"]["groups"]
                    else "–"
                    for name in ("head", "torso", "tail", "unseen")
                ),
            ]
            for run in known
        ]
        header = ["run", "ECE", "pairs", "ECE head", "ECE torso", "ECE tail", "ECE unseen"]
        top = known[0]["measured"]["calibration"]["top"]
        parts = [
            _figure("Predicted probability and the share that is true", chart, runs),
            _table(header, rows, "Expected calibration error"),
            f'<p class="soft">Of the first {top} labels of each document, in bins of equal mass; on the dashed line '
            "probabilities mean what they say. The expected calibration error (ECE) is the mean distance to it, from 0 "
            "to 1.</p>",
        ]
    elif any(run["calibration"] for run in runs):
        rows = []
        for run in runs:
            made = _numbers(run["calibration"] or {})
            best = _numbers(_as_dict((run["calibration"] or {}).get("best_f1")))
            shown = [_maybe(made.get("ece"), 4), *(_maybe(best.get(key), 3) for key in ("threshold", "f1", "labels"))]
            rows.append([escape(run["name"]), *shown])
        header = ["run", "ECE", "best threshold", "F1 there", "labels a document there"]
        parts = [_table(header, rows, "Calibration, on held-out folds of validation documents")]
    without = [run["name"] for run in runs if run["calibration"] is None and run not in known]
    if parts and without:
        parts.append(f'<p class="soft">Not calibrated: {escape(_and(without))}.</p>')
    return "".join(parts)


def _mistaken(runs: list[Run]) -> str:
    parts = []
    for run in runs:
        pairs = run["measured"]["mistaken"]
        heading = f"<h3>{escape(run['name'])}</h3>" if len(runs) > 1 else ""
        if not pairs:
            parts.append(heading + "<p>No wrong label came first beside the same missed label in two documents.</p>")
            continue
        rows = [
            [
                _label(pair["true"]),
                _label(pair["predicted"]),
                f"{pair['documents']:,}",
                f"{pair['of']:,}",
                f"{pair['other_way_round']:,}",
            ]
            for pair in pairs
        ]
        header = ["true, but missed", "came first, but is wrong", "times", "of", "reverse"]
        caption = "The most frequent pairs" + (f" of {run['name']}" if len(runs) > 1 else "")
        table = _table(header, rows, caption, left=2)
        parts.append(heading + table)
    return "".join(parts) + (
        f'<p class="soft">Counted over documents whose first label is wrong: that label beside each true label that '
        f"is not among the first five. At most {PAIRS} pairs a run, of two documents or more. Times: documents with "
        "the pair; of: all documents with the true label; reverse: the other way round. A pair may also be two labels "
        "of which annotators choose one.</p>"
    )


def _examples(runs: list[Run]) -> str:
    parts = []
    for run in runs:
        for key, kind in (("best", "best"), ("worst", "worst")):
            found = run["measured"][key]
            if found:
                heading = f"{run['name']}: {kind} documents" if len(runs) > 1 else f"{kind.capitalize()} documents"
                parts.append(
                    f'<h3>{escape(heading)}</h3><div class="examples">' + "".join(map(_example, found)) + "</div>"
                )
    return "".join(parts) + (
        '<p class="soft">By nDCG@5; of equals the best have the most labels right, and the worst were the surest of '
        "their first label. ✓ marks labels that are true, ✗ those that are not. Below a label stand the keys that "
        "voted for it, label texts and documents, with what they add to its score; nothing where its own text alone "
        "did.</p>"
    )


def _strength(reason: dict[str, Any]) -> str:
    if reason["kind"] == "words":
        return f"times {math.exp(reason['similarity']):.2f}"
    return f"similarity {reason['similarity']:.2f}"


def _example(one: dict[str, Any]) -> str:
    missed = [label for label in one["true"] if not label["found"]]
    items = []
    for label in one["predicted"]:
        mark = '<span class="up">✓</span>' if label["right"] else '<span class="down">✗</span>'
        said = "true" if label["right"] else "not true"
        value = label["score"] if label["probability"] is None else label["probability"]
        why = "".join(
            f'<li><span class="number">{reason["share"]:.3f}</span> '
            f"<span>{reason['kind']} "
            f"<bdi>{escape(reason['text']) or escape(reason['id'])}</bdi> "
            f'<span class="soft">{_strength(reason)}</span></span></li>'
            for reason in label["why"]
        )
        more = label["keys"] - len(label["why"])
        if more > 0:
            why += f'<li class="soft"><span class="number"></span> {more:,} more key{"s" * (more > 1)}</li>'
        own = len(label["why"]) == label["keys"] == 1 and label["why"][0]["kind"] == "label"
        why = "" if own else f'<ul class="why">{why}</ul>'  # its own text alone voted, and stands there already
        items.append(
            f'<li><div class="given"><span aria-label="{said}" role="img">{mark}</span> {_label(label)} '
            f'<span class="number">{value:.2f}</span></div>{why}</li>'
        )
    lost = ""
    if missed:
        shown = "; ".join(_label(label) for label in missed[:12])
        lost = f'<p><span class="soft">True, not among the first five:</span> {shown}'
        lost += f" and {len(missed) - 12} more</p>" if len(missed) > 12 else "</p>"
    return (
        f'<article><p class="document"><bdi>{escape(one["text"])}</bdi></p><p class="soft">document '
        f"<bdi>{escape(one['id'])}</bdi>, nDCG@5 {one['nDCG@5']:.1f}</p><ol>{''.join(items)}</ol>{lost}</article>"
    )


def _data(data: dict[str, Any]) -> str:
    rows = []
    for name, shown in (("train", "training"), ("valid", "validation"), ("test", "test")):
        part = data[name]
        if part is not None:
            held = " (held out of training)" if part.get("held_out_of_train") else ""
            rows.append(
                [
                    shown + held,
                    f"{part['documents']:,}",
                    f"{part['labels_per_document']:.2f}",
                    f"{part['most_labels']:,}",
                    f"{part['without_labels']:,}",
                ]
            )
    header = ["part", "documents", "labels a document", "at most", "documents without"]
    lengths = [
        [kind, f"{one['mean']:.1f}", f"{one['median']:g}", f"{one['p99']:g}", f"{one['longest']:,}"]
        for kind, one in data["tokens"].items()
    ]
    frequency = data["label_frequency"]
    facts = (
        f"{data['labels']:,} labels, {frequency['documents_per_label']:.2f} training documents a label (median of "
        f"those seen {frequency['median_of_seen']:g}); {frequency['unseen_in_train']:,} labels in no training document."
    )
    figures = []
    for key, name, title, axis, what in (
        ("labels_a_document", "chart-sizes", "Training documents by number of labels", "labels", "documents"),
        ("documents_a_label", "chart-counts", "Labels by number of training documents", "training documents", "labels"),
    ):
        many = data[key]
        told = ", ".join(f"{group}: {count:,}" for group, count in many.items())
        chart = charts.bars(name, title, told, (axis, what), list(many), [[float(count) for count in many.values()]])
        figures.append(_figure(title, chart))
    return (
        f'<p>{escape(facts)}</p><div class="charts">{"".join(figures)}</div>'
        + _table(header, rows, f"Documents of {data['name']}")
        + _table(["texts", "mean", "median", "99th percentile", "longest"], lengths, f"Lengths in {data['token_unit']}")
    )


def _cost(runs: list[Run]) -> str:
    rows: list[list[str]] = []
    for label, shown in (
        ("training", lambda run: _duration(run["cost"]["seconds"])),
        ("steps", lambda run: _maybe(run["cost"]["steps"], 0)),
        ("training texts a second (median)", lambda run: _maybe(run["cost"]["texts_per_second"], 0)),
        ("peak memory", lambda run: _unit(run["cost"]["peak_memory_gb"], "GB")),
        ("size on disk", lambda run: f"{run['cost']['bytes'] / 1e6:,.1f} MB"),
        ("label keys", lambda run: f"{run['labels']:,}"),
        ("document keys", lambda run: f"{run['documents']:,}"),
        ("dimensions", lambda run: f"{run['dimensions']:,}"),
    ):
        rows.append([label, *(shown(run) for run in runs)])
    return _table(["", *(escape(run["name"]) for run in runs)], rows, "What the runs took, and what the models take")


def _settings(runs: list[Run]) -> str:
    rows = []
    for label, key in (
        ("recipe", "recipe"),
        ("encoder", "encoder"),
        ("data", "data"),
        ("training documents", "training_documents"),
        ("made", "created"),
        ("by labelspace", "labelspace"),
        ("changes since", "changes"),
    ):
        rows.append([label, *(_plain(run[key]) for run in runs)])
    names = [name for name in differing(runs) if name not in ("encoder", "recipe")]
    parts = [_table(["", *(escape(run["name"]) for run in runs)], rows, "The runs", left=len(runs) + 1)]
    if names:
        caption = "Settings that differ between the runs" if len(runs) > 1 else "Settings that are not the default"
        rows = [
            [f"<code>{escape(name)}</code>", *(_plain(run["config"].get(name, "–")) for run in runs)] for name in names
        ]
        parts.append(_table(["setting", *(escape(run["name"]) for run in runs)], rows, caption, left=len(runs) + 1))
    return "".join(parts)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _figure(caption: str, chart: str, runs: Sequence[Run] = ()) -> str:
    legend = ""
    if len(runs) > 1:
        items = (f"<li>{charts.swatch(i)}<bdi>{escape(run['name'])}</bdi></li>" for i, run in enumerate(runs))
        legend = f'<ul class="legend">{"".join(items)}</ul>'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{legend}{chart}</figure>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str, left: int = 1) -> str:
    """A table of HTML cells that scrolls sideways where it is too wide; the first ``left`` columns are texts."""

    def side(column: int) -> str:
        return ' class="left"' if column < left else ""

    head = "".join(
        f'<th scope="col"{side(i)}>{cell}</th>' if cell else f"<td{side(i)}></td>" for i, cell in enumerate(header)
    )
    body = "".join(
        f'<tr><th scope="row" class="left">{row[0]}</th>'
        + "".join(f"<td{side(i)}>{cell}</td>" for i, cell in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _told(runs: Iterable[Run], figures: Callable[[Run], str]) -> str:
    return "; ".join(f"{run['name']}: {figures(run)}" for run in runs) + "."


def _label(label: dict[str, Any]) -> str:
    shown = f"<bdi>{escape(label['text']) or escape(label['id'])}</bdi>"
    return shown if label["text"] in ("", label["id"]) else f'{shown} <span class="id">{escape(label["id"])}</span>'


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _maybe(value: Any, digits: int) -> str:
    return f"{value:,.{digits}f}" if _numbers({"value": value}) else "–"


def _unit(value: Any, unit: str) -> str:
    return f"{value:,.1f} {unit}" if _numbers({"value": value}) else "–"


def _duration(seconds: Any) -> str:
    if not _numbers({"value": seconds}):
        return "–"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    exact = f"{seconds:,.0f} s" if whole >= 10 else f"{seconds:.1f} s"
    return exact if whole < 120 else f"{exact} ({hours} h {minutes} min)" if hours else f"{exact} ({minutes} min)"


def _plain(value: Any) -> str:
    """A setting as HTML."""
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


_STYLE = f""":root {{
  --ground: #f6f7f9; --card: #ffffff; --main: #1f5fbf; --note: #fff4d6;
{charts.COLOURS}}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ground: #12161c; --card: #1b212a; --ink: #e6eaf0; --soft: #a3afbf; --line: #36404d; --main: #7fb0f5;
    --up: #6fd39d; --down: #f2a29b; --note: #3a3013;
    --s0: #7fb0f5; --s1: #f2a15f; --s2: #6fd39d; --s3: #cfa3e6; --s4: #6fcfdc; --s5: #f09ab4;
  }}
}}
@media print {{
  :root {{
    --ground: #ffffff; --card: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb; --main: #1f5fbf;
    --up: #18794e; --down: #b3261e; --note: #ffffff;
    --s0: #1f5fbf; --s1: #c2570c; --s2: #18794e; --s3: #8e44ad; --s4: #0f7f8f; --s5: #a3425f;
  }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }}
header, main, footer {{ max-width: 64rem; margin: 0 auto; padding: 0 1rem; }}
header {{ padding-top: 1.25rem; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 0 0 .8rem; }}
h3 {{ font-size: 1rem; margin: 1.2rem 0 .5rem; overflow-wrap: anywhere; }}
p {{ margin: .4rem 0; }}
a {{ color: var(--main); }}
nav ul {{ list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .8rem 0 1rem; padding: 0; }}
nav a {{ display: inline-block; padding: .25rem 0; }}
section {{ background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem;
  margin: 0 0 1rem; }}
.note {{ background: var(--note); border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .7rem; }}
.soft, footer {{ color: var(--soft); font-size: .875rem; }}
.up {{ color: var(--up); }} .down {{ color: var(--down); }} .none {{ color: var(--soft); }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 1.5rem; }}
.examples {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 0 1.5rem; }}
figure {{ margin: 0 0 1rem; min-width: 0; max-width: 31rem; }}
figcaption {{ font-weight: 600; font-size: .9rem; margin-bottom: .2rem; }}
.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0 0 .3rem; padding: 0;
  font-size: .85rem; }}
.legend li {{ display: flex; align-items: center; gap: .4rem; overflow-wrap: anywhere; }}
.swatch {{ flex: none; }}
.chart {{ display: block; width: 100%; height: auto; }}
{charts.STYLE}.scroll {{ overflow-x: auto; margin: 0 0 .8rem; min-width: 0; }}
.scroll:focus-visible {{ outline: 3px solid #f0a020; outline-offset: 2px; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; font-size: .9rem; padding-bottom: .2rem; }}
th, td {{ padding: .28rem .7rem; border-top: 1px solid var(--line); text-align: right; vertical-align: top; }}
thead th, thead td {{ border-top: 0; vertical-align: bottom; }}
th {{ font-weight: 600; }} tbody th {{ font-weight: 400; }}
.left {{ text-align: left; }}
th:first-child, thead td:first-child {{ padding-left: 0; }}
td .soft, .line {{ white-space: nowrap; }}
.id {{ color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }}
article {{ border-top: 1px solid var(--line); padding: .7rem 0; overflow-wrap: anywhere; min-width: 0; }}
.document {{ margin: 0; }}
ol {{ margin: .4rem 0; padding: 0; list-style: none; }}
.given {{ display: flex; gap: .5rem; align-items: baseline; }}
.given .number {{ margin-left: auto; }}
.number {{ font-variant-numeric: tabular-nums; }}
.why {{ list-style: none; margin: 0 0 .35rem; padding: 0 0 0 1.5rem; font-size: .85rem; color: var(--soft); }}
.why li {{ display: flex; gap: .6rem; }}
.why .number {{ flex: none; width: 3.4rem; text-align: right; }}
code {{ font-size: .85rem; overflow-wrap: anywhere; }}
@media (max-width: 40rem) {{
  section {{ padding: .8rem; }}
  th, td {{ padding: .28rem .45rem; }}
}}
@media print {{
  body {{ font-size: 10pt; }}
  header, main, footer {{ max-width: none; padding: 0; }}
  nav {{ display: none; }}
  section {{ border: 0; padding: 0; margin: 0 0 1.2rem; }}
  figure, article, tr {{ break-inside: avoid; }}
  h2, h3, figcaption, caption {{ break-after: avoid; }}
  .scroll {{ overflow: visible; }}
  .charts {{ grid-template-columns: 1fr 1fr; }}
}}
"""
