"""Every option of geomloss' SamplesLoss, beside geomloss; and where that fails, beside the formula it documents."""

from __future__ import annotations

from typing import Any

import geomloss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gwf_fast.compat.geomloss import SamplesLoss

F64 = torch.float64


def manhattan(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, :, None] - y[:, None]).abs().sum(-1)


def lopsided(x: Tensor, y: Tensor) -> Tensor:
    """A cost that is not symmetric."""
    return torch.cdist(x, y + 0.2).square()


def cauchy(x: Tensor, y: Tensor, blur: float, use_keops: bool = False, ranges: object = None) -> Tensor:
    return 1 / (1 + (x[:, :, None] - y[:, None]).square().sum(-1) / blur**2)


def negative_distance(x: Tensor, y: Tensor, **_: object) -> Tensor:
    """What geomloss computes of distances that are not below 1e-4, where it reads them as that."""
    return -torch.cdist(x, y)


def laplacian(x: Tensor, y: Tensor, blur: float, **_: object) -> Tensor:
    return torch.exp(-torch.cdist(x, y) / blur)


UNCLAMPED = {"energy": negative_distance, "laplacian": laplacian}


def theirs(options: dict[str, Any]) -> torch.nn.Module:
    """geomloss without its lower bound on r."""
    more: dict[str, Any] = {}
    if options["loss"] == "sinkhorn" and options["p"] == 1 and options.get("cost") is None:
        more["cost"] = torch.cdist
    if options.get("kernel") is None and options["loss"] in UNCLAMPED:
        more["kernel"] = UNCLAMPED[options["loss"]]
    return geomloss.SamplesLoss(**options | more, backend="tensorized")


def gradient_factor(options: dict[str, Any]) -> float:
    """geomloss means to scale the gradient under reach, and does not: see test_compat.py."""
    if options["loss"] != "sinkhorn" or options["reach"] is None:
        return 1.0
    rho, epsilon = options["reach"] ** options["p"], options["blur"] ** options["p"]
    return (rho + epsilon / 2) / (rho + epsilon)


# ------------------------------------------------------------------------------------------------- drawn calls


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Options of the loss under "options", and of the measures."""
    loss = draw(st.sampled_from(["sinkhorn", "sinkhorn", "sinkhorn", "gaussian", "laplacian", "energy", "hausdorff"]))
    options: dict[str, Any] = {"loss": loss, "blur": draw(st.sampled_from([0.03, 0.1, 0.3, 1.0, 3.0]))}
    options["p"] = draw(st.sampled_from([1, 2]))
    options["reach"] = draw(st.sampled_from([None, None, 0.3, 1.0]))
    options["diameter"] = draw(st.sampled_from([None, None, 2.5]))
    options["scaling"] = draw(st.sampled_from([0.1, 0.5, 0.8]))
    options["debias"] = draw(st.booleans())
    options["potentials"] = draw(st.booleans())
    if loss == "sinkhorn":
        options["cost"] = draw(st.sampled_from([None, None, manhattan, lopsided]))
    else:
        options["kernel"] = draw(st.sampled_from([None, cauchy])) if loss != "hausdorff" else cauchy
    call: dict[str, Any] = {"options": options, "batch": draw(st.sampled_from([(), (), (1,), (3,)]))}
    call |= {name: draw(st.integers(1, most)) for name, most in (("n", 15), ("m", 15), ("dim", 4))}
    relaxed = options["reach"] is not None or loss != "sinkhorn"
    call["masses"] = draw(st.sampled_from([None, (1.0, 1.0), (2.0, 0.5) if relaxed else (0.5, 0.5)]))
    call["column"], call["zero"] = draw(st.booleans()), draw(st.booleans())
    call["seed"] = draw(st.integers(0, 2**30))
    return call


def measures(call: dict[str, Any]) -> list[Tensor]:
    """Points, or weights and points."""
    rng = torch.Generator().manual_seed(call["seed"])

    def random(*shape: int) -> Tensor:
        return torch.rand(*call["batch"], *shape, generator=rng, dtype=F64)

    x, y = random(call["n"], call["dim"]), 0.7 * random(call["m"], call["dim"]) + 0.3
    if call["masses"] is None:
        return [x, y]
    weights = []
    for size, mass in zip((call["n"], call["m"]), call["masses"], strict=True):
        w = random(size) + 0.1
        if call["zero"] and size > 2:
            w[..., 1] = 0
        w = mass * w / w.sum(-1, keepdim=True)
        weights.append(w[..., None] if call["column"] else w)
    return [weights[0], x, weights[1], y]


def is_geomlosses(call: dict[str, Any]) -> None:
    options = call["options"]
    results = []
    for loss in (theirs(options), SamplesLoss(**options)):
        inputs = [t.clone().requires_grad_() for t in measures(call)]
        value = loss(*inputs)
        values = value if isinstance(value, tuple) else (value,)
        results.append((values, inputs))
    (want, their_inputs), (got, our_inputs) = results
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-8)
    if options["potentials"]:
        return
    points = slice(None) if call["masses"] is None else slice(1, None, 2)
    wanted = torch.autograd.grad(want[0].sum(), their_inputs[points])
    found = torch.autograd.grad(got[0].sum(), our_inputs[points])
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient_factor(options) * mine, other, rtol=1e-6, atol=1e-7)


@given(calls())
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_drawn_calls(call: dict[str, Any]) -> None:
    is_geomlosses(call)


@pytest.mark.slow
@given(calls())
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_a_thousand_drawn_calls(call: dict[str, Any]) -> None:
    is_geomlosses(call)


def test_the_diameter_is_that_of_the_batch_where_it_lies() -> None:
    """One for all problems, whose centres differ; found by the thousand calls."""
    x, y = (torch.randn(3, n, 2, dtype=F64, generator=torch.Generator().manual_seed(n)) for n in (4, 3))
    x[1], y[1] = x[1] + 50, y[1] + 50
    options: dict[str, Any] = {"loss": "sinkhorn", "p": 2, "scaling": 0.1, "debias": False, "potentials": True}
    for got, want in zip(SamplesLoss(**options)(x, y), theirs(options)(x, y), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


# --------------------------------------------------------------------------------------------- a cost of one's own

RNG = torch.Generator().manual_seed(0)
X, Y = torch.rand(6, 2, generator=RNG, dtype=F64), torch.rand(5, 2, generator=RNG, dtype=F64) + 0.3
A, B = torch.rand(6, generator=RNG, dtype=F64) + 0.5, torch.rand(5, generator=RNG, dtype=F64) + 0.5
A, B = A / A.sum(), B / B.sum()


def half_squares(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, :, None] - y[:, None]).square().sum(-1) / 2


@pytest.mark.parametrize("reach", [None, 0.7])
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("masses", [(1.0, 1.0), (1.5, 0.8)])
def test_a_cost_as_a_function_is_the_cost(reach: float | None, debias: bool, masses: tuple[float, float]) -> None:
    """Values and derivatives in points and weights are those of the streaming loss, whose are tested elsewhere."""
    if reach is None and masses != (1.0, 1.0):
        pytest.skip("balanced transport is between equal masses")
    options: dict[str, Any] = {"blur": 0.3, "reach": reach, "debias": debias, "scaling": 0.95}
    results = []
    for cost in (None, half_squares):
        inputs = [t.clone().requires_grad_() for t in (masses[0] * A, X, masses[1] * B, Y)]
        value = SamplesLoss(**options, cost=cost)(*inputs)
        gradients = list(torch.autograd.grad(value, inputs))
        if reach is None:  # those in weights that sum to 1 are given up to a constant
            gradients = [g - g.mean() if g.ndim == 1 else g for g in gradients]
        results.append((value.detach(), *gradients))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def test_second_derivatives_under_a_cost_are_refused() -> None:
    x = X.clone().requires_grad_()
    value = SamplesLoss(blur=0.3, cost=half_squares)(x, Y)
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="a cost of your own has first derivatives only"):
        torch.autograd.grad(gradient.sum(), x)


def test_second_derivatives_under_a_kernel_are_its_own() -> None:
    loss = SamplesLoss("gaussian", blur=0.5, kernel=cauchy)
    assert torch.autograd.gradgradcheck(lambda x, y: loss(A, x, B, y), (X.clone().requires_grad_(), Y.requires_grad_()))


# ----------------------------------------------------------------------------------------------------- hausdorff


def own_potential(x: Tensor, a: Tensor, epsilon: float, p: int, rho: float | None) -> Tensor:
    f = torch.zeros_like(a)
    for _ in range(400):
        f = 0.5 * (f + update(x, x, a, f, epsilon, p, rho))
    return f


def update(x: Tensor, y: Tensor, b: Tensor, g: Tensor, epsilon: float, p: int, rho: float | None) -> Tensor:
    costs = (x[:, None] - y).norm(dim=-1) ** p / p
    damping = 1.0 if rho is None else rho / (rho + epsilon)
    return -damping * epsilon * (b.log() + (g - costs) / epsilon).logsumexp(-1)


def hausdorff(x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: float, p: int, rho: float | None) -> Tensor:
    """<a - b, F'(a) - F'(b)> / 2 with F(a) = -OT(a, a) / 2, whose derivative is minus the potential (2018, 2019)."""

    def slope(f: Tensor) -> Tensor:
        return f if rho is None else (rho + epsilon) * (1 - torch.exp(-f / rho))

    of_a, of_b = (own_potential(t, w, epsilon, p, rho) for t, w in ((x, a), (y, b)))
    at_x = slope(update(x, y, b, of_b, epsilon, p, rho)) - slope(of_a)
    at_y = slope(update(y, x, a, of_a, epsilon, p, rho)) - slope(of_b)
    return 0.5 * ((a * at_x).sum() + (b * at_y).sum())


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", [None, 0.6])
def test_hausdorff_is_its_formula(p: int, reach: float | None) -> None:
    blur, rho = 0.4, None if reach is None else reach**p
    loss = SamplesLoss("hausdorff", p=p, blur=blur, reach=reach)
    x, y = X.clone().requires_grad_(), Y.detach().clone().requires_grad_()
    got, want = loss(A, x, B, y), hausdorff(x, y, A, B, blur**p, p, rho)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    step = 1e-5
    for inputs, gradient in zip((x, y), torch.autograd.grad(got, (x, y)), strict=True):
        for index in ((0, 0), (3, 1)):
            values = []
            for sign in (1, -1):
                moved = inputs.detach().clone()
                moved[index] += sign * step
                pair = (moved, y.detach()) if inputs is x else (x.detach(), moved)
                values.append(hausdorff(*pair, A, B, blur**p, p, rho))
            difference = float(values[0] - values[1]) / (2 * step)
            assert abs(float(gradient[index]) - difference) < 1e-7


def test_hausdorff_of_itself_and_of_points() -> None:
    loss = SamplesLoss("hausdorff", blur=0.2)
    assert abs(float(loss(X, X))) < 1e-12
    one, other = torch.zeros(1, 2, dtype=F64), torch.tensor([[3.0, 4.0]], dtype=F64)
    torch.testing.assert_close(loss(one, other), torch.tensor(12.5, dtype=F64))
    batch = loss(torch.stack([X, X + 1]), torch.stack([X + 1, X]))
    assert batch.shape == (2,) and (batch > 0.1).all()
    f, g = SamplesLoss("hausdorff", blur=0.2, potentials=True)(A, X, B, Y)
    value = 0.5 * ((A * f[0]).sum() + (B * g[0]).sum())
    torch.testing.assert_close(value, loss(A, X, B, Y))


def test_geomloss_has_no_hausdorff_without_a_kernel() -> None:
    """Should this fail, theirs is to be compared with."""
    with pytest.raises(KeyError):
        geomloss.SamplesLoss("hausdorff")(X, Y)


# -------------------------------------------------------------------------------------------- shapes and labels


@pytest.mark.parametrize("loss", ["sinkhorn", "energy", "hausdorff"])
def test_potentials_have_geomlosses_shapes(loss: str) -> None:
    def shapes(backend: str, *arguments: Tensor) -> list[list[int]]:
        return [list(t.shape) for t in SamplesLoss(loss, potentials=True, backend=backend)(*arguments)]

    assert shapes("auto", X, Y) == shapes("tensorized", A[:, None], X, B[:, None], Y) == [[1, 6], [1, 5]]
    assert shapes("auto", X[None], Y[None]) == shapes("online", A[None, :, None], X[None], B[None, :, None], Y[None])
    assert shapes("multiscale", X, Y) == shapes("multiscale", X[None], Y[None]) == [[6], [5]]
    assert shapes("multiscale", torch.stack([X, X]), torch.stack([Y, Y])) == [[2, 6], [2, 5]]


def test_labels_of_clusters_change_nothing() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 0])[:, None]
    loss = SamplesLoss(blur=0.1)
    assert torch.equal(loss(labels[0], A, X, labels[1], B, Y), loss(A, X, B, Y))
    assert torch.equal(loss(None, A, X, None, B, Y), loss(A, X, B, Y))
    f, _ = SamplesLoss(blur=0.1, potentials=True)(labels[0], A, X, labels[1], B, Y)
    assert f.shape == (6,)
    with pytest.raises(ValueError, match="l_x must have shape"):
        loss(labels[0][:3], A, X, labels[1], B, Y)
    with pytest.raises(ValueError, match='backend must be "auto" or "multiscale" for labels'):
        SamplesLoss(backend="online")(labels[0], A, X, labels[1], B, Y)
    with pytest.raises(NotImplementedError, match="labels"):
        loss(labels[0], A[None], X[None], labels[1], B[None], Y[None])


@pytest.mark.parametrize("scaling", [1, 1.0, 1.5, 0, -0.5])
def test_a_scaling_that_does_not_fall(scaling: float) -> None:
    with pytest.raises(ValueError, match="scaling must lie between 0 and 1"):
        SamplesLoss(scaling=scaling)


BAD: list[tuple[Any, tuple[Any, ...], str]] = [
    ({"cost": lambda x, y: torch.zeros(2)}, (X, Y), r"cost must give a matrix \[B, N, M\] = \[1, 6, 5\], got \[2\]"),
    ({"loss": "hausdorff", "cost": manhattan}, (X, Y), "cost must be None but for loss"),
    ({"loss": "energy", "kernel": lambda x, y, **_: 1.0}, (X, Y), "kernel must give a matrix"),
    ({}, (A[:3], X, B, Y), r"a must have shape \[6\]"),
    ({}, (A, X, B.float(), Y), "b must have the dtype"),
    ({}, (X,), "a SamplesLoss takes"),
    ({}, (X[0], Y[0]), "x must have shape"),
    ({}, (X[None, None], Y[None, None]), "x must have shape"),
]


@pytest.mark.parametrize(("options", "arguments", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(options: dict[str, Any], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        SamplesLoss(**options)(*arguments)
    assert "\n" not in str(caught.value)
