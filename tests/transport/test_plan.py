"""``SinkhornResult.apply``: the plan times values, against the dense plan of the potentials."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from tests.transport.dense import COSTS, FORMULAS, cost_matrix, problem

WAYS: dict[str, Any] = {"one call": {}, "general": {"backend": "torch"}}
EPSILON = 0.3


def plan_of(cost, x, y, a, b, result):
    exponent = (result.f[..., :, None] + result.g[..., None, :] - cost_matrix(cost, x, y)) / EPSILON
    return a[..., :, None] * b[..., None, :] * exponent.exp()


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [{}, {"marginal_strength": 0.5}, {"sweeps": "plain"}], ids=str)
@pytest.mark.parametrize("cost", COSTS)
def test_is_the_dense_plan(cost: str, options: dict, way: str) -> None:
    """Converged or not."""
    if cost in FORMULAS and (way == "one call" or options):
        pytest.skip("a formula has one way, without KeOps")
    x, y, a, b = problem(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = gwf.sinkhorn(
            x, y, epsilon=EPSILON, x_weights=a, y_weights=b, max_iterations=4, **options, **COSTS[cost], **WAYS[way]
        )
    plan = plan_of(cost, x, y, a, b, result)
    at_y, at_x = values(2, 5, 3), values(2, 6, 1)
    torch.testing.assert_close(result.apply(at_y), plan @ at_y, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(result.apply(at_x, side="y"), plan.mT @ at_x, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(result.apply(at_y[..., 0]), (plan @ at_y)[..., 0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(result.apply(torch.ones_like(a), "y"), plan.sum(-2), rtol=1e-11, atol=0)


def test_differentiates_in_the_values_alone() -> None:
    x, y, a, b = problem()
    x = x.requires_grad_()
    result = gwf.sinkhorn(x, y, epsilon=EPSILON, x_weights=a, y_weights=b)
    plan = plan_of("r^2/2", x.detach(), y, a, b, result)
    for side, shape, matrix in (("x", (5, 2), plan), ("y", (6, 2), plan.T)):
        v, u = values(*shape).requires_grad_(), values(len(matrix), 2)
        out = result.apply(v, side=side)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad((out * u).sum(), v)
        torch.testing.assert_close(gradient, matrix.T @ u, rtol=1e-11, atol=1e-13)
    assert not result.apply(values(5)).requires_grad


def test_of_a_divergence_s_three_problems() -> None:
    x, y, _, _ = problem()
    tight: dict[str, Any] = {"epsilon": EPSILON, "return_potentials": True, "max_iterations": 2000, "tolerance": 1e-12}
    for way in WAYS.values():
        _, of_value = gwf.sinkhorn_divergence(x, y, **tight, **way)
        _, of_drift = gwf.drift.sinkhorn(x, y, **tight, **way)
        for result, points in ((of_value.cross, y), (of_value.x_own, x), (of_value.y_own, y), (of_drift.x_own, x)):
            mean = result.apply(points) * len(result.f)
            here = y if result is of_value.y_own else x
            want = gwf.barycentric_map(here, points, result.g, epsilon=EPSILON)
            torch.testing.assert_close(mean, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("way", WAYS)
def test_ragged_sets_carry_what_is_in_them(way: str) -> None:
    x, y, _, _ = problem(2)
    n, m = torch.tensor([6, 2]), torch.tensor([3, 5])
    x[1, 2:], y[0, 3:] = math.nan, math.nan
    v, w = values(2, 5, 2), values(2, 6)
    v[0, 3:], w[1, 2:] = math.nan, math.inf
    options: dict[str, Any] = {"epsilon": EPSILON, "max_iterations": 2000, "tolerance": 1e-12, **WAYS[way]}
    result = gwf.sinkhorn(x, y, x_lengths=n, y_lengths=m, **options)
    to_x, to_y = result.apply(v), result.apply(w, "y")
    for i in range(2):
        alone = gwf.sinkhorn(x[i, : n[i]], y[i, : m[i]], **options)
        torch.testing.assert_close(to_x[i, : n[i]], alone.apply(v[i, : m[i]]), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(to_y[i, : m[i]], alone.apply(w[i, : n[i]], "y"), rtol=1e-9, atol=1e-11)
        assert bool((to_x[i, n[i] :] == 0).all()) and bool((to_y[i, m[i] :] == 0).all())


def test_weightless_points_get_and_give_nothing() -> None:
    x, y, a, b = problem()
    a[1], b[2] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    result = gwf.sinkhorn(x, y, epsilon=EPSILON, x_weights=a, y_weights=b)
    assert bool((result.apply(values(5, 2))[1] == 0).all())
    assert bool((result.apply(values(6, 2), "y")[2] == 0).all())


def test_a_plan_whose_points_moved_is_gone() -> None:
    x, y, _, _ = problem()
    result = gwf.sinkhorn(x, y, epsilon=EPSILON)
    before = result.apply(values(5))
    x = x + 1.0  # another tensor
    torch.testing.assert_close(result.apply(values(5)), before)
    y += 1.0
    with pytest.raises(RuntimeError, match=r"were modified in place since: its plan is gone"):
        result.apply(values(5))


def test_what_is_no_value() -> None:
    x, y, _, _ = problem(2)
    result = gwf.sinkhorn(x, y, epsilon=EPSILON)
    wrong = [
        (
            (values(2, 6, 3),),
            ValueError,
            r"v must have shape \[2, 5\] or \[2, 5, C\] to go with y \[2, 5, 2\], got \[2, 6",
        ),
        ((values(2, 5, 3), "y"), ValueError, r"v must have shape \[2, 6\] or \[2, 6, C\] to go with x"),
        ((values(2, 5).float(),), TypeError, r"v must have the dtype of x, torch.float64, got torch.float32"),
        ((values(2, 5), "z"), ValueError, r"side must be 'x' or 'y', got 'z'"),
        (([1.0],), TypeError, r"v must be a torch.Tensor, got list"),
    ]
    for arguments, error, message in wrong:
        with pytest.raises(error, match=message):
            result.apply(*arguments)  # type: ignore[arg-type]
    of_arrays = gwf.sinkhorn(x.numpy(), y.numpy(), epsilon=EPSILON)  # type: ignore[arg-type]
    for bare in (gwf.SinkhornResult(result.f, result.g, 1, result.error), of_arrays):
        with pytest.raises(RuntimeError, match=r"a plan needs a result of sinkhorn\(\) itself, of tensors"):
            bare.apply(values(2, 5))


@pytest.mark.parametrize("side", ["x", "y"])
def test_large_in_float32_and_under_autocast(side: Any) -> None:
    x, y, a, b = problem(n=300, m=260, dtype=torch.float32)
    v = values(260 if side == "x" else 300, 2).float()
    result = gwf.sinkhorn(x, y, epsilon=EPSILON, x_weights=a, y_weights=b, tolerance=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        got = result.apply(v, side)
    x, y, a, b = (t.double() for t in (x, y, a, b))
    wide = gwf.SinkhornResult(result.f.double(), result.g.double(), 0, result.error)
    plan = plan_of("r^2/2", x, y, a, b, wide)
    want = (plan if side == "x" else plan.T) @ v.double()
    assert got.dtype == torch.float32
    assert float((got.double() - want).norm() / want.norm()) < 2e-5
