"""Derivatives through potentials: one linear system, singular where marginals hold exactly, in a few products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast.transport import implicit
from tests.transport.dense import cost_matrix, sweeps


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many products each system took."""
    counts: list[int] = []
    solve = implicit._conjugate_gradients

    def counted(product: Callable[[Tensor], Tensor], right: Tensor, diagonal: Tensor, **options: bool) -> Tensor:
        counts.append(0)

        def one(w: Tensor) -> Tensor:
            counts[-1] += 1
            return product(w)

        return solve(one, right, diagonal, **options)

    monkeypatch.setattr(implicit, "_conjugate_gradients", counted)
    return counts


# sizes and epsilons of which rounding left something of constants in the residual, which then grew for 1,000 steps
@pytest.mark.parametrize(
    ("seed", "n", "m", "epsilon"), [(0, 6, 5, 3.3), (2, 10, 5, 3.2), (22, 11, 2, 1.3), (39, 11, 8, 2.6)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_constants_are_left_alone(
    seed: int, n: int, m: int, epsilon: float, dtype: torch.dtype, products: list[int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, 2, generator=generator, dtype=torch.float64) for k in (n, m))
    leaf = x.clone().requires_grad_()
    a, b = (torch.full((k,), 1 / k, dtype=torch.float64) for k in (n, m))
    (want,) = torch.autograd.grad(sweeps(cost_matrix("r^2/2", leaf, y), a, b, epsilon, 60).linear, leaf)
    at = x.to(dtype).requires_grad_()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    value = gwf.transport_cost(
        at, y.to(dtype), epsilon=epsilon, form="linear", max_iterations=1000, tolerance=tolerance
    )
    (got,) = torch.autograd.grad(value, at)
    assert products[0] <= max(2 * m, 12) + 20  # as many as unknowns, and those that find no smaller residual
    assert float((got.double() - want).norm() / want.norm()) < (1e-10 if dtype == torch.float64 else 1e-4)


def test_a_batch_waits_for_its_slowest(products: list[int]) -> None:
    """Systems that are solved keep their solution meanwhile."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, k, 2, generator=generator, dtype=torch.float64) for k in (12, 9))
    x[1], y[1] = 0.01 * x[1], 0.01 * y[1]
    options: dict[str, Any] = {"epsilon": 0.05, "form": "linear", "max_iterations": 3000, "tolerance": 1e-13}
    leaf = x.clone().requires_grad_()
    (together,) = torch.autograd.grad(gwf.transport_cost(leaf, y, **options).sum(), leaf)
    for i in range(2):
        one = x[i].clone().requires_grad_()
        (alone,) = torch.autograd.grad(gwf.transport_cost(one, y[i], **options), one)
        torch.testing.assert_close(together[i], alone, rtol=1e-8, atol=1e-13)
    assert products[0] == max(products)
