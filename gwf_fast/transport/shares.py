"""Averages over the pairs of a plan's rows of what depends on both points, which no ``kernel_average`` has.

All are values of the one operator of derivatives (``gwf_fast/ops/jet.py``) with the shares in its exponents: streaming,
differentiable once more, and made of differences x_i - y_j, so that small costs between far points keep their digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gwf_fast import ops
from gwf_fast.ops.jet import Options, Tangent, jet, safe_exp_difference
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Kernel
from gwf_fast.pairs.reductions import kernel_logsumexp


@dataclass(frozen=True)
class Shares:
    """p_ij = e^(beta_j) k(x_i, y_j) / sum_j e^(beta_j) k(x_i, y_j), never stored.

    Attributes:
        x: Rows [B?, N, D].
        y: Columns [B?, M, D].
        beta: [B?, M].
        total: The logarithms [B?, N] of the sums.
        options: Of the operator.
        batch: *B.
    """

    x: Tensor
    y: Tensor
    beta: Tensor
    total: Tensor
    options: Options
    batch: Sequence[int]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, beta: Tensor, kernel: Kernel, backend: BackendName | None) -> Shares:
        """Of points [*B, N, D], [*B, M, D] and beta [*B, M]."""
        total = kernel_logsumexp(x, y, beta, kernel=kernel, backend=backend)
        name = ops.resolve(backend, x.device, x.dtype, kernel.has_formula, "jet", x.shape[-1])
        assert kernel.spec is not None
        batch = x.shape[:-2]
        if len(batch) > 1:
            x, y, beta, total = x.flatten(0, -3), y.flatten(0, -3), beta.flatten(0, -2), total.flatten(0, -2)
        return cls(x, y, beta, total, Options(kernel.spec, False, None, None, name), batch)

    def slope(self) -> Tensor:
        """sum_j p_ij grad_x log k(x_i, y_j) [*B, N, D]."""
        of_one, sums = self._jet([], 1 / safe_exp_difference(self.total)[..., None])
        return self._unfolded(of_one / _constants(sums))

    def growth(self) -> Tensor:
        """sum_j p_ij of the derivative of log k along (x, y), as all points move away from the origin [*B, N]."""
        return self._mean([(self.x, self.y, None, None)], self.options)

    def mean(self, weighted: Kernel) -> Tensor:
        """sum_j p_ij c(x_i, y_j) [*B, N], where ``weighted`` is c k."""
        assert weighted.spec is not None
        return self._mean([], self.options._replace(spec=weighted.spec))

    def _mean(self, tangents: list[Tangent], options: Options) -> Tensor:
        unused = torch.zeros_like(self.x[..., :1])
        sums = self._jet(tangents, unused, options)[1]
        shares = self._jet([], unused)[1]
        return self._unfolded((sums / _constants(shares))[..., 0] / safe_exp_difference(self.total))

    def _jet(self, tangents: list[Tangent], a: Tensor, options: Options | None = None) -> tuple[Tensor, Tensor]:
        b = safe_exp_difference(self.beta)[..., None]  # 1, with the derivative of beta
        alpha, beta = -self.total.detach(), self.beta.detach()
        return jet(self.x, self.y, a, b, alpha, beta, tangents, options or self.options)

    def _unfolded(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, self.batch) if len(self.batch) > 1 else rows


def _constants(sums: Tensor) -> Tensor:
    """What shares add up to, 1 but for the rounding of exponents, to divide by."""
    sums = sums.detach()
    return torch.where(sums > 0, sums, 1.0)
