"""In which precision the backend "torch" computes: that of its inputs, or float64 where squares and powers leave it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST, LARGEST = 1e-5, 1e5
"""Lengths of which float32 holds the powers that derivatives to third order of a kernel have, up to the sixth."""
STEEPEST = 1e7
"""Exponents beyond which float32 has lost the units."""


def working_dtype(
    x: Tensor, y: Tensor, spec: Sequence[float], log_domain: bool, shifts: Sequence[Tensor | None]
) -> torch.dtype:
    """At least float32; float64 where points, bandwidths or exponents are out of the range of float32.

    Args:
        x: Points that exist, [B, N, D]; whatever does not is 0.
        y: The same, [B, M, D].
        spec: The kernel.
        log_domain: Whether exponents are formed that do not decay.
        shifts: What is added to them.
    """
    if x.dtype == torch.float64:
        return torch.float64
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()  # nothing is read then
    lengths = [abs(h) for h in spec[2::4]]
    fits = all(LEAST <= h <= LARGEST for h in lengths)
    if fits and not capturing:
        reach = max(largest_finite(x), largest_finite(y))
        fits = reach == 0 or LEAST <= reach <= LARGEST
        if log_domain:
            exponent = 2 * x.shape[-1] * (reach / min(lengths)) ** 2
            fits &= exponent + sum(largest_finite(shift) for shift in shifts if shift is not None) <= STEEPEST
    return torch.float32 if fits else torch.float64


def largest_finite(values: Tensor) -> float:
    """The largest finite size."""
    if not values.numel():
        return 0.0
    largest = float(values.abs().amax())
    if largest < torch.inf:
        return largest
    return float(values.nan_to_num(0.0, 0.0, 0.0).abs().amax())


def overflowed(results: Sequence[Tensor], arguments: Sequence[Tensor | None]) -> bool:
    """Whether float32 results are not finite though their arguments are: a power of a short distance left the type."""
    if results[0].dtype == torch.float64 or (results[0].is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    finite = all(bool(t.isfinite().all()) for t in results)
    return not finite and all(t is None or bool(t.isfinite().all()) for t in arguments)
