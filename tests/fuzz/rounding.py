"""What rounding does to a dense result: the same formula again, each step off by a few units of the last place."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

ULPS = 6.0
"""Size of the perturbations, in roundings of the precision at hand."""


def summed(terms: Iterable[Tensor]) -> Tensor:
    """Their sum, of which there is one at least: Python's begins with a number."""
    return functools.reduce(operator.add, terms)


class _Rounded(torch.autograd.Function):
    """A product whose derivative is rounded on its own account, as code for derivatives does."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.factors = there, back
        return t * there

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        there, back = ctx.factors
        return _Rounded.apply(g, back, there), None, None


class Rounding:
    """Multiplies by 1 + eps u, where a formula says that it rounds; eps = 0 leaves all exact.

    u is of random sign and of 3/4 to 5/4 in size: of +-1, roundings that cancel in truth would do so half of the time.
    """

    def __init__(self, eps: float = 0.0, seed: int = 0) -> None:
        self.eps = eps
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, t: Tensor) -> Tensor:
        """A rounded result."""
        if self.eps == 0:
            return t
        there, back = (1 + self.eps * self._signs(t) for _ in range(2))
        return _Rounded.apply(t, there, back)

    def behind(self, t: Tensor, times: float = ULPS) -> Tensor:
        """The same, its derivative rounded some times: that of an argument, of which two may be one tensor."""
        if self.eps == 0:
            return t
        return _Rounded.apply(t, torch.ones_like(t), 1 + self.eps * times / ULPS * self._signs(t))

    def moved(self, t: Tensor, by: Tensor | float) -> Tensor:
        """A result that is off by a rounding of something larger."""
        return t if self.eps == 0 else t + self.eps * by * self._signs(t)

    def constant(self, value: float) -> float:
        """A parameter as the precision holds it, the same in all pairs: off by one rounding, and its square by two."""
        if self.eps == 0 or value == round(value):
            return value
        return value * (1 + self.eps / ULPS * float(self._signs(torch.zeros(()))))

    def _signs(self, t: Tensor) -> Tensor:
        u = torch.rand(t.shape, generator=self._generator, dtype=torch.float64) - 0.5
        return u + 0.75 * u.sign()


EXACT = Rounding()
