"""The Fourier series of a radial kernel on a box fitted to the data: how many modes, and their coefficients.

A kernel is the sum of a smooth part and, where it is not smooth at r = 0, of what differs from it within a
radius: k(r) = k_far(r) + k_near(r), k_near = 0 for r >= radius. The series represents k_far for all differences
|d_a| <= L_a, L the extents of the data. Everything is decided on slices of k_far along each axis, by one-dimensional
transforms of a few thousand points.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gwf_fast.pairs.fast import cost
from gwf_fast.pairs.fast.modulus import periodic_square, smooth_square
from gwf_fast.pairs.fast.near import MAX_ORDER

Spec = tuple[float, ...]

SMOOTH = ("gaussian", "imq", "rational_quadratic")
"""Profiles that are analytic in r^2 at 0; the others, and those not entered here, get a near field."""

SAMPLES = 8192
"""Points of a slice."""

MARGIN = {True: 1.0, False: 200.0}
"""Truncation allowed for, in units of the tolerance, of kernels that are smooth and of others. The sum of what is left
out is the error where all its waves meet, hundreds of times the root mean square that counts; but the modes of a
smooth kernel fall off so fast that caution is free. With 200, weights of random signs err by up to a third of the
tolerance; others by less."""


@dataclass(frozen=True)
class Series:
    """k_far(d) ~ sum_m c_m exp(2 pi i m . d / P), |m_a| <= modes_a.

    A kernel that is cut off at a short radius has no far field: ``modes`` is empty.

    Attributes:
        period: P of each dimension.
        modes: The largest mode of each dimension.
        rounding: Width over P/2, and degree, of the rounded triangle wave.
        radius: Of the near field; 0 where there is none.
        degree: Of the smooth stand-in for r within the radius.
        scale: The mean of |k| (or of its derivative of the order asked for) over the box.
    """

    period: tuple[float, ...]
    modes: tuple[int, ...]
    rounding: tuple[float, int]
    radius: float
    degree: int
    scale: float

    def far(self, q: Tensor, spec: Spec) -> Tensor:
        """k_far as a function of the squared distance."""
        return far_field(q, spec, self.radius, self.degree)

    def coefficients(self, spec: Spec) -> Tensor:
        """c_m, real and even, [2 modes_1 + 1, ...] with mode 0 in the middle, float64."""
        squares = []
        for period, modes in zip(self.period, self.modes, strict=True):
            d = torch.arange(modes + 2, dtype=torch.float64) * (period / (2 * modes + 2))
            squares.append(periodic_square(d, period, self.rounding[0] * period / 2, self.rounding[1]))
        q = squares[0]
        for square in squares[1:]:
            q = q[..., None] + square
        values = self.far(q, spec)
        for axis, modes in enumerate(self.modes):  # even in every dimension: mirror, transform, keep 0 .. modes
            values = torch.cat([values, values.narrow(axis, 1, modes).flip(axis)], axis)
            values = torch.fft.rfft(values, dim=axis, norm="forward").real.narrow(axis, 0, modes + 1)
        for axis, modes in enumerate(self.modes):
            values = torch.cat([values.narrow(axis, 1, modes).flip(axis), values], axis)
        return values


def is_smooth(profile: str) -> bool:
    """Whether the profile needs no near field."""
    return profile in SMOOTH


def split(spec: Spec) -> tuple[Spec, Spec]:
    """The terms that are smooth at 0, and the others."""
    from gwf_fast.kernels.table.profiles import PROFILES

    names = list(PROFILES)
    parts: tuple[list[float], list[float]] = ([], [])
    for k in range(0, len(spec), 4):
        parts[not is_smooth(names[int(spec[k])])].extend(spec[k : k + 4])
    return tuple(parts[0]), tuple(parts[1])


def _value(q: Tensor, spec: Spec) -> Tensor:
    """k as a function of the squared distance."""
    from gwf_fast.kernels.reference.profiles import kernel_derivatives  # here, as below: SymPy takes a while to import

    return kernel_derivatives(q, spec, 0)[0]


def far_field(q: Tensor, spec: Spec, radius: float, degree: int) -> Tensor:
    """k_far as a function of the squared distance."""
    if radius == 0:
        return _value(q, spec)
    smooth, rough = split(spec)
    out = _value(smooth_square(q, radius, degree), rough)
    return out + _value(q, smooth) if smooth else out


@functools.lru_cache(maxsize=256)
def plan(
    spec: Spec,
    extents: tuple[float, ...],
    tolerance: float,
    order: int,
    targets: int,
    sources: int,
    channels: int,
    threads: int,
    crowding: float = 1.0,
) -> tuple[Series, float] | None:
    """The cheapest series that keeps the tolerance, and its cost in seconds; None if none does within reason.

    Args:
        spec: The kernel.
        extents: L of each dimension, positive: at least the largest |x_a - y_a|.
        tolerance: Of the error, relative to the mean of the kernel over the box.
        order: Of the derivative that is summed.
        targets: N.
        sources: M.
        channels: C of the weights.
        threads: That will work on it.
        crowding: How many times more neighbours a point has than if points filled their box.
    """
    best: tuple[Series, float] | None = None
    for candidate in candidates(spec, extents, tolerance, order):
        seconds = cost.series_seconds(
            candidate.modes, candidate.radius, extents, order, targets, sources, channels, tolerance, threads, crowding
        )
        if best is None or seconds < best[1]:
            best = candidate, seconds
    return best


def candidates(spec: Spec, extents: Sequence[float], tolerance: float, order: int) -> Iterator[Series]:
    """Series that keep the tolerance, with near fields and without; see :func:`plan`."""
    digits = math.log10(1 / tolerance)
    edge = max(4, round(1.2 * digits))
    rough = split(spec)[1]
    # How much longer than 2 L a period is: rounder tops for fewer modes, where a near field does not decide these.
    shares = (0.4,) if rough else (0.4, 0.7, 1.2)
    boxes: list[tuple[tuple[float, ...], tuple[float, int]]] = [
        (tuple((2 + share) * extent for extent in extents), (share / (2 + share), edge)) for share in shares
    ]
    cutoff = vanishing_radius(spec, max(extents), tolerance, order)
    if cutoff is not None:
        if order <= MAX_ORDER:
            # scale 0: neighbours are summed without rounding to speak of
            yield Series((), (), (0.0, 0), cutoff, 0, 0.0)
        if cutoff < min(extents):  # periods that overlap only where the kernel has vanished
            boxes.append((tuple(extent + cutoff for extent in extents), (0.0, 0)))
    shapes = [(0.0, 0)]
    if rough:
        degrees = sorted({max(2, round(f * digits)) for f in (0.6, 0.8, 1.1, 1.4)})
        radii = [min(extents) * 2 ** (-k / 2) for k in range(2, 22)]
        shapes += itertools.product(radii, degrees)
    for (period, rounding), (radius, degree) in itertools.product(boxes, shapes):
        series = _truncate(spec, extents, period, rounding, radius, degree, tolerance, order)
        if series is not None:
            yield series


def _truncate(
    spec: Spec,
    extents: Sequence[float],
    period: tuple[float, ...],
    rounding: tuple[float, int],
    radius: float,
    degree: int,
    tolerance: float,
    order: int,
) -> Series | None:
    """The fewest modes that keep the tolerance on every slice; None if that takes too many."""
    modes: list[int] = []
    scale = 0.0
    for extent, length in zip(extents, period, strict=True):
        if modes and extent == extents[0]:
            modes.append(modes[0])
            continue
        d = torch.arange(SAMPLES // 2 + 1, dtype=torch.float64) * (length / SAMPLES)
        square = periodic_square(d, length, rounding[0] * length / 2, rounding[1])
        values = far_field(square, spec, radius, degree)
        c = torch.fft.hfft(values + 0j, norm="forward")[: SAMPLES // 2 + 1]  # of a real and even function
        k = (2 * math.pi / length) * torch.arange(c.numel(), dtype=torch.float64)
        tail = (2 * c.abs() * k**order).flip(0).cumsum(0).flip(0)
        scale = max(scale, _mean_size(c, k, order, extent, length, len(extents)))
        enough = (tail < MARGIN[not split(spec)[1]] * tolerance * scale).nonzero()
        if enough.numel() == 0 or int(enough[0]) > SAMPLES // 4:
            return None
        modes.append(max(4, int(enough[0])))
    return Series(period, tuple(modes), rounding, radius, degree, scale)


def _mean_size(c: Tensor, k: Tensor, order: int, extent: float, period: float, dim: int) -> float:
    """The mean of |d^order k / dr^order| over the box, from the coefficients of a slice."""
    spectrum = c * k**order * (1 if order % 2 == 0 else 1j)
    values = torch.fft.irfft(spectrum.to(torch.complex128), n=SAMPLES, norm="forward")
    r = torch.arange(SAMPLES // 2 + 1, dtype=torch.float64) * (period / SAMPLES)
    r = r[r <= extent]
    weight = r ** (dim - 1)
    return float((values[: r.numel()].abs() * weight).sum() / weight.sum())


def vanishing_radius(spec: Spec, extent: float, tolerance: float, order: int) -> float | None:
    """The radius beyond which k and its derivative are negligible; None if they are not within the extent."""
    from gwf_fast.kernels.reference.profiles import kernel_derivatives

    r = torch.linspace(0, extent, 2049, dtype=torch.float64)[1:]
    value, slope = kernel_derivatives(r**2, spec, 1)
    size = (value if order == 0 else 2 * r * slope).abs()
    weight = r**2
    floor = 1e-2 * tolerance * float((size * weight).sum() / weight.sum())
    above = (size > floor).nonzero()
    if above.numel() == 0 or int(above[-1]) + 1 >= r.numel():
        return None
    return float(r[int(above[-1]) + 1])
