"""Each public function under torch.func transforms, in inference mode and autocast, and with symbolic sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.compile_cases import TRACED
from tests.ops.mode_table import CASES, DOCS, EXCEPTIONS, documented

GENERATOR = torch.Generator().manual_seed(0)
X, Y, V = torch.randn(2, 6, 3, generator=GENERATOR), torch.randn(2, 7, 3, generator=GENERATOR) + 0.4, torch.randn(6, 3)
TOLERANCES: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-5}
QUICK = {"kernel_average", "sliced_wasserstein"}


def slope(f, x):
    """The gradient by autograd; zeros of what is a constant to it."""
    leaf = x.clone().requires_grad_()
    value = f(leaf)
    return torch.autograd.grad(value.sum(), leaf)[0] if value.requires_grad else torch.zeros_like(x)


def vmap(f):
    got = torch.func.vmap(f)(X, Y)
    torch.testing.assert_close(got, torch.stack([f(x, y) for x, y in zip(X, Y, strict=True)]), **TOLERANCES)
    got = torch.func.vmap(f, in_dims=(1, None))(X.transpose(0, 1), Y[0])
    torch.testing.assert_close(got, torch.stack([f(x, Y[0]) for x in X]), **TOLERANCES)


def grad(f):
    got = torch.func.grad(lambda x: f(x, Y[0]).sum())(X[0])
    torch.testing.assert_close(got, slope(lambda x: f(x, Y[0]), X[0]), **TOLERANCES)


def jvp(f):
    """The derivative along v of the sum is v times the gradient."""
    got = torch.func.jvp(lambda x: f(x, Y[0]).sum(), (X[0],), (V,))[1]
    want = (slope(lambda x: f(x, Y[0]), X[0]) * V).sum()
    # PyTorch widens the tangent of a number times a tensor without dimensions
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3, check_dtype=False)


def inference(f):
    want = f(X[0], Y[0]).detach()
    with torch.inference_mode():
        got = f(X[0].clone(), Y[0].clone())
    torch.testing.assert_close(got.clone(), want, **TOLERANCES)


def autocast(f):
    want = f(X[0], Y[0])
    with torch.autocast("cpu", torch.bfloat16):
        got = f(X[0], Y[0])
    if got.dtype is torch.bfloat16:
        torch.testing.assert_close(got.float(), want, rtol=3e-2, atol=3e-2)
    else:
        torch.testing.assert_close(got, want, **TOLERANCES)


RUN = {"vmap": vmap, "grad": grad, "jvp": jvp, "inference": inference, "autocast": autocast}


@pytest.mark.parametrize("mode", RUN)
@pytest.mark.parametrize("name", CASES)
def test_every_function(name, mode):
    """It works, or says in one line why not, as the table has it."""
    refusal = EXCEPTIONS.get((name, mode))
    if refusal is None or not refusal.words:
        RUN[mode](CASES[name])
        return
    with pytest.raises((ValueError, RuntimeError, TypeError), match=refusal.words) as caught:
        RUN[mode](CASES[name])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TRACED])
def test_symbolic_sizes(name):
    torch.compiler.reset()
    compiled = torch.compile(TRACED[name], fullgraph=True, dynamic=True, backend="eager")
    for n, m in ((6, 7), (9, 5)):
        x, y = torch.randn(n, 3, generator=GENERATOR), torch.randn(m, 3, generator=GENERATOR)
        torch.testing.assert_close(compiled(x, y), TRACED[name](x, y), **TOLERANCES)
    torch.compiler.reset()


def test_the_documentation_has_the_table():
    """``python -m tests.ops.mode_table`` writes it."""
    assert documented(DOCS.read_text()) == DOCS.read_text()
