"""Multilayer perceptrons: maps and critics of the flows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "prelu": nn.PReLU,
    "celu": nn.CELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class MLP(nn.Sequential):
    """Linear layers with an activation between them; ``state_dict`` is that of the equivalent ``nn.Sequential``.

    A residual network x + net(x) starts as the identity: its last layer is initialised to zero.

    Args:
        sizes: Widths from input to output, at least two.
        activation: One of ``ACTIVATIONS``, between the layers. PReLU learns one slope a layer.
        output: An activation after the last layer, or None.
        residual: Whether to add the input; sizes[0] must then equal sizes[-1].
    """

    def __init__(
        self, sizes: Sequence[int], activation: str = "prelu", output: str | None = None, residual: bool = False
    ) -> None:
        sizes = tuple(int(s) for s in sizes)
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes: expected at least two positive widths, got {list(sizes)}")
        for name, value in (("activation", activation), ("output", output)):
            if value not in ACTIVATIONS and not (name == "output" and value is None):
                raise ValueError(f"{name}: unknown {value!r}, expected one of {', '.join(ACTIVATIONS)}")
        if residual and sizes[0] != sizes[-1]:
            raise ValueError(f"residual: needs as many outputs as inputs, got sizes {list(sizes)}")
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(sizes)):
            if i:
                layers.append(ACTIVATIONS[activation]())
            last = nn.Linear(before, after)
            layers.append(last)
        if residual:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        if output is not None:
            layers.append(ACTIVATIONS[output]())
        super().__init__(*layers)
        self.config: dict[str, Any] = {
            "sizes": list(sizes),
            "activation": activation,
            "output": output,
            "residual": bool(residual),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to x [*B, sizes[0]]; returns [*B, sizes[-1]]."""
        y = super().forward(x)
        return torch.add(x, y) if self.config["residual"] else y
