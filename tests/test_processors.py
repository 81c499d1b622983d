"""Tests that compare numbers hold on a processor without AVX512 too, and where torch has no vector instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processors import LESSER

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="this run is as another processor already")
def test_numeric_tests_hold_without_avx512(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-m", "numeric", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment.update(LESSER, OMP_NUM_THREADS="1")
    done = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "other"), "tests"], cwd=ROOT, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
