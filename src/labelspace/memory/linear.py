"""A linear classifier beside the keys: for each label a row of weights on the words of a text (one-vs-all on tf-idf).

Vectors of some hundred dimensions tell what a text is about, and lose which words it has. For labels with many
documents a few words often decide, which is what linear methods live by (DiSMEC, Parabel, XR-Linear). Here a row is
learned to tell the documents of its label from those that have neighbours with the label, and from others that are
drawn; afterwards it reranks the labels that the keys found:

    evidence of label l = log s(w_l x + b_l) - log p_l
    score of label l    = votes * exp(strength * n_l / (n_l + prior) * evidence + base * (log p_l - log p))

with s the logistic function, n_l the documents of the label, p_l their share among all that its row learned from, and p
that share over all rows. The evidence is how much likelier the label is with these words than without looking at them,
so it moves a score up or down; p_l tells labels that neighbours often have in vain. Labels without a row keep their
votes. What is multiplied is chosen on validation documents.

Letters: N documents, L labels, R rows, F terms, K candidates of a text.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import regex
import scipy.sparse as sp
import torch
from safetensors.torch import load_file, save_file

from ..base.machine import require_memory
from ..base.strings import Strings
from ..base.words import WORD, composed
from .keys import spread, strings_as_tensors, strings_from_tensors

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

UNSPACED = (
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    r"\u3005\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"  # Japanese, Chinese
)
"""Scripts that put no blanks between words; each of their characters counts as a word."""
OLD_TOKENS = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]{{2,}}")
"""Of classifiers that were written before words held their marks."""
TOKENS = regex.compile(f"[{UNSPACED}]|[[{WORD}_]--[{UNSPACED}]]{{2,}}", regex.V1)
"""Words of two signs at least."""
WORDS_VERSION = 2
"""Of what a word is, in the files of classifiers; those without it are of the old tokens."""


def _folded(text: str) -> str:
    """A text without case, in the form that words are compared in."""
    return composed(text.lower())


TERMS: dict[str, Any] = {
    "preprocessor": _folded,
    "tokenizer": TOKENS.findall,
    "token_pattern": None,
    "ngram_range": (1, 2),
    "sublinear_tf": True,
    "dtype": np.float32,
}
"""Words and pairs of neighbours, logarithmic counts, rows of unit length."""
LEAST_DOCUMENTS, MOST_TERMS = 2, 500_000
"""Documents that have a term, at least; of more terms the most frequent are kept."""
LEAST_POSITIVES = 3
"""Labels of fewer documents get no row."""
NEGATIVES = 20
"""Labels of its neighbours that a document may be confused with, at most, and as many drawn by their frequency."""
NEIGHBOURS, MOST_SEARCHED = 50, 200_000
"""Documents that are asked for their labels, and documents whose neighbours are looked for, at most."""
SMOOTHING = 5.0
"""Documents with the mean share of own ones that are added to those of each row."""
MOST_PAIRS = 60_000
"""Documents that a row learns from, at most."""
COST = 10.0
"""What the loss of one document weighs against half the squared length of the row."""
ITERATIONS = 15
ENTRIES = 3_000_000
"""Terms of documents in the problem of several rows that is solved at a time."""
BLOCK = 1_000_000
"""Terms of candidates that are looked up at a time."""
ARRAYS = ("idf", "places", "weights", "bias", "base", "counts", "overall")
FLOOR = -8.0
"""Least evidence; words never rule a label out altogether."""


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """Rows of weights on terms, for the labels that had enough documents.

    Args:
        terms: F terms.
        idf: (F,) float32 their weights in a text.
        ids: R label ids.
        places: (nnz,) int64 rising, row * F + term of each weight.
        weights: (nnz,) float32.
        bias: (R,) float32.
        base: (R,) float32 log of the share of its own documents among those that a row learned from, smoothed.
        counts: (R,) float32 documents of the label.
        overall: (1,) float32 log of that share over all rows.
    """

    terms: Strings
    idf: FloatArray
    ids: Strings
    places: IntArray
    weights: FloatArray
    bias: FloatArray
    base: FloatArray
    counts: FloatArray
    overall: FloatArray
    words_version: int = WORDS_VERSION

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def _vectorizer(self) -> TfidfVectorizer:
        from sklearn.feature_extraction.text import TfidfVectorizer

        tokens = TOKENS.findall if self.words_version == WORDS_VERSION else OLD_TOKENS.findall
        vocabulary = {term: i for i, term in enumerate(self.terms)}
        vectorizer = TfidfVectorizer(**{**TERMS, "tokenizer": tokens}, vocabulary=vocabulary)
        vectorizer.idf_ = self.idf.astype(np.float64)
        return vectorizer

    def features(self, texts: Sequence[str]) -> sp.csr_array:
        """(n, F) float32 tf-idf of n texts, read whole; rows of unit length, or empty where no term is known."""
        return sp.csr_array(self._vectorizer.transform(texts))

    def evidence(self, features: sp.csr_array, rows: IntArray) -> FloatArray:
        """How much likelier labels are for these texts than for any text they might be confused on.

        Args:
            features: (n, F) of the texts.
            rows: (n, K) rows of the candidates, -1 for labels without one.

        Returns:
            (n, K) float32 logarithms of likelihood ratios, 0 for labels without a row.
        """
        out = np.zeros(rows.shape, dtype=np.float32)
        texts, columns = (rows >= 0).nonzero()
        own = rows[texts, columns]
        ends = np.cumsum(np.diff(features.indptr)[texts])
        start = 0
        while start < len(own):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + BLOCK, side="right")))
            part = slice(start, stop)
            out[texts[part], columns[part]] = self._evidence(features, texts[part], own[part])
            start = stop
        return out

    def _evidence(self, features: sp.csr_array, texts: IntArray, rows: IntArray) -> FloatArray:
        pairs, terms, values = _entries(features, texts)
        products = self._weights_at(rows[pairs], terms) * values
        z = np.bincount(pairs, weights=products, minlength=len(rows)) + self.bias[rows]
        raised = -np.logaddexp(0.0, -z) - self.base[rows]
        return np.maximum(raised, FLOOR).astype(np.float32)

    def _weights_at(self, rows: IntArray, terms: IntArray) -> FloatArray:
        """Weights of some rows on some terms, 0 where a row has none."""
        if not len(self.places):
            return np.zeros(len(rows), dtype=np.float32)
        wanted = rows * len(self.terms) + terms
        at = np.searchsorted(self.places, wanted)
        at[at == len(self.places)] = 0
        return np.where(self.places[at] == wanted, self.weights[at], np.float32(0))

    def strongest_terms(self, features: sp.csr_array, row: int, most: int = 3) -> list[str]:
        """The terms of a text (1, F) that say most for or against the label of a row, the strongest first."""
        terms = features.indices.astype(np.int64)
        shares = self._weights_at(np.full(len(terms), row, dtype=np.int64), terms) * features.data
        order = [i for i in np.argsort(-np.abs(shares), kind="stable")[:most].tolist() if shares[i]]
        return [("" if shares[i] > 0 else "not ") + self.terms[int(terms[i])] for i in order]

    def exponents(self, evidence: FloatArray, rows: IntArray, strength: float, prior: float, base: float) -> FloatArray:
        """Logarithms of what votes are multiplied by, (n, K) float32, 0 for labels without a row.

        Args:
            evidence: (n, K) as `evidence` gives it.
            rows: (n, K) rows, -1 for labels without one.
            strength: of the evidence for labels with very many documents.
            prior: documents with which a label's evidence counts half as much.
            base: by how much it counts how often the row's labels were true.
        """
        if not len(self):
            return np.zeros(rows.shape, dtype=np.float32)
        at = np.maximum(rows, 0)
        counts = self.counts[at]
        whole = strength * counts / (counts + prior) * evidence + base * (self.base[at] - self.overall[0])
        return np.where(rows >= 0, whole, 0).astype(np.float32)

    def write(self, file: Path) -> None:
        """Write a safetensors file."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        tensors["words_version"] = torch.tensor([self.words_version])
        save_file({**tensors, **strings_as_tensors("terms", self.terms), **strings_as_tensors("ids", self.ids)}, file)

    @classmethod
    def open(cls, file: Path) -> LinearClassifier:
        """Read what `write` wrote.

        Raises:
            OSError, SafetensorError, KeyError, ValueError: missing or damaged.
        """
        tensors = load_file(file)
        arrays = {name: tensors[name].numpy() for name in ARRAYS}
        version = int(tensors["words_version"]) if "words_version" in tensors else 1
        if version not in (1, WORDS_VERSION):
            raise ValueError(f"its words are of version {version}, which only a later release knows")
        terms, ids = (strings_from_tensors(name, tensors) for name in ("terms", "ids"))
        new = cls(terms, ids=ids, **arrays, words_version=version)
        rows = {len(new.ids), len(new.bias), len(new.base), len(new.counts)}
        if len(rows) > 1 or len(new.places) != len(new.weights) or len(new.idf) != len(new.terms):
            raise ValueError("its parts do not fit together")
        return new


def fit(
    texts: Sequence[str],
    targets: sp.csr_array,
    confused: IntArray,
    ids: Sequence[str],
    *,
    threads: int = 1,
    seed: int = 0,
) -> LinearClassifier | None:
    """Learn the rows.

    Each label's row minimises, over its documents and those that it is to be told from, COST times the logistic loss
    plus half its squared length, by L-BFGS. It has weights for the terms of its own documents alone.

    Args:
        texts: N documents.
        targets: (N, L) their labels.
        confused: (N, S) labels that a document may be taken to have, true ones among them or not, -1 for none.
        ids: L label ids.
        threads: to compute with.
        seed: of the drawn labels.

    Returns:
        The classifier; None where no term or no label is frequent enough.

    Raises:
        ResourceError: the pairs of documents and labels would not fit into memory.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    true = sp.csr_array(targets > 0)
    n, n_labels = true.shape
    needed = 40 * (n * (confused.shape[1] + NEGATIVES) + true.nnz)
    require_memory(needed, f"a linear classifier on {n} documents", "leave it out with --no-linear")
    vectorizer = TfidfVectorizer(**TERMS, min_df=LEAST_DOCUMENTS, max_features=MOST_TERMS)
    try:
        features = sp.csr_array(vectorizer.fit_transform(texts))
    except ValueError:  # no term is left
        logger.info("no linear classifier is learned: no word is in %d documents", LEAST_DOCUMENTS)
        return None
    counts = np.bincount(true.indices, minlength=n_labels)
    labels = np.flatnonzero(counts >= LEAST_POSITIVES)
    if not len(labels):
        logger.info("no linear classifier is learned: no label has %d documents", LEAST_POSITIVES)
        return None
    row_of = np.full(n_labels, -1, dtype=np.int64)
    row_of[labels] = np.arange(len(labels))
    rows, documents, own = _pairs(true, confused, row_of, counts, seed)
    starts = np.searchsorted(rows, np.arange(len(labels) + 1))
    sizes = np.concatenate([[0], np.cumsum(np.diff(features.indptr)[documents])])[starts]

    def solve(part: tuple[int, int]) -> tuple[IntArray, FloatArray, FloatArray]:
        first, last = part
        of = slice(starts[first], starts[last])
        places, weights, bias = solved(features, documents[of], rows[of] - first, own[of], last - first)
        return places + first * features.shape[1], weights, bias

    with ThreadPoolExecutor(max(1, threads)) as pool:
        places, weights, bias = zip(*pool.map(solve, _parts(sizes)), strict=True)
    totals, hits = np.diff(starts), np.bincount(rows[own], minlength=len(labels))
    overall = hits.sum() / totals.sum()
    return LinearClassifier(
        terms=Strings.of(vectorizer.get_feature_names_out().tolist()),
        idf=vectorizer.idf_.astype(np.float32),
        ids=Strings.of([ids[label] for label in labels.tolist()]),
        places=np.concatenate(places),
        weights=np.concatenate(weights),
        bias=np.concatenate(bias),
        base=np.log((hits + SMOOTHING * overall) / (totals + SMOOTHING)).astype(np.float32),
        counts=counts[labels].astype(np.float32),
        overall=np.log([overall]).astype(np.float32),
    )


def _pairs(
    true: sp.csr_array, confused: IntArray, row_of: IntArray, counts: IntArray, seed: int
) -> tuple[IntArray, IntArray, npt.NDArray[np.bool_]]:
    """Rows and the documents that they learn from, by row and document, and whether these are their own."""
    n, rng = true.shape[0], np.random.default_rng(seed)
    of_documents = np.repeat(np.arange(n), np.diff(true.indptr))
    drawn = rng.choice(len(counts), size=(n, NEGATIVES), p=counts / counts.sum())
    taken = np.concatenate([confused, drawn], axis=1)
    rows = np.where(taken >= 0, row_of[taken], -1).ravel()
    places = (rows * n + np.repeat(np.arange(n), taken.shape[1]))[rows >= 0]
    own_rows = row_of[true.indices]
    own_places = np.sort((own_rows * n + of_documents)[own_rows >= 0])
    places = np.unique(np.concatenate([places, own_places]))
    own = own_places[np.minimum(np.searchsorted(own_places, places), len(own_places) - 1)] == places
    rows, documents = np.divmod(places, n)
    totals = np.bincount(rows, minlength=len(row_of))
    if totals.max() > MOST_PAIRS:
        kept = rng.random(len(rows)) * totals[rows] < MOST_PAIRS
        rows, documents, own = rows[kept], documents[kept], own[kept]
    return rows, documents, own


def _parts(sizes: IntArray) -> list[tuple[int, int]]:
    """Runs of rows of about ENTRIES entries each; ``sizes`` (R + 1,) counts those before each row."""
    parts, first, last = [], 0, len(sizes) - 1
    while first < last:
        end = int(np.searchsorted(sizes, sizes[first] + ENTRIES, side="right")) - 1
        parts.append((first, min(last, max(first + 1, end))))
        first = parts[-1][1]
    return parts


def solved(
    features: sp.csr_array, documents: IntArray, rows: IntArray, own: npt.NDArray[np.bool_], n_rows: int
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Rows that tell their documents from others: the problems of several rows, solved as one.

    Args:
        features: (N, F) float32.
        documents: (m,) the document of each pair.
        rows: (m,) the row of each pair, rising.
        own: (m,) whether the document has the row's label.
        n_rows: R.

    Returns:
        places (nnz,) row * F + term, rising; weights (nnz,); bias (R,).
    """
    from scipy.optimize import minimize

    pairs, terms, values = _entries(features, documents)
    wanted = rows[pairs] * features.shape[1] + terms
    places = np.unique(wanted[own[pairs]])
    at = np.searchsorted(places, wanted)
    at[at == len(places)] = 0
    kept = places[at] == wanted if len(places) else np.zeros(len(wanted), dtype=bool)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(pairs[kept], minlength=len(documents)))])
    known = sp.csr_array((values[kept], at[kept], indptr), shape=(len(documents), len(places)))
    signs = np.where(own, np.float32(1), np.float32(-1))

    # Weights are measured in units in which the loss bends alike along all of them, where every document has the share
    # of its row for its probability, and biases begin there; without this, frequent labels hold up all others.
    totals = np.bincount(rows, minlength=n_rows) + 1.0
    shares = (np.bincount(rows[own], minlength=n_rows) + 0.5) / totals
    bends = COST * shares * (1 - shares)
    squares = sp.csr_array((known.data**2, known.indices, known.indptr), shape=known.shape)
    units = (1 / np.sqrt(squares.T @ bends[rows] + 1)).astype(np.float32)
    bias_units = (1 / np.sqrt(bends * totals + 1e-3)).astype(np.float32)
    bias_start = np.log(shares / (1 - shares)).astype(np.float32)
    known.data *= units[known.indices]
    transposed = known.T.tocsr()

    def objective(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        scaled, bias = point[: len(places)].astype(np.float32), point[len(places) :].astype(np.float32)
        margins = signs * (known @ scaled + (bias_start + bias * bias_units)[rows])
        slopes = -COST * signs / (1 + np.exp(np.minimum(margins, 60)))
        weights = scaled * units
        value = COST * float(np.logaddexp(0, -margins).sum()) + 0.5 * float(weights @ weights)
        downhill = transposed @ slopes + weights * units
        bias_downhill = np.bincount(rows, weights=slopes, minlength=n_rows) * bias_units
        return value, np.concatenate([downhill, bias_downhill]).astype(np.float64)

    start = np.zeros(len(places) + n_rows)
    best = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS, "maxcor": 5}).x
    best = best.astype(np.float32)
    return places, best[: len(places)] * units, bias_start + best[len(places) :] * bias_units


def _entries(features: sp.csr_array, rows: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
    """The entries of some rows end to end: which of the rows, column, value."""
    counts, at = spread(features.indptr.astype(np.int64), rows)
    return np.repeat(np.arange(len(rows)), counts), features.indices[at].astype(np.int64), features.data[at]
