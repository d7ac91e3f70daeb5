"""method="nufft" and "auto": the tolerance is kept, derivatives are right, and the choice of a method is sensible."""

from __future__ import annotations

import math

import pytest
import sympy
import torch

import gwf_fast as gwf
from gwf_fast.kernels.cpp import pairs as cpp
from gwf_fast.pairs.fast import FastOptions, choose, cost, moments, series, sums, transform
from gwf_fast.pairs.fast.modulus import periodic_square, smooth_square
from gwf_fast.pairs.fast.near import near_sum
from gwf_fast.pairs.fast.transform import multi_indices
from tests.cases import KERNELS, cloud, error, points

REDUCTIONS = {"sum": gwf.kernel_sum, "gradient": gwf.kernel_gradient}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("name", KERNELS)
def test_the_tolerance_is_kept(name, dim, reduction, evaluations):
    kernel, fn = KERNELS[name].kernel, REDUCTIONS[reduction]
    x, y = cloud(3000, dim, 0), cloud(2500, dim, 1)
    y[:3] = x[:3]
    demands = [
        (1e-5, torch.float32, 1 + cloud(2500, 1, 2)[:, 0] / 3),
        (1e-3, torch.float64, None),
        (1e-7, torch.float64, cloud(2500, 1, 2)[:, 0]),
    ]
    if dim != 2:  # planning takes most of the time; all demands meet both reductions once
        demands.pop(1 if reduction == "gradient" else 2)
    for tolerance, dtype, weights in demands:
        arguments = [x.to(dtype), y.to(dtype), None if weights is None else weights.to(dtype)]
        got = fn(*arguments, kernel=kernel, method=gwf.NUFFT(tolerance))
        assert got.dtype is dtype
        want = fn(*(None if a is None else a.double() for a in arguments), kernel=kernel)
        assert error(got, want) < tolerance
    if dim > 1 or name not in ("riesz", "power_4_1"):  # on a line a matter of moments and of the order of the points
        assert len(evaluations) >= 1  # at least the loosest tolerance was not a direct sum


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_far_clouds_of_single_precision(shift):
    x = (cloud(4000, 2, 0) * 0.1 + shift).float()
    got = gwf.kernel_gradient(x, x, kernel=gwf.Gaussian(0.05), method=gwf.NUFFT(1e-5))
    assert error(got, gwf.kernel_gradient(x.double(), x.double(), kernel=gwf.Gaussian(0.05))) < 1e-5


def test_transforms_are_in_single_precision_where_that_is_enough(monkeypatch):
    """For float32 points and a loose tolerance only: with a tighter one a sum is done twice."""
    precisions = []
    run = transform._run_on_cpu

    def spy(kind, shape, angles, values, *rest):
        precisions.append(values.dtype)
        return run(kind, shape, angles, values, *rest)

    monkeypatch.setattr(transform, "_run_on_cpu", spy)
    for dtype, tolerance, expected in (
        (torch.float32, 1e-3, torch.complex64),
        (torch.float32, 1e-5, torch.complex128),
        (torch.float64, 1e-3, torch.complex128),
    ):
        precisions.clear()
        x = cloud(3000, 2, 0, dtype)
        gwf.kernel_sum(x, x, kernel=gwf.Gaussian(0.5), method=gwf.NUFFT(tolerance))
        assert precisions == [expected] * 2


@pytest.mark.parametrize("bandwidth", [1e-4, 0.02, 3.0, 300.0])
def test_bandwidths_from_narrow_to_wide(bandwidth):
    # Pairs within a narrow bandwidth exist because sources are targets that have moved a little.
    x = cloud(4000, 2, 0)
    y = x + 5e-5 * cloud(4000, 2, 1)
    for kernel in (gwf.Gaussian(bandwidth), gwf.Laplace(bandwidth), gwf.IMQ(bandwidth)):
        got = gwf.kernel_sum(x, y, kernel=kernel, method=gwf.NUFFT(1e-6))
        assert error(got, gwf.kernel_sum(x, y, kernel=kernel)) < 1e-6


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("kernel", [gwf.Gaussian, gwf.IMQ, gwf.Matern52, gwf.Laplace])
def test_tolerances_over_bandwidths(kernel, dim):
    # Weights of both signs, whose sums are small: the error is relative to these.
    x, y, w = cloud(1500, dim, 0), cloud(1200, dim, 1), cloud(1200, 1, 2)[:, 0]
    for k, bandwidth in enumerate((0.15, 1.0, 6.0)):
        exact = gwf.kernel_gradient(x, y, w, kernel=kernel(bandwidth))
        tolerances = (1e-8, 1e-2, 1e-4)
        for tolerance in tolerances if dim == 2 else tolerances[k : k + 2]:
            options = {"kernel": kernel(bandwidth), "method": gwf.NUFFT(tolerance)}
            assert error(gwf.kernel_gradient(x, y, w, **options), exact) < tolerance


@pytest.mark.parametrize("kernel", [gwf.Gaussian(0.3), gwf.IMQ(0.5), gwf.Laplace(0.5), gwf.PowerLaw(2, 0)], ids=repr)
@pytest.mark.parametrize("dim", [2, 3])
def test_the_work_follows_from_the_tolerance(kernel, dim):
    """Modes, and the cost that the model expects: what a loose tolerance saves, without the noise of a clock."""
    spec, extents = moments.split(kernel.spec)[1], (8.0,) * dim
    plans = [series.plan(spec, extents, t, 1, 10**6, 10**6, 1, 2) for t in (1e-2, 1e-4, 1e-6)]
    seconds = [planned[1] for planned in plans]
    # In two dimensions a smooth kernel's few modes are nothing beside the points, whose stencils alone grow.
    assert 1.1 * seconds[0] < seconds[1] and 1.1 * seconds[1] < seconds[2]


@pytest.mark.parametrize("kernel", [gwf.Gaussian(0.5), gwf.IMQ(0.7)], ids=repr)
@pytest.mark.parametrize("dim", [1, 2])
def test_the_first_series_does(kernel, dim, evaluations):
    """A wrong one would be found out and replaced, by a direct sum in the end: right, and slow."""
    x, y = cloud(3000, dim, 0), cloud(2500, dim, 1)
    for tolerance in (1e-3, 1e-6):
        evaluations.clear()
        gwf.kernel_sum(x, y, kernel=kernel, method=gwf.NUFFT(tolerance))
        assert len(evaluations) == 1 and evaluations[0].modes


def test_a_narrow_kernel_is_cut_off(evaluations):
    x = cloud(20000, 2, 0)
    got = gwf.kernel_sum(x, x, kernel=gwf.Gaussian(1e-3), method=gwf.NUFFT(1e-6))
    assert [planned.modes for planned in evaluations] == [()]
    assert error(got, gwf.kernel_sum(x, x, kernel=gwf.Gaussian(1e-3))) < 1e-6


@pytest.mark.parametrize("dim", [1, 2, 3, 7])
def test_even_powers_are_exact_in_any_dimension(dim):
    x, y, w = cloud(300, dim, 0) + 3, cloud(200, dim, 1) + 3, cloud(200, 2, 2)
    for kernel in (gwf.PowerLaw(4, 2), gwf.PowerLaw(6, 2), 0.3 * gwf.PowerLaw(2, 4)):
        assert (
            error(gwf.kernel_sum(x, y, w, kernel=kernel, method="nufft"), gwf.kernel_sum(x, y, w, kernel=kernel))
            < 1e-12
        )
        got = gwf.kernel_gradient(x, y, w[:, 0], kernel=kernel, method="nufft")
        assert error(got, gwf.kernel_gradient(x, y, w[:, 0], kernel=kernel)) < 1e-12
    assert moments.split(gwf.PowerLaw(4, 2).spec)[1] == ()


def test_degenerate_sets():
    point = torch.ones(50, 2, dtype=torch.float64)
    line = torch.stack([torch.linspace(0, 1, 3000, dtype=torch.float64), torch.zeros(3000, dtype=torch.float64)], 1)
    for x in (point, line, line[:1]):
        for kernel in (gwf.Gaussian(0.1), gwf.Riesz(), gwf.PowerLaw(2, 0)):
            got = gwf.kernel_sum(x, x, kernel=kernel, method="nufft")
            want = gwf.kernel_sum(x, x, kernel=kernel)
            assert (got - want).norm() <= 1e-6 * want.norm()
    empty = torch.zeros(0, 2)
    assert gwf.kernel_sum(empty, line.float(), kernel=gwf.Gaussian(1.0), method="nufft").shape == (0,)
    assert gwf.kernel_gradient(line.float(), empty, kernel=gwf.Gaussian(1.0), method="nufft").abs().max() == 0


@pytest.mark.parametrize("kernel", [gwf.Gaussian(0.5), gwf.Laplace(0.8), gwf.PowerLaw(2, 0)], ids=repr)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_channels_batches_lengths_and_the_diagonal(kernel, reduction):
    fn = REDUCTIONS[reduction]
    x = cloud(2 * 3000, 2, 0).view(2, 3000, 2)
    w = cloud(2 * 3000, 3, 1).view(2, 3000, 3) if reduction == "sum" else cloud(6000, 1, 1).view(2, 3000)
    x_lengths, y_lengths = torch.tensor([3000, 2000]), torch.tensor([2500, 0])
    for options in ({"exclude_self": True}, {"x_lengths": x_lengths, "y_lengths": y_lengths}):
        got = fn(x, x, w, kernel=kernel, method=gwf.NUFFT(1e-5), **options)
        assert error(got, fn(x, x, w, kernel=kernel, **options)) < 1e-5


@pytest.mark.parametrize("method", [gwf.NUFFT(1e-6), gwf.Auto(1e-6)])
def test_interactions(method):
    x = cloud(3000, 2, 0)
    for kernel in (-gwf.Gaussian(0.7) / math.pi, gwf.PowerLaw(2, 0)):
        options = {"kernel": kernel, "method": method}
        assert error(gwf.interaction_energy(x, **options), gwf.interaction_energy(x, kernel=kernel)) < 1e-6
        want = gwf.interaction_velocity(x, kernel=kernel)
        assert error(gwf.interaction_velocity(x, **options), want) < 1e-6
        moved = x.clone()
        gwf.forward_step(moved, 0.5, out=moved, **options)
        assert error(moved, x + 0.5 * want) < 1e-6


# ---------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("degree", [2, 5, 9])
def test_smooth_distance(degree):
    r = torch.linspace(0, 2, 2001, dtype=torch.float64)
    rho = smooth_square(r**2, 1.3, degree).sqrt()
    assert torch.equal(rho[r >= 1.3] ** 2, rho[r >= 1.3].square()) and (rho - r)[r >= 1.3].abs().max() < 1e-15
    assert 0 < rho[0] < 1.3 and (rho.diff() >= 0).all()
    assert (rho.diff().diff().diff().abs().max() / 1e-3**3) < 1e3  # no jump at the radius, nor a cusp at 0
    g = periodic_square(r, 4.0, 0.6, degree).sqrt()
    assert (g - r)[r <= 1.4].abs().max() < 1e-13 and abs(float(g[-1] - g[-2])) < 1e-5


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("name", ["laplace", "matern32", "matern52", "riesz", "riesz_1.3", "power_2_0", "power_3_-1"])
def test_near_field_against_dense_sums(name, dim, order):
    kernel, radius, degree = KERNELS[name].kernel, 0.4, 5
    x, y = points(200, 300, dim, dtype=torch.float64)
    w = cloud(300, 2, 0)
    got = near_sum(x, y, w, kernel.spec, radius, degree, order)
    d = (x[:, None] - y[None]).requires_grad_()  # [N, M, D]
    q = (d**2).sum(-1)
    near = series.far_field(q, kernel.spec, 0.0, 0) - series.far_field(q, kernel.spec, radius, degree)
    pieces = [near]
    for _ in range(order):
        gradients = [torch.autograd.grad(p.sum(), d, create_graph=True)[0] for p in pieces]
        pieces = [g[..., a] for g in gradients for a in range(dim)]
    wanted = [int(sum(axis * dim**k for k, axis in enumerate(reversed(i)))) for i in multi_indices(dim, order)]
    apart = q.detach() > 0  # autograd does not know the convention for coincident points
    want = torch.stack([torch.where(apart, pieces[k], 0.0).detach() @ w for k in wanted], -1)
    if order == 0:  # k(0) = 0 where infinite; the far field is subtracted all the same
        want = want + torch.where(apart, 0.0, near.detach())[..., None].mul(w).sum(1)[..., None]
    elif order == 2:
        rows = torch.tensor([i for i in range(200) if bool(apart[i].all())])
        got, want = got[rows], want[rows]
    assert error(got, want) < 1e-9


# ---------------------------------------------------------------------------------------------- the choice


def test_auto_sums_few_pairs_directly_and_many_by_a_series():
    options = FastOptions("auto", 1e-5)

    def chosen(n, dim, kernel, order=1):
        x = cloud(n, dim, 0, torch.float32)
        return choose(options, x, x, kernel.terms, kernel.spec, order, 1)

    assert chosen(200, 2, gwf.Gaussian(0.5)) == "exact"
    assert chosen(100_000, 2, gwf.Gaussian(0.5)) == "nufft"
    assert chosen(100_000, 5, gwf.Gaussian(0.5)) == "exact"
    assert chosen(100_000, 5, gwf.PowerLaw(4, 2)) == "nufft"
    assert chosen(1_000_000, 2, gwf.PowerLaw(2, 0)) == "nufft"
    assert chosen(10_000, 3, gwf.PowerLaw(2, 0)) == "exact"  # its near field is most of the pairs


def neighbours(rows, start, grid, reach):
    """Pairs that a near field visits: for each target all sources of the cells within reach of its own."""
    count = start.diff().view(1, 1, *grid).double()
    for axis, size in enumerate(grid):  # a box filter, one axis after the other
        sums = torch.cat([torch.zeros_like(count.narrow(axis + 2, 0, 1)), count.cumsum(axis + 2)], axis + 2)
        cell = torch.arange(size)
        count = sums.index_select(axis + 2, (cell + reach + 1).clamp(max=size))
        count = count - sums.index_select(axis + 2, (cell - reach).clamp(min=0))
    return float(count.flatten()[rows].sum())


@pytest.mark.parametrize("kernel", [gwf.Gaussian(0.3), gwf.IMQ(0.3), gwf.Laplace(0.3), gwf.Riesz(1.3)], ids=repr)
def test_the_cost_model_counts_what_is_done(kernel, monkeypatch):
    """Grids, points, samples and pairs of a sum, in the model's prices: counted, so that no clock has a say.

    The prices themselves are a machine's: ``python -m bench.cost_model`` holds them to a clock.
    """
    n, tolerance = 30_000, 1e-5
    x = cloud(n, 2, 0, torch.float32)
    extents = sums.box(x, x)[1]
    counted = {"transforms": 0.0, "points": 0.0, "samples": 0.0, "pairs": 0.0}
    run, near, coefficients = transform._run_on_cpu, cpp.near_field, series.Series.coefficients

    def count_transforms(kind, shape, angles, values, options, threads):
        grid = math.prod(2 * m for m in shape)
        counted["transforms"] += options["n_trans"] * grid * math.log2(grid)
        counted["points"] += options["n_trans"] * len(angles[0])
        return run(kind, shape, angles, values, options, threads)

    def count_pairs(x, rows, y, w, start, grid, reach, *rest):
        counted["pairs"] += neighbours(rows, start, grid, reach)
        return near(x, rows, y, w, start, grid, reach, *rest)

    def count_samples(planned, spec):
        counted["samples"] += math.prod(m + 2 for m in planned.modes)
        return coefficients(planned, spec)

    monkeypatch.setattr(transform, "_run_on_cpu", count_transforms)
    monkeypatch.setattr(cpp, "near_field", count_pairs)
    monkeypatch.setattr(series.Series, "coefficients", count_samples)
    gwf.kernel_gradient(x, x.clone(), kernel=kernel, method=gwf.NUFFT(tolerance))

    u = x.double() - sums.box(x, x)[0]
    rough = series.split(kernel.spec)[1]
    crowd = sums.crowding(u, u, torch.zeros((), dtype=torch.float64), extents) if rough else 1.0
    planned, expected = series.plan(kernel.spec, extents, tolerance, 1, n, n, 1, 1, crowd)
    width = math.log10(1 / tolerance) + 2
    work = counted["transforms"] * cost.FFT + counted["points"] * (cost.POINT + cost.SPREAD * width)
    work += counted["samples"] * cost.SAMPLE + cost.FIXED
    check = cost.CHECKED_ROWS * float(n) * cost.PAIR * 1.5 * 2
    without_pairs = cost.series_seconds(planned.modes, 0.0, extents, 1, n, n, 1, tolerance, 1)
    assert without_pairs == pytest.approx(work + check)
    assert (counted["pairs"] > 0) == (planned.radius > 0)
    assert 0.75 < (work + check + counted["pairs"] * cost.NEAR) / expected < 1.35


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"method": "fast"}, ValueError, "method must be one of exact, nufft"),
        ({"method": gwf.NUFFT(1e-9)}, ValueError, "tolerance must lie in 1e-06..0.1 for torch.float32, got 1e-09"),
        ({"x": torch.zeros(5, 4), "y": torch.zeros(5, 4)}, ValueError, "needs D <= 3 .*, got D = 4"),
        ({"x": torch.full((5, 2), math.inf)}, ValueError, "needs finite points"),
    ],
)
def test_bad_input(arguments, kind, message):
    call = {"x": torch.zeros(5, 2), "y": torch.zeros(5, 2), "kernel": gwf.Gaussian(1.0), "method": "nufft", **arguments}
    with pytest.raises(kind, match=message):
        gwf.kernel_sum(call.pop("x"), call.pop("y"), **call)


@pytest.mark.parametrize("method", [gwf.NUFFT, gwf.Auto])
@pytest.mark.parametrize(
    ("tolerance", "kind", "message"),
    [
        (1.0, ValueError, r"tolerance must be a number in 0..0.1, got 1.0"),
        (0, ValueError, r"tolerance must be a number in 0..0.1, got 0"),
        (math.nan, ValueError, r"tolerance must be a number in 0..0.1, got nan"),
        ("1e-5", TypeError, "tolerance must be a number in 0..0.1, got str '1e-5'"),
        (True, TypeError, "tolerance must be a number in 0..0.1, got bool True"),
        (torch.ones(2), TypeError, r"tolerance must be a number in 0..0.1, got a tensor of shape \[2\]"),
    ],
)
def test_bad_tolerances(method, tolerance, kind, message):
    with pytest.raises(kind, match=message):
        method(tolerance)


def test_user_written_formulas_are_refused_and_summed_exactly_by_auto():
    x, s = cloud(50, 2, 0), sympy.Symbol("s")
    kernel = gwf.Radial(sympy.exp(-s))
    with pytest.raises(ValueError, match="not user-written formulas"):
        gwf.kernel_sum(x, x, kernel=kernel, method="nufft")
    assert torch.equal(gwf.kernel_sum(x, x, kernel=kernel, method="auto"), gwf.kernel_sum(x, x, kernel=kernel))


def test_transforms_are_refused_and_not_silently_wrong():
    x = cloud(50, 2, 0)
    with pytest.raises(ValueError, match="eager mode only"):
        torch.func.vmap(lambda x: gwf.kernel_sum(x, x, kernel=gwf.Gaussian(1.0), method="nufft"))(x[None])


def test_a_missed_tolerance_is_an_error(monkeypatch):
    monkeypatch.setattr(sums, "FEW_PAIRS", 0)
    original = sums.evaluate
    monkeypatch.setattr(sums, "evaluate", lambda *args: original(*args) * (1 + 1e-3))
    x = cloud(3000, 2, 0)
    with pytest.raises(gwf.AccuracyError, match="did not reach tolerance=1e-05"):
        gwf.kernel_sum(x, x, kernel=gwf.Gaussian(0.5), method=gwf.NUFFT(1e-5))
