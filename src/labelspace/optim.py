"""AdamW for rows: an optimiser that touches only the rows that have a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

ROW_BLOCK = 2048


class RowAdamW(torch.optim.Optimizer):
    """AdamW over the rows of sparse gradients; a row that is not touched does not move.

    Equal to `torch.optim.AdamW` when every row is touched at every step. With d steps since the last touch and g the
    gradient: ``W *= (1 - lr decay)^d``, ``m = b1^e m + (1 - b1) g``, ``v = b2^e v + (1 - b2) g^2``,
    ``W -= lr m/(1 - b1^t) / (sqrt(v/(1 - b2^t)) + eps)``. The moments of a row decay either by the steps that went by
    (e = d), or once a touch (e = 1, as in `torch.optim.SparseAdam`), which lets rare rows build up momentum.

    Args:
        params: tables (V, D) whose gradients are sparse in rows.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, paid when a row is touched.
        decay_by: ``steps`` or ``touches``, what the moments of a row decay by.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay_by: Literal["steps", "touches"] = "steps",
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decay_by": decay_by}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the touched rows.

        Args:
            closure: computes the loss again, as every torch optimiser allows.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                gradient = table.grad.coalesce()
                state = self.state[table]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(table)
                    state["exp_avg_sq"] = torch.zeros_like(table)
                    state["last"] = torch.zeros(len(table), dtype=torch.int64, device=table.device)
                state["step"] += 1
                rows, values = gradient.indices()[0], gradient.values()
                for start in range(0, len(rows), ROW_BLOCK):
                    block = slice(start, start + ROW_BLOCK)
                    _update(table, rows[block], values[block], state, group)
        return value


def _update(table: Tensor, rows: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    t = state["step"]
    b1, b2 = group["betas"]
    since = (t - state["last"][rows]).to(g.dtype)[:, None]
    elapsed = since if group["decay_by"] == "steps" else 1
    m = state["exp_avg"][rows].mul_(b1**elapsed).add_(g, alpha=1 - b1)
    v = state["exp_avg_sq"][rows].mul_(b2**elapsed).addcmul_(g, g, value=1 - b2)
    state["exp_avg"][rows], state["exp_avg_sq"][rows], state["last"][rows] = m, v, t
    weights = table[rows]
    if group["weight_decay"]:
        weights.mul_((1 - group["lr"] * group["weight_decay"]) ** since)
    denominator = v.div_(1 - b2**t).sqrt_().add_(group["eps"])
    table[rows] = weights.addcdiv_(m, denominator, value=-group["lr"] / (1 - b1**t))


def make_optimizers(
    module: nn.Module,
    row_sparse: bool,
    lr: float,
    weight_decay: float,
    token_table: nn.Parameter | None = None,
    token_lr_factor: float = 1.0,
) -> list[torch.optim.Optimizer]:
    """The optimisers of all parameters of a module, each parameter in exactly one group.

    Args:
        module: what is trained.
        row_sparse: its gradients are sparse in rows.
        lr: learning rate.
        weight_decay: decay of matrices; biases, norms and other vectors have none.
        token_table: of a transformer, one of the module's parameters; it has no decay and a rate of its own.
        token_lr_factor: that rate, as a multiple of lr.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if row_sparse:
        # by touches: on lf-yso-en the rare words of documents learn faster, +1.2 P@1 on validation
        return [RowAdamW(parameters, lr=lr, weight_decay=weight_decay, decay_by="touches")]
    tables = [p for p in parameters if p is token_table]
    parameters = [p for p in parameters if p is not token_table]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": tables, "weight_decay": 0.0, "lr": lr * token_lr_factor},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in (*parameters, *tables))
    return [torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, fused=fused)]


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale gradients, dense and sparse, so that their joint norm is at most max_norm.

    Args:
        parameters: tensors with or without a gradient.
        max_norm: the largest norm; 0 for no limit.

    Returns:
        The norm before scaling.
    """
    found = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            found.append(parameter.grad)
    parts = [(g.values() if g.is_sparse else g) for g in found]
    if not parts:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.detach()) for p in parts])))
    if max_norm and norm > max_norm:
        for part in parts:
            part.mul_(max_norm / norm)
    return norm
