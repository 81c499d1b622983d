"""Which attention is faster on this processor: two products and a softmax, or PyTorch's own kernel.

The products win on short texts and, since the kernel's backward pass is slow on a CPU, on longer ones where gradients
are needed. Where the two change places is measured once for a processor, a number of threads and a shape of heads, as
soon as a text comes that is long enough to ask, and kept in the cache folder.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional as F

from ...base.rates import measured_once

logger = logging.getLogger("labelspace")

LENGTHS = (16, 32, 64, 128, 256)
"""Lengths, in tokens, at which the two are compared; up to the first of them the products are taken unmeasured."""
MIN_SPEEDUP = 1.15
"""How many times faster something must be for the usual limit to be left, so that noise does not decide."""
COMPARED_TOKENS = 2048
"""Tokens of a comparison."""


@dataclass(frozen=True)
class Limits:
    """Longest texts, in tokens, that the products are taken for.

    Args:
        training: with gradients; never above 128, since the weights that are kept grow with the square of the length.
        inference: without.
    """

    training: int = 128
    inference: int = 32


def products_pay(length: int, heads: int, width: int, device: torch.device) -> bool:
    """Whether attention is faster by products and a softmax, with or without gradients as torch is set now.

    Args:
        length: of the texts, in tokens.
        heads: of a layer.
        width: of a head.
        device: of the texts; only a CPU is measured.
    """
    if length <= LENGTHS[0]:
        return True
    longest = limits(heads, width, torch.get_num_threads()) if device.type == "cpu" else Limits()
    return length <= (longest.training if torch.is_grad_enabled() else longest.inference)


@functools.cache
def limits(heads: int, width: int, threads: int) -> Limits:
    """The limits for this processor, from the cache folder or from a measurement that is written there."""

    def measure() -> dict[str, float]:
        # in a thread of its own: the text that asks may be inside a checkpoint, which would record these tensors too
        with ThreadPoolExecutor(1) as apart:
            best = apart.submit(measured, lambda length, training: advantage(length, training, heads, width)).result()
        logger.debug("attention by products up to %d tokens in training, %d otherwise", best.training, best.inference)
        return asdict(best)

    known = measured_once(f"attention, {threads} threads, {heads} heads of {width}", measure)
    return Limits(**{name: int(value) for name, value in known.items()})


def measured(ratio: Callable[[int, bool], float]) -> Limits:
    """Limits by measurement, starting from the usual ones; ``ratio`` is `advantage` for some shape of heads."""

    def limit(usual: int, last: int, training: bool) -> int:
        place = LENGTHS.index(usual)
        while LENGTHS[place] < last and ratio(LENGTHS[place + 1], training) > MIN_SPEEDUP:
            place += 1
        if LENGTHS[place] == usual:
            while place and ratio(LENGTHS[place], training) < 1 / MIN_SPEEDUP:
                place -= 1
        return LENGTHS[place]

    return Limits(limit(Limits.training, Limits.training, True), limit(Limits.inference, LENGTHS[-1], False))


def advantage(length: int, training: bool, heads: int, width: int) -> float:
    """How many times longer PyTorch's kernel takes than products and a softmax; with the backward pass in training."""
    source = torch.Generator().manual_seed(0)
    texts = max(1, COMPARED_TOKENS // length)
    inputs = [torch.randn(texts, heads, length, width, generator=source) for _ in range(3)]

    def seconds(run: Callable[..., torch.Tensor]) -> float:
        begun = time.perf_counter()
        out = run(*inputs)
        if training:
            out.backward(out.detach())
        return time.perf_counter() - begun

    with torch.set_grad_enabled(training), torch.autocast("cpu", enabled=False):
        for x in inputs:
            x.requires_grad_(training)
        times = [(seconds(F.scaled_dot_product_attention), seconds(by_products)) for _ in range(4)]
    kernel, products = (min(part) for part in zip(*times[1:], strict=True))
    return kernel / products


def by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None, dropout: float = 0.0
) -> torch.Tensor:
    """Attention (n, heads, length, d) of tensors of that shape, whose weights are kept for the backward pass.

    The products are multiplied by ``scale``, None for 1 / sqrt(d); ``dropout`` is that of the weights.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.softmax(torch.matmul(query * scale, key.transpose(-1, -2)), dim=-1)
    return torch.matmul(F.dropout(weights, dropout), value)
