"""The first run: clinical phrases coded to ICD-10-CM, from data inside a package."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..errors import MissingExtraError
from ..types import Corpus, Dataset, Labels

TEST_SHARE, VALID_SHARE = 0.1, 0.05
NAME, FORMAT = "icd-10-cm", "quickstart"


def made_by_quickstart(folder: Path) -> bool:
    """Whether a folder holds the model of an earlier quickstart, which another one makes again."""
    try:
        manifest = json.loads((folder.expanduser() / "manifest.json").read_text(encoding="utf-8"))
        data = manifest["info"]["data"]
        return bool((data["name"], data["options"]["format"]) == (NAME, FORMAT) and len(manifest["history"]) == 0)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def icd10cm(seed: int = 0) -> Dataset:
    """ICD-10-CM as an extreme classification set.

    Documents are the inclusion terms and includes notes of the codes (one document for notes of the same wording);
    labels are the codes from category level down to six characters, their texts the descriptions; a document's labels
    are its code and the code's ancestors among the labels. A seeded part of the documents is the test set.

    Args:
        seed: of the split.

    Raises:
        MissingExtraError: the package simple-icd-10-cm is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import simple_icd_10_cm as icd
    except ImportError as error:
        raise MissingExtraError("the quickstart", "simple-icd-10-cm", "quickstart") from error
    codes = [
        code
        for code in dict.fromkeys(icd.get_all_codes(True))  # a block of one category comes under the same code
        if icd.is_category_or_subcategory(code) and len(code.replace(".", "")) <= 6
    ]
    number = {code: i for i, code in enumerate(codes)}
    labels = Labels(codes, [icd.get_description(code) for code in codes])

    documents: dict[str, tuple[str, set[int]]] = {}
    for code in codes:
        targets = {number[c] for c in [code, *icd.get_ancestors(code)] if c in number}
        for text in icd.get_inclusion_term(code) + icd.get_includes(code):
            documents.setdefault(text.casefold(), (text, set()))[1].update(targets)

    texts = [text for text, _ in documents.values()]
    indptr = np.cumsum([0] + [len(numbers) for _, numbers in documents.values()])
    indices = np.concatenate([np.sort(np.fromiter(numbers, dtype=np.int64)) for _, numbers in documents.values()])
    truth = sp.csr_array((np.ones(len(indices), np.float32), indices, indptr), shape=(len(texts), len(codes)))
    whole = Corpus([f"phrase-{i}" for i in range(len(texts))], texts, truth)

    order = np.random.default_rng(seed).permutation(len(texts))
    cut = int(TEST_SHARE * len(texts))
    test, train = whole.rows(np.sort(order[:cut])), whole.rows(np.sort(order[cut:]))
    held = np.sort(np.random.default_rng([seed, 1]).permutation(len(train))[: int(VALID_SHARE * len(train))])
    options: dict[str, Any] = {"format": FORMAT, "seed": seed}
    return Dataset(NAME, labels, train, train.rows(held), test, held, options)
