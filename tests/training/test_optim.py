"""Row optimisers against torch's and plain loops, stochastic rounding, clipping over dense and sparse gradients."""

from __future__ import annotations

import pytest
import torch

from labelspace.training.optim import RowAdagrad, RowAdamW, clip_gradients, make_optimizers, round_stochastically


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
        monkeypatch.setattr("labelspace.training.optim.ROW_BLOCK", block)
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


def test_adamw_keeps_state_of_rows_seen_alone() -> None:
    table = torch.nn.Parameter(torch.zeros(1000, 3))
    optimizer = RowAdamW([table], lr=0.1)
    for rows in ([7, 900], [7, 3], [900, 1, 2, 4]):
        table.grad = sparse(rows, torch.ones(len(rows), 3), (1000, 3))
        optimizer.step()
    state = optimizer.state[table]
    assert state["used"] == 6 and len(state["exp_avg"]) == len(state["last"]) <= 9
    assert (state["places"] >= 0).nonzero().ravel().tolist() == [1, 2, 3, 4, 7, 900]
    assert torch.equal((table != 0).any(1), state["places"] >= 0)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adagrad_equals_loops(decay: float) -> None:
    g = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(6, 3, generator=g, dtype=torch.float64))
    optimizer = RowAdagrad([table], lr=0.1, weight_decay=decay)
    weights, sums, last = table.tolist(), [0.0] * 6, [0] * 6
    for step in range(1, 6):
        rows = torch.randperm(6, generator=g)[:3].tolist()
        gradient = torch.randn(3, 3, generator=g, dtype=torch.float64)
        table.grad = sparse(rows, gradient, (6, 3))
        optimizer.step()
        for row, values in zip(rows, gradient.tolist(), strict=True):
            sums[row] += sum(x * x for x in values) / 3
            for _ in range(step - last[row]):
                weights[row] = [w * (1 - 0.1 * decay) for w in weights[row]]
            weights[row] = [w - 0.1 * x / sums[row] ** 0.5 for w, x in zip(weights[row], values, strict=True)]
            last[row] = step
    torch.testing.assert_close(table.detach(), torch.tensor(weights, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_rounding_is_unbiased_and_exact_where_it_can_be() -> None:
    g = torch.Generator().manual_seed(0)
    for value in (1.001, -1.001, 3.14159e-20, -2.71828e20, 1e-39):
        x = torch.full((200_000,), value)
        rounded = round_stochastically(x, g)
        below, above = float(rounded.float().min()), float(rounded.float().max())
        assert rounded.dtype == torch.bfloat16 and below <= float(x[0]) <= above and len(rounded.unique()) <= 2
        error = rounded.double().mean() - x[0].double()
        assert abs(float(error)) <= 4 * (above - below) / 2 / 200_000**0.5
    exact = torch.tensor([0.0, 1.0, -2.5, float("inf"), float("-inf")])
    assert torch.equal(round_stochastically(exact, g).float(), exact)
    assert round_stochastically(torch.tensor([float("nan")]), g).isnan().all()


def test_small_updates_of_bf16_weights_add_up() -> None:
    """10,000 weights at 1.0, 2,000 steps of 5e-5: the mean goes where float32 goes, rounding to nearest stays."""
    results = {}
    for kind in (torch.float32, torch.bfloat16):
        table = torch.nn.Parameter(torch.ones(10, 1000, dtype=kind))
        optimizer = RowAdagrad([table], lr=1e-4, eps=1.0)
        optimizer.state[table] = {"step": 0, "sum": torch.zeros(10), "last": torch.zeros(10, dtype=torch.int32)}
        for _ in range(2_000):
            optimizer.state[table]["sum"].zero_()  # so that a step is lr g / (g + 1)
            table.grad = sparse(list(range(10)), torch.ones(10, 1000, dtype=kind), (10, 1000))
            optimizer.step()
        results[kind] = float(table.detach().float().mean())
    assert results[torch.float32] == pytest.approx(0.9, abs=1e-3)
    assert results[torch.bfloat16] == pytest.approx(results[torch.float32], rel=1e-3)
    assert float(torch.tensor(1.0).bfloat16() - 5e-5) == 1.0


@pytest.mark.parametrize("kind", [RowAdamW, RowAdagrad])
def test_rounding_repeats_and_goes_on_after_a_checkpoint(kind: type[RowAdamW | RowAdagrad]) -> None:
    def run(steps: int, table: torch.nn.Parameter, optimizer: RowAdamW | RowAdagrad) -> None:
        g = torch.Generator().manual_seed(optimizer.state[table].get("step", 0))
        for _ in range(steps):
            table.grad = sparse([3, 1], torch.randn(2, 40, generator=g).bfloat16(), (5, 40))
            optimizer.step()

    def fresh(seed: int = 0) -> tuple[torch.nn.Parameter, RowAdamW | RowAdagrad]:
        table = torch.nn.Parameter(torch.ones(5, 40, dtype=torch.bfloat16))
        return table, kind([table], lr=1e-3, seed=seed)

    whole, other, broken = fresh(), fresh(1), fresh()
    for part in (whole, other, broken):
        run(4, *part)
    run(4, *whole)
    again = fresh()
    with torch.no_grad():
        again[0].copy_(broken[0])
    again[1].state[again[0]] = dict(broken[1].state[broken[0]])
    run(4, *again)
    assert torch.equal(whole[0], again[0]) and not torch.equal(other[0], broken[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", [RowAdamW, RowAdagrad])
def test_a_state_dict_goes_on_exactly(kind: type[RowAdamW | RowAdagrad], dtype: torch.dtype) -> None:
    def step(table: torch.nn.Parameter, optimizer: RowAdamW | RowAdagrad, number: int) -> None:
        g = torch.Generator().manual_seed(number)
        table.grad = sparse([number % 5, 4], torch.randn(2, 7, generator=g).to(dtype), (6, 7))
        optimizer.step()

    whole = torch.nn.Parameter(torch.ones(6, 7, dtype=dtype))
    optimizer = kind([whole], lr=0.1, weight_decay=0.01)
    for number in range(4):
        step(whole, optimizer, number)
    again = torch.nn.Parameter(whole.detach().clone())
    other = kind([again], lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    before = {name: value.clone() for name, value in optimizer.state[whole].items() if isinstance(value, torch.Tensor)}
    for number in range(4, 9):
        step(again, other, number)
    for name, value in before.items():  # nothing is shared
        assert torch.equal(optimizer.state[whole][name], value) and other.state[again][name].dtype == value.dtype
    for number in range(4, 9):
        step(whole, optimizer, number)
    assert torch.equal(whole, again)


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
    (optimizer,) = make_optimizers(module, False, 0.3, 0.2, table, 1.0, token_decay=True)
    (own,) = (group for group in optimizer.param_groups if any(p is table for p in group["params"]))
    assert (own["lr"], own["weight_decay"]) == (0.3, 0.2)
