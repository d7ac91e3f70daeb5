"""The evaluations that a kernel needs: one, unless a tensor as bandwidth divides points. Where to put the origin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gwf_fast.ops import dispatch
from gwf_fast.ops.modes import is_concrete
from gwf_fast.pairs.kernels import Kernel
from gwf_fast.pairs.ragged import members


def scaled_passes(
    x: Tensor, y: Tensor, kernel: Kernel, y_lengths: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, tuple[float, ...]]]:
    """Points, bandwidth to divide by, and spec of each evaluation; one, as they are, unless a bandwidth is a tensor."""
    if kernel.spec is not None:
        yield x, y, None, kernel.spec
        return
    centre = centre_of(y, y_lengths)
    for bandwidth, spec in kernel.passes:
        if bandwidth is None:
            yield x, y, None, spec
        else:
            same = x is y  # keep it so: backends use the symmetry
            u = (x - centre) / bandwidth
            yield u, u if same else (y - centre) / bandwidth, bandwidth, spec


def is_own(x: Tensor, y: Tensor, exclude_self: bool, x_lengths: Tensor | None, y_lengths: Tensor | None) -> bool:
    """Whether a set meets itself and is differentiated.

    The pair of a point with itself is then left out and its constant added, see :func:`own_share`: its parts of the
    second derivatives, 1/h^2 from the target's side and from the source's, cancel in truth and not in rounding.
    """
    same = x is y and not exclude_self and x_lengths is y_lengths
    return same and torch.is_grad_enabled() and x.requires_grad and is_concrete(x)


def own_share(
    x: Tensor, lengths: Tensor | None, spec: Sequence[float] | None = None, backend: str = "torch"
) -> Tensor:  # [*B, N, D] -> [*B, N, 1]
    """What a point makes with itself: k(0), or 0 for a gradient (no spec); NaN where it is not finite."""
    known = members((x.detach() * 0).sum(-1, keepdim=True), lengths)
    return known if spec is None else known + _at_zero(tuple(spec), backend)


@lru_cache(maxsize=256)
def _at_zero(spec: tuple[float, ...], backend: str) -> float:
    origin = torch.zeros(1, 1, 1, dtype=torch.float64)
    # formulas are known to these; the compiled one does without SymPy, which takes a while to import
    known = backend if backend in ("torch", "keops") else dispatch.resolve(None, origin.device, origin.dtype)
    return float(dispatch.function("torch" if known == "keops" else known, "pair_sum")(origin, origin, None, spec))


def times(t: Tensor, factor: float) -> Tensor:
    """factor * t where the number may be out of the range of t's type, though the product is not."""
    if _is_normal(t, factor):
        return t * factor
    root = math.sqrt(abs(factor))
    return t * root * math.copysign(root, factor)


def over(t: Tensor, divisor: float | Tensor) -> Tensor:
    """t / divisor where the positive number may be out of the range of t's type, though the quotient is not."""
    if isinstance(divisor, Tensor) or _is_normal(t, divisor):
        return t / divisor
    root = math.sqrt(divisor)
    return t / root / root


def moved(x: Tensor, velocity: Tensor, step: float, out: Tensor | None = None) -> Tensor:
    """x + step * velocity; a step may be out of the range of the points' type."""
    if _is_normal(x, step):
        return torch.add(x, velocity, alpha=step, out=out)
    return torch.add(x, times(velocity, step), out=out)


def _is_normal(t: Tensor, number: float) -> bool:
    limits = torch.finfo(t.dtype)
    return number == 0 or limits.tiny <= abs(number) <= limits.max


_SAMPLE = 256
"""Points that a centre is taken from; of larger sets, evenly spaced ones."""


def centre_of(y: Tensor, y_lengths: Tensor | None = None) -> Tensor:  # [*B, M, C] -> [*B, 1, C]
    """A point amid the sources, a constant: far from the origin, rounding spoils what is not a difference.

    The median of each coordinate, which outliers do not move, of eight bits less, so that it subtracts from points near
    it without rounding. 0 where there is no such point, and where the cloud holds the origin: the last bits of points
    near that decide the distance of close ones.
    """
    y = y.detach()
    m = y.shape[-2]
    if not m or not y.numel():
        return y.new_zeros(())
    if y_lengths is None:
        # y[..., ::step, :], which asks for the device, even of a tensor without one
        sample = torch.ops.aten.slice.Tensor(y, y.ndim - 2, 0, m, -(-m // _SAMPLE))
    else:
        count = min(m, _SAMPLE)
        index = torch.arange(count, device=y.device) * y_lengths[..., None] // count  # [*B, count]
        sample = y.gather(-2, index[..., None].expand(*index.shape, y.shape[-1]))
    wide = torch.promote_types(y.dtype, torch.float32)
    count = sample.shape[-2]
    ordered = sample.to(wide).sort(-2).values
    low, middle, high = (ordered.select(-2, at).unsqueeze(-2) for at in (count // 4, count // 2, 3 * count // 4))
    scaled = middle * (2.0**8 + 1)
    short = (scaled - (scaled - middle)).to(y.dtype)  # the leading bits (Dekker 1971)
    above, below = high - middle, middle - low  # one may be outliers or NaN; or 0, where there are two points
    closer = torch.fmin(above, below)
    spread = torch.where(closer > 0, closer, torch.fmax(above, below))
    return torch.where(short.isfinite() & (middle.abs() > 8 * spread), short, 0.0)
