"""Kernels with tensors among their parameters: a bandwidth a problem, a length scale a coordinate, learnt multiples."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.checkpoint.portable import pack, unpack
from tests.cases import points

F64 = torch.float64
H = torch.tensor([0.5, 0.9, 1.4], dtype=F64)
LENGTHS = torch.tensor([[0.5, 2.0], [1.0, 0.7], [1.5, 0.9]], dtype=F64)
SCALED: dict[str, Any] = {
    "gaussian": gwf.Gaussian,
    "laplace": gwf.Laplace,
    "imq": gwf.IMQ,
    "matern32": gwf.Matern32,
    "matern52": gwf.Matern52,
    "rational_quadratic": lambda h, **options: gwf.RationalQuadratic(h, 1.7, **options),
}
REDUCTIONS = (gwf.kernel_sum, gwf.kernel_gradient, gwf.kernel_logsumexp, gwf.kernel_average)


def sets(n=5, m=7):
    return points(n, m, 2, dtype=F64, batch=(3,))


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("function", REDUCTIONS, ids=lambda f: f.__name__)
def test_a_bandwidth_a_problem(function, name):
    make, (x, y) = SCALED[name], sets()
    want = torch.stack([function(u, v, kernel=make(float(h))) for u, v, h in zip(x, y, H, strict=True)])
    torch.testing.assert_close(function(x, y, kernel=make(H)), want)
    shared = torch.stack([function(x[0], y[0], kernel=make(float(h))) for h in H])
    torch.testing.assert_close(function(x[0], y[0], kernel=make(H)), shared)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("function", REDUCTIONS, ids=lambda f: f.__name__)
def test_a_length_scale_a_coordinate(function, name):
    """Gradients and means are of the coordinates that were given."""
    make, (x, y) = SCALED[name], sets()
    for lengths, each in ((LENGTHS, LENGTHS), (LENGTHS[0], LENGTHS[:1].expand(3, 2))):
        u, v = x / each[:, None], y / each[:, None]
        want = function(u, v, kernel=make(0.8))
        if function is gwf.kernel_gradient:
            want = want / each[:, None]
        if function is gwf.kernel_average:
            want = want * each[:, None]
        torch.testing.assert_close(function(x, y, kernel=make(0.8, length_scale=lengths)), want)


def both(h, lengths, w, v):
    return w * gwf.Gaussian(h, length_scale=lengths) + 2 * (v * gwf.Matern52(0.7)) + gwf.IMQ(h)


def test_dense_matrix_of_all_of_them():
    x, y = sets()
    w, v = torch.tensor(0.3, dtype=F64, requires_grad=True), torch.tensor(1.2, dtype=F64, requires_grad=True)
    kernel = both(H, LENGTHS, w, v)
    want = torch.stack([both(float(h), scale, w, v)(a, b) for a, b, h, scale in zip(x, y, H, LENGTHS, strict=True)])
    torch.testing.assert_close(kernel(x, y), want)
    torch.testing.assert_close(gwf.kernel_sum(x, y, kernel=kernel), want.sum(-1))
    torch.testing.assert_close(gwf.kernel_logsumexp(x, y, kernel=kernel), want.sum(-1).log())
    mean = want @ y / want.sum(-1, keepdim=True)
    torch.testing.assert_close(gwf.kernel_average(x, y, kernel=kernel), mean)


@pytest.mark.parametrize("exclude_self", [None, False, True])
def test_derivatives_to_second_order(exclude_self):
    x, y = (t[:, :4].clone().requires_grad_() for t in sets())
    parameters = [t.clone().requires_grad_() for t in (H, LENGTHS, torch.tensor(0.3, dtype=F64), H[0])]

    def everything(x, y, *parameters):
        sources, options = (y, {}) if exclude_self is None else (x, {"exclude_self": exclude_self})
        kernel = both(*parameters)
        return (
            gwf.kernel_sum(x, sources, kernel=kernel, **options).sin().sum()
            + gwf.kernel_gradient(x, sources, kernel=kernel, **options).square().sum()
            + gwf.kernel_logsumexp(x, sources, kernel=kernel, **options).square().sum()
            + gwf.kernel_average(x, sources, kernel=kernel, **options).square().sum()
        )

    inputs = (x, y, *parameters)
    assert torch.autograd.gradcheck(everything, inputs)
    assert torch.autograd.gradgradcheck(everything, inputs, gen_non_contig_grad_outputs=False)


def test_multiples_are_differentiated_again_and_again():
    """A kernel is made once, and every step of a training has its own graph."""
    x, y = sets()
    w = torch.tensor(0.3, dtype=F64, requires_grad=True)
    kernel = 2 * (w * gwf.Gaussian(1.0) - gwf.Riesz())
    for _ in range(2):
        (slope,) = torch.autograd.grad(gwf.kernel_sum(x, y, kernel=kernel).sum(), w)
        torch.testing.assert_close(slope, 2 * gwf.kernel_sum(x, y, kernel=gwf.Gaussian(1.0)).sum())
    assert len(kernel.passes) == 2
    assert (torch.tensor(0.5) * gwf.Gaussian(1.0)).spec is not None  # a number, as ever


def test_discrepancies():
    x, y = sets()
    w, v = torch.tensor(0.3, dtype=F64, requires_grad=True), H[1].clone().requires_grad_()
    lengths = LENGTHS.clone().requires_grad_()

    def dense(kernel):
        k = [kernel(a, b).mean((-2, -1)) for a, b in ((x, x), (y, y), (x, y))]
        return k[0] + k[1] - 2 * k[2]

    kernel = both(H, lengths, w, v)
    got, want = gwf.mmd2(x, y, kernel=kernel), dense(kernel)
    torch.testing.assert_close(got, want)
    for mine, true in zip(*(torch.autograd.grad(t.sum(), (w, v, lengths)) for t in (got, want)), strict=True):
        torch.testing.assert_close(mine, true)
    kernel = gwf.Gaussian(H, length_scale=LENGTHS)
    want = kernel(x, x) @ -x / 5 - gwf.kernel_gradient(x, x, kernel=kernel) / 5
    torch.testing.assert_close(gwf.svgd_direction(x, -x, kernel=kernel), want)
    torch.testing.assert_close(
        gwf.svgd_direction(x[:1], -x[:1], kernel=gwf.Gaussian(H[:1])),
        gwf.svgd_direction(x[:1], -x[:1], kernel=gwf.Gaussian(float(H[0]))),
    )
    torch.testing.assert_close(
        gwf.parzen_log_density(x, y, H),
        torch.stack([gwf.parzen_log_density(a, b, float(h)) for a, b, h in zip(x, y, H, strict=True)]),
    )
    torch.testing.assert_close(
        gwf.parzen_score(x, y, H),
        torch.stack([gwf.parzen_score(a, b, float(h)) for a, b, h in zip(x, y, H, strict=True)]),
    )


@pytest.mark.parametrize("method", [gwf.NUFFT(1e-10), gwf.Sliced(directions=torch.eye(2, dtype=F64))])
@pytest.mark.parametrize("function", [gwf.kernel_sum, gwf.kernel_gradient], ids=lambda f: f.__name__)
def test_fast_sums(function, method):
    x, y = sets(40, 60)
    w = torch.tensor(0.3, dtype=F64)
    kernel = gwf.Gaussian(H, length_scale=LENGTHS)
    learnt = w.requires_grad_() * kernel
    want = 0.3 * torch.stack(
        [
            function(a[None], b[None], kernel=gwf.Gaussian(h, length_scale=scale), method=method)[0]
            for a, b, h, scale in zip(x, y, H, LENGTHS, strict=True)
        ]
    )
    torch.testing.assert_close(function(x, y, kernel=learnt, method=method), want)
    if isinstance(method, gwf.NUFFT):
        torch.testing.assert_close(want, 0.3 * function(x, y, kernel=kernel))
    else:
        out, error = gwf.with_error(function, x, y, kernel=learnt, method=method)
        torch.testing.assert_close(out, want)
        assert error.shape == (3,)


def test_dtype_is_that_of_the_points():
    x, y = (t.float() for t in sets())
    for kernel in (
        gwf.Gaussian(H),
        gwf.Gaussian(1.0, length_scale=LENGTHS),
        H[0].clone().requires_grad_() * gwf.IMQ(1.0),
    ):
        for function in REDUCTIONS:
            assert function(x, y, kernel=kernel).dtype == torch.float32


def test_traced():
    """The tensors are inputs of the graph; a multiple is made outside of it, where PyTorch knows no kernels."""
    x, y = sets()
    w = torch.tensor(0.4, dtype=F64, requires_grad=True)

    def call(x, y, h, kernel):
        return gwf.kernel_gradient(x, y, kernel=gwf.Gaussian(h, length_scale=LENGTHS[0]) + kernel)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    h, kernel = H.clone().requires_grad_(), w * gwf.IMQ(0.7)
    got, want = compiled(x, y, h, kernel), call(x, y, h, kernel)
    torch.testing.assert_close(got, want)
    slopes = (torch.autograd.grad(t.square().sum(), (h, w)) for t in (got, want))
    for mine, true in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, true)
    slope = torch.func.grad(lambda v: call(x, y, h, v * gwf.IMQ(0.7)).square().sum())(w.detach())
    (true,) = torch.autograd.grad(call(x, y, h, kernel).square().sum(), w)
    torch.testing.assert_close(slope, true)


def test_printed_compared_and_stored():
    w = torch.tensor(0.25, requires_grad=True)
    kernel = w * gwf.Gaussian(1.0, length_scale=torch.ones(2)) - 2 * (w * gwf.IMQ(H))
    shown = "tensor(0.25) * Gaussian(1.0, length_scale=tensor of shape [2])"
    assert repr(kernel) == f"{shown} - 2.0 * (tensor(0.25) * IMQ(tensor of shape [3]))"
    assert repr(gwf.Gaussian(1.0, length_scale=None)) == "Gaussian(1.0)"
    assert w * gwf.IMQ(1.0) == w * gwf.IMQ(1.0)
    assert w * gwf.IMQ(1.0) != w.detach().clone().requires_grad_() * gwf.IMQ(1.0)
    assert len({kernel, copy.copy(kernel)}) == 1
    tensors = {}
    again = unpack(pack(kernel, tensors, "kernel"), tensors)
    x, y = sets()
    torch.testing.assert_close(again(x, y), kernel(x, y).detach())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: gwf.Gaussian(torch.tensor([1.0, -1.0])),
            ValueError,
            r"bandwidth must be positive numbers, .* -1\.\.1",
        ),
        (lambda: gwf.Gaussian(torch.tensor([1, 2])), ValueError, "bandwidth must be a float or a floating tensor"),
        (
            lambda: gwf.Gaussian(1.0, length_scale=cast(Any, 2.0)),
            TypeError,
            "length_scale must be a torch.Tensor, got float",
        ),
        (lambda: gwf.Gaussian(1.0, length_scale=torch.tensor(2.0)), ValueError, r"length_scale must have shape \[D\]"),
        (lambda: gwf.Gaussian(1.0, length_scale=torch.tensor([0.0])), ValueError, "length_scale must be positive"),
        (lambda: gwf.Gaussian(1.0, length_scale=torch.tensor([math.nan])), ValueError, "length_scale must be positive"),
        (lambda: gwf.Gaussian(H, length_scale=LENGTHS[:2]), ValueError, "bandwidths must go together"),
        (
            lambda: run(gwf.Gaussian(1.0, length_scale=H)),
            ValueError,
            "length_scale must have the dimension of x, D = 2",
        ),
        (lambda: run(gwf.Gaussian(H[:2])), ValueError, r"kernel must have the batch dimensions of x, \[3\]"),
        (
            lambda: gwf.mmd2(*sets(), kernel=gwf.Gaussian(H[:2])),
            ValueError,
            r"one for each problem of x, \[3\], got \[2\]",
        ),
        (lambda: torch.ones(2, requires_grad=True) * gwf.IMQ(1.0), TypeError, "unsupported operand"),
        (lambda: logarithm(torch.tensor(-1.0, dtype=F64, requires_grad=True)), ValueError, "kernel must be positive"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def run(kernel):
    return gwf.kernel_sum(*sets(), kernel=kernel)


def logarithm(w):
    return gwf.kernel_logsumexp(*sets(), kernel=w * gwf.Gaussian(1.0))
