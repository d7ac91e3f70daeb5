"""torch.compile(fullgraph=True) of every public function: cold, at a second size, forwards and backwards."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.ops import dispatch
from tests.ops.compile_cases import EXCEPTED, NO_TENSORS, TRACED

DOCS = Path(__file__).resolve().parents[2] / "docs" / "torch_compile.md"
QUICK = {
    "kernel_sum", "kernel_average", "kernel_average, exclude_self", "parzen_score", "mmd2, unbiased", "drift.parzen_kl",
    "sinkhorn", "sinkhorn_divergence", "sliced_wasserstein2", "drift.gmd", "nn.MLP", "nn.critic_objective",
}  # fmt: skip
# a second size makes the first symbolic, a third needs no other graph; ones and twos are specialised
SIZES = ((20, 30), (25, 34), (7, 9))


# PyTorch's own, while it traces an autograd.Function
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _cold():
    torch.compiler.reset()
    for cache in (dispatch._RESOLVED, dispatch._FUNCTIONS):
        cache.clear()
    yield
    torch.compiler.reset()


def call(f, n, m):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 3, generator=generator).requires_grad_()
    y = torch.randn(m, 3, generator=generator) + 0.3
    out = f(x, y)
    return out.detach(), torch.autograd.grad(out.sum(), x)[0] if out.requires_grad else None


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TRACED])
def test_traced(name):
    compiled = torch.compile(TRACED[name], fullgraph=True, backend="aot_eager")
    for n, m in SIZES:
        (value, gradient), (expected, expected_gradient) = call(compiled, n, m), call(TRACED[name], n, m)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
        assert (gradient is None) == (expected_gradient is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", EXCEPTED)
def test_excepted(name):
    """No graph in one piece: when that changes, the table in the docs is to say so."""
    with pytest.raises(Exception, match=r"torch|Unsupported|trace|graph") as caught:  # of many of dynamo's own classes
        call(torch.compile(EXCEPTED[name], fullgraph=True, backend="aot_eager"), *SIZES[0])
    assert type(caught.value).__module__.startswith("torch")
    assert call(EXCEPTED[name], *SIZES[0])[0].isfinite().all()


def test_in_a_new_process():
    """Nothing is loaded or decided yet."""
    code = (
        "import torch, gwf_fast as gwf\n"
        "f = torch.compile(lambda x, y: gwf.drift.parzen_kl(x, y, 0.7), fullgraph=True, backend='aot_eager')\n"
        "for n in (20, 25): print(f(torch.ones(n, 2), torch.zeros(9, 2)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == ["torch.Size([20, 2])", "torch.Size([25, 2])"], done.stderr


def test_every_public_function_is_decided_and_documented():
    public = {name for name in gwf.__all__ if inspect.isfunction(getattr(gwf, name))}
    public |= {f"drift.{name}" for name in gwf.drift.__all__ if inspect.isfunction(getattr(gwf.drift, name))}
    decided = {name.split(",")[0] for name in TRACED} | {name.split(",")[0] for name in EXCEPTED} | NO_TENSORS
    assert public - decided == set()
    yes, no = DOCS.read_text().split("## What does not")
    for names, text in ((TRACED, yes), (EXCEPTED, no)):
        documented = set(re.findall(r"`([\w.]+)", text))
        assert {name.split(",")[0] for name in names} - documented == set()
