"""The one-vs-all head against autograd, chunk by chunk."""

from __future__ import annotations

import pytest
import torch

from labelspace.training.label_heads import OneVsAll, OneVsAllSGD


def example(kind: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, rows, pairs in no order, and the same pairs as a dense truth."""
    g = torch.Generator().manual_seed(0)
    queries, rows = (torch.randn(n, 6, generator=g, dtype=torch.float64).to(kind) for n in (5, 17))
    pairs = torch.tensor([[3, 0, 4, 0, 3, 1], [16, 2, 0, 11, 5, 5]])
    truth = torch.zeros(5, 17, dtype=kind)
    truth[pairs[0], pairs[1]] = 1
    return queries.requires_grad_(), rows, pairs, truth


@pytest.mark.parametrize("chunk", [1, 4, 16, 17, 100])
@pytest.mark.parametrize("scale", [1.0, 18.0])
def test_gradients_equal_autograd_whatever_the_chunk(chunk: int, scale: float) -> None:
    queries, rows, pairs, truth = example()
    table = rows.clone().requires_grad_()
    logits = scale * queries @ table.T
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    (3 * expected).backward()
    assert table.grad is not None and queries.grad is not None

    ours = queries.detach().clone().requires_grad_()
    head = OneVsAll(rows.clone(), scale=scale, chunk=chunk)
    optimizer = OneVsAllSGD(head, lr=0.1, weight_decay=0.3)
    value = head.loss(ours, pairs)
    (3 * value).backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(ours.grad, queries.grad, rtol=1e-10, atol=1e-12)
    optimizer.step()
    torch.testing.assert_close(head.weight.detach(), rows - 0.1 * (table.grad / 3 + 0.3 * rows), rtol=1e-10, atol=1e-12)
    before = head.weight.detach().clone()
    optimizer.step()  # nothing was learnt since
    assert torch.equal(before, head.weight)


def test_the_queries_gradient_uses_the_weights_before_their_update() -> None:
    queries, rows, pairs, _ = example()
    head = OneVsAll(rows.clone(), chunk=3)
    optimizer = OneVsAllSGD(head, lr=10.0)
    value = head.loss(queries, pairs)
    optimizer.step()  # before the backward pass, chunk by chunk
    value.backward()
    table = rows.clone()
    again = queries.detach().clone().requires_grad_()
    truth = example()[3]
    torch.nn.functional.binary_cross_entropy_with_logits(again @ table.T, truth, reduction="sum").backward()
    torch.testing.assert_close(queries.grad, again.grad, rtol=1e-10, atol=1e-12)


def test_momentum_equals_torch() -> None:
    queries, rows, pairs, truth = example()
    head, table = OneVsAll(rows.clone(), chunk=5), torch.nn.Parameter(rows.clone())
    ours = OneVsAllSGD(head, lr=0.05, momentum=0.9, weight_decay=0.01)
    theirs = torch.optim.SGD([table], lr=0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(4):
        head.loss(queries, pairs)
        ours.step()
        theirs.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(
            queries.detach() @ table.T, truth, reduction="sum"
        ).backward()
        theirs.step()
    torch.testing.assert_close(head.weight.detach(), table.detach(), rtol=1e-10, atol=1e-12)


def test_bf16_rows_follow_float32_and_repeat() -> None:
    results = []
    for kind, seed in ((torch.float32, 0), (torch.bfloat16, 0), (torch.bfloat16, 0), (torch.bfloat16, 1)):
        queries, rows, pairs, _ = example(torch.float32)
        head = OneVsAll((0.1 * rows).to(kind), chunk=7)
        optimizer = OneVsAllSGD(head, lr=1e-3, seed=seed)
        for _ in range(300):
            head.loss(queries, pairs)
            optimizer.step()
        results.append(head.weight.detach().float())
    assert torch.equal(results[1], results[2]) and not torch.equal(results[1], results[3])
    moved = (results[0] - 0.1 * example(torch.float32)[1]).norm()
    assert (results[1] - results[0]).norm() < 0.05 * moved


def test_extreme_logits_are_finite() -> None:
    head = OneVsAll(torch.tensor([[1e4], [-1e4], [0.0]]), chunk=2)
    queries = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    value = head.loss(queries, torch.tensor([[0, 1], [1, 2]]))
    value.backward()
    assert torch.isfinite(value) and queries.grad is not None and torch.isfinite(queries.grad).all()
