"""Predictions of long files: the same as at once, in order, a block in memory at a time, whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import toy_rows

import labelspace as ls
from labelspace.cli.app import main
from labelspace.data.texts import TextSource
from labelspace.errors import DataError, SettingsError
from labelspace.model.batch import predict_blocks, predict_file

TEXTS = toy_rows(50, 3)[0]


@pytest.fixture(scope="module")
def folder(toy_folder: Path, tiny_transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("batch") / "model"
    data = ls.load(toy_folder, valid_fraction=0.4)
    ls.train(data, "raexmc", out, encoder=str(tiny_transformer), epochs=0, device="cpu", evaluations=1)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> ls.Model:
    return ls.Model.load(folder, "cpu")


def put(path: Path, kind: str) -> Path:
    """The texts as a file of some kind, with ids where it has room for them."""
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    match kind:
        case "jsonl":
            (path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "jsonl.gz":
            (path / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        case "csv":
            (path / "a.csv").write_text("id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in rows))
        case "parquet":
            pa = pytest.importorskip("pyarrow")
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), path / "a.parquet")
    return path / f"a.{kind}"


def expected(model: ls.Model, **options: Any) -> list[list[tuple[str, str, float]]]:
    found = model.predict(TEXTS, **options)
    return [found.named(row) for row in range(len(TEXTS))]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_blocks_change_nothing(model: ls.Model, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "pred.jsonl"
    assert predict_file(model, put(tmp_path, kind), out, block=7, k=3) == 50
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"d{i}" for i in range(50)] and [row["text"] for row in rows] == TEXTS
    for row, named in zip(rows, expected(model, k=3), strict=True):
        assert [(label["id"], label["text"]) for label in row["labels"]] == [(name, text) for name, text, _ in named]
        assert [label["score"] for label in row["labels"]] == pytest.approx([s for _, _, s in named], rel=1e-4)


def test_every_way_to_write(model: ls.Model, tmp_path: Path) -> None:
    source = put(tmp_path, "jsonl")
    found = np.sort(model.predict(TEXTS, 25, probabilities=True).probabilities.ravel())  # type: ignore[union-attr]
    found = found[(found > 0.1) & (found < 0.3)]
    widest = int(np.diff(found).argmax())  # rounding turns no probability there over the threshold
    threshold = float(found[widest : widest + 2].mean())
    for suffix in (".jsonl", ".tsv", ".txt", ".npz"):
        for block in (7, 4096):
            predict_file(model, source, tmp_path / f"{block}{suffix}", block=block, threshold=threshold)
    for suffix in (".jsonl", ".tsv", ".txt"):
        parts, whole = ((tmp_path / f"{block}{suffix}").read_text().split() for block in (7, 4096))
        assert len(parts) == len(whole) and sum(a == b for a, b in zip(parts, whole, strict=True)) > 0.9 * len(whole)
    matrices = [sp.load_npz(tmp_path / f"{block}.npz") for block in (7, 4096)]
    assert matrices[0].shape == (50, 25) and abs(matrices[0] - matrices[1]).max() < 1e-4
    assert (tmp_path / "7.tsv").read_text().count("rank") == 1


@pytest.mark.parametrize("why", [False, True])
def test_parquet_holds_what_jsonl_holds(model: ls.Model, tmp_path: Path, why: bool) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source = put(tmp_path, "jsonl")
    for suffix in (".jsonl", ".parquet"):
        predict_file(model, source, tmp_path / f"pred{suffix}", block=8, probabilities=True, why=why)
    rows = [json.loads(line) for line in (tmp_path / "pred.jsonl").read_text().splitlines()]
    assert parquet.read_table(tmp_path / "pred.parquet").to_pylist() == rows
    assert parquet.ParquetFile(tmp_path / "pred.parquet").num_row_groups == 7
    with TextSource(tmp_path / "pred.parquet") as again:  # what was written can be read
        assert again.read()[1] == TEXTS


def test_no_more_than_a_block_is_read_ahead(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("".join(f"{text}\n" for text in TEXTS * 20))
    asked: list[int] = []

    class Watched:
        def predict(self, texts: list[str], **options: Any) -> int:
            asked.append(len(texts))
            return 0

    with TextSource(source) as texts:
        kept = 0
        for number, (ids, _, _) in enumerate(predict_blocks(Watched(), texts, block=64), start=1):  # type: ignore[arg-type]
            assert len(asked) == number  # the next block is predicted only when it is asked for
            kept += len(ids)
        assert kept == len(texts) == 1000 and asked == [64] * 15 + [40]


def test_blocks_are_let_go(model: ls.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    alive: list[weakref.ref[Any]] = []
    most = 0
    predict = model.predict

    def counted(texts: list[str], **options: Any) -> Any:
        nonlocal most
        found = predict(texts, **options)
        gc.collect()
        alive.append(weakref.ref(found))
        most = max(most, sum(ref() is not None for ref in alive))
        return found

    monkeypatch.setattr(model, "predict", counted)
    predict_file(model, put(tmp_path, "jsonl"), tmp_path / "pred.tsv", block=5)
    assert len(alive) == 10 and most <= 2  # the one that is written, and the one that is made


def test_standard_input_and_pipes(
    model: ls.Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("\n".join(TEXTS) + "\n").encode("latin-1")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines + "caf\xe9\n".encode("latin-1"))))
    assert (
        main(["predict", str(folder), "-", "--out", str(tmp_path / "pred.jsonl"), "--k", "1", "--device", "cpu"]) == 0
    )
    rows = [json.loads(line) for line in (tmp_path / "pred.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [*TEXTS, "caf\xe9"] and rows[3]["id"] == "3"
    assert [row["labels"][0]["id"] for row in rows[:50]] == [named[0][0] for named in expected(model, k=1)]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.txt")
        thread = threading.Thread(target=(tmp_path / "pipe.txt").write_bytes, args=(lines,))
        thread.start()
        assert predict_file(model, tmp_path / "pipe.txt", tmp_path / "piped.jsonl", k=1) == 50
        thread.join()
    assert "wrote" in capsys.readouterr().err


def test_a_broken_row_is_named_and_nothing_is_written(model: ls.Model, folder: Path, tmp_path: Path) -> None:
    source = put(tmp_path, "jsonl")
    out = tmp_path / "pred.jsonl"
    out.write_text("old")
    source.write_text(source.read_text() + '{"id": "last"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 51: there is no text column 'text'"):
        predict_file(model, source, out, block=7)
    source.write_text(source.read_text().replace('{"id": "last"}', "{oh"))
    with pytest.raises(DataError, match=r"a\.jsonl, line 51: .* not JSON"):
        predict_file(model, source, out, block=7)
    assert out.read_text() == "old" and sorted(f.name for f in tmp_path.iterdir()) == ["a.jsonl", "pred.jsonl"]


def test_a_failure_in_the_middle_leaves_the_old_file(
    model: ls.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, predict, calls = put(tmp_path, "jsonl"), model.predict, []

    def failing(texts: list[str], **options: Any) -> Any:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(texts, **options)

    monkeypatch.setattr(model, "predict", failing)
    for suffix in (".jsonl", ".parquet"):
        calls.clear()
        (tmp_path / f"pred{suffix}").write_text("old")
        with pytest.raises(KeyboardInterrupt):
            predict_file(model, source, tmp_path / f"pred{suffix}", block=7)
        assert (tmp_path / f"pred{suffix}").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3


def test_names_that_cannot_be_written(model: ls.Model, tmp_path: Path) -> None:
    source = put(tmp_path, "jsonl")
    with pytest.raises(SettingsError, match="must end in"):
        predict_file(model, source, tmp_path / "pred.xml")
    with pytest.raises(SettingsError, match="is the file of texts itself"):
        predict_file(model, source, source)
    with pytest.raises(SettingsError, match="cannot be written as tsv"):
        predict_file(model, source, tmp_path / "pred.tsv", why=True)
