"""Choosing how keys vote, on documents that are not among the keys: a full grid from one search.

The nearest label keys and the nearest document keys of every validation document are found once, deep enough for every
setting, and kept apart. Each setting then is two sums of votes, and each weight between them a comparison of lines.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from ..errors import SettingsError
from ..evaluation.evaluating import evaluate
from ..types import Predictions
from .keys import BoolArray, IntArray
from .memory import JUDGED, LINEAR, FloatArray, Found, Memory, Voting, weigh

KS = (1, 3, 5)
METRICS = tuple(f"{name}@{k}" for name in ("P", "nDCG", "PSP") for k in KS)
DEFAULT_OBJECTIVE = "P@1,P@3,P@5"
BLOCK = 500
"""Validation documents whose candidates are held at a time."""
DOCUMENTS = 3000
"""Validation documents that are looked at, at most."""
MARGIN = 1.0
"""Points by which a setting may be behind after a block of documents and be tried on the others; after n of them the
root of n-th of it, since so the differences between settings settle."""
TOLERANCE = 0.25
"""Points of the objective that may be given up for R@100: fewer than the draw of the validation documents decides."""
RECALL_DOCUMENTS = 2000
"""Validation documents on which R@100 is compared, at most."""
SHOWN = 12
"""Settings of the front that are shown, at most."""
LABEL_TEMPERATURES = (0.04, 0.07, 0.1, 0.15, 0.25, 0.4)
"""Of label keys, where they have a softmax of their own."""
FIELDS = {
    "search": "search", "depth": "depths", "label_depth": "label_depths", "document_depth": "document_depths",
    "temperature": "temperatures", "votes": "votes", "weight": "weights",
    "softmax": "softmax", "label_temperature": "label_temperatures",
}  # fmt: skip
"""Settings of `Voting`, and the fields of `Grid` that hold their values."""
STRENGTHS, PRIORS, BASES = (0.2, 0.4, 0.8, 1.4, 2.2), (1.0, 10.0, 100.0, 1000.0), (0.0, 0.2, 0.4)
"""Of a linear classifier; every combination is tried."""
LEAST_GAIN = 0.1
"""Points of the objective that a linear classifier must add to be kept."""
TILT = 1e-12
"""Share by which votes count less from label to label, so that of equal scores the first label wins."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is tried; a field with one value is fixed.

    Args:
        search: ways to search.
        depths: of a joint search.
        label_depths: of a two-sided search.
        document_depths: of a two-sided search.
        temperatures: of the softmax.
        votes: raw and normalized.
        softmax: together and apart. Apart is tried in two-sided searches, with the greatest label depth and the two
            greatest document depths.
        label_temperatures: None tries that of the documents, and of a softmax apart LABEL_TEMPERATURES.
        weights: of the documents' votes, rising.
    """

    search: Sequence[str] = ("joint", "two-sided")
    depths: Sequence[int] = (20, 50, 100, 200)
    label_depths: Sequence[int] = (20, 50, 100, 200)
    document_depths: Sequence[int] = (20, 50, 100, 200)
    temperatures: Sequence[float] = (0.02, 0.04, 0.05, 0.07, 0.1, 0.15)
    votes: Sequence[str] = ("raw", "normalized")
    softmax: Sequence[str] = ("together", "apart")
    label_temperatures: Sequence[float] | None = None
    weights: Sequence[float] = tuple(i / 50 for i in range(51))

    @classmethod
    def fixed(cls, **settings: Any) -> Grid:
        """The grid with some settings of `Voting` fixed.

        A depth says how is searched: ``depth`` goes with a joint search, the other two with a two-sided one.

        Args:
            settings: by name; None leaves a setting to be tried.

        Raises:
            SettingsError: a value out of bounds, or depths of another search.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        try:
            Voting(**given)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        for name in ("depth", "label_depth", "document_depth"):
            search = "joint" if name == "depth" else "two-sided"
            if name in given and given.setdefault("search", search) != search:
                raise SettingsError(
                    f"{name} {given[name]} goes with a {search} search alone, and a {given['search']} one is asked "
                    "for; leave one of the two out"
                )
        if given.get("softmax") == "apart" and given.setdefault("search", "two-sided") == "joint":
            raise SettingsError("a softmax apart goes with a two-sided search alone; leave one of the two settings out")
        return cls(**{FIELDS[name]: (value,) for name, value in given.items()})

    def settled(self, voting: Voting) -> Voting:
        """How keys vote when nothing can be tried: fixed settings hold, and all others stay.

        Args:
            voting: as they vote so far.
        """
        values: dict[str, Sequence[Any] | None] = {name: getattr(self, field) for name, field in FIELDS.items()}
        return dataclasses.replace(voting, **{name: x[0] for name, x in values.items() if x and len(x) == 1})

    def ways(self, labels: int, documents: int) -> list[Voting]:
        """Every setting but the weight, which is set to a half.

        Args:
            labels: label keys that there are.
            documents: document keys that there are.
        """
        label_depths, document_depths = _useful(self.label_depths, labels), _useful(self.document_depths, documents)
        sides: list[dict[str, Any]] = []
        if "joint" in self.search:
            sides += [{"search": "joint", "depth": b} for b in _useful(self.depths, labels + documents)]
        if "two-sided" in self.search:
            depths = itertools.product(label_depths, document_depths)
            sides += [{"search": "two-sided", "label_depth": a, "document_depth": c} for a, c in depths]
        ways: list[dict[str, Any]] = []
        if "together" in self.softmax:
            ways += [{"softmax": "together", "label_temperature": t, **side}
                     for t in self.label_temperatures or (None,) for side in sides]  # fmt: skip
        if "apart" in self.softmax and "two-sided" in self.search:
            sides = [{"label_depth": label_depths[-1], "document_depth": c} for c in document_depths[-2:]]
            ways += [{"softmax": "apart", "search": "two-sided", "label_temperature": t, **side}
                     for t in self.label_temperatures or LABEL_TEMPERATURES for side in sides]  # fmt: skip
        return [
            Voting(weight=0.5, temperature=tau, votes=votes, **way)  # type: ignore[arg-type]
            for votes in self.votes
            for tau in self.temperatures
            for way in ways
        ]


JOINING = Grid(
    search=("two-sided",),
    label_depths=(200,),
    document_depths=(100,),
    temperatures=(0.04, 0.06, 0.09),
    votes=("raw",),
    softmax=("apart",),
    label_temperatures=(0.05, 0.08, 0.12, 0.18, 0.27),
)
"""Settings in which the shares of joined towers are compared."""
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Shares of a tower beside those before it that are tried."""


def _useful(depths: Sequence[int], most: int) -> list[int]:
    """Depths up to the first one that takes everything."""
    ordered = sorted(set(depths))
    return [b for i, b in enumerate(ordered) if i == 0 or ordered[i - 1] < most]


@dataclass(frozen=True)
class Tuned:
    """What was chosen.

    Args:
        voting: how keys vote.
        objective: names of metrics whose mean was the highest.
        value: that mean, in percent.
        documents: validation documents that were looked at.
        tried: settings that were tried.
        front: the settings that no other beats in both the mean of P and the mean of PSP at 1, 3 and 5, P falling:
            their values and metrics.
        metrics: of the chosen setting.
    """

    voting: Voting
    objective: str
    value: float
    documents: int
    tried: int
    front: list[dict[str, Any]]
    metrics: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)


def parse_objective(objective: str) -> list[str]:
    """Names of metrics in an objective.

    Args:
        objective: metrics apart by commas; their mean counts.

    Raises:
        SettingsError: an unknown metric.
    """
    names = [name.strip() for name in objective.split(",") if name.strip()]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise SettingsError(
            f"the objective {objective!r} is not made of known metrics; give one or more, apart by commas, of "
            f"{', '.join(METRICS)}"
        )
    return names


def tune(
    memory: Memory,
    queries: Tensor,
    truth: sp.csr_array,
    label_weights: FloatArray,
    *,
    left_out: BoolArray | None = None,
    barred: sp.csr_array | None = None,
    objective: str = DEFAULT_OBJECTIVE,
    grid: Grid | None = None,
    tolerance: float = TOLERANCE,
    margin: float = MARGIN,
    until: float | None = None,
) -> Tuned:
    """Find the setting with the best mean of some metrics; of equals the one of the smallest weight.

    A setting is tried on all documents, BLOCK of them at a time, unless before that others beat it by more than a
    margin in all of the objective, P and PSP. Of settings that come near the best, the one with the highest R@100 is
    taken, since how deep is searched decides little about the first labels and much about the hundredth.

    Args:
        memory: keys of both kinds; how they vote at present does not matter.
        queries: (v, D) vectors of the validation documents.
        truth: (v, L) their labels, in the memory's numbers.
        label_weights: (L,) inverse propensities.
        left_out: (places,) document keys that must not vote: the validation documents themselves, and equal texts.
        barred: (v, L) labels that must not be predicted for a document, as `metrics.barred_labels` gives them.
        objective: metrics apart by commas, see METRICS.
        grid: what to try; None tries everything.
        tolerance: points of the mean that may be given up for a higher R@100; 0 for none.
        margin: points by which a setting may be behind after the first block of documents and be tried on the next;
            infinite to try every setting on all documents.
        until: when, by `time.monotonic`, no further BLOCK of documents is looked at; one is in any case.

    Raises:
        SettingsError: an unknown metric.
    """
    names = parse_objective(objective)
    grid = grid or Grid()
    keys = memory.n_labels, memory.n_documents - (0 if left_out is None else int(left_out.sum()))
    ways = grid.ways(*keys)
    deepest = [0, 0]
    for way in ways:
        deepest = [max(a, b) for a, b in zip(deepest, way.depths(), strict=True)]
    found = memory.search(queries, deepest[0], deepest[1], left_out=left_out)
    weights = np.array(sorted(grid.weights), dtype=np.float64)
    columns = [METRICS.index(name) for name in names]
    goal = _Goal(truth, label_weights, barred)
    values, seen = _values(memory, found, ways, weights, goal, columns, margin, until)
    again = _repeated(ways, weights)
    values[np.broadcast_to(again[:, None], values.shape)] = -1.0

    aim = values[:, columns].mean(axis=1)
    order = np.lexsort((np.repeat(np.arange(len(ways))[:, None], len(weights), 1).ravel(),
                        np.tile(weights, len(ways)), -aim.ravel().round(9)))  # fmt: skip
    chosen = int(order[0])

    def setting(at: int) -> Voting:
        way, weight = divmod(at, len(weights))
        return dataclasses.replace(ways[way], weight=float(weights[weight]))

    if tolerance > 0:
        few = slice(0, RECALL_DOCUMENTS)
        deep: dict[tuple[object, ...], tuple[float, int]] = {}
        for at in order[aim.flat[order] >= aim.flat[chosen] - tolerance].tolist():  # the best of each pair of depths
            way = ways[at // len(weights)]
            side = (way.search, way.softmax, *way.depths())
            if side not in deep:
                own = _measured(memory, found.rows(few), setting(at), goal.rows(few))
                deep[side] = own.get("R@100" if memory.n_labels >= 100 else "R@10", 0.0), at
        chosen = max(deep.values(), key=lambda entry: entry[0])[1]
    front: list[dict[str, Any]] = []
    for at in _front(values):
        front.append({"settings": _relevant(setting(at)), **_measured(memory, found, setting(at), goal)})
    metrics = _measured(memory, found, setting(chosen), goal)
    value = float(np.mean([metrics[name] for name in names]))
    return Tuned(setting(chosen), ",".join(names), value, seen, int((~again).sum()), front, metrics)


def _repeated(ways: Sequence[Voting], weights: FloatArray) -> BoolArray:
    """Settings that rank like another one, so that one of them is enough: (ways, weights).

    Where label keys alone vote, every way ranks like a two-sided search with one softmax, and where documents alone
    vote, a softmax apart does.
    """
    plain = np.array([way.search == "two-sided" and way.softmax == "together" for way in ways])
    apart = np.array([way.softmax == "apart" for way in ways])
    if not plain.any():
        return np.zeros((len(ways), len(weights)), dtype=bool)
    return (~plain[:, None] & (weights == 0)) | (apart[:, None] & (weights == 1))


def _values(
    memory: Memory,
    found: Found,
    ways: Sequence[Voting],
    weights: FloatArray,
    goal: _Goal,
    columns: Sequence[int],
    margin: float = np.inf,
    until: float | None = None,
) -> tuple[FloatArray, int]:
    """Every metric of every setting, and of how many documents.

    Args:
        memory: whose keys were found.
        found: the keys nearest to some documents.
        ways: settings but for the weight.
        weights: of the documents' votes, rising.
        goal: what the documents should get.
        columns: metrics of the objective, as places in METRICS.
        margin: as for `tune`.
        until: as for `tune`.

    Returns:
        (ways, METRICS, weights) percent, -1 of ways that fell behind, and the documents looked at.
    """
    sums = np.zeros((len(ways), len(METRICS), len(weights)))
    best = np.zeros(len(METRICS))
    kept = np.arange(len(ways))
    values = np.full_like(sums, -1.0)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for number, start in enumerate(range(0, len(found), BLOCK), 1):
            rows = slice(start, start + BLOCK)
            block = _Candidates(memory, found.rows(rows), goal.rows(rows))
            best += block.best
            gains = threads.map(lambda way, block=block: block.gains(ways[way], weights), kept)
            sums[kept] += np.stack(list(gains))
            so_far = 100 * sums[kept] / np.where(best > 0, best, 1.0)[:, None]
            if start + BLOCK >= len(found) or (until is not None and time.monotonic() >= until):
                values[kept] = so_far
                return values, min(start + BLOCK, len(found))
            if np.isfinite(margin):
                kept = kept[_near(so_far, columns, margin / np.sqrt(number))]
    return values, 0  # there is nothing to look at


def _near(values: FloatArray, columns: Sequence[int], margin: float) -> BoolArray:
    """Ways that at some weight are less than a margin behind: in the objective, or behind no setting in both P and PSP.

    Args:
        values: (ways, METRICS, weights) percent.
        columns: metrics of the objective.
        margin: points.

    Returns:
        (ways,).
    """
    aim = values[:, columns].mean(axis=1)
    near: BoolArray = (aim >= aim.max() - margin).any(axis=1)
    p, psp = (values[:, [METRICS.index(f"{name}@{k}") for k in KS]].mean(axis=1).ravel() for name in ("P", "PSP"))
    order = np.argsort(-p)
    best = np.append(-np.inf, np.maximum.accumulate(psp[order]))  # PSP among settings whose P is that far ahead
    beaten = best[np.searchsorted(-p[order], -(p + margin), side="right")] >= psp + margin
    return near | ~beaten.reshape(aim.shape).all(axis=1)


def best_shares(
    memory: Memory,
    queries: Tensor,
    dims: Sequence[int],
    shares: Sequence[float],
    truth: sp.csr_array,
    label_weights: FloatArray,
    *,
    left_out: BoolArray | None = None,
    barred: sp.csr_array | None = None,
    objective: str = DEFAULT_OBJECTIVE,
) -> tuple[float, ...]:
    """How much the towers of a joined model should count in its label keys.

    One tower after the other is added to those before it, with the share of SHARES that gives the best objective
    together with the documents' votes, in a few settings of a softmax apart.

    Args:
        memory: label keys of all towers side by side, times their present shares.
        queries: (v, D) vectors of the validation documents.
        dims: dimensions of each tower, D in all.
        shares: of each tower at present, none of them 0.
        truth: (v, L) labels of the validation documents, in the memory's numbers.
        label_weights: (L,) inverse propensities.
        left_out: (places,) document keys that must not vote.
        barred: (v, L) labels that must not be predicted for a document.
        objective: metrics apart by commas, see METRICS.

    Returns:
        A share for each tower, their sum 1.
    """
    columns = [METRICS.index(name) for name in parse_objective(objective)]
    ways = JOINING.ways(memory.n_labels, memory.n_documents)
    weights = np.array(JOINING.weights if memory.n_documents else (0.0,), dtype=np.float64)
    depths = ways[0].depths()
    parts = [part / share for part, share in zip(queries.split(list(dims), dim=1), shares, strict=True)]
    found = memory.search(queries, 0, depths[1], left_out=left_out)
    goal = _Goal(truth, label_weights, barred)
    chosen: tuple[float, ...] = (1.0,)
    for number in range(1, len(parts)):
        tried = []
        for share in SHARES:
            new = (*((1 - share) * x for x in chosen), share)
            scaled = [x * part for x, part in zip(new, parts, strict=False)]
            scaled += [torch.zeros_like(part) for part in parts[number + 1 :]]
            labels = memory.search(torch.cat(scaled, dim=1), depths[0], 0)
            both = dataclasses.replace(found, label_similarities=labels.label_similarities, labels=labels.labels)
            values, _ = _values(memory, both, ways, weights, goal, columns)
            best = round(float(values[:, columns].mean(axis=1).max()), 9)
            tried.append((best, -abs(share - 1 / (number + 1)), new))  # of equals the one nearest to an equal share
        chosen = max(tried)[2]
    return chosen


def tune_linear(
    memory: Memory,
    queries: Tensor,
    texts: Sequence[str],
    truth: sp.csr_array,
    label_weights: FloatArray,
    *,
    left_out: BoolArray | None = None,
    barred: sp.csr_array | None = None,
    objective: str = DEFAULT_OBJECTIVE,
) -> tuple[Voting, dict[str, float], float]:
    """By how much a linear classifier should change the votes.

    Args:
        memory: with a linear classifier; how its keys vote stays.
        queries: (v, D) vectors of the validation documents.
        texts: v validation documents.
        truth: (v, L) their labels, in the memory's numbers.
        label_weights: (L,) inverse propensities.
        left_out: (places,) document keys that must not vote.
        barred: (v, L) labels that must not be predicted for a document.
        objective: metrics apart by commas, see METRICS.

    Returns:
        How keys vote with the classifier, the metrics of that, and the points of the objective that it adds.
    """
    names, linear = parse_objective(objective), memory.linear
    assert linear is not None
    plain = dataclasses.replace(memory.voting, linear_strength=0.0, linear_base=0.0)
    found = memory.search(queries, *plain.depths(), left_out=left_out)
    goal = _Goal(truth, label_weights, barred)
    numbers, votes = memory.rank(found, plain, goal.depth(JUDGED))
    rows = memory.linear_rows(numbers)
    evidence = linear.evidence(linear.features(texts), rows)

    def measured(scores: npt.NDArray[np.float32]) -> dict[str, float]:
        return goal.measured(Predictions(numbers, scores))

    def aim(metrics: dict[str, float]) -> float:
        return float(np.mean([metrics[name] for name in names]))

    before = measured(votes)
    best, chosen = before, plain
    for strength, prior, base in itertools.product(STRENGTHS, PRIORS, BASES):
        own = measured(votes * np.exp(linear.exponents(evidence, rows, strength, prior, base)))
        if aim(own) > aim(best):
            best = own
            chosen = dataclasses.replace(plain, linear_strength=strength, linear_prior=prior, linear_base=base)
    return chosen, best, aim(best) - aim(before)


def _measured(memory: Memory, found: Found, voting: Voting, goal: _Goal) -> dict[str, float]:
    """The metrics of a setting, from the ranking that `Memory.predict` gives."""
    return goal.measured(Predictions(*memory.rank(found, voting, goal.depth(100))))


@dataclass(frozen=True, eq=False)
class _Goal:
    """What some validation documents should get.

    Args:
        truth: (v, L) their labels.
        label_weights: (L,) inverse propensities.
        barred: (v, L) labels that must not be predicted; None for none.
    """

    truth: sp.csr_array
    label_weights: FloatArray
    barred: sp.csr_array | None

    def rows(self, rows: slice) -> _Goal:
        """Some of the documents."""
        barred = None if self.barred is None else sp.csr_array(self.barred[rows])
        return _Goal(sp.csr_array(self.truth[rows]), self.label_weights, barred)

    def depth(self, wanted: int) -> int:
        """Labels to rank so that so many are left when those that must not be predicted are deleted."""
        longest = 0 if self.barred is None else int(np.diff(self.barred.indptr).max(initial=0))
        return min(wanted + longest, self.truth.shape[1])

    def measured(self, predictions: Predictions) -> dict[str, float]:
        """METRICS, R@10 and R@100 as far as there are labels, as `labelspace evaluate` gives them."""
        pairs = None if self.barred is None else np.stack(self.barred.nonzero(), axis=1)
        metrics = evaluate(predictions, self.truth, None, KS, filter_pairs=pairs, propensity=self.label_weights)
        return {name: metrics[name] for name in (*METRICS, "R@10", "R@100") if name in metrics}


def _relevant(voting: Voting) -> dict[str, Any]:
    """The settings that say something, given how is searched."""
    unused = ("label_depth", "document_depth") if voting.search == "joint" else ("depth",)
    unused = (*unused, *LINEAR, "scoring")
    return {
        name: value for name, value in dataclasses.asdict(voting).items() if name not in unused and value is not None
    }


def _flags(settings: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def described(voting: Voting) -> str:
    """How keys vote, as the flags of ``tune`` that would fix it.

    Args:
        voting: any.
    """
    return "similarity" if voting.scoring == "similarity" else _flags(_relevant(voting))


def _front(values: npt.NDArray[np.float64]) -> list[int]:
    """Flat numbers (way, weight) of the settings that none beats in both P and PSP; at most SHOWN, spread evenly."""
    p = values[:, [METRICS.index(f"P@{k}") for k in KS]].mean(axis=1).ravel()
    psp = values[:, [METRICS.index(f"PSP@{k}") for k in KS]].mean(axis=1).ravel()
    order = np.lexsort((-psp.round(9), -p.round(9)))
    above = np.maximum.accumulate(np.concatenate([[-1.0], psp[order]]))[:-1]
    front = order[psp[order] > above + 1e-9]
    if len(front) > SHOWN:  # evenly in P, both ends kept
        wanted = np.linspace(p[front[0]], p[front[-1]], SHOWN)
        places = {int(np.abs(p[front] - value).argmin()) for value in wanted}
        front = front[sorted(places)]
    return [int(at) for at in front]


class _Candidates:
    """Labels of some documents that a setting could rank among the best five, and the sums of votes of a setting.

    With A the votes of documents and Q those of label keys, the score is weight A + (1 - weight) Q. Of the labels with
    A alone, and of those with Q alone, only the best five of either can come among the best five, whatever the weight.
    """

    def __init__(self, memory: Memory, found: Found, goal: _Goal):
        truth, label_weights = goal.truth, goal.label_weights
        self.found = found
        n, a = found.labels.shape
        n_labels = memory.n_labels
        there = found.documents >= 0
        self.entry_key = np.flatnonzero(there.ravel())  # flat (row, rank) of the document keys
        counts, numbers, raw = memory.votes_of(found.documents.ravel()[self.entry_key], "raw")
        _, _, shared = memory.votes_of(found.documents.ravel()[self.entry_key], "normalized")
        self.entry_key = np.repeat(self.entry_key, counts)
        self.values = {"raw": raw, "normalized": shared}
        entry_pairs = self.entry_key // max(1, there.shape[1]) * n_labels + numbers
        key_rows, key_ranks = np.nonzero(found.labels >= 0)
        key_pairs = key_rows * n_labels + found.labels[key_rows, key_ranks]
        if goal.barred is not None and goal.barred.nnz:  # they vote, but for nothing that is ranked
            barred_rows, columns = goal.barred.nonzero()
            out = barred_rows.astype(np.int64) * n_labels + columns
            allowed = ~np.isin(entry_pairs, out)
            self.entry_key, entry_pairs = self.entry_key[allowed], entry_pairs[allowed]
            self.values = {name: values[allowed] for name, values in self.values.items()}
            allowed = ~np.isin(key_pairs, out)
            key_rows, key_ranks, key_pairs = key_rows[allowed], key_ranks[allowed], key_pairs[allowed]
        self.key_places = key_rows * a + key_ranks
        pairs, inverse = np.unique(np.concatenate([entry_pairs, key_pairs]), return_inverse=True)
        self.entry_pair, self.key_pair = inverse[: len(entry_pairs)], inverse[len(entry_pairs) :]
        self.size = len(pairs)
        has_a, has_q = np.zeros(self.size, dtype=bool), np.zeros(self.size, dtype=bool)
        has_a[self.entry_pair], has_q[self.key_pair] = True, True
        rows = pairs // n_labels
        self.tilt = np.append(1 - TILT * _rank_in_row(rows), 0.0)

        own_q = has_q[self.key_pair] & ~has_a[self.key_pair]  # in falling order within a row
        kept = self.key_pair[own_q][_rank_in_row(key_rows[own_q]) < max(KS)]
        self.either = _table(np.concatenate([np.flatnonzero(has_a & has_q), kept]), rows, n, self.size)
        self.documents_only = _table(np.flatnonzero(has_a & ~has_q), rows, n, self.size)

        true = sp.coo_array(truth)
        wanted = true.row.astype(np.int64) * n_labels + true.col
        at = np.minimum(np.searchsorted(pairs, wanted), max(0, self.size - 1))
        met = pairs[at] == wanted if self.size else np.zeros(len(wanted), dtype=bool)
        self.true_pair, self.true_row = at[met], true.row[met].astype(np.int64)
        sizes = np.bincount(true.row, minlength=n)
        weights = label_weights[true.col]
        ranked = np.lexsort((-weights, true.row))
        place = _rank_in_row(true.row[ranked])
        ideal = {k: _discounts(np.minimum(sizes, k)) for k in KS}
        self.true_gain = np.ones((len(METRICS), len(self.true_pair)))
        self.best = np.zeros(len(METRICS))
        for i, name in enumerate(METRICS):
            metric, k = name.split("@")
            if metric == "P":
                self.best[i] = n * int(k)
            elif metric == "nDCG":
                self.best[i] = n
                self.true_gain[i] = 1 / ideal[int(k)][self.true_row]
            else:
                self.best[i] = weights[ranked][place < int(k)].sum()
                self.true_gain[i] = weights[met]

    def gains(self, way: Voting, weights: FloatArray) -> FloatArray:
        """What the documents add to each metric, (metrics, weights)."""
        label_weights, document_weights, label_mask, document_mask = weigh(self.found, way)
        label_weights, document_weights = label_weights * label_mask, document_weights * document_mask
        q, a = np.zeros(self.size + 1), np.zeros(self.size + 1)
        q[self.key_pair] = label_weights.ravel()[self.key_places]
        cast = document_weights.ravel()[self.entry_key] * self.values[way.votes]
        a[: self.size] = np.bincount(self.entry_pair, weights=cast, minlength=self.size)
        a, q = a * self.tilt, q * self.tilt
        only = a[self.documents_only]
        if only.shape[1] > max(KS):
            only = np.partition(only, only.shape[1] - max(KS), axis=1)[:, -max(KS) :]
        both = self.either
        rivals_a = np.concatenate([a[both], only], axis=1)[self.true_row]
        rivals_q = np.concatenate([q[both], np.zeros_like(only)], axis=1)[self.true_row]
        true_a, true_q = a[self.true_pair], q[self.true_pair]
        above = _beaten(rivals_a - true_a[:, None], rivals_q - true_q[:, None], weights)
        scores = weights * true_a[:, None] + (1 - weights) * true_q[:, None]
        above[scores <= 0] = max(KS)  # no key voted for it
        sums = np.zeros((len(METRICS), len(weights)))
        discount = 1 / np.log2(np.arange(2, 3 + max(KS)))
        rank = np.minimum(above, max(KS))
        for i, name in enumerate(METRICS):
            metric, k = name.split("@")
            gain = np.where(np.arange(max(KS) + 1) < int(k), discount if metric == "nDCG" else 1.0, 0.0)
            sums[i] = self.true_gain[i] @ gain[rank]
        return sums


def _beaten(a: FloatArray, q: FloatArray, weights: FloatArray) -> IntArray:
    """How many rivals score higher at each weight: weight a + (1 - weight) q > 0.

    Args:
        a: (m, r) how much more votes of documents a rival has.
        q: (m, r) how much more votes of label keys.
        weights: (w,) rising.

    Returns:
        (m, w).
    """
    m, w = len(a), len(weights)
    rows = np.broadcast_to((w + 1) * np.arange(m)[:, None], a.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        equal = q / (q - a)  # where both score the same
    always = (a > 0) & (q > 0)
    rising = (a > 0) & ~always
    falling = (q > 0) & ~always
    begin = rows[rising] + np.searchsorted(weights, equal[rising], side="right")
    end = rows[falling] + np.searchsorted(weights, equal[falling], side="left")
    size = m * (w + 1)
    change = (np.bincount(begin, minlength=size) - np.bincount(end, minlength=size)).reshape(m, w + 1)
    change[:, 0] += (always | falling).sum(axis=1)
    found = np.cumsum(change, axis=1)[:, :w]
    found[:, weights == 1] = (a > 0).sum(axis=1)[:, None]  # nearly equal votes cross at a weight that rounds to 1
    return found


def _rank_in_row(rows: IntArray) -> IntArray:
    """Place of each entry among those of its row; rows are sorted."""
    counts = np.bincount(rows) if len(rows) else np.zeros(0, dtype=np.int64)
    return np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def _table(pairs: IntArray, rows: IntArray, n: int, filler: int) -> IntArray:
    """Pairs as a table with one row a document, filled up."""
    owner = rows[pairs]
    order = np.argsort(owner, kind="stable")
    rank = _rank_in_row(owner[order])
    table = np.full((n, int(rank.max(initial=-1)) + 1), filler, dtype=np.int64)
    table[owner[order], rank] = pairs[order]
    return table


def _discounts(counts: IntArray) -> FloatArray:
    """Gain of that many hits in the first places; 1 for none, which nothing is divided by."""
    running = np.concatenate([[1.0], np.cumsum(1 / np.log2(np.arange(2, 2 + max(KS))))])
    return np.asarray(running[counts])


def render(tuned: dict[str, Any]) -> str:
    """What was chosen and the front, for reading.

    Args:
        tuned: the result, as `Tuned.as_dict` gives it.
    """
    return "\n".join(_lines(tuned))


def _lines(tuned: dict[str, Any]) -> Iterator[str]:
    yield f"tried {tuned['tried']} settings on {tuned['documents']} validation documents, in percent"
    voting = Voting(**tuned["voting"])
    yield (
        f"settings that none beats in both P and PSP, the most precise first; * was chosen for {tuned['objective']}"
        + (", and is shown with the linear classifier, all others without" if voting.judged else "")
    )
    names = ("P@1", "P@3", "P@5", "PSP@1", "PSP@5", "R@100")
    yield "  " + "".join(f"{name:>7}" for name in names) + "  settings"
    chosen = {"settings": _relevant(voting), **tuned["metrics"]}
    rows = tuned["front"] if chosen in tuned["front"] else [chosen, *tuned["front"]]
    for row in rows:
        shown = _flags(row["settings"]) + (" --linear" if voting.judged and row == chosen else "")
        figures = "".join(f"{row[name]:>7.2f}" if name in row else f"{'':>7}" for name in names)
        yield f"{'*' if row == chosen else ' '} {figures}  {shown}"
