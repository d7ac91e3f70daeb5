"""Costs other than r^2/2, and what transport costs: against dense plans, their autograd, and POT."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sympy as sp
import torch
from torch import Tensor

import gwf_fast as gwf
from tests.transport.dense import COSTS, FORMULAS, cost_matrix, own_value, problem, sweeps

TIGHT: dict[str, Any] = {"max_iterations": 2000, "tolerance": 1e-12}
EPSILON = 0.5


def options_of(cost: str) -> dict:
    """A formula without KeOps, whose programs take seconds to build; the others by what is picked."""
    return COSTS[cost] | ({"backend": "torch"} if cost in FORMULAS else {})


def without_constant(t: Tensor) -> Tensor:
    return t if t.ndim > 1 else t - t.mean()


def close(got: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    assert float((got - want).norm()) <= tolerance * float(want.norm())


@pytest.mark.parametrize("form", ["linear", "entropic"])
@pytest.mark.parametrize("cost", COSTS)
def test_values_and_derivatives_are_those_of_the_dense_plan(cost: str, form: Any) -> None:
    """Derivatives of the solution are autograd's through sweeps that have converged."""
    leaves = [t.requires_grad_() for t in problem()]
    x, y, a, b = leaves
    want = getattr(sweeps(cost_matrix(cost, x, y), a, b, EPSILON, 120), form)
    got = gwf.transport_cost(x, y, epsilon=EPSILON, form=form, x_weights=a, y_weights=b, **TIGHT, **options_of(cost))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=0)
    for ours, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        close(without_constant(ours), without_constant(theirs))


@pytest.mark.parametrize("form", ["linear", "entropic"])
@pytest.mark.parametrize("cost", ["r^2/2", "r", "hyperbola"])
def test_soft_marginals(cost: str, form: Any) -> None:
    """In weights too, whose sums are free then."""
    leaves = [t.requires_grad_() for t in problem()]
    x, y, a, b = leaves
    rho, matrix = 0.8, cost_matrix(cost, x, y)
    dense = sweeps(matrix, a, 1.3 * b, EPSILON, 120, rho=rho)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p / q).log() - p + q).sum()

    want = dense.linear
    if form == "entropic":
        rows, columns = dense.plan.sum(1), dense.plan.sum(0)
        want = want + EPSILON * kl(dense.plan, a[:, None] * 1.3 * b) + rho * (kl(rows, a) + kl(columns, 1.3 * b))
    got = gwf.transport_cost(
        x, y, epsilon=EPSILON, form=form, x_weights=a, y_weights=1.3 * b, marginal_strength=rho, **TIGHT,
        **options_of(cost),
    )  # fmt: skip
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    for ours, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        close(ours, theirs)


def product_of(leaf: Tensor, y: Tensor, options: dict) -> Tensor:
    """The derivative of a drift, which has no other."""
    velocity = gwf.drift.sinkhorn(leaf, y, **options)
    return torch.autograd.grad(velocity.square().sum(), leaf, create_graph=True)[0]


@pytest.mark.parametrize("cost", ["r", "cosine", "hyperbola"])
def test_second_derivatives(cost: str) -> None:
    """Of "entropic" by differences of the first; of "linear" there are none, and it says so."""
    x, y, _, _ = problem()
    direction = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    options: dict[str, Any] = {"epsilon": EPSILON, **TIGHT, **options_of(cost)}

    def gradient(points: Tensor, form: Any = "entropic", create_graph: bool = False) -> Tensor:
        leaf = points if points.requires_grad else points.clone().requires_grad_()
        value = gwf.transport_cost(leaf, y, form=form, **options)
        return torch.autograd.grad(value, leaf, create_graph=create_graph)[0]

    leaf = x.clone().requires_grad_()
    (product,) = torch.autograd.grad((gradient(leaf, create_graph=True) * direction).sum(), leaf)
    h = 1e-5
    close(product, (gradient(x + h * direction) - gradient(x - h * direction)) / (2 * h), 1e-7)
    for of in (gradient(leaf, "linear", create_graph=True), product_of(leaf, y, options)):
        with pytest.raises(NotImplementedError, match=r"up to the second order|are implemented once"):
            torch.autograd.grad(of.sum(), leaf)


@pytest.mark.parametrize("cost", COSTS)
def test_drifts_descend_the_divergence(cost: str) -> None:
    x, y, a, b = problem(2)
    options = {"epsilon": EPSILON, "x_weights": a, "y_weights": b, **TIGHT, **options_of(cost)}
    leaf = x.clone().requires_grad_()
    value = gwf.sinkhorn_divergence(leaf, y, **options)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(gwf.drift.sinkhorn(x, y, **options), -gradient / a[..., None], rtol=1e-8, atol=1e-10)
    cross = sweeps(cost_matrix(cost, x, y), a, b, EPSILON, 150).entropic
    own = [own_value(cost_matrix(cost, points, points), weights, EPSILON) for points, weights in ((x, a), (y, b))]
    torch.testing.assert_close(value, cross - (own[0] + own[1]) / 2, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("cost", ["r", "cosine", "hyperbola"])
def test_drifts_differentiate_through_the_solution(cost: str) -> None:
    x, y, _, _ = problem()
    direction = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    options = {"epsilon": EPSILON, **TIGHT, **options_of(cost)}
    leaf = x.clone().requires_grad_()
    (product,) = torch.autograd.grad((gwf.drift.sinkhorn(leaf, y, **options) * direction).sum(), leaf)
    h, want = 1e-5, torch.zeros_like(x)
    for at in range(x.numel()):
        step = torch.zeros_like(x)
        step.view(-1)[at] = h
        moved = gwf.drift.sinkhorn(x + step, y, **options) - gwf.drift.sinkhorn(x - step, y, **options)
        want.view(-1)[at] = (moved * direction).sum() / (2 * h)
    close(product, want, 1e-6)


@pytest.mark.parametrize("cost", ["r", "cosine", "3 r"])
def test_the_barycentric_map_is_of_the_points_themselves(cost: str) -> None:
    x, y, a, b = problem()
    plan = sweeps(cost_matrix(cost, x, y), a, b, EPSILON, 120).plan
    result = gwf.sinkhorn(x, y, epsilon=EPSILON, x_weights=a, y_weights=b, **TIGHT, **COSTS[cost])
    got = gwf.barycentric_map(x, y, result.g, epsilon=EPSILON, y_weights=b, **COSTS[cost])
    torch.testing.assert_close(got, plan @ y / plan.sum(1, keepdim=True), rtol=1e-10, atol=1e-12)


def test_conventions_of_pot() -> None:
    ot = pytest.importorskip("ot")
    x, y, a, b = problem(n=12, m=9)
    cost = cost_matrix("r^2", x, y)
    options = {"epsilon": 0.7, "x_weights": a, "y_weights": b, **TIGHT, **COSTS["r^2"]}
    entropic, linear = (gwf.transport_cost(x, y, form=form, **options) for form in ("entropic", "linear"))
    known = ot.solve(cost, a, b, reg=0.7, reg_type="KL", tol=1e-13, max_iter=5000)
    torch.testing.assert_close(entropic, known.value, rtol=1e-9, atol=0)
    torch.testing.assert_close(linear, known.value_linear, rtol=1e-9, atol=0)
    torch.testing.assert_close(linear, ot.sinkhorn2(a, b, cost, 0.7, stopThr=1e-13), rtol=1e-9, atol=0)
    plan = ot.sinkhorn(a, b, cost, 0.7, stopThr=1e-13)
    cuturi = (plan * cost).sum() + 0.7 * (plan * plan.log()).sum()
    entropies = -(a * a.log()).sum() - (b * b.log()).sum()
    torch.testing.assert_close(entropic - 0.7 * entropies, cuturi, rtol=1e-9, atol=0)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("debias", [False, True])
def test_conventions_of_geomloss(p: int, debias: bool) -> None:
    geomloss = pytest.importorskip("geomloss")
    x, y, a, b = problem(n=12, m=9)
    loss = geomloss.SamplesLoss("sinkhorn", p=p, blur=0.7, scaling=0.98, debias=debias, backend="tensorized")
    options: dict[str, Any] = {"epsilon": 0.7**p, "x_weights": a, "y_weights": b, "p": p, **TIGHT}
    got = gwf.sinkhorn_divergence(x, y, **options) if debias else gwf.transport_cost(x, y, **options)
    torch.testing.assert_close(got, loss(a, x, b, y), rtol=1e-4, atol=0)


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("cost", ["r^2/2", "r", "hyperbola"])
@pytest.mark.parametrize("size", [(20, 30), (220, 210)])  # in one call, and in passes
def test_small_costs_between_points_far_apart(cost: str, size: tuple[int, int]) -> None:
    """Pairs a hundredth apart in a cloud of width 100: differences are formed first, also in float32."""
    generator = torch.Generator().manual_seed(0)
    n, m = size
    x = 30 * torch.randn(n, 3, generator=generator)
    y = x[torch.arange(m) % n] + 0.01 * torch.randn(m, 3, generator=generator)
    options: dict[str, Any] = {
        "epsilon": 1e-4 if cost == "r^2/2" else 1e-2,
        "marginal_strength": 1.0,
        "max_iterations": 20,
    }
    options |= {"sweeps": "plain", "tolerance": 0.0, "form": "linear"} | options_of(cost)
    got, want = (gwf.transport_cost(x.to(t), y.to(t), **options) for t in (torch.float32, torch.float64))
    torch.testing.assert_close(got.double(), want, rtol=2e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_of_vectors_of_any_length(dtype: torch.dtype) -> None:
    x, y, a, b = (t.to(dtype) for t in problem())
    limits = torch.finfo(dtype)
    options: dict[str, Any] = {"epsilon": 0.3, "x_weights": a, "y_weights": b, "cost": "cosine"}
    want = gwf.transport_cost(x, y, **options)
    for factor in (8 * limits.tiny, limits.max / 8, 1.0):
        scales = torch.full((6, 1), factor, dtype=dtype)
        scales[::2] = 1.0
        leaf = (x * scales).requires_grad_()
        got = gwf.transport_cost(leaf, y, **options)
        torch.testing.assert_close(got, want, rtol=20 * limits.eps / 2, atol=0)
        (gradient,) = torch.autograd.grad(got, leaf)
        along = (gradient * leaf.detach()).sum(-1).abs() / (gradient.norm(dim=-1) * leaf.detach().norm(dim=-1))
        assert factor != 1.0 or float(along.max()) < 1e-5  # lengths don't count


def test_padding_has_no_direction() -> None:
    x, y, _, _ = problem(2)
    n = torch.tensor([6, 2])
    spoilt = x.clone()
    spoilt[1, 2:] = math.nan
    leaf = spoilt.requires_grad_()
    options: dict[str, Any] = {"epsilon": 0.5, "cost": "cosine", **TIGHT}
    for function in (gwf.transport_cost, gwf.sinkhorn_divergence):
        value = function(leaf, y, x_lengths=n, **options)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        torch.testing.assert_close(value[1], function(x[1, :2], y[1], **options), rtol=1e-9, atol=1e-12)
        assert bool(gradient.isfinite().all()) and bool((gradient[1, 2:] == 0).all())
    assert bool((gwf.drift.sinkhorn(leaf.detach(), y, x_lengths=n, **options)[1, 2:] == 0).all())


@pytest.mark.parametrize("backend", [None, "torch"])
def test_far_clusters_under_p_1(backend: str | None) -> None:
    """Sums of a row a thousand epsilon from the largest: gradients are shares, whatever the sums are."""
    x, y, a, b = problem()
    x, y = torch.cat((x, x + 400)), torch.cat((y, y + 401))
    a, b = torch.cat((a, a)) / 2, torch.cat((b, b)) / 2
    leaf = x.clone().requires_grad_()
    options: dict[str, Any] = {"epsilon": 0.3, "x_weights": a, "y_weights": b, "p": 1, "backend": backend, **TIGHT}
    (gradient,) = torch.autograd.grad(gwf.transport_cost(leaf, y, **options), leaf)
    dense = sweeps(cost_matrix("r", leaf, y), a, b, 0.3, 400)
    (want,) = torch.autograd.grad((dense.plan.detach() * cost_matrix("r", leaf, y)).sum(), leaf)
    close(gradient, want, 1e-8)


def test_multiples_need_no_formula() -> None:
    """They are what p asks for, of points that are scaled, whoever sums."""
    from gwf_fast.transport.ground import ground_of

    r, s = sp.Symbol("r"), sp.Symbol("s")
    for cost, p, factor in (
        (s, 2, math.sqrt(2)),
        (s / 2, 2, 1.0),
        (r**2, 2, math.sqrt(2)),
        (r, 1, 1.0),
        (5 * r, 1, 5.0),
    ):
        ground = ground_of(2, cost)
        assert (ground.p, ground.formula) == (p, None) and math.isclose(ground.factor, factor)
        assert ground_of(2, gwf.Radial(cost)) == ground
    assert ground_of(2, sp.sqrt(1 + s)).formula == ground_of(2, sp.sqrt(1 + r**2)).formula is not None


@pytest.mark.parametrize("function", [gwf.sinkhorn, gwf.sinkhorn_divergence, gwf.transport_cost, gwf.drift.sinkhorn])
def test_what_is_no_cost(function) -> None:
    x, y, _, _ = problem()
    r, t = sp.symbols("r t")
    wrong = [
        ({"p": 3}, ValueError, r"p must be 1 or 2, got 3"),
        ({"p": "two"}, TypeError, r"p must be 1 or 2, got str 'two'"),
        ({"p": 1, "cost": "cosine"}, ValueError, r"p must be left alone beside cost, got 1"),
        ({"cost": "manhattan"}, ValueError, r"cost must be None, 'cosine' or a SymPy expression in s and r, got 'manh"),
        ({"cost": lambda x, y: x}, TypeError, r"cost must be a SymPy expression in s and r, got function"),
        ({"cost": r * t}, ValueError, r"cost must depend on s and r only to be radial, got t in r\*t"),
        ({"cost": sp.Integer(2)}, ValueError, r"cost must depend on s or r, got the constant 2"),
        ({"cost": sp.log(r)}, ValueError, r"cost must be finite at r = 0, got log"),
        ({"cost": 1 / r}, ValueError, r"cost must be finite at r = 0, got 1/r"),
        ({"cost": sp.gamma(1 + r)}, ValueError, r"cost must be made of powers, log, Abs, exp, .*, got gamma"),
    ]
    for options, error, message in wrong:
        with pytest.raises(error, match=message) as caught:
            function(x, y, epsilon=1.0, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    x[2] = 0
    with pytest.raises(ValueError, match=r"x must have no point at the origin, which has no direction, for cost='cos"):
        function(x, y, epsilon=1.0, cost="cosine")


def test_what_transport_costs_is_refused_in_words() -> None:
    x, y, a, b = problem()
    wrong = [
        ({"form": "dual"}, ValueError, r"form must be 'entropic' or 'linear', got 'dual'"),
        ({"x_weights": 0 * a}, ValueError, r"x_weights must be finite and not negative, with a positive sum"),
        ({"x_weights": a, "y_weights": 2 * b}, ValueError, r"x_weights and y_weights must have the same sum"),
        ({"x_weights": a.to("meta")}, TypeError, r"x_weights must have values, got a meta tensor"),
        ({"start": a}, ValueError, r"start must have shape \[5\]"),
        ({"y_weights": b.float()}, TypeError, r"y_weights must have the dtype of x"),
    ]
    for form in ("entropic", "linear"):
        for options, error, message in wrong:
            with pytest.raises(error, match=message):
                gwf.transport_cost(x, y, **({"epsilon": 1.0, "form": form} | options))  # type: ignore[operator]
        with pytest.raises(ValueError, match="y must have at least one point to transport"):
            gwf.transport_cost(x, y[:0], epsilon=1.0, form=form)


@pytest.mark.parametrize("form", ["entropic", "linear"])
def test_starts_halves_and_layouts(form: Any) -> None:
    x, y, a, b = problem(2, n=7)
    options: dict[str, Any] = {"epsilon": 0.3, "form": form, "x_weights": a, "y_weights": b}
    want = gwf.transport_cost(x, y, **options, **TIGHT)
    result = gwf.sinkhorn(x, y, epsilon=0.3, x_weights=a, y_weights=b, **TIGHT)
    for start in (result, result.g):  # already there
        got = gwf.transport_cost(x, y, start=start, max_iterations=2, tolerance=1e-10, **options)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(gwf.transport_cost(strided, y.flip(0).flip(0), **options, **TIGHT), want)
    half = gwf.transport_cost(x.half(), y.half(), epsilon=0.3, form=form)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), gwf.transport_cost(x, y, epsilon=0.3, form=form), rtol=5e-3, atol=0)
    four = gwf.transport_cost(x[None], y[None], epsilon=0.3, form=form)
    torch.testing.assert_close(four[0], gwf.transport_cost(x, y, epsilon=0.3, form=form))
    with torch.inference_mode():
        torch.testing.assert_close(gwf.transport_cost(x, y, **options, **TIGHT), want)
