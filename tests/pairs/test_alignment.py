"""Batch dimensions that broadcast, dtypes that are promoted, and results written into a tensor of the caller's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.pairs import alignment
from tests.cases import points

F64 = torch.float64
K = 0.5 * gwf.Gaussian(0.7) + gwf.Laplace(1.0)
REDUCTIONS: dict[str, Any] = {
    "kernel_sum": gwf.kernel_sum,
    "kernel_gradient": gwf.kernel_gradient,
    "kernel_logsumexp": gwf.kernel_logsumexp,
    "kernel_average": gwf.kernel_average,
}
BATCHES = [((), (2,)), ((2,), ()), ((3, 1), (2,)), ((1,), (3,)), ((3, 2), (2,)), ((3, 1, 1), (1, 2, 4)), ((0,), (1,))]


def call(name, x, y, w, **options):
    if name == "kernel_average":
        return gwf.kernel_average(x, y, None, w, kernel=K, **options)
    return REDUCTIONS[name](x, y, w, kernel=K, **options)


def sets(first, second, n=5, m=7, dim=2):
    x, y = points(n, m, dim, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    x = x + torch.randn(*first, 1, dim, dtype=F64, generator=generator)
    y = y + torch.randn(*second, 1, dim, dtype=F64, generator=generator)
    return x, y, torch.broadcast_shapes(first, second)


@pytest.mark.parametrize(("first", "second"), BATCHES)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_batch_dimensions_broadcast(name, first, second):
    x, y, batch = sets(first, second)
    full = x.expand(*batch, -1, -1).contiguous(), y.expand(*batch, -1, -1).contiguous()
    shapes = [(), second, batch, first]
    for shape in [None, *shapes]:
        w = None if shape is None else torch.rand(*shape, 7, dtype=F64, generator=torch.Generator().manual_seed(1))
        wide = None if w is None else w.expand(*batch, 7).contiguous()
        leaves = [t.clone().requires_grad_() for t in (x, y, *([] if w is None else [w]))]
        got = call(name, *leaves, *([None] if w is None else []))
        want = call(name, *full, wide)
        torch.testing.assert_close(got, want)
        others = [t.clone().requires_grad_() for t in (x, y, *([] if w is None else [w]))]
        expanded = [t.expand(*batch, *full[0].shape[-2:]) if i == 0 else t for i, t in enumerate(others)]
        expanded[1] = others[1].expand(*batch, -1, -1)
        if w is not None:
            expanded[2] = others[2].expand(*batch, -1)
        dense = call(name, *(t.contiguous() for t in expanded), *([None] if w is None else []))
        for a, b in zip(
            torch.autograd.grad(got.square().sum(), leaves),
            torch.autograd.grad(dense.square().sum(), others),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_channels_and_values():
    x, y, batch = sets((3, 1), (2,))
    full = x.expand(*batch, -1, -1), y.expand(*batch, -1, -1)
    w = torch.randn(1, 2, 7, 4, dtype=F64)
    want = gwf.kernel_sum(*full, w.expand(*batch, 7, 4).contiguous(), kernel=K)
    torch.testing.assert_close(gwf.kernel_sum(x, y, w, kernel=K), want)
    for values in (w, w[0], w[0, 0]):
        want = gwf.kernel_average(*full, values.expand(*batch, 7, 4).contiguous(), kernel=K)
        torch.testing.assert_close(gwf.kernel_average(x, y, values, kernel=K), want)


def test_ragged_lengths_and_neighbours():
    x, y, batch = sets((3, 1), (2,))
    full = x.expand(*batch, -1, -1).contiguous(), y.expand(*batch, -1, -1).contiguous()
    n, m = torch.tensor([[5], [2], [0]]), torch.tensor([7, 4])
    wide: dict[str, Any] = {"x_lengths": n.expand(batch).contiguous(), "y_lengths": m.expand(batch).contiguous()}
    for name in REDUCTIONS:
        torch.testing.assert_close(
            call(name, x, y, None, x_lengths=n, y_lengths=m), call(name, *full, None, **wide), rtol=1e-12, atol=0
        )
    ragged: tuple[dict[str, Any], ...] = ({}, {"x_lengths": n, "y_lengths": m})
    for options in ragged:
        got = gwf.kernel_min(x, y, k=2, **options)
        want = gwf.kernel_min(*full, k=2, **(wide if options else {}))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_shared_sources_are_not_copied(monkeypatch):
    """Problems that differ in their targets alone are rows of one."""
    x, y, _ = sets((50,), (), n=3)
    seen = []
    original = alignment._by_rows
    monkeypatch.setattr(
        alignment,
        "_by_rows",
        lambda call, *rest: original(lambda x, y, w: seen.append((x.shape, y.shape)) or call(x, y, w), *rest),
    )
    gwf.kernel_sum(x, y, kernel=K)
    assert seen == [((150, 2), (7, 2))]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_one_set_stays_one(name):
    """With weights for more problems; its own pairs have no slope."""
    x = points(6, 6, 2, dtype=F64)[0].requires_grad_()
    if name in ("kernel_sum", "kernel_gradient"):
        w = torch.rand(6, 3, dtype=F64).mT.contiguous()[:, :]
        got = call(name, x[None], x[None], w)
        want = torch.stack([call(name, x, x, each) for each in w])
    else:
        w = torch.rand(3, 6, dtype=F64)
        got = call(name, x, x, w)
        want = torch.stack([call(name, x, x, each) for each in w])
    torch.testing.assert_close(got, want)


DTYPES = (torch.float16, torch.bfloat16, torch.float32, F64)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_dtypes_are_promoted(name):
    x, y, _ = sets((2,), (2,))
    w = torch.rand(2, 7, dtype=F64)
    for a, b in itertools.product(DTYPES, repeat=2):
        wide = torch.promote_types(a, b)
        got = call(name, x.to(a), y.to(b), w.to(a))
        assert got.dtype == wide
        torch.testing.assert_close(got, call(name, x.to(a).to(wide), y.to(b).to(wide), w.to(a).to(wide)))
    got = call(name, x.float(), y.float(), w)
    assert got.dtype == F64
    assert gwf.kernel_min(x.float(), y).squared_distances.dtype == F64
    leaf = x.float().requires_grad_()
    (slope,) = torch.autograd.grad(call(name, leaf, y, w).sum(), leaf)
    assert slope.dtype == torch.float32


@pytest.mark.parametrize("name", REDUCTIONS)
def test_out(name):
    x, y, _ = sets((3, 1), (2,))
    for dtype, first, second in ((F64, x, y), (torch.float32, x[0, 0], y[0]), (torch.bfloat16, x[0, 0], y[0])):
        first, second = first.to(dtype), second.to(dtype)
        want = call(name, first, second, None)
        out = torch.full((2, *want.shape), torch.nan, dtype=dtype).movedim(0, -1).contiguous()[..., 0]
        assert call(name, first, second, None, out=out) is out
        assert torch.equal(out, want)
    with torch.inference_mode():
        assert torch.equal(call(name, x, y, None, out=torch.empty_like(call(name, x, y, None))), call(name, x, y, None))
    if name == "kernel_gradient":
        moved = x[0, 0].clone()
        want = gwf.kernel_gradient(moved, y[0], kernel=K)
        assert gwf.kernel_gradient(moved, y[0], kernel=K, out=moved) is moved
        assert torch.equal(moved, want)


def test_out_is_refused():
    x, y, _ = sets((), ())
    want = gwf.kernel_sum(x, y, kernel=K)
    refused: tuple[tuple[Any, type[Exception], str], ...] = (
        (torch.empty(4, dtype=F64), ValueError, r"out must be as the result, \[5\] torch.float64 on cpu, got \[4\]"),
        (torch.empty(5), ValueError, "out must be as the result, .* got .* torch.float32"),
        ([0.0] * 5, TypeError, "out must be a torch.Tensor, got list"),
    )
    for out, error, message in refused:
        with pytest.raises(error, match=message):
            gwf.kernel_sum(x, y, kernel=K, out=out)
    h = torch.tensor(1.0, requires_grad=True)
    leaf = x.clone().requires_grad_()
    for call_ in (
        lambda out: gwf.kernel_sum(leaf, y, kernel=K, out=out),
        lambda out: gwf.kernel_sum(x, y, kernel=gwf.Gaussian(h), out=out),
        lambda out: gwf.kernel_sum(x, y, kernel=h * gwf.Gaussian(1.0), out=out),
    ):
        with pytest.raises(ValueError, match="out must be None where a gradient is wanted"):
            call_(torch.empty_like(want))
        with torch.no_grad():
            call_(torch.empty_like(want))


X = torch.zeros(3, 5, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (X, X[:2]),
            ValueError,
            r"y must have the batch dimensions of x, \[3\], or such that broadcast .* \[2, 5, 2\]",
        ),
        ((X, X, torch.zeros(2, 5)), ValueError, r"weights must have shape \[3, 5\] or \[3, 5, C\] to go with y"),
        ((X, X, torch.zeros(4)), ValueError, r"weights must have shape \[3, 5\] or .* got \[4\]"),
        ((X, X, torch.zeros(5, 4)), ValueError, r"weights must have shape \[3, 5\] or .* got \[5, 4\]"),
        ((X, X, torch.zeros(1, 3, 5, 4)), ValueError, r"weights must have shape \[3, 5\] or .* got \[1, 3, 5, 4\]"),
        ((X, X[..., :1]), ValueError, "y must have the dimension of x, D = 2"),
        ((X[0], X[..., :1]), ValueError, "y must have the dimension of x, D = 2"),
        ((X, X.long()), TypeError, "y must have a floating dtype"),
        ((X, X, torch.zeros(3, 5, dtype=torch.long)), TypeError, "weights must have a floating dtype"),
        ((X, X, [1.0] * 5), TypeError, "weights must be a torch.Tensor, got list"),
    ],
)
def test_what_does_not_go_together(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        gwf.kernel_sum(*arguments, kernel=K)
    assert "\n" not in str(caught.value)


def test_values_and_sets_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"values must have shape \[\*B, M, C\] to go with y \[3, 5, 2\], got \[5\]"):
        gwf.kernel_average(X, X, torch.zeros(5), kernel=K)
    with pytest.raises(ValueError, match="exclude_self=True needs x and y to be the same set"):
        gwf.kernel_sum(X, X[0], kernel=K, exclude_self=True)
    with pytest.raises(ValueError, match=r"x_lengths must have the batch shape \[3\]"):
        gwf.kernel_sum(X, X[0], kernel=K, x_lengths=torch.tensor([1, 2]))
