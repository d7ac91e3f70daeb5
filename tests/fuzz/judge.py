"""Whether a result is right: as close to the dense truth as rounding in its precision lets one be."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tests.fuzz.rounding import ULPS

SAFETY = 3.0
"""What an error may exceed the largest of a few drawn ones by."""


_LEAST = 1e-150
"""The truth is float64 itself, and squares of less are 0 in it."""


class Verdict(NamedTuple):
    """What is wrong, or None, and the worst error in units of what is allowed."""

    fault: str | None
    ratio: float


def judge(
    name: str,
    got: Tensor,
    truth: Tensor,
    perturbed: list[Tensor],
    *,
    batch: int,
    pads: bool,
    floor: float,
    slack: float,
    place: str,
    factor: float = 1.0,
    unit: float = 1.0,
    overflown: bool = False,
    beyond: bool = False,
    lonely: int | None = None,
    derived: bool = False,
) -> Verdict:
    """Compare a result with its truth.

    Args:
        name: Of the result, for the message.
        got: What the package says.
        truth: The dense result in float64.
        perturbed: The same with rounding.
        batch: Number of batch dimensions; what follows are rows, and their coordinates.
        pads: Whether an infinite truth is the documented value of nothing, and must be met.
        floor: Relative error in the 2-norm that is granted, of the result and of what it is a sum of.
        slack: Error, as it is, that is granted.
        place: Where the points of the call lie.
        factor: Of what rounding explains.
        unit: What a weight that underflows may be multiplied by.
        overflown: Whether what a derivative is formed of may overflow: it may then be infinity less infinity, and
            says so, as NaN. What is finite must be right.
        beyond: Whether the terms of the result may overflow, by themselves or in a sum: it may be infinite or NaN, and
            must be right where it is finite.
        lonely: The NaN member of the first problem, where points are left out of their own sums: a set that is the same
            by contract has it on both sides.
        derived: Whether it is a derivative.
    """
    if got.shape != truth.shape:
        return Verdict(f"{name}: shape {list(got.shape)}, expected {list(truth.shape)}", math.inf)
    info = torch.finfo(got.dtype)
    rows = got.ndim - batch == 2
    got64, truth = got.detach().double(), truth.detach()
    if not truth.numel():
        return Verdict(None, 0.0)

    def size(t: Tensor) -> Tensor:
        if not rows:
            return t.abs()
        unit = t.abs().amax(-1, keepdim=True) if t.shape[-1] else t.new_ones(*t.shape[:-1], 1)
        unit = torch.where((unit > 0) & unit.isfinite(), unit, 1.0)  # squares of 1e160 are infinite
        return (t / unit).norm(dim=-1) * unit[..., 0]

    def bad(t: Tensor) -> Tensor:
        return t.isnan().any(-1) if rows else t.isnan()

    def infinite(t: Tensor) -> Tensor:
        return t.isinf().any(-1) if rows else t.isinf()

    largest = truth.abs().amax(-1) if rows else truth.abs()
    overflows = largest > 0.5 * info.max  # NaN compares as False
    wanted_nan, got_nan = bad(truth), bad(got64)
    unknown = torch.stack([bad(p.detach()) for p in perturbed]).any(0) if perturbed else wanted_nan
    unknown = unknown | overflown
    touched = torch.zeros_like(got_nan)
    if place.startswith("inf"):
        touched[(0,) * min(batch, touched.ndim)] = True  # a bias has less dimensions than the batch
    if lonely is not None and derived:
        touched[(0,) * batch] = True  # its own row has slopes in all that it is compared with
    elif lonely is not None and got.ndim > batch and lonely < got.shape[batch]:
        touched[(0,) * batch + (lonely,)] = True
    if not place.startswith(("inf", "nan")):  # of an overflow: infinity less infinity, or not quite
        unknown = unknown | wanted_nan
        wanted_nan = torch.zeros_like(wanted_nan)
    elif batch and wanted_nan.ndim >= batch:  # it is in the first problem; elsewhere the truth has overflown
        elsewhere = torch.ones_like(wanted_nan)
        elsewhere[(0,) * batch] = False
        unknown, wanted_nan = unknown | (wanted_nan & elsewhere), wanted_nan & ~elsewhere
    lost = wanted_nan & ~got_nan & ~touched
    if lost.any():
        return Verdict(f"{name}: NaN is lost in {_where(lost)}", math.inf)
    invented = got_nan & ~wanted_nan & ~unknown & ~overflows & ~touched
    if invented.any() and not beyond:
        return Verdict(f"{name}: NaN in {_where(invented)}, truth {_at(truth, invented)}", math.inf)
    finite = ~(wanted_nan | got_nan | unknown | overflows | infinite(truth))
    invented = finite & infinite(got64) & ~touched
    if invented.any() and not beyond:
        return Verdict(f"{name}: inf in {_where(invented)}, truth {_at(truth, invented)}", math.inf)
    same = ~(wanted_nan | got_nan | unknown | touched) & infinite(truth)
    # what is infinite or overflows; a finite neighbour may be a zero that has underflowed
    missed = truth.isinf() & (got64 != truth)
    differs = same & (missed.any(-1) if rows else missed)
    if pads and differs.any():
        return Verdict(f"{name}: {_at(got64, differs)} for {_at(truth, differs)} in {_where(differs)}", math.inf)
    finite &= ~infinite(got64)
    if not pads:  # of sums that are infinite
        finite &= ~touched
    clean = torch.where(finite[..., None] if rows else finite, truth, 0.0)
    error = size(torch.where(finite[..., None] if rows else finite, got64 - truth, 0.0))
    spread = torch.stack(
        [size(torch.where(finite[..., None] if rows else finite, p.detach() - truth, 0.0)) for p in perturbed]
    )
    spread = torch.where(spread.isfinite(), spread, 0.0).amax(0)
    # of the result; where terms cancel of these, which have moved by their roundings
    whole = clean.norm() + spread.norm() / (ULPS * info.eps / 2) if floor else 0.0
    # the documented promise is relative to the set; its typical row, so that an outlier's does not hide the others'
    typical = size(clean).median() if got.ndim > batch else 0.0
    allowed = (
        SAFETY * factor * spread
        + ULPS * info.eps / 2 * (size(clean) + SAFETY * typical)
        + floor * whole
        + slack
        + max(1e4 * info.tiny, _LEAST) * unit
    )
    ratio = torch.where((error == 0) | (allowed == math.inf), 0.0, error / allowed)
    worst = float(ratio.max())
    if worst <= 1:
        return Verdict(None, worst)
    at = ~(ratio < ratio.max())
    sizes = f"off by {float(error[at][0]):.1e}, allowed {float(allowed[at][0]):.1e}"
    parts = f"{_at(got64, at)}, truth {_at(truth, at)}, {sizes}"
    return Verdict(f"{name}{_where(at)}: {parts}", worst)


def _where(mask: Tensor) -> str:
    index = mask.nonzero()
    return f"{index[0].tolist()}{f' and {len(index) - 1} more' if len(index) > 1 else ''}"


def _at(t: Tensor, mask: Tensor) -> str:
    value = t[mask][0]
    return f"{float(value):.6g}" if value.ndim == 0 else "[" + ", ".join(f"{v:.4g}" for v in value.tolist()[:3]) + "]"
