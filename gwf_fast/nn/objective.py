"""What a critic maximises, in one pass over both batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gwf_fast.nn.divergences import Compiled, Objective, ObjectiveName, ParametricName, VariationalName, split_name
from gwf_fast.nn.divergences import objective as row_of
from gwf_fast.nn.mlp import MLP, explain_network
from gwf_fast.ops.ambient import entry
from gwf_fast.ops.mlp import MLPSpec, Side, mlp, objective
from gwf_fast.ops.modes import is_eager
from gwf_fast.ops.report import arguments, explained_by, first_tensor
from gwf_fast.pairs.validation import as_number, check_pair
from gwf_fast.randomness.seeded import own_generator


def _explain(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    given = arguments(fn, args, kwargs)
    critic, x = given["critic"], first_tensor("critic_objective", given)
    if not isinstance(critic, MLP):
        reason: str | None = f"the critic's own modules: a {type(critic).__name__} is no gwf_fast.nn.MLP"
    elif (reason := critic.why_not_compiled(x)) is None and critic.objective_parameters(x) is None:
        reason = "forward and backward of the critic: one pass is for CPUs, and critics with one raw output"
    widest = max(critic.spec.sizes) if isinstance(critic, MLP) else 1
    return explain_network("critic_objective", x, "mlp_objective", reason, widest)


@entry(differentiates=True)
@explained_by(_explain)
def critic_objective(
    critic: nn.Module,
    x: Tensor,
    z: Tensor,
    *,
    divergence: VariationalName | ObjectiveName | tuple[ParametricName | Literal["entropy"], float],
    penalty: float = 0.0,
    mixing: Tensor | None = None,
) -> Tensor:
    """What a critic h maximises, E_P A(h(x)) - E_Q B(h(z)) or its like, for every functional with a critic.

    An f-divergence by its name: A is its output activation, which maps a critic's raw output into the domain of the
    conjugate f*, and B = f* o A (Fan et al., ICML 2022, with the model P first). Besides:

    - "ipm": A(h) = B(h) = h, of ``gwf.IPM``. For 1-Lipschitz critics; see ``penalty``, or put
      ``torch.nn.utils.parametrizations.spectral_norm`` on its layers.
    - "donsker_varadhan": E_P h - log E_Q e^h, of ``gwf.DonskerVaradhan``.
    - "kl_density": A(h) = h, B(h) = e^h up to h = 15 and its tangent from there, of ``gwf.KL``: z are samples of the
      Gaussian mu, and x, z coordinates in which mu is standard.
    - ("entropy", m): m/(m - 1) E_P h - E_U [h]_+^(m/(m-1)), of ``gwf.GeneralizedEntropy``: z uniform.
    - "hinge": A(h) = min(h, 1) - 1, B(h) = max(h, -1) + 1 (Lim and Ye 2017), high on P as all critics here.

    For an :class:`MLP` without an output activation, value and all gradients come from one compiled pass over both
    batches ("donsker_varadhan" looks at z once before); any other module goes through its own forward.

    Args:
        critic: Maps [N, D] to its raw output, [N, 1] or [N].
        x: Samples of P, [N, D].
        z: Samples of Q, [M, D].
        divergence: Name of a row of the table of f-divergences, or one of the above; with a parameter, a pair such as
            ``("alpha", a)``, ``("generalized_entropy", m)``, ``("entropy", m)``.
        penalty: lambda of the gradient penalty lambda E (|grad h| - 1)^2 at e x + (1 - e) z over the first min(N, M)
            rows, which is subtracted (Gulrajani et al. 2017).
        mixing: e, [min(N, M)]; None for uniform draws from torch's global generator.

    Returns:
        A scalar, differentiable to second order in the critic's parameters, x and z. With a penalty an MLP's is so to
        first order on its compiled path, since the penalty holds a derivative already, and x and z are constants in it.

    Raises:
        ValueError: If there is no such objective, a batch is empty, or shapes do not fit.
    """
    row = row_of(*split_name(divergence, "divergence"))
    check_pair(x, z, "z")
    for label, points in (("x", x), ("z", z)):
        if points.ndim != 2 or len(points) == 0:
            raise ValueError(f"{label} must have shape [N, D] with N >= 1, got {list(points.shape)}")
    penalty = as_number("penalty", penalty, "a number >= 0", least=0)
    parameters = critic.objective_parameters(x) if isinstance(critic, MLP) and is_eager() else None
    if isinstance(critic, MLP) and parameters is not None:
        value = _compiled_objective(row, critic.spec, parameters, x, z)
    else:
        value = _torch_objective(row, critic(torch.cat((x, z))), len(x))
    if penalty == 0:
        return value
    return value - penalty * gradient_penalty(critic, x.detach(), z.detach(), mixing)


@entry(differentiates=True)
def gradient_penalty(critic: nn.Module, x: Tensor, z: Tensor, mixing: Tensor | None = None) -> Tensor:
    """E (|grad h| - 1)^2 on segments between two batches (Gulrajani et al. 2017), a scalar.

    Args:
        critic: Maps [N, ...] to [N, 1] or [N].
        x: Samples [N, ...].
        z: Samples [M, ...]; of the larger set the first rows are used.
        mixing: e of the points e x + (1 - e) z, [min(N, M)]; None for uniform draws from torch's global generator.
    """
    n = min(len(x), len(z))
    if mixing is None:
        mixing = torch.rand(n, dtype=x.dtype, device=x.device, generator=own_generator(x.device))
    if mixing.shape != (n,):
        raise ValueError(f"mixing must have shape [{n}], got {list(mixing.shape)}")
    e = mixing.to(x)[(...,) + (None,) * (x.ndim - 1)]
    between = torch.lerp(z[:n], x[:n], e)
    if isinstance(critic, MLP):
        slope = critic.value_and_grad(between)[1]
    else:
        with torch.enable_grad():
            between.requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def _compiled_objective(row: Objective, spec: MLPSpec, parameters: list[Tensor], x: Tensor, z: Tensor) -> Tensor:
    of_model, of_target = row.compiled
    offset = 0.0
    if row.log_mean:  # the gradient of log E e^h is that of E e^(h - l) with l its value
        with torch.no_grad():
            v = mlp(z, parameters, spec)
            offset = (v.double().logsumexp(0) - math.log(len(z))).item()
        of_target = Compiled("exp_shifted", offset)
    sides = (Side(x, *of_model, row.scale / len(x)), Side(z, *of_target, -row.scale / len(z)))

    def differentiable(x: Tensor, z: Tensor, *parameters: Tensor) -> Tensor:
        return _torch_objective(row, mlp(torch.cat((x, z)), parameters, spec), len(x))

    value = objective(sides, parameters, spec, differentiable)
    return value + (1 - offset) if row.log_mean else value


def _torch_objective(row: Objective, v: Tensor, n: int) -> Tensor:
    if v.ndim > 2 or v.numel() != len(v):
        raise ValueError(f"critic must map [N, D] to [N, 1] or [N], got {list(v.shape)} for N = {len(v)}")
    v = v.view(-1)
    target = v[n:].logsumexp(0) - math.log(len(v) - n) if row.log_mean else row.target(v[n:]).mean()
    return row.scale * (row.model(v[:n]).mean() - target)
