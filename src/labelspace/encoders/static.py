"""A bag of token vectors: the encoder that two cores can train against every label.

The vector of a text is the mean of its tokens' vectors, unit length. The table starts from a transformer: every
token of the vocabulary is run through it, its vector centred and scaled by a / (a + p), p the token's share of the
corpus (Arora et al., 2017). Scale is all a token weight needs to be, since the mean is normalised afterwards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from tqdm import tqdm

from ..data.tokens import Tokens
from ..files import atomic_folder
from .interface import Encoder
from .transformer import TransformerEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

MIN_COUNT = 3
"""Documents' words met at least this often get a token of their own; words of label texts always do."""


class StaticEncoder(Encoder):
    """The mean of a text's token vectors, normalised to unit length unless told otherwise.

    Args:
        tokenizer: a tokenizer without padding.
        table: (V, D) float32 token vectors.
        max_tokens: cut texts here.
        normalize: scale vectors to unit length.
    """

    row_sparse = True

    def __init__(self, tokenizer: Tokenizer, table: Tensor, *, max_tokens: int, normalize: bool = True):
        super().__init__()
        self.tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens)
        self.special_tokens = False
        self.table = nn.Parameter(table.detach().float().clone())
        self.normalize = normalize
        self.dim = table.shape[1]

    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors of the texts; a text without tokens gets the zero vector.

        Args:
            tokens: n texts.

        Returns:
            (n, D) float32; its gradient in the table is sparse, one row for each token met.
        """
        ids = torch.from_numpy(tokens.ids.astype("int64")).to(self.device)
        offsets = torch.from_numpy(tokens.offsets.astype("int64")).to(self.device)
        means = _BagMeans.apply(self.table, ids, offsets)
        return nn.functional.normalize(means, dim=1) if self.normalize else means

    def save(self, folder: Path) -> None:
        """Write a sentence-transformers folder of `StaticEmbedding` and, if wanted, `Normalize`.

        Args:
            folder: an existing, empty folder.
        """
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

        modules: list[nn.Module] = [StaticEmbedding(self.tokenizer, embedding_weights=self.table.detach().cpu())]
        if self.normalize:
            modules.append(Normalize())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)


class _BagMeans(torch.autograd.Function):
    """Means of table rows over bags; the gradient is a coalesced sparse tensor of the rows met."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(ids, offsets)
        ctx.shape = table.shape
        return nn.functional.embedding_bag(ids, table, offsets, mode="mean", include_last_offset=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ids, offsets = ctx.saved_tensors
        lengths = offsets.diff()
        shares = grad / lengths.clamp(min=1)[:, None]
        bags = torch.repeat_interleave(torch.arange(len(lengths), device=ids.device), lengths)
        order = torch.argsort(ids, stable=True)
        rows, counts = torch.unique_consecutive(ids[order], return_counts=True)
        starts = torch.zeros(len(counts) + 1, dtype=torch.int64, device=ids.device)
        torch.cumsum(counts, 0, out=starts[1:])
        sums = nn.functional.embedding_bag(bags[order], shares, starts, mode="sum", include_last_offset=True)
        gradient = torch.sparse_coo_tensor(rows[None], sums, ctx.shape, is_coalesced=True, check_invariants=False)
        return gradient, None, None


def build_static(
    base: TransformerEncoder,
    texts: Iterable[str],
    label_texts: Sequence[str],
    *,
    vocabulary: Literal["words", "pieces"] = "words",
    max_words: int = 100_000,
    frequency_weight: float = 1e-3,
    max_tokens: int = 128,
    cache: Path | None = None,
) -> StaticEncoder:
    """Make a static encoder from a transformer and a corpus.

    Args:
        base: the transformer that gives each token its first vector; left as it is.
        texts: documents, counted for word choice and token weights.
        label_texts: texts of the labels.
        vocabulary: ``words`` adds the corpus's own whole words to the transformer's word pieces (a tokenizer of the
            WordPiece kind is needed, another keeps its pieces); ``pieces`` keeps the pieces alone.
        max_words: at most this many added words, the most frequent first.
        frequency_weight: a of the token weight a / (a + p); 0 for equal weights.
        max_tokens: cut texts here.
        cache: folder that keeps the token vectors for the next run; None keeps nothing.
    """
    described = json.loads(base.tokenizer.to_str())
    pieces: dict[str, int] | None = described["model"]["vocab"] if described["model"]["type"] == "WordPiece" else None
    described.update(truncation=None, padding=None, post_processor=None)
    texts = list(texts)
    words: list[str] = []
    if vocabulary == "words" and pieces is None:
        logger.info("the tokenizer is %s, not WordPiece: whole words cannot be added", described["model"]["type"])
    elif vocabulary == "words" and pieces is not None:
        words = _choose_words(base.tokenizer, pieces, texts, label_texts, max_words)
        pieces.update({word: len(pieces) + i for i, word in enumerate(words)})
    tokenizer = type(base.tokenizer).from_str(json.dumps(described))

    vectors = _token_vectors(base, words, cache)
    counts = _count_tokens(tokenizer, chain(texts, label_texts), len(vectors))
    share = (counts + 1) / (counts.sum() + len(counts))
    vectors -= share.astype(np.float32) @ vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6
    if frequency_weight > 0:
        vectors *= (frequency_weight / (frequency_weight + share))[:, None].astype(np.float32)
    return StaticEncoder(tokenizer, torch.from_numpy(vectors), max_tokens=max_tokens)


def _choose_words(
    tokenizer: Tokenizer, pieces: dict[str, int], texts: Sequence[str], label_texts: Sequence[str], max_words: int
) -> list[str]:
    """Words that the pieces do not hold: all of the labels, and the documents' frequent ones."""

    def count(lines: Iterable[str]) -> Counter[str]:
        normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
        counter: Counter[str] = Counter()
        for line in lines:
            clean = line.encode("utf-8", "replace").decode("utf-8")
            normal = normalizer.normalize_str(clean) if normalizer else clean
            counter.update(word for word, _ in splitter.pre_tokenize_str(normal))
        return counter

    in_texts, in_labels = count(texts), count(label_texts)
    wanted = [
        (-in_texts[word] - in_labels[word], word)
        for word in in_texts.keys() | in_labels.keys()
        if (word in in_labels or in_texts[word] >= MIN_COUNT) and word not in pieces and len(word) <= 100
    ]
    return [word for _, word in sorted(wanted)[:max_words]]


def _token_vectors(base: TransformerEncoder, words: Sequence[str], cache: Path | None) -> npt.NDArray[np.float32]:
    """Vectors (V + words, D) of every token and added word, each run through the transformer by itself."""
    size = base.tokenizer.get_vocab_size()
    key = hashlib.sha256(f"token vectors 1, {base.max_tokens}, {base.tokenizer.to_str()}\0".encode())
    for name, value in sorted(base.state_dict().items()):
        key.update(name.encode())
        key.update(value.cpu().contiguous().view(torch.uint8).numpy().data)
    key.update("\0".join(words).encode())
    folder = None if cache is None else cache / "static" / key.hexdigest()[:32]
    if folder is not None and folder.is_dir():
        try:
            vectors = np.load(folder / "vectors.npy", allow_pickle=False)
            if vectors.shape == (size + len(words), base.dim):
                return vectors
        except (OSError, ValueError) as error:
            logger.warning("the cache %s is damaged (%s); computing again", folder, error)

    inner = [base.tokenizer.encode(word, add_special_tokens=False).ids for word in words]
    ids = [[i] for i in range(size)] + [x or [0] for x in inner]
    left, right = _frame(base.tokenizer)
    framed = [left + x[: base.max_tokens - len(left) - len(right)] + right for x in ids]
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in framed])]).astype(np.int64)
    tokens = Tokens(np.fromiter(chain.from_iterable(framed), dtype=np.int32, count=offsets[-1]), offsets)
    vectors = np.empty((len(tokens), base.dim), dtype=np.float32)
    logger.info("running %d tokens of the vocabulary through the transformer", len(tokens))
    block = 4096
    for start in tqdm(range(0, len(tokens), block), desc="token vectors", disable=None, leave=False):
        rows = np.arange(start, min(start + block, len(tokens)))
        vectors[rows] = base.encode(tokens.take(rows), batch_size=1024)
    if folder is not None:
        with atomic_folder(folder) as part:
            np.save(part / "vectors.npy", vectors)
    return vectors


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def _count_tokens(tokenizer: Tokenizer, lines: Iterable[str], size: int) -> npt.NDArray[np.float64]:
    counts = np.zeros(size)
    block: list[str] = []
    for line in chain(lines, [None]):
        if line is not None:
            block.append(line.encode("utf-8", "replace").decode("utf-8"))
        if block and (line is None or len(block) == 8192):
            ids = [np.array(e.ids) for e in tokenizer.encode_batch_fast(block, add_special_tokens=False)]
            counts += np.bincount(np.concatenate([np.zeros(0, np.int64), *ids]), minlength=size)
            block = []
    return counts
