"""Sliced discrepancies against POT, SciPy, finite differences and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import ot
import pytest
import scipy.stats
import torch

import gwf_fast as gwf
from gwf_fast.compat.pot import sliced_wasserstein_distance
from gwf_fast.kernels.reference import sliced as sliced_reference

F64 = torch.float64


def clouds(n, m, dim, batch=(), dtype=F64, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, dim, generator=g, dtype=F64)
    y = 0.7 * torch.randn(*batch, m, dim, generator=g, dtype=F64) + 0.4
    return x.to(dtype), y.to(dtype)


def unit(p, dim, dtype=F64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(p, dim, generator=g, dtype=F64), dim=-1).to(dtype)


def wasserstein_of_copies(x, y, *, theta):
    """Each point as often as makes the sets equally large: no quantile is rounded (POT's gradient errs by 2e-12)."""
    size = math.lcm(len(x), len(y))
    a, b = ((p @ theta.mT).sort(0).values.repeat_interleave(size // len(p), 0) for p in (x, y))
    return (a - b).square().mean()


SIZES = [(1, 1), (1, 5), (40, 40), (30, 47), (700, 900), (1300, 1300)]


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize(("dim", "p"), [(1, 3), (5, 40), (70, 33)])
def test_wasserstein_and_gradient_against_copies(n, m, dtype, tolerance, dim, p):
    x, y = clouds(n, m, dim)
    theta = unit(p, dim)
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    want = wasserstein_of_copies(*leaves, theta=theta)
    wanted = torch.autograd.grad(want, leaves)
    mine = [t.to(dtype).requires_grad_() for t in (x, y)]
    got = gwf.sliced_wasserstein2(*mine, directions=theta.to(dtype))
    assert abs(float(got.detach()) / float(want.detach()) - 1) < tolerance
    for a, b in zip(torch.autograd.grad(got, mine), wanted, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < tolerance * (1 if dtype == F64 else 100)


@pytest.mark.parametrize(("n", "m"), SIZES[1:5])
@pytest.mark.parametrize("weighted", [False, True])
def test_energy_is_scipys(n, m, weighted):
    x, y = clouds(n, m, 3)
    theta = unit(7, 3)
    u, v = (torch.rand(k, dtype=F64, generator=torch.Generator().manual_seed(k)) if weighted else None for k in (n, m))
    got = gwf.sliced_energy_distance(x, y, directions=theta, x_weights=u, y_weights=v)
    want = np.mean([scipy.stats.energy_distance(x @ t, y @ t, u, v) ** 2 for t in theta])
    constant = math.sqrt(math.pi) * math.gamma(2.0) / math.gamma(1.5)
    assert abs(float(got) / (constant * want) - 1) < 1e-12


def power_of_pairs(x, y, theta, exponent, a=None, b=None):
    """Mean over directions of 2 E|u - v|^e - E|u - u'|^e - E|v - v'|^e, dense, with its constant."""
    a, b = (torch.full((len(p),), 1 / len(p), dtype=F64) if w is None else w / w.sum() for p, w in ((x, a), (y, b)))
    u, v, dim = x @ theta.T, y @ theta.T, x.shape[1]

    def mean(p, q, s, t):
        gap = (p[:, None] - q[None]).abs()
        power = torch.where(gap > 0, gap, 1.0) ** exponent * (gap > 0)
        return torch.einsum("ijk,i,j->", power, s, t) / len(theta)

    constant = math.sqrt(math.pi) * math.gamma((dim + exponent) / 2)
    constant /= math.gamma(dim / 2) * math.gamma((exponent + 1) / 2)
    return constant * (2 * mean(u, v, a, b) - mean(u, u, a, a) - mean(v, v, b, b))


@pytest.mark.parametrize("exponent", [0.1, 0.5, 0.9, 1.1, 1.5, 1.95])
@pytest.mark.parametrize(("n", "m"), [(6, 6), (40, 33), (1, 9), (300, 170)])
def test_powers_of_the_distance_against_all_pairs(exponent, n, m):
    x, y = clouds(n, m, 3)
    theta = unit(5, 3)
    a = torch.rand(n, dtype=F64, generator=torch.Generator().manual_seed(7)) + 0.1
    b = torch.rand(m, dtype=F64, generator=torch.Generator().manual_seed(8)) + 0.1
    results = []
    for function in (
        lambda x, y, a, b: power_of_pairs(x, y, theta, exponent, a, b),
        lambda x, y, a, b: gwf.sliced_energy_distance(
            x, y, exponent=exponent, directions=theta, x_weights=a, y_weights=b
        ),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, y, a, b)]
        value = function(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-10)


def test_powers_of_the_distance_in_float32():
    x, y = clouds(3000, 2000, 4)
    theta = unit(6, 4)
    for exponent in (0.5, 1.5):
        wanted, got = ([], [])
        for dtype, results in ((F64, wanted), (torch.float32, got)):
            leaf = x.clone().to(dtype).requires_grad_()
            value = gwf.sliced_energy_distance(leaf, y.to(dtype), exponent=exponent, directions=theta.to(dtype))
            results.extend((value.detach().double(), torch.autograd.grad(value, leaf)[0].double()))
        dense = power_of_pairs(x, y, theta, exponent)
        assert abs(float(wanted[0] / dense) - 1) < 1e-8
        assert abs(float(got[0] / wanted[0]) - 1) < 1e-4
        # For e < 1 the force between the closest pairs is as large as rounding of the projections makes it.
        errors = (got[1] - wanted[1]).norm(dim=1) / wanted[1].norm(dim=1)
        assert float(errors.quantile(0.9 if exponent < 1 else 1.0)) < (1e-3 if exponent < 1 else 1e-5)


@pytest.mark.parametrize("exponent", [0.7, 1.4])
def test_equal_points_exert_no_force(exponent):
    x = torch.tensor([[0.0], [0.0], [1.0]], dtype=F64, requires_grad=True)
    y = torch.tensor([[0.0], [2.0]], dtype=F64)
    value = gwf.sliced_energy_distance(x, y, exponent=exponent, directions=torch.ones(1, 1, dtype=F64))
    (got,) = torch.autograd.grad(value, x)
    force = lambda d: torch.where(d == 0, 0.0, d.sign() * d.abs().clamp(min=1e-9) ** (exponent - 1))  # noqa: E731
    dense = 2 * exponent * (force(x - y.T).mean(1) - force(x - x.T).mean(1)) / 3
    torch.testing.assert_close(got[:, 0], dense.detach(), rtol=1e-8, atol=1e-10)
    alike = gwf.sliced_energy_distance(y, y.clone(), exponent=exponent, n_projections=3)
    assert abs(float(alike)) < 1e-9


def test_energy_is_unbiased():
    x, y = clouds(60, 50, 4)
    got = gwf.sliced_energy_distance(x, y, n_projections=200_000, generator=torch.Generator().manual_seed(0))
    want = 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
    assert abs(float(got / want) - 1) < 0.01


@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 8)])
@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_against_finite_differences(n, m, weighted):
    x, y = (t.requires_grad_() for t in clouds(n, m, 3, batch=(2,)))
    theta = unit(9, 3)
    w: dict[str, Any] = {"x_weights": torch.rand(2, n, dtype=F64) + 0.1, "y_weights": torch.rand(2, m, dtype=F64) + 0.1}
    w = w if weighted else {}
    assert torch.autograd.gradcheck(lambda a, b: gwf.sliced_wasserstein2(a, b, directions=theta, **w), (x, y))
    assert torch.autograd.gradgradcheck(lambda a, b: gwf.sliced_wasserstein2(a, b, directions=theta, **w), (x, y))
    assert torch.autograd.gradcheck(lambda a, b: gwf.sliced_energy_distance(a, b, directions=theta, **w), (x, y))
    assert torch.autograd.gradgradcheck(lambda a, b: gwf.sliced_energy_distance(a, b, directions=theta, **w), (x, y))


@pytest.mark.parametrize("exponent", [0.6, 1.4])
def test_second_derivatives_of_powers(exponent):
    x, y = (t.requires_grad_() for t in clouds(5, 7, 2))
    theta = unit(4, 2)
    f = lambda x, y: gwf.sliced_energy_distance(x, y, exponent=exponent, directions=theta)  # noqa: E731
    assert torch.autograd.gradgradcheck(f, (x, y), eps=1e-7, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 8)])
def test_derivatives_in_weights(n, m):
    x, y = clouds(n, m, 3, batch=(2,))
    theta = unit(9, 3)
    w = [torch.rand(2, k, dtype=F64, generator=torch.Generator().manual_seed(k)) + 0.1 for k in (n, m + 100)]
    w[1] = w[1][:, :m]
    for f in (gwf.sliced_wasserstein2, gwf.sliced_energy_distance):
        g = lambda a, b, x: f(x, y, directions=theta, x_weights=a, y_weights=b)  # noqa: E731, B023
        inputs = [t.clone().requires_grad_() for t in (*w, x)]
        assert torch.autograd.gradcheck(g, inputs)
        (first,) = torch.autograd.grad(g(*inputs).sum(), inputs[0], create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivatives are of points"):
            torch.autograd.grad(first.sum(), inputs[2])


def test_derivative_in_weights_is_pots():
    x, y = clouds(30, 40, 3)
    theta = unit(6, 3)
    a, b = (torch.rand(k, dtype=F64, generator=torch.Generator().manual_seed(k)) + 0.1 for k in (30, 40))
    gradients = []
    for f in (ot.sliced.sliced_wasserstein_distance, sliced_wasserstein_distance):
        u = (a / a.sum()).requires_grad_()
        (g,) = torch.autograd.grad(f(x, y, u, b / b.sum(), projections=theta.T), u)
        gradients.append(g - g.mean())  # up to a constant: the sum is fixed
    torch.testing.assert_close(gradients[1] - gradients[1].mean(), gradients[0], rtol=1e-8, atol=1e-10)


LENGTHS: dict[str, Any] = {"x_lengths": torch.tensor([7, 1, 4]), "y_lengths": torch.tensor([5, 9, 2])}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exponent", [None, 1.0, 1.3])
def test_ragged_sets_are_their_members(exponent, weighted):
    x, y = clouds(7, 9, 3, batch=(3,))
    w = {"x_weights": torch.rand(3, 7, dtype=F64), "y_weights": torch.rand(3, 9, dtype=F64)} if weighted else {}
    theta = unit(5, 3)

    def f(x, y, **options):
        if exponent is None:
            return gwf.sliced_wasserstein2(x, y, directions=theta, **options)
        return gwf.sliced_energy_distance(x, y, exponent=exponent, directions=theta, **options)

    def with_gradients(x, y, **options):
        leaves = [t.clone().requires_grad_() for t in (x, y)]
        value = f(*leaves, **options)
        return value.detach(), *torch.autograd.grad(value.sum(), leaves)

    n, m = LENGTHS["x_lengths"], LENGTHS["y_lengths"]
    for b in range(3):
        x[b, n[b] :], y[b, m[b] :] = float("nan"), float("nan")
    value, of_x, of_y = with_gradients(x, y, **w, **LENGTHS)
    for b in range(3):
        some = {k: v[b, : n[b] if k[0] == "x" else m[b]] for k, v in w.items()}
        want = with_gradients(x[b, : n[b]], y[b, : m[b]], **some)
        torch.testing.assert_close((value[b], of_x[b, : n[b]], of_y[b, : m[b]]), want)
        assert (of_x[b, n[b] :] == 0).all()
        assert (of_y[b, m[b] :] == 0).all()


def test_ragged_drifts():
    x, y = clouds(7, 9, 3, batch=(3,))
    n, m = LENGTHS["x_lengths"], LENGTHS["y_lengths"]
    theta = unit(8, 3)
    got = gwf.drift.sliced_wasserstein(x, y, directions=theta, **LENGTHS)
    torch.manual_seed(0)
    energy = gwf.drift.energy(x, y, sliced=50_000, exponent=1.5, **LENGTHS)
    for b in range(3):
        u, v = x[b, : n[b]], y[b, : m[b]]
        torch.testing.assert_close(got[b, : n[b]], gwf.drift.sliced_wasserstein(u, v, directions=theta))
        want = gwf.drift.energy(u, v, exponent=1.5)
        assert float((energy[b, : n[b]] - want).norm() / want.norm()) < 0.03
        assert (got[b, n[b] :] == 0).all()


def test_drift_with_weights_is_per_unit_of_weight():
    x, y = clouds(6, 6, 2)
    theta = unit(7, 2)
    twice = torch.cat([x, x[:1]])
    weights = torch.tensor([2.0, 1, 1, 1, 1, 1], dtype=F64)
    got = gwf.drift.sliced_wasserstein(x, y, directions=theta, x_weights=weights)
    want = gwf.drift.sliced_wasserstein(twice, y, directions=theta)
    want[0] = (want[0] + want[6]) / 2
    torch.testing.assert_close(got, want[:6])


@pytest.mark.parametrize("kind", ["wasserstein", "energy"])
@pytest.mark.parametrize("power", [2.0, 1.5])
def test_torch_path_agrees(kind, power):
    x, y = clouds(30, 45, 4, batch=(2,))
    theta = unit(6, 4)
    from gwf_fast.kernels.cpp import sliced as sliced_cpp

    got, *_ = sliced_cpp.sliced(kind, x, y, theta, power=power)
    torch.testing.assert_close(got, sliced_reference.sliced(kind, x, y, theta, power, None, None), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_torch_path_of_powers_agrees(weighted):
    from gwf_fast.kernels.cpp import sliced as sliced_cpp
    from gwf_fast.measures.directional import _portable
    from gwf_fast.pairs.fast.exponentials import power_of_distance

    x, y = clouds(30, 45, 4, batch=(2,))
    theta = unit(6, 4)
    w: tuple[Any, ...] = (None, None)
    if weighted:
        w = tuple(v / v.sum(-1, keepdim=True) for v in (torch.rand(2, k, dtype=F64) for k in (30, 45)))
    nodes = power_of_distance(1.3)
    got = sliced_cpp.sliced("power", x, y, theta, power=1.3, weights=w, exponentials=nodes).values
    torch.testing.assert_close(got, _portable("power", x, y, theta, 1.3, *w), rtol=1e-8, atol=0)


def test_ties_exert_no_force():
    x = torch.tensor([[0.0], [0.0], [1.0]], dtype=F64, requires_grad=True)
    y = torch.tensor([[0.0], [2.0]], dtype=F64)
    (got,) = torch.autograd.grad(gwf.sliced_energy_distance(x, y, directions=torch.ones(1, 1, dtype=F64)), x)
    dense = 2 * (x - y.T).sign().mean(1) / 3 - 2 * (x - x.T).sign().mean(1) / 3
    torch.testing.assert_close(got[:, 0], dense.detach(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_threads_do_not_change_a_bit(dtype, batch):
    x, y = clouds(3000, 2500, 5, batch, dtype)
    theta = unit(50, 5, dtype)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            value = gwf.sliced_wasserstein2(leaf, y, directions=theta)
            results.append((value.detach(), *torch.autograd.grad(value.sum(), leaf)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_drifts():
    x, y = clouds(50, 50, 6)
    shifted = x + torch.arange(6.0, dtype=F64)
    v = gwf.drift.sliced_wasserstein(x, shifted, directions=torch.eye(6, dtype=F64))
    torch.testing.assert_close(v, (shifted - x) / 6)  # a shift of delta: delta / D
    torch.manual_seed(0)
    got, want = gwf.drift.energy(x, y, sliced=100_000), gwf.drift.energy(x, y)
    assert float((got - want).norm() / want.norm()) < 0.02


@pytest.mark.parametrize("sampling", ["normal", "orthogonal", "quasi"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_samplings_estimate_the_same(sampling, dim):
    x, y = clouds(40, 40, dim)
    g = torch.Generator().manual_seed(3)
    got = gwf.sliced_wasserstein2(x, y, n_projections=4096, generator=g, sampling=sampling)
    want = ot.sliced.sliced_wasserstein_distance(x, y, n_projections=40_000, seed=0) ** 2
    assert abs(float(got / want) - 1) < 0.05


def test_quasi_directions_err_less():
    x, y = clouds(200, 200, 2)
    exact = gwf.sliced_wasserstein2(x, y, n_projections=20_000, sampling="quasi")
    error = {}
    for sampling in ("normal", "quasi"):
        draws = [gwf.sliced_wasserstein2(x, y, n_projections=32, sampling=sampling) for _ in range(20)]
        error[sampling] = float((torch.stack(draws) - exact).square().mean().sqrt())
    assert error["quasi"] < error["normal"] / 5


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_compat_is_pot(p, weighted):
    x, y = clouds(33, 50, 4)
    a, b = (torch.rand(33, dtype=F64), torch.rand(50, dtype=F64)) if weighted else (None, None)
    a, b = (w if w is None else w / w.sum() for w in (a, b))
    leaves = [t.requires_grad_() for t in (x, y)]
    options: dict[str, Any] = {"a": a, "b": b, "n_projections": 20, "p": p, "log": True}
    want, log = ot.sliced.sliced_wasserstein_distance(*leaves, **options, seed=5)
    got, mine = sliced_wasserstein_distance(*leaves, **options | {"projections": log["projections"]})
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(mine["projected_emds"], log["projected_emds"].detach(), rtol=1e-11, atol=1e-14)
    for g, w in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-12)


def test_compat_serves_arrays_with_pots_own_seed():
    x, y = (t.numpy() for t in clouds(20, 30, 3))
    want = ot.sliced.sliced_wasserstein_distance(x, y, seed=np.random.RandomState(4))
    assert abs(sliced_wasserstein_distance(x, y, seed=np.random.RandomState(4)) / want - 1) < 1e-12


def test_layouts_and_values_that_are_not_numbers():
    x, y = clouds(20, 20, 4)
    theta = unit(5, 4)
    want = gwf.sliced_wasserstein2(x, y, directions=theta)
    strided = torch.stack([x, x], 0).mT.contiguous().mT[1]
    assert torch.equal(gwf.sliced_wasserstein2(strided, y, directions=theta), want)
    x[3, 1] = float("nan")
    assert gwf.sliced_wasserstein2(x, y, directions=theta).isnan()
    assert gwf.sliced_energy_distance(x, y, directions=theta).isnan()
    assert gwf.drift.energy(x, y, sliced=3).isnan().all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"n_projections": 0}, ValueError, "n_projections must be a positive integer, got 0"),
        ({"n_projections": 2.5}, TypeError, "n_projections must be a positive integer"),
        ({"n_projections": None}, TypeError, "n_projections must be given"),
        ({"sampling": "sobol"}, ValueError, "sampling must be one of"),
        ({"directions": torch.ones(3, 4, dtype=F64)}, ValueError, r"directions must have shape \[P, D\]"),
        ({"directions": torch.ones(3, 2)}, TypeError, "directions must be a tensor of x's dtype"),
        ({"x_weights": -torch.ones(5, dtype=F64)}, ValueError, "x_weights must be finite and not negative"),
        ({"y_weights": torch.zeros(5, dtype=F64)}, ValueError, "y_weights must be finite"),
        ({"x_weights": torch.ones(4, dtype=F64)}, ValueError, "x_weights must have shape"),
    ],
)
def test_bad_input(change, error, words):
    x, y = clouds(5, 5, 2)
    with pytest.raises(error, match=words):
        gwf.sliced_wasserstein2(x, y, **{"n_projections": 3, **change})


def test_no_points():
    x, y = clouds(0, 5, 2)
    with pytest.raises(ValueError, match="x must have at least one sample"):
        gwf.sliced_energy_distance(x, y, n_projections=3)
    with pytest.raises(ValueError, match="exclude_self must be False with sliced"):
        gwf.drift.energy(y, y, sliced=3, exclude_self=True)
    for exponent in (0.0, 2.0, True):
        with pytest.raises(
            TypeError if exponent is True else ValueError, match="exponent must be a number between 0 and 2"
        ):
            gwf.sliced_energy_distance(y, y, n_projections=3, exponent=exponent)
    with pytest.raises(ValueError, match=r"x_lengths must lie in 0\.\.5"):
        gwf.sliced_wasserstein2(y[None], y[None], n_projections=3, x_lengths=torch.tensor([6]))
    with pytest.raises(ValueError, match="y_lengths must be at least 1"):
        gwf.sliced_wasserstein2(y[None], y[None], n_projections=3, y_lengths=torch.tensor([0]))
