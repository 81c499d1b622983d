"""Metrics against tables worked by hand and against plain loops."""

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from labelspace.errors import DataError, SettingsError
from labelspace.evaluation import metrics
from labelspace.evaluation.metrics import (
    Terms,
    best_weights,
    binary_truth,
    check_indices,
    coverage,
    frequency_groups,
    hit_weights,
    hits,
    label_counts,
    membership,
    ndcg,
    paired_bootstrap,
    percent,
    precision,
    propensity_constants,
    propensity_weights,
    psndcg,
    psp,
    recall,
    reciprocal_rank,
    sizes,
)

# Four documents, five labels. Worked by hand:
#   document  truth      predicted    hits at rank
#   0         0, 2       2 1 0        1, 3
#   1         3          4 3 0        2
#   2         (none)     0 1 2        -
#   3         0 1 2 4    1 - -        1
TRUTH = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 1]])
INDICES = np.array([[2, 1, 0], [4, 3, 0], [0, 1, 2], [1, -1, -1]])
WEIGHTS = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
SECOND = 1 / math.log2(3)  # discount of rank 2; that of rank 3 is 1/2


@pytest.fixture
def table():
    truth = binary_truth(TRUTH)
    found = hits(INDICES, truth)
    return truth, found, hit_weights(INDICES, found, WEIGHTS), best_weights(truth, WEIGHTS, 5)


def test_hits_by_hand(table):
    assert table[1].tolist() == [
        [True, False, True],
        [False, True, False],
        [False, False, False],
        [True, False, False],
    ]


def test_precision_and_recall_by_hand(table):
    truth, found, _, _ = table
    assert percent(precision(found, 1)) == 50.0  # 2 hits in 4 places
    assert percent(precision(found, 3)) == pytest.approx(100 * 4 / 12)
    assert percent(precision(found, 5)) == pytest.approx(100 * 4 / 20)  # missing places are misses
    assert percent(recall(found, sizes(truth), 1)) == pytest.approx(100 * (1 / 2 + 0 + 0 + 1 / 4) / 4)
    assert percent(recall(found, sizes(truth), 3)) == pytest.approx(100 * (2 / 2 + 1 / 1 + 0 + 1 / 4) / 4)


def test_reciprocal_rank_by_hand(table):
    found = table[1]
    assert percent(reciprocal_rank(found, 1)) == 50.0
    assert percent(reciprocal_rank(found, 3)) == pytest.approx(100 * (1 + 1 / 2 + 0 + 1) / 4)
    assert percent(reciprocal_rank(found[:, :0], 3)) == 0.0


def test_ndcg_by_hand(table):
    truth, found, _, _ = table
    assert percent(ndcg(found, sizes(truth), 1)) == 50.0
    expected = (1.5 / (1 + SECOND) + SECOND / 1 + 0 + 1 / (1 + SECOND + 0.5)) / 4
    assert percent(ndcg(found, sizes(truth), 3)) == pytest.approx(100 * expected)
    fourth = 1 / math.log2(5)
    expected = (1.5 / (1 + SECOND) + SECOND / 1 + 0 + 1 / (1 + SECOND + 0.5 + fourth)) / 4
    assert percent(ndcg(found, sizes(truth), 5)) == pytest.approx(100 * expected)


def test_propensity_scored_metrics_by_hand(table):
    truth, _, gained, best = table
    assert best.tolist() == [[3, 1, 0, 0, 0], [4, 0, 0, 0, 0], [0] * 5, [5, 3, 2, 1, 0]]
    assert gained.tolist() == [[3, 0, 1], [0, 4, 0], [0, 0, 0], [2, 0, 0]]
    assert percent(psp(gained, best, 1)) == pytest.approx(100 * (3 + 0 + 0 + 2) / (3 + 4 + 0 + 5))
    assert percent(psp(gained, best, 3)) == pytest.approx(100 * (4 + 4 + 0 + 2) / (4 + 4 + 0 + 10))
    two, three = 1 + SECOND, 1 + SECOND + 0.5
    above = (3 + 1 / 2) / two + 4 * SECOND / 1 + 2 / three
    below = (3 + 1 * SECOND) / two + 4 / 1 + (5 + 3 * SECOND + 2 / 2) / three
    assert percent(psndcg(gained, best, sizes(truth), 3)) == pytest.approx(100 * above / below)


def test_coverage_by_hand(table):
    truth, found, _, _ = table
    assert coverage(INDICES, found, truth, 1) == pytest.approx(100 * 2 / 5)  # labels 2 and 1
    assert coverage(INDICES, found, truth, 3) == pytest.approx(100 * 4 / 5)  # and 0 and 3


# --- truth and hits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "bsr", "dense", "list", "matrix", "bool"])
def test_truth_of_any_form(form):
    dense = np.array([[0.0, 0.25, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]])
    if form == "matrix":
        given_truth = sp.csr_matrix(dense)
    elif form == "bool":
        given_truth = dense > 0
    elif form == "list":
        given_truth = dense.tolist()
    elif form == "dense":
        given_truth = dense
    else:
        given_truth = sp.coo_array(dense).asformat(form)
    truth = binary_truth(given_truth)
    assert truth.toarray().tolist() == (dense > 0).tolist()
    assert truth.dtype == bool


def test_explicit_zeros_negative_values_and_unsorted_repeats():
    data = np.array([1.0, 0.0, -1.0, 0.5, 0.5])
    given_truth = sp.csr_array((data, np.array([3, 1, 0, 2, 3]), np.array([0, 5, 5])), shape=(2, 4))
    truth = binary_truth(given_truth)
    assert truth.indices.tolist() == [2, 3]
    assert truth.indptr.tolist() == [0, 2, 2]
    assert given_truth.indices.tolist() == [3, 1, 0, 2, 3]  # the caller's array is as it was
    assert given_truth.data.tolist() == data.tolist()


@pytest.mark.parametrize("wrong", [[1, 0, 1], [["a", "b"]], [[1.0, float("nan")]]])
def test_unusable_truth_is_refused(wrong):
    with pytest.raises(DataError, match="truth"):
        binary_truth(wrong)


def test_pairs_are_not_unordered():
    truth = [[0, 1], [1, 0]]
    assert percent(precision(hits(np.array([[0], [1]]), truth), 1)) == 0.0
    assert percent(precision(hits(np.array([[1], [0]]), truth), 1)) == 100.0


def test_empty_place_is_not_the_last_label_of_the_row_before():
    assert not hits(np.array([[0], [-1]]), [[0, 1], [0, 1]]).any()


def test_block_size_changes_nothing(monkeypatch):
    generator = np.random.default_rng(3)
    truth = sp.random_array((50, 30), density=0.1, rng=generator)
    indices = np.stack([generator.permutation(30)[:7] for _ in range(50)])
    whole = hits(indices, truth)
    assert whole.any()
    for block in (1, 7, 7 * 7, 7 * 50):  # rows in blocks of 1, 1, 7 and 50
        monkeypatch.setattr(metrics, "_BLOCK", block)
        assert (hits(indices, truth) == whole).all()


def test_large_label_space_takes_no_dense_array():
    n, n_labels = 200_000, 40_000_000  # documents x labels is 8 TB in bytes
    truth = sp.csr_array((np.ones(n), np.arange(n), np.arange(n + 1)), shape=(n, n_labels))
    indices = np.stack([np.full(n, n_labels - 1), np.arange(n)], axis=1)
    assert percent(precision(hits(indices, truth), 2)) == 50.0


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[0, 1], [2, 2]], "document row 1 predicts label number 2 more than once"),
        ([[2, 0, 2]], "document row 0 predicts label number 2 more than once"),
        ([[0, 1], [1, 3]], "document row 1 predicts label number 3, but the truth has 3 labels"),
        ([[0, -2]], "document row 0 predicts label number -2"),
        ([[0.0, 1.0]], "whole numbers"),
        ([0, 1], "whole numbers of shape"),
    ],
)
def test_uncountable_predictions_are_refused(indices, message):
    with pytest.raises(DataError, match=message):
        check_indices(np.array(indices), 3)


def test_a_repeat_far_down_is_named(monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK", 6)
    indices = np.tile([0, 1, 2], (10, 1))
    indices[7] = [1, 0, 1]
    with pytest.raises(DataError, match="document row 7 predicts label number 1"):
        check_indices(indices, 3)


def test_empty_places_may_repeat_and_no_places_are_misses():
    assert hits(np.array([[-1, -1]]), [[1, 1]]).tolist() == [[False, False]]
    found = hits(np.zeros((2, 0)), [[1, 1], [0, 1]])
    assert found.shape == (2, 0)
    assert percent(precision(found, 1)) == 0.0


def test_number_of_documents_must_agree():
    with pytest.raises(DataError, match="3 documents but the truth has 2 rows"):
        hits(np.zeros((3, 1), dtype=int), [[1], [1]])


def test_membership_of_no_pairs():
    assert not membership(np.array([[0, 1]]), sp.csr_array((1, 2), dtype=bool)).any()


# --- against loops --------------------------------------------------------------------------------------------------


def reference(predicted: list[list[int]], true: list[set[int]], weights: list[float], k: int) -> dict[str, float]:
    """All metrics in the dullest way; ``predicted`` holds lists of any length, without empty places."""
    n = len(true)
    p = r = g = m = psp_above = psp_below = psg_above = psg_below = 0.0
    for guess, own in zip(predicted, true, strict=True):
        heaviest = sorted((weights[label] for label in own), reverse=True)
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(own)) + 1))
        m += max((1 / rank for rank, label in enumerate(guess[:k], start=1) if label in own), default=0) / n
        for rank, label in enumerate(guess[:k], start=1):
            if label in own:
                p += 1 / k / n
                r += 1 / len(own) / n
                g += 1 / math.log2(rank + 1) / ideal / n
                psp_above += weights[label]
                psg_above += weights[label] / math.log2(rank + 1) / ideal
        for rank, weight in enumerate(heaviest[:k], start=1):
            psp_below += weight
            psg_below += weight / math.log2(rank + 1) / ideal
    reached = {label for guess, own in zip(predicted, true, strict=True) for label in guess[:k] if label in own}
    possible = set().union(*true)
    return {
        "P": 100 * p,
        "R": 100 * r,
        "MRR": 100 * m,
        "nDCG": 100 * g,
        "PSP": 100 * psp_above / psp_below if psp_below else 0.0,
        "PSnDCG": 100 * psg_above / psg_below if psg_below else 0.0,
        "coverage": 100 * len(reached) / len(possible) if possible else 0.0,
    }


@st.composite
def cases(draw):
    n, n_labels = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    labels = st.integers(0, n_labels - 1)
    predicted = [draw(st.lists(labels, unique=True)) for _ in range(n)]
    true = [draw(st.sets(labels)) for _ in range(n)]
    weights = draw(st.lists(st.floats(0.5, 50), min_size=n_labels, max_size=n_labels))
    padding = draw(st.integers(0, 3))
    return n_labels, predicted, true, weights, padding


def arrays(n_labels, predicted, true, padding):
    width = max(map(len, predicted)) + padding
    indices = np.array([guess + [-1] * (width - len(guess)) for guess in predicted]).reshape(len(predicted), width)
    truth = np.array([[label in own for label in range(n_labels)] for own in true])
    return indices.astype(np.int64), truth


def all_metrics(indices, given_truth, weights, k):
    truth = binary_truth(given_truth)
    found, counts, weights = hits(indices, truth), sizes(truth), np.array(weights)
    gained, best = hit_weights(indices, found, weights), best_weights(truth, weights, k)
    return {
        "P": percent(precision(found, k)),
        "R": percent(recall(found, counts, k)),
        "MRR": percent(reciprocal_rank(found, k)),
        "nDCG": percent(ndcg(found, counts, k)),
        "PSP": percent(psp(gained, best, k)),
        "PSnDCG": percent(psndcg(gained, best, counts, k)),
        "coverage": coverage(indices, found, truth, k),
    }


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(1, 10))
def test_every_metric_equals_loops(case, k):
    n_labels, predicted, true, weights, padding = case
    ours = all_metrics(*arrays(n_labels, predicted, true, padding), weights, k)
    assert ours == pytest.approx(reference(predicted, true, weights, k), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 10), st.randoms(use_true_random=False))
def test_renumbering_changes_no_bit(case, k, random):
    n_labels, predicted, true, weights, padding = case
    indices, truth = arrays(n_labels, predicted, true, padding)
    before = all_metrics(indices, truth, weights, k)
    documents = random.sample(range(len(true)), len(true))
    assert all_metrics(indices[documents], truth[documents], weights, k) == before
    number = np.array([*random.sample(range(n_labels), n_labels), -1])  # new number of each label; -1 stays
    renamed_truth, renamed_weights = np.zeros_like(truth), np.zeros(n_labels)
    renamed_truth[:, number[:-1]] = truth
    renamed_weights[number[:-1]] = weights
    assert all_metrics(number[indices], renamed_truth, renamed_weights, k) == before


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 10))
def test_perfect_predictions_reach_exactly_100(case, k):
    n_labels, _, true, weights, padding = case
    perfect = [sorted(own, key=lambda label: -weights[label]) for own in true]
    ours = all_metrics(*arrays(n_labels, perfect, true, padding), weights, k)
    any_true = 100.0 if any(true) else 0.0
    assert ours["PSP"] == ours["PSnDCG"] == any_true
    assert ours["nDCG"] == pytest.approx(100 * sum(map(bool, true)) / len(true))


def test_perfect_predictions_in_any_order_reach_exactly_100():
    weights = np.array([0.1, 0.2, 0.3])
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1  # adding in order of rank would not do
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        assert all_metrics(np.array([order]), [[1, 1, 1]], weights, 3)["PSP"] == 100.0


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 10))
def test_psp_never_above_100(case, k):
    n_labels, predicted, true, weights, padding = case
    assert 0 <= all_metrics(*arrays(n_labels, predicted, true, padding), weights, k)["PSP"] <= 100


# --- propensities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("LF-Wikipedia-500K", (0.5, 0.4)),
        ("LF-WIKISEEALSO-320k", (0.5, 0.4)),
        ("WikiLSHTC-325K", (0.5, 0.4)),
        ("LF-WikiTitles-500K", (0.5, 0.4)),
        ("LF-AmazonTitles-1.3M", (0.6, 2.6)),
        ("amazon-670k", (0.6, 2.6)),
        ("Wiki-500K", (0.5, 0.4)),
        ("lf_wiki500k", (0.5, 0.4)),
        ("Wiki_325K", (0.5, 0.4)),
        ("wiki-see-also-320k", (0.5, 0.4)),
        ("LF-WikiHierarchy-1M", (0.5, 0.4)),
        ("Wiki10-31K", (0.55, 1.5)),
        ("wiki-10-31k", (0.55, 1.5)),
        ("wikihow", (0.55, 1.5)),
        ("EURLex-4K", (0.55, 1.5)),
        (None, (0.55, 1.5)),
    ],
)
def test_propensity_constants(name, constants):
    assert propensity_constants(name) == constants


@pytest.mark.parametrize(("a", "b"), [(0.55, 1.5), (0.5, 0.4), (0.6, 2.6)])
def test_propensity_weights_equal_the_formula(a, b):
    counts = [0, 1, 3, 3, 12, 40]
    train = np.zeros((40, 6))
    for label, count in enumerate(counts):
        train[:count, label] = 0.7  # a weighted truth counts documents, not weights
    expected = [1 + (math.log(40) - 1) * (b + 1) ** a * (n + b) ** -a for n in counts]
    assert propensity_weights(train, a, b).tolist() == pytest.approx(expected, rel=1e-14)
    assert propensity_weights(sp.csr_array(train), a, b).tolist() == propensity_weights(train, a, b).tolist()


def test_default_constants_are_those_of_an_unknown_name():
    train = np.eye(5)
    assert propensity_weights(train).tolist() == propensity_weights(train, *propensity_constants("my data")).tolist()


@pytest.mark.parametrize(("train", "a", "b"), [(np.eye(5), 0.5, -1.0), (np.eye(5), float("nan"), 1.5), ([[1]], 0.5, 1)])
def test_senseless_propensities_are_refused(train, a, b):
    with pytest.raises(SettingsError, match="propensity constants"):
        propensity_weights(train, a, b)


def test_label_counts():
    assert label_counts([[1, 0, 0.5], [1, 0, 0]]).tolist() == [2, 0, 1]


# --- frequency groups -----------------------------------------------------------------------------------------------


def with_counts(counts):
    return np.array([[row < count for count in counts] for row in range(max(counts))])


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ([6, 3, 3, 2, 2, 2], [0, 1, 1, 2, 2, 2]),  # exact thirds
        ([2, 3, 2, 6, 3, 2], [2, 1, 2, 0, 1, 2]),  # in any order of labels
        ([6, 3, 3, 2, 2, 2, 0, 0], [0, 1, 1, 2, 2, 2, 3, 3]),
        ([1, 1, 1, 1], [1, 1, 1, 1]),  # equal counts stay together; the middle of all pairs is in the second third
        ([9, 1, 1, 1], [1, 2, 2, 2]),  # pairs 1-9 of 12 have their middle in the second third, 10-12 in the last
    ],
)
def test_frequency_groups(counts, groups):
    assert frequency_groups(with_counts(counts)).tolist() == groups


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=30).filter(any))
def test_frequency_groups_follow_the_middle_of_their_pairs(counts):
    groups = frequency_groups(with_counts(counts)).tolist()
    total = sum(counts)
    for label, count in enumerate(counts):
        before = sum(other for other in counts if other > count)
        own = sum(other for other in counts if other == count)
        third = (before + own / 2) * 3 / total
        expected = 3 if count == 0 else 0 if third < 1 - 1e-9 else 1 if third < 2 - 1e-9 else 2
        assert groups[label] == expected


# --- bootstrap ------------------------------------------------------------------------------------------------------


def test_bootstrap_equals_a_direct_loop():
    generator = np.random.default_rng(5)
    n, m, draws = 23, 3, 200
    a, b = generator.random((n, m)), generator.random((n, m))
    below = generator.random((n, m)) * (generator.random((n, m)) > 0.3)
    low, high = paired_bootstrap(a, b, below, draws=draws, seed=11)
    drawer = np.random.default_rng(11)
    differences = []
    for _ in range(draws):
        rows = drawer.integers(n, size=n)
        one = [100 * sum(a[i, j] for i in rows) / sum(below[i, j] for i in rows) for j in range(m)]
        other = [100 * sum(b[i, j] for i in rows) / sum(below[i, j] for i in rows) for j in range(m)]
        differences.append([y - x for x, y in zip(one, other, strict=True)])
    expected = np.percentile(np.array(differences), [2.5, 97.5], axis=0)
    np.testing.assert_allclose([low, high], expected, rtol=1e-10)


def test_bootstrap_is_paired_and_seeded():
    ones = np.ones((30, 1))
    a = np.random.default_rng(0).random((30, 1))
    low, high = paired_bootstrap(a, a + 0.01, ones, draws=50)  # the same documents in both: no spread
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(1.0)
    b = np.random.default_rng(1).random((30, 1))
    assert paired_bootstrap(a, b, ones, draws=50, seed=1) == paired_bootstrap(a, b, ones, draws=50, seed=1)
    assert paired_bootstrap(a, b, ones, draws=50, seed=1) != paired_bootstrap(a, b, ones, draws=50, seed=2)


def test_bootstrap_interval_has_the_width_of_the_standard_error():
    n = 2000
    b = np.random.default_rng(2).normal(size=(n, 1))
    low, high = paired_bootstrap(np.zeros((n, 1)), b, np.ones((n, 1)))
    standard_error = 100 * b.std() / math.sqrt(n)
    assert (high - low)[0] == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    assert (high + low)[0] / 2 == pytest.approx(100 * b.mean(), abs=0.15 * standard_error)


def test_bootstrap_of_nothing_is_refused_and_of_empty_truth_is_0():
    with pytest.raises(ValueError, match="at least one document"):
        paired_bootstrap(np.zeros((0, 1)), np.zeros((0, 1)), np.zeros((0, 1)))
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap(np.zeros((2, 1)), np.zeros((2, 2)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="0 draws"):
        paired_bootstrap(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((2, 1)), draws=0)
    low, high = paired_bootstrap(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((2, 1)), draws=3)
    assert low.tolist() == high.tolist() == [0.0]


def test_percent_of_zero_denominators_is_0():
    assert percent(Terms(np.zeros(3), np.zeros(3))) == 0.0


def test_import_is_light():
    code = "import sys, labelspace.evaluation.metrics; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
