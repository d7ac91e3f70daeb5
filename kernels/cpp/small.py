"""Whole problems in one call on CPUs: the squared MMD with its gradients, a step of SVGD with its median."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gwf_fast import _cpu
from gwf_fast.kernels.cpp.pairs import kernel_of

LARGEST_SVGD = 256
"""Particles whose squared distances stay in a core's cache."""

_RULES = {"given": 0, "pairs": 1, "all": 2}


def mmd2(
    x: Tensor,  # [B?, N, D]
    y: Tensor,  # [B?, M, D]
    a: Tensor | None,  # [B?, N]; None: 1 / N
    b: Tensor | None,  # [B?, M]; None: 1 / M
    spec: tuple[float, ...],
    unbiased: bool,
    needs: tuple[bool, bool, bool, bool] = (False, False, False, False),
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The value [B?], and its gradients in x, y, a and b where they are needed."""
    value = x.new_empty(x.shape[:-2])
    gradients = tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) if need and t is not None else None
        for t, need in zip((x, y, a, b), needs, strict=True)
    )
    _cpu.mmd(kernel_of(spec), x, y, a, b, unbiased, value, *gradients)
    return value, gradients


def svgd(
    x: Tensor,  # [*B, N, D], of at most two batch dimensions, N <= LARGEST_SVGD
    score: Tensor,  # [*B, N, D]
    bandwidth: float | Literal["pairs", "all"],
) -> Tensor | None:
    """The direction of SVGD with a Gaussian of this bandwidth, or of its median rule (csrc/svgd/svgd.h).

    None where values are none, or out of the range of squares.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rule, h = (bandwidth, 0.0) if isinstance(bandwidth, str) else ("given", bandwidth)
    return out if _cpu.svgd(x, score, _RULES[rule], h, out, None) else None


def median_bandwidth(x: Tensor) -> Tensor | None:
    """The median rule over pairs i < j, [*B]."""
    h = x.new_empty(x.shape[:-2])
    return h if _cpu.svgd(x, None, _RULES["pairs"], 0.0, None, h) else None
