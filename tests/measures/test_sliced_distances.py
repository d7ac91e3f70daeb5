"""Sliced, max-sliced and spherical distances against POT, linear programs, grids and finite differences."""

from __future__ import annotations

import math

import ot
import pytest
import torch

import gwf_fast as gwf
from gwf_fast.compat.pot import sliced_wasserstein_distance

F64 = torch.float64


def clouds(n, m, dim, batch=(), seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, dim, generator=g, dtype=F64)
    return x, 0.7 * torch.randn(*batch, m, dim, generator=g, dtype=F64) + 0.4


def unit(*shape, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=g, dtype=F64), dim=-1)


def planes(count, dim, seed=2):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(count, dim, 2, generator=g, dtype=F64))[0].mT.contiguous()


def masses(n, *batch, seed=3):
    w = torch.rand(*batch, n, generator=torch.Generator().manual_seed(seed + n), dtype=F64) + 0.1
    return w / w.sum(-1, keepdim=True)


# ------------------------------------------------------------------------------------------------ averages


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize(("n", "m", "weighted"), [(30, 30, False), (30, 47, False), (1, 5, True), (30, 47, True)])
def test_value_and_all_gradients_are_pots(n, m, weighted, p, backend):
    x, y = clouds(n, m, 4)
    theta = unit(9, 4)
    w = (masses(n), masses(m)) if weighted else (None, None)
    results = []
    for function in (
        lambda x, y, t: ot.sliced.sliced_wasserstein_distance(x, y, *w, p=p, projections=t.T),
        lambda x, y, t: gwf.sliced_wasserstein(
            x, y, p=p, directions=t, x_weights=w[0], y_weights=w[1], backend=backend
        ),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, y, theta)]
        value = function(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    constant = gwf.sliced_wasserstein(x, y, p=p, directions=theta, x_weights=w[0], y_weights=w[1], backend=backend)
    torch.testing.assert_close(constant, results[0][0], rtol=1e-13, atol=0)


def test_the_square_of_order_two_is_the_other():
    x, y = clouds(20, 31, 3, (2,))
    theta = unit(6, 3)
    got = gwf.sliced_wasserstein(x, y, directions=theta)
    torch.testing.assert_close(got**2, gwf.sliced_wasserstein2(x, y, directions=theta), rtol=1e-14, atol=0)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("function", ["sliced_wasserstein", "sliced_wasserstein2", "sliced_energy_distance"])
def test_second_derivatives_in_points_and_directions(function, p):
    x, y = (t.requires_grad_() for t in clouds(3, 4, 2))
    theta = unit(2, 2).requires_grad_()
    options = {"p": p} if function == "sliced_wasserstein" else {"exponent": p / 2} if "energy" in function else {}
    # directions of any length near 1: what is differentiated is not the projection on the sphere
    f = lambda x, y, t: getattr(gwf, function)(x, y, directions=t, **options)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, y, theta), eps=1e-7, rtol=1e-3, atol=1e-6)
    assert torch.autograd.gradgradcheck(f, (x, y, theta), eps=1e-7, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("function", [gwf.sliced_wasserstein, gwf.max_sliced_wasserstein])
def test_equal_sets_are_at_no_distance_and_exert_no_force(function):
    x = clouds(12, 1, 3)[0].requires_grad_()
    value = function(x, x.detach().flip(0), p=2, n_projections=5)
    assert float(value.detach()) == 0
    assert float(torch.autograd.grad(value, x)[0].abs().max()) == 0


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("function", [gwf.sliced_wasserstein, gwf.max_sliced_wasserstein])
def test_roots_of_powers_beyond_float32(function, size):
    x, y = clouds(15, 20, 3)
    theta, results = unit(5, 3), []
    options = {} if function is gwf.sliced_wasserstein else {"max_iterations": 0}
    for scale, dtype in ((1.0, F64), (size, torch.float32)):
        leaf = (scale * x).to(dtype).requires_grad_()
        value = function(leaf, (scale * y).to(dtype), p=3, directions=theta.to(dtype), **options)
        results.append((value.detach().double() / scale, torch.autograd.grad(value, leaf)[0].double()))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


LENGTHS = {"x_lengths": torch.tensor([7, 1, 4]), "y_lengths": torch.tensor([5, 9, 2])}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("name", ["sliced_wasserstein", "max_sliced_wasserstein", "spherical_sliced_wasserstein"])
def test_ragged_sets_are_their_members(name, backend, weighted):
    function = getattr(gwf, name)
    if "spherical" in name:
        (x, y), options = (unit(3, n, 4, seed=n) for n in (7, 9)), {"planes": planes(5, 4)}
    else:
        (x, y), options = clouds(7, 9, 4, (3,)), {"directions": unit(5, 4)}
    options |= {"p": 1.5, "backend": backend} | ({"max_iterations": 0} if "max" in name else {})
    w = {"x_weights": masses(7, 3), "y_weights": masses(9, 3)} if weighted else {}
    n, m = LENGTHS["x_lengths"], LENGTHS["y_lengths"]
    for b in range(3):
        x[b, n[b] :], y[b, m[b] :] = math.nan, math.nan
    x.requires_grad_()
    value = function(x, y, **options, **w, **LENGTHS)
    (slope,) = torch.autograd.grad(value.sum(), x)
    for b in range(3):
        some = {k: v[b, : n[b] if k[0] == "x" else m[b]] for k, v in w.items()}
        leaf = x.detach()[b, : n[b]].requires_grad_()
        want = function(leaf, y[b, : m[b]], **options, **some)
        torch.testing.assert_close(value[b], want, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(slope[b, : n[b]], torch.autograd.grad(want, leaf)[0], rtol=1e-6, atol=1e-8)
        assert (slope[b, n[b] :] == 0).all()


# ------------------------------------------------------------------------------------------------ the largest


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_without_ascent_it_is_pots(p, weighted):
    x, y = clouds(20, 33, 4)
    w = (masses(20), masses(33)) if weighted else (None, None)
    theta = unit(30, 4)
    want = ot.sliced.max_sliced_wasserstein_distance(x, y, *w, p=p, projections=theta.T)
    options = {"p": p, "directions": theta, "x_weights": w[0], "y_weights": w[1]}
    got = gwf.max_sliced_wasserstein(x, y, max_iterations=0, **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    assert gwf.max_sliced_wasserstein(x, y, **options) > got


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (60, 41)])
def test_the_largest_in_the_plane_is_that_of_a_grid(n, m, p):
    x, y = clouds(n, m, 2)
    angle = torch.linspace(0, math.pi, 20_001, dtype=F64)
    grid = torch.stack([angle.cos(), angle.sin()])
    _, log = sliced_wasserstein_distance(x, y, p=p, projections=grid, log=True)
    want = log["projected_emds"].max() ** (1 / p)
    got, direction = gwf.max_sliced_wasserstein(x, y, p=p, return_direction=True, generator=seeded(0))
    assert float(got / want) > 1 - 1e-5
    at = gwf.sliced_wasserstein(x, y, p=p, directions=direction[None])
    torch.testing.assert_close(at, got, rtol=1e-12, atol=0)
    assert abs(float(direction.norm()) - 1) < 1e-12


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_shift_is_found_and_its_gradient_is_that_of_the_largest():
    x, _ = clouds(40, 1, 6, (2,))
    delta = torch.arange(6.0, dtype=F64)
    y = x[:, torch.randperm(40, generator=seeded(0))] + delta
    value, direction = gwf.max_sliced_wasserstein(x, y, return_direction=True)
    torch.testing.assert_close(value, delta.norm().expand(2), rtol=1e-9, atol=0)
    assert float((direction @ delta).abs().min() / delta.norm()) > 1 - 1e-6
    x, y = clouds(3, 4, 2)
    x, y = x.requires_grad_(), (y + 3 * unit(1, 2)).requires_grad_()
    w = masses(3).requires_grad_()
    options = {"p": 3, "directions": unit(4, 2), "tolerance": 1e-9}
    f = lambda x, y, w: gwf.max_sliced_wasserstein(x, y, x_weights=w, **options)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, y, w), rtol=1e-3)
    (first,) = torch.autograd.grad(f(x, y, w), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="max_sliced_wasserstein is differentiable once: its direction moves"):
        torch.autograd.grad(first.sum(), x)


def test_a_generator_decides():
    x, y = clouds(6, 6, 5)
    for sampling in ("orthogonal", "quasi"):
        one, two = (gwf.max_sliced_wasserstein(x, y, generator=seeded(1), sampling=sampling) for _ in range(2))
        assert torch.equal(one, two)


# ------------------------------------------------------------------------------------------------ the sphere


def by_linear_programs(x, y, frames, p, u, v):
    total = 0.0
    for frame in frames:
        angle = [torch.atan2(t @ frame[1], t @ frame[0]) / (2 * math.pi) for t in (x, y)]
        apart = (angle[0][:, None] - angle[1]).abs()
        total += ot.emd2(u.numpy(), v.numpy(), (torch.minimum(apart, 1 - apart) ** p).numpy())
    return (total / len(frames)) ** (1 / p)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("dim", [2, 4])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (6, 6), (8, 4), (30, 30), (30, 47)])
def test_circles_against_linear_programs(n, m, dim, p):
    x, y, frames = unit(n, dim, seed=n), unit(m, dim, seed=m + 100), planes(5, dim)
    equal = torch.full((n,), 1 / n, dtype=F64), torch.full((m,), 1 / m, dtype=F64)
    for backend in (None, "torch"):
        got = gwf.spherical_sliced_wasserstein(x, y, p=p, planes=frames, backend=backend)
        assert abs(float(got) - by_linear_programs(x, y, frames, p, *equal)) < 1e-12
        w = masses(n), masses(m)
        options = {"planes": frames, "x_weights": w[0], "y_weights": w[1], "backend": backend}
        got = gwf.spherical_sliced_wasserstein(x, y, p=p, **options)
        assert abs(float(got) - by_linear_programs(x, y, frames, p, *w)) < 1e-12


@pytest.mark.parametrize("p", [1, 2])
def test_the_sphere_is_pots(p):
    x, y, frames = unit(25, 5), unit(25, 5, seed=9), planes(8, 5)
    want = ot.sliced_wasserstein_sphere(x, y, p=p, projections=frames.mT, n_projections=8)
    got = gwf.spherical_sliced_wasserstein(x, y, p=p, planes=frames)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_derivatives_on_the_sphere(p):
    x, y = unit(3, 3).requires_grad_(), unit(4, 3, seed=5).requires_grad_()
    frames, w = planes(2, 3).requires_grad_(), [masses(n).requires_grad_() for n in (3, 4)]

    def f(x, y, frames):
        return gwf.spherical_sliced_wasserstein(x, y, p=p, planes=frames)

    def weighted(x, a, b):
        return gwf.spherical_sliced_wasserstein(x, y, p=p, planes=frames, x_weights=a, y_weights=b)

    assert torch.autograd.gradcheck(f, (x, y, frames), eps=1e-7, rtol=1e-3, atol=1e-6)
    assert torch.autograd.gradgradcheck(f, (x, y, frames), eps=1e-7, rtol=1e-3, atol=1e-4)
    assert torch.autograd.gradcheck(weighted, (x, *w), eps=1e-7, rtol=1e-3, atol=1e-6)
    (slope,) = torch.autograd.grad(f(x, y, frames).sum(), x)
    assert float((slope * x.detach()).sum(-1).abs().max()) < 1e-14


def test_a_turn_of_the_circle_is_its_own_distance():
    """Of two sets of which one is turned: the angle, however far round."""
    at = torch.rand(11, generator=seeded(4), dtype=F64) * 2 * math.pi
    circle = lambda t: torch.stack([t.cos(), t.sin()], -1)  # noqa: E731
    for turn in (0.0, 0.01, 0.2):
        got = gwf.spherical_sliced_wasserstein(circle(at), circle(at + 2 * math.pi * turn).flip(0), n_projections=3)
        assert abs(float(got) - min(turn, 1 - turn)) < 1e-9 or float(got) < turn
    one = gwf.spherical_sliced_wasserstein(circle(at[:1]), circle(at[:1] + math.pi), n_projections=2)
    assert abs(float(one) - 0.5) < 1e-12


def test_float32_and_layouts():
    x, y, frames = unit(2, 40, 3), unit(2, 33, 3, seed=8), planes(6, 3)
    want = gwf.spherical_sliced_wasserstein(x, y, planes=frames)
    single = [t.float() for t in (x, y)]
    got = gwf.spherical_sliced_wasserstein(*single, planes=frames.float())
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    strided = x.mT.contiguous().mT
    assert torch.equal(gwf.spherical_sliced_wasserstein(strided, y, planes=frames), want)
    x[0, 3, 1] = math.nan
    got = gwf.spherical_sliced_wasserstein(x, y, planes=frames)
    assert got[0].isnan() and torch.equal(got[1], want[1])


# ------------------------------------------------------------------------------------------------ arguments


def test_energy_drift_takes_what_slices_take():
    x, y = clouds(9, 12, 3)
    theta = unit(7, 3)
    leaf = x.clone().requires_grad_()
    value = gwf.sliced_energy_distance(leaf, y, exponent=1.3, directions=theta)
    want = -4.5 * torch.autograd.grad(value, leaf)[0]
    for options in ({"directions": theta}, {"sliced": 7, "directions": theta}):
        torch.testing.assert_close(gwf.drift.energy(x, y, exponent=1.3, **options), want)
    drawn = [gwf.drift.energy(x, y, sliced=5, generator=seeded(2), sampling="normal") for _ in range(2)]
    assert torch.equal(*drawn) and not torch.equal(drawn[0], gwf.drift.energy(x, y, sliced=5, generator=seeded(2)))
    assert "asked for" not in gwf.explain(gwf.drift.energy, x, y, directions=theta).splitlines()[0]
    for options, message in (
        ({"sliced": 7, "directions": theta[:3]}, "n_projections must be the number of directions, 3, got 7"),
        ({"generator": seeded(0)}, "generator must be None where sliced is"),
        ({"directions": theta, "exclude_self": True}, "exclude_self must be False with sliced"),
        ({"sampling": "sobol"}, "sampling must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            gwf.drift.energy(x, y, **options)
    with pytest.raises(TypeError, match=r"sliced must be a positive integer, got float 2\.5"):
        gwf.drift.energy(x, y, sliced=2.5)  # type: ignore[arg-type]
    theta.requires_grad_()
    moved = gwf.drift.energy(x, y, exponent=1.3, directions=theta)
    assert torch.autograd.grad(moved.square().sum(), theta)[0].abs().max() > 0


X, Y = clouds(5, 6, 3)
S, T = unit(5, 3), unit(6, 3, seed=7)
BAD = [
    (gwf.sliced_wasserstein, {"p": 0.5, "n_projections": 3}, ValueError, "p must be a number >= 1, got 0.5"),
    (gwf.sliced_wasserstein, {"p": "2", "n_projections": 3}, TypeError, "p must be a number >= 1, got str '2'"),
    (gwf.sliced_wasserstein, {}, TypeError, "n_projections must be given where directions are not"),
    (
        gwf.sliced_wasserstein,
        {"directions": 2 * unit(4, 3)},
        ValueError,
        "directions must be of unit length, got .* 2$",
    ),
    (gwf.sliced_energy_distance, {"directions": 2 * unit(4, 3)}, ValueError, "directions must be of unit length"),
    (gwf.max_sliced_wasserstein, {"directions": 0 * unit(4, 3)}, ValueError, "directions must be of unit length"),
    (gwf.max_sliced_wasserstein, {"max_iterations": -1}, ValueError, "max_iterations must be an integer >= 0, got -1"),
    (gwf.max_sliced_wasserstein, {"tolerance": -1.0}, ValueError, "tolerance must be a number >= 0, got -1"),
    (gwf.max_sliced_wasserstein, {"x_weights": torch.zeros(5, dtype=F64)}, ValueError, "x_weights must be finite"),
    (gwf.max_sliced_wasserstein, {"directions": unit(4, 2)}, ValueError, r"directions must have shape \[P, D\]"),
    (gwf.spherical_sliced_wasserstein, {}, TypeError, "n_projections must be given where planes are not"),
    (
        gwf.spherical_sliced_wasserstein,
        {"x": X, "n_projections": 3},
        ValueError,
        "x must be of unit length, got one of",
    ),
    (gwf.spherical_sliced_wasserstein, {"planes": unit(4, 3)}, ValueError, r"planes must have shape \[P, 2, D\]"),
    (gwf.spherical_sliced_wasserstein, {"planes": unit(4, 2, 3)}, ValueError, "planes must be two orthonormal vectors"),
    (gwf.spherical_sliced_wasserstein, {"planes": planes(4, 3).float()}, TypeError, "planes must be a tensor of x's"),
    (
        gwf.spherical_sliced_wasserstein,
        {"planes": planes(4, 3), "n_projections": 3},
        ValueError,
        "n_projections must be",
    ),
    (gwf.spherical_sliced_wasserstein, {"y": T[:0], "n_projections": 3}, ValueError, "y must have at least one sample"),
    (
        gwf.spherical_sliced_wasserstein,
        {"x": S[:, :1], "y": T[:, :1], "n_projections": 3},
        ValueError,
        "x must have at least two coordinates",
    ),
]


@pytest.mark.parametrize(("function", "change", "error", "words"), BAD)
def test_bad_input(function, change, error, words):
    options = dict(change)
    points = (S, T) if function is gwf.spherical_sliced_wasserstein else (X, Y)
    x, y = options.pop("x", points[0]), options.pop("y", points[1])
    with pytest.raises(error, match=words) as caught:
        function(x, y, **options)
    assert len(str(caught.value).splitlines()) == 1
