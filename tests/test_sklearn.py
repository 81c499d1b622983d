"""The scikit-learn estimator: forms of y, scikit-learn's own checks, cross-validation, copies."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import KINDS, TRAITS, toy_rows
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MultiLabelBinarizer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from labelspace.errors import ModelError, ResourceError, SettingsError
from labelspace.sklearn import LabelSpaceClassifier, _is_calibrated, _target

NAMES = [f"{trait} {kind}" for kind in KINDS for trait in TRAITS]


@pytest.fixture(scope="module")
def toy() -> tuple[list[str], list[list[str]]]:
    texts, rows = toy_rows(200, 0)
    return texts, [[NAMES[i] for i in row] for row in rows]


@pytest.fixture(scope="module")
def make(tiny_transformer: Path) -> Callable[..., LabelSpaceClassifier]:
    """A classifier that trains in a moment."""
    settings = {"base": str(tiny_transformer), "evaluations": 1}
    options: dict[str, Any] = {"epochs": 8, "batch_size": 32, "lr": 0.03, "device": "cpu", "random_state": 0}
    return partial(LabelSpaceClassifier, settings=settings, **options)


@pytest.fixture(scope="module")
def fitted(make: Callable[..., LabelSpaceClassifier], toy: Any) -> LabelSpaceClassifier:
    return make(validation_fraction=0.5).fit(*toy)


def plain_ndcg(answers: list[list[str]], truth: list[list[str]]) -> float:
    total = 0.0
    for given, true in zip(answers, truth, strict=True):
        gain = sum(1 / math.log2(rank + 2) for rank, name in enumerate(given[:5]) if name in true)
        total += gain / sum(1 / math.log2(rank + 2) for rank in range(min(5, len(true))))
    return total / len(truth)


def test_lists_of_labels_come_back_as_lists(fitted: LabelSpaceClassifier, toy: Any) -> None:
    texts, truth = toy
    assert fitted.classes_.tolist() == sorted(NAMES)
    answers = fitted.predict(np.array(texts))
    assert [len(row) for row in answers] == [5] * len(texts)
    assert answers == [[name for name, _, _ in fitted.model_.predict([text]).named(0)] for text in texts]
    assert fitted.score(texts, truth) == pytest.approx(plain_ndcg(answers, truth)) and fitted.score(texts, truth) > 0.8
    unknown = [[*row, "no such label"] for row in truth]
    assert fitted.score(texts, unknown) == pytest.approx(plain_ndcg(answers, unknown))
    assert fitted.score(texts, [set(row) for row in truth]) == fitted.score(texts, truth)


def test_probabilities_and_thresholds(fitted: LabelSpaceClassifier, toy: Any) -> None:
    texts = toy[0][:20]
    probable = fitted.predict_proba(texts)
    expected = fitted.model_.predict(texts, k=24, probabilities=True)
    assert sp.issparse(probable) and probable.shape == (20, 24)
    for row in range(20):
        for number, value in zip(expected.indices[row], expected.probabilities[row], strict=True):
            assert probable[row, number] == pytest.approx(value)
    careful = clone(fitted).set_params(threshold=0.5)
    careful.model_, careful.classes_, careful._kind = fitted.model_, fitted.classes_, fitted._kind
    for row, answer in enumerate(careful.predict(texts)):
        likely = {str(fitted.classes_[i]) for i in np.flatnonzero(probable[[row]].toarray()[0] >= 0.5)}
        assert set(answer) == likely or (len(answer) == 5 and set(answer) < likely)
    scores = fitted.decision_function(texts)
    assert scores.shape == (20, 24)
    for row in range(20):
        assert [str(fitted.classes_[i]) for i in np.argsort(-scores[row], kind="stable")[:5]] == fitted.predict(texts)[
            row
        ]


@pytest.mark.parametrize("sparse", [False, True])
def test_indicators_come_back_as_indicators(
    make: Callable[..., LabelSpaceClassifier], toy: Any, sparse: bool, fitted: LabelSpaceClassifier
) -> None:
    texts, lists = toy
    binarizer = MultiLabelBinarizer(sparse_output=sparse)
    y = binarizer.fit_transform(lists)
    model = make(label_texts=list(binarizer.classes_), validation_fraction=0.5, k=3).fit(texts, y)
    found = model.predict(texts)
    assert sp.issparse(found) == sparse and found.shape == y.shape and found.dtype == np.int64
    assert found.sum(axis=1).tolist() == [3] * len(texts)
    plain = found.toarray() if sparse else found
    assert all(
        set(a) == set(b[:3]) for a, b in zip(binarizer.inverse_transform(plain), fitted.predict(texts), strict=True)
    )
    assert model.score(texts, y) == pytest.approx(fitted.score(texts, lists))
    assert sp.issparse(model.predict_proba(texts[:3])) == sparse
    with pytest.raises(ValueError, match="y has 23 columns, but 24 labels were fitted"):
        model.score(texts, y[:, :23])


def test_rows_of_two_bits_and_tables_of_mixed_columns_are_indicators() -> None:
    rows = [[1, 0], [0, 1], [0, 1]]
    for y in (rows, np.array(rows), [tuple(row) for row in rows], np.array(rows, dtype=object)):
        kind, found = _target(y)
        assert kind == "dense" and found.toarray().tolist() == rows
    pandas = pytest.importorskip("pandas")
    for y in (pandas.DataFrame({"a": [True, False], "b": [0, 1]}), pandas.DataFrame(rows[:2]).astype("Int64")):
        kind, found = _target(y)
        assert kind == "dense" and found.toarray().tolist() == rows[:2]
    assert _target([["a", "b"], ["b", "a"]])[0] == _target([[0, 2], [1, 0]])[0] == "lists"
    with pytest.raises(ValueError, match="give several labels a text as lists"):
        _target(np.array([["a", "b"], ["c", "d"]]))


def test_one_label_a_text(make: Callable[..., LabelSpaceClassifier], toy: Any) -> None:
    texts, lists = toy
    y = np.array([KINDS.index(row[0].split()[1]) * 10 for row in lists])
    model = make(validation_fraction=0.5, label_texts={10 * i: kind for i, kind in enumerate(KINDS)}).fit(texts, y)
    assert model.classes_.tolist() == [0, 10, 20, 30, 40, 50]
    assert (found := model.predict(texts)).shape == y.shape
    assert model.score(texts, y) == pytest.approx(float(np.mean(found == y))) and model.score(texts, y) > 0.9
    probable = model.predict_proba(texts)
    assert probable.shape == (200, 6) and probable.sum(axis=1) == pytest.approx(np.ones(200))
    with pytest.warns(DataConversionWarning):
        assert model.score(texts, y[:, None]) == model.score(texts, y)


def test_labels_without_texts_of_their_own_can_be_predicted(
    make: Callable[..., LabelSpaceClassifier], toy: Any
) -> None:
    texts, lists = toy
    more = {name: name for name in NAMES} | {"blue stone": "blue stone"}
    model = make(label_texts=more, recipe="raexmc", epochs=0, random_state=np.random.RandomState(3)).fit(texts, lists)
    assert "blue stone" in model.classes_ and model.predict(["blue stone"])[0][0] == "blue stone"


def test_cross_validation_and_search(make: Callable[..., LabelSpaceClassifier], toy: Any) -> None:
    texts, lists = toy
    y = MultiLabelBinarizer(sparse_output=True).fit_transform(lists)
    by_matrix = cross_val_score(make(), texts, y.toarray(), cv=3)
    by_lists = cross_val_score(make(), texts, lists, cv=KFold(3))
    assert by_matrix.shape == by_lists.shape == (3,) and (by_lists > 0.5).all()
    search = GridSearchCV(make(), {"epochs": [1, 8]}, cv=2).fit(texts, y)
    scores = dict(zip(search.cv_results_["param_epochs"].data, search.cv_results_["mean_test_score"], strict=True))
    assert search.best_params_ == {"epochs": max(scores, key=scores.get)} and search.best_estimator_.epochs in (1, 8)
    lower = make_pipeline(FunctionTransformer(lambda X: [text.lower() for text in X]), make())
    assert cross_val_score(lower, texts, y.toarray(), cv=2, scoring="f1_samples").min() > 0
    dense = cross_val_predict(make(), texts, y.toarray(), cv=2, method="decision_function")
    assert dense.shape == y.shape


def test_a_copy_leaves_the_file_of_a_linear_classifier_alone(
    tiny_transformer: Path, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "labelspace.model.tuning.LEAST_GAIN", -np.inf
    )  # the classifier stays, although it gains nothing
    fitted = LabelSpaceClassifier(recipe="raexmc", epochs=1, settings={"base": str(tiny_transformer), "linear": True})
    memory = fitted.fit(*toy).model_.memory
    assert memory.linear is not None
    memory.linear_file = "linear-7.safetensors"  # as if the folder of the model had it under that name
    again = pickle.loads(pickle.dumps(fitted))
    assert memory.linear_file == "linear-7.safetensors" and again.model_.memory.linear is not None
    assert (again.decision_function(toy[0][:5]) == fitted.decision_function(toy[0][:5])).all()


def test_copies_answer_alike(fitted: LabelSpaceClassifier, toy: Any, tmp_path: Path) -> None:
    texts = toy[0][:30]
    folder = fitted.model_.folder
    again = pickle.loads(pickle.dumps(fitted))
    assert again.predict(texts) == fitted.predict(texts) and again.get_params() == fitted.get_params()
    assert fitted.model_.folder == folder and again.model_.folder is None
    third = pickle.loads(pickle.dumps(again))  # a copy of a copy, whose files are mapped
    assert (third.predict_proba(texts) != fitted.predict_proba(texts)).nnz == 0
    fitted.model_.save(tmp_path / "kept")
    pickle.dumps(fitted)
    fitted.model_.add_labels(["green water"])
    fitted.model_.save()  # in spite of the copy it still knows its own files
    fitted.model_.remove_labels(["green water"])
    joblib.dump(fitted, tmp_path / "fitted.joblib")
    assert joblib.load(tmp_path / "fitted.joblib").predict(texts) == fitted.predict(texts)
    assert not hasattr(clone(fitted), "model_")


def test_a_seed_decides(make: Callable[..., LabelSpaceClassifier], toy: Any) -> None:
    first, second = (make(epochs=1).fit(*toy).decision_function(toy[0]) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ("one text", ["a"], "put it into a list"),
        ([["a"], ["b"]], ["a", "b"], "number 0 is"),
        (np.array([["a"], ["b"]]), ["a", "b"], r"got shape \(2, 1\)"),
        (sp.csr_array(np.eye(2)), ["a", "b"], "got a sparse matrix"),
        (["a", None], ["a", "b"], "number 1 is None"),
        ([], [], "0 samples"),
        (["a", "b"], None, "y to be passed"),
        (["a", "b"], ["a"], "2 texts, but y has 1 rows"),
        (["a", "b"], [["a"], "b"], "number 1 is unlike"),
        (["a", "b"], [["a"], [1]], "mixes them"),
        (["a", "b"], [[], []], "no label at all"),
        (["a", "b"], [0.5, 1.0], "Unknown label type"),
        (["a", "b"], np.array([[0.0, 2.0], [1.0, 0.0]]), "other values"),
        (["a", "b"], np.array([[0.0, np.nan], [1.0, 0.0]]), "NaN"),
        (["a", "b"], np.zeros((2, 2, 2)), "got shape"),
    ],
)
def test_what_cannot_be_is_said(make: Callable[..., LabelSpaceClassifier], X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().fit(X, y)


def test_settings_and_limits(
    make: Callable[..., LabelSpaceClassifier], toy: Any, monkeypatch: pytest.MonkeyPatch, fitted: LabelSpaceClassifier
) -> None:
    with pytest.raises(NotFittedError):
        make().predict(["a"])
    with pytest.raises(SettingsError, match="settings names epochs"):
        make().set_params(settings={"epochs": 3}).fit(*toy)
    with pytest.raises(SettingsError, match="unknown recipe"):
        make(recipe="other").fit(*toy)
    with pytest.raises(ValueError, match="label_texts has 2 texts, but y has 3 columns"):
        make(label_texts=["a", "b"]).fit(["x", "y"], np.eye(2, 3))
    with pytest.raises(ValueError, match="must be a mapping"):
        make(label_texts=["a", "b"]).fit(["x", "y"], ["a", "b"])
    few = make(epochs=1).fit(*toy)
    assert not hasattr(few, "predict_proba") and hasattr(make(), "predict_proba")
    with pytest.raises(AttributeError, match="predict_proba") as caught:
        few.predict_proba(["a"])
    assert "raise validation_fraction" in str(caught.value.__cause__)
    with pytest.raises(ModelError, match="not calibrated"):
        few.set_params(threshold=0.5).predict(["a"])
    monkeypatch.setattr("labelspace.base.machine.available_memory", lambda: 1000)
    with pytest.raises(ResourceError, match="fit with a sparse y"):
        fitted.decision_function(toy[0])


# scikit-learn's own checks


class OnNumbers(LabelSpaceClassifier):
    """The same on rows of numbers, which become texts, so that the checks that make their own data can run."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string, tags.input_tags.one_d_array = True, False, False
        tags.classifier_tags.poor_score = True  # of numbers spelt as words, by an encoder of random weights
        return tags

    def _rows(self, X: Any, reset: bool = False) -> list[str]:
        if not reset:
            check_is_fitted(self, "model_")
        values = validate_data(self, X, reset=reset)
        return [" ".join(f"{KINDS[j % 6]} {v:.3f}" for j, v in enumerate(row)) for row in values]

    def fit(self, X: Any, y: Any) -> OnNumbers:
        super().fit(self._rows(X, reset=True), y)
        return self

    def predict(self, X: Any) -> Any:
        return super().predict(self._rows(X))

    @available_if(_is_calibrated)
    def predict_proba(self, X: Any) -> Any:
        return super().predict_proba(self._rows(X))

    def decision_function(self, X: Any) -> Any:
        return super().decision_function(self._rows(X))

    def score(self, X: Any, y: Any) -> float:
        return super().score(self._rows(X), y)


NOT_OURS = {
    "check_decision_proba_consistency": "it fits 80 texts, of which too few can be held out for probabilities, "
    "and asks for predict_proba all the same, because there was one before fit",
}

SKIPPED = {
    "check_array_api_input": "by scikit-learn itself: the estimator takes no other arrays than NumPy's",
    "check_classifiers_multilabel_output_format_predict_proba": "by scikit-learn itself, where there is no "
    "predict_proba: too few texts are held out for it",
    "check_classifier_data_not_an_array": "its half with data frames, where pandas is not installed",
}


def test_the_checks_of_scikit_learn_pass() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = check_estimator(LabelSpaceClassifier())
    assert {result["check_name"]: result["status"] for result in results} == {"check_estimator_cloneable": "passed"}
    assert "requires input" in str(caught[0].message)  # numbers are all that the others try


def test_the_checks_on_numbers_pass_as_well(tiny_transformer: Path) -> None:
    estimator = OnNumbers(recipe="raexmc", encoder=str(tiny_transformer), epochs=0, device="cpu", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, expected_failed_checks=NOT_OURS, on_fail=None, on_skip=None)
    status = {}
    for result in results:
        status.setdefault(result["status"], {})[result["check_name"]] = str(result["exception"])[:300]
    assert status.get("failed", {}) == {}
    assert set(status.get("xfail", {})) == set(NOT_OURS)
    assert set(status.get("skipped", {})) <= set(SKIPPED)
    assert len(status["passed"]) > 40


class Frame:
    """Zeros and ones with named columns, as data frames have them."""

    columns = ("railways", "gardening", "cooking")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=dtype)


def test_columns_of_a_frame_are_the_labels(tiny_transformer: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["steam trains", "roses at home", "winter soup", "fast trains"]
    given: dict[str, Any] = {"recipe": "raexmc", "encoder": str(tiny_transformer), "epochs": 0, "device": "cpu"}
    given["random_state"] = 0
    model = LabelSpaceClassifier(**given).fit(texts, Frame())
    assert (
        list(model.classes_) == list(model.model_.labels.texts) == list(model.model_.labels.ids) == list(Frame.columns)
    )
    assert "k is 5 and there are 3 labels, so every text will get all of them" in caplog.text
    caplog.clear()
    found = LabelSpaceClassifier(**given, k=1).fit(texts, Frame()).predict(texts)
    assert found.shape == (4, 3) and (found.sum(axis=1) == 1).all() and "every text" not in caplog.text
