"""What a critic of an f-divergence maximises, in one pass over both batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._validation import check_pair
from ..divergences import Divergence
from ..divergences import divergence as row_of
from ..ops.mlp import Side, mlp, objective
from ..ops.modes import is_eager
from .functions import activation_of, conjugate_of, split_name
from .mlp import MLP


def critic_objective(critic: nn.Module, x: Tensor, z: Tensor, *, divergence: str | Sequence) -> Tensor:
    """E_P A(h(x)) - E_Q B(h(z)), whose supremum over critics h is D_f(P|Q).

    A is the divergence's output activation, which maps a critic's raw output into the domain of the conjugate f*, and
    B = f* o A (Fan et al., ICML 2022, with the model P first). For an :class:`MLP` without an output activation, value
    and all gradients come from one compiled pass over both batches; any other module goes through its own forward.

    Args:
        critic: Maps [N, D] to its raw output, [N, 1] or [N].
        x: Samples of P, [N, D].
        z: Samples of Q, [M, D].
        divergence: Name of a row of the table of f-divergences; with a parameter, ``("alpha", a)`` or
            ``("generalized_entropy", m)``.

    Returns:
        A scalar, differentiable to second order in the critic's parameters, x and z.

    Raises:
        ValueError: If there is no such divergence, a batch is empty, or shapes do not fit.
    """
    name, parameter = split_name(divergence, "divergence")
    row = row_of(name, parameter)
    check_pair(x, z, "z")
    for label, points in (("x", x), ("z", z)):
        if points.ndim != 2 or len(points) == 0:
            raise ValueError(f"{label} must have shape [N, D] with N >= 1, got {list(points.shape)}")
    if not (isinstance(critic, MLP) and critic.serves_objective(x) and is_eager()):
        return _torch_objective(row, critic(torch.cat((x, z))), len(x))

    spec, parameters = critic.spec, critic.parameter_list()
    sides = (
        Side(x, *activation_of(name, parameter), 1 / len(x)),
        Side(z, *conjugate_of(name, parameter), -1 / len(z)),
    )

    def differentiable(x: Tensor, z: Tensor, *parameters: Tensor) -> Tensor:
        return _torch_objective(row, mlp(torch.cat((x, z)), parameters, spec), len(x))

    return objective(sides, parameters, spec, differentiable)


def _torch_objective(row: Divergence, v: Tensor, n: int) -> Tensor:
    if v.ndim > 2 or v.numel() != len(v):
        raise ValueError(f"critic must map [N, D] to [N, 1] or [N], got {list(v.shape)} for N = {len(v)}")
    v = v.view(-1)
    return row.activation(v[:n]).mean() - row.conjugate_of_activation(v[n:]).mean()
