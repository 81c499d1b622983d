"""Texts laid end to end give the vectors and gradients of padded ones, for every architecture that is said to pack."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import rounding
from hypothesis import given, settings
from hypothesis import strategies as st

from labelspace.encoders import TransformerEncoder, open_encoder
from labelspace.encoders.fast import packed
from labelspace.encoders.fast.inference import ARCHITECTURES, FastBert
from labelspace.encoders.tokens import Tokens
from labelspace.errors import SettingsError

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def encoder_of(kind: str, base: Path, folder: Path, pooling: str = "mean") -> TransformerEncoder:
    """A random encoder of an architecture, with the tokenizer of another."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    sizes = dict(SIZES)
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    if kind == "electra":
        sizes["embedding_size"] = 16
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), max_position_embeddings=48, pad_token_id=tokenizer.pad_token_id, **sizes
    )
    model = AutoModel.from_config(config)
    for name, value in model.named_parameters():
        if "position" in name:
            torch.nn.init.normal_(value)  # positions must matter
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [Transformer(str(folder)), Pooling(32, pooling_mode=pooling), Normalize()]
    modules[0].max_seq_length = 32
    saved = folder / "st"
    SentenceTransformer(modules=modules, device="cpu").save(str(saved), create_model_card=False)
    opened = open_encoder(str(saved))
    assert isinstance(opened, TransformerEncoder) and opened.packable
    return opened


def random_tokens(lengths: list[int], seed: int) -> Tokens:
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 60, sum(lengths)).astype(np.int32)
    return Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@pytest.mark.parametrize("pooling", packed.POOLINGS)
@pytest.mark.parametrize("kind", packed.PLACED)
def test_packed_equals_padded(kind: str, pooling: str, tiny_transformer: Path, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tiny_transformer, tmp_path, pooling)
    tokens = random_tokens([3, 3, 3, 4, 7, 7, 1, 20, 2], 0)
    weights = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))

    def gradients(attention: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        encoder.attention = attention  # type: ignore[assignment]
        encoder.zero_grad()
        vectors = encoder(tokens)
        (vectors * weights).sum().backward()
        return vectors.detach(), {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}

    padded, expected = gradients("eager")
    vectors, found = gradients("packed")
    torch.testing.assert_close(vectors, padded, rtol=0, atol=2e-6)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-6, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens), padded, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_all_runs_errs_no_more_than_run_by_run(dtype: torch.dtype) -> None:
    lengths = [1, 1, 1, 4, 4, 9, 2]
    text_runs, size = packed.runs(lengths), sum(lengths) + 5  # five tokens that no text has
    g = torch.Generator().manual_seed(0)
    whole = [torch.randn(1, 3, size, 8, generator=g, dtype=torch.float64) for _ in range(3)]
    pull = torch.randn(1, size, 3, 8, generator=g, dtype=torch.float64)

    def by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        parts, start = [], 0
        for length in lengths:
            q, k, v = (x[0, :, start : start + length] for x in (query, key, value))
            parts.append(torch.softmax(0.3 * q @ k.transpose(1, 2), 2) @ v)
            start += length
        return torch.cat([*parts, torch.zeros(3, 5, 8)], dim=1).transpose(0, 1)[None]

    def of(attend: Callable[..., torch.Tensor], kind: torch.dtype) -> list[torch.Tensor]:
        own = [x.to(dtype).to(kind).requires_grad_() for x in whole]
        out = attend(*own)
        (out * pull.to(kind)).sum().backward()
        return [out.detach(), *(x.grad for x in own if x.grad is not None)]

    truth = of(by_hand, torch.float64)
    fast = of(lambda *own: packed.attention(torch.nn.Module(), *own, None, text_runs=text_runs, scaling=0.3)[0], dtype)
    plain = of(lambda *own: packed.run_by_run(*own, text_runs, 0.3, 0.0), dtype)
    for exact, found, other in zip(truth, fast, plain, strict=True):
        assert found.dtype == dtype
        allowed = (other - exact).abs().max() + rounding(9 * 8, float(exact.abs().max()))
        assert float((found - exact).abs().max()) <= float(allowed)


def test_rounded_up_batches_and_long_texts(tiny_transformer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_encoder(str(tiny_transformer))
    assert isinstance(encoder, TransformerEncoder)
    tokens = random_tokens([5] * 40 + [9] * 30 + [31] * 3, 1)
    padded = open_encoder(str(tiny_transformer), attention="sdpa")
    expected = padded(tokens)
    for limit in (1, 8, 128):
        for start, step in ((512, 256), (10, 64), (10**6, 256)):
            monkeypatch.setattr(packed, "products_pay", lambda length, *others, limit=limit: length <= limit)
            monkeypatch.setattr(packed, "ROUND_FROM", start)
            monkeypatch.setattr(packed, "ROUND_TO", step)
            torch.testing.assert_close(encoder(tokens), expected, rtol=0, atol=2e-6)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), max_size=30))
def test_runs_cover_every_token_once_and_hold_one_length(lengths: list[int]) -> None:
    found = packed.runs(lengths)
    assert [t for start, end, _ in found for t in range(start, end)] == list(range(sum(lengths)))
    assert [n for start, end, n in found for _ in range((end - start) // n)] == [n for n in lengths if n]


def test_bf16_stays_near_float32(tiny_transformer: Path) -> None:
    encoder = open_encoder(str(tiny_transformer))
    tokens = random_tokens([4] * 20 + [12] * 60, 2)
    exact = encoder(tokens)
    encoder.precision = "bf16"
    cosines = (encoder(tokens) * exact).sum(1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "distilbert"])
def test_inference_equals_the_modules(
    kind: str, dtype: torch.dtype, tiny_transformer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelspace.encoders.fast.inference.WIDE_ROWS", 300)  # the widest vectors in parts
    encoder = encoder_of(kind, tiny_transformer, tmp_path)
    for name, parameter in encoder.transformer.named_parameters():
        if "bias" in name or "norm" in name.lower():
            torch.nn.init.normal_(parameter, 0.5, 0.2)  # fresh ones are 0 and 1, and so would hide mistakes
    fits = FastBert.fits(encoder.transformer, dtype)
    assert not fits or kind not in ("distilbert", "electra")  # the last has narrower token vectors here
    if not fits:
        pytest.skip("another architecture, or no bf16 products by oneDNN")
    tokens = random_tokens([1, 1, 3, *[7] * 40, *[31] * 5, *[40] * 20], 3)  # with a part that is filled up
    given = packed.inputs(tokens, encoder._first_position)
    encoder._set_attention(packed.NAME)
    with torch.no_grad():
        exact = copy.deepcopy(encoder.transformer).double()(**given).last_hidden_state[0]
        modules = copy.deepcopy(encoder.transformer).to(dtype)(**given).last_hidden_state[0]
        fast = FastBert(encoder.transformer, dtype)(given["input_ids"][0], given["position_ids"][0], given["text_runs"])
    assert fast.dtype == dtype
    there = len(tokens.ids)
    error, allowed = ((x.double() - exact)[:there].square().mean().sqrt() for x in (fast, modules))
    assert error < (1.2 if dtype == torch.bfloat16 else 2) * allowed  # not coarser than the modules in that type
    encoder.attention = "sdpa"  # padded, by the modules
    vectors = encoder.encode(tokens)
    assert encoder._fast is None
    encoder.attention = "auto"
    found = encoder.encode(tokens, precision="bf16" if dtype == torch.bfloat16 else "float32", keep=True)
    assert (found * vectors).sum(1).min() > (0.999 if dtype == torch.bfloat16 else 1 - 1e-5)
    assert encoder._fast is not None and encoder._fast.dtype == dtype


def test_dropout_draws_in_the_attention(tiny_transformer: Path) -> None:
    encoder = open_encoder(str(tiny_transformer), dropout=0.5)
    tokens = random_tokens([4, 4, 9], 2)
    encoder.train()
    assert not torch.equal(encoder(tokens), encoder(tokens))
    encoder.eval()
    assert torch.equal(encoder(tokens), encoder(tokens))


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_the_own_dropout_of_a_model_can_be_kept(kind: str, tiny_transformer: Path, tmp_path: Path) -> None:
    """The papers train with it; otherwise it is set to 0, everywhere."""
    encoder_of(kind, tiny_transformer, tmp_path).save(tmp_path / "saved")
    tokens = random_tokens([4, 4, 9], 2)
    for dropout, expected in (("own", 0.1), (0.0, 0.0), (0.3, 0.3)):
        encoder = open_encoder(str(tmp_path / "saved"), dropout=dropout).train()  # type: ignore[arg-type]
        assert isinstance(encoder, TransformerEncoder) and encoder.own_dropout == 0.1
        layers = [module.p for module in encoder.transformer.modules() if isinstance(module, torch.nn.Dropout)]
        assert len(layers) > 4 and set(layers) == {expected}
        assert torch.equal(encoder(tokens), encoder(tokens)) is (expected == 0)


def test_what_cannot_be_packed_is_refused_or_padded(tiny_transformer: Path, tmp_path: Path) -> None:
    encoder = encoder_of("bert", tiny_transformer, tmp_path)
    with pytest.raises(SettingsError, match="packed attention is for bert.* with mean or cls pooling"):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        model = SentenceTransformer(str(tiny_transformer), device="cpu")
        model[1] = Pooling(32, pooling_mode="max")
        TransformerEncoder(model, attention="packed")
    empty = random_tokens([0, 3], 0)
    assert not encoder._packs(empty)


def test_the_saved_folder_knows_nothing_of_packing(tiny_transformer: Path, tmp_path: Path) -> None:
    encoder = open_encoder(str(tiny_transformer))
    encoder(random_tokens([3], 0))
    encoder.save(tmp_path)
    assert not [p for p in tmp_path.rglob("*.json") if "labelspace" in p.read_text()]
