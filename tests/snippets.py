"""Runs what pages show: their ``bash`` and ``python`` blocks in order in one folder, and compares the output.

A block's output is the indented block right after it. A line ``...`` in it stands for any lines, ``...`` within a line
for any words; of the last command's output the end is compared, so what comes before may be left out. A block after the
comment ``<!-- not run: why -->`` is not run.

Every command and every Python block is a process of its own, forked from one that has loaded what they need: loading it
anew takes longer than all else that they do. That one serves all pages of a process of the tests.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

COMMANDS = ("labelspace ", "python ", "pip ", "make ", "curl ", "LABELSPACE_")


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Args:
        kind: ``bash``, ``python``, or what else stands after the fence.
        code: its lines.
        shown: the output that is shown.
        line: where it begins.
        why: it is not run; None where it is.
    """

    kind: str
    code: str
    shown: str
    line: int
    why: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, and indented ones that look like commands.

    Args:
        page: a Markdown file.
    """
    found: list[tuple[str, list[str], list[str], int, str | None]] = []
    inside = after = False
    why: str | None = None
    before = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            if not inside:
                found.append((line[3:].strip(), [], [], number, why))
                why = None
            inside, after = not inside, inside
        elif inside:
            found[-1][1].append(line)
        elif after and (not line or line.startswith("    ")):
            found[-1][2].append(line[4:])
        else:
            after = False
            if told := re.fullmatch(r"<!-- not run: (.+) -->", line):
                why = told[1]
            elif line.startswith("    "):
                if not before.strip():
                    found.append(("indented", [], [], number, why))
                found[-1][1].append(line[4:])
            elif line.strip():
                why = None
        before = line
    made = [Block(kind, "\n".join(code), "\n".join(shown).strip("\n"), at, why) for kind, code, shown, at, why in found]
    return [block for block in made if block.kind != "indented" or block.code.startswith(COMMANDS)]


def same(printed: str, shown: str) -> bool:
    """Whether what is shown is the end of what was printed, but for ``...`` and small differences of numbers.

    Decimals may differ by 0.15 or a tenth: similarities and metrics vary a little between machines.

    Args:
        printed: by the block.
        shown: on the page.
    """
    a, b = ([_words(line) for line in text.splitlines() if line.strip()] for text in (printed, shown))
    if ["..."] not in b:
        return len(a) >= len(b) and all(map(_alike, a[len(a) - len(b) :], b))
    parts: list[list[list[str]]] = [[]]
    for line in b:
        if line == ["..."]:
            parts.append([])
        else:
            parts[-1].append(line)
    return any(_in_order(a[at:], parts) for at in range(len(a) + 1))


def _in_order(lines: list[list[str]], parts: list[list[list[str]]]) -> bool:
    """Whether the first part begins the lines, the last ends them, and the others come between in order."""
    first, *rest = parts
    if not all(map(_alike, lines, first)) or len(lines) < len(first):
        return False
    if not rest:
        return len(lines) == len(first)
    left = lines[len(first) :]
    return any(_in_order(left[at:], rest) for at in range(len(left) + 1))


def _words(line: str) -> list[str]:
    return re.sub(r"([()\[\]{},:])", r" \1 ", line).split()


def _alike(printed: list[str], shown: list[str]) -> bool:
    if "..." in shown:
        at = shown.index("...")
        rest = shown[at + 1 :]
        return len(printed) >= len(shown) - 1 and (
            _alike(printed[:at], shown[:at]) and _alike(printed[len(printed) - len(rest) :], rest)
        )
    return len(printed) == len(shown) and all(map(_equal, printed, shown))


def _equal(printed: str, shown: str) -> bool:
    if re.fullmatch(r"-?\d+\.\d+(e-\d+)?%?", shown):
        try:
            a, b = float(printed.rstrip("%")), float(shown.rstrip("%"))
        except ValueError:
            return False
        return abs(a - b) <= max(0.15, 0.1 * abs(b))
    return printed == shown


class Server:
    """The process that commands are forked from. Use it as a context: it ends with all of them.

    Args:
        home: an empty folder for its socket.
    """

    def __init__(self, home: Path):
        self.socket = home / "s"
        source = str(Path(__file__).parent.parent / "src")
        self.environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHONPATH": source,
        }  # fmt: skip
        for name in ("LABELSPACE_TOKEN", "PYTHONWARNINGS"):
            self.environment.pop(name, None)
        command = [sys.executable, str(Path(__file__).resolve()), str(self.socket)]
        self._process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *told: object) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.terminate()
        self._process.wait()


class Runner:
    """Runs blocks in a folder. Use it as a context: what still runs in the end, a service say, ends with it.

    Args:
        server: what commands are forked from.
        folder: where blocks run.
        cache: of labelspace, shared between pages.
    """

    def __init__(self, server: Server, folder: Path, cache: Path):
        self.folder = folder
        self._home = folder.parent / f"{folder.name}.commands"
        self._home.mkdir()
        for name, start in (("labelspace", []), ("python", ["python"]), ("end", None)):
            script = f"#!{sys.executable} -SE\n"
            script += CLIENT.format(socket=str(server.socket), home=str(self._home), start=start)
            (self._home / name).write_text(script)
            (self._home / name).chmod(0o755)
        tools = f"{self._home}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**server.environment, "PATH": tools, "LABELSPACE_CACHE": str(cache)}

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *told: object) -> None:
        subprocess.run([self.tool("end")], check=True)

    def __call__(self, block: Block) -> subprocess.CompletedProcess[str]:
        """Run one block.

        Args:
            block: of kind ``bash`` or ``python``.
        """
        if block.kind == "python":
            return self._run([self.tool("python"), "-c", block.code])
        return self.command(block.code)

    def tool(self, name: str) -> str:
        """The path of a command that is forked from the server.

        Args:
            name: ``labelspace`` or ``python``; of ``python`` what ``-c``, ``-m`` or a script names is run.
        """
        return str(self._home / name)

    def command(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run commands of a shell.

        Args:
            code: the commands.
        """
        return self._run(["bash", "-euo", "pipefail", "-c", code])

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as told:  # a service may go on
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=told,
                timeout=300,
            )  # fmt: skip
            out.seek(0), told.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read(), told.read())


CLIENT = """
import array, os, signal, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({socket!r})
arguments = {start!r} if {start!r} is None else {start!r} + sys.argv[1:]
told = "\\0".join([{home!r}, os.getcwd(), repr(arguments), repr(dict(os.environ))])
told = told.encode("utf-8", "surrogateescape")
link.sendmsg([len(told).to_bytes(8, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
link.sendall(told)
child = int.from_bytes(link.recv(8), "little")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(child, number))
code = b""
while not code:
    code = link.recv(1)
    if code == b"":
        sys.exit(70)
sys.exit(code[0])
"""


CHILDREN: dict[int, str] = {}
"""Commands that run, and whose they are: they end with their runner, or with the server."""


def _end(home: str | None = None) -> None:
    """End the commands of a runner, or all."""
    for child, of in list(CHILDREN.items()):
        if home in (None, of):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _child(arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> int:
    """What the forked process does: become the command that was asked for."""
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if arguments[:1] != ["python"]:
        from labelspace.cli.app import main

        return main(arguments)
    sys.path.insert(0, "")
    if arguments[1] == "-c":
        sys.argv = ["-c", *arguments[3:]]
        exec(compile(arguments[2], "<block>", "exec"), {"__name__": "__main__"})
    elif arguments[1] == "-m":
        import runpy

        sys.argv = arguments[2:]
        runpy.run_module(arguments[2], run_name="__main__", alter_sys=True)
    else:
        import runpy

        sys.argv = arguments[1:]
        runpy.run_path(arguments[1], run_name="__main__")
    return 0


def _attend(link: socket.socket, listener: socket.socket) -> None:
    """Fork the command that a client asks for, and tell it how that ended; or end those of a runner."""
    head, ancillary, _, _ = link.recvmsg(8, socket.CMSG_SPACE(12))
    streams = array.array("i")
    streams.frombytes(ancillary[0][2][:12])
    length, told = int.from_bytes(head, "little"), b""
    while len(told) < length:
        told += link.recv(length - len(told))
    home, folder, asked, environment = told.decode("utf-8", "surrogateescape").split("\0", 3)
    arguments = eval(asked)
    if arguments is None:
        _end(home)
        for stream in streams:
            os.close(stream)
        with link:
            link.sendall((os.getpid()).to_bytes(8, "little") + b"\0")
        return
    child = os.fork()
    if not child:
        CHILDREN.clear()
        listener.close()
        link.close()
        code = 1
        try:
            code = _child(arguments, folder, eval(environment), list(streams))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    for stream in streams:
        os.close(stream)
    CHILDREN[child] = home
    link.sendall(child.to_bytes(8, "little"))

    def wait() -> None:
        _, status = os.waitpid(child, 0)
        CHILDREN.pop(child, None)
        with contextlib.suppress(OSError), link:
            link.sendall(bytes([os.waitstatus_to_exitcode(status) & 255]))

    threading.Thread(target=wait, daemon=True).start()


def _serve(path: str) -> None:
    """Load what commands need, then fork one for every client."""
    import sentence_transformers  # noqa: F401
    import torch
    import transformers  # noqa: F401

    for name in ("labelspace.serving.app", "simple_icd_10_cm"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from processors import pretend

    pretend()
    torch.set_num_threads(1)

    def end(number: int, frame: object) -> None:
        _end()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            _attend(listener.accept()[0], listener)


def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of labelspace for all tests, whichever process runs them.

    Args:
        tmp_path_factory: of pytest.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "labelspace-cache"
    folder.mkdir(exist_ok=True)
    return folder


def page_blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that are run.

    Args:
        page: a Markdown file.
    """
    yield from (block for block in blocks(page) if block.why is None and block.kind in ("bash", "python"))


if __name__ == "__main__":
    _serve(sys.argv[1])
