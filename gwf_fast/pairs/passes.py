"""The evaluations that a kernel needs: one, unless tensors among its parameters divide points. Where the origin is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.ops import dispatch
from gwf_fast.ops.modes import is_concrete
from gwf_fast.ops.sharding import Sharded, spread
from gwf_fast.pairs.alignment import goes_into
from gwf_fast.pairs.kernels import Kernel
from gwf_fast.pairs.ragged import members


class Scaled(NamedTuple):
    """An evaluation: points, what they were divided by, what results are multiplied by, and the kernel's numbers.

    Attributes:
        x: Targets [*B, N, D], about a common origin where they were divided.
        y: Sources [*B, M, D], likewise.
        divisor: Of a shape that goes with theirs; None: 1.
        coefficient: Without dimensions; None: 1.
        spec: The terms.
    """

    x: Tensor
    y: Tensor
    divisor: Tensor | None
    coefficient: Tensor | None
    spec: tuple[float, ...]

    def multiplied(self, part: Tensor) -> Tensor:
        """What the kernel is linear in, with the coefficient."""
        return part if self.coefficient is None else part * self.coefficient.to(part.dtype)

    def slope(self, part: Tensor) -> Tensor:
        """A gradient [*B, N, D] in the coordinates that points had before, with the coefficient."""
        return self.multiplied(part if self.divisor is None else part / self.divisor)


def scaled_passes(
    x: Tensor, y: Tensor, kernel: Kernel, y_lengths: Tensor | None, backend: str | None = None
) -> Iterator[Scaled]:
    """Each evaluation that the kernel takes; one of points as they are, unless it has tensors among its parameters.

    Raises:
        ValueError: If these are for other problems or coordinates.
    """
    if kernel.spec is not None:
        yield Scaled(x, y, None, None, kernel.spec)
        return
    check_parameters(x, kernel)
    centre = centre_of(y, y_lengths, backend) if any(each.divides for each in kernel.passes) else y.new_zeros(())
    for each in kernel.passes:
        divisor, coefficient = spread(each.divisor(x), backend), spread(each.coefficient, backend)
        if divisor is None:
            yield Scaled(x, y, None, coefficient, each.spec)
        else:
            same = x is y  # keep it so: backends use the symmetry
            u = (x - centre) / divisor
            yield Scaled(u, u if same else (y - centre) / divisor, divisor, coefficient, each.spec)


def check_parameters(x: Tensor, kernel: Kernel) -> None:
    """Parameters of a kernel that are tensors go with points [*B, N, D].

    Raises:
        ValueError: If they do not.
    """
    if kernel.dim is not None and kernel.dim != x.shape[-1]:
        raise ValueError(f"length_scale must have the dimension of x, D = {x.shape[-1]}, got {kernel.dim} numbers")
    if kernel.batch and not goes_into(kernel.batch, x.shape[:-2]):
        raise ValueError(
            f"kernel must have a bandwidth for all or one for each problem of x, {list(x.shape[:-2])},"
            f" got {list(kernel.batch)}"
        )


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
    for part in _parts(t, abs(factor)):
        t = t * part
    return t if factor >= 0 else -t


def over(t: Tensor, divisor: float | Tensor) -> Tensor:
    """t / divisor where the positive number may be out of the range of t's type, though the quotient is not."""
    for part in (divisor,) if isinstance(divisor, Tensor) else _parts(t, divisor):
        t = t / part
    return t


def moved(x: Tensor, velocity: Tensor, step: float, out: Tensor | None = None) -> Tensor:
    """x + step * velocity; a step may be out of the range of the points' type."""
    if _is_normal(x, step):
        return torch.add(x, velocity, alpha=step, out=out)
    return torch.add(x, times(velocity, step), out=out)


def _parts(t: Tensor, number: float) -> Sequence[float]:
    """Factors of a number that are in the range of t's type, each a root of it."""
    count = 1
    while math.isfinite(number) and not _is_normal(t, number):
        number, count = math.sqrt(number), 2 * count
    return (number,) * count


def _is_normal(t: Tensor, number: float) -> bool:
    limits = torch.finfo(t.dtype)
    return number == 0 or limits.tiny <= abs(number) <= limits.max


_SAMPLE = 256
"""Points that a centre is taken from; of larger sets, evenly spaced ones."""


def centre_of(
    y: Tensor, y_lengths: Tensor | None = None, backend: str | None = None
) -> Tensor:  # [*B, M, C] -> [*B, 1, C]
    """A point amid the sources, a constant: far from the origin, rounding spoils what is not a difference.

    The median of each coordinate, which outliers do not move, of eight bits less, so that it subtracts from points near
    it without rounding. 0 where there is no such point, and where the cloud holds the origin: the last bits of points
    near that decide the distance of close ones.
    """
    y = y.detach()
    m = y.shape[-2]
    if isinstance(backend, Sharded):  # of some points of each shard
        return centre_of(backend.gathered(y[..., :: max(-(-m // _SAMPLE), 1), :]))
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
