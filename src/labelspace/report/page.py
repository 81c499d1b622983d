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
        ("metrics", "Metrics", _metrics(runs) if measured else _validation(runs)),
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


def _metrics(runs: list[Run]) -> str:
    metrics = [run["measured"]["metrics"] for run in runs]
    names = [name for name in metrics[0] if all(name in own for own in metrics)]
    drawn = [name for name in MAIN if name in names]
    bars = [[own[name] for name in drawn] for own in metrics]
    values = [[one["value"] for one in row] for row in bars]
    intervals = [[None if one["low"] is None else (one["low"], one["high"]) for one in row] for row in bars]
    title, about, axes = "Metrics with 95% intervals", _about(runs, drawn, values), ("metric", "percent")
    chart = charts.bars("chart-metrics", title, about, axes, drawn, values, intervals)
    rows = []
    for name in names:
        best = max(own[name]["value"] for own in metrics)
        cells = []
        for one in (own[name] for own in metrics):
            value = f"{one['value']:.2f}"
            if len(runs) > 1 and one["value"] == best:
                value = f"<strong>{value}</strong>"
            if one["low"] is not None:
                value += f' <span class="soft">{one["low"]:.1f}–{one["high"]:.1f}</span>'
            cells.append(value)
        rows.append([escape(name), *cells])
    kinds = dict.fromkeys(name.split("@")[0] for name in names)
    meaning = "; ".join(f"{kind}@k: {MEANING[kind]}" for kind in kinds if kind in MEANING)
    return (
        '<div class="charts">'
        + _figure("Metrics of each run, with 95% intervals", chart, runs)
        + _table(_header("metric", runs), rows, "Metrics, in percent, with 95% intervals")
        + "</div>"
        + f'<p class="soft">{escape("; ".join(_circumstances(runs)))}.</p>'
        + f'<p class="soft">{escape(meaning)}. The intervals come from a bootstrap over documents: they cover the '
        "choice of the documents, not the seed of training. Coverage has none.</p>"
    )


def _circumstances(runs: list[Run]) -> list[str]:
    """What metrics were computed of, in phrases."""
    first = runs[0]["measured"]
    counts = first["counts"]
    facts = [f"{counts['documents']:,} documents with {counts['positives']:,} true labels"]
    if counts["without_label"]:
        facts.append(f"{counts['without_label']:,} documents without any count as 0")
    if first["filter"] != "none":
        facts.append(f"{counts['filtered']:,} predictions of the first run deleted by the {first['filter']}")
    propensity = first["propensity"]
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
    return facts


def _validation(runs: list[Run]) -> str:
    validations = [_numbers(run["validation"]) for run in runs]
    names = list(dict.fromkeys(name for own in validations for name in own))
    if not names:
        return "<p>The folders record no validation metrics.</p>"
    parts = []
    drawn = [name for name in MAIN if all(name in own for own in validations)]
    if drawn:
        values = [[own[name] for name in drawn] for own in validations]
        heights = [[max(0.0, value) for value in row] for row in values]
        about, axes = _about(runs, drawn, values), ("metric", "percent")
        chart = charts.bars("chart-metrics", "Validation metrics", about, axes, drawn, heights)
        parts.append(_figure("Validation metrics of each run", chart, runs))
    rows = [[escape(name), *(_number(own.get(name), 2) for own in validations)] for name in names]
    parts.append(_table(_header("metric", runs), rows, "Validation metrics, in percent"))
    for run in runs:
        rankings = {name: _numbers(values) for name, values in run["rankings"].items() if isinstance(values, dict)}
        shown = [name for name in MAIN if all(name in values for values in rankings.values())]
        if rankings and shown:
            rows = [[escape(name), *(f"{values[m]:.2f}" for m in shown)] for name, values in rankings.items()]
            parts.append(_table(["ranking", *shown], rows, f"{run['name']}: its rankings, on validation documents"))
    return "".join(parts) + (
        '<p class="soft">Each run records these on its own validation documents, by which its best weights were '
        "chosen, so they are a little too high.</p>"
    )


def _differences(comparisons: list[dict[str, Any]]) -> str:
    if not comparisons:
        return ""
    figures, tables = [], []
    for i, pair in enumerate(comparisons):
        title = f"{pair['b']} minus {pair['a']}"
        rows = [(name, one["difference"], one["low"], one["high"]) for name, one in pair["metrics"].items()]
        drawn = [row for row in rows if row[0] in MAIN]
        about = "; ".join(f"{name} {value:+.2f}, {_verdict(low, high)}" for name, value, low, high in drawn)
        chart = charts.differences(f"chart-difference-{i}", title, about, "points of percent", drawn)
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
        a, b = escape(pair["a"]), escape(pair["b"])
        figures.append(_figure(title, chart))
        tables.append(_table(["metric", a, b, "difference", "95% interval", f"{b} is"], cells, f"{title}, by metric"))
    return (
        f'<div class="charts">{"".join(figures)}</div>{"".join(tables)}'
        '<p class="soft">A paired bootstrap: the same documents are drawn for both runs. A difference is called '
        "clear when its interval leaves out 0. It does not cover the seed of training: a difference under 0.3 "
        "points needs several seeds. Of twenty comparisons of equals one looks clear by chance.</p>"
    )


def _kind(low: float, high: float) -> str:
    return "up" if low > 0 else "down" if high < 0 else "none"


def _verdict(low: float, high: float) -> str:
    return {"up": "clearly better", "down": "clearly worse", "none": "not clearly different"}[_kind(low, high)]


def _curves(runs: list[Run]) -> str:
    figures: list[str] = []
    for metric in CURVES:
        for axis, label in (("seconds", "seconds"), ("step", "steps")):
            series = [_points(run, axis, metric) for run in runs]
            if not any(len(points) > 1 for points in series):
                continue
            about = "; ".join(
                f"{run['name']}: from {points[0][1]:.1f} at {number(round(points[0][0]))} "
                f"to {points[-1][1]:.1f} at {number(round(points[-1][0]))}"
                for run, points in zip(runs, series, strict=True)
                if points
            )
            title = f"{metric} on validation documents by {label}"
            chart = charts.lines(f"chart-curve-{len(figures)}", title, f"{about}.", (label, metric), series)
            figures.append(_figure(title, chart, runs))
    if not figures:
        return ""
    facts = [f"{run['name']} kept step {run['best_step']:,}" for run in runs if isinstance(run["best_step"], int)]
    stopped = [f"{run['name']}: {run['stopped']}" for run in runs if run["stopped"] is not None]
    if stopped:
        facts.append("what ended the runs: " + ", ".join(stopped))
    note = f'<p class="soft">{escape("; ".join(facts))}.</p>' if facts else ""
    return f'<div class="charts">{"".join(figures)}</div>{note}'


def _points(run: Run, axis: str, metric: str) -> list[tuple[float, float]]:
    """The points of a learning curve that have both."""
    curve = map(_numbers, run["curve"])
    return [(float(point[axis]), float(point[metric])) for point in curve if axis in point and metric in point]


def _frequency(runs: list[Run]) -> str:
    groups = runs[0]["measured"]["groups"]
    if not groups:
        return ""
    names = [name for name, group in groups.items() if group["labels"]]
    figures = []
    for key, metric, title in (("re", "recall@5", "Recall at 5"), ("p", "P@5 share", "What each group adds to P@5")):
        values = [[run["measured"]["groups"][name][metric] for name in names] for run in runs]
        about, axes = _about(runs, names, values), ("label frequency", "percent")
        chart = charts.bars(f"chart-{key}-groups", title, about, axes, names, values)
        figures.append(_figure(f"{title}, by label frequency", chart, runs))
    rows = [
        [
            name,
            *(f"{groups[name][key]:,}" for key in ("labels", "train_pairs", "positives")),
            *(f"{run['measured']['groups'][name]['recall@5']:.2f}" for run in runs),
        ]
        for name in names
    ]
    recalls = [f"recall@5 {escape(run['name'])}" if len(runs) > 1 else "recall@5" for run in runs]
    header = ["labels", "how many", "training pairs", "true pairs here", *recalls]
    return (
        f'<div class="charts">{"".join(figures)}</div>'
        + _table(header, rows, "Labels by how often they occur in training")
        + '<p class="soft">Head, torso and tail hold a third of the training pairs each, the most frequent labels '
        "first; unseen labels have no training document. The shares of P@5 add up to P@5.</p>"
    )


def _calibration(runs: list[Run]) -> str:
    measured = [None if run["measured"] is None else run["measured"]["calibration"] for run in runs]
    if any(own is not None for own in measured):
        content = _measured_calibration(runs, measured)
    elif any(run["calibration"] for run in runs):
        content = _recorded_calibration(runs)
    else:
        return ""
    without = [
        run["name"] for run, own in zip(runs, measured, strict=True) if run["calibration"] is None and own is None
    ]
    return content + (f'<p class="soft">Not calibrated: {escape(_and(without))}.</p>' if without else "")


def _measured_calibration(runs: list[Run], measured: list[dict[str, Any] | None]) -> str:
    known = [(run["name"], own) for run, own in zip(runs, measured, strict=True) if own is not None]
    about = "; ".join(f"{name}: expected calibration error {own['ece']:.3f}" for name, own in known)
    series = [[] if own is None else [(one["predicted"], one["observed"]) for one in own["bins"]] for own in measured]
    axes = ("predicted probability", "share that is true")
    chart = charts.reliability("chart-reliability", "Reliability", f"{about}.", axes, series)
    groups = ("head", "torso", "tail", "unseen")
    rows = [
        [
            escape(name),
            f"{own['ece']:.4f}",
            f"{own['pairs']:,}",
            *(f"{own['groups'][group]['ece']:.4f}" if group in own["groups"] else "–" for group in groups),
        ]
        for name, own in known
    ]
    return (
        _figure("Predicted probability and the share that is true", chart, runs)
        + _table(["run", "ECE", "pairs", *(f"ECE {group}" for group in groups)], rows, "Expected calibration error")
        + f'<p class="soft">Of the first {known[0][1]["top"]} labels of each document, in bins of equal mass; on the '
        "dashed line probabilities mean what they say. The expected calibration error (ECE) is the mean distance to "
        "it, from 0 to 1.</p>"
    )


def _recorded_calibration(runs: list[Run]) -> str:
    rows = []
    for run in runs:
        recorded = run["calibration"] or {}
        best = recorded.get("best_f1")
        best = best if isinstance(best, dict) else {}
        cells = [_number(recorded.get("ece"), 4), *(_number(best.get(key), 3) for key in ("threshold", "f1", "labels"))]
        rows.append([escape(run["name"]), *cells])
    header = ["run", "ECE", "best threshold", "F1 there", "labels a document there"]
    return _table(header, rows, "Calibration, on held-out folds of validation documents")


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
                *(_label(pair[key]) for key in ("true", "predicted")),
                *(f"{pair[key]:,}" for key in ("documents", "of", "other_way_round")),
            ]
            for pair in pairs
        ]
        header = ["true, but missed", "came first, but is wrong", "times", "of", "reverse"]
        caption = "The most frequent pairs" + (f" of {run['name']}" if len(runs) > 1 else "")
        parts.append(heading + _table(header, rows, caption, left=2))
    return "".join(parts) + (
        f'<p class="soft">Counted over documents whose first label is wrong: that label beside each true label that '
        f"is not among the first five. At most {PAIRS} pairs a run, of two documents or more. Times: documents with "
        "the pair; of: all documents with the true label; reverse: the other way round. A pair may also be two labels "
        "of which annotators choose one.</p>"
    )


def _examples(runs: list[Run]) -> str:
    parts = []
    for run in runs:
        for kind in ("best", "worst"):
            articles = "".join(map(_example, run["measured"][kind]))
            if articles:
                heading = f"{run['name']}: {kind} documents" if len(runs) > 1 else f"{kind.capitalize()} documents"
                parts.append(f'<h3>{escape(heading)}</h3><div class="examples">{articles}</div>')
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
    missed = [_label(label) for label in one["true"] if not label["found"]]
    more = f" and {len(missed) - 12} more" if len(missed) > 12 else ""
    note = f'<p><span class="soft">True, not among the first five:</span> {"; ".join(missed[:12])}{more}</p>'
    return (
        f'<article><p class="document"><bdi>{escape(one["text"])}</bdi></p><p class="soft">document '
        f"<bdi>{escape(one['id'])}</bdi>, nDCG@5 {one['nDCG@5']:.1f}</p>"
        f"<ol>{''.join(map(_predicted, one['predicted']))}</ol>{note if missed else ''}</article>"
    )


def _predicted(label: dict[str, Any]) -> str:
    """A label of an example, with the keys that voted for it."""
    mark = '<span class="up">✓</span>' if label["right"] else '<span class="down">✗</span>'
    said = "true" if label["right"] else "not true"
    value = label["score"] if label["probability"] is None else label["probability"]
    why = "".join(
        f'<li><span class="number">{reason["share"]:.3f}</span> '
        f"<span>{reason['kind']} <bdi>{escape(reason['text']) or escape(reason['id'])}</bdi> "
        f'<span class="soft">{_strength(reason)}</span></span></li>'
        for reason in label["why"]
    )
    more = label["keys"] - len(label["why"])
    if more > 0:
        why += f'<li class="soft"><span class="number"></span> {more:,} more key{"s" * (more > 1)}</li>'
    own = len(label["why"]) == label["keys"] == 1 and label["why"][0]["kind"] == "label"
    why = "" if own else f'<ul class="why">{why}</ul>'  # its own text alone voted, and stands there already
    return (
        f'<li><div class="given"><span aria-label="{said}" role="img">{mark}</span> {_label(label)} '
        f'<span class="number">{value:.2f}</span></div>{why}</li>'
    )


def _data(data: dict[str, Any]) -> str:
    rows = []
    for name, shown in (("train", "training"), ("valid", "validation"), ("test", "test")):
        part = data[name]
        if part is not None:
            held = " (held out of training)" if part.get("held_out_of_train") else ""
            documents, labels = f"{part['documents']:,}", f"{part['labels_per_document']:.2f}"
            rows.append([shown + held, documents, labels, *(f"{part[k]:,}" for k in ("most_labels", "without_labels"))])
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
        counts = data[key]
        about = ", ".join(f"{group}: {count:,}" for group, count in counts.items())
        chart = charts.bars(name, title, about, (axis, what), list(counts), [list(map(float, counts.values()))])
        figures.append(_figure(title, chart))
    return (
        f'<p>{escape(facts)}</p><div class="charts">{"".join(figures)}</div>'
        + _table(header, rows, f"Documents of {data['name']}")
        + _table(["texts", "mean", "median", "99th percentile", "longest"], lengths, f"Lengths in {data['token_unit']}")
    )


def _cost(runs: list[Run]) -> str:
    facts: dict[str, Callable[[Run], str]] = {
        "training": lambda run: _duration(run["cost"]["seconds"]),
        "steps": lambda run: _number(run["cost"]["steps"], 0),
        "training texts a second (median)": lambda run: _number(run["cost"]["texts_per_second"], 0),
        "peak memory": lambda run: _number(run["cost"]["peak_memory_gb"], 1, " GB"),
        "size on disk": lambda run: f"{run['cost']['bytes'] / 1e6:,.1f} MB",
        "label keys": lambda run: f"{run['labels']:,}",
        "document keys": lambda run: f"{run['documents']:,}",
        "dimensions": lambda run: f"{run['dimensions']:,}",
    }
    rows = [[name, *map(shown, runs)] for name, shown in facts.items()]
    return _table(_header("", runs), rows, "What the runs took, and what the models take")


def _settings(runs: list[Run]) -> str:
    facts = {
        "recipe": "recipe", "encoder": "encoder", "data": "data", "training documents": "training_documents",
        "made": "created", "by labelspace": "labelspace", "changes since": "changes",
    }  # fmt: skip
    rows = [[label, *(_plain(run[key]) for run in runs)] for label, key in facts.items()]
    parts = [_table(_header("", runs), rows, "The runs", left=len(runs) + 1)]
    names = [name for name in differing(runs) if name not in ("encoder", "recipe")]
    if names:
        caption = "Settings that differ between the runs" if len(runs) > 1 else "Settings that are not the default"
        rows = [
            [f"<code>{escape(name)}</code>", *(_plain(run["config"].get(name, "–")) for run in runs)] for name in names
        ]
        parts.append(_table(_header("setting", runs), rows, caption, left=len(runs) + 1))
    return "".join(parts)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _figure(caption: str, chart: str, runs: Sequence[Run] = ()) -> str:
    legend = ""
    if len(runs) > 1:
        items = (f"<li>{charts.swatch(i)}<bdi>{escape(run['name'])}</bdi></li>" for i, run in enumerate(runs))
        legend = f'<ul class="legend">{"".join(items)}</ul>'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{legend}{chart}</figure>"


def _header(first: str, runs: Iterable[Run]) -> list[str]:
    return [first, *(escape(run["name"]) for run in runs)]


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


def _about(runs: Iterable[Run], names: Sequence[str], values: Iterable[Sequence[float]]) -> str:
    """What a chart of bars shows, for those who do not see it."""
    rows = (", ".join(f"{name} {value:.1f}" for name, value in zip(names, row, strict=True)) for row in values)
    return "; ".join(f"{run['name']}: {row}" for run, row in zip(runs, rows, strict=True)) + "."


def _label(label: dict[str, Any]) -> str:
    shown = f"<bdi>{escape(label['text']) or escape(label['id'])}</bdi>"
    return shown if label["text"] in ("", label["id"]) else f'{shown} <span class="id">{escape(label["id"])}</span>'


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers."""
    return {name: value for name, value in values.items() if _is_number(value)}


def _number(value: Any, digits: int, unit: str = "") -> str:
    return f"{value:,.{digits}f}{unit}" if _is_number(value) else "–"


def _duration(seconds: Any) -> str:
    if not _is_number(seconds):
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
