"""Optimisers for rows: they touch only the rows that have a gradient, and keep nothing of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import distributed

ROW_BLOCK = 2048
"""Rows that are updated at a time."""
STATE_GROWTH = 1.5
"""When rows of state run out, there are this many times as many afterwards."""


class BaseOptimizer(torch.optim.Optimizer):
    """What the optimisers here share; a class says in `advance` what a step does."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the weights.

        Args:
            closure: computes the loss again, as every torch optimiser allows.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        self.advance()
        return value

    def advance(self) -> None:
        """Update the weights by their gradients."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state with the types that it has: torch would cast it to the type of the weights.

        Args:
            state_dict: as `state_dict` gave it.
        """
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for parameter, number in zip(parameters, numbers, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.detach().to(parameter.device, copy=True)


class RowOptimizer(BaseOptimizer):
    """An optimiser of sparse gradients: it updates the touched rows, a block at a time.

    Weights in bf16 are updated in float32 and rounded up or down at random, so that the mean of many small updates is
    right (`round_stochastically`). The random numbers follow from seed and step, so a resumed run draws the same.
    """

    def advance(self) -> None:
        """Update the touched rows."""
        tables = [(group, table) for group in self.param_groups for table in group["params"]]
        for place, (group, table) in enumerate(tables):
            if table.grad is None:
                continue
            gradient = table.grad.coalesce()
            state = self.state[table]
            if not state:
                state["step"] = 0
                self.begin(table, state)
            state["step"] += 1
            seed = ((group["seed"] * 1_000_003 + place) * 1_000_003 + state["step"]) % 2**63
            generator = torch.Generator(table.device).manual_seed(seed)
            rows, values = gradient.indices()[0], gradient.values()
            for start in range(0, len(rows), ROW_BLOCK):
                block = rows[start : start + ROW_BLOCK]
                g = values[start : start + ROW_BLOCK]
                kind = torch.promote_types(table.dtype, torch.float32)
                new = self.update(table[block].to(kind), g.to(kind), block, state, group)
                table[block] = round_stochastically(new, generator) if table.dtype == torch.bfloat16 else new

    def begin(self, table: Tensor, state: dict[str, Any]) -> None:
        """Make the state of a table of which no row was touched yet.

        Args:
            table: (V, D) weights.
            state: of the table, to be filled.
        """
        raise NotImplementedError

    def update(self, weights: Tensor, g: Tensor, rows: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """New weights of some rows; may write over the given ones.

        Args:
            weights: (n, D) of the rows.
            g: (n, D) their gradient.
            rows: (n,) distinct row numbers.
            state: of the table.
            group: of the optimiser.
        """
        raise NotImplementedError


class RowAdamW(RowOptimizer):
    """AdamW over the rows of sparse gradients; a row that is not touched does not move.

    Equal to `torch.optim.AdamW` when every row is touched at every step. With d steps since the last touch and g the
    gradient: ``W *= (1 - lr decay)^d``, ``m = b1^e m + (1 - b1) g``, ``v = b2^e v + (1 - b2) g^2``,
    ``W -= lr m/(1 - b1^t) / (sqrt(v/(1 - b2^t)) + eps)``. The moments of a row decay either by the steps that went by
    (e = d), or once a touch (e = 1, as in `torch.optim.SparseAdam`), which lets rare rows build up momentum.
    The two moments are float32 (float64 for such tables), and only rows that were touched have them.

    Args:
        params: tables (V, D) whose gradients are sparse in rows, float32, float64 or bf16.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, paid when a row is touched.
        decay_by: ``steps`` or ``touches``, what the moments of a row decay by.
        seed: of the rounding of bf16 weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay_by: Literal["steps", "touches"] = "steps",
        seed: int = 0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decay_by": decay_by}
        super().__init__(params, {**defaults, "seed": seed})

    def begin(self, table: Tensor, state: dict[str, Any]) -> None:
        """Make places for moments, and moments for no row yet."""
        kind = torch.promote_types(table.dtype, torch.float32)
        state["used"] = 0
        state["places"] = torch.full((len(table),), -1, dtype=torch.int32, device=table.device)
        state["exp_avg"] = torch.zeros(0, table.shape[1], dtype=kind, device=table.device)
        state["exp_avg_sq"] = torch.zeros(0, table.shape[1], dtype=kind, device=table.device)
        state["last"] = torch.zeros(0, dtype=torch.int32, device=table.device)

    def update(self, weights: Tensor, g: Tensor, rows: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """New weights by the formulas of the class; writes over the given ones."""
        t = state["step"]
        b1, b2 = group["betas"]
        places = _places(rows, state)
        since = (t - state["last"][places]).to(g.dtype)[:, None]
        elapsed = since if group["decay_by"] == "steps" else 1
        m = state["exp_avg"][places].mul_(b1**elapsed).add_(g, alpha=1 - b1)
        v = state["exp_avg_sq"][places].mul_(b2**elapsed).addcmul_(g, g, value=1 - b2)
        state["exp_avg"][places], state["exp_avg_sq"][places], state["last"][places] = m, v, t
        if group["weight_decay"]:
            weights.mul_((1 - group["lr"] * group["weight_decay"]) ** since)
        denominator = v.div_(1 - b2**t).sqrt_().add_(group["eps"])
        return weights.addcdiv_(m, denominator, value=-group["lr"] / (1 - b1**t))


def _places(rows: Tensor, state: dict[str, Any]) -> Tensor:
    """Where the state of rows is; rows that were not touched before get a place, and the state grows if it must."""
    places = state["places"][rows]
    new = rows[places < 0]
    if len(new):
        used, needed = state["used"], state["used"] + len(new)
        if needed > len(state["last"]):
            size = min(len(state["places"]), max(needed, int(STATE_GROWTH * len(state["last"]))))
            for name in ("exp_avg", "exp_avg_sq", "last"):
                old = state[name]
                state[name] = old.new_zeros(size, *old.shape[1:])
                state[name][:used] = old[:used]
        state["places"][new] = torch.arange(used, needed, dtype=torch.int32, device=rows.device)
        state["used"] = needed
        places = state["places"][rows]
    return places.long()


class RowAdagrad(RowOptimizer):
    """Adagrad with one number a row: ``v += mean(g^2)``, ``W -= lr g / (sqrt(v) + eps)``.

    Beside the weights it keeps eight bytes a row, so that tables of millions of labels fit.

    Args:
        params: tables (V, D) whose gradients are sparse in rows, float32, float64 or bf16.
        lr: learning rate.
        eps: added to the root of the sum of squares.
        weight_decay: decoupled decay, paid when a row is touched, for all steps since the last touch.
        seed: of the rounding of bf16 weights.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, eps: float = 1e-10, weight_decay: float = 0.0, seed: int = 0
    ):
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay, "seed": seed})

    def begin(self, table: Tensor, state: dict[str, Any]) -> None:
        """Make sums of squares of 0."""
        kind = torch.promote_types(table.dtype, torch.float32)
        state["sum"] = torch.zeros(len(table), dtype=kind, device=table.device)
        state["last"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)

    def update(self, weights: Tensor, g: Tensor, rows: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """New weights by the formulas of the class; writes over the given ones."""
        v = state["sum"][rows] + g.square().mean(dim=1)
        if group["weight_decay"]:
            since = (state["step"] - state["last"][rows]).to(g.dtype)[:, None]
            weights.mul_((1 - group["lr"] * group["weight_decay"]) ** since)
        state["sum"][rows], state["last"][rows] = v, state["step"]
        return weights.addcdiv_(g, (v.sqrt() + group["eps"])[:, None].expand_as(g), value=-group["lr"])


def round_stochastically(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Round float32 to bf16, up or down at random, so that the mean is the value itself (ELMO).

    A random number of 16 bits is added to the bits of the value and the low 16 are cut off; inf and NaN stay.

    Args:
        x: float32, any shape.
        generator: source of the random numbers.

    Returns:
        bf16 of the same shape.
    """
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    rounded = noise.add_(bits).bitwise_and_(-65536).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x).bfloat16()


def cut_rows(state: dict[str, Any], rows: slice) -> dict[str, Any]:
    """The state of some rows of a table, from the state of all; numbers of the whole table stay.

    Args:
        state: of a table, by any optimiser.
        rows: row numbers from start to stop.
    """
    if "places" not in state:
        return {name: x[rows] if isinstance(x, Tensor) and x.ndim else x for name, x in state.items()}
    places = state["places"][rows]
    used = places >= 0
    kept = {name: state[name][places[used].long()] for name in ("exp_avg", "exp_avg_sq", "last")}
    numbers = torch.arange(int(used.sum()), dtype=places.dtype, device=places.device)
    return {**state, **kept, "places": places.masked_scatter(used, numbers), "used": len(numbers)}


def join_rows(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of a table from those of consecutive rows; the inverse of `cut_rows`."""
    joined = dict(states[0])
    for state in states[1:]:
        for name, x in state.items():
            if not isinstance(x, Tensor) or not x.ndim:
                continue
            if name == "places":
                x = torch.where(x < 0, x, x + joined["used"])
            elif "places" in state:  # room for rows that were not touched is left out
                joined[name], x = joined[name][: joined["used"]], x[: state["used"]]
            joined[name] = torch.cat([joined[name], x])
        if "used" in state:
            joined["used"] += state["used"]
    return joined


def make_optimizers(
    module: nn.Module,
    row_sparse: bool,
    lr: float,
    weight_decay: float,
    token_table: nn.Parameter | None = None,
    token_lr_factor: float = 1.0,
    token_decay: bool = False,
) -> list[torch.optim.Optimizer]:
    """The optimisers of a module; each parameter is in exactly one group.

    Args:
        module: what is trained.
        row_sparse: its gradients are sparse in rows.
        lr: learning rate.
        weight_decay: decay of matrices; biases, norms and other vectors have none.
        token_table: of a transformer, one of the module's parameters; it has a rate of its own.
        token_lr_factor: that rate, as a multiple of lr.
        token_decay: the token table decays too.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if row_sparse:
        # by touches: on lf-yso-en the rare words of documents learn faster, +1.2 P@1 on validation
        return [RowAdamW(parameters, lr=lr, weight_decay=weight_decay, decay_by="touches")]
    tables = [p for p in parameters if p is token_table]
    parameters = [p for p in parameters if p is not token_table]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": tables, "weight_decay": weight_decay * token_decay, "lr": lr * token_lr_factor},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in (*parameters, *tables))
    return [torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, fused=fused)]


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float, own: Iterable[Tensor] = ()) -> float:
    """Scale gradients, dense and sparse, so that their joint norm is at most max_norm.

    Args:
        parameters: tensors with or without a gradient.
        max_norm: the largest norm; 0 for no limit.
        own: those of which other processes have other rows.

    Returns:
        The norm before scaling.
    """
    parts, norms, mine, of_own = [], [], {id(x) for x in own}, []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        parts.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
        norms.append(torch.linalg.vector_norm(parts[-1].detach()))
        of_own.append(id(parameter) in mine)
    if distributed.size() > 1:
        norms, lone = [x.double() for x, is_own in zip(norms, of_own, strict=True) if not is_own], norms
        squares = sum(float(x) ** 2 for x, is_own in zip(lone, of_own, strict=True) if is_own)
        norms.append(torch.tensor(distributed.sum_squares(squares) ** 0.5, dtype=torch.float64))
    if not norms:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if max_norm and norm > max_norm:
        for part in parts:
            part.mul_(max_norm / norm)
    return norm
