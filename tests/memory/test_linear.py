"""A linear classifier beside the keys, against scikit-learn, against arithmetic in a loop, and as part of a model."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import rounding
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer

import labelspace as ls
from labelspace.cli.app import main
from labelspace.data.writers import write_table
from labelspace.errors import ModelError
from labelspace.memory import linear
from labelspace.memory.linear import LinearClassifier
from labelspace.memory.voting import Query
from labelspace.model.joining import join
from labelspace.recipes.seconds import linear_seconds, linear_seconds_of
from labelspace.types import told_first


def corpus(n: int = 240, seed: int = 0) -> tuple[list[str], sp.csr_array]:
    """Texts of letters as words; label i goes with the word of the same number, mostly."""
    rng = np.random.default_rng(seed)
    words = [f"{a}{b}{a}" for a in "abcdef" for b in "xyz"]
    texts, targets = [], np.zeros((n, 8), dtype=np.float32)
    for row in range(n):
        said = rng.choice(len(words), 6, replace=False)
        texts.append(" ".join(words[i] for i in said))
        for word in said[said < 6]:
            targets[row, word] = rng.random() < 0.85
        targets[row, rng.integers(6)] = 1
    targets[0, 6] = 1  # too few documents for a row; and label 7 has none
    return texts, sp.csr_array(targets)


@pytest.fixture(scope="module")
def made() -> LinearClassifier:
    texts, targets = corpus()
    confused = np.random.default_rng(1).integers(-1, 8, (len(texts), 5))
    found = linear.fit(texts, targets, confused, [f"L{i}" for i in range(8)])
    assert found is not None
    return found


def test_rows_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr(linear, "ITERATIONS", 3000)
    texts, targets = corpus()
    features = sp.csr_array(TfidfVectorizer(**linear.TERMS).fit_transform(texts))
    documents = np.concatenate([np.arange(len(texts))] * 2)
    rows = np.repeat([0, 1], len(texts))
    own = np.concatenate([targets[:, [0]].toarray(), targets[:, [1]].toarray()]).ravel() > 0
    places, weights, bias = linear.solved(features, documents, rows, own, 2)
    assert (np.diff(places) > 0).all()
    dense = np.zeros((2, features.shape[1]))
    dense.ravel()[places] = weights
    for row in range(2):
        truth = targets[:, [row]].toarray().ravel() > 0
        seen = np.flatnonzero(features[truth].sum(axis=0))
        twin = LogisticRegression(C=linear.COST, tol=1e-9, max_iter=5000).fit(features[:, seen], truth)
        exact = features[:, seen].astype(np.float64)
        ours, best = (
            linear.COST * np.logaddexp(0, -np.where(truth, 1, -1) * (exact @ w + b)).sum() + w @ w / 2
            for w, b in ((dense[row, seen], bias[row]), (twin.coef_[0], twin.intercept_[0]))
        )
        # Sums in float32 tell no smaller difference from the least value, and by the square of the weights, which is
        # part of it, so much is the most that weights can be apart there.
        least = rounding(features.nnz, best)
        assert ours - best <= least
        assert (
            np.linalg.norm(dense[row, seen] - twin.coef_[0]) <= (2 * least) ** 0.5 < 0.02 * np.linalg.norm(twin.coef_)
        )
        assert abs(bias[row] - twin.intercept_[0]) <= (2 * least) ** 0.5
        unseen = np.setdiff1d(np.arange(features.shape[1]), seen)
        assert not dense[row, unseen].any()


def test_parts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ITERATIONS", 2000)
    texts, targets = corpus()
    confused = np.random.default_rng(1).integers(-1, 8, (len(texts), 5))
    names = [f"L{i}" for i in range(8)]
    whole = linear.fit(texts, targets, confused, names)
    monkeypatch.setattr(linear, "ENTRIES", 500)
    parts = linear.fit(texts, targets, confused, names, threads=2)
    assert whole is not None and parts is not None
    assert np.array_equal(whole.places, parts.places)
    np.testing.assert_allclose(whole.weights, parts.weights, atol=0.05)  # up to 12 long; both end a little early
    np.testing.assert_allclose(whole.bias, parts.bias, atol=0.05)


def test_who_gets_a_row(made: LinearClassifier) -> None:
    assert list(made.ids) == [f"L{i}" for i in range(6)]
    _, targets = corpus()
    assert made.counts.tolist() == targets.sum(axis=0)[:6].tolist()
    assert (made.base < 0).all() and np.isfinite(made.base).all()
    texts = ["", "  ", "!!"] * 3
    assert linear.fit(texts, targets[:9], np.full((9, 2), -1), list("abcdefgh")) is None  # no term
    rare = sp.csr_array(np.eye(9, 8, dtype=np.float32))
    assert linear.fit(corpus()[0][:9], rare, np.full((9, 2), -1), list("abcdefgh")) is None  # no label


def test_scripts_without_blanks_have_words_too() -> None:
    texts, targets = corpus()
    chinese = ["".join(chr(0x4E00 + ord(c)) for c in text if c != " ") + "。ab3" for text in texts]
    found = linear.fit(chinese, targets, np.full((len(texts), 1), -1), list("abcdefgh"))
    assert found is not None
    assert {"ab3", chr(0x4E00 + ord("a")), chr(0x4E00 + ord("a")) + " " + chr(0x4E00 + ord("x"))} <= set(found.terms)
    analyze = found._vectorizer.build_analyzer()
    plain = TfidfVectorizer().build_analyzer()
    for text in ("Größe äöå x_1 a b2 1912", "железная дорога", "기차역 서울", "it's a-b"):
        assert [term for term in analyze(text) if " " not in term] == plain(text)
    assert analyze("東京へ行く ไทย") == [
        *"東京へ行くไทย",
        *(f"{a} {b}" for a, b in itertools.pairwise("東京へ行くไทย")),
    ]


def test_few_pairs_are_kept_of_a_label_that_most_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MOST_PAIRS", 40)
    texts, targets = corpus()
    row_of = np.array([0, 1, 2, 3, 4, 5, -1, -1])
    counts = targets.sum(axis=0).astype(np.int64)
    rows, documents, own = linear._pairs(targets, np.full((len(texts), 1), -1), row_of, counts, 0)
    sizes = np.bincount(rows)
    assert sizes.max() < 60 and sizes.min() > 20
    dense = targets.toarray()
    assert np.array_equal(own, dense[documents, rows] > 0)
    assert linear.fit(texts, targets, np.full((len(texts), 1), -1), list("abcdefgh")) is not None


def test_evidence_is_that_of_a_loop(made: LinearClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*corpus(30, seed=5)[0], "", "unknown words alone"]
    features = made.features(texts)
    dense = np.zeros((len(made), len(made.terms)))
    dense.ravel()[made.places] = made.weights
    rows = np.random.default_rng(2).integers(-1, len(made), (len(texts), 4))
    expected = np.zeros(rows.shape)
    for i, j in np.ndindex(rows.shape):
        if rows[i, j] >= 0:
            z = features[[i]].toarray()[0] @ dense[rows[i, j]] + made.bias[rows[i, j]]
            expected[i, j] = max(-np.log1p(np.exp(-z)) - made.base[rows[i, j]], linear.FLOOR)
    found = made.evidence(features, rows)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for block in (1, 7):
        monkeypatch.setattr(linear, "BLOCK", block)
        assert np.array_equal(made.evidence(features, rows), found)
    counts = np.where(rows >= 0, made.counts[rows], 0)
    exponents = 0.8 * counts / (counts + 30) * expected + 0.3 * (made.base[rows] - made.overall[0])
    np.testing.assert_allclose(made.exponents(found, rows, 0.8, 30, 0.3), np.where(rows >= 0, exponents, 0), atol=1e-5)


def test_words_tell_what_decided(made: LinearClassifier) -> None:
    features = made.features(["axa bzb axa fzf"])
    told = made.strongest_terms(features, 0)
    assert told[0] == "axa"  # the word of that number
    assert made.strongest_terms(made.features(["nothing known"]), 0) == []


def test_a_file_gives_the_same_back(made: LinearClassifier, tmp_path: Path) -> None:
    made.write(tmp_path / "linear.safetensors")
    again = LinearClassifier.open(tmp_path / "linear.safetensors")
    features = again.features(corpus(9, seed=3)[0])
    assert (features != made.features(corpus(9, seed=3)[0])).nnz == 0
    rows = np.tile(np.arange(6), (9, 1))
    assert np.array_equal(again.evidence(features, rows), made.evidence(features, rows))


# --- in a model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(toy_folder: Path) -> ls.Dataset:
    return ls.load(toy_folder)


@pytest.fixture(scope="module")
def plain(data: ls.Dataset, tiny_transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, so words tell much that vectors do not."""
    place = tmp_path_factory.mktemp("plain") / "model"
    ls.Model.from_encoder(str(tiny_transformer), data, device="cpu").save(place)
    return place


@pytest.fixture(scope="module")
def folder(plain: Path, data: ls.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ls.Model.load(plain, "cpu")
    model.tune(data, linear=True)
    assert model.memory.linear is not None
    place = tmp_path_factory.mktemp("linear") / "model"
    model.save(place)
    return place


def precision(model: ls.Model, data: ls.Dataset) -> float:
    assert data.test is not None
    return ls.evaluate(model.predict(data.test.texts), data.test.targets)["P@1"]


def test_it_ranks_better_and_votes_are_multiplied(folder: Path, plain: Path, data: ls.Dataset) -> None:
    before, model = ls.Model.load(plain, "cpu"), ls.Model.load(folder, "cpu")
    assert precision(model, data) > precision(before, data) + 10
    assert model.memory.linear is not None
    texts = [*data.valid.texts[:7], ""]
    found = model.predict(texts, 25)
    votes = dict(model.memory.voting.__dict__, linear_strength=0.0, linear_base=0.0)
    judge = model.memory.voting
    model.memory.voting = type(judge)(**votes)
    unjudged = model.predict(texts, 25)
    model.memory.voting = judge
    factors = model.memory.factors(model.memory.linear.features(texts), unjudged.indices)
    with pytest.raises(ValueError, match="reranks by words; make the query with Memory.ask"):
        model.memory.predict(Query(torch.zeros(1, model.encoder.dim)), 5)
    for row in range(len(texts)):
        expected = dict(zip(unjudged.indices[row], unjudged.scores[row] * factors[row], strict=True))
        expected.pop(-1, None)
        own = dict(zip(found.indices[row], found.scores[row], strict=True))
        own.pop(-1, None)
        assert own.keys() == expected.keys()
        for label, score in own.items():
            assert score == pytest.approx(expected[label], rel=1e-5)
    assert (np.diff(found.scores[np.isfinite(found.scores).all(axis=1)], axis=1) <= 0).all()
    few = model.predict(texts, 3)
    assert np.array_equal(few.indices, found.indices[:, :3])  # what is judged does not depend on k


def test_probabilities_and_chosen_labels_follow_the_words(folder: Path, data: ls.Dataset) -> None:
    model = ls.Model.load(folder, "cpu")
    model.calibrate(data, split="train")  # of validation documents there are too few
    texts = data.valid.texts[:9]
    found = model.predict(texts, 5, probabilities=True, why=True)
    alone = model.predict(texts, 5)
    assert np.array_equal(found.indices, alone.indices) and np.array_equal(found.scores, alone.scores)
    some = {0, 3, 5, 9}
    for among in (
        model.predict(texts, 4, labels=sorted(some)),
        model.predict(texts, threshold=0.0, labels=sorted(some)),
    ):
        assert set(among.indices[among.indices >= 0].tolist()) <= some
    everything = model.predict(texts, 25)
    scores = [dict(zip(*row, strict=True)) for row in zip(everything.indices, everything.scores, strict=True)]
    for row, label in zip(*(among.indices >= 0).nonzero(), strict=True):  # scores are those among all labels
        number = int(among.indices[row, label])
        assert among.scores[row, label] == pytest.approx(scores[row][number], rel=1e-5)


def test_reasons_sum_to_the_score(folder: Path, data: ls.Dataset) -> None:
    model = ls.Model.load(folder, "cpu")
    found = model.predict(data.valid.texts[:6], 4, why=True)
    assert found.reasons is not None
    kinds = set()
    for row, reasons in enumerate(found.reasons):
        for rank, own in enumerate(reasons):
            assert sum(reason.share for reason in own) == pytest.approx(float(found.scores[row, rank]), rel=1e-4)
            kinds |= {reason.kind for reason in own}
            assert [reason.share for reason in own] == sorted((reason.share for reason in own), reverse=True)
    assert kinds == {"label", "document", "words"}


def test_it_is_saved_and_lives_with_the_labels(folder: Path, data: ls.Dataset, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    model = ls.Model.load(tmp_path / "model", "cpu")
    texts = data.valid.texts[:8]
    before = model.predict(texts, 5)
    gone = data.labels.ids[0]
    model.remove_labels([gone])
    model.add_labels(["purple wheat"], ["new"])
    model.rename_labels({data.labels.ids[1]: "quite another name"})
    model.save()
    again = ls.Model.load(tmp_path / "model", "cpu")
    assert again.memory.reranks
    for one in (model, again):
        found = one.predict(texts, 5)
        numbers = [one.labels.ids.index(name) if name in one.labels.ids else -1 for name in ("new", data.labels.ids[5])]
        rows = one.memory.linear_rows(np.array(numbers))
        assert rows[0] == -1 and rows[1] >= 0
        assert gone not in {found.label_ids[i] for i in found.indices[found.indices >= 0]}
    again.compact()
    again.save()
    compacted = ls.Model.load(tmp_path / "model", "cpu")
    np.testing.assert_allclose(compacted.predict(texts, 5).scores, again.predict(texts, 5).scores, rtol=1e-5)
    files = sorted(f.name for f in (tmp_path / "model" / "memory").iterdir())
    assert sum(name.startswith("linear-") for name in files) == 1
    assert before.indices.shape == (8, 5)


def test_it_is_weighed_anew_and_dropped(folder: Path, data: ls.Dataset, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    model = ls.Model.load(tmp_path / "model", "cpu")
    voting = model.memory.voting
    model.tune(data)
    assert model.memory.voting == voting
    joined = join([model, model])
    joined.tune(data)
    assert joined.memory.reranks
    joined.save(tmp_path / "joined")
    texts = data.valid.texts[:5]
    assert np.array_equal(
        ls.Model.load(tmp_path / "joined", "cpu").predict(texts).indices, joined.predict(texts).indices
    )
    model.tune(data, linear=False)
    assert model.memory.linear is None and "linear_strength" not in model.memory.settings
    model.save()
    assert not list((tmp_path / "model" / "memory").glob("linear-*"))


def test_where_nothing_can_be_tuned(
    folder: Path, data: ls.Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("labelspace.model.tuning.MIN_TUNING", 10_000)
    model = ls.Model.load(folder, "cpu")
    assert model.tune(data, linear=True) is None
    assert "no linear classifier is learned" in caplog.text and model.memory.linear is not None
    assert model.tune(data, linear=False) is None
    assert model.memory.linear is None and "linear_strength" not in model.memory.settings


def test_words_are_always_among_the_reasons(folder: Path, data: ls.Dataset) -> None:
    model = ls.Model.load(folder, "cpu")
    found = model.predict(data.valid.texts[:30], 10, why=True)
    assert found.reasons is not None
    lowered = 0
    for row in found.reasons:
        for reasons in row:
            shown, left = told_first(reasons, 1)
            words = [reason for reason in reasons if reason.kind == "words"]
            assert all(word in shown for word in words) and len(shown) + len(left) == len(reasons)
            for word in words:  # what votes are multiplied by
                votes = sum(reason.share for reason in reasons) - word.share
                assert word.share == pytest.approx(votes * np.expm1(word.similarity), rel=1e-4, abs=1e-9)
                lowered += word.similarity < 0
    assert lowered
    stream = io.StringIO()
    write_table(found, [str(i) for i in range(30)], stream)
    assert stream.getvalue().count("(words, times") == sum(
        reason.kind == "words" for row in found.reasons for reasons in row for reason in reasons
    )


def test_what_adds_nothing_is_left_out(
    plain: Path, data: ls.Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("labelspace.model.tuning.LEAST_GAIN", 100.0)
    model = ls.Model.load(plain, "cpu")
    with caplog.at_level("INFO"):
        found = model.tune(data, linear=True)
    assert model.memory.linear is None and "is left out" in caplog.text
    assert found is not None and found.voting == model.memory.voting


def test_exports_tell_that_they_go_without(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from labelspace.export import card, export

    model = ls.Model.load(folder, "cpu")
    export(model, "keys", tmp_path / "keys")
    assert "is not exported" in caplog.text
    assert "24 labels, by a linear classifier" in card(model)
    model.memory.set_linear(None)
    assert "linear classifier" not in card(model)


def test_a_damaged_file_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (file,) = (tmp_path / "model" / "memory").glob("linear-*")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=file.name):
        ls.Model.load(tmp_path / "model", "cpu")
    file.unlink()
    with pytest.raises(ModelError, match=file.name):
        ls.Model.load(tmp_path / "model", "cpu")


def test_the_commands(
    plain: Path, toy_folder: Path, tiny_transformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(plain, tmp_path / "model")
    assert main(["tune", str(tmp_path / "model"), str(toy_folder), "--linear", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["voting"]["linear_strength"] > 0
    assert main(["tune", str(tmp_path / "model"), str(toy_folder)]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()[1:]
    assert header.endswith("is shown with the linear classifier, all others without")
    assert [row.startswith("*") for row in rows if row.endswith(" --linear")] == [True]
    (tmp_path / "texts.txt").write_text("red oak\n")
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "texts.txt"), "--why"]) == 0
    assert "words, times" in capsys.readouterr().out
    assert main(["tune", str(tmp_path / "model"), str(toy_folder), "--no-linear"]) == 0
    assert "linear" not in capsys.readouterr().out
    assert main(["tune", str(tmp_path / "model"), str(toy_folder), "--json"]) == 0
    assert "linear_strength" not in json.loads(capsys.readouterr().out)["voting"]
    options = ["--recipe", "raexmc", "--encoder", str(tiny_transformer), "--epochs", "0", "--device", "cpu"]
    assert main(["train", str(toy_folder), *options, "--linear", "--out", str(tmp_path / "run")]) == 0
    assert ls.Model.load(tmp_path / "run", "cpu").memory.reranks
    options[1] = "dexml"
    options[5] = "1"
    assert main(["train", str(toy_folder), *options, "--linear", "--out", str(tmp_path / "other")]) == 2
    assert "give memory too" in capsys.readouterr().err
    options[1] = "unidec"
    assert main(["train", str(toy_folder), *options, "--memory", "--linear", "--out", str(tmp_path / "other")]) == 0
    assert ls.Model.load(tmp_path / "other", "cpu").memory.linear is not None


def test_time_is_foreseen(data: ls.Dataset) -> None:
    short = linear_seconds(data)
    assert 0 < short < 60
    assert linear_seconds_of(400, 100_000, 384, 2) > linear_seconds_of(100, 100_000, 384, 2)
    assert linear_seconds_of(100, 100_000, 384, 2) > linear_seconds_of(100, 10_000, 384, 2)


SCRIPTS = {
    "Hindi": ["हिन्दी साहित्य", "भारत का इतिहास", "संगीत और नृत्य"],
    "Bengali": ["বাংলা কবিতা", "রবীন্দ্রনাথের গান", "নদীর মাছ"],
    "Tamil": ["தமிழ் இலக்கியம்", "கோவில் சிற்பம்", "மீன் உணவு"],
    "Telugu": ["తెలుగు కవిత", "వ్యవసాయ చరిత్ర", "సంగీత శాస్త్రం"],
    "Hebrew with points": ["שָׁלוֹם עוֹלָם", "סֵפֶר תּוֹרָה", "יַיִן אָדֹם"],
    "Vietnamese": ["tiếng Việt", "lịch sử Đông Nam", "nước mắm"],
    "German": ["Bücher über Käse", "Straßenbahn fährt", "größere Städte"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_are_whole_in_every_script_and_form(script: str, tmp_path: Path) -> None:
    kinds = SCRIPTS[script]
    texts = [text for text in kinds for _ in range(6)]
    targets = sp.csr_array(np.repeat(np.eye(len(kinds), dtype=np.float32), 6, axis=0))
    confused = np.tile(np.arange(len(kinds)), (len(texts), 1))
    decomposed = [unicodedata.normalize("NFD", text) for text in texts]
    made = {form: linear.fit(given, targets, confused, ["a", "b", "c"]) for form, given in
            (("NFC", texts), ("NFD", decomposed))}  # fmt: skip
    first, second = made["NFC"], made["NFD"]
    assert first is not None and second is not None
    words = {word for text in kinds for word in unicodedata.normalize("NFC", text).lower().split()}
    assert {term for term in first.terms if " " not in term} == words == {t for t in second.terms if " " not in t}
    assert (first.features(texts) != second.features(decomposed)).nnz == 0
    first.write(tmp_path / "w.safetensors")
    again = linear.LinearClassifier.open(tmp_path / "w.safetensors")
    assert again.words_version == linear.WORDS_VERSION
    assert (again.features(decomposed) != first.features(texts)).nnz == 0


def test_a_classifier_of_old_words_keeps_them(tmp_path: Path) -> None:
    texts = ["Käse und Brot"] * 3 + ["Bus und Bahn"] * 3
    targets = sp.csr_array(np.repeat(np.eye(2, dtype=np.float32), 3, axis=0))
    made = linear.fit(texts, targets, np.tile([0, 1], (6, 1)), ["a", "b"])
    assert made is not None
    made.write(tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    del tensors["words_version"]
    save_file(tensors, tmp_path / "old.safetensors")
    old = linear.LinearClassifier.open(tmp_path / "old.safetensors")
    assert old.words_version == 1 and (old.features(texts) != made.features(texts)).nnz == 0
    assert old.features(["ka\u0308se"]).nnz == made.features(["ka\u0308se"]).nnz == 1  # NFC serves both
    tensors["words_version"] = torch.tensor([9])
    save_file(tensors, tmp_path / "new.safetensors")
    with pytest.raises(ValueError, match="version 9"):
        linear.LinearClassifier.open(tmp_path / "new.safetensors")
