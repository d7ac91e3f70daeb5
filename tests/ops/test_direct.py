"""The short way of a call: taken where it can be, and bit for bit the long one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import gwf_fast as gwf
from gwf_fast.kernels.cpp import direct as direct_cpp
from gwf_fast.ops import direct, dispatch
from tests.conftest import long_way

KERNEL = 0.5 * gwf.Gaussian(0.8) + gwf.Laplace(1.0)
_SCORE = direct.short_way("parzen_score", "average")
DIRECT: dict[str, Callable[..., Any]] = {
    "kernel_sum": direct.kernel_sum,
    "kernel_gradient": direct.kernel_gradient,
    "kernel_logsumexp": direct.kernel_logsumexp,
    "kernel_average": direct.kernel_average,
    "mmd2": direct.short_way("mmd2", "mmd"),
    "svgd_direction": direct.short_way("svgd_direction", "svgd"),
    "parzen_score": lambda x, y, h, **options: _SCORE(x, y, kernel=gwf.Gaussian(h), **options),
}
WEIGHTS = {"kernel_sum": "weights", "kernel_gradient": "weights", "kernel_logsumexp": "log_weights"}


def clouds(batch: tuple[int, ...], n: int, m: int, dim: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (n, dim), "y": (m, dim), "w": (m,), "v": (m, 3), "a": (n,)}
    return {
        name: torch.randn(*batch, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def calls(t: dict[str, Tensor]) -> dict[str, Callable[[Any], Tensor]]:
    """Usual calls, by what is called and how."""
    x, y, w, v, a = (t[name] for name in "xywva")
    k = {"kernel": KERNEL}
    found: dict[str, Callable[[Any], Tensor]] = {}
    for name, weights in WEIGHTS.items():
        found[name] = lambda f: f(x, y, **k)
        found[f"{name} weighted"] = lambda f, weights=weights: f(x, y, **{weights: w}, **k)  # type: ignore[misc]
        found[f"{name} alone"] = lambda f: f(x, x.clone(), exclude_self=True, **k)
        found[f"{name} own"] = lambda f: f(x, x, kernel=KERNEL, backend="cpp")
    found["kernel_sum channels"] = lambda f: f(x, y, v, method="exact", backend=None, **k)
    found["kernel_average"] = lambda f: f(x, y, **k)
    found["kernel_average values"] = lambda f: f(x, y, v, w, **k)
    found["kernel_average alone"] = lambda f: f(x, x, exclude_self=True, log_weights=a, **k)
    found["mmd2"] = lambda f: f(x, y, **k)
    found["mmd2 weighted"] = lambda f: f(x, y, x_weights=a, y_weights=w, unbiased=True, **k)
    found["svgd_direction"] = lambda f: f(x, -2 * x, kernel=gwf.Gaussian(0.7))
    found["parzen_score"] = lambda f: f(x, y, 0.7)
    found["parzen_score far"] = lambda f: f(x + 1e4, y + 1e4, 3, backend="cpp")
    found["parzen_score alone"] = lambda f: f(x, x, 0.7, exclude_self=True)
    return found


NAMES = list(calls(clouds((), 2, 2, 1, torch.float32)))
NEEDS_OPERATORS = {name for name in NAMES if name.startswith("kernel_average")} | {
    "kernel_sum own",
    "kernel_gradient own",
}
"""Calls that take the long way where a graph is wanted."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [((3,), 2, 6, 1), ((), 140, 70, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_the_short_way_is_the_long_one(name, size, dtype):
    batch, n, m, dim = size
    function = getattr(gwf, name.split()[0])
    layouts = [lambda t: t, lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1)]  # as it comes, and transposed
    for layout in layouts:
        t = {key: layout(value) for key, value in clouds(batch, n, m, dim, dtype).items()}
        call = calls(t)[name]
        got, taken = call(function), call(DIRECT[name.split()[0]])
        with long_way():
            want = call(function)
        assert got.shape == want.shape and torch.equal(got, want)
        one_set = name.endswith((" own", "average alone", "score alone"))  # transposed, it is copied for each side
        assert one_set or (taken is not None and torch.equal(taken, want))


@pytest.mark.parametrize("wanted", ["x", "y", "xyw", "va"])
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("svgd", "parzen"))])
def test_derivatives_are_the_same(name, wanted):
    function = getattr(gwf, name.split()[0])
    t = clouds(() if wanted == "x" else (2,), 6, 5, 2, torch.float64)
    leaves = [t[key].requires_grad_() for key in wanted]

    def derivatives() -> list[Tensor | None]:
        out = calls(t)[name](function)
        if not out.requires_grad:
            return [out]
        u = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
        first = torch.autograd.grad(out, leaves, u, retain_graph=True, allow_unused=True)
        summed = torch.autograd.grad(out.sum(), leaves, create_graph=True, allow_unused=True)  # cotangents that expand
        total: Any = sum(g.square().sum() for g in summed if g is not None)
        second = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else ()
        return [out, *first, *summed, *second]

    got = derivatives()
    with long_way():
        want = derivatives()
    for g, w in zip(got, want, strict=True):
        assert (g is None and w is None) or torch.equal(g, w)
    if name not in NEEDS_OPERATORS and got[0].requires_grad:
        assert "Direct" in type(got[0].grad_fn).__name__


@contextlib.contextmanager
def _forward_mode() -> Iterator[None]:
    with forward_ad.dual_level():
        yield


class _Quiet(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class _Subclass(Tensor):
    pass


X, Y = (torch.randn(n, 2, generator=torch.Generator().manual_seed(n)) for n in (5, 7))
UNUSUAL: dict[str, Callable[[], Any]] = {
    "a method": lambda: DIRECT["kernel_sum"](X, Y, kernel=KERNEL, method="nufft"),
    "a backend": lambda: DIRECT["kernel_sum"](X, Y, kernel=KERNEL, backend="torch"),
    "ragged sets": lambda: DIRECT["kernel_sum"](X[None], Y[None], kernel=KERNEL, y_lengths=torch.tensor([3])),
    "a bandwidth that is a tensor": lambda: DIRECT["kernel_sum"](X, Y, kernel=gwf.Gaussian(torch.tensor(1.0))),
    "no kernel": lambda: DIRECT["kernel_sum"](X, Y),
    "something else as kernel": lambda: DIRECT["kernel_sum"](X, Y, kernel="gaussian"),
    "a kernel without a logarithm": lambda: DIRECT["kernel_logsumexp"](X, Y, kernel=-KERNEL),
    "an unknown argument": lambda: DIRECT["kernel_sum"](X, Y, kernel=KERNEL, kernels=KERNEL),
    "an argument twice": lambda: DIRECT["kernel_sum"](X, Y, None, weights=None, kernel=KERNEL),
    "too many arguments": lambda: DIRECT["kernel_sum"](X, Y, None, KERNEL),
    "one set": lambda: DIRECT["kernel_sum"](X, kernel=KERNEL),
    "a flag that is none": lambda: DIRECT["kernel_sum"](X, X, kernel=KERNEL, exclude_self=1),
    "sets of different sizes": lambda: DIRECT["kernel_sum"](X, Y, kernel=KERNEL, exclude_self=True),
    "other dimensions": lambda: DIRECT["kernel_sum"](X, Y[:, :1], kernel=KERNEL),
    "another type": lambda: DIRECT["kernel_sum"](X, Y.double(), kernel=KERNEL),
    "halves": lambda: DIRECT["kernel_sum"](X.half(), Y.half(), kernel=KERNEL),
    "two batch dimensions": lambda: DIRECT["kernel_sum"](X[None, None], Y[None, None], kernel=KERNEL),
    "weights of another shape": lambda: DIRECT["kernel_sum"](X, Y, torch.ones(6), kernel=KERNEL),
    "no channels": lambda: DIRECT["kernel_sum"](X, Y, torch.ones(7, 0), kernel=KERNEL),
    "nothing to average": lambda: DIRECT["kernel_average"](X, Y[:0], kernel=KERNEL),
    "no array": lambda: DIRECT["kernel_sum"](X.numpy(), Y, kernel=KERNEL),
    "a subclass": lambda: DIRECT["kernel_sum"](X.as_subclass(_Subclass), Y, kernel=KERNEL),
    "a sparse tensor": lambda: DIRECT["kernel_sum"](X.to_sparse(), Y, kernel=KERNEL),
    "a meta tensor": lambda: DIRECT["kernel_sum"](X.to("meta"), Y, kernel=KERNEL),
    "a negated view": lambda: DIRECT["kernel_sum"](X, torch._neg_view(Y), kernel=KERNEL),
    "an empty set of a mean": lambda: DIRECT["mmd2"](X, Y[:0], kernel=KERNEL),
    "a point of its own": lambda: DIRECT["mmd2"](X, Y[:1], kernel=KERNEL, unbiased=True),
}
MODES: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "forward mode": _forward_mode,
    "a dispatch mode": _Quiet,
    "a function mode": lambda: torch.device("cpu"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_goes_the_long_way(name):
    assert UNUSUAL[name]() is None


@pytest.mark.parametrize("name", MODES)
def test_modes_go_the_long_way(name):
    with MODES[name]():
        assert DIRECT["kernel_sum"](X, Y, kernel=KERNEL) is None
    assert DIRECT["kernel_sum"](X, Y, kernel=KERNEL) is not None


def test_transforms_go_the_long_way():
    seen = []
    torch.func.vmap(lambda x: seen.append(DIRECT["kernel_sum"](x, Y, kernel=KERNEL)) or x)(X[None])
    torch.func.grad(lambda x: seen.append(DIRECT["kernel_sum"](x, Y, kernel=KERNEL)) or x.sum())(X)
    assert seen == [None, None]
    x = X.clone().requires_grad_()
    out = gwf.kernel_sum(x, Y, kernel=KERNEL)
    (rows,) = torch.autograd.grad(out, x, torch.eye(len(X)), is_grads_batched=True)  # the backward pass under vmap
    torch.testing.assert_close(rows.sum(0), torch.autograd.grad(gwf.kernel_sum(x, Y, kernel=KERNEL).sum(), x)[0])


def test_the_table_decides(monkeypatch):
    """Once for each type; a backend that is broken is an error there too."""
    asked = []

    def resolve(requested, device, dtype, formula=False, operation=None, dim=None):
        asked.append((dtype, operation))
        return "cpp" if dtype == torch.float32 else "torch"

    monkeypatch.setattr(dispatch, "resolve", resolve)
    function = direct.short_way("kernel_sum", "sum")
    for _ in range(2):
        assert function(X, Y, kernel=KERNEL) is not None
        assert function(X.double(), Y.double(), kernel=KERNEL) is None
    assert asked == [(torch.float32, "sum"), (torch.float64, "sum")]

    def fail(name):
        raise ImportError("build it first")

    monkeypatch.setattr(dispatch, "load", fail)
    with pytest.raises(ImportError, match="build it first"):
        direct.short_way("kernel_sum", "sum")(X, Y, kernel=KERNEL)


def test_empty_sets():
    for x, y in ((X[:0], Y), (X, Y[:0]), (X[:0], Y[:0])):
        for name in WEIGHTS:
            got = getattr(gwf, name)(x, y, kernel=KERNEL)
            with long_way():
                assert torch.equal(got, getattr(gwf, name)(x, y, kernel=KERNEL))


def test_many_kernels_are_told_apart():
    kernels = [gwf.Gaussian(0.5 + 0.01 * i) for i in range(300)]
    for _ in range(2):
        for kernel in kernels:
            got = gwf.kernel_sum(X, Y, kernel=kernel)
            with long_way():
                assert torch.equal(got, gwf.kernel_sum(X, Y, kernel=kernel))


def test_what_is_saved_is_watched():
    """Changing a tensor in place before the backward pass is an error, and hooks of saved tensors are asked."""
    x = X.clone().requires_grad_()
    y = Y.clone()
    for function in (gwf.kernel_sum, gwf.kernel_gradient, gwf.kernel_logsumexp, gwf.mmd2):
        out = function(x, y, kernel=KERNEL).sum()
        y.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        gwf.kernel_sum(x, Y, kernel=KERNEL)
    assert packed == [X.shape, Y.shape]


def test_graphs_are_not_kept_by_results():
    import weakref

    x = X.clone().requires_grad_()
    for function in (gwf.kernel_sum, gwf.kernel_gradient, gwf.kernel_logsumexp, gwf.mmd2):
        out = function(x, Y, kernel=KERNEL)
        watched = weakref.ref(out)
        del out
        assert watched() is None  # at once: there is no cycle


def test_scaled():
    values = torch.arange(12.0).view(2, 3, 2)
    one, each = torch.tensor(2.0), torch.tensor([1.0, -1.0])
    for factor in (one, each, one.expand(2)):
        got = direct_cpp.scaled(factor, values, None)
        want = factor.view(-1, 1, 1) * values if factor.ndim else factor * values
        assert torch.equal(got[0], want) and got[1] is None
    assert direct_cpp.scaled(torch.ones(3), values) is None
    assert direct_cpp.scaled(torch.ones(2).double(), values) is None
