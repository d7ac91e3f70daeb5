"""Every backend against dense float64 closed forms, on ragged sizes, far clouds, coincident points and empty sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.ops import dispatch
from tests.cases import DIMENSIONS, KERNELS, POSITIVE, TOLERANCE, backends, dense, error, points, why_not

BACKENDS = backends()
DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("backend", dispatch.BACKENDS)
def test_backend_is_tested(backend):
    if why_not(backend) is not None:
        pytest.skip(f"backend {backend}: {why_not(backend)}")
    assert backend in BACKENDS


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("shift", [0.0, 1e3])
@pytest.mark.parametrize("dim", DIMENSIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions_match_closed_forms(backend, dim, shift, dtype):
    x, y = points(dim=dim, dtype=dtype, shift=shift)
    generator = torch.Generator().manual_seed(dim)
    w = torch.rand(y.shape[0], 3, generator=generator, dtype=dtype) + 0.1
    log_w = w[:, 0].log()
    for name, case in KERNELS.items():
        k, slope = dense(case, x, y)
        got = gwf.kernel_sum(x, y, w, kernel=case.kernel, backend=backend)
        assert error(got, k @ w.double()) < TOLERANCE["value", dtype], name
        got = gwf.kernel_sum(x, y, kernel=case.kernel, backend=backend)
        assert error(got, k.sum(-1)) < TOLERANCE["value", dtype], name
        got = gwf.kernel_gradient(x, y, w[:, 0], kernel=case.kernel, backend=backend)
        assert error(got, torch.einsum("nmd,m->nd", slope, w[:, 0].double())) < TOLERANCE["gradient", dtype], name
        if name in POSITIVE:
            p = k * log_w.double().exp()
            got = gwf.kernel_logsumexp(x, y, log_w, kernel=case.kernel, backend=backend)
            assert (got - p.sum(-1).log()).abs().max() < 5 * TOLERANCE["value", dtype], name
            values = w if shift else None  # the mean shift itself is 1e3, where an error would not show
            got = gwf.kernel_average(x, y, values, log_w, kernel=case.kernel, backend=backend)
            want = p @ (y if values is None else w).double() / p.sum(-1, keepdim=True)
            assert error(got, want) < 5 * TOLERANCE["value", dtype], name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KERNELS)
def test_self_terms(backend, name):
    case = KERNELS[name]
    x, _ = points(dim=3, dtype=torch.float64)
    k, slope = dense(case, x, x)
    off = 1 - torch.eye(x.shape[0], dtype=x.dtype)
    for exclude in (False, True):
        kept = off if exclude else torch.ones_like(off)
        got = gwf.kernel_sum(x, x, kernel=case.kernel, exclude_self=exclude, backend=backend)
        assert error(got, (k * kept).sum(-1)) < TOLERANCE["value", torch.float64]
        got = gwf.kernel_gradient(x, x, kernel=case.kernel, exclude_self=exclude, backend=backend)
        assert error(got, (slope * kept[..., None]).sum(1)) < TOLERANCE["gradient", torch.float64]
        if name in POSITIVE:
            got = gwf.kernel_logsumexp(x, x, kernel=case.kernel, exclude_self=exclude, backend=backend)
            assert error(got, (k * kept).sum(-1).log()) < TOLERANCE["value", torch.float64]


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_and_ragged_lengths(backend):
    x, y = points(7, 11, 2, dtype=torch.float64, batch=(2, 3))
    w = torch.rand(2, 3, 11, dtype=torch.float64)
    x_lengths = torch.tensor([[7, 0, 3], [1, 5, 7]])
    y_lengths = torch.tensor([[11, 4, 1], [2, 3, 10]])
    for i in range(2):
        for j in range(3):  # what lies beyond the lengths must not matter, whatever it is
            x[i, j, x_lengths[i, j] :] = torch.nan
            y[i, j, y_lengths[i, j] :] = torch.nan
            w[i, j, y_lengths[i, j] :] = torch.nan
    kernel = KERNELS["mixture"].kernel
    ragged = {"kernel": kernel, "x_lengths": x_lengths, "y_lengths": y_lengths, "backend": backend}
    sums = gwf.kernel_sum(x, y, w, **ragged)
    slopes = gwf.kernel_gradient(x, y, w, **ragged)
    totals = gwf.kernel_logsumexp(x, y, w.log(), **ragged)
    means = gwf.kernel_average(x, y, None, w.log(), **ragged)
    for i in range(2):
        for j in range(3):
            n, m = int(x_lengths[i, j]), int(y_lengths[i, j])
            one = (x[i, j, :n], y[i, j, :m], w[i, j, :m])
            plain = {"kernel": kernel, "backend": backend}
            torch.testing.assert_close(sums[i, j, :n], gwf.kernel_sum(*one, **plain))
            torch.testing.assert_close(slopes[i, j, :n], gwf.kernel_gradient(*one, **plain))
            torch.testing.assert_close(totals[i, j, :n], gwf.kernel_logsumexp(*one[:2], one[2].log(), **plain))
            torch.testing.assert_close(means[i, j, :n], gwf.kernel_average(*one[:2], None, one[2].log(), **plain))
            assert (sums[i, j, n:] == 0).all()
            assert (slopes[i, j, n:] == 0).all()
            assert (means[i, j, n:] == 0).all()
            assert (totals[i, j, n:] == -torch.inf).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0), (1, 1), (1, 5), (5, 1)])
def test_empty_and_single_sets(backend, n, m):
    x, y = points(n, m, 2, dtype=torch.float64)
    case = KERNELS["gaussian"]
    k, slope = dense(case, x, y)
    options = {"kernel": case.kernel, "backend": backend}
    torch.testing.assert_close(gwf.kernel_sum(x, y, **options), k.sum(-1))
    torch.testing.assert_close(gwf.kernel_gradient(x, y, **options), slope.sum(1))
    torch.testing.assert_close(gwf.kernel_logsumexp(x, y, **options), k.sum(-1).log())
    if n == 0 or m > 0:
        assert gwf.kernel_average(x, y, **options).shape == (n, 2)
        if m == 1:
            torch.testing.assert_close(gwf.kernel_average(x, y, **options), y.expand(n, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_log_domain_far_from_the_data(backend, name, dtype):
    """Where every k underflows, the logarithm and the average are still right."""
    x, y = points(5, 40, 3, dtype=dtype)
    x = x + 2000.0
    case = KERNELS[name]
    exact = case.kernel(x.double(), y.double())
    distance = (x.double()[:, None] - y.double()).norm(dim=-1)
    nearest = distance.argmin(-1)
    total = gwf.kernel_logsumexp(x, y, kernel=case.kernel, backend=backend)
    mean = gwf.kernel_average(x, y, kernel=case.kernel, backend=backend)
    assert total.isfinite().all()
    assert mean.isfinite().all()
    if name == "gaussian":
        want = (-(distance**2) / (2 * 0.8**2)).logsumexp(-1)
        assert error(total, want) < TOLERANCE["value", dtype]
        assert error(mean, y[nearest].double()) < 1e-2
    elif name == "laplace":
        assert error(total, (-distance / 0.8).logsumexp(-1)) < TOLERANCE["value", dtype]
    elif (exact > 0).all():
        assert error(total, exact.sum(-1).log()) < TOLERANCE["value", dtype]


def _energy(x, y, a, b, *, case, alpha, beta):
    """E of the operator pair_jet, dense, from the closed form."""
    k = case.value((x[:, :, None] - y[:, None]).norm(dim=-1))
    return (torch.exp(alpha[:, :, None] + beta[:, None]) * (a @ b.mT) * k).sum()


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KERNELS)
def test_jets_match_dense_autograd(backend, name, order):
    torch.manual_seed(order)
    case = KERNELS[name]
    b_, n, m, d, c = 2, 9, 13, 3, 2
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    x, y, a, b = make(b_, n, d), make(b_, m, d), make(b_, n, c), make(b_, m, c)
    scales = (make(b_, n), make(b_, m)) if name in POSITIVE else (None, None)
    tangents: list[Any] = [(make(b_, n, d), make(b_, m, d), make(b_, n, c), make(b_, m, c)) for _ in range(order)]
    if order:  # a missing part is a zero part
        tangents[0] = (tangents[0][0], None, tangents[0][2], None)
    alpha, beta = (torch.zeros(1, 1, dtype=torch.float64).expand(b_, n), torch.zeros(b_, m, dtype=torch.float64))
    alpha, beta = (alpha, beta) if scales[0] is None else scales

    inputs = [v.requires_grad_() for v in (x, y, a, b)]
    scalar = _energy(*inputs, case=case, alpha=alpha, beta=beta)
    for tangent in tangents:
        grads = torch.autograd.grad(scalar, inputs, create_graph=True)
        scalar = sum((g * t).sum() for g, t in zip(grads, tangent, strict=True) if t is not None)
    want_x, _, want_a, _ = torch.autograd.grad(scalar, inputs)
    x, y, a, b = (v.detach() for v in inputs)
    got_x, got_a = dispatch.load(backend).pair_jet(x, y, a, b, *scales, tangents, case.kernel.spec)
    assert error(got_x, want_x) < TOLERANCE["jet", torch.float64]
    assert error(got_a, want_a) < TOLERANCE["jet", torch.float64]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pair_that_is_not_finite_touches_its_row_only(backend):
    x, y = points(6, 8, 2, dtype=torch.float64)
    x[2, 0] = torch.nan
    out = gwf.kernel_sum(x, y, kernel=gwf.Gaussian(1.0), backend=backend)
    assert out.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_bandwidth_has_the_values_of_a_float(backend):
    x, y = points(9, 12, 3, dtype=torch.float64, shift=5.0)
    w = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1

    def reductions(h):
        options = {"kernel": 0.5 * gwf.Gaussian(h) + gwf.Laplace(2.0), "backend": backend}
        yield gwf.kernel_sum(x, y, w, **options)
        yield gwf.kernel_gradient(x, y, w, **options)
        yield gwf.kernel_logsumexp(x, y, w.log(), **options)
        yield gwf.kernel_average(x, y, None, w.log(), **options)

    for got, want in zip(reductions(torch.tensor(0.8, dtype=torch.float64)), reductions(0.8), strict=True):
        torch.testing.assert_close(got, want)
