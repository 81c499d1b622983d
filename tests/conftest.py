"""One toy corpus and one download-free transformer, shared by all tests."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from processors import pretend, product_seconds
from snippets import Runner, Server, shared_cache

from labelspace.base.rates import measured_once

pretend()
torch.set_num_threads(1)  # the tests are small, and run side by side
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

KINDS = ["oak", "rose", "wheat", "moss", "fern", "vine"]
TRAITS = ["red", "tall", "wild", "dry"]
NOISE = "the of a study notes on some old new very long short history guide".split()


NUMERIC = {
    "attention", "encoders", "label_heads", "indexes", "linear", "losses", "memory", "metrics", "negatives", "optim",
    "packed", "pools",
}  # fmt: skip
"""Files whose tests compare numbers; test_processors.py runs them as another processor would. What trains whole models
takes too long for that, and so do these:"""

SLOW = {
    "test_a_static_folder_is_read_without_sentence_transformers", "test_it_is_weighed_anew_and_dropped",
    "test_probabilities_and_chosen_labels_follow_the_words", "test_the_commands",
    "test_the_order_of_keys_does_not_mislead_the_bar", "test_words_are_always_among_the_reasons",
}  # fmt: skip

FIRST = ("test_docs.py", "test_readme.py", "test_quickstart.py", "test_bench.py", "test_processors.py", "test_study.py")
"""The longest tests, which go first: one that begins last would run alone. All that look at every token of minilm are
among them, side by side in one process, since they share what that gives."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of numbers, and begin with the longest."""
    for item in items:
        name = item.name.partition("[")[0]
        if item.path.stem.removeprefix("test_") in NUMERIC and name not in SLOW:
            item.add_marker(pytest.mark.numeric)
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["LABELSPACE_CACHE"] = str(shared_cache(tmp_path_factory))
    measured_once("products", product_seconds)  # kept there, so that no noise chooses the precision of vectors


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)  # so that no test depends on those before it, which differ from run to run


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What the commands of README and docs are forked from."""
    with Server(tmp_path_factory.mktemp("pages")) as server:
        yield server


@pytest.fixture
def forked(page_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Runs ``labelspace`` and ``python`` in processes of their own, which need not load torch anew."""
    folder = tmp_path_factory.mktemp("forked") / "here"
    folder.mkdir()
    with Runner(page_server, folder, shared_cache(tmp_path_factory)) as runner:
        yield runner


def toy_rows(count: int, seed: int) -> tuple[list[str], list[list[int]]]:
    """Texts about plants: a kind, one or two traits, and noise; labels are 'trait kind' pairs."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(count):
        kind = int(rng.integers(len(KINDS)))
        traits = rng.choice(len(TRAITS), int(rng.integers(1, 3)), replace=False)
        words = [KINDS[kind], *(TRAITS[t] for t in traits), *rng.choice(NOISE, 4)]
        texts.append(" ".join(rng.permutation(words)))
        labels.append(sorted(kind * len(TRAITS) + int(t) for t in traits))
    return texts, labels


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy corpus as an LF folder: 300 + 80 documents, 25 labels, the last never used."""
    folder = tmp_path_factory.mktemp("toy")
    make_toy_folder(folder)
    return folder


def make_toy_folder(folder: Path) -> None:
    """Write the toy corpus.

    Args:
        folder: an existing, empty one.
    """
    for name, count, seed in (("trn", 300, 0), ("tst", 80, 1)):
        with (folder / f"{name}.json").open("w") as file:
            for i, (text, labels) in enumerate(zip(*toy_rows(count, seed), strict=True)):
                row = {"uid": f"{name}{i}", "title": text, "content": "", "target_ind": labels}
                file.write(json.dumps({**row, "target_rel": [1.0] * len(labels)}) + "\n")
    with (folder / "lbl.json").open("w") as file:
        for i, text in enumerate([f"{t} {k}" for k in KINDS for t in TRAITS] + ["blue stone"]):
            file.write(json.dumps({"uid": f"L{i}", "title": text, "content": ""}) + "\n")


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: a BERT of two narrow layers with random weights."""
    return make_tiny_transformer(tmp_path_factory.mktemp("tiny"))


def make_tiny_transformer(folder: Path) -> Path:
    """Write the tiny transformer, and return its folder.

    Args:
        folder: an existing, empty one; what is returned is in it.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({*KINDS, *TRAITS, *NOISE, "blue", "stone"})
    letters = [f"{p}{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789" for p in ("", "##")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *words[::2]]
    (folder / "raw").mkdir()
    (folder / "raw" / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "raw" / "vocab.txt"), model_max_length=32)
    tokenizer.save_pretrained(folder / "raw")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=40,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "raw")
    transformer = Transformer(str(folder / "raw"))
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu")
    model.save(str(folder / "st"), create_model_card=False)
    return folder / "st"


def rounding(terms: int, scale: float = 1.0) -> float:
    """How far float32 may leave a sum from the exact one, and so what two ways to the same sum may differ by.

    Processors add in another order and some fuse products with sums, so no test can ask for less. Roundings of single
    terms are like a random walk, hence the root; eight of them hold what was rounded before the sum.

    Args:
        terms: of the sum; of sums that follow each other all of them.
        scale: the largest number that the sum may come to, or pass on its way.
    """
    return 8 * float(np.finfo(np.float32).eps) * terms**0.5 * scale


TINY = rounding(2 * 5 * 48)
"""For the unit vectors of the tiny transformer, and their products: two layers of five sums of up to 48 terms."""

VOTES = TINY / 0.05
"""For scores of a memory: votes are a softmax of such products over the temperature."""


class Clock:
    """A clock that stands still but for what a test lets it go on: the speed of a machine decides nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def go_on(self, seconds: float) -> None:
        """Let time go by.

        Args:
            seconds: of it.
        """
        self.now += seconds


def random_truth(rng: np.random.Generator, n: int, count: int, density: float = 0.2) -> sp.csr_array:
    """A random 0/1 truth matrix (n, count)."""
    return sp.csr_array((rng.random((n, count)) < density).astype(np.float32))
