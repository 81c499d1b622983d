"""Figures in the pages against the files they come from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"<!-- figures: (.+?) -->\n(.*?)<!-- end of figures -->", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.,/-])\d[\d,]*(?:\.\d+)?(?![\w/-]|\.\d)")
MEASURED = re.compile(r"\b(?:P|R|PSP|nDCG)@\d+ (?:of )?\d\d?\.\d")


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        yield from (float(key) for key in value if key.isdigit())
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers_in(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def known(names: str) -> list[float]:
    found: list[float] = []
    for name in names.split(", "):
        path = ROOT / "benchmarks" / name
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        for line in lines:
            found += numbers_in(json.loads(line))
    return found


def shown(text: str) -> Iterator[str]:
    """Numbers of a block: of table rows without the first cell, and of other lines; code and dates apart."""
    for line in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).splitlines():
        bare = re.sub(r"`[^`]*`|\d{4}-\d\d-\d\d|\b\w+@\d+|^ {4}.*", "", line)
        if line.startswith("|"):
            bare = "|".join(bare.split("|")[2:])
        yield from NUMBER.findall(bare)


def blocks() -> list[tuple[str, str, str]]:
    return [
        (str(page.relative_to(ROOT)), names, text)
        for page in PAGES
        for names, text in BLOCK.findall(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("page", "names", "text"), blocks(), ids=lambda value: str(value)[:40])
def test_every_figure_of_a_block_is_in_its_files(page: str, names: str, text: str) -> None:
    values = known(names)
    found = list(shown(text))
    assert found, f"{page}: a block of figures from {names} shows none"
    for number in found:
        digits = len(number.partition(".")[2])
        value = float(number.replace(",", ""))
        near = 0.5 * 10.0**-digits + 1e-9
        assert any(abs(v - value) <= near or abs(100 * v - value) <= near for v in values), (
            f"{page}: {number} is not in {names}"
        )


def test_metrics_are_told_in_blocks_alone() -> None:
    for page in PAGES:
        if page.name == "results.md":  # rendered, see test_study
            continue
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
        assert not MEASURED.findall(text), f"{page}: {MEASURED.findall(text)[:3]} without the file it comes from"


def test_the_test_can_fail() -> None:
    assert list(shown("| 2,048 | 41.3 | 1,024 | `--k 3` | P@5 7 |\nof 12.5, 2026-11-22")) == [
        "41.3",
        "1,024",
        "7",
        "12.5",
    ]
    assert list(numbers_in({"a": [1, {"b": 2.5}], "c": True, "d": "7", "9": "x"})) == [9.0, 1.0, 2.5]
