"""``method=`` of the pairwise reductions: its options, and sums by the methods that are not exact."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.pairs.fast import Directions, FastOptions, choose, fast_reduction
from gwf_fast.pairs.fast.directions import checked_directions
from gwf_fast.pairs.kernels import Kernel
from gwf_fast.pairs.passes import scaled_passes
from gwf_fast.pairs.ragged import members


class Method(NamedTuple):
    """How a sum is done: the arguments of ``kernel_sum`` and ``kernel_gradient`` that say so."""

    name: str
    tolerance: float
    n_projections: int | None
    sampling: str
    directions: Tensor | None
    generator: torch.Generator | None
    return_error: bool

    def options(self, x: Tensor) -> FastOptions:
        """What the fast sums take.

        Raises:
            ValueError, TypeError: If directions do not go with the method or with x, or an error is asked for that
                nobody estimates.
        """
        if self.name == "sliced":
            theta = checked_directions(x, self.n_projections, self.generator, self.sampling, self.directions)
            drawn = self.directions is None and self.sampling == "orthogonal"
            return FastOptions(self.name, directions=Directions(theta, x.shape[-1] if drawn else 1))
        for name in ("n_projections", "directions"):
            if getattr(self, name) is not None:
                raise ValueError(f'{name} goes with method="sliced", got method={self.name!r}')
        if self.return_error:
            raise ValueError(f'return_error=True goes with method="sliced", got method={self.name!r}')
        return FastOptions(self.name, self.tolerance)


def fast_sum(
    order: int,
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    kernel: Kernel,
    method: Method,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor] | None:
    """The sum (order 0) or its gradient, with its error where asked for; None where the exact method is to do it."""
    options = method.options(x)
    # What lies beyond the lengths may be anything, and must not be looked at: a box is fitted to the points.
    same = y is x and y_lengths is x_lengths
    x = members(x, x_lengths)
    y = x if same else members(y, y_lengths)
    channels = weights is not None and weights.ndim == y.ndim
    carried = weights if weights is None or channels else weights.unsqueeze(-1)  # [*B, M, C]
    count = 1 if carried is None else carried.shape[-1]
    if choose(options, x, y, kernel.terms, kernel.spec, order, count) == "exact":
        return None
    passes = scaled_passes(x, y, kernel, y_lengths)
    out, error = fast_reduction(order, passes, carried, options, exclude_self, x_lengths, y_lengths)
    out = out if order or channels else out.squeeze(-1)
    return (out, error) if method.return_error else out
