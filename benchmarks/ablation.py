"""What the ablations share: their arguments, and runs that are not made twice."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Run = dict[str, Any]


def asked(
    parser: argparse.ArgumentParser, variants: dict[str, list[str]], table: Callable[[list[Run]], str]
) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and what comes after ``--``; where only a table is asked for, it is printed and that is all.

    Args:
        parser: with the arguments that one ablation alone has.
        variants: flags of each run, by name.
        table: makes a table of runs.
    """
    parser.add_argument("data", nargs="?")
    parser.add_argument("--table", type=Path, help="print the table of such a file, and run nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(variants), default=list(variants))
    words = sys.argv[1:]
    own, further = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    given = parser.parse_args(own)
    if given.table:
        print(table(read(given.table)))
        raise SystemExit
    if given.data is None:
        parser.error("name the data, or --table")
    return given, further


def read(record: Path) -> list[Run]:
    """The runs of a file, a line of JSON each.

    Args:
        record: the file.
    """
    return [json.loads(line) for line in record.read_text().splitlines()]


def missing(
    given: argparse.Namespace, record: Path, done: list[Run], **key: Any
) -> Iterator[tuple[Run, Callable[[Run], None]]]:
    """What tells each run that is not there yet, and what notes its figures beside that.

    Args:
        given: the arguments.
        record: file that the runs are appended to; missing folders are made.
        done: the runs of that file, to which new ones are added.
        key: what else tells one run from another.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    done += read(record) if record.exists() else []
    for seed in given.seeds:
        for name in given.only:
            mine = {"name": name, "seed": seed, **key}
            if any({k: run.get(k) for k in mine} == mine for run in done):
                continue

            def note(figures: Run, mine: Run = mine) -> None:
                done.append({**mine, **figures})
                with record.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")

            yield mine, note


def train(command: list[str]) -> Run:
    """Run ``labelspace train`` and give what it prints.

    Args:
        command: its arguments.
    """
    whole = [sys.executable, "-m", "labelspace", "train", *command, "--json", "--quiet"]
    print(" ".join(whole), file=sys.stderr, flush=True)
    found: Run = json.loads(subprocess.run(whole, check=True, capture_output=True, text=True).stdout)
    return found
