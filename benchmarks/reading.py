"""Memory and speed of reading and tokenising, on generated data of any size.

    python benchmarks/reading.py FOLDER --documents 1000000 --labels 200000 --kind jsonl

writes a data set into FOLDER/KIND-DOCUMENTS-LABELS (once; a second run takes what is there), then reads it with
``labelspace.data.load`` and tokenises its training texts with ``Encoder.tokenize`` into an empty cache, in a process of
its own, and prints what that process took.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from labelspace.base.files import atomic_folder
from labelspace.base.machine import gigabytes, peak_memory

KINDS = ("jsonl", "jsonl-bare", "csv", "lf", "parquet")
BLOCK = 10_000

Row = tuple[str, str, list[int]]


def words(rng: np.random.Generator, count: int) -> np.ndarray:
    """Made-up words, one in fifty with a letter outside ASCII."""
    syllables = np.array([a + b for a in "bcdfghklmnprstvz" for b in "aeiou"])
    lengths = rng.integers(1, 5, count)
    found = ["".join(rng.choice(syllables, n)) for n in lengths]
    return np.array([word.replace("a", "ä", 1) if i % 50 == 0 else word for i, word in enumerate(found)], dtype=object)


def documents(count: int, n_labels: int, seed: int) -> Iterator[Row]:
    """Rows of 12 to 60 words, frequent ones more often, and about five labels, frequent ones more often."""
    rng = np.random.default_rng(seed)
    vocabulary = words(rng, 50_000)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        lengths, sizes = rng.integers(12, 61, size), rng.poisson(5, size)
        drawn = (len(vocabulary) * rng.random(int(lengths.sum())) ** 3).astype(np.int64)
        labels = (n_labels * rng.random(int(sizes.sum())) ** 2).astype(np.int64)
        texts = np.split(vocabulary[drawn], np.cumsum(lengths)[:-1])
        parts = np.split(labels, np.cumsum(sizes)[:-1])
        for i, (text, part) in enumerate(zip(texts, parts, strict=True), start):
            yield f"d{i}", " ".join(text), list(dict.fromkeys(part.tolist()))


def write(folder: Path, kind: str, count: int, n_labels: int, seed: int) -> None:
    """Write a data set; label ids are of the form ``L000123``."""
    rng = np.random.default_rng(seed + 1)
    vocabulary = words(rng, 20_000)
    names = [" ".join(row) for row in rng.choice(vocabulary, (n_labels, 3))]
    rows = documents(count, n_labels, seed)
    if kind == "lf":
        lines(folder / "lbl.json", ({"uid": f"L{i:06d}", "title": name, "content": ""} for i, name in enumerate(names)))
        lines(
            folder / "trn.json",
            (
                {"uid": uid, "title": text, "content": "", "target_ind": part, "target_rel": [1.0] * len(part)}
                for uid, text, part in rows
            ),
        )
        return
    if kind != "jsonl-bare":
        lines(folder / "labels.jsonl", ({"id": f"L{i:06d}", "text": name} for i, name in enumerate(names)))
    ids = ((uid, text, [f"L{i:06d}" for i in part]) for uid, text, part in rows)
    if kind == "csv":
        with (folder / "train.csv").open("w", encoding="utf-8") as file:
            file.write("id,text,labels\n")
            file.writelines(f"{uid},{text},{';'.join(part)}\n" for uid, text, part in ids)
    elif kind == "parquet":
        write_parquet(folder / "train.parquet", ids)
    else:
        lines(folder / "train.jsonl", ({"id": uid, "text": text, "labels": part} for uid, text, part in ids))


def lines(path: Path, records: Iterator[dict[str, object]]) -> None:
    """Write one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_parquet(path: Path, rows: Iterator[tuple[str, str, list[str]]]) -> None:
    """Write row groups of 10,000."""
    import itertools

    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("labels", pa.list_(pa.string()))])
    with pq.ParquetWriter(path, schema) as writer:
        while block := list(itertools.islice(rows, BLOCK)):
            writer.write_table(pa.table(list(zip(*block, strict=True)), schema=schema))


def measure(folder: Path) -> None:
    """Read and tokenise in this process; prints a line a step."""
    from labelspace.data.loading import fingerprint, load
    from labelspace.encoders import open_encoder

    encoder = open_encoder("minilm")

    def step(name: str, run: Callable[[], object], count: Callable[[], int]) -> None:
        start, processor = time.perf_counter(), time.process_time()
        run()
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        peak = peak_memory()
        print(
            f"{name:<12} {seconds:8.1f} s {processor:8.1f} s of processor {count() / seconds:10,.0f} texts/s   "
            f"peak {'unknown' if peak is None else gigabytes(peak)}",
            flush=True,
        )

    found = []
    step("libraries", lambda: None, lambda: 0)
    step("load", lambda: found.append(load(folder)), lambda: len(found[0].train))
    step("fingerprint", lambda: fingerprint(found[0]), lambda: len(found[0].train))
    with tempfile.TemporaryDirectory(prefix="labelspace-reading-") as cache:
        step("tokenize", lambda: encoder.tokenize(found[0].train.texts, Path(cache)), lambda: len(found[0].train))
    data = found[0]
    print(f"{len(data.train):,} documents, {len(data.labels):,} labels, {data.train.targets.nnz:,} pairs")


def main() -> None:
    """Generate, then measure in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the generated data goes")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=20_000)
    parser.add_argument("--kind", choices=KINDS, default="jsonl", help="jsonl-bare has no labels file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="only measure: FOLDER is a data set of any format")
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.folder)
        return
    data = asked.folder / f"{asked.kind}-{asked.documents}-{asked.labels}-{asked.seed}"
    if not data.is_dir():
        with atomic_folder(data) as part:
            write(part, asked.kind, asked.documents, asked.labels, asked.seed)
    free = shutil.disk_usage(data).free
    size = sum(path.stat().st_size for path in data.iterdir())
    print(f"{data}: {gigabytes(size)} ({gigabytes(free)} of disk free)", flush=True)
    subprocess.run([sys.executable, __file__, str(data), "--measure"], check=True)


if __name__ == "__main__":
    main()
