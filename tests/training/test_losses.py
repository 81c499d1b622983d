"""Losses against loops in float64, against autograd, at the edges, and over label shards."""

from __future__ import annotations

import gc
import math
from functools import partial

import pytest
import torch

from labelspace.training import losses
from labelspace.training.losses_fused import linear_loss, linear_loss_plain

NAMES = ["softmax", "decoupled_softmax", "supcon", "balanced", "bce", "soft_top_k"]
OF_ROWS = [name for name in NAMES if name != "bce"]
FUNCTIONS = {
    "softmax": losses.softmax,
    "decoupled_softmax": losses.decoupled_softmax,
    "supcon": losses.supcon,
    "balanced": losses.balanced,
    "bce": losses.bce,
    "soft_top_k": partial(losses.soft_top_k, k=2),
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def logsumexp(xs: list[float]) -> float:
    top = max(xs, default=-math.inf)
    return -math.inf if top == -math.inf else top + math.log(sum(math.exp(x - top) for x in xs))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def reference(name: str, logits: torch.Tensor, positives: torch.Tensor, weights: torch.Tensor | None) -> float:
    """The loss by plain loops over Python floats."""
    table = logits.tolist()
    relevance = [1.0] * positives.shape[1] if weights is None else weights.tolist()
    mine: list[dict[int, float]] = [{} for _ in table]
    for row, column, r in zip(*positives.tolist(), relevance, strict=True):
        mine[row][column] = r
    if name == "bce":
        total = sum(
            softplus(s) - mine[i].get(j, 0.0) * (s if j in mine[i] else 0.0)
            for i, row in enumerate(table)
            for j, s in enumerate(row)
            if s > -math.inf
        )
        return total / (len(table) * len(table[0]))
    total, rows = 0.0, 0
    for row, labels in zip(table, mine, strict=True):
        if not labels:
            continue
        rows += 1
        if name == "softmax":
            total += sum(r * (logsumexp(row) - row[j]) for j, r in labels.items())
        elif name == "supcon":
            total += sum(r * (logsumexp(row) - row[j]) for j, r in labels.items()) / len(labels)
        elif name == "balanced":
            lowered = logsumexp([s - (math.log(len(labels)) if j in labels else 0.0) for j, s in enumerate(row)])
            total += sum(r * (lowered - row[j]) for j, r in labels.items()) / len(labels)
        elif name == "decoupled_softmax":
            rest = [s for j, s in enumerate(row) if j not in labels]
            total += sum(r * (logsumexp([row[j], *rest]) - row[j]) for j, r in labels.items()) / len(labels)
        else:
            low, high = -1e5, 1e5
            for _ in range(200):
                t = (low + high) / 2
                low, high = (t, high) if sum(sigmoid(2 * (s + t)) for s in row) < 2 else (low, t)
            total += sum(r * softplus(-2 * (row[j] + low)) for j, r in labels.items()) / len(labels)
    return total / max(rows, 1)


def example(seed: int = 0, b: int = 5, p: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with an empty row, a row of three positives, and masked columns; pairs in no order."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, p, generator=g, dtype=torch.float64) * 3
    pairs = torch.tensor([[3, 0, 2, 3, 3, 4], [1, 2, 0, 6, 4, 5]])
    logits[0, 5] = logits[4, 0] = -torch.inf
    return logits, pairs, torch.rand(6, generator=g, dtype=torch.float64) * 0.9 + 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_loops(name: str, weighted: bool, seed: int) -> None:
    logits, pairs, weights = example(seed)
    w = weights if weighted else None
    value = FUNCTIONS[name](logits, pairs, w)
    assert float(value) == pytest.approx(reference(name, logits, pairs, w), rel=1e-10)
    whole = logits.nan_to_num(neginf=-1.0)  # the other direction: a column of the pool is a row
    value = FUNCTIONS[name](whole.T, pairs.flip(0), w)
    assert float(value) == pytest.approx(reference(name, whole.T, pairs.flip(0), w), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient(name: str, weighted: bool) -> None:
    logits, pairs, weights = example()
    logits = logits.nan_to_num(neginf=-1.0).requires_grad_()
    w = weights if weighted else None
    assert torch.autograd.gradcheck(lambda x: FUNCTIONS[name](x, pairs, w), (logits,), eps=1e-6, atol=1e-7)
    assert torch.autograd.gradcheck(lambda x: FUNCTIONS[name](x.T, pairs.flip(0), w), (logits,), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_masked_entries_have_no_gradient(name: str) -> None:
    logits, pairs, _ = example()
    logits.requires_grad_()
    FUNCTIONS[name](logits, pairs).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 5] == 0 and logits.grad[4, 0] == 0


@pytest.mark.parametrize("name", OF_ROWS)
def test_row_without_positive_changes_nothing(name: str) -> None:
    logits, pairs, _ = example()
    with_empty = logits.clone().requires_grad_()
    value = FUNCTIONS[name](with_empty, pairs)
    value.backward()
    keep = [0, 2, 3, 4]
    moved = torch.stack([torch.tensor([keep.index(i) for i in pairs[0].tolist()]), pairs[1]])
    assert value.item() == pytest.approx(float(FUNCTIONS[name](logits[keep], moved)), rel=1e-12)
    assert with_empty.grad is not None
    assert (with_empty.grad[1] == 0).all()
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    alone = logits.clone().requires_grad_()
    zero = FUNCTIONS[name](alone, nothing)
    zero.backward()
    assert zero.item() == 0
    assert alone.grad is not None
    assert (alone.grad == 0).all()


def test_row_of_positives_only() -> None:
    every = torch.tensor([[0, 0, 0], [0, 1, 2]])
    for row in ([1.0, 2.0, 3.0], [1e4, -1e4, 0.0]):
        logits = torch.tensor([row], requires_grad=True)
        loss = losses.decoupled_softmax(logits, every)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert (logits.grad == 0).all()
    one = torch.tensor([[0.3]], requires_grad=True)
    pair = torch.zeros(2, 1, dtype=torch.int64)
    for function in (losses.softmax, losses.decoupled_softmax, losses.supcon, losses.balanced):
        assert function(one, pair).item() == pytest.approx(0)
    with pytest.raises(ValueError, match="0 < k"):
        losses.soft_top_k(one, pair, k=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_finite_at_extreme_logits(name: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    logits = ((torch.randint(0, 3, (6, 9), generator=g) - 1) * 1e4).to(dtype).requires_grad_()
    pairs = torch.tensor([[0, 1, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
    value = FUNCTIONS[name](logits, pairs)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name", OF_ROWS)
def test_shift_invariant(name: str) -> None:
    logits, pairs, _ = example()
    assert float(FUNCTIONS[name](logits - 200, pairs)) == pytest.approx(float(FUNCTIONS[name](logits, pairs)), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_input_is_not_changed(name: str) -> None:
    logits, pairs, weights = example()
    before = logits.clone()
    FUNCTIONS[name](logits, pairs, weights)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", NAMES)
def test_renumbering_changes_nothing(name: str) -> None:
    logits, pairs, _ = example()
    rows, columns = torch.randperm(5), torch.randperm(7)
    moved = torch.stack([torch.argsort(rows)[pairs[0]], torch.argsort(columns)[pairs[1]]])
    assert float(FUNCTIONS[name](logits[rows][:, columns], moved)) == pytest.approx(
        float(FUNCTIONS[name](logits, pairs)), rel=1e-12
    )


class Shards:
    """Runs a loss on label shards in lock step: every reduction sees the vectors of all shards."""

    def __init__(self, bounds: list[int]):
        self.bounds = bounds

    def run(self, name: str, logits: torch.Tensor, pairs: torch.Tensor) -> tuple[list[float], torch.Tensor]:
        import threading

        count = len(self.bounds) - 1
        barrier, slots = threading.Barrier(count), [torch.empty(0)] * count
        values: list[float] = [0.0] * count
        gradients = [torch.empty(0)] * count

        def reduce(x: torch.Tensor, op: str, rank: int) -> torch.Tensor:
            slots[rank] = x
            barrier.wait()
            stacked = torch.stack(slots)
            barrier.wait()
            if op == "logsumexp":
                return torch.logsumexp(stacked, 0)
            return {"sum": stacked.sum(0), "max": stacked.amax(0), "min": stacked.amin(0)}[op]

        def work(rank: int) -> None:
            first, last = self.bounds[rank], self.bounds[rank + 1]
            mine = pairs[:, (pairs[1] >= first) & (pairs[1] < last)].clone()
            mine[1] -= first
            part = logits[:, first:last].clone().requires_grad_()
            value = FUNCTIONS[name](part, mine, None, partial(reduce, rank=rank))
            value.backward()
            assert part.grad is not None
            values[rank], gradients[rank] = value.item(), part.grad

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return values, torch.cat(gradients, dim=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bounds", [[0, 7], [0, 4, 7], [0, 2, 5, 7]])
def test_shards_equal_one_process(name: str, bounds: list[int]) -> None:
    logits, pairs, _ = example()
    logits = logits.nan_to_num(neginf=-2.0)
    whole = logits.clone().requires_grad_()
    value = FUNCTIONS[name](whole, pairs)
    value.backward()
    values, gradient = Shards(bounds).run(name, logits, pairs)
    assert values == pytest.approx([value.item()] * len(values), rel=1e-12)
    assert whole.grad is not None
    torch.testing.assert_close(gradient, whole.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bounds", [[0, 7], [0, 2, 4, 7]])
def test_every_label_once_as_the_only_positive(bounds: list[int]) -> None:
    logits, _, _ = example()
    logits = logits.nan_to_num(neginf=-2.0)
    for label in range(7):
        pair = torch.tensor([[2], [label]])
        values, _ = Shards(bounds).run("decoupled_softmax", logits, pair)
        assert values[0] == pytest.approx(reference("decoupled_softmax", logits, pair, None), rel=1e-12)


def test_the_balanced_denominator_is_the_negatives_and_the_mean_positive() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5, -0.3]], dtype=torch.float64)
    value = losses.balanced(logits, torch.tensor([[0, 0], [0, 1]]))
    mean = (math.exp(1) + math.exp(2)) / 2
    assert float(value) == pytest.approx(math.log(mean + math.exp(0.5) + math.exp(-0.3)) - 1.5, rel=1e-12)


def test_supcon_is_softmax_with_weights_of_one_over_m() -> None:
    logits, pairs, _ = example()
    m = torch.bincount(pairs[0]).double()[pairs[0]]
    assert float(losses.supcon(logits, pairs)) == pytest.approx(float(losses.softmax(logits, pairs, 1 / m)), rel=1e-12)


def test_soft_top_k_shift_sums_to_k() -> None:
    logits, _, _ = example()
    k = torch.tensor([1, 2, 3, 4, 5])
    shift = losses.top_k_shift(logits, k, alpha=2.0)
    torch.testing.assert_close(torch.sigmoid(2 * (logits + shift[:, None])).sum(1), k.double())
    wide = torch.linspace(-1, 1, 100_000)[None]
    mass = torch.sigmoid(2 * (wide + losses.top_k_shift(wide, 5, 2.0)[:, None])).sum()
    assert float(mass) == pytest.approx(5, rel=1e-3)


def test_soft_top_k_of_as_many_places_as_positives() -> None:
    logits, pairs, _ = example()
    counts = torch.bincount(pairs[0], minlength=len(logits)).clamp(min=1)
    named = losses.soft_top_k(logits, pairs, k="positives")
    assert named == losses.soft_top_k(logits, pairs, k=counts) != losses.soft_top_k(logits, pairs, k=1)
    queries, keys = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    form = losses.closed_form("soft_top_k", k="positives", clamp=True)
    blocks = linear_loss(form, queries, keys, pairs, temperature=0.5)
    assert torch.isclose(blocks, losses.soft_top_k(queries @ keys.T / 0.5, pairs, k=counts))


def test_soft_top_k_with_fewer_columns_than_places_can_be_clamped() -> None:
    logits = torch.tensor([[1.0, 0.5, -1.0], [0.3, -torch.inf, -torch.inf]], dtype=torch.float64)
    shift = losses.top_k_shift(logits, 5, 2.0, clamp=True)
    torch.testing.assert_close(torch.sigmoid(2 * (logits + shift[:, None])).sum(1), torch.tensor([2.0, 0.5]).double())
    form = losses.closed_form("soft_top_k", k=5, clamp=True)
    leaf = logits.requires_grad_()
    losses.apply(form, leaf, torch.tensor([[0, 1], [0, 0]])).backward()
    assert leaf.grad is not None and torch.isfinite(leaf.grad).all() and leaf.grad[1].abs().sum() < 1e-12


def test_bad_arguments_are_refused() -> None:
    logits, pairs, weights = example()
    with pytest.raises(ValueError, match="choose one of softmax"):
        losses.closed_form("hinge")
    with pytest.raises(ValueError, match="int64"):
        losses.softmax(logits, pairs.int())
    with pytest.raises(ValueError, match="weights"):
        losses.softmax(logits, pairs, weights[:2])
    with pytest.raises(ValueError, match="-inf"):
        losses.decoupled_softmax(logits, torch.tensor([[0], [5]]))
    with pytest.raises(ValueError, match="alpha"):
        losses.soft_top_k(logits, pairs, alpha=0.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("height, width", [(8, 11), (8, 4), (3, 11), (3, 4), (1, 1)])
def test_linear_loss_equals_its_plain_twin(name: str, height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelspace.training.losses_fused.ROW_BLOCK", height)
    monkeypatch.setattr("labelspace.training.losses_fused.LOGITS_BLOCK_BYTES", 8 * height * width)
    g = torch.Generator().manual_seed(3)
    form = losses.closed_form(name, **({"k": 2} if name == "soft_top_k" else {}))
    pairs = torch.tensor([[7, 0, 2, 2, 5], [10, 3, 0, 4, 9]])
    hidden = torch.tensor([[2, 0, 1], [1, 4, 2]])
    weights = torch.rand(5, generator=g, dtype=torch.float64)
    results = []
    for function in (linear_loss, linear_loss_plain):
        queries = torch.randn(8, 6, generator=g.manual_seed(4), dtype=torch.float64, requires_grad=True)
        keys = torch.randn(11, 6, generator=g, dtype=torch.float64, requires_grad=True)
        value = function(form, queries, keys, pairs, temperature=0.3, hidden=hidden, weights=weights)
        (2 * value).backward()
        results.append((value.detach(), queries.grad, keys.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 0.02])  # of the first exps are kept
@pytest.mark.parametrize("kept", [0, 3, 100])
@pytest.mark.parametrize("name", ["decoupled_softmax", "softmax", "supcon", "balanced", "bce"])
def test_low_precision_products_err_no_more_than_the_plain_ones(
    name: str, kept: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "labelspace.training.losses_fused.LOGITS_BLOCK_BYTES", 4 * 64 * 96
    )  # 6 blocks, the last one narrower
    monkeypatch.setattr("labelspace.training.losses_fused.KEPT_PRODUCTS", kept * 2 * 64 * 96)
    g = torch.Generator().manual_seed(0)
    form = losses.closed_form(name)
    queries = torch.nn.functional.normalize(torch.randn(64, 48, generator=g), dim=1)
    keys = torch.nn.functional.normalize(torch.randn(500, 48, generator=g), dim=1)
    pairs = torch.stack([torch.arange(64), torch.arange(64) * 3])
    hidden = torch.stack([torch.arange(60), 400 - torch.arange(60)])

    def run(function: object, dtype: torch.dtype, low: torch.dtype | None) -> list[torch.Tensor]:
        q, k = queries.to(dtype, copy=True).requires_grad_(), keys.to(dtype, copy=True).requires_grad_()
        value = function(form, q, k, pairs, temperature=temperature, hidden=hidden, dtype=low)  # type: ignore[operator]
        value.backward()
        assert q.grad is not None and k.grad is not None
        return [value.detach(), q.grad, k.grad]

    truth = run(linear_loss_plain, torch.float64, None)
    plain = run(linear_loss_plain, torch.float32, torch.bfloat16)
    fast = run(linear_loss, torch.float32, torch.bfloat16)
    for t, p, f in zip(truth, plain, fast, strict=True):
        error = float((f - t).norm() / t.norm())
        assert error <= float((p - t).norm() / t.norm()) * 1.1 + 1e-3


@pytest.mark.parametrize("name", ["decoupled_softmax", "softmax", "supcon", "balanced", "soft_top_k"])
@pytest.mark.parametrize("length", [1.0, 15.0])
def test_logits_of_long_vectors_are_not_rounded(name: str, length: float) -> None:
    """Raw vectors at temperature 1: products in bf16 would round logits near 225 by up to a half."""
    g = torch.Generator().manual_seed(0)
    queries, keys = (
        length * torch.nn.functional.normalize(torch.randn(count, 64, generator=g), dim=1) for count in (64, 3000)
    )
    pairs = torch.stack([torch.arange(64).repeat_interleave(3), torch.randperm(3000, generator=g)[:192]])
    form = losses.closed_form(name, **({"k": 5} if name == "soft_top_k" else {}))

    def gradients(function: object, dtype: torch.dtype, low: torch.dtype | None) -> list[torch.Tensor]:
        q, k = queries.to(dtype, copy=True).requires_grad_(), keys.to(dtype, copy=True).requires_grad_()
        temperature = 1.0 if length > 1 else 0.05
        function(form, q, k, pairs, temperature=temperature, dtype=low).backward()  # type: ignore[operator]
        assert q.grad is not None and k.grad is not None
        return [q.grad, k.grad]

    truth = gradients(linear_loss_plain, torch.float64, None)
    fast = gradients(linear_loss, torch.float32, torch.bfloat16)
    plain = gradients(linear_loss, torch.float32, None)
    for t, f, p in zip(truth, fast, plain, strict=True):
        if length > 1:
            assert torch.equal(f, p) and float((f - t).norm() / t.norm()) < 1e-3
        else:  # the products are in bf16 as before
            assert not torch.equal(f, p) and float((f - t).norm() / t.norm()) < 1e-2


def test_nothing_of_a_step_is_left_when_it_is_over() -> None:
    """Buffers are as large as a block of logits; a cycle of references would keep them until they are collected."""
    gc.collect()
    gc.disable()
    try:
        before = sum(type(x) is torch.Tensor for x in gc.get_objects())
        for _ in range(3):
            queries, keys = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
            form = losses.closed_form("decoupled_softmax")
            pairs = torch.tensor([[0, 1], [2, 3]])
            linear_loss(form, queries, keys, pairs, temperature=0.1, hidden=pairs + torch.tensor([[0], [4]])).backward()
            del queries, keys, pairs
        assert sum(type(x) is torch.Tensor for x in gc.get_objects()) <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("name", NAMES)
def test_without_a_document_there_is_nothing_to_learn(name: str) -> None:
    options = {"k": 2} if name == "soft_top_k" else {}
    form = losses.closed_form(name, **options)
    queries, keys = (torch.randn(n, 4, requires_grad=True) for n in (0, 3))
    value = linear_loss(form, queries, keys, torch.zeros(2, 0, dtype=torch.int64), temperature=0.1)
    value.backward()
    assert float(value.detach()) == 0
    assert queries.grad is not None and keys.grad is not None and not keys.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_pairs_outside_the_logits_and_other_nonsense_are_refused(name: str) -> None:
    form = losses.closed_form(name, **({"k": 2} if name == "soft_top_k" else {}))
    queries, keys = torch.randn(2, 4), torch.randn(3, 4)
    good = torch.tensor([[0], [1]])
    for wrong in ([[0], [-1]], [[0], [3]], [[2], [0]], [[-1], [0]]):
        pairs = torch.tensor(wrong)
        with pytest.raises(ValueError, match="positives has the pair .* outside logits"):
            FUNCTIONS[name](queries @ keys.T, pairs)
        for loss in (linear_loss, linear_loss_plain):
            with pytest.raises(ValueError, match="positives has the pair"):
                loss(form, queries, keys, pairs, temperature=0.1)
            with pytest.raises(ValueError, match="hidden has the pair"):
                loss(form, queries, keys, good, temperature=0.1, hidden=pairs)
    for loss in (linear_loss, linear_loss_plain):
        with pytest.raises(ValueError, match="at least one label"):
            loss(form, queries, keys[:0], good[:, :0], temperature=0.1)
    for temperature in (0.0, -1.0, math.nan):
        for loss in (linear_loss, linear_loss_plain):
            with pytest.raises(ValueError, match="above 0"):
                loss(form, queries, keys, good, temperature=temperature)
    for loss in (linear_loss, linear_loss_plain):
        with pytest.raises(ValueError, match="float32 or float64"):
            loss(form, queries.half(), keys.half(), good, temperature=0.1)
        with pytest.raises(ValueError, match="a positive is hidden"):
            loss(form, queries, keys, good, temperature=0.1, hidden=good)
    assert float(FUNCTIONS[name](torch.zeros(0, 3), good[:, :0])) == 0
