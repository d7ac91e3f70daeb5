"""Sums over pairs and discrepancies on JAX arrays: each with the shape of its result, which JAX asks beforehand."""

from __future__ import annotations

import gwf_fast as gwf
from gwf_fast.jax.bridge import Shape, on_arrays

__all__ = [
    "energy_distance",
    "kernel_average",
    "kernel_gradient",
    "kernel_logsumexp",
    "kernel_sum",
    "mmd2",
    "sinkhorn_divergence",
]


def _problems(x: Shape, **_: Shape) -> Shape:  # [*B]
    return x[:-2]


def _sums(x: Shape, y: Shape, weights: Shape = (), **_: Shape) -> Shape:  # [*B, N] or [*B, N, C]
    return (*x[:-1], weights[-1]) if len(weights) == len(y) else x[:-1]


def _averages(x: Shape, y: Shape, values: Shape = (), **_: Shape) -> Shape:  # [*B, N, C]
    return (*x[:-1], (values or y)[-1])


kernel_sum = on_arrays(gwf.kernel_sum, shape=_sums)
kernel_gradient = on_arrays(gwf.kernel_gradient, shape=lambda x, **_: x)
kernel_logsumexp = on_arrays(gwf.kernel_logsumexp, shape=lambda x, **_: x[:-1])
kernel_average = on_arrays(gwf.kernel_average, shape=_averages)
mmd2 = on_arrays(gwf.mmd2, shape=_problems)
energy_distance = on_arrays(gwf.energy_distance, shape=_problems)
sinkhorn_divergence = on_arrays(gwf.sinkhorn_divergence, shape=_problems, without=("start", "return_potentials"))
