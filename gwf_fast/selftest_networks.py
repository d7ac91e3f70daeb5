"""Cases of fused perceptrons for ``gwf-fast selftest``: every backend's passes against float64.

A case calls the functions of a module such as ``kernels/triton/mlp.py`` and compares with ``kernels/mlp_reference.py``
on the same numbers in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gwf_fast.kernels import mlp_reference
from gwf_fast.kernels.mlp import MLPSpec
from gwf_fast.nn import MLP
from gwf_fast.nn.functions import ACTIVATIONS

PASSES = {
    "cpp": "gwf_fast.kernels.mlp_cpp",
    "triton": "gwf_fast.kernels.triton.mlp",
    "torch": "gwf_fast.kernels.mlp_reference",
}
"""The module with a backend's passes, for the backends that have them."""

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""Relative error in the 2-norm; in half precision every layer rounds what it passes on."""

OUTPUTS = ("reverse_kl", "js", "neyman", "total_variation", "square", "expm1", ("scaled_sigmoid", 2.5), "softplus")
"""Between them, every function that can follow the last layer."""


@dataclasses.dataclass(frozen=True)
class NetworkCase:
    """One network and batch; forward, backward and the gradient of its sum are compared.

    Attributes:
        sizes: Widths.
        rows: Of the batch.
        dtype: Of everything.
        activation: Between the layers.
        output: After the last.
        residual: Whether the input is added.
    """

    sizes: tuple[int, ...]
    rows: int = 70
    dtype: torch.dtype = torch.float32
    activation: str = "prelu"
    output: str | tuple[str, float] | None = None
    residual: bool = False

    def __str__(self) -> str:
        """A name for tables and test identifiers."""
        size = f"{self.rows}x" + "-".join(map(str, self.sizes))
        output = self.output if isinstance(self.output, str) else "".join(map(str, self.output or ()))
        parts = ["mlp", self.activation, output, "residual" * self.residual, size, str(self.dtype).split(".")[1]]
        return "-".join(filter(None, parts))

    @property
    def spec(self) -> MLPSpec:
        """What the passes are told of the network."""
        return self.network().spec

    def network(self) -> MLP:
        """The network, with parameters that a fresh one would not have."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(len(self.sizes))
            net = MLP(self.sizes, self.activation, self.output, self.residual)
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return net

    def inputs(self, device: str) -> tuple[Tensor, list[Tensor], Tensor]:
        """x, the parameters and a cotangent: the same numbers on every device."""
        generator = torch.Generator().manual_seed(self.rows)
        x, cotangent = (torch.randn(self.rows, width, generator=generator) for width in (self.sizes[0], self.sizes[-1]))

        def placed(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device=device, dtype=self.dtype)

        return placed(x), [placed(p) for p in self.network().parameter_list()], placed(cotangent)


def cases(half: bool = False) -> Iterator[NetworkCase]:
    """The case list; `half` adds bfloat16 and float16."""
    for dtype in (torch.float32, torch.float64):
        for activation in ACTIVATIONS:
            yield NetworkCase((5, 17, 9, 3), 70, dtype, activation)
        for output in OUTPUTS:
            yield NetworkCase((4, 9, 3), 40, dtype, "tanh", output)
        for sizes in ((1, 1), (3, 2), (2, 16, 16, 16, 16, 1), (33, 40, 64, 2), (64, 128, 128, 64), (7, *[11] * 9, 2)):
            yield NetworkCase(sizes, 33, dtype)
        yield NetworkCase((3, 8, 3), 1, dtype, "silu", residual=True)
        yield NetworkCase((65, 100, 65), 13, dtype, "celu", "js", residual=True)
        yield NetworkCase((2, 5, 1), 0, dtype)
    if half:
        for dtype in (torch.bfloat16, torch.float16):
            yield NetworkCase((5, 33, 20, 3), 70, dtype, "silu")
            yield NetworkCase((64, 128, 64), 40, dtype, "tanh", residual=True)


def checks(name: str, device: str, match: str = "") -> list[tuple[str, float, Callable[[], float]]]:
    """What the self-test of a backend does on a device: (name, tolerance, a call that returns the error) of each."""
    if name not in PASSES or (name == "cpp" and device != "cpu"):
        return []
    passes = importlib.import_module(PASSES[name])
    chosen = [case for case in cases(half=device == "cuda") if match in str(case)]
    return [(str(case), TOLERANCE[case.dtype], functools.partial(error, case, passes, device)) for case in chosen]


def error(case: NetworkCase, passes: ModuleType, device: str) -> float:
    """The largest relative error, in the 2-norm, over the results; inf for a wrong shape, type or infinity."""
    x, parameters, cotangent = case.inputs(device)
    got = results(passes, x, parameters, cotangent, case.spec)
    want = results(mlp_reference, x.double(), [p.double() for p in parameters], cotangent.double(), case.spec)
    worst = 0.0
    for result, truth in zip(got, want, strict=True):
        if result.shape != truth.shape or result.dtype != case.dtype:
            return math.inf
        difference = float((result.double() - truth).norm())
        relative = difference / (float(truth.norm()) + (1e-3 if truth.numel() else 1.0))
        worst = max(worst, relative if math.isfinite(relative) else math.inf)
    return worst


def results(
    passes: ModuleType, x: Tensor, parameters: Sequence[Tensor], cotangent: Tensor, spec: MLPSpec
) -> list[Tensor]:
    """Forward; backward with everything; value and gradient in x for ones; backward without the gradient in x.

    The gradients in the parameters are one vector: that in a slope is a number, which may nearly cancel.
    """
    out = passes.mlp_forward(x, parameters, spec)
    again, dx, gradients = passes.mlp_backward(x, parameters, cotangent, spec, wants_out=True)
    value, slope, none = passes.mlp_backward(x, parameters, None, spec, wants_out=True, wants_parameters=False)
    only: Any = passes.mlp_backward(x, parameters, cotangent, spec, wants_dx=False)
    assert not none
    assert only[0] is None
    assert only[1] is None
    joined = (torch.cat([g.flatten() for g in found]) for found in (gradients, only[2]))
    return [out, again, dx, value, slope, *joined]
