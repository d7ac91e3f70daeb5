"""What the fused perceptrons of every backend are told: the shape of a network, and the sides of an objective."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MLPSpec(NamedTuple):
    """The shape of a network. Hashable.

    Attributes:
        sizes: Widths from input to output.
        functions: What follows each linear layer: names of ``csrc/mlp/mlp.h``.
        constants: Their constants.
        learned: Whether the constant is a parameter instead (the slope of a PReLU).
        residual: Whether the input is added to the output.
    """

    sizes: tuple[int, ...]
    functions: tuple[str, ...]
    constants: tuple[float, ...]
    learned: tuple[bool, ...]
    residual: bool


class Side(NamedTuple):
    """One expectation of an objective: weight * sum of f over the network's outputs at x."""

    x: Tensor
    function: str
    constant: float
    weight: float
