"""``evaluate``, ``report`` and ``compare`` against plain loops, and what they refuse."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from labelspace.errors import DataError, SettingsError
from labelspace.evaluation.comparing import compare
from labelspace.evaluation.evaluating import by_frequency, evaluate, longest_filter_row, report
from labelspace.evaluation.metrics import frequency_groups
from labelspace.evaluation.render import render
from labelspace.types import Predictions


def random_case(seed, n=60, n_labels=40, depth=12, train_documents=90):
    """Predictions without ties, with padding; truth with empty rows, weights and explicit zeros; train truth; pairs."""
    generator = np.random.default_rng(seed)
    indices = np.stack([generator.permutation(n_labels)[:depth] for _ in range(n)])
    scores = np.stack([generator.permutation(1000)[:depth] for _ in range(n)]).astype(np.float32) - 900
    padded = generator.random((n, depth)) < 0.15
    indices[padded], scores[padded] = -1, -np.inf
    pred = Predictions(indices=indices, scores=scores)
    targets = generator.random((n, n_labels)) * (generator.random((n, n_labels)) < 0.2)
    targets[generator.random(n) < 0.2] = 0
    rows, columns = np.nonzero((targets > 0) | (generator.random((n, n_labels)) < 0.1))
    stored = sp.csr_array((targets[rows, columns], (rows, columns)), shape=targets.shape)  # explicit zeros among them
    assert (stored.data == 0).any()
    frequency = np.linspace(0, 0.3, n_labels)
    train = sp.csr_array((generator.random((train_documents, n_labels)) < frequency).astype(np.float32))
    pairs = np.argwhere(generator.random((n, n_labels)) < 0.05)
    return pred, stored, train, pairs


def plain_order(pred, pairs=()):
    """Predicted labels of each document as a list: by score, then label number, without padding and pairs."""
    dropped = {(int(row), int(label)) for row, label in pairs}
    result = []
    for row in range(len(pred.indices)):
        entries = zip(pred.indices[row].tolist(), pred.scores[row].tolist(), strict=True)
        ordered = sorted((-score, label) for label, score in entries if label >= 0)
        result.append([label for _, label in ordered if (row, label) not in dropped])
    return result


def plain_weights(train, a, b):
    counts = (train.toarray() > 0).sum(axis=0).tolist()
    n = train.shape[0]
    return [1 + (math.log(n) - 1) * (b + 1) ** a * (count + b) ** -a for count in counts]


def plain_metrics(predicted, targets, weights, ks, depth, skip_empty=False):
    """All metrics by loops over documents and ranks."""
    true = [{int(label) for label in np.flatnonzero(row > 0)} for row in targets.toarray()]
    kept = [row for row in range(len(true)) if true[row] or not skip_empty]
    n = len(kept)

    def gain(ranks):
        return sum(1 / math.log2(rank + 1) for rank in ranks)

    def ranks_hit(row, k):
        return [rank for rank, label in enumerate(predicted[row][:k], start=1) if label in true[row]]

    def ideal(row, k):
        return gain(range(1, min(k, len(true[row])) + 1))

    def best(row, k):
        return sorted((weights[label] for label in true[row]), reverse=True)[:k]

    values = {}
    for k in ks:
        values[f"P@{k}"] = sum(len(ranks_hit(row, k)) / k for row in kept) / n
    for k in ks:
        values[f"nDCG@{k}"] = sum(gain(ranks_hit(row, k)) / ideal(row, k) for row in kept if true[row]) / n
    if weights is not None:
        for k in ks:
            above = sum(weights[predicted[row][rank - 1]] for row in kept for rank in ranks_hit(row, k))
            values[f"PSP@{k}"] = above / sum(sum(best(row, k)) for row in kept)
    if 5 in ks or depth >= 5:
        if weights is not None:
            above = below = 0.0
            for row in (row for row in kept if true[row]):
                above += sum(
                    weights[predicted[row][rank - 1]] / math.log2(rank + 1) / ideal(row, 5)
                    for rank in ranks_hit(row, 5)
                )
                below += sum(w / math.log2(rank + 1) / ideal(row, 5) for rank, w in enumerate(best(row, 5), start=1))
            values["PSnDCG@5"] = above / below
        reached = {predicted[row][rank - 1] for row in kept for rank in ranks_hit(row, 5)}
        values["coverage@5"] = len(reached) / len(set().union(*true))
    for k in (10, 100):
        if depth >= k:
            values[f"R@{k}"] = sum(len(ranks_hit(row, k)) / len(true[row]) for row in kept if true[row]) / n
    if depth >= 10:
        values["MRR@10"] = sum(1 / min(ranks_hit(row, 10), default=math.inf) for row in kept) / n
    return {key: 100 * value for key, value in values.items()}


@pytest.mark.parametrize("skip_empty", [False, True])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("depth", [2, 5, 12])
@pytest.mark.parametrize("seed", range(3))
def test_every_metric_equals_loops(seed, depth, filtered, skip_empty):
    pred, targets, train, pairs = random_case(seed, depth=depth)
    pairs = pairs if filtered else None
    ours = evaluate(pred, targets, train, ks=(1, 3, 5), filter_pairs=pairs, skip_empty=skip_empty, gains="binary")
    predicted = plain_order(pred, () if pairs is None else pairs)
    plain = plain_metrics(predicted, targets, plain_weights(train, 0.55, 1.5), (1, 3, 5), depth, skip_empty)
    assert list(ours) == list(plain)
    assert ours == pytest.approx(plain, rel=1e-12)
    assert 0 < min(ours.values())  # nothing is compared with nothing


def test_deep_predictions_report_recall_at_10_and_100():
    pred, targets, train, pairs = random_case(7, n=30, n_labels=150, depth=110)
    ours = evaluate(pred, targets, train, filter_pairs=pairs, gains="binary")
    plain = plain_metrics(plain_order(pred, pairs), targets, plain_weights(train, 0.55, 1.5), (1, 3, 5), 110)
    assert list(ours)[-3:] == ["R@10", "R@100", "MRR@10"]
    assert ours == pytest.approx(plain, rel=1e-12)


def test_keys_and_their_order():
    pred, targets, train, _ = random_case(0, depth=12)
    shallow = Predictions(pred.indices[:, :3], pred.scores[:, :3])
    every = [f"{metric}@{k}" for metric in ("P", "nDCG", "PSP") for k in (1, 3, 5)]
    assert list(evaluate(pred, targets, train)) == [*every, "PSnDCG@5", "coverage@5", "R@10", "MRR@10"]
    assert list(evaluate(shallow, targets, train)) == [*every, "PSnDCG@5", "coverage@5"]
    assert list(evaluate(shallow, targets, ks=[3, 1])) == ["P@3", "P@1", "nDCG@3", "nDCG@1"]
    ten = Predictions(pred.indices[:, :10], pred.scores[:, :10])
    assert list(evaluate(ten, targets, ks=(1,))) == ["P@1", "nDCG@1", "coverage@5", "R@10", "MRR@10"]
    assert list(evaluate(pred, targets, ks=(1, 1))) == ["P@1", "nDCG@1", "coverage@5", "R@10", "MRR@10"]
    assert all(type(value) is float for value in evaluate(pred, targets, train).values())


def test_places_beyond_the_depth_are_misses():
    pred = Predictions(np.array([[0]]), np.array([[1.0]]))
    values = evaluate(pred, [[1, 1, 1]], ks=(3,))
    assert values["P@3"] == pytest.approx(100 / 3)
    assert values["nDCG@3"] == pytest.approx(100 / (1 + 1 / math.log2(3) + 1 / 2))


# --- order ----------------------------------------------------------------------------------------------------------


def test_unsorted_predictions_are_ordered():
    pred, targets, train, _ = random_case(1)
    ordered = plain_order(pred)
    width = pred.indices.shape[1]
    indices = np.array([labels + [-1] * (width - len(labels)) for labels in ordered])
    scores = np.tile(np.arange(width, 0, -1), (len(pred), 1))
    assert not (indices == pred.indices).all()
    assert evaluate(Predictions(indices, scores), targets, train) == evaluate(pred, targets, train)


def test_equal_scores_go_by_label_number():
    pred = Predictions(np.array([[3, 1, 2]]), np.array([[0.5, 0.5, 0.9]]))
    assert evaluate(pred, [[0, 0, 1, 0]], ks=(1,))["P@1"] == 100.0
    assert evaluate(pred, [[0, 1, 1, 0]], ks=(2,))["P@2"] == 100.0
    already_falling = Predictions(np.array([[3, 1]]), np.array([[0.5, 0.5]]))
    assert evaluate(already_falling, [[0, 1, 0, 0]], ks=(1,))["P@1"] == 100.0


def test_double_scores_are_not_rounded_and_whole_scores_are_fine():
    close = SimpleNamespace(indices=np.array([[0, 1]]), scores=np.array([[1.0, 1.0 + 1e-12]]))
    assert evaluate(close, [[0, 1]], ks=(1,))["P@1"] == 100.0
    whole = SimpleNamespace(indices=[[0, 1]], scores=[[-3, 2]])
    assert evaluate(whole, [[0, 1]], ks=(1,))["P@1"] == 100.0


def test_padding_goes_last_whatever_its_score():
    pred = Predictions(np.array([[-1, 1, 0]]), np.array([[9.0, -5.0, -np.inf]]))
    values = evaluate(pred, [[1, 1]], ks=(1, 2))
    assert values["P@1"] == values["P@2"] == 100.0
    padded_with_nan = Predictions(np.array([[1, -1]]), np.array([[0.5, np.nan]]))
    assert evaluate(padded_with_nan, [[0, 1]], ks=(1,))["P@1"] == 100.0


def test_the_callers_arrays_stay_as_they_are():
    pred, targets, train, pairs = random_case(2)
    copies = [array.copy() for array in (pred.indices, pred.scores, targets.data, targets.indices, pairs)]
    evaluate(pred, targets, train, filter_pairs=pairs)
    for array, copy in zip((pred.indices, pred.scores, targets.data, targets.indices, pairs), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- invariance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_renumbering_documents_or_labels_changes_no_bit(seed):
    pred, targets, train, pairs = random_case(seed, n=300, n_labels=80)
    before = evaluate(pred, targets, train, filter_pairs=pairs)
    generator = np.random.default_rng(100 + seed)

    documents = generator.permutation(len(pred))
    place = np.argsort(documents)  # new row of each document
    moved = Predictions(pred.indices[documents], pred.scores[documents])
    moved_pairs = np.column_stack([place[pairs[:, 0]], pairs[:, 1]])
    assert evaluate(moved, targets[documents], train, filter_pairs=moved_pairs) == before
    assert evaluate(moved, targets, train, filter_pairs=moved_pairs) != before  # the rows do matter

    labels = generator.permutation(targets.shape[1])
    number = np.append(np.argsort(labels), -1)  # new number of each label; padding stays
    renamed = Predictions(number[pred.indices], pred.scores)
    renamed_pairs = np.column_stack([pairs[:, 0], number[pairs[:, 1]]])
    columns = sp.csc_array(targets)[:, labels], sp.csc_array(train)[:, labels]
    assert evaluate(renamed, *columns, filter_pairs=renamed_pairs) == before


# --- propensity -----------------------------------------------------------------------------------------------------


def test_propensities_come_from_the_train_truth_alone():
    _, targets, train, _ = random_case(3)
    dense = targets.toarray() > 0
    order = np.argsort(-(dense * np.array(plain_weights(train, 0.55, 1.5))), axis=1, kind="stable")
    perfect = Predictions(order, np.tile(-np.arange(order.shape[1]), (len(order), 1)))
    values = evaluate(perfect, targets, train)
    assert values["PSP@1"] == values["PSP@3"] == values["PSP@5"] == values["PSnDCG@5"] == 100.0
    # One more document with a true label changes the test truth, not the weights of the others.
    label = int(np.flatnonzero(dense.sum(axis=0))[0])
    pred = Predictions(np.array([[label], [0]]), np.zeros((2, 1)))
    first = np.zeros((2, dense.shape[1]))
    first[0, label] = 1
    weights = plain_weights(train, 0.55, 1.5)
    assert evaluate(pred, first, train, ks=(1,))["PSP@1"] == 100.0
    first[1, 1] = 1
    expected = 100 * weights[label] / (weights[label] + weights[1])
    assert evaluate(pred, first, train, ks=(1,))["PSP@1"] == pytest.approx(expected)


def test_propensity_by_name_by_constants_and_by_weights():
    pred, targets, train, _ = random_case(4)
    amazon = evaluate(pred, targets, train, name="LF-AmazonTitles-131K")
    assert amazon != evaluate(pred, targets, train)
    assert amazon == evaluate(pred, targets, train, propensity=(0.6, 2.6), name="Wikipedia")
    assert amazon == evaluate(pred, targets, train, propensity=[0.6, 2.6])
    weights = np.array(plain_weights(train, 0.6, 2.6))
    assert evaluate(pred, targets, propensity=weights) == pytest.approx(amazon, rel=1e-12)


@pytest.mark.parametrize(
    ("propensity", "with_train", "error", "message"),
    [
        ((0.5, 1.5), False, SettingsError, "need train_targets"),
        ((0.5,), True, SettingsError, "two constants"),
        ("amazon", True, SettingsError, "two constants"),
        (0.5, True, SettingsError, "two constants"),
        (np.ones(3), True, DataError, r"shape \(40,\)"),
        (np.full(40, np.nan), True, DataError, "finite"),
        (np.full(40, -1.0), True, DataError, "not negative"),
    ],
)
def test_senseless_propensity_is_refused(propensity, with_train, error, message):
    pred, targets, train, _ = random_case(0)
    with pytest.raises(error, match=message):
        evaluate(pred, targets, train if with_train else None, propensity=propensity)


# --- filter ---------------------------------------------------------------------------------------------------------


def test_filter_deletes_and_later_labels_move_up():
    pred = Predictions(np.array([[0, 1, 2]]), np.array([[-1.0, -2.0, -3.0]]))  # all scores below zero
    truth = [[1, 0, 1]]
    assert evaluate(pred, truth, ks=(1, 2))["P@2"] == 50.0
    values = evaluate(pred, truth, ks=(1, 2, 3), filter_pairs=[[0, 0], [0, 1]])
    assert values["P@1"] == 100.0  # label 2 has moved up
    assert values["P@3"] == pytest.approx(100 / 3)  # and nothing else is left
    assert values["nDCG@2"] == pytest.approx(100 / (1 + 1 / math.log2(3)))  # the truth keeps the filtered label 0


def test_filter_works_on_ordered_predictions():
    pred = Predictions(np.array([[2, 1, 0]]), np.array([[0.1, 0.2, 0.3]]))
    assert evaluate(pred, [[0, 1, 0]], ks=(1,), filter_pairs=[[0, 0]])["P@1"] == 100.0


@pytest.mark.parametrize("nothing", [None, [], np.zeros((0, 2), dtype=np.int64), np.zeros(0)])
def test_no_pairs_change_nothing(nothing):
    pred, targets, train, _ = random_case(5)
    assert evaluate(pred, targets, train, filter_pairs=nothing) == evaluate(pred, targets, train)


def test_repeated_pairs_count_once():
    pred, targets, train, pairs = random_case(6)
    twice = np.concatenate([pairs, pairs])
    assert evaluate(pred, targets, train, filter_pairs=twice) == evaluate(pred, targets, train, filter_pairs=pairs)
    assert longest_filter_row(twice) == longest_filter_row(pairs)


@pytest.mark.parametrize("pair", [(60, 0), (0, 40), (-1, 0), (0, -1)])
def test_pair_outside_the_truth_is_refused(pair):
    pred, targets, _, _ = random_case(0)
    with pytest.raises(DataError, match=rf"filter pair \({pair[0]}, {pair[1]}\)"):
        evaluate(pred, targets, filter_pairs=[(0, 0), pair])


@pytest.mark.parametrize("pairs", [[0, 1, 2], [[0, 1, 2]], [[0.5, 1.0]]])
def test_malformed_pairs_are_refused(pairs):
    with pytest.raises(DataError, match="filter pairs must be"):
        longest_filter_row(pairs)


def test_longest_filter_row():
    assert longest_filter_row(None) == longest_filter_row([]) == 0
    assert longest_filter_row([[4, 1], [2, 1], [4, 7], [4, 0]]) == 3


# --- what is refused ------------------------------------------------------------------------------------------------


def test_nan_score_is_refused():
    pred = Predictions(np.array([[0, 1], [1, 0]]), np.array([[0.5, 0.1], [np.nan, 0.2]]))
    with pytest.raises(DataError, match="document row 1 has a score that is not a number"):
        evaluate(pred, np.eye(2))


def test_shapes_that_do_not_fit_are_refused():
    pred, targets, train, _ = random_case(0)
    with pytest.raises(DataError, match="predictions are for 60 documents but the truth has 59 rows"):
        evaluate(pred, targets[:59])
    with pytest.raises(DataError, match="the truth has 40 labels but the train truth has shape"):
        evaluate(pred, targets, sp.csr_array(train[:, :39]))
    with pytest.raises(DataError, match=r"predicts label number \d+, but the truth has 5 labels"):
        evaluate(pred, sp.csr_array(targets[:, :5]))
    with pytest.raises(DataError, match="shape"):
        evaluate(pred, np.ones(60), train)
    with pytest.raises(DataError, match="scores of shape"):
        evaluate(SimpleNamespace(indices=pred.indices, scores=pred.scores[:, :2]), targets)
    with pytest.raises(DataError, match="need indices and scores"):
        evaluate(sp.csr_array(targets), targets)


def test_label_predicted_twice_is_refused():
    pred = Predictions(np.array([[0, 1, 0]]), np.array([[3.0, 2.0, 1.0]]))
    with pytest.raises(DataError, match="label number 0 more than once"):
        evaluate(pred, [[1, 1]])


@pytest.mark.parametrize("ks", [(), (0,), (1, -3), (1.5,), "5", 5])
def test_senseless_ks_are_refused(ks):
    pred, targets, _, _ = random_case(0)
    with pytest.raises(SettingsError, match="ks must be"):
        evaluate(pred, targets, ks=ks)


def test_nothing_to_evaluate_is_refused():
    pred = Predictions(np.array([[0]]), np.array([[1.0]]))
    assert evaluate(pred, [[0]], train_targets=np.ones((9, 1)))["PSP@1"] == 0.0
    with pytest.raises(DataError, match="no document has a true label"):
        evaluate(pred, [[0]], skip_empty=True)
    with pytest.raises(DataError, match="no document"):
        evaluate(Predictions(np.zeros((0, 1), dtype=int), np.zeros((0, 1))), np.zeros((0, 1)))


# --- report ---------------------------------------------------------------------------------------------------------


def test_labels_are_counted_by_training_documents():
    pred, targets, train, pairs = random_case(8)
    truth, predicted = targets.toarray() > 0, plain_order(pred, pairs)
    counts = (train.toarray() > 0).sum(axis=0)
    found = by_frequency(pred, targets, train, (1, 3, 4, 12), filter_pairs=pairs)
    spans = {"unseen": (0, 0), "1-2": (1, 2), "3": (3, 3), "4-11": (4, 11), "12+": (12, 1000)}
    assert list(found) == list(spans) and all(group["labels"] for group in found.values())
    for name, (low, high) in spans.items():
        own = [label for label in range(40) if low <= counts[label] <= high]
        positives = sum(int(truth[row, label]) for row in range(60) for label in own)
        assert found[name]["labels"] == len(own) and found[name]["positives"] == positives
        assert found[name]["train_pairs"] == counts[own].sum()
        for k in (1, 5, 10):
            hits = sum(truth[row, label] for row in range(60) for label in predicted[row][:k] if label in own)
            assert found[name][f"recall@{k}"] == pytest.approx(100 * hits / positives if positives else 0.0)
    for edges in ((0, 3), (3, 3), (5, 2)):
        with pytest.raises(SettingsError, match="edges must be whole numbers that rise"):
            by_frequency(pred, targets, train, edges)


@pytest.mark.parametrize("skip_empty", [False, True])
def test_report_holds_metrics_groups_and_counts(skip_empty):
    pred, targets, train, pairs = random_case(8)
    shared = {"filter_pairs": pairs, "skip_empty": skip_empty}
    result = report(pred, targets, train, name="LF-Amazon-131K", filter_source="filter_labels_test.txt", **shared)
    assert result.metrics == evaluate(pred, targets, train, name="LF-Amazon-131K", **shared)
    assert result.propensity == {"a": 0.6, "b": 2.6, "source": "data set name LF-Amazon-131K"}
    assert result.filter == "filter_labels_test.txt"

    truth = targets.toarray() > 0
    predicted, unfiltered = plain_order(pred, pairs), plain_order(pred)
    empty = int((truth.sum(axis=1) == 0).sum())
    kept = [row for row in range(60) if truth[row].any() or not skip_empty]
    assert result.counts == {
        "documents": len(kept),
        "without_label": empty,
        "labels": 40,
        "positives": int(truth.sum()),
        "depth": 12,
        "filtered": sum(map(len, unfiltered)) - sum(map(len, predicted)),
        "short": sum(len(predicted[row]) < 5 for row in kept),
    }

    all_places = report(pred, targets, ks=(1, 12), **shared).counts["short"]
    assert all_places == sum(len(predicted[row]) < 12 for row in kept) > 0

    counts = (train.toarray() > 0).sum(axis=0)
    assert list(result.groups) == ["head", "torso", "tail", "unseen"]
    assert sum(group["train_pairs"] for group in result.groups.values()) == counts.sum()
    assert sum(group["positives"] for group in result.groups.values()) == truth.sum()
    assert result.groups["unseen"]["train_pairs"] == 0
    for k in (1, 3, 5):
        shares = [group[f"P@{k} share"] for group in result.groups.values()]
        assert sum(shares) == pytest.approx(result.metrics[f"P@{k}"])
    group_of = frequency_groups(train).tolist()
    for number, (name, group) in enumerate(result.groups.items()):
        assert group["labels"] == group_of.count(number)
        positives = sum(int(truth[row, label]) for row in kept for label in range(40) if group_of[label] == number)
        for k in (1, 3, 5, 10):
            reached = [label for row in kept for label in predicted[row][:k] if truth[row, label]]
            own = sum(group_of[label] == number for label in reached)
            assert group[f"recall@{k}"] == pytest.approx(100 * own / positives), name
            if k < 10:
                assert group[f"P@{k} share"] == pytest.approx(100 * own / k / len(kept)), name
    assert result.groups["unseen"]["labels"] == (counts == 0).sum() > 0
    assert result.groups["unseen"]["recall@10"] > 0


def test_report_without_train_truth_and_filter():
    pred, targets, _, _ = random_case(8)
    result = report(pred, targets)
    assert (result.groups, result.propensity, result.filter, result.name) == ({}, None, "none", None)
    weighted = report(pred, targets, propensity=np.ones(40), filter_pairs=[])
    assert weighted.propensity == {"a": None, "b": None, "source": "given weights"}
    assert weighted.filter == "given pairs"


def test_report_survives_json():
    pred, targets, train, pairs = random_case(9)
    result = report(pred, targets, train, filter_pairs=pairs).as_dict()
    assert json.loads(json.dumps(result)) == result


def test_render_is_readable():
    pred, targets, train, pairs = random_case(9)
    result = report(pred, targets, train, filter_pairs=pairs, name="toy")
    text = render(result)
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "a = 0.55, b = 1.5" in lines["propensity"]
    assert f"{result.counts['without_label']} without a true label, counted as 0" in lines["documents"]
    assert lines["P"].split()[1:] == [f"{result.metrics[f'P@{k}']:.2f}" for k in (1, 3, 5)]
    assert lines["R"].split()[1:] == [f"{result.metrics['R@10']:.2f}"]
    assert lines["recall@5"].split()[1:] == [f"{group['recall@5']:.2f}" for group in result.groups.values()]
    assert f"{result.counts['filtered']} predictions deleted" in lines["filter"]
    assert text == "\n".join(line.rstrip() for line in text.splitlines())
    assert "filter       none" in render(report(pred, targets))


# --- compare --------------------------------------------------------------------------------------------------------


def test_compare_equals_evaluate_on_redrawn_documents():
    pred_a, targets, train, pairs = random_case(10, depth=10)
    generator = np.random.default_rng(1)
    better = np.where(targets.toarray() > 0, 2.0, 0.0) + generator.random(targets.shape)
    indices = np.argsort(-better, axis=1)[:, :7]
    pred_b = Predictions(indices, np.take_along_axis(better, indices, axis=1))
    result = compare(pred_a, pred_b, targets, train, filter_pairs=pairs, draws=40, seed=3)
    a, b = (evaluate(pred, targets, train, filter_pairs=pairs) for pred in (pred_a, pred_b))
    assert list(result) == [metric for metric in b if metric != "coverage@5"]  # R@10 needs both to be that deep
    differences = {metric: [] for metric in result}
    drawer = np.random.default_rng(3)
    for _ in range(40):
        rows = drawer.integers(60, size=60)
        redrawn = [(place, label) for place, row in enumerate(rows) for owner, label in pairs.tolist() if owner == row]
        one, other = (
            evaluate(Predictions(pred.indices[rows], pred.scores[rows]), targets[rows], train, filter_pairs=redrawn)
            for pred in (pred_a, pred_b)
        )
        for metric in result:
            differences[metric].append(other[metric] - one[metric])
    for metric, row in result.items():
        assert (row["a"], row["b"], row["difference"]) == (a[metric], b[metric], b[metric] - a[metric])
        low, high = np.percentile(differences[metric], [2.5, 97.5])
        assert (row["low"], row["high"]) == pytest.approx((low, high), rel=1e-9)
    assert result["P@1"]["low"] > 0  # the second one is the truth with noise


def test_compare_with_itself_is_zero():
    pred, targets, train, _ = random_case(11)
    for row in compare(pred, pred, targets, train, draws=20).values():
        assert (row["difference"], row["low"], row["high"]) == (0.0, 0.0, 0.0)
        assert row["a"] == row["b"] > 0


def test_compare_refuses_no_draws():
    pred, targets, _, _ = random_case(11)
    with pytest.raises(SettingsError, match="draws"):
        compare(pred, pred, targets, draws=0)


def test_one_pair_and_whole_floats_are_pairs():
    pred, truth = Predictions(np.array([[0, 1]]), np.array([[2.0, 1.0]])), sp.csr_array(np.array([[0.0, 1.0]]))
    expected = evaluate(pred, truth, ks=(1,), filter_pairs=[[0, 0]])
    assert expected["P@1"] == 100
    for pairs in ([0, 0], np.array([[0.0, 0.0]])):
        assert evaluate(pred, truth, ks=(1,), filter_pairs=pairs) == expected
