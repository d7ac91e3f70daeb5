"""Small problems in one compiled call: against dense sweeps, closed expressions of the optimum, and the general way."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast import _cpu
from gwf_fast.compat.geomloss import SamplesLoss
from gwf_fast.kernels.cpp import transport as cpp

GENERAL: dict[str, Any] = {"backend": "torch"}
TIGHT: dict[str, Any] = {"max_iterations": 5000, "tolerance": 1e-13}


def sets(*batch: int, n: int = 13, m: int = 9, dim: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + m + dim)
    x, y = (torch.randn(*batch, k, dim, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(*batch, k, generator=generator, dtype=torch.float64) + 0.1 for k in (n, m))
    a[..., 3] = 0
    return x, y + 0.5, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the one call may compute."""

    def refuse(*_: object) -> None:
        raise AssertionError("a pass over the pairs outside the call")

    monkeypatch.setattr(_cpu, "pairwise", refuse)


def dense_sweeps(x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: float, count: int) -> tuple[Tensor, Tensor]:
    """Plain sweeps from g = 0, which end in an update of f."""
    cost = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1) / 2
    g = torch.zeros_like(b)
    for sweep in range(count):
        f = -epsilon * torch.logsumexp(b.log()[..., None, :] + (g[..., None, :] - cost) / epsilon, -1)
        if sweep + 1 < count:
            g = -epsilon * torch.logsumexp(a.log()[..., :, None] + (f[..., :, None] - cost) / epsilon, -2)
    return f, g


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (13, 9), (40, 33), (7, 300)])
@pytest.mark.usefixtures("alone")
def test_few_sweeps_are_the_dense_ones(size: tuple[int, int]) -> None:
    x, y, _, _ = sets(2, n=max(size[0], 4), m=size[1])
    x = x[:, : size[0]]
    a = torch.full(x.shape[:-1], 1 / size[0], dtype=torch.float64)
    b = torch.full(y.shape[:-1], 1 / size[1], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gwf.sinkhorn(x, y, epsilon=0.3, max_iterations=6, tolerance=0.0)
    assert found.n_iterations == 6
    f, g = dense_sweeps(x, y, a, b, 0.3, 6)
    torch.testing.assert_close(found.f, f, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.g, g, rtol=1e-11, atol=1e-12)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "annealed": {"scaling": 0.6},
    "relaxed": {"marginal_strength": 0.7},
    "weighted": {"x_weights": 0, "y_weights": 1},
    "one weighted": {"y_weights": 1},
    "relaxed and weighted": {"marginal_strength": 0.7, "x_weights": 0, "y_weights": 1},
    "ragged": {"x_lengths": torch.tensor([13, 4, 1]), "y_lengths": torch.tensor([2, 9, 5])},
    "ragged and weighted": {
        "x_lengths": torch.tensor([13, 4, 2]), "y_lengths": torch.tensor([2, 9, 5]), "x_weights": 0, "y_weights": 1,
        "marginal_strength": 1.0,
    },
}  # fmt: skip


def options_of(name: str, a: Tensor, b: Tensor) -> dict[str, Any]:
    return {key: (a, b)[value] if key.endswith("_weights") else value for key, value in OPTIONS[name].items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_is_the_general_way_to_rounding(name: str) -> None:
    x, y, a, b = sets(3)
    options: dict[str, Any] = {"epsilon": 0.4, **TIGHT, **options_of(name, a, b)}
    for ends, points in ((options.get("x_lengths"), x), (options.get("y_lengths"), y)):
        for at, length in enumerate(() if ends is None else ends):
            points[at, length:] = math.nan  # nobody looks beyond the lengths
    results = []
    for way in ({}, GENERAL):
        leaves = [t.clone().requires_grad_() for t in (x, y, a, b)]
        weights: dict[str, Any] = {key: leaves[2 + OPTIONS[name][key]] for key in options if key.endswith("_weights")}
        value = gwf.sinkhorn_divergence(leaves[0], leaves[1], **options | weights, **way)
        slopes = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        biased = gwf.sinkhorn_divergence(x, y, **options, **way, debias=False)
        solution = gwf.sinkhorn(x, y, **options, **way)
        plan = solution.f[..., None] + solution.g[..., None, :]
        drift = gwf.drift.sinkhorn(x, y, **options, **way)
        of_weights = [t for t in slopes[2:] if t is not None]
        if "marginal_strength" not in options:  # along weights of one sum: a constant goes from one side to the other
            of_weights = [t - t.mean(-1, keepdim=True) for t in of_weights]
        results.append([value.detach(), *slopes[:2], biased, plan, drift, *of_weights])
    for got, want in zip(*results, strict=True):
        assert float(want.norm()) > 1e-2
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["plain", "relaxed and weighted"])
@pytest.mark.usefixtures("alone")
def test_one_call_does_all(name: str) -> None:
    x, y, a, b = sets(3)
    options = {"epsilon": 0.4, **options_of(name, a, b)}
    leaf = x.clone().requires_grad_()
    value, potentials = gwf.sinkhorn_divergence(leaf, y, **options, return_potentials=True)
    torch.autograd.grad(value.sum(), leaf)
    gwf.drift.sinkhorn(x, y, **options, start=potentials)
    gwf.sinkhorn(x, x, epsilon=0.4)
    loss = SamplesLoss("sinkhorn", p=1, blur=0.3)(leaf, y)
    loss.sum().backward()


def test_second_derivatives_go_the_general_way() -> None:
    x, y, a, b = sets()
    a = a + 0.05

    def hessian(way: dict, same: bool) -> Tensor:
        def value(x: Tensor) -> Tensor:
            sources = x if same else y
            weights: dict[str, Any] = {} if same else {"x_weights": a / a.sum(), "y_weights": b}
            return gwf.sinkhorn_divergence(x, sources, epsilon=0.4, debias=not same, **weights, **TIGHT, **way)

        return torch.autograd.functional.hessian(value, x)

    for same in (False, True):
        want = hessian(GENERAL, same)
        assert float(want.norm()) > 1e-2
        torch.testing.assert_close(hessian({}, same), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", [None, 0.8])
@pytest.mark.parametrize("debias", [True, False])
def test_samples_loss_is_one_call(p: int, reach: float | None, debias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, a, b = sets(2)
    loss = SamplesLoss("sinkhorn", p=p, blur=0.4, reach=reach, scaling=0.7, debias=debias)
    results = []
    for small in (True, False):
        monkeypatch.setattr(cpp, "LARGEST", {torch.float64: 1 << 16 if small else 0})
        leaves = [t.clone().requires_grad_() for t in (a, x, b, y)]
        value = loss(*leaves)
        slopes = torch.autograd.grad(value.sum(), leaves)
        results.append([value.detach(), loss(x, y), *slopes])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_floats_have_the_digits_of_floats(shift: float) -> None:
    """Value and gradient of a debiased divergence, which cancels: formed in double, rounded once."""
    x, y, _, _ = ((t + shift).float() if t.ndim == 2 else t for t in sets())
    leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    value, truth = (gwf.sinkhorn_divergence(t, y.to(t), epsilon=0.5, **TIGHT) for t in (leaf, wide))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), truth, rtol=1e-7, atol=0)
    slope, true_slope = (torch.autograd.grad(v, t)[0].double() for v, t in ((value, leaf), (truth, wide)))
    assert float((slope - true_slope).norm() / true_slope.norm()) < 1e-7


@pytest.mark.parametrize("isa", _cpu.instruction_sets())
def test_every_instruction_set(isa: str) -> None:
    x, y, a, b = sets(2, n=21, m=30)
    options: dict[str, Any] = {"epsilon": 0.05, "x_weights": a, "y_weights": b, "scaling": 0.7, **TIGHT}
    before = _cpu.instruction_set()
    try:
        _cpu.use_instruction_set(isa)
        got = gwf.drift.sinkhorn(x, y, **options)
    finally:
        _cpu.use_instruction_set(before)
    torch.testing.assert_close(got, gwf.drift.sinkhorn(x, y, **options, **GENERAL), rtol=1e-8, atol=1e-9)


def test_threads_change_nothing() -> None:
    x, y, _, _ = sets(12, n=60, m=70)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            value, potentials = gwf.sinkhorn_divergence(leaf, y, epsilon=0.2, return_potentials=True)
            results.append([value.detach(), torch.autograd.grad(value.sum(), leaf)[0], potentials.cross.f])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, results[0], strict=True))


def test_each_problem_stops_by_itself() -> None:
    x, y, _, _ = sets(2)
    x[1], y[1] = 0.01 * x[1], 0.01 * y[1]  # far easier
    together = gwf.sinkhorn(x, y, epsilon=0.1, **TIGHT)
    for at in range(2):
        alone = gwf.sinkhorn(x[at], y[at], epsilon=0.1, **TIGHT)
        assert torch.equal(together.f[at], alone.f)
        assert torch.equal(together.error[at], alone.error)


@pytest.mark.parametrize("itself", [False, True])
def test_a_start_from_afar_is_forgotten(itself: bool) -> None:
    """Sums are counted from the potential before, of which nothing is left in a double: then from the largest."""
    x, y, a, b = sets()
    y, b = (x, a) if itself else (y, b)
    start = 60 * torch.sin(torch.arange(len(y), dtype=torch.float64))
    options: dict[str, Any] = {"epsilon": 0.05, "x_weights": a, "y_weights": b, "max_iterations": 3, "tolerance": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got, want = (gwf.sinkhorn(x, y, **options, start=start, **way) for way in ({}, GENERAL))
    torch.testing.assert_close(got.f[..., None] + got.g, want.f[..., None] + want.g, rtol=1e-9, atol=1e-9)


def test_sweeps_are_over_relaxed_as_ever() -> None:
    x, y, a, b = sets(n=40, m=33)
    options: dict[str, Any] = {
        "epsilon": 0.05,
        "x_weights": a,
        "y_weights": b,
        "max_iterations": 5000,
        "tolerance": 1e-9,
    }
    got, want = (int(gwf.sinkhorn(x, y, **options, **way).n_iterations) for way in ({}, GENERAL))
    assert abs(got - want) <= 1
    assert got > 30


def test_what_asks_for_care_goes_the_general_way() -> None:
    x, y, a, b = sets()
    nan = x.clone()
    nan[2] = math.nan
    with pytest.warns(RuntimeWarning, match="marginal error"):
        assert bool(torch.isnan(gwf.sinkhorn(nan, y, epsilon=0.5).g).all())
    with pytest.raises(ValueError, match="same sum"):
        gwf.sinkhorn(x, y, epsilon=0.5, x_weights=3 * a, y_weights=b)
    with pytest.raises(ValueError, match="x_weights must be finite and not negative"):
        gwf.sinkhorn(x, y, epsilon=0.5, x_weights=-a, y_weights=b)
    with pytest.raises(ValueError, match="x_lengths must be at least 1"):
        gwf.sinkhorn(x[None], y[None], epsilon=0.5, x_lengths=torch.tensor([0]))
    with pytest.raises(TypeError, match="x_weights must have the dtype"):
        gwf.sinkhorn_divergence(x, y, epsilon=0.5, x_weights=a.float())
    with pytest.raises(ValueError, match="at most 10000 steps"):
        gwf.sinkhorn(x, y, epsilon=0.5, scaling=1 - 1e-9)


def test_memory_in_any_order() -> None:
    x, y, _, _ = sets(2, n=12)
    strided, flipped = x.transpose(-1, -2).contiguous().transpose(-1, -2), y.to(torch.complex128).mul(1j).conj().imag
    want = gwf.sinkhorn_divergence(x, -y, epsilon=0.5)
    torch.testing.assert_close(gwf.sinkhorn_divergence(strided, flipped, epsilon=0.5), want, rtol=1e-12, atol=0)


def test_a_result_is_freed_with_its_graph() -> None:
    import gc
    import weakref

    x, y, _, _ = sets()
    leaf = x.clone().requires_grad_()
    gc.disable()
    try:
        value = gwf.sinkhorn_divergence(leaf, y, epsilon=0.5)
        seen = weakref.ref(value)
        del value
        assert seen() is None
    finally:
        gc.enable()
