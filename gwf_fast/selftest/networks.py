"""Cases of fused perceptrons for ``gwf-fast selftest``: every backend's passes against float64.

A case calls the functions of a module such as ``kernels/triton/mlp.py`` and compares with ``kernels/reference/mlp.py``
on the same numbers in float64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gwf_fast.kernels.reference import mlp as mlp_reference
from gwf_fast.kernels.table.mlp import MLPSpec, Side
from gwf_fast.nn import MLP
from gwf_fast.nn.functions import ACTIVATIONS, ActivationName, Output
from gwf_fast.ops import dispatch
from gwf_fast.randomness.seeded import reproducible

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""Relative error in the 2-norm; in half precision every layer rounds what it passes on."""

OUTPUTS: tuple[Output, ...] = (
    "reverse_kl",
    "js",
    "neyman",
    "total_variation",
    "square",
    "expm1",
    ("scaled_sigmoid", 2.5),
    "softplus",
)
"""Between them, every function that can follow the last layer."""


@dataclasses.dataclass(frozen=True)
class NetworkCase:
    """One network and batch.

    Attributes:
        sizes: Widths.
        rows: Of the batch.
        dtype: Of everything.
        activation: Between the layers.
        output: After the last.
        residual: Whether the input is added.
        operation: "mlp" (forward, backward and the gradient of the sum), "mlp_second" or "mlp_objective".
    """

    sizes: tuple[int, ...]
    rows: int = 70
    dtype: torch.dtype = torch.float32
    activation: ActivationName = "prelu"
    output: Output = None
    residual: bool = False
    operation: str = "mlp"

    @property
    def served_as(self) -> str:
        """The operation of the table that it takes."""
        return self.operation

    @property
    def width(self) -> int:
        """The widest layer."""
        return max(self.sizes)

    @property
    def tolerance(self) -> float:
        """The largest error."""
        return TOLERANCE[self.dtype]

    def measure(self, backend: str, device: str) -> float:
        """The error of a backend."""
        return error(self, dispatch.load(backend, self.operation), device)

    def __str__(self) -> str:
        """A name for tables and test identifiers."""
        size = f"{self.rows}x" + "-".join(map(str, self.sizes))
        output = self.output if isinstance(self.output, str) else "".join(map(str, self.output or ()))
        parts = [
            self.operation,
            self.activation,
            output,
            "residual" * self.residual,
            size,
            str(self.dtype).split(".")[1],
        ]
        return "-".join(filter(None, parts))

    @property
    def spec(self) -> MLPSpec:
        """What the passes are told of the network."""
        return self.network().spec

    def network(self) -> MLP:
        """The network, with parameters that a fresh one would not have."""
        with reproducible(len(self.sizes)), torch.no_grad():
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
        for activation in ("tanh", "silu", "prelu"):
            yield NetworkCase((5, 17, 9, 3), 70, dtype, activation, operation="mlp_second")
        for sizes in ((2, 16, 16, 1), (33, 64, 64, 1)):
            yield NetworkCase(sizes, 70, dtype, "silu", operation="mlp_objective")
    if half:
        for dtype in (torch.bfloat16, torch.float16):
            yield NetworkCase((5, 33, 20, 3), 70, dtype, "silu")
            yield NetworkCase((64, 128, 64), 40, dtype, "tanh", residual=True)


def error(case: NetworkCase, passes: ModuleType, device: str) -> float:
    """The largest relative error, in the 2-norm, over the results; inf for a wrong shape, type or infinity."""
    x, parameters, cotangent = case.inputs(device)
    compute = {"mlp": results, "mlp_second": second, "mlp_objective": objective}[case.operation]
    got = compute(passes, x, parameters, cotangent, case.spec)
    want = compute(mlp_reference, x.double(), [p.double() for p in parameters], cotangent.double(), case.spec)
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


def second(
    passes: ModuleType, x: Tensor, parameters: Sequence[Tensor], cotangent: Tensor, spec: MLPSpec
) -> list[Tensor]:
    """The derivatives of the gradients along x and the parameters themselves."""
    out, dx, gradients = passes.mlp_second(x, parameters, cotangent, x, parameters, spec)
    return [out, dx, torch.cat([g.flatten() for g in gradients])]


def objective(
    passes: ModuleType, x: Tensor, parameters: Sequence[Tensor], cotangent: Tensor, spec: MLPSpec
) -> list[Tensor]:
    """Two expectations of a critic and their gradients; the reference has them from its forward and backward."""
    sides = [Side(x, "minus_exp", 0.0, 0.3), Side(x.flip(0).contiguous() + 0.1, "identity", 0.0, -0.2)]
    if passes is not mlp_reference:
        value, inputs, gradients = passes.mlp_objective(
            parameters, sides, spec, wants_dx=(True, True), wants_parameters=True
        )
        return [x.new_tensor(value), *inputs, torch.cat([g.flatten() for g in gradients])]
    values, inputs, gradients = [], [], []
    for side in sides:
        own = spec._replace(functions=(*spec.functions[:-1], side.function))
        weight = torch.full_like(cotangent, side.weight)
        out, dx, found = passes.mlp_backward(side.x, parameters, weight, own, wants_out=True)
        values.append(side.weight * out.sum())
        inputs.append(dx)
        gradients.append(torch.cat([g.flatten() for g in found]))
    return [sum(values), *inputs, sum(gradients)]
