"""The operators as PyTorch sees them: opcheck, torch.compile, torch.func, dispatch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import gwf_fast as gwf
from gwf_fast import ops
from tests.cases import backends

BACKENDS = backends()
# torch.func.jvp compiles TorchScript inside PyTorch, which warns of it.
uses_jvp = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
KERNEL = 0.5 * gwf.Gaussian(0.8) + gwf.Laplace(1.0)


def _inputs(*batch: int, requires_grad: bool = True) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 2), (4, 2), (4,))
    tensors = (torch.randn(*batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return tuple(t.requires_grad_(requires_grad) for t in tensors)


def _everything(x, y, w, backend=None):
    """One scalar that all four reductions have a part in."""
    options = {"kernel": KERNEL, "backend": backend}
    return (
        gwf.kernel_sum(x, y, w, **options).pow(2).sum()
        + gwf.kernel_gradient(x, y, w, **options).pow(2).sum()
        + gwf.kernel_logsumexp(x, y, w, **options).sum()
        + gwf.kernel_average(x, y, None, w, **options).pow(2).sum()
    )


@pytest.mark.parametrize("name", ["pair_sum", "pair_gradient", "pair_sum_gradient", "pair_logsumexp", "pair_average"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_reductions(backend, name):
    x, y, w = _inputs(2)
    w = w.detach()
    tensors = (x, y, None, w.requires_grad_()) if name == "pair_average" else (x, y, w.requires_grad_())
    lengths = (torch.tensor([5, 2]), torch.tensor([3, 4]))
    for rest in ((False, None, None), (False, *lengths)):
        torch.library.opcheck(getattr(torch.ops.gwf_fast, name).default, (*tensors, list(KERNEL.spec), *rest, backend))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_jet(backend, order):
    x, y, w = _inputs(2)
    a = torch.randn(2, 5, 1, dtype=torch.float64, requires_grad=True)
    t1 = (torch.randn_like(x).requires_grad_(), None, None, torch.randn(2, 4, 1, dtype=torch.float64))
    directions = (*(t1 if order else (None,) * 4), *(None,) * 4)
    arguments = (x, y, a, w[..., None].detach(), None, None, *directions, order)
    torch.library.opcheck(
        torch.ops.gwf_fast.pair_jet.default, (*arguments, list(KERNEL.spec), False, None, None, backend)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_fullgraph(backend):
    x, y, w = _inputs()
    want = torch.autograd.grad(_everything(x, y, w, backend), (x, y, w))
    torch.compiler.reset()
    compiled = torch.compile(lambda x, y, w: _everything(x, y, w, backend), fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, y, w), (x, y, w))
    for g, e in zip(got, want, strict=True):
        torch.testing.assert_close(g, e)


def test_compile_with_a_learned_bandwidth():
    x, y, _ = _inputs()
    h = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def f(x, y, h):
        kernel = gwf.Gaussian(h) + gwf.IMQ(1.0)
        return gwf.kernel_average(x, y, kernel=kernel).sum() + gwf.mmd2(x, y, kernel=kernel)

    want = torch.autograd.grad(f(x, y, h), (x, y, h))
    torch.compiler.reset()
    got = torch.autograd.grad(torch.compile(f, fullgraph=True, backend="aot_eager")(x, y, h), (x, y, h))
    for g, e in zip(got, want, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap(backend):
    xs, ys, ws = _inputs(3, requires_grad=False)

    def f(x, y, w):
        return gwf.kernel_sum(x, y, w, kernel=KERNEL, backend=backend)

    want = torch.stack([f(*one) for one in zip(xs, ys, ws, strict=True)])
    torch.testing.assert_close(torch.func.vmap(f)(xs, ys, ws), want)
    torch.testing.assert_close(
        torch.func.vmap(f, (1, 0, None))(xs.movedim(0, 1), ys, ws[0]),
        torch.stack([f(x, y, ws[0]) for x, y in zip(xs, ys, strict=True)]),
    )
    operator = torch.ops.gwf_fast.pair_gradient  # the library operator itself has the rule too
    got = torch.func.vmap(lambda x: operator(x[None], ys[:1], None, list(KERNEL.spec), False, None, None, backend))(xs)
    torch.testing.assert_close(got[:, 0], torch.stack([gwf.kernel_gradient(x, ys[0], kernel=KERNEL) for x in xs]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_func(backend):
    x, y, w = _inputs(requires_grad=False)

    def f(x, y, w):
        return _everything(x, y, w, backend)

    leaves = [t.clone().requires_grad_() for t in (x, y, w)]
    want = torch.autograd.grad(f(*leaves), leaves)
    for got, expected in zip(torch.func.grad(f, (0, 1, 2))(x, y, w), want, strict=True):
        torch.testing.assert_close(got, expected)
    xs = torch.stack([x, 2 * x])
    got = torch.func.vmap(torch.func.grad(f), (0, None, None))(xs, y, w)
    torch.testing.assert_close(got, torch.stack([torch.func.grad(f)(one, y, w) for one in xs]))


@uses_jvp
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_hessians_agree(argument):
    inputs = _inputs(requires_grad=False)

    def f(v):
        x, y, w = (v if k == argument else other for k, other in enumerate(inputs))
        return _everything(x, y, w)

    want = torch.autograd.functional.hessian(f, inputs[argument])
    for hessian in (
        torch.func.hessian(f),
        torch.func.jacrev(torch.func.jacrev(f)),
        torch.func.jacrev(torch.func.jacfwd(f)),
    ):
        torch.testing.assert_close(hessian(inputs[argument]), want)


@uses_jvp
def test_forward_mode():
    x, y, w = _inputs()
    for f in (gwf.kernel_sum, gwf.kernel_gradient, gwf.kernel_logsumexp):
        assert torch.autograd.gradcheck(lambda *a: f(*a, kernel=KERNEL), (x, y, w), check_forward_ad=True)  # noqa: B023
    assert torch.autograd.gradcheck(
        lambda x, y, w: gwf.kernel_average(x, y, None, w, kernel=KERNEL), (x, y, w), check_forward_ad=True
    )


@uses_jvp
def test_forward_over_forward_is_refused():
    x, y, _ = _inputs(requires_grad=False)
    f = torch.func.jacfwd(torch.func.jacfwd(lambda x: gwf.kernel_sum(x, y, kernel=KERNEL)))
    with pytest.raises(NotImplementedError, match="jacfwd of jacrev"):
        f(x)


def test_a_broken_backend_is_an_error_not_a_fallback(monkeypatch, the_long_way):
    def fail(name):
        raise ImportError(f"{name}: build the extension first")

    monkeypatch.setattr(ops.dispatch, "_LOADED", {})
    monkeypatch.setattr(ops.dispatch, "_FUNCTIONS", {})
    monkeypatch.setattr(ops.dispatch.importlib, "import_module", fail)
    x, y, _ = _inputs(requires_grad=False)
    with pytest.raises(ImportError, match="build the extension first"):
        gwf.kernel_sum(x, y, kernel=KERNEL)
    assert "available" not in gwf.backends().values()


def test_explain():
    x, y, _ = _inputs(requires_grad=False)
    text = gwf.explain(gwf.kernel_sum, x, y, kernel=KERNEL, backend="torch")
    assert text.startswith("kernel_sum on cpu, torch.float64: torch (asked for)")
    assert "cuda: serves cuda tensors, not cpu" in text
    with pytest.raises(TypeError, match="no tensor"):
        gwf.explain(gwf.kernel_sum)


def test_import_is_light():
    """Importing the package loads neither SymPy nor a backend, and prints nothing."""
    code = (
        "import sys, torch; before = set(sys.modules); import gwf_fast;"
        " heavy = {'sympy', 'triton', 'pykeops', 'matplotlib', 'scipy', 'gwf_fast.kernels.reference.pairs'};"
        " print(sorted(heavy & (set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert run.stderr == ""
