"""A bag of token vectors: the encoder that two cores can train against every label.

The vector of a text is the mean of its tokens' vectors, unit length. The table starts from a transformer: every
token of the vocabulary is run through it, its vector centred and scaled by a / (a + p), p the token's share of the
corpus (Arora et al., 2017). Scale is all a token weight needs to be, since the mean is normalised afterwards.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .interface import Encoder
from .tokens import Limit, LongDocuments, Tokens, encoded, tokenize
from .transformer import TransformerEncoder
from .vectors import TokenVectors
from .words import count_words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

Vocabulary = Literal["pieces", "words", "phrases"]


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
        self.tokenizer.no_truncation()
        self.special_tokens = False
        self.max_tokens = max_tokens
        self.table = nn.Parameter(table.detach().float().clone())
        self.normalize = normalize
        self.dim = table.shape[1]

    def parts(self, tokens: Tokens) -> Tokens:
        """The texts whole: the mean over all chunks needs no pooling."""
        return tokens.joined

    def forward(self, tokens: Tokens) -> Tensor:
        """Vectors (n, D) float32 of n texts, 0 for a text without tokens.

        The gradient in the table is sparse, one row for each token met.
        """
        tokens = tokens.joined
        ids = torch.from_numpy(tokens.ids.astype("int64")).to(self.device)
        offsets = torch.from_numpy(tokens.offsets.astype("int64")).to(self.device)
        vectors: Tensor = _BagMeans.apply(self.table, ids, offsets, self.normalize)
        return vectors

    def save(self, folder: Path) -> None:
        """Write a sentence-transformers folder of `StaticEmbedding` and, if wanted, `Normalize`."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

        tokenizer = type(self.tokenizer).from_str(self.tokenizer.to_str())
        tokenizer.enable_truncation(self.max_tokens)
        modules: list[nn.Module] = [StaticEmbedding(tokenizer, embedding_weights=self.table.detach().cpu())]
        if self.normalize:
            modules.append(Normalize())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)


class _BagMeans(torch.autograd.Function):
    """Means of table rows over bags, perhaps of unit length; the gradient is a coalesced sparse tensor of the rows met.

    With y = x / |x| the gradient in x is (g - y <g, y>) / |x|, found together with the division by the bag's length.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, offsets: Tensor, normalize: bool) -> Tensor:
        vectors = nn.functional.embedding_bag(ids, table, offsets, mode="mean", include_last_offset=True)
        divisors = offsets.diff().clamp(min=1).to(vectors.dtype)
        if normalize:
            norms = torch.linalg.vector_norm(vectors, dim=1).clamp_(min=1e-12)
            vectors.div_(norms[:, None])
            divisors.mul_(norms)
        ctx.save_for_backward(ids, offsets, divisors, vectors if normalize else None)
        ctx.shape = table.shape
        return vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        ids, offsets, divisors, vectors = ctx.saved_tensors
        lengths = offsets.diff()
        if vectors is None:
            shares = grad / divisors[:, None]
        else:
            along = torch.linalg.vecdot(grad, vectors)
            shares = torch.addcmul(grad, vectors, along[:, None], value=-1).div_(divisors[:, None])
        bags = torch.repeat_interleave(torch.arange(len(lengths), device=ids.device), lengths)
        order = torch.argsort(ids, stable=True)
        rows, counts = torch.unique_consecutive(ids[order], return_counts=True)
        starts = torch.zeros(len(counts) + 1, dtype=torch.int64, device=ids.device)
        torch.cumsum(counts, 0, out=starts[1:])
        sums = nn.functional.embedding_bag(bags[order], shares, starts, mode="sum", include_last_offset=True)
        gradient = torch.sparse_coo_tensor(rows[None], sums, ctx.shape, is_coalesced=True, check_invariants=False)
        return gradient, None, None, None


def read_static(folder: Path) -> tuple[Tokenizer, Tensor, bool] | None:
    """A saved bag of token vectors, read without sentence-transformers, which takes seconds to be loaded.

    Returns:
        The tokenizer, the table, and whether vectors have unit length; None for a folder of another kind, or one that
        cannot be read: sentence-transformers says why.
    """
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = [str(module["type"]) for module in modules]
        names = [kind.rpartition(".")[2] for kind in kinds]
        stock = all(kind.startswith("sentence_transformers.") for kind in kinds)
        if not stock or names not in (["StaticEmbedding"], ["StaticEmbedding", "Normalize"]):
            return None
        from tokenizers import Tokenizer

        place = folder / str(modules[0]["path"])
        weights = load_file(place / "model.safetensors")
        if list(weights) != ["embedding.weight"] or weights["embedding.weight"].ndim != 2:
            return None
        return Tokenizer.from_file(str(place / "tokenizer.json")), weights["embedding.weight"], len(names) == 2
    except Exception as error:  # tokenizers raises Exception itself
        logger.debug("%s: %s", folder, error)
        return None


def build_static(
    base: TransformerEncoder | TokenVectors,
    texts: Sequence[str],
    label_texts: Sequence[str],
    *,
    rows: npt.NDArray[np.int64] | None = None,
    vocabulary: Vocabulary = "phrases",
    max_words: int = 100_000,
    frequency_weight: float = 1e-4,
    max_tokens: int = 128,
    long_documents: LongDocuments = "head",
    max_chunks: int = 8,
    cache: Path | None = None,
) -> StaticEncoder:
    """Make a static encoder from a transformer and a corpus.

    Args:
        base: the transformer that gives each token its first vector, left as it is; or what is known of it.
        texts: documents, counted for the choice of words and phrases and for token weights.
        label_texts: texts of the labels.
        rows: (m,) documents that are counted; None for all.
        vocabulary: ``pieces`` keeps the transformer's word pieces; ``words`` adds the corpus's whole words (a tokenizer
            of the WordPiece kind is needed, another keeps its pieces); ``phrases`` adds to those the label texts of
            several words that documents contain, and words that stand together far more often than by chance.
        max_words: at most this many added words, and as many phrases, the most frequent first.
        frequency_weight: a of the token weight a / (a + p); 0 for equal weights.
        max_tokens: cut texts here; words are counted in whole texts, so this alters no weight.
        long_documents: what is kept of a longer text.
        max_chunks: chunks of a text, with ``chunks``.
        cache: folder that keeps the token vectors for the next run, and the tokens of the documents for training; None
            keeps nothing.
    """
    if not isinstance(base, TokenVectors):
        base = TokenVectors.of(base)
    counted = texts if rows is None else [texts[i] for i in rows.tolist()]
    described = json.loads(base.tokenizer.to_str())
    pieces: dict[str, int] | None = described["model"]["vocab"] if described["model"]["type"] == "WordPiece" else None
    described.update(truncation=None, padding=None, post_processor=None)
    words: list[str] = []
    phrases: list[str] = []
    if vocabulary != "pieces":
        counts = count_words(base.tokenizer, counted, label_texts, phrases=vocabulary == "phrases")
        if pieces is None or len(pieces) != base.tokenizer.get_vocab_size(with_added_tokens=True):
            logger.info("whole words cannot be added to this tokenizer (%s)", described["model"]["type"])
        else:
            words = counts.choose_words(pieces, max_words)
            pieces.update({word: len(pieces) + i for i, word in enumerate(words)})
        phrases = counts.choose_phrases(max_words)
    tokenizer = type(base.tokenizer).from_str(json.dumps(described))
    if phrases:
        from tokenizers import AddedToken

        tokenizer.add_tokens([AddedToken(phrase, single_word=True, normalized=True) for phrase in phrases])
        phrases = [p for p in phrases if tokenizer.token_to_id(p) is not None]

    size = tokenizer.get_vocab_size(with_added_tokens=True)
    added = [""] * (size - base.tokenizer.get_vocab_size(with_added_tokens=True))
    for text in chain(words, phrases):
        place = (tokenizer.token_to_id(text) or 0) - (size - len(added))
        if place >= 0:
            added[place] = text
    vectors = base.table(added, cache)
    met = None
    if cache is not None:
        limit = Limit(max_tokens, long_documents, max_chunks if long_documents == "chunks" else 1)
        met = _count_kept(tokenize(tokenizer, texts, limit, cache), rows, size)
    if met is None:
        met = _count_tokens(tokenizer, counted, size)
    met += _count_tokens(tokenizer, label_texts, size)
    share = (met + 1) / (met.sum() + size)
    vectors -= share.astype(np.float32) @ vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6
    if frequency_weight > 0:
        vectors *= (frequency_weight / (frequency_weight + share))[:, None].astype(np.float32)
    encoder = StaticEncoder(tokenizer, torch.from_numpy(vectors), max_tokens=max_tokens)
    encoder.long_documents, encoder.max_chunks = long_documents, max_chunks
    return encoder


def _count_kept(tokens: Tokens, rows: npt.NDArray[np.int64] | None, size: int) -> npt.NDArray[np.float64] | None:
    """How often each token stands in texts; None where some were cut."""
    kept = tokens if rows is None else tokens.take(rows)
    assert kept.full is not None
    if kept.full.sum() > len(kept.ids):
        return None
    return np.bincount(kept.ids, minlength=size).astype(np.float64)


def _count_tokens(tokenizer: Tokenizer, texts: Sequence[str], size: int) -> npt.NDArray[np.float64]:
    counts = np.zeros(size)
    for ids, _, _ in encoded(tokenizer, texts):
        counts += np.bincount(ids, minlength=size)
    return counts
