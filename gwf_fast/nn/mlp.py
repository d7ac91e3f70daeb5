"""Multilayer perceptrons: maps and critics of the flows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.mlp import MLPSpec, is_served, mlp, value_and_gradient
from ..ops.modes import is_transformed
from .functions import ACTIVATIONS, output_activation


class MLP(nn.Sequential):
    """Linear layers with an activation between them.

    Parameters, their initialisation and ``state_dict`` are those of the ``nn.Sequential`` that it prints as. On the CPU
    in float32 and float64, with widths to 512, forward, backward and double backward are one compiled call each, with
    tiles of the batch going through the whole network while they are in cache; derivatives in x and in the parameters
    are exact to second order, and results do not depend on the number of threads. Backward repeats the forward pass
    instead of storing it. On CUDA devices, with widths to 128 and bfloat16 and float16 too, forward and backward are a
    Triton kernel each, the whole network in one program for each tile of the batch; double backward is PyTorch's.
    Elsewhere (other devices and dtypes, ``torch.func`` transforms, autocast) its modules run one by one. Hooks on the
    layers are not called by the compiled path.

    A residual network x + net(x) starts as the identity: its last layer is initialised to zero.

    Args:
        sizes: Widths from input to output, at least two.
        activation: One of ``ACTIVATIONS``, between the layers. PReLU learns one slope a layer.
        output: An activation after the last layer: one of ``ACTIVATIONS`` but "prelu", "square", "expm1",
            ``("scaled_sigmoid", scale)``, or the name of an f-divergence, ``("alpha", a)`` with its parameter, for the
            map onto the domain of its conjugate. None: no activation.
        residual: Whether to add the input; sizes[0] must then equal sizes[-1].

    Raises:
        ValueError: If a name is unknown, or sizes do not fit.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "prelu",
        output: str | Sequence | None = None,
        residual: bool = False,
    ) -> None:
        sizes = tuple(int(s) for s in sizes)
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes: expected at least two positive widths, got {list(sizes)}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: unknown {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        if residual and sizes[0] != sizes[-1]:
            raise ValueError(f"residual: needs as many outputs as inputs, got sizes {list(sizes)}")
        hidden = ACTIVATIONS[activation]
        last = None if output is None else output_activation(output)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(sizes)):
            if i:
                layers.append(hidden.module())
            layers.append(linear := nn.Linear(before, after))
        if residual:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        if last is not None:
            layers.append(last.module())
        super().__init__(*layers)
        written = output if output is None or isinstance(output, str) else list(output)
        self.config: dict[str, Any] = {
            "sizes": list(sizes),
            "activation": activation,
            "output": written,
            "residual": bool(residual),
        }
        depth = len(sizes) - 1
        functions = [hidden.compiled] * (depth - 1) + [("identity", 0.0) if last is None else last.compiled]
        self.spec = MLPSpec(
            sizes,
            tuple(name for name, _ in functions),
            tuple(constant for _, constant in functions),
            (activation == "prelu",) * (depth - 1) + (False,),
            bool(residual),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to x [*B, sizes[0]]; returns [*B, sizes[-1]]."""
        self._check(x)
        if self._is_fused(x):
            out = mlp(x.reshape(-1, x.shape[-1]), self.parameter_list(), self.spec)
            return out.view(*x.shape[:-1], out.shape[-1])
        y = super().forward(x)
        return torch.add(x, y) if self.spec.residual else y

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The network as a function f of x [*B, D], and grad f, together; both differentiable once more.

        Returns:
            f [*B] and its gradient [*B, D].

        Raises:
            ValueError: If the network has more than one output.
        """
        self._check(x)
        if self.spec.sizes[-1] != 1:
            raise ValueError(f"value_and_grad: needs a network with one output, got sizes {list(self.spec.sizes)}")
        if self._is_fused(x) and not torch.compiler.is_compiling():
            value, gradient = value_and_gradient(x.reshape(-1, x.shape[-1]), self.parameter_list(), self.spec)
            return value.view(x.shape[:-1]), gradient.view(x.shape)
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            point = x if x.requires_grad else x.detach().requires_grad_()
            value = self(point)[..., 0]
            (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=graph)
        return (value, gradient) if graph else (value.detach(), gradient)

    def parameter_list(self) -> list[Tensor]:
        """Weight, bias and slope of each layer in turn, as the compiled passes take them.

        Read anew each time, so that parametrisations (``torch.nn.utils.parametrizations``) hold.
        """
        parameters: list[Tensor] = []
        for layer in self:
            if isinstance(layer, nn.Linear):
                parameters += (layer.weight, layer.bias)
            elif isinstance(layer, nn.PReLU):
                parameters.append(layer.weight)
        return parameters

    def serves_objective(self, x: Tensor) -> bool:
        """Whether :func:`critic_objective` at x can take the compiled pass: one raw output, on the compiled path."""
        self._check(x)
        is_raw = self.config["output"] is None and not self.spec.residual
        return is_raw and self.spec.sizes[-1] == 1 and x.device.type == "cpu" and self._is_fused(x)

    def _is_fused(self, x: Tensor) -> bool:
        return (
            is_served(x.device.type, x.dtype, max(self.spec.sizes))
            and not is_transformed()
            and not torch.is_autocast_enabled(x.device.type)
        )

    def _check(self, x: Tensor) -> None:
        weight, width = self[0].bias, self.spec.sizes[0]  # the weight may be a parametrisation, which counts its calls
        if x.ndim < 1 or x.shape[-1] != width:
            raise ValueError(f"x must have shape [*B, {width}] for sizes {self.config['sizes']}, got {list(x.shape)}")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x must have the dtype of the network, {weight.dtype}, got {x.dtype}")
        if x.device != weight.device:
            raise ValueError(f"x must be on the device of the network, {weight.device}, got {x.device}")
