"""The UniDEC recipe end to end on the toy corpus."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import TINY, rounding

import labelspace as ls
from labelspace.cli.app import main
from labelspace.errors import SettingsError
from labelspace.recipes.choosing import Choice
from labelspace.recipes.unidec import PoolLoss, UnidecModule, optimizers
from labelspace.recipes.validation import Validation
from labelspace.training.config import made, resolve
from labelspace.training.label_heads import SEARCH_WEIGHTS, LabelTable, TwoHeads, best_search_weight
from labelspace.training.settings import FitSettings, UnidecSettings


@pytest.fixture(scope="module")
def data(toy_folder: Path) -> ls.Dataset:
    return ls.load(toy_folder)


@pytest.fixture(scope="module")
def static(tiny_transformer: Path) -> dict[str, Any]:
    return {
        "encoder": "static", "base": str(tiny_transformer), "epochs": 12, "batch_size": 32, "lr": 0.02,
        "table_lr": 0.02, "precision": "float32", "device": "cpu", "evaluations": 2,
    }  # fmt: skip


def scores(model: ls.Model, data: ls.Dataset) -> dict[str, dict[str, float]]:
    assert data.test is not None
    found = model.rankings(data.test.texts, k=10)
    return {name: ls.evaluate(p, data.test.targets, data.train.targets) for name, p in found.items()}


def test_static_learns_the_toy_corpus_and_is_saved_whole(
    data: ls.Dataset, static: dict[str, Any], tmp_path: Path
) -> None:
    model = ls.train(data, recipe="unidec", out=tmp_path / "a", **static)
    found = scores(model, data)
    assert {name: found[name]["P@1"] >= 90 for name in found} == dict.fromkeys(
        ("combined", "encoder", "classifier"), True
    )
    again = ls.Model.load(tmp_path / "a")
    assert scores(again, data) == found
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "encoder", "head.safetensors", "log.jsonl", "manifest.json", "memory", "settings.toml",
    ]  # fmt: skip
    recorded = tomllib.loads((tmp_path / "a" / "settings.toml").read_text())
    assert recorded["recipe"] == "unidec" and recorded["batches"]["cap"] == 8 * 32
    assert recorded["heads"]["head_lr"] == 0.04
    metrics = again.info["metrics"]
    assert metrics["rankings"]["combined"] == metrics["validation"]
    assert {"P@1", "PSP@5", "R@10"} <= set(metrics["rankings"]["classifier"])

    from sentence_transformers import SentenceTransformer

    stock = SentenceTransformer(str(tmp_path / "a" / "encoder"), device="cpu")
    texts = list(data.labels.texts)
    vectors = again.encoder.encode(again.encoder.tokenize(texts))
    np.testing.assert_allclose(stock.encode(texts), vectors, atol=TINY)


def test_three_rankings_come_of_one_encoding(
    data: ls.Dataset, static: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ls.train(data, recipe="unidec", **static | {"epochs": 1})
    assert data.test is not None
    texts = list(data.test.texts)[:50]
    whole, seen = model.rankings(texts, k=7), []
    encode = model.encode
    monkeypatch.setattr("labelspace.model.predicting.QUERY_BLOCK", 16)
    monkeypatch.setattr(model, "encode", lambda part, *rest: [seen.extend(part), encode(part, *rest)][1])
    blocks = model.rankings(texts, k=7, probabilities=model.calibration is not None)
    assert seen == texts
    assert list(blocks) == list(whole) == ["combined", "encoder", "classifier"]
    for name in whole:
        assert np.array_equal(blocks[name].indices, whole[name].indices)
        np.testing.assert_allclose(blocks[name].scores, whole[name].scores, atol=TINY)
    assert np.array_equal(model.predict(texts, 7).indices, whole["combined"].indices)
    for name, heads in (("encoder", model.heads), ("classifier", model.heads)):
        assert heads is not None
        part = heads.columns(name)
        alone = encode(texts)[:, part] @ model.memory.keys[:, part].numpy().T / heads.weight(name)
        np.testing.assert_allclose(np.sort(-alone, axis=1)[:, :7], -whole[name].scores, atol=TINY)
    assert {len(of) for of in model.rankings([], k=7).values()} == {0}


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_loss": "supcon", "classifier_loss": "balanced"},
        {"encoder_loss": "balanced", "classifier_loss": "supcon", "directions": "both"},
        {"encoder_loss": "softmax", "classifier_loss": "softmax", "directions": "none"},
        {"encoder_loss": "soft_top_k", "classifier_loss": "soft_top_k", "k": 2},
        {"classifier_loss": "bce", "classifier_norm": "never"},
        {"directions": "classifier"},
        {"pool": "some"},
        {"num_positives": 0, "pool": "some", "clusters": True},
        {"num_positives": 1, "num_negatives": 1, "gap": 1000, "pool": "some"},
        {"cap": 8, "gap": 2, "pool": "some"},
        {"pool": "all", "clusters": True},
        {"classifier_norm": "both"},
        {"classifier_norm": "never"},
        {"classifier_norm": "tuned"},
        {"encoder_dim": 32, "classifier_dim": 32, "head_dropout": 0.1, "table_dropout": 0.1},
        {"encoder_dim": 16, "classifier_dim": 24, "identity": False, "table_init": "random"},
        {"table_optimizer": "adagrad", "table_lr": 0.05},
        {"table_dtype": "bf16"},
        {"table_dtype": "bf16", "table_optimizer": "adagrad", "table_lr": 0.05},
        {"label_documents": False, "weight_decay": 0.01},
        {"precision": "bf16"},
        {"max_score": 0.9, "relative_margin": 0.05, "pool": "some"},
        {"classifier_labels": "all", "table_lr": 0.003},
        {"classifier_labels": "all", "table_lr": 0.001, "table_momentum": 0.9, "table_dtype": "bf16"},
    ],
)
def test_every_way_of_training_learns(data: ls.Dataset, static: dict[str, Any], changes: dict[str, Any]) -> None:
    found = scores(ls.train(data, recipe="unidec", **{**static, **changes}), data)
    assert found["combined"]["P@1"] >= 75 and found["encoder"]["P@1"] >= 60
    assert found["classifier"]["P@1"] >= 60 or changes.get("classifier_loss") == "bce"


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_one_head_alone(data: ls.Dataset, static: dict[str, Any], weight: float) -> None:
    start = ls.train(data, recipe="unidec", **{**static, "lr": 1e-9, "table_lr": 1e-9, "epochs": 1})
    model = ls.train(data, recipe="unidec", **static, encoder_weight=weight)
    assert scores(model, data)["encoder" if weight else "classifier"]["P@1"] >= 85
    # what both rankings weigh in the search is chosen anew after every training, and scales the rows
    rows, first = (
        m.memory.keys[:, m.heads.columns("classifier")] / m.heads.weight("classifier")
        for m in (model, start)
        if m.heads is not None
    )
    assert torch.allclose(rows, first, atol=1e-4) == (weight == 1.0)


def test_a_transformer_learns(data: ls.Dataset, tiny_transformer: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "encoder": str(tiny_transformer), "epochs": 12, "batch_size": 32, "lr": 3e-3, "table_lr": 0.02,
        "chunk_size": 16, "encoder_dim": 24, "classifier_dim": 20, "precision": "float32", "device": "cpu",
        "evaluations": 2,
    }  # fmt: skip
    model = ls.train(data, recipe="unidec", out=tmp_path / "a", **settings)
    found = scores(model, data)
    assert found["combined"]["P@1"] >= 85 and model.info["config"]["fit"]["weight_decay"] == 0.05
    assert model.memory.keys.shape == (25, 44)
    assert scores(ls.Model.load(tmp_path / "a"), data) == found


def test_defaults_of_a_transformer_have_heads(data: ls.Dataset, tiny_transformer: Path) -> None:
    model = ls.train(data, recipe="unidec", encoder=str(tiny_transformer), epochs=1, batch_size=64)
    assert model.memory.keys.shape == (25, 768)


@pytest.mark.parametrize("norm", ["search", "both", "never"])
def test_scores_are_what_classifier_norm_says(norm: Any) -> None:
    """Rows of unequal length, by plain NumPy."""
    torch.manual_seed(0)
    heads = TwoHeads(5, 4, 3, identity=False, classifier_norm=norm, dropout=0.3)
    e, label_e, rows = torch.randn(6, 5), torch.randn(7, 5), torch.randn(7, 3) * torch.arange(1, 8)[:, None]

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    assert heads.encoder is not None and heads.classifier is not None
    weight, bias = (p.detach().numpy() for p in heads.encoder.parameters())
    g_d = unit(np.tanh(e.numpy() @ weight.T + bias))
    l_d = unit(np.tanh(label_e.numpy() @ weight.T + bias))
    weight, bias = (p.detach().numpy() for p in heads.classifier.parameters())
    g_c, w = e.numpy() @ weight.T + bias, rows.numpy()
    if norm != "never":
        g_c, w = unit(g_c), unit(w)
    expected = {"encoder": g_d @ l_d.T, "classifier": g_c @ w.T}
    expected["combined"] = expected["encoder"] + expected["classifier"]
    near = rounding(4 + 5 + 3, 1.6 * max(1, float(np.linalg.norm(g_c, axis=1).max() * np.linalg.norm(w, axis=1).max())))
    heads.train()
    queries, keys = heads.queries(e), heads.keys(label_e, rows)
    assert heads.training
    for ranking, scores in expected.items():
        part = heads.columns(ranking)  # type: ignore[arg-type]
        np.testing.assert_allclose(queries[:, part] @ keys[:, part].T, scores, atol=near)
    heads.eval()
    trained = (heads.document(e) @ heads.label(rows).T).detach().numpy()
    plain = e.numpy() @ weight.T + bias
    np.testing.assert_allclose(
        trained, unit(plain) @ unit(rows.numpy()).T if norm == "both" else plain @ rows.numpy().T, rtol=0, atol=near
    )
    new = heads.keys(label_e, None)
    made = unit(label_e.numpy() @ weight.T + bias)
    np.testing.assert_allclose(new[:, 4:], made, atol=rounding(5))
    np.testing.assert_allclose(queries @ new.T, expected["encoder"] + g_c @ made.T, atol=near)
    heads.search_weight, heads.row_length = 0.2, 3.0
    length = 3.0 if norm == "never" else 1
    np.testing.assert_allclose(heads.keys(label_e, None)[:, 4:], 1.6 * made * length, atol=rounding(5, 5))
    weighted = heads.keys(label_e, rows)
    np.testing.assert_allclose(
        heads.queries(e) @ weighted.T, 0.4 * expected["encoder"] + 1.6 * expected["classifier"], atol=near
    )
    assert torch.equal(heads.queries(e), queries) and torch.equal(heads.documents(e), queries)


def test_rows_keep_a_power_of_their_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    e, label_e, rows = torch.randn(6, 5), torch.randn(7, 5), torch.randn(7, 5) * torch.arange(1, 8)[:, None]
    heads = {norm: TwoHeads(5, classifier_norm=norm) for norm in ("search", "never", "tuned")}
    tuned, lengths = heads["tuned"], rows.norm(dim=1)
    tuned.row_length = float(lengths.mean())
    classifier = {}
    for name, power in (("search", 0.0), ("root", 0.5), ("never", 1.0)):
        tuned.row_power = power
        classifier[name] = tuned.keys(label_e, rows)[:, 5:]
        torch.testing.assert_close(classifier[name].norm(dim=1), (lengths / lengths.mean()) ** power)
    torch.testing.assert_close(classifier["search"], heads["search"].keys(label_e, rows)[:, 5:])
    torch.testing.assert_close(classifier["never"] * lengths.mean(), heads["never"].keys(label_e, rows)[:, 5:])
    torch.testing.assert_close(tuned.keys(label_e, None)[:, 5:].norm(dim=1), torch.ones(7))
    again = TwoHeads.load(tmp_path / "h", tuned.save(tmp_path / "h"))
    assert torch.equal(again.keys(label_e, rows), tuned.keys(label_e, rows))
    assert torch.equal(again.queries(e), tuned.queries(e))


class Rows:
    """Label keys of one head alone."""

    def __init__(self, heads: TwoHeads, rows: torch.Tensor):
        self.heads, self.rows = heads, rows

    def now(self) -> torch.Tensor:
        return self.heads.keys(torch.ones_like(self.rows), self.rows)

    def forget(self) -> None:
        pass


@pytest.mark.parametrize(("truth_by", "expected"), [("product", 1.0), ("direction", 0.0)])
def test_the_power_of_the_lengths_is_what_ranks_validation_documents_best(
    data: ls.Dataset, tiny_transformer: Path, tmp_path: Path, truth_by: str, expected: float
) -> None:
    encoder = ls.train(data, recipe="unidec", encoder="static", base=str(tiny_transformer), epochs=1).encoder
    heads = TwoHeads(encoder.dim, classifier_norm="tuned")
    rows = torch.randn(len(data.labels), encoder.dim, generator=torch.Generator().manual_seed(0))
    rows *= torch.linspace(0.3, 3, len(rows))[:, None]
    heads.row_length = float(rows.norm(dim=1).mean())
    queries = torch.from_numpy(encoder.encode(encoder.tokenize(data.train.texts, tmp_path)))
    products = queries @ (rows if truth_by == "product" else torch.nn.functional.normalize(rows, dim=1)).T
    truth = np.zeros(products.shape, dtype=np.float32)
    np.put_along_axis(truth, products.argsort(dim=1, descending=True)[:, :3].numpy(), 1.0, axis=1)
    corpus = dataclasses.replace(data.train, targets=sp.csr_array(truth))
    own = dataclasses.replace(data, train=corpus, valid=corpus)
    valid = Validation(own, encoder, Rows(heads, rows), FitSettings())
    metrics = valid.of_rankings(*Choice(heads, weight=False, power=True).make(valid), heads)
    assert heads.row_power == expected and metrics["classifier P@3"] == 100


def test_the_best_share_of_the_dual_encoder_is_that_of_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    queries, keys = (torch.from_numpy(rng.normal(size=(n, 5)).astype(np.float32)) for n in (60, 30))
    queries[40:, 2:] *= 0.01  # these are told apart by the dual encoder's part alone
    truth = np.zeros((60, 30), dtype=np.float32)
    both = 0.3 * (queries[:, :2] @ keys[:, :2].T) + 0.7 * (queries[:, 2:] @ keys[:, 2:].T)
    truth[np.arange(60)[:, None], both.numpy().argsort(1)[:, -3:]] = 1
    truth[::7] = 0

    def quality(share: float) -> float:
        scores = share * (queries[:, :2] @ keys[:, :2].T) + (1 - share) * (queries[:, 2:] @ keys[:, 2:].T)
        top = np.argsort(-scores.numpy(), axis=1)[:, :5]
        return float(sum(
            sum(truth[row, label] / np.log2(place + 2) for place, label in enumerate(labels))
            / sum(1 / np.log2(place + 2) for place in range(max(1, min(5, int(truth[row].sum())))))
            for row, labels in enumerate(top)
        ))  # fmt: skip

    found = best_search_weight(queries, keys, 2, sp.csr_array(truth))
    values = {share: quality(share) for share in SEARCH_WEIGHTS}
    assert values[found] >= max(values.values()) - 1e-9
    assert len(set(values.values())) > 5 and found != 0.5


def test_filtered_pairs_say_nothing_about_the_share() -> None:
    """The dual encoder finds each document's own title first, which is filtered; behind it it is right."""
    rng = np.random.default_rng(0)
    n, size = 80, 200
    made = (torch.from_numpy(rng.normal(size=(size, 8)).astype(np.float32)) for _ in range(2))
    first, second = (torch.nn.functional.normalize(vectors, dim=1) for vectors in made)
    own, true = np.arange(n), 80 + np.arange(n)
    queries = torch.cat(
        [first[own] + 0.8 * first[true], torch.from_numpy(rng.normal(size=(n, 8)).astype(np.float32))], 1
    )
    truth = sp.csr_array((np.ones(n), (np.arange(n), true)), shape=(n, size))
    keys = torch.cat([first, second], dim=1)
    pairs = np.stack([np.arange(n), own], axis=1)
    plain = best_search_weight(queries, keys, 8, truth)
    found = best_search_weight(queries, keys, 8, truth, pairs)
    assert found >= plain and found > 0.5

    def quality(share: float) -> float:
        scores = (share * queries[:, :8] @ keys[:, :8].T + (1 - share) * queries[:, 8:] @ keys[:, 8:].T).numpy()
        scores[np.arange(n), own] = -np.inf
        places = (scores > scores[np.arange(n), true][:, None]).sum(axis=1)
        return float(np.where(places < 5, 1 / np.log2(places + 2), 0).sum())

    values = {share: quality(share) for share in SEARCH_WEIGHTS}
    assert values[found] >= max(values.values()) - 1e-6


def test_settings_that_one_vs_all_does_not_have_are_refused() -> None:
    for given in (
        {"table_dropout": 0.1},
        {"table_optimizer": "adagrad"},
        {"classifier_loss": "supcon"},
    ):
        with pytest.raises(SettingsError, match=f"{next(iter(given))}: it does nothing with classifier_labels 'all'"):
            resolve("unidec", {"classifier_labels": "all", **given})
    assert resolve("unidec", {"classifier_labels": "all", "table_momentum": 0.9, "table_dropout": 0.0})


def test_heads_that_begin_as_the_identity_leave_the_order_alone() -> None:
    torch.manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(n, 300), dim=1) for n in (5, 40))
    same = TwoHeads(300, 300, 300)
    torch.testing.assert_close(same.queries(x)[:, :300], x, atol=5e-3, rtol=0)
    torch.testing.assert_close(same.queries(x)[:, 300:], x)
    plain = TwoHeads(300)
    assert plain.alike and torch.equal(plain.documents(y), plain.queries(y)[:, :300]) and not same.alike
    assert list(plain.parameters()) == [] and torch.equal(plain.dual(y), torch.nn.functional.normalize(y, dim=1))


def test_both_directions_are_the_mean_of_the_loss_and_its_transpose() -> None:
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(6, 5, generator=g), torch.randn(9, 5, generator=g)
    positives = torch.tensor([[0, 1, 1, 4, 5], [3, 3, 8, 0, 2]])
    for name in ("decoupled_softmax", "softmax", "supcon", "balanced", "bce"):
        settings = made(UnidecSettings, {"encoder_loss": name, "temperature": 0.7})
        function = getattr(ls.losses, name)
        logits = queries @ keys.T / 0.7
        expected = (function(logits, positives) + function(logits.T, positives.flip(0))) / 2
        torch.testing.assert_close(PoolLoss(settings, None).encoder(queries, keys, positives), expected)


def test_only_rows_of_the_pool_get_a_gradient() -> None:
    table = LabelTable(torch.randn(1000, 4))
    pool = np.array([3, 70, 999])
    rows = table(pool)
    assert torch.equal(rows, table.weight[torch.from_numpy(pool)])
    (rows * torch.arange(3.0)[:, None]).sum().backward()
    gradient = table.weight.grad
    assert gradient is not None and gradient.is_sparse
    gradient = gradient.coalesce()
    assert gradient.indices().tolist() == [[3, 70, 999]]
    assert gradient.values().tolist() == [[0.0] * 4, [1.0] * 4, [2.0] * 4]
    low = LabelTable(torch.randn(10, 4).bfloat16(), dropout=0.5)
    low(np.array([1, 5])).sum().backward()
    assert low.weight.grad is not None and low.weight.grad.dtype == torch.bfloat16
    dropped = low(np.arange(10))
    assert 5 < int((dropped == 0).sum()) < 35
    assert (low.eval()(np.arange(10)) != 0).all()


def test_every_parameter_is_in_one_group_with_its_rate_and_decay() -> None:
    class Fake(torch.nn.Module):
        row_sparse = False

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)

    module = UnidecModule(Fake(), TwoHeads(4, 4, 4), LabelTable(torch.zeros(9, 4)))  # type: ignore[arg-type]
    settings = made(UnidecSettings, {"lr": 0.1, "head_lr": 0.3, "table_lr": 0.7, "weight_decay": 0.05})
    rates = {}
    for optimizer in optimizers(module, settings):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert id(parameter) not in rates
                rates[id(parameter)] = group["lr"]
                assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)
    expected = {"encoder": 0.1, "heads": 0.3, "table": 0.7}
    assert rates == {id(p): expected[name.split(".")[0]] for name, p in module.named_parameters()}


@pytest.mark.parametrize(
    "options", [{}, {"pool": "some"}, {"pool": "some", "clusters": True, "encoder_dim": 8, "classifier_dim": 8}]
)
def test_renumbering_labels_changes_no_weight(
    data: ls.Dataset, static: dict[str, Any], options: dict[str, Any]
) -> None:
    order = np.random.default_rng(0).permutation(len(data.labels))
    short = {**static, "epochs": 4, **options}
    a, b = ls.train(data, recipe="unidec", **short), ls.train(data.renumbered(order), recipe="unidec", **short)
    assert torch.equal(b.memory.keys, a.memory.keys[torch.from_numpy(order)])


def test_runs_repeat_bit_by_bit(data: ls.Dataset, static: dict[str, Any]) -> None:
    short = {**static, "epochs": 3, "table_dtype": "bf16", "pool": "some"}
    one, two, other = (ls.train(data, recipe="unidec", **{**short, "seed": seed}) for seed in (3, 3, 4))
    assert torch.equal(one.memory.keys, two.memory.keys)
    assert not torch.equal(one.memory.keys, other.memory.keys)


def test_evaluate_prints_three_rankings(
    data: ls.Dataset, static: dict[str, Any], toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ls.train(data, recipe="unidec", out=tmp_path / "a", **{**static, "epochs": 2, "lr": 0.004})
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "a"), str(toy_folder), "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["rankings"]) == ["combined", "encoder", "classifier"]
    assert printed["metrics"] == printed["rankings"]["combined"]
    assert {k: v["P@1"] for k, v in printed["rankings"].items()} == pytest.approx(
        {k: v["P@1"] for k, v in scores(model, data).items()}
    )
    assert len({v["nDCG@5"] for v in printed["rankings"].values()}) == 3
    assert main(["evaluate", str(tmp_path / "a"), str(toy_folder), "--quiet"]) == 0
    assert "classifier" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier_labels": "all", "classifier_norm": "both"}, "'both' does not go with"),
        ({"table_momentum": 0.9}, "it is for classifier_labels 'all'"),
        ({"encoder_loss": "hinge"}, "encoder_loss"),
        ({"encoder_weight": 1.5}, "encoder_weight"),
        ({"loss": "softmax"}, "has no setting 'loss'"),
    ],
)
def test_mistakes_end_in_one_sentence(
    data: ls.Dataset, static: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ls.SettingsError, match=message) as caught:
        ls.train(data, recipe="unidec", **{**static, **changes})
    assert "\n" not in str(caught.value)


def test_damaged_heads_are_refused_by_name(data: ls.Dataset, static: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "a"
    ls.train(data, recipe="unidec", out=out, **{**static, "epochs": 1, "encoder_dim": 8, "classifier_dim": 8})
    file = out / "head.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-3])
    with pytest.raises(ls.ModelError, match=r"head\.safetensors is damaged"):
        ls.Model.load(out)
    file.unlink()
    with pytest.raises(ls.ModelError, match=r"head\.safetensors is missing"):
        ls.Model.load(out)


def test_uniform_negatives_widen_a_picked_pool_alone(data: ls.Dataset, static: dict[str, Any]) -> None:
    short = {**static, "epochs": 1, "cap": 8, "gap": 0}
    plain, wide = (ls.train(data, recipe="unidec", pool="some", uniform_negatives=n, **short) for n in (0, 10))
    assert not torch.equal(plain.memory.keys, wide.memory.keys)
    with pytest.raises(SettingsError, match="uniform_negatives: the pool 'all' has every label"):
        ls.train(data, recipe="unidec", uniform_negatives=10, **short)
