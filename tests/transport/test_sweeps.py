"""Plain sweeps are those of others, to the last digits: of the textbook, of POT."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast import _cpu
from tests.transport.dense import COSTS, FORMULAS, cost_matrix, problem, sweeps

FIXED: dict[str, Any] = {"sweeps": "plain", "tolerance": 0.0}
WAYS: dict[str, Any] = {"one call": {}, "general": {"backend": "torch"}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 2, 33])
@pytest.mark.parametrize("cost", [c for c in COSTS if c not in FORMULAS])
def test_potentials_are_the_textbook_s(cost: str, count: int, way: str) -> None:
    """Beyond 20 sweeps too, where others are over-relaxed."""
    x, y, a, b = problem(2, n=9, m=7, dim=3)
    options = {"epsilon": 0.3, "x_weights": a, "y_weights": b, **FIXED, **COSTS[cost], **WAYS[way]}
    got = gwf.sinkhorn(x, y, max_iterations=count, **options)
    want = sweeps(cost_matrix(cost, x, y), a, b, 0.3, count)
    assert got.n_iterations == count
    torch.testing.assert_close(got.f, want.f, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(got.g, want.g, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(want.plan.sum(-2), b, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.error, (want.plan.sum(-1) - a).abs().sum(-1), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("way", WAYS)
def test_started_soft_and_ragged(way: str) -> None:
    x, y, a, b = problem(2, n=9, m=7)
    n, m = torch.tensor([9, 4]), torch.tensor([3, 7])
    g = torch.linspace(-1, 1, 14, dtype=torch.float64).view(2, 7)
    options: dict[str, Any] = {
        "epsilon": 0.3,
        "max_iterations": 5,
        "marginal_strength": 0.8,
        "start": g,
        **FIXED,
        **WAYS[way],
    }
    weights: dict[str, Any] = {"x_weights": a, "y_weights": b}
    got = gwf.sinkhorn(x, y, x_lengths=n, y_lengths=m, **weights, **options)
    for i in range(2):
        parts = x[i, : n[i]], y[i, : m[i]], a[i, : n[i]], b[i, : m[i]]
        want = sweeps(cost_matrix("r^2/2", *parts[:2]), *parts[2:], 0.3, 5, g[i, : m[i]], 0.8)
        torch.testing.assert_close(got.f[i, : n[i]], want.f, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(got.g[i, : m[i]], want.g, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("way", WAYS)
def test_a_tolerance_ends_them_and_is_warned_of(way: str) -> None:
    x, y, a, b = problem(n=9, m=7)
    options: dict[str, Any] = {"epsilon": 0.3, "x_weights": a, "y_weights": b, "sweeps": "plain", **WAYS[way]}
    got = gwf.sinkhorn(x, y, tolerance=1e-6, **options)
    assert got.error <= 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert gwf.sinkhorn(x, y, tolerance=1e-6, max_iterations=got.n_iterations - 1, **options).error > 1e-6  # type: ignore[arg-type]
    with pytest.warns(RuntimeWarning, match="Sinkhorn stopped before"):
        gwf.sinkhorn(x, y, tolerance=1e-6, max_iterations=2, **options)


@pytest.mark.parametrize("way", WAYS)
def test_a_sample_with_itself_is_any_other(way: str) -> None:
    x, _, a, _ = problem(n=9)
    got = gwf.sinkhorn(x, x, epsilon=0.3, x_weights=a, y_weights=a, max_iterations=4, **FIXED, **WAYS[way])
    want = sweeps(cost_matrix("r^2/2", x, x), a, a, 0.3, 4)
    torch.testing.assert_close(got.f, want.f, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(got.g, want.g, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("isa", _cpu.instruction_sets())
def test_every_instruction_set(isa: str) -> None:
    x, y, a, b = problem(2, n=21, m=30, dim=3)
    options: dict[str, Any] = {"epsilon": 0.1, "x_weights": a, "y_weights": b, "max_iterations": 25, "p": 1, **FIXED}
    before = _cpu.instruction_set()
    try:
        _cpu.use_instruction_set(isa)
        got = gwf.sinkhorn(x, y, **options)
    finally:
        _cpu.use_instruction_set(before)
    torch.testing.assert_close(got.g, sweeps(cost_matrix("r", x, y), a, b, 0.1, 25).g, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("cost", ["r^2/2", "r", "cosine"])
def test_drift_and_divergence_after_a_count(cost: str) -> None:
    """The plan of x with itself is made in the same way; velocities are means over the rows."""
    x, y, a, b = problem(n=8, m=6)
    options = {"epsilon": 0.4, "x_weights": a, "y_weights": b, "max_iterations": 3, **FIXED, **COSTS[cost]}
    leaf = x.clone().requires_grad_()
    cross, own, other = (
        sweeps(cost_matrix(cost, *points), *weights, 0.4, 3)
        for points, weights in (((leaf, y), (a, b)), ((leaf, x), (a, a)), ((y, y), (b, b)))
    )
    moves = []
    for points, part in ((y, cross), (x, own)):
        share = (part.plan / part.plan.sum(-1, keepdim=True)).detach()
        (slope,) = torch.autograd.grad((share * cost_matrix(cost, leaf, points)).sum(), leaf)
        moves.append(-slope)
    velocity, potentials = gwf.drift.sinkhorn(x, y, return_potentials=True, **options)
    torch.testing.assert_close(velocity, moves[0] - moves[1], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(potentials.x_own.g, own.g.detach(), rtol=1e-12, atol=1e-13)
    value = cross.entropic - (own.entropic + other.entropic) / 2
    torch.testing.assert_close(gwf.sinkhorn_divergence(x, y, **options), value.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("count", [1, 7])
def test_the_plan_is_pot_s(count: int) -> None:
    """POT updates the columns' potential first, so the samples are exchanged, and starts where a exp(f/eps) = 1."""
    ot = pytest.importorskip("ot")
    x, y, a, b = problem(n=9, m=7)
    cost = cost_matrix("r^2", x, y)
    plan = ot.bregman.sinkhorn_log(a, b, cost, 0.6, numItermax=count, stopThr=0, warn=False)
    got = gwf.sinkhorn(
        y, x, epsilon=0.6, x_weights=b, y_weights=a, start=-0.6 * a.log(), max_iterations=count, **COSTS["r^2"], **FIXED
    ).apply(torch.eye(9, dtype=torch.float64))
    torch.testing.assert_close(got.T, plan, rtol=1e-12, atol=1e-15)


def test_small_and_large_take_the_same_sweeps() -> None:
    """Beyond what fits in a cache, and in float32."""
    x, y, a, b = problem(n=260, m=300, dtype=torch.float32)
    got = gwf.sinkhorn(x, y, epsilon=0.5, x_weights=a, y_weights=b, max_iterations=12, **FIXED)
    x, y, a, b = (t.double() for t in (x, y, a, b))
    want = sweeps(cost_matrix("r^2/2", x, y), a, b, 0.5, 12)
    torch.testing.assert_close(got.g.double(), want.g, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [gwf.sinkhorn, gwf.sinkhorn_divergence, gwf.transport_cost, gwf.drift.sinkhorn])
def test_what_sweeps_there_are(function) -> None:
    x, y, _, _ = problem()
    with pytest.raises(ValueError, match=r"sweeps must be 'relaxed' or 'plain', got 'jacobi'"):
        function(x, y, epsilon=1.0, sweeps="jacobi")
