"""Activations: as modules for the nn.Sequential twin of an MLP, and as the compiled functions of csrc/mlp/mlp.h."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gwf_fast.nn.divergences import DIVERGENCES, Compiled, ParametricName, VariationalName, split_name, variational


class Activation(NamedTuple):
    """One activation in both forms."""

    module: Callable[[], nn.Module]
    compiled: Compiled


ActivationName = Literal[
    "identity", "relu", "leaky_relu", "prelu", "celu", "elu", "silu", "softplus", "tanh", "sigmoid"
]
ACTIVATIONS: dict[ActivationName, Activation] = {
    "identity": Activation(nn.Identity, Compiled("identity")),
    "relu": Activation(nn.ReLU, Compiled("leaky", 0.0)),
    "leaky_relu": Activation(lambda: nn.LeakyReLU(0.2), Compiled("leaky", 0.2)),
    "prelu": Activation(nn.PReLU, Compiled("leaky")),  # the constant is learned
    "celu": Activation(nn.CELU, Compiled("elu", 1.0)),
    "elu": Activation(nn.ELU, Compiled("elu", 1.0)),
    "silu": Activation(nn.SiLU, Compiled("silu")),
    "softplus": Activation(nn.Softplus, Compiled("softplus")),
    "tanh": Activation(nn.Tanh, Compiled("tanh", 1.0)),
    "sigmoid": Activation(nn.Sigmoid, Compiled("sigmoid", 1.0)),
}
"""What may stand between layers, and after the last one but for "prelu"."""
_PlainOutput = Literal["identity", "relu", "leaky_relu", "celu", "elu", "silu", "softplus", "tanh", "sigmoid"]
Output = (
    _PlainOutput
    | Literal["square", "expm1"]
    | VariationalName
    | tuple[ParametricName | Literal["scaled_sigmoid"], float]
    | None
)
"""What may follow the last layer."""


class Elementwise(nn.Module):
    """An elementwise function as a module without parameters.

    Args:
        name: What it is called when printed.
        function: Applied to the input.
    """

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name = name
        self.function = function

    def forward(self, v: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(v)

    def extra_repr(self) -> str:
        """The name."""
        return self.name


class OutputActivation(nn.Module):
    """The map of an f-divergence onto the domain of its conjugate, as a module that can be pickled.

    Args:
        name: Row of the table.
        parameter: Its parameter, where it has one.
    """

    def __init__(self, name: str, parameter: float | None) -> None:
        super().__init__()
        self.name, self.parameter = name, parameter

    def forward(self, v: Tensor) -> Tensor:
        """Apply the function."""
        return variational(self.name, self.parameter).activation(v)

    def extra_repr(self) -> str:
        """The row."""
        return self.name if self.parameter is None else f"{self.name}, {self.parameter:g}"


class ScaledSigmoid(nn.Module):
    """scale * sigmoid(v).

    Args:
        scale: The largest value.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, v: Tensor) -> Tensor:
        """Apply the function."""
        return self.scale * v.sigmoid()


SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.LeakyReLU: ("negative_slope",),
    nn.PReLU: ("num_parameters",),
    nn.CELU: ("alpha",),
    nn.ELU: ("alpha",),
    nn.Softplus: ("beta", "threshold"),
    Elementwise: ("function",),
    OutputActivation: ("name", "parameter"),
    ScaledSigmoid: ("scale",),
}
"""The attributes that two activations of a class may differ in."""


def output_activation(output: str | Sequence) -> Activation:
    """What may follow the last layer, by its name or (name, parameter).

    Raises:
        ValueError: If there is no such activation, or its parameter is missing, superfluous or out of range.
    """
    name, parameter = split_name(output, "output")
    if name in DIVERGENCES:
        return Activation(lambda: OutputActivation(name, parameter), variational(name, parameter).compiled[0])
    if name == "scaled_sigmoid" and parameter is not None:
        return Activation(lambda: ScaledSigmoid(parameter), Compiled("sigmoid", parameter))
    plain: dict[str, Activation] = {key: value for key, value in ACTIVATIONS.items() if key != "prelu"}
    plain["square"] = Activation(lambda: Elementwise("square", torch.square), Compiled("square"))
    plain["expm1"] = Activation(lambda: Elementwise("expm1", torch.expm1), Compiled("expm1"))
    if name not in plain or parameter is not None:
        names = ", ".join([*plain, '("scaled_sigmoid", scale)', *DIVERGENCES])
        raise ValueError(f"output must be None or one of {names}, got {output!r}")
    return plain[name]
