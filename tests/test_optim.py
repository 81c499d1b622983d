"""RowAdamW against torch's AdamW, and gradient clipping over dense and sparse gradients."""

from __future__ import annotations

import pytest
import torch

from labelspace.optim import RowAdamW, clip_gradients, make_optimizers


def sparse(rows: list[int], values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, size, check_invariants=True)


@pytest.mark.parametrize("decay_by", ["steps", "touches"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_adamw_when_every_row_is_touched(decay: float, decay_by: str) -> None:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=g, dtype=torch.float64)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    row = RowAdamW([ours], lr=0.1, weight_decay=decay, decay_by=decay_by)  # type: ignore[arg-type]
    dense = torch.optim.AdamW([theirs], lr=0.1, weight_decay=decay)
    for step in range(6):
        gradient = torch.randn(5, 3, generator=g, dtype=torch.float64)
        for optimizer in (row, dense):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        order = torch.randperm(5, generator=g).tolist()
        ours.grad, theirs.grad = sparse(order, gradient[order], (5, 3)), gradient.clone()
        row.step()
        dense.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay_by", ["steps", "touches"])
def test_untouched_rows_do_not_move_and_moments_decay(decay_by: str) -> None:
    table = torch.nn.Parameter(torch.ones(4, 2, dtype=torch.float64))
    optimizer = RowAdamW([table], lr=0.1, weight_decay=0.5, decay_by=decay_by)  # type: ignore[arg-type]
    m, v, w, last = 0.0, 0.0, 1.0, 0
    touched = {1: 2.0, 2: -1.0, 5: 0.5}
    for step in range(1, 6):
        if step in touched:
            table.grad = sparse([2], torch.full((1, 2), touched[step], dtype=torch.float64), (4, 2))
            d = step - last
            w *= (1 - 0.1 * 0.5) ** d
            e = d if decay_by == "steps" else 1
            m, v = 0.9**e * m + 0.1 * touched[step], 0.999**e * v + 0.001 * touched[step] ** 2
            w -= 0.1 * m / (1 - 0.9**step) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
            last = step
        else:
            table.grad = sparse([0], torch.zeros(1, 2, dtype=torch.float64), (4, 2))
        optimizer.step()
    assert table[2].tolist() == pytest.approx([w, w], rel=1e-12)
    assert table[1].tolist() == [1, 1] and table[3].tolist() == [1, 1]


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for block in (2, 100):
        monkeypatch.setattr("labelspace.optim.ROW_BLOCK", block)
        g = torch.Generator().manual_seed(0)
        table = torch.nn.Parameter(torch.randn(9, 4, generator=g))
        optimizer = RowAdamW([table], lr=0.1)
        for _ in range(3):
            table.grad = sparse([8, 1, 4, 2, 7], torch.randn(5, 4, generator=g), (9, 4))
            optimizer.step()
        results.append(table.detach().clone())
    assert torch.equal(*results)


def test_duplicate_rows_of_a_gradient_are_summed() -> None:
    a, b = torch.nn.Parameter(torch.zeros(3, 1)), torch.nn.Parameter(torch.zeros(3, 1))
    a.grad = sparse([1, 1], torch.tensor([[1.0], [2.0]]), (3, 1))
    b.grad = sparse([1], torch.tensor([[3.0]]), (3, 1))
    for parameter in (a, b):
        RowAdamW([parameter], lr=0.1).step()
    assert torch.equal(a, b)


def test_clip_scales_dense_and_sparse_together() -> None:
    dense, table = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(4, 1))
    for limit, factor in ((2.5, 0.5), (0.0, 1.0), (10.0, 1.0)):
        dense.grad = torch.tensor([3.0, 0.0])
        table.grad = sparse([2, 2], torch.tensor([[1.0], [3.0]]), (4, 1))
        assert clip_gradients([dense, table], limit) == pytest.approx(5)
        assert dense.grad.tolist() == pytest.approx([3 * factor, 0])
        assert table.grad.to_dense().ravel().tolist() == pytest.approx([0, 0, 4 * factor, 0])
    assert clip_gradients([torch.zeros(2)], 1.0) == 0


def test_every_parameter_is_in_one_group_with_its_decay() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    (optimizer,) = make_optimizers(module, False, lr=0.3, weight_decay=0.2)
    seen = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in module.parameters())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.2 if parameter.ndim > 1 else 0.0)
        assert group["lr"] == 0.3


def test_the_token_table_has_a_rate_of_its_own() -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3))
    table = module[0].weight
    (optimizer,) = make_optimizers(module, False, 0.3, 0.2, table, 10.0)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == 3 and rates[id(table)] == (3.0, 0.0)
    assert rates[id(module[1].weight)] == (0.3, 0.2) and rates[id(module[1].bias)] == (0.3, 0.0)
