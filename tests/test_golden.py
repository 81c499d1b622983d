"""What was written before modules moved still holds: the public face, an old folder, and weights to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_files as golden
import numpy as np
import pytest
from conftest import VOTES

import labelspace as ls
from labelspace.export import card

AGAIN = "where this is wanted, run python tests/golden_files.py and look at the difference"


def test_public_names_and_signatures() -> None:
    assert golden.public() == golden.PUBLIC.read_text(), AGAIN


def test_flags_of_every_command() -> None:
    assert golden.flags() == golden.FLAGS.read_text(), AGAIN


@pytest.fixture(scope="module")
def bits() -> dict[str, Any]:
    """What this machine computed before."""
    known = json.loads(golden.BITS.read_text())
    if golden.machine() not in known:
        pytest.skip("the last bits are known for other machines only")
    found: dict[str, Any] = known[golden.machine()]
    return found


def test_an_old_folder_opens_and_predicts() -> None:
    model = ls.Model.load(golden.MODEL)
    assert model.calibration is not None and len(model.labels) == 25
    whole = json.loads(golden.BITS.read_text())
    indices, scores = json.loads(next(iter(whole.values()))["opened"])
    pred = model.predict([text for text in golden.TEXTS if text], k=5)
    np.testing.assert_array_equal(pred.indices[:, 0], np.asarray(indices)[:, 0])
    expected = np.asarray(scores, dtype=np.uint32).view(np.float32)
    np.testing.assert_allclose(pred.scores, expected, rtol=0, atol=4 * VOTES)


def test_records_without_tables_of_components_are_read() -> None:
    assert "| encoder | static |" in card(ls.Model.load(golden.MODEL))


def test_an_old_folder_predicts_to_the_last_bit(bits: dict[str, Any]) -> None:
    assert golden.answers(ls.Model.load(golden.MODEL)) == bits["opened"]


@pytest.mark.parametrize("run", golden.RUNS)
def test_runs_end_in_the_same_weights(run: str, bits: dict[str, Any], toy_folder: Path, tiny_transformer: Path) -> None:
    model = golden.trained(run, ls.load(toy_folder), tiny_transformer)
    assert golden.digest(model) == bits["trained"][run]
