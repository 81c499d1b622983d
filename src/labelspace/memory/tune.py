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
import scipy.sparse as sp
import torch
from torch import Tensor

from ..errors import SettingsError
from ..types import Predictions
from .candidates import KS, METRICS, Candidates, Goal
from .grid import JOINING, SHARES, Grid, flags, relevant
from .keys import BoolArray
from .memory import RERANKED_LABELS, Memory
from .voting import FloatArray, Nearest, Query, Voting

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
"""Settings of the Pareto front that are shown, at most."""
STRENGTHS, PRIORS, BASES = (0.2, 0.4, 0.8, 1.4, 2.2), (1.0, 10.0, 100.0, 1000.0), (0.0, 0.2, 0.4)
"""Of a linear classifier; every combination is tried."""
LEAST_GAIN = 0.1
"""Points of the objective that a linear classifier must add to be kept."""


@dataclass(frozen=True)
class Tuned:
    """What was chosen.

    Args:
        voting: how keys vote.
        objective: names of metrics whose mean was the highest.
        value: that mean, in percent.
        documents: validation documents that were looked at.
        tried: settings that were tried.
        front: the Pareto front: settings that no other beats in both the mean of P and the mean of PSP at 1, 3 and 5, P
            falling, with their values and metrics.
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
    """Names of the metrics in an objective, which stand apart by commas; their mean counts.

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
    deepest = np.max([way.depths() for way in ways], axis=0).tolist()
    nearest = memory.search(Query(queries, left_out=left_out), *deepest)
    weights = np.array(sorted(grid.weights), dtype=np.float64)
    columns = [METRICS.index(name) for name in names]
    goal = Goal(truth, label_weights, barred)
    values, seen = _values(memory, nearest, ways, weights, goal, columns, margin, until)
    again = _repeated(ways, weights)
    values[np.broadcast_to(again[:, None], values.shape)] = -1.0

    aim = values[:, columns].mean(axis=1)
    order = np.lexsort((np.tile(weights, len(ways)), -aim.ravel().round(9)))  # stable: of equals the first way
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
                own = _measured(memory, nearest.rows(few), setting(at), goal.rows(few))
                deep[side] = own.get("R@100" if memory.n_labels >= 100 else "R@10", 0.0), at
        chosen = max(deep.values(), key=lambda entry: entry[0])[1]
    front = [
        {"settings": relevant(setting(at)), **_measured(memory, nearest, setting(at), goal)}
        for at in _pareto_front(values)
    ]
    metrics = _measured(memory, nearest, setting(chosen), goal)
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
    nearest: Nearest,
    ways: Sequence[Voting],
    weights: FloatArray,
    goal: Goal,
    columns: Sequence[int],
    margin: float = np.inf,
    until: float | None = None,
) -> tuple[FloatArray, int]:
    """Every metric of every setting in percent (ways, METRICS, weights), -1 of ways that fell behind, and of how many
    documents; other arguments as for `tune`."""
    sums = np.zeros((len(ways), len(METRICS), len(weights)))
    best = np.zeros(len(METRICS))
    kept = np.arange(len(ways))
    values = np.full_like(sums, -1.0)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for number, start in enumerate(range(0, len(nearest), BLOCK), 1):
            rows = slice(start, start + BLOCK)
            block = Candidates(memory, nearest.rows(rows), goal.rows(rows))
            best += block.best
            gains = threads.map(lambda way, block=block: block.gains(ways[way], weights), kept)
            sums[kept] += np.stack(list(gains))
            so_far = 100 * sums[kept] / np.where(best > 0, best, 1.0)[:, None]
            if start + BLOCK >= len(nearest) or (until is not None and time.monotonic() >= until):
                values[kept] = so_far
                return values, min(start + BLOCK, len(nearest))
            if np.isfinite(margin):
                kept = kept[_near(so_far, columns, margin / np.sqrt(number))]
    return values, 0  # there is nothing to look at


def _near(values: FloatArray, columns: Sequence[int], margin: float) -> BoolArray:
    """Ways (ways,) that at some weight are less than a margin behind: in the objective, or behind no setting in both P
    and PSP."""
    aim = values[:, columns].mean(axis=1)
    near: BoolArray = (aim >= aim.max() - margin).any(axis=1)
    p, psp = _mean_p_and_psp(values)
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
    """How much the towers of an ensemble should count in its label keys; other arguments as for `tune`.

    One tower after the other is added to those before it, with the share of SHARES that gives the best objective
    together with the documents' votes, in a few settings of a softmax apart. ``dims`` are the dimensions of each tower,
    D in all, and ``shares`` its present shares, none of them 0, which the label keys are multiplied by.

    Returns:
        A share for each tower, their sum 1.
    """
    columns = [METRICS.index(name) for name in parse_objective(objective)]
    ways = JOINING.ways(memory.n_labels, memory.n_documents)
    weights = np.array(JOINING.weights if memory.n_documents else (0.0,), dtype=np.float64)
    depths = ways[0].depths()
    parts = [part / share for part, share in zip(queries.split(list(dims), dim=1), shares, strict=True)]
    nearest = memory.search(Query(queries, left_out=left_out), 0, depths[1])
    goal = Goal(truth, label_weights, barred)
    chosen: tuple[float, ...] = (1.0,)
    for number in range(1, len(parts)):
        tried = []
        for share in SHARES:
            new = (*((1 - share) * x for x in chosen), share)
            scaled = [x * part for x, part in zip(new, parts, strict=False)]
            scaled += [torch.zeros_like(part) for part in parts[number + 1 :]]
            labels = memory.search(Query(torch.cat(scaled, dim=1)), depths[0], 0)
            both = dataclasses.replace(nearest, label_similarities=labels.label_similarities, labels=labels.labels)
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
    """By how much the linear classifier of a memory should change the votes; arguments as for `tune`.

    Returns:
        How keys vote with the classifier, the metrics of that, and the points of the objective that it adds.
    """
    names, linear = parse_objective(objective), memory.linear
    assert linear is not None
    plain = dataclasses.replace(memory.voting, linear_strength=0.0, linear_base=0.0)
    nearest = memory.search(Query(queries, left_out=left_out), *plain.depths())
    goal = Goal(truth, label_weights, barred)
    numbers, votes = memory.rank(nearest, plain, goal.depth(RERANKED_LABELS))
    rows = memory.linear_rows(numbers)
    evidence = linear.evidence(linear.features(texts), rows)

    def aim(metrics: dict[str, float]) -> float:
        return float(np.mean([metrics[name] for name in names]))

    best = before = goal.measured(Predictions(numbers, votes))
    chosen = plain
    for strength, prior, base in itertools.product(STRENGTHS, PRIORS, BASES):
        scores = votes * np.exp(linear.exponents(evidence, rows, strength, prior, base))
        metrics = goal.measured(Predictions(numbers, scores))
        if aim(metrics) > aim(best):
            best = metrics
            chosen = dataclasses.replace(plain, linear_strength=strength, linear_prior=prior, linear_base=base)
    return chosen, best, aim(best) - aim(before)


def _measured(memory: Memory, nearest: Nearest, voting: Voting, goal: Goal) -> dict[str, float]:
    """The metrics of a setting, from the ranking that `Memory.predict` gives."""
    return goal.measured(Predictions(*memory.rank(nearest, voting, goal.depth(100))))


def _mean_p_and_psp(values: FloatArray) -> Iterator[FloatArray]:
    """The mean of P and the mean of PSP over KS, of every setting (ways * weights,)."""
    return (values[:, [METRICS.index(f"{name}@{k}") for k in KS]].mean(axis=1).ravel() for name in ("P", "PSP"))


def _pareto_front(values: FloatArray) -> list[int]:
    """Flat numbers (way, weight) of the settings that none beats in both P and PSP; at most SHOWN, spread evenly."""
    p, psp = _mean_p_and_psp(values)
    order = np.lexsort((-psp.round(9), -p.round(9)))
    above = np.maximum.accumulate(np.concatenate([[-1.0], psp[order]]))[:-1]
    front = order[psp[order] > above + 1e-9]
    if len(front) > SHOWN:  # evenly in P, both ends kept
        wanted = np.linspace(p[front[0]], p[front[-1]], SHOWN)
        places = {int(np.abs(p[front] - value).argmin()) for value in wanted}
        front = front[sorted(places)]
    return [int(at) for at in front]


def render(tuned: dict[str, Any]) -> str:
    """What was chosen and the Pareto front, for reading, from what `Tuned.as_dict` gives."""
    voting = Voting(**tuned["voting"])
    names = ("P@1", "P@3", "P@5", "PSP@1", "PSP@5", "R@100")
    kind = "training documents, which the encoder knows" if tuned.get("learnt") else "validation documents"
    lines = [
        f"tried {tuned['tried']} settings on {tuned['documents']} {kind}, in percent",
        f"settings that none beats in both P and PSP, the most precise first; * was chosen for {tuned['objective']}"
        + (", and is shown with the linear classifier, all others without" if voting.judged else ""),
        "  " + "".join(f"{name:>7}" for name in names) + "  settings",
    ]
    chosen = {"settings": relevant(voting), **tuned["metrics"]}
    rows = tuned["front"] if chosen in tuned["front"] else [chosen, *tuned["front"]]
    for row in rows:
        shown = flags(row["settings"]) + (" --linear" if voting.judged and row == chosen else "")
        figures = "".join(f"{row[name]:>7.2f}" if name in row else f"{'':>7}" for name in names)
        lines.append(f"{'*' if row == chosen else ' '} {figures}  {shown}")
    return "\n".join(lines)
