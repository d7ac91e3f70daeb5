"""What a sum costs, in seconds: the model by which ``method="auto"`` chooses, and a series its near field.

The constants were measured on one core of a Zen 4 (AVX-512), in processor time; other machines scale alike, and a
choice needs only ratios. A test holds the model's counts to what is done, ``python -m bench.cost_model`` its prices
to a clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gwf_fast.pairs.kernels import Term

PAIR = 1.0e-10
"""A pair of one term summed directly, per (order + 1) and 1 + D / 4, times the profile's WORK."""

WORK = {
    "gaussian": 0.4,
    "imq": 0.4,
    "laplace": 0.7,
    "matern32": 0.65,
    "matern52": 0.65,
    "distance": 0.45,
    "log": 0.6,
    "rational_quadratic": 2.0,
    "power": 2.0,
}
"""Of each profile of the table, since "auto" may be asked for any. Powers of r by multiplications and a root take as
long as a distance."""

UNPRICED = 1.0
"""Of a profile that is not among them."""

PLAIN_POWERS = (-1.0, 1.0, 2.0, 3.0, 4.0)

POINT = 4.5e-8
"""A point of a transform."""

SPREAD = 4.5e-9
"""A point of a transform, per cell of a cross section of its spreading kernel."""

FFT = 6.5e-10
"""A point of the transform's grid, per log2 of their number."""

SAMPLE = 6.5e-8
"""A sample of the kernel for the coefficients."""

NEAR = 3.7e-9
"""A pair of a near field, those of neighbouring cells beyond the radius included."""

FIXED = 5e-3
"""Planning: what the smallest problem costs."""

CHECKED_ROWS = 64
"""Rows that every fast sum compares with direct summation."""


def direct_seconds(
    targets: int, sources: int, dim: int, terms: Sequence[Term], order: int, channels: int, threads: int
) -> float:
    """Of a direct sum."""
    work = 0.0
    for term in terms:
        plain = term.profile == "power" and term.parameter in PLAIN_POWERS
        work += WORK.get("distance" if plain else term.profile, UNPRICED)
    return float(targets) * sources * PAIR * work * (order + 1) * (1 + dim / 4) * channels / threads


def series_seconds(
    modes: Sequence[int],
    radius: float,
    extents: Sequence[float],
    order: int,
    targets: int,
    sources: int,
    channels: int,
    tolerance: float,
    threads: int,
    crowding: float = 1.0,
) -> float:
    """Of a Fourier series and its near field; no modes, no series.

    Points have ``crowding`` times as many neighbours as if they filled their box.
    """
    dim = len(extents)
    width = math.log10(1 / tolerance) + 2  # of the spreading kernel, in cells of a grid twice as fine as the modes
    inputs = (channels + 1) // 2
    outputs = (channels * math.comb(order + dim - 1, order) + 1) // 2
    transforms = points = samples = 0.0
    if modes:
        grid = math.prod(4 * m + 2 for m in modes)
        transforms = (inputs + outputs) * FFT * grid * math.log2(grid)
        points = (POINT + SPREAD * width ** (dim - 1)) * (sources * inputs + targets * outputs)
        samples = SAMPLE * math.prod(m + 2 for m in modes)
    check = CHECKED_ROWS * float(sources) * PAIR * (1 + dim / 4) * 2
    near = 0.0
    if radius:
        share = math.prod(min(1.0, 2.5 * radius / extent) for extent in extents)
        near = NEAR * float(targets) * sources * channels * min(1.0, share * crowding)
    return FIXED + samples + (transforms + points + check + near) / threads
