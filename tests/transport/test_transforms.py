"""Transport under torch.func: values, both modes of differentiation and their compositions; second derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import grad, hessian, jacrev, jvp, vmap

import gwf_fast as gwf

G = torch.Generator().manual_seed(0)
X, V = (torch.randn(3, 5, 2, generator=G, dtype=torch.float64) for _ in "xv")
Y = torch.randn(3, 6, 2, generator=G, dtype=torch.float64) + 0.4
OPTIONS: dict[str, Any] = {"epsilon": 0.5, "tolerance": 1e-13, "max_iterations": 3000}


def weighted(x, y, **options):
    return gwf.sinkhorn_divergence(x, y, x_weights=x[..., 0].softmax(-1), **OPTIONS, **options)


VALUES: dict[str, Any] = {
    "divergence": lambda x, y: gwf.sinkhorn_divergence(x, y, **OPTIONS),
    "weights": weighted,
    "unbalanced": lambda x, y: gwf.sinkhorn_divergence(x, y, marginal_strength=1.0, **OPTIONS),
    "p = 1": lambda x, y: gwf.sinkhorn_divergence(x, y, p=1, **OPTIONS),
}
FIRST: dict[str, Any] = {
    "drift": lambda x, y: gwf.drift.sinkhorn(x, y, **OPTIONS),
    "unbalanced drift": lambda x, y: gwf.drift.sinkhorn(x, y, marginal_strength=1.0, **OPTIONS),
    "linear": lambda x, y: gwf.transport_cost(x, y, form="linear", **OPTIONS),
}


def slope(f, x, y):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf, y).sum(), leaf)[0]


@pytest.mark.parametrize("name", [*VALUES, *FIRST])
def test_first_derivatives_and_maps(name):
    f = (VALUES | FIRST)[name]
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(vmap(f)(X, Y), torch.stack([f(x, y) for x, y in zip(X, Y, strict=True)]), **close)
    torch.testing.assert_close(vmap(f, in_dims=(0, None))(X, Y[0]), f(X, Y[:1].expand(3, -1, -1)), **close)
    want = slope(f, X, Y)
    torch.testing.assert_close(vmap(grad(lambda x, y: f(x, y).sum()))(X, Y), want, **close)
    along = jvp(lambda x: f(x, Y).sum(), (X,), (V,))[1]
    torch.testing.assert_close(along, (want * V).sum(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", VALUES)
def test_second_derivatives(name):
    f, x, y = VALUES[name], X[0], Y[0]

    def at(x):
        return f(x, y)

    want = torch.autograd.functional.hessian(at, x)
    for got in (hessian(at)(x), jacrev(grad(at))(x)):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FIRST)
def test_there_is_no_derivative_beyond(name):
    f = FIRST[name]
    for transform in (hessian, lambda g: jacrev(grad(g))):
        with pytest.raises(NotImplementedError, match=r"derivatives .* are implemented"):
            transform(lambda x: f(x, Y[0]).sum())(X[0])


@pytest.mark.parametrize("own", [False, True])
def test_potentials_are_found_for_each_of_those_that_are_mapped(own):
    y = X if own else Y
    got = vmap(lambda x, y: gwf.sinkhorn(x, x if own else y, **OPTIONS).f)(X, y)
    want = torch.stack([gwf.sinkhorn(x, x if own else t, **OPTIONS).f for x, t in zip(X, y, strict=True)])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tolerance", [1e-6, 1e-10])
def test_second_derivatives_of_potentials_that_are_not_quite_converged(tolerance):
    """Conjugate gradients need a symmetric system: masses were those of the optimum, and a Hessian was off by .5."""
    g = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(6, 2, generator=g, dtype=torch.float64),
        torch.randn(7, 2, generator=g, dtype=torch.float64) + 0.4,
    )
    along = torch.randn(6, 2, generator=g, dtype=torch.float64)

    def first(x, tolerance):
        options = {"epsilon": 0.5, "tolerance": tolerance, "max_iterations": 3000}
        leaf = x.clone().requires_grad_()
        value = gwf.sinkhorn_divergence(leaf, y, debias=False, **options)
        return leaf, torch.autograd.grad(value, leaf, create_graph=True)[0]

    leaf, gradient = first(x, tolerance)
    (got,) = torch.autograd.grad((gradient * along).sum(), leaf)
    there, back = (first(x + sign * 1e-5 * along, 1e-14)[1].detach() for sign in (1, -1))
    torch.testing.assert_close(got, (there - back) / 2e-5, rtol=0, atol=max(1e-8, 20 * tolerance))
