"""Gradients of input-convex networks: transport maps that are optimal, and invertible, whatever their parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from typing_extensions import override

from gwf_fast.checkpoint.portable import portable
from gwf_fast.ops.ambient import entry
from gwf_fast.pairs.validation import as_integer, as_number, check_kind

_CHUNK = 1 << 13  # rows of a Hessian or an inverse at once: bounds the memory
_HALVINGS = 50
_SLOPE_LEFT = 0.25
"""Of the slope at the start of a line, what its search may leave at the end."""


@portable
class ICNNGradient(nn.Module):
    """T = grad phi with phi convex: an optimal map between its source and its image (Brenier 1991; Amos et al. 2017).

    phi(x) = x'(L L' + c I) x / 2 + b.x + w.z_K(x), with z_1 = s(A_1 x + b_1), z_k = s(W_k z_{k-1} + A_k x + b_k), s the
    softplus, and w, W_k positive (they are stored through a softplus). So phi is c-strongly convex, whatever the
    parameters: T is a bijection, and its Jacobian, the Hessian of phi, is the sum of c I and positive semidefinite
    matrices, given in closed form. It starts close to the identity.

    Args:
        dim: D.
        hidden: Widths of the layers of z; none leaves the affine maps x -> (L L' + c I) x + b, which are exact between
            Gaussians.
        convexity: c > 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (64, 64), *, convexity: float = 1e-3) -> None:
        super().__init__()
        hidden = tuple(hidden)
        for name, value in (("dim", dim), *(("hidden", width) for width in hidden)):
            as_integer(name, value)
        dim, hidden = int(dim), tuple(map(int, hidden))
        convexity = as_number("convexity", convexity, "a number between 0 and 1", above=0, below=1)
        self.config: dict[str, Any] = {"dim": dim, "hidden": list(hidden), "convexity": convexity}
        self.scale = nn.Parameter(math.sqrt(1 - convexity) * torch.eye(dim))  # L
        self.shift = nn.Parameter(torch.zeros(dim))  # b
        self.inputs = nn.ModuleList(nn.Linear(dim, width) for width in hidden)  # A_k, b_k
        # softplus(-4) = 0.018: sums over a layer stay of the size of one
        widths = [*hidden, 1] if hidden else []
        self.positive = nn.ParameterList(
            math.log(math.expm1(1 / before)) + 0.1 * torch.randn(after, before)
            for before, after in itertools.pairwise(widths)
        )
        if hidden:
            with torch.no_grad():
                self.positive[-1].fill_(math.log(math.expm1(1e-2 / hidden[-1])))

    def portable_arguments(self) -> dict[str, Any]:
        """What makes such a network; see ``checkpoint/portable.py``."""
        return self.config

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor:
            """As ``forward``; ``nn.Module`` says Any."""
            ...

    @entry
    @override
    def forward(self, x: Tensor) -> Tensor:
        """T(x) [*B, D] for x [*B, D]."""
        self._check("x", x)
        return self._evaluate(x)[1]

    @entry
    def potential(self, x: Tensor) -> Tensor:
        """phi(x) [*B] for x [*B, D]."""
        self._check("x", x)
        return self._evaluate(x)[0]

    @entry
    def jacobian(self, x: Tensor) -> Tensor:
        """The Hessian of phi [*B, D, D], symmetric positive definite."""
        self._check("x", x)
        return self._evaluate(x, hessian=True)[2]

    @entry
    def log_abs_det(self, x: Tensor) -> Tensor:
        """log |det dT/dx| [*B]; differentiable."""
        self._check("x", x)
        rows = x.reshape(-1, x.shape[-1])
        parts = []
        for part in rows.split(_CHUNK):
            factor = torch.linalg.cholesky_ex(self._evaluate(part, hessian=True)[2])[0]
            parts.append(2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1))
        return torch.cat(parts).view(x.shape[:-1]) if parts else rows.new_zeros(x.shape[:-1])

    @entry
    @torch.no_grad()
    def inverse(self, z: Tensor, *, tolerance: float | None = None, max_iterations: int = 100) -> Tensor:
        """x with T(x) = z, for z [*B, D]: the maximum of <x, z> - phi(x), by Newton's method with a line search.

        In float64 inside, whatever the precision of z. Rows that are not finite come back as NaN.

        Args:
            z: Points [*B, D].
            tolerance: Of |T(x) - z|, relative to 1 + |z|; None for 1e-12, or 1e-7 where z is float32.
            max_iterations: Of Newton's method.

        Returns:
            [*B, D], not differentiable.

        Raises:
            RuntimeError: If a row does not get there, with their number and the largest residual.
        """
        self._check("z", z)
        tolerance = tolerance if tolerance is not None else 1e-12 if z.dtype == torch.float64 else 1e-7
        twin = self
        if z.dtype != torch.float64:
            twin = ICNNGradient(**self.config).to(z.device, torch.float64)
            twin.load_state_dict(self.state_dict())
        rows = z.reshape(-1, z.shape[-1]).double()
        parts = [twin._invert(part, tolerance, max_iterations) for part in rows.split(_CHUNK)]
        return (torch.cat(parts) if parts else rows).view(z.shape).to(z.dtype)

    def _invert(self, z: Tensor, tolerance: float, max_iterations: int) -> Tensor:
        out = torch.full_like(z, math.nan)
        rows = z.isfinite().all(-1).nonzero()[:, 0]  # not yet there
        z = z[rows]
        limit = tolerance * (1 + z.norm(dim=-1))
        x = torch.linalg.solve(self._quadratic(), (z - self.shift).T).T  # exact without hidden layers
        for iteration in range(max_iterations + 1):
            value, image, hessian = self._evaluate(x, hessian=True)
            residual = image - z
            size = residual.norm(dim=-1)
            done = size <= limit
            out[rows[done]] = x[done]
            left = ~done
            if not left.any():
                return out
            if iteration == max_iterations:
                raise RuntimeError(
                    f"inverse: {int(left.sum())} rows did not reach tolerance={tolerance:g} in {max_iterations} "
                    f"iterations; largest residual {float(size[left].max()):.1e}"
                )
            rows, x, z, limit, residual, size = (t[left] for t in (rows, x, z, limit, residual, size))
            direction = -torch.cholesky_solve(residual[..., None], torch.linalg.cholesky(hessian[left]))[..., 0]
            x = self._search(x, z, value[left] - (x * z).sum(-1), direction, (residual * direction).sum(-1), size)
        raise AssertionError("unreachable: the last iteration returns or raises")

    def _search(self, x: Tensor, z: Tensor, value: Tensor, direction: Tensor, slope: Tensor, size: Tensor) -> Tensor:
        """By row, a step in (0, 1] that descends phi(x) - <x, z> enough and leaves little of its slope along the line.

        The whole step where that does, else by bisection. Halving until the value falls is not enough: between flat
        parts and a sharp bend full steps leap to and fro, and half steps approach the bend slowly.
        """
        step = torch.ones_like(value)
        low, high = torch.zeros_like(value), torch.ones_like(value)
        for _ in range(_HALVINGS):
            trial = x + step[:, None] * direction
            new, image, _ = self._evaluate(trial)
            residual = image - z
            descends = new - (trial * z).sum(-1) <= value + 1e-4 * step * slope
            # close to the solution differences of values are rounding, and residuals are not
            descends |= residual.norm(dim=-1) <= (1 - 0.25 * step) * size
            left = (residual * direction).sum(-1)  # the slope there; it grows along the line
            long = ~descends | (left > -_SLOPE_LEFT * slope)
            short = ~long & (left < _SLOPE_LEFT * slope) & (step < 1)
            if not (long | short).any():
                break
            high, low = torch.where(long, step, high), torch.where(short, step, low)
            step = torch.where(long | short, (low + high) / 2, step)
        return x + step[:, None] * direction

    def _quadratic(self) -> Tensor:
        eye = torch.eye(len(self.shift), dtype=self.shift.dtype, device=self.shift.device)
        return self.scale @ self.scale.T + self.config["convexity"] * eye

    def _evaluate(self, x: Tensor, hessian: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """phi, its gradient, and its Hessian if asked for: one pass up and one down, no nested autograd."""
        quadratic = self._quadratic()
        gradient = x @ quadratic
        value = (x * (0.5 * gradient + self.shift)).sum(-1)
        gradient = gradient + self.shift
        curvature = quadratic.expand(*x.shape[:-1], -1, -1) if hessian else quadratic
        if not self.inputs:
            return value, gradient, curvature
        weights = [softplus(w) for w in self.positive]
        matrices: list[Any] = [layer.weight for layer in self.inputs]
        slopes, z = [], None
        for k, layer in enumerate(self.inputs):
            u = layer(x) if z is None else layer(x) + z @ weights[k - 1].T
            slopes.append(torch.sigmoid(u))
            z = softplus(u)
        assert z is not None  # there are layers
        value = value + (z @ weights[-1].T)[..., 0]
        jacobians: list[Tensor] = []  # of u_k in x, [*B, width, D]
        if hessian:
            for k, matrix in enumerate(matrices):
                if k == 0:
                    jacobians.append(matrix.expand(*x.shape[:-1], -1, -1))
                else:
                    jacobians.append(matrix + weights[k - 1] @ (slopes[k - 1][..., None] * jacobians[-1]))
        adjoint = weights[-1][0].expand_as(slopes[-1])  # of z_k
        for k in reversed(range(len(slopes))):
            back = adjoint * slopes[k]
            gradient = gradient + back @ matrices[k]
            if hessian:  # s'' = s' (1 - s'), and the adjoint is positive
                scaled = (back * (1 - slopes[k]))[..., None] * jacobians[k]
                curvature = curvature + jacobians[k].mT @ scaled
            if k:
                adjoint = back @ weights[k - 1]
        return value, gradient, curvature

    def _check(self, name: str, points: Tensor) -> None:
        check_kind(name, points)
        dim = self.config["dim"]
        if points.ndim < 1 or points.shape[-1] != dim:
            raise ValueError(f"{name} must have shape [*B, {dim}], got {list(points.shape)}")
        if points.dtype != self.shift.dtype:
            raise TypeError(f"{name} must have the dtype of the map, {self.shift.dtype}, got {points.dtype}")
