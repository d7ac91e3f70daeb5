"""Other ways to compute the same on a GPU, as their own users would write them."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.gpu import keops_kernel
from bench.peers import keops as keops_on_cpu
from bench.problem import Problem
from bench.registry import OURS, Contender, Result

ENTRIES = 2**28
"""Numbers of the largest matrix that dense PyTorch makes: 1 GiB in float32."""


class WithCheck:
    """A contender whose result is checked on a part of its input, since the truth of all of it would take too long."""

    def __init__(self, call: Contender, check: Contender) -> None:
        self._call, self.check = call, check

    def __call__(self) -> Result:
        """The call that is timed."""
        return self._call()


def keops(operation: str, problem: Problem, rows: Tensor) -> Contender:
    """KeOps on the device of the problem; its kernels alone where its own binding can't load them."""
    if problem.x.device.type != "cuda" or int((torch.version.cuda or "0").partition(".")[0]) < 13:
        return keops_on_cpu.reduction(f"kernel_{operation}", problem)
    return keops_kernel.Reduction(operation, problem, rows)


def dense(operation: str, problem: Problem, is_compiled: bool) -> Contender:
    """Whole matrices of as many rows as fit, by the product form where D > 4; eager, or through torch.compile."""
    x, y, w, g = problem.x, problem.y, problem.weights, problem.g
    if operation != "sum" or problem.kernel != "Gaussian":
        raise ValueError(f"bench: dense PyTorch is written for Gaussian sums, not {operation} of {problem.kernel}")
    dim = x.shape[1]

    def by_product(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        r2 = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * (x @ y.T)
        return torch.exp(-g * r2) @ w

    def by_differences(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        r2 = sum(((x[:, None, d] - y[None, :, d]).square() for d in range(dim)), start=x.new_zeros(()))
        return (torch.exp(-g * r2) * w).sum(1)  # one loop where it is compiled

    fused = is_compiled and dim <= 4
    function = by_differences if fused else by_product
    if is_compiled:
        function = torch.compile(function, dynamic=False)
    rows = len(x) if fused else max(1, ENTRIES // len(y))
    while len(x) % rows:
        rows -= 1  # equal parts: another size would be compiled for itself

    def call() -> Result:
        with torch.no_grad():
            return (torch.cat([function(part, y, w) for part in x.split(rows)]),)

    return call


def attention(problem: Problem) -> Contender:
    """A Gaussian average as one head of attention, with the squared norms of the keys as one more coordinate."""
    x, y, h = problem.x, problem.y, problem.bandwidth
    pad = -(x.shape[1] + 1) % 8  # the fused kernels want a multiple of 8
    q = torch.cat([x, torch.ones_like(x[:, :1]), x.new_zeros(len(x), pad)], 1)[None, None]
    k = torch.cat([y, -0.5 * y.square().sum(1, keepdim=True), y.new_zeros(len(y), pad)], 1)[None, None]
    v = torch.cat([y, y.new_zeros(len(y), pad + 1)], 1)[None, None]

    def call() -> Result:
        with torch.no_grad():
            return (scaled_dot_product_attention(q, k, v, scale=1 / h**2)[0, 0, :, : y.shape[1]],)

    return call


def sinkhorn(package: str, x: Tensor, y: Tensor, blur: float, scaling: float) -> Contender:
    """Value and gradient in x of SamplesLoss("sinkhorn", p=2): ours, geomloss', or flash-sinkhorn's."""
    options: dict[str, object] = {"p": 2, "backend": "online"}
    module = {OURS: "gwf_fast.compat.geomloss", "flash-sinkhorn": "flash_sinkhorn"}.get(package, "geomloss")
    if package == "flash-sinkhorn":
        options = {"half_cost": True, "debias": True}  # the cost r^2 / 2 of geomloss
    elif package != OURS:
        keops_on_cpu.load()
    loss = importlib.import_module(module).SamplesLoss("sinkhorn", blur=blur, scaling=scaling, **options)
    leaf = x.clone().requires_grad_()

    def call() -> Result:
        value = loss(leaf, y)
        return value.detach().reshape(()), *torch.autograd.grad(value.sum(), leaf)

    return call


def dense_mmd2(g: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The squared MMD by three whole matrices."""

    def value(x: Tensor, y: Tensor) -> Tensor:
        def mean(a: Tensor, b: Tensor) -> Tensor:
            r2 = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * (a @ b.T)
            return torch.exp(-g * r2).mean()

        return mean(x, x) + mean(y, y) - 2 * mean(x, y)

    return value


def captured(call: Contender) -> Contender:
    """A call as a CUDA graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Result:
        graph.replay()
        return result

    return replay
