"""The quickstart's data set, and the command on a small part of it."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import labelspace as ls
from labelspace.cli.app import main
from labelspace.data.quickstart import icd10cm


@pytest.fixture(scope="module")
def data() -> ls.Dataset:
    return icd10cm()


def test_shape(data: ls.Dataset) -> None:
    assert data.test is not None
    assert 13_000 < len(data.train) + len(data.test) < 14_000
    assert 46_000 < len(data.labels) < 48_000
    assert set(data.valid_rows.tolist()) < set(range(len(data.train)))
    assert max(len(code.replace(".", "")) for code in data.labels.ids) == 6


def test_targets_are_the_code_and_its_ancestors(data: ls.Dataset) -> None:
    row = list(data.train.texts).index("Classical cholera") if "Classical cholera" in data.train.texts else -1
    corpus = data.train if row >= 0 else data.test
    assert corpus is not None
    row = list(corpus.texts).index("Classical cholera")
    assert {data.labels.ids[j] for j in corpus.targets[[row]].indices} == {"A00", "A00.0"}
    place = list(data.labels.ids).index("A00.0")
    assert data.labels.texts[place] == "Cholera due to Vibrio cholerae 01, biovar cholerae"


def test_split_is_seeded_and_apart(data: ls.Dataset) -> None:
    assert data.test is not None
    again, other = icd10cm(), icd10cm(seed=1)
    assert other.test is not None and again.test is not None
    assert list(again.test.texts) == list(data.test.texts) != list(other.test.texts)
    assert not {t.casefold() for t in data.train.texts} & {t.casefold() for t in data.test.texts}


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "simple_icd_10_cm":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["quickstart", "--out", "unused"]) == 1
    assert "pip install 'labelspace[quickstart]'" in capsys.readouterr().err


def test_command_on_a_part(
    data: ls.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tiny_transformer: Path,
) -> None:  # fmt: skip
    keep = np.arange(300)
    small = ls.Dataset(
        data.name, ls.Labels(data.labels.ids[:800], data.labels.texts[:800]), _part(data.train, keep),
        _part(data.train, keep[:30]), _part(data.train, keep[200:]), keep[:30], dict(data.options),
    )  # fmt: skip
    monkeypatch.setattr("labelspace.data.quickstart.icd10cm", lambda seed: small)
    monkeypatch.setattr(
        "labelspace.encoders._resolve", lambda name: tiny_transformer if name == "minilm" else Path(name)
    )
    assert main(["quickstart", "--out", str(tmp_path / "q")]) == 0
    out = capsys.readouterr().out
    assert "800" in out and "untrained" in out and "trained" in out and out.count("\n  ") >= 10
    assert ls.Model.load(tmp_path / "q").info["data"]["name"] == "icd-10-cm"
    assert main(["quickstart", "--out", str(tmp_path / "q"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"]["P@1"] > result["before"]["P@1"]
    ls.Model.from_encoder(str(tiny_transformer), ["a", "b"]).save(tmp_path / "mine")
    assert main(["quickstart", "--out", str(tmp_path / "mine")]) == 1
    assert "holds a model already; add --overwrite" in capsys.readouterr().err


def _part(corpus: ls.Corpus, rows: np.ndarray) -> ls.Corpus:
    part = corpus.rows(rows)
    return ls.Corpus(part.ids, part.texts, part.targets[:, :800])
