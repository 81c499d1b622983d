"""One toy corpus and one download-free transformer, shared by all tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

torch.set_num_threads(1)  # the tests are small, and run side by side
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

KINDS = ["oak", "rose", "wheat", "moss", "fern", "vine"]
TRAITS = ["red", "tall", "wild", "dry"]
NOISE = "the of a study notes on some old new very long short history guide".split()


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["LABELSPACE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


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
    for name, count, seed in (("trn", 300, 0), ("tst", 80, 1)):
        with (folder / f"{name}.json").open("w") as file:
            for i, (text, labels) in enumerate(zip(*toy_rows(count, seed), strict=True)):
                row = {"uid": f"{name}{i}", "title": text, "content": "", "target_ind": labels}
                file.write(json.dumps({**row, "target_rel": [1.0] * len(labels)}) + "\n")
    with (folder / "lbl.json").open("w") as file:
        for i, text in enumerate([f"{t} {k}" for k in KINDS for t in TRAITS] + ["blue stone"]):
            file.write(json.dumps({"uid": f"L{i}", "title": text, "content": ""}) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: a BERT of two narrow layers with random weights."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
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


def random_truth(rng: np.random.Generator, n: int, count: int, density: float = 0.2) -> sp.csr_array:
    """A random 0/1 truth matrix (n, count)."""
    return sp.csr_array((rng.random((n, count)) < density).astype(np.float32))
