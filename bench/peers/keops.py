"""KeOps (Charlier et al., JMLR 2021) through Genred, in float32."""

from __future__ import annotations

import contextlib
import io

import torch

from bench.problem import Problem
from bench.registry import Contender


def load() -> None:
    """Import KeOps without its messages about the machine, and silence those about what it compiles."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import pykeops

        pykeops.set_verbose(False)


def reduction(name: str, problem: Problem) -> Contender:
    """One of our four reductions as a KeOps formula; derivatives written out, which is faster than Grad()."""
    load()
    from pykeops.torch import Genred

    dim = problem.x.shape[1]
    k = problem.formula.keops
    points = [f"x=Vi({dim})", f"y=Vj({dim})"]
    weights = problem.weights[:, None].contiguous()
    g = torch.tensor([problem.g], device=problem.x.device)
    extra: tuple[torch.Tensor, ...]
    if name == "kernel_sum":
        call, extra = Genred(f"{k}*b", [*points, "b=Vj(1)", "g=Pm(1)"], reduction_op="Sum", axis=1), (weights, g)
    elif name == "kernel_gradient":
        formula = f"IntCst(2)*g*{k}*b*(y-x)"
        call, extra = Genred(formula, [*points, "b=Vj(1)", "g=Pm(1)"], reduction_op="Sum", axis=1), (weights, g)
    elif name == "kernel_logsumexp":
        call, extra = Genred("-g*SqDist(x,y)", [*points, "g=Pm(1)"], reduction_op="LogSumExp", axis=1), (g,)
    elif name == "kernel_average":
        operation = {"reduction_op": "SumSoftMaxWeight", "formula2": "y", "axis": 1}
        call, extra = Genred("-g*SqDist(x,y)", [*points, "g=Pm(1)"], **operation), (g,)
    else:
        raise ValueError(f"bench: unknown reduction {name!r}")
    backend = "GPU_1D" if problem.x.is_cuda else "CPU"
    vector = name in ("kernel_sum", "kernel_logsumexp")

    def contender() -> tuple[torch.Tensor]:
        result = call(problem.x, problem.y, *extra, backend=backend)
        return (result[:, 0] if vector else result,)

    return contender
