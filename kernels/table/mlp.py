"""What compiled loops of every backend are told: the shape of a network, the sides of an objective, a density."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class CompiledDensity:
    """log Q up to a constant, as the compiled loops have it.

    Attributes:
        kind: A name of ``csrc/primal_dual/density.h``; "none" for no density.
        arrays: Its parameters, in the order in which that file takes them.
        numbers: The same.
        devices: Types of device whose loop knows it.
    """

    kind: str = "none"
    arrays: tuple[Tensor, ...] = ()
    numbers: tuple[float, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
