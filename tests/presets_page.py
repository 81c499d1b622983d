"""Writes the tables of docs/presets.md from the files of the presets; a test compares the page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from labelspace.evaluation.published import data_sets
from labelspace.training.presets import COST_NOTE, Preset, estimated_cost, preset_names, read_preset

PAGE = Path(__file__).parent.parent / "docs" / "presets.md"
METRICS = ("P@1", "P@3", "P@5", "PSP@1", "R@100")
MARK = "<!-- below: what tests/presets_page.py makes of the files -->\n"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    cells = [list(header), *map(list, rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return [f"| {' | '.join(row)} |" for row in cells] + [""]


def settings_table(preset: Preset, but: set[tuple[str, str, str, str]]) -> list[str]:
    rows = [row for row in rows_of(preset) if row not in but]
    return table(("part", "setting", "value", "where it comes from"), rows)


def rows_of(preset: Preset) -> list[tuple[str, str, str, str]]:
    return [
        (component, f"`{name}`", f"`{json.dumps(value)}`", source) for component, name, value, source in preset.given
    ]


def page() -> str:
    runs = [read_preset(name) for name in preset_names()]
    lines = ["", "## Figures and costs", ""]
    rows = []
    for run in runs:
        cost = estimated_cost(run)
        figures = [f"{run.figures[metric]:.2f}" if metric in run.figures else "" for metric in METRICS]
        told = run.cost and f"; {run.cost}"
        rows.append(
            [f"`{run.name}`", *figures, run.figures_from, f"{cost.hours:,.0f} h, {cost.gigabytes:.0f} GB{told}"]
        )
    lines += table(("preset", *METRICS, "figures from", "estimated cost; published"), rows)
    lines += [" ".join(COST_NOTE.split()), "", "## Data sets", ""]
    lines += table(
        ("data set", "train", "test", "labels", "files", "pairs not to predict", "propensity a, b"),
        (
            (d.name, f"{d.documents:,}", f"{d.test_documents:,}", f"{d.labels:,}", code(d.files), code(d.filters),
             ", ".join(map(str, d.propensity)))
            for d in data_sets().values()
        ),
    )  # fmt: skip
    for recipe in dict.fromkeys(run.recipe for run in runs):
        own = [run for run in runs if run.recipe == recipe]
        common = set(rows_of(own[0])).intersection(*map(rows_of, own))
        chosen, why = own[0].chosen_on_test
        lines += [f"## {own[0].paper.partition(' (')[0]}", "", f"{own[0].paper}. All its runs have:", ""]
        lines += table(("part", "setting", "value", "where it comes from"), (r for r in rows_of(own[0]) if r in common))
        lines += [f"Figures were chosen on test documents: {chosen} ({why}).", ""]
        for run in own:
            lines += [f"### {run.name}", "", f"{run.data_set.name}: {run.about}.", "", *settings_table(run, common)]
    above = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    return above + MARK + "\n".join(lines).rstrip() + "\n"


def code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
