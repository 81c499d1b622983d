"""Encoders: same vectors as sentence-transformers, cached gradients equal full ones, sparse gradients equal dense."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, rounding
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from labelspace import encoders
from labelspace.encoders import Encoder, StaticEncoder, TransformerEncoder, build_static, open_encoder
from labelspace.encoders.fast.inference import FastBert
from labelspace.encoders.gradcache import chunks, encode_both, encode_cached
from labelspace.encoders.tokens import Limit, Tokens, tokenize
from labelspace.errors import MissingExtraError, ModelError, SettingsError

TEXTS = ["a red oak", "", "history of the very tall vine, notes", "xyz 123", "wild rose"]


def alike(gradient: torch.Tensor, other: torch.Tensor | None, tokens: Tokens) -> None:
    """Two gradients of the same loss are: every entry sums what the tokens give, through layers of 48 terms.

    The floor is for a gradient that is 0 by its formula, as that of the keys' bias: its terms cancel.
    """
    assert other is not None
    scale = max(float(other.abs().max()), 1e-3)
    assert float((gradient - other).abs().max()) <= rounding(len(tokens.ids) + 48, scale)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows, whose lengths bf16 rounds too."""
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def tiny(path: Path, **options: object) -> TransformerEncoder:
    encoder = open_encoder(str(path), **options)  # type: ignore[arg-type]
    assert isinstance(encoder, TransformerEncoder)
    return encoder


def test_equals_sentence_transformers(tiny_transformer: Path) -> None:
    expected = SentenceTransformer(str(tiny_transformer), device="cpu").encode(TEXTS)
    encoder = tiny(tiny_transformer)
    for batch_size in (1, 2, 100):
        vectors = encoder.encode(encoder.tokenize(TEXTS), batch_size)
        np.testing.assert_allclose(vectors, expected, atol=TINY)


@pytest.mark.parametrize("options", [{"pooling": "cls"}, {"projection": 8}, {"normalize": False}, {"max_tokens": 6}])
def test_saved_folder_gives_the_same_vectors(
    tiny_transformer: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    encoder = tiny(tiny_transformer, **options)
    vectors = encoder.encode(encoder.tokenize(TEXTS))
    encoder.save(tmp_path)
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS), vectors, atol=TINY)
    again = open_encoder(str(tmp_path))
    assert np.array_equal(again.encode(again.tokenize(TEXTS)), vectors)
    assert encoder.dim == vectors.shape[1] == options.get("projection", 32)
    plain = tiny(tiny_transformer)
    assert plain.dim != encoder.dim or not np.allclose(plain.encode(plain.tokenize(TEXTS)), vectors, atol=1e-3)


@pytest.mark.parametrize(
    ("clean", "expected"),
    [
        ("letters", ["it s red oak 1.5 don t", "the h tall", ""]),
        ("clean_str", ["it 's red ! ( oak ) 1 5 , do n't", "the h ' ? tall", ""]),
    ],
)
def test_texts_are_cleaned_as_published_code_does_it(
    tiny_transformer: Path, tmp_path: Path, clean: str, expected: list[str]
) -> None:
    given = ["It's RED!(oak)  1.5, DON't", "the\n«Äh'?» tall", "—"]
    if clean == "letters":
        given[0] = given[0].replace("1.5,", "1.5 ,")
    encoder, plain = tiny(tiny_transformer, clean=clean), tiny(tiny_transformer)
    assert encoder.tokenize(given).ids.tolist() == plain.tokenize(expected).ids.tolist()
    assert encoder.tokenize(given).ids.tolist() != plain.tokenize(given).ids.tolist()
    vectors = encoder.encode(encoder.tokenize(given))
    encoder.save(tmp_path)
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path), device="cpu").encode(given), vectors, atol=TINY)
    tiny(tmp_path).save(tmp_path / "again")
    again = tiny(tmp_path / "again")
    assert np.array_equal(again.encode(again.tokenize(given)), vectors)


def test_a_bag_of_tokens_is_not_cleaned(tiny_transformer: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no dropout, attention or cleaning to set"):
        encoders.make_encoder("static", TEXTS, ["oak"], base=str(tiny_transformer), clean="letters")
    encoders.make_encoder("static", TEXTS, ["oak"], base=str(tiny_transformer)).save(tmp_path)
    with pytest.raises(SettingsError, match="and no cleaning"):
        open_encoder(str(tmp_path), clean="letters")


def test_attention_back_ends_agree_and_are_chosen_by_use(tiny_transformer: Path) -> None:
    encoder = tiny(tiny_transformer)
    tokens = encoder.tokenize(TEXTS)
    expected = encoder.encode(tokens)
    assert encoder.transformer.config._attn_implementation == "labelspace_packed"
    for attention in ("packed", "eager", "sdpa"):
        other = tiny(tiny_transformer, attention=attention)
        np.testing.assert_allclose(other.encode(tokens), expected, atol=TINY)
        np.testing.assert_allclose(other(tokens).detach().numpy(), expected, atol=TINY)
    encoder.packable = False
    np.testing.assert_allclose(encoder.encode(tokens), expected, atol=TINY)
    assert encoder.transformer.config._attn_implementation == "sdpa"
    np.testing.assert_allclose(encoder(tokens).detach().numpy(), expected, atol=TINY)
    assert encoder.transformer.config._attn_implementation == "eager"


def test_bf16_is_near_float32(tiny_transformer: Path) -> None:
    encoder = tiny(tiny_transformer)
    tokens = encoder.tokenize(TEXTS)
    exact = encoder.encode(tokens)
    encoder.precision = "bf16"
    low = encoder.encode(tokens)
    assert low.dtype == np.float32
    assert 0 < np.abs(low - exact).max() < 0.05


@pytest.mark.parametrize(
    "options", [{"attention": "packed"}, {"attention": "sdpa"}, {"projection": 6}, {"pooling": "cls"}]
)
def test_weights_in_bf16_while_encoding(tiny_transformer: Path, options: dict[str, object]) -> None:
    encoder = tiny(tiny_transformer, **options)
    tokens = encoder.tokenize(TEXTS)
    exact = encoder.encode(tokens)
    encoder.precision = "bf16"
    fast = FastBert.fits(encoder.transformer, torch.bfloat16) and options.get("attention") != "sdpa"
    with encoder.for_inference("bf16", False):
        assert next(encoder.transformer.parameters()).dtype == (torch.float32 if fast else torch.bfloat16)
        low = encoder(tokens).detach().numpy()
    assert all(p.dtype == torch.float32 for p in encoder.parameters())
    assert np.array_equal(encoder.encode(tokens), low[np.arange(len(tokens))])
    assert not np.array_equal(low, exact) and cosines(low, exact).min() > 0.999
    encoder.precision = "float32"
    assert np.array_equal(encoder.encode(tokens), exact)


@pytest.mark.parametrize("fused", [True, False])
def test_weights_laid_out_for_encoding_follow_those_of_training(tiny_transformer: Path, fused: bool) -> None:
    encoder = tiny(tiny_transformer)
    if not FastBert.fits(encoder.transformer, torch.bfloat16):
        pytest.skip("this processor or build of torch has no bf16 products by oneDNN")
    tokens = encoder.tokenize(TEXTS)
    encoder.precision = "bf16"
    before = encoder.encode(tokens)
    optimizer = torch.optim.AdamW(encoder.parameters(), 0.05, fused=fused)  # a fused one leaves no trace
    (encoder(tokens) * torch.randn(len(tokens), encoder.dim)).sum().backward()
    optimizer.step()
    after = encoder.encode(tokens)
    assert not np.array_equal(after, before)
    assert np.array_equal(encoder.encode(tokens, keep=True), after)
    kept = encoder._fast
    assert kept is not None and np.array_equal(encoder.encode(tokens, keep=True), after) and encoder._fast is kept
    again = copy.deepcopy(encoder)
    with torch.no_grad():
        again.token_table.mul_(2)
    assert np.array_equal(encoder.encode(tokens), after) and not np.array_equal(again.encode(tokens), after)
    encoder.precision = "float32"
    assert cosines(encoder.encode(tokens), after).min() > 0.999


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
def test_encoding_in_bf16_sees_what_a_fused_optimiser_changed(tiny_transformer: Path, attention: str) -> None:
    encoder = tiny(tiny_transformer, attention=attention)
    encoder.precision = "bf16"
    tokens = encoder.tokenize(TEXTS)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.05, fused=True)
    for _ in range(2):
        encoder.encode(tokens, keep=True)
        (encoder(tokens) * torch.randn(len(tokens), encoder.dim)).sum().backward()
        optimizer.step()
        found = encoder.encode(tokens, keep=True)
        expected = encoder.encode(tokens, precision="float32")
        assert cosines(found, expected).min() > 0.999


@pytest.mark.parametrize("kept", [0, 40, 1000])
@pytest.mark.parametrize("chunk", [1, 2, 50])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cached_gradients_equal_uncached_ones(tiny_transformer: Path, chunk: int, kept: int, dropout: float) -> None:
    encoder = tiny(tiny_transformer, dropout=dropout)
    encoder.train()
    tokens = encoder.tokenize(TEXTS * 3)
    weights = torch.randn(len(tokens), encoder.dim, generator=torch.Generator().manual_seed(1))
    order = np.argsort(tokens.lengths, kind="stable")
    slices = chunks(tokens.lengths[order], chunk * encoder.max_tokens)

    def gradients(cached: bool) -> list[torch.Tensor]:
        encoder.zero_grad()
        torch.manual_seed(0)
        if cached:
            vectors = encode_cached(encoder, tokens, chunk, kept)
        else:
            # the same chunks with their graphs, so that dropout draws alike
            parts = [encoder(tokens.take(order[rows])) for rows in slices]
            vectors = torch.cat(parts)[torch.from_numpy(np.argsort(order))]
        (vectors * weights).sum().backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        alike(a, b, tokens)
    if dropout == 0:
        encoder.zero_grad()
        (encoder(tokens) * weights).sum().backward()
        whole = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        for a, b in zip(gradients(True), whole, strict=True):
            alike(a, b, tokens)


@pytest.mark.parametrize("static", [False, True])
def test_documents_and_labels_encoded_together_are_what_they_are_apart(tiny_transformer: Path, static: bool) -> None:
    encoder = make_static(tiny_transformer) if static else tiny(tiny_transformer)
    documents, labels = encoder.tokenize(TEXTS), encoder.tokenize(["red oak", "tall fern", "vine"])
    weights = [
        torch.randn(len(t), encoder.dim, generator=torch.Generator().manual_seed(3)) for t in (documents, labels)
    ]
    results = []
    for together in (True, False):
        encoder.zero_grad()
        if together:
            pair = encode_both(encoder, documents, labels, 1, 10)
        else:
            pair = encode_cached(encoder, documents, 1, 10), encode_cached(encoder, labels, 1, 0)
        sum((vectors * w).sum() for vectors, w in zip(pair, weights, strict=True)).backward()  # type: ignore[union-attr]
        gradients = [
            p.grad.to_dense() if p.grad.is_sparse else p.grad.clone()
            for p in encoder.parameters()
            if p.grad is not None
        ]
        results.append([*(vectors.detach() for vectors in pair), *gradients])
    for a, b in zip(*results, strict=True):
        alike(a, b, documents)


def test_a_transformer_is_opened_for_new_tokens_only(
    tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LABELSPACE_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base"
    shutil.copytree(tiny_transformer, base)
    opened: list[str] = []
    real = encoders.open_encoder
    monkeypatch.setattr(encoders, "open_encoder", lambda name, **given: opened.append(name) or real(name, **given))
    texts = ["red oak guide", "red oak history", "red oak notes"]

    def made(labels: list[str]) -> torch.Tensor:
        encoder = encoders.make_encoder("static", texts, labels, base=str(base))
        assert isinstance(encoder, StaticEncoder)
        return encoder.table.detach()

    first = made(["oak"])
    assert len(opened) == 1
    assert torch.equal(made(["oak"]), first) and len(opened) == 1
    made(["zzz"])  # one more word
    assert len(opened) == 2
    assert torch.equal(made(["oak"]), first) and len(opened) == 2
    (kept,) = (tmp_path / "cache" / "static").glob("*/transformer.json")
    kept.write_text("{")
    assert torch.equal(made(["oak"]), first) and len(opened) == 3 and "damaged" in caplog.text
    weights = base / "model.safetensors"
    changed = {name: value * 1.5 for name, value in load_file(weights).items()}
    save_file(changed, weights, {"format": "pt"})
    assert not torch.equal(made(["oak"]), first) and len(opened) == 4


def test_chunks_hold_so_many_tokens() -> None:
    lengths = np.array([1, 1, 2, 3, 3, 9, 20])
    found = [lengths[rows].tolist() for rows in chunks(lengths, 9)]
    assert found == [[1, 1, 2, 3], [3], [9], [20]]
    assert chunks(lengths[:0], 9) == []


def make_static(base: Path, **options: object) -> StaticEncoder:
    texts = ["red oak guide", "red oak history", "red oak notes", "wild vine oak", "vine"]
    return build_static(tiny(base), texts, ["tall fern", "red oak"], **options)  # type: ignore[arg-type]


def test_static_vectors_are_means_of_rows(tiny_transformer: Path) -> None:
    encoder = make_static(tiny_transformer)
    tokens = encoder.tokenize(TEXTS)
    table = encoder.table.detach().numpy()
    vectors = encoder.encode(tokens)
    for i in range(len(TEXTS)):
        ids = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]]
        mean = table[ids].mean(0) if len(ids) else np.zeros(encoder.dim)
        np.testing.assert_allclose(vectors[i], mean / max(np.linalg.norm(mean), 1e-12), atol=rounding(encoder.dim))
    assert not vectors[1].any()


def test_static_gradient_is_sparse_and_equals_the_dense_one(tiny_transformer: Path) -> None:
    encoder = make_static(tiny_transformer)
    tokens = encoder.tokenize(TEXTS * 3)
    weights = torch.randn(len(tokens), encoder.dim, generator=torch.Generator().manual_seed(1))
    (encoder(tokens) * weights).sum().backward()
    sparse = encoder.table.grad
    assert sparse is not None and sparse.is_sparse
    assert set(sparse.coalesce().indices()[0].tolist()) == set(tokens.ids.tolist())
    table = encoder.table.detach().clone().requires_grad_()
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    means = torch.nn.functional.embedding_bag(
        ids, table, torch.from_numpy(tokens.offsets), mode="mean", include_last_offset=True
    )
    (torch.nn.functional.normalize(means, dim=1) * weights).sum().backward()
    alike(sparse.to_dense(), table.grad, tokens)


def test_static_saved_folder_opens_without_remote_code(tiny_transformer: Path, tmp_path: Path) -> None:
    encoder = make_static(tiny_transformer, max_tokens=4)
    encoder.save(tmp_path)
    vectors = encoder.encode(encoder.tokenize(TEXTS))
    stock = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=False)
    np.testing.assert_allclose(stock.encode(TEXTS), vectors, atol=TINY)
    again = open_encoder(str(tmp_path))
    assert isinstance(again, StaticEncoder)
    assert again.max_tokens == 4
    assert np.array_equal(again.encode(again.tokenize(TEXTS)), vectors)
    with pytest.raises(SettingsError, match="no pooling or projection"):
        open_encoder(str(tmp_path), projection=3)


def test_a_static_folder_is_read_without_sentence_transformers(tiny_transformer: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    for normalize in (True, False):
        encoder = make_static(tiny_transformer, max_tokens=4)
        encoder.normalize = normalize
        folder = tmp_path / str(normalize)
        folder.mkdir()
        encoder.save(folder)
        expected = encoder.encode(encoder.tokenize(TEXTS))
        code = (
            "import sys, numpy as np\nfrom labelspace.encoders import open_encoder\n"
            f"e = open_encoder({str(folder)!r})\nnp.save({str(folder / 'x.npy')!r}, e.encode(e.tokenize({TEXTS!r})))\n"
            "assert 'sentence_transformers' not in sys.modules and e.max_tokens == 4"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        np.testing.assert_array_equal(np.load(folder / "x.npy"), expected)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        with pytest.raises(ModelError, match="cannot open the encoder"):
            open_encoder(str(folder))


def test_empty_texts_and_labels_are_fine(tiny_transformer: Path) -> None:
    for vocabulary in ("pieces", "words", "phrases"):
        encoder = build_static(tiny(tiny_transformer), ["", "red oak", " "], ["", "oak"], vocabulary=vocabulary)  # type: ignore[arg-type]
        assert not encoder.encode(encoder.tokenize([""])).any()


def test_static_vocabulary(tiny_transformer: Path) -> None:
    def tokens(vocabulary: str, text: str) -> list[str]:
        encoder = make_static(tiny_transformer, vocabulary=vocabulary)
        return encoder.tokenizer.encode(text, add_special_tokens=False).tokens

    text = "Wild red oak, tall fern: vine"
    pieces, words, phrases = (tokens(v, text) for v in ("pieces", "words", "phrases"))
    assert "wild" not in pieces and "##l" in pieces  # the tiny transformer spells it
    assert {"vine", "fern"} <= set(words) and "##l" in words  # one document is too few
    assert "red oak" in phrases  # a label that three documents name
    assert "tall" in phrases and "fern" in phrases  # a label that none names
    assert tokens("phrases", "redoak") == tokens("pieces", "redoak")  # whole words only


def test_pairs_far_above_chance_become_tokens(tiny_transformer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    filler = [f"{a}{b}{c}" for a in "abcd" for b in "efgh" for c in "ijkl"]
    texts = [" ".join(rng.choice(filler, 16)) for _ in range(80)] + ["abc sea level def"] * 25
    encoder = build_static(tiny(tiny_transformer), texts, ["x"])
    assert encoder.tokenizer.token_to_id("sea level") is not None
    monkeypatch.setattr("labelspace.encoders.words.PAIR_MIN_LIFT", 1000.0)
    again = build_static(tiny(tiny_transformer), texts, ["x"])
    assert again.tokenizer.token_to_id("sea level") is None
    limited = build_static(tiny(tiny_transformer), texts, ["x"], max_words=3)
    assert limited.table.shape[0] < again.table.shape[0]


def test_frequent_tokens_weigh_less(tiny_transformer: Path) -> None:
    encoder = make_static(tiny_transformer, vocabulary="words", frequency_weight=1e-2)
    norm = np.linalg.norm(encoder.table.detach().numpy(), axis=1)
    number = encoder.tokenizer.token_to_id
    assert norm[number("oak")] < norm[number("vine")] < norm[number("x")]
    equal = make_static(tiny_transformer, frequency_weight=0.0)
    np.testing.assert_allclose(np.linalg.norm(equal.table.detach().numpy(), axis=1), 1, atol=1e-3)


def test_documents_are_counted_from_the_tokens_that_training_reads(tiny_transformer: Path, tmp_path: Path) -> None:
    texts = ["red oak guide", "tall fern", "red oak history", "wild vine oak", "vine red oak"]
    rows = np.array([0, 2, 3, 4])
    plain = build_static(tiny(tiny_transformer), [texts[i] for i in rows], ["red oak"], max_tokens=4)
    for number, most in enumerate((4, 256, 1)):  # at one token a text is cut, so that the array does not tell
        cache = tmp_path / str(number)
        kept = build_static(tiny(tiny_transformer), texts, ["red oak"], rows=rows, max_tokens=most, cache=cache)
        assert kept.tokenizer.to_str() == plain.tokenizer.to_str()
        assert torch.equal(kept.table, plain.table)
        (folder,) = (cache / "tokens").iterdir()
        before = (folder / "ids.npy").stat().st_mtime_ns
        kept.tokenize(texts, cache)
        assert [path.name for path in (cache / "tokens").iterdir()] == [folder.name]
        assert (folder / "ids.npy").stat().st_mtime_ns == before


def test_static_cache_is_used_and_a_damaged_one_is_not(
    tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_static(tiny_transformer, cache=tmp_path)
    stored = list((tmp_path / "static").glob("*/vectors.npy"))
    assert len(stored) == 2  # the transformer's own tokens, and the corpus's

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(TransformerEncoder, "encode", never)
        second = make_static(tiny_transformer, cache=tmp_path)
    assert torch.equal(first.table, second.table)
    for file in stored:
        file.write_bytes(file.read_bytes()[:200])
    assert torch.equal(make_static(tiny_transformer, cache=tmp_path).table, first.table)


def test_names_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        open_encoder("./nowhere")
    with pytest.raises(ModelError, match="neither modules.json nor config.json"):
        open_encoder(str(tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="it is a file"):
        open_encoder(str(tmp_path / "file"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot open the encoder"):
        open_encoder(str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"labelspace\[minilm\]"):
        open_encoder("minilm")


def test_too_many_tokens_are_refused(tiny_transformer: Path) -> None:
    with pytest.raises(SettingsError, match="40 positions"):
        tiny(tiny_transformer, max_tokens=100)


def test_tokens_are_cached_by_content(tiny_transformer: Path, tmp_path: Path) -> None:
    encoder = tiny(tiny_transformer)
    first = encoder.tokenize(TEXTS, tmp_path)
    assert isinstance(first.ids, np.memmap)
    again = encoder.tokenize(TEXTS, tmp_path)
    memory = encoder.tokenize(TEXTS)
    for tokens in (first, again):
        assert np.array_equal(tokens.ids, memory.ids) and np.array_equal(tokens.offsets, memory.offsets)
    assert len(list((tmp_path / "tokens").iterdir())) == 1
    encoder.tokenize([*TEXTS[:-1], "changed"], tmp_path)
    encoder.max_tokens = 5
    assert encoder.tokenize(TEXTS, tmp_path).lengths.max() == 5
    assert len(list((tmp_path / "tokens").iterdir())) == 3
    for stored in (tmp_path / "tokens").glob("*/ids.npy"):
        stored.write_bytes(b"damaged")
    assert np.array_equal(encoder.tokenize(TEXTS, tmp_path).ids, encoder.tokenize(TEXTS).ids)


def test_odd_texts_are_tokenised(tiny_transformer: Path) -> None:
    encoder = tiny(tiny_transformer)
    odd = ["\ud800 red", "\x00", "oak\u2028oak", "🌲" * 50]
    tokens = tokenize(encoder.tokenizer, odd, encoder.limit)
    assert len(tokens) == 4 and np.isfinite(encoder.encode(tokens)).all()


LONG = [
    "",
    "oak",
    "a red oak of the old guide " * 3,
    "wild vine " * 40,
    "moss and fern on some stone, dry " * 2,
    "x y z",
]


def loop_vector(encoder: Encoder, text: str) -> torch.Tensor:
    """The vector of a text, chunk after chunk by the formula of the documentation."""
    alone = Tokens(*(getattr(encoder.tokenize([text]).chunks, name) for name in ("ids", "offsets")))
    vectors = [encoder(alone.take(np.array([j])))[0] for j in range(len(alone))]
    lengths = alone.lengths.tolist()
    mean = sum(v * n for v, n in zip(vectors, lengths, strict=True)) / max(1, sum(lengths))
    assert isinstance(mean, torch.Tensor)
    return mean / mean.norm() if encoder.normalize and len(alone) > 1 else mean


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_are_pooled_and_trained_as_one_by_one(tiny_transformer: Path, normalize: bool, chunk_size: int) -> None:
    encoder = tiny(tiny_transformer, normalize=normalize, max_tokens=9, long_documents="chunks", max_chunks=4)
    encoder.train()  # dropout is 0
    tokens = encoder.tokenize(LONG)
    assert tokens.texts is not None and np.diff(tokens.texts).tolist() == [1, 1, 4, 4, 4, 1]
    weights = torch.randn(len(LONG), encoder.dim, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([loop_vector(encoder, text) for text in LONG])
    exact = copy.deepcopy(encoder).double()
    (torch.stack([loop_vector(exact, text) for text in LONG]) * weights).sum().backward()
    wanted = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    for way in (lambda: encoder(tokens), lambda: encode_cached(encoder, tokens, chunk_size)):
        encoder.zero_grad()
        vectors = way()
        torch.testing.assert_close(vectors, expected, rtol=0, atol=TINY)
        (vectors * weights).sum().backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        assert gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            alike(gradient, wanted[name], tokens.chunks)
    found = encoder.encode(tokens, chunk_size)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=TINY)
    rows = np.array([3, 0, 3, 2])
    np.testing.assert_allclose(encoder.encode(tokens.take(rows), chunk_size), found[rows], atol=TINY)
    head = tiny(tiny_transformer, normalize=normalize, max_tokens=9)
    one = head.encode(head.tokenize(LONG), chunk_size)
    np.testing.assert_allclose(one[[0, 1, 5]], found[[0, 1, 5]], atol=TINY)
    assert (np.abs(one[2:5] - found[2:5]).max(1) > 1e-3).all()


def test_batches_are_bucketed_by_the_length_of_chunks(tiny_transformer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny(tiny_transformer, max_tokens=12, long_documents="chunks", max_chunks=20)
    tokens = encoder.tokenize(["red " * 31, "oak", "red oak wild", "oak"])  # 10 + 10 + 10 + 1, 1, 3, 1 and the frames
    met: list[list[int]] = []
    forward = TransformerEncoder.forward

    def spy(self: TransformerEncoder, part: Tokens) -> torch.Tensor:
        met.append(part.lengths.tolist())
        return forward(self, part)

    monkeypatch.setattr(TransformerEncoder, "forward", spy)
    for way in (encoder.encode, lambda *given: encode_cached(encoder, *given)):
        met.clear()
        vectors = way(tokens, 1)
        assert len(met) > 1 and [n for lengths in met for n in lengths] == sorted(tokens.chunks.lengths.tolist())
        assert vectors.shape == (4, encoder.dim)


def test_static_chunks_are_a_longer_limit(tiny_transformer: Path) -> None:
    chunks = make_static(tiny_transformer, max_tokens=4, long_documents="chunks", max_chunks=5)
    longer = make_static(tiny_transformer, max_tokens=20)
    head = make_static(tiny_transformer, max_tokens=4)
    tokens, whole = chunks.tokenize(LONG), longer.tokenize(LONG)
    assert len(tokens.chunks) > len(LONG) == len(tokens) and np.array_equal(tokens.ids, whole.ids)
    assert np.array_equal(chunks.encode(tokens), longer.encode(whole))
    assert np.array_equal(encode_cached(chunks, tokens, 2).detach(), encode_cached(longer, whole, 2).detach())
    assert not np.allclose(head.encode(head.tokenize(LONG)), chunks.encode(tokens), atol=1e-3)
    for encoder, given in ((chunks, tokens), (longer, whole)):
        encoder(given).sum().backward()
    assert torch.equal(chunks.table.grad.to_dense(), longer.table.grad.to_dense())  # type: ignore[union-attr]


@pytest.mark.parametrize("way", ["head", "head+tail", "chunks"])
def test_texts_that_fit_are_the_same_in_every_mode(tiny_transformer: Path, way: str) -> None:
    plain = tiny(tiny_transformer)
    encoder = tiny(tiny_transformer, long_documents=way)
    assert (encoder.long_documents, encoder.max_chunks) == (way, 8)
    assert np.array_equal(encoder.encode(encoder.tokenize(TEXTS)), plain.encode(plain.tokenize(TEXTS)))
    assert torch.equal(encoder(encoder.tokenize(TEXTS)), plain(plain.tokenize(TEXTS)))


def test_the_limit_of_an_encoder(tiny_transformer: Path) -> None:
    encoder = tiny(tiny_transformer, max_tokens=9)
    left, right = ((encoder.tokenizer.token_to_id(name),) for name in ("[CLS]", "[SEP]"))
    assert encoder.limit == Limit(9, "head", 1, left, right)
    encoder.long_documents, encoder.max_chunks = "chunks", 3
    assert encoder.limit == Limit(9, "chunks", 3, left, right)
    assert make_static(tiny_transformer, max_tokens=7, long_documents="head+tail").limit == Limit(7, "head+tail")
    encoder.long_documents = "tail"  # type: ignore[assignment]
    with pytest.raises(SettingsError, match="long_documents is 'tail'; choose one of"):
        encoder.tokenize(["oak"])


def test_a_plain_transformer_is_pooled_by_its_mean(tiny_transformer: Path) -> None:
    plain = tiny(tiny_transformer.parent / "raw")
    unit = tiny(tiny_transformer.parent / "raw", normalize=True)
    expected = tiny(tiny_transformer)
    tokens = expected.tokenize(TEXTS)
    assert np.array_equal(tokens.ids, plain.tokenize(TEXTS).ids)
    np.testing.assert_allclose(unit.encode(tokens), expected.encode(tokens), atol=TINY)
    assert not np.allclose(np.linalg.norm(plain.encode(tokens), axis=1), 1, atol=1e-2)
