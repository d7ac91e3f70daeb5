"""Samples, critics, densities and objectives as functionals evaluate them: shapes checked, a batch or a chunk each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gwf_fast.errors import NonFiniteError
from gwf_fast.pairs.validation import check_kind
from gwf_fast.potentials import Density
from gwf_fast.randomness.draws import Draws
from gwf_fast.randomness.seeded import asked, own_generator

if TYPE_CHECKING:
    from gwf_fast.functionals.base import Functional

Target = Tensor | Callable[[int], Tensor]
"""Samples of Q: a tensor [M, D], or a callable n -> [n, D]."""


ASKED = "the target is a Python function, asked in every iteration; give it as a tensor of samples"
"""Why a loop with such a target can't be replayed."""


def check_target(target: Target) -> None:
    """Samples of Q: a finite tensor [M, D] with M > 0, or a callable."""
    if isinstance(target, Tensor):
        check_kind("target", target)
        if target.ndim != 2 or len(target) == 0 or not target.is_floating_point():
            raise ValueError(
                f"target must be floating-point samples [M, D] with M > 0, got {target.dtype} {list(target.shape)}"
            )
        if not target.isfinite().all():
            raise ValueError("target: contains NaN or infinity")
    elif not callable(target):
        raise TypeError(f"target must be a tensor [M, D] or a callable n -> samples, got {type(target).__name__}")


def is_asked(target: object) -> bool:
    """Whether samples come from a function of the user's; those of our potentials are launches, nothing more."""
    return callable(target) and not isinstance(getattr(target, "__self__", None), Density)


def draw_target(target: Target, n: int, draws: Draws | None = None) -> Tensor:
    """n samples of Q; all of them where there are fewer.

    Raises:
        ValueError: If a callable gives something else. For a minibatch, which comes with ``draws``, it has to give n.
    """
    if isinstance(target, Tensor):
        return batch(target, n, draws)
    samples = asked(target, n)
    fits = isinstance(samples, Tensor) and samples.ndim == 2 and (draws is None or len(samples) == n)
    if not fits:
        got = list(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise ValueError(f"target must give samples [{n}, D] for n = {n}, got {got}")
    return samples


def matched(z: Tensor, x: Tensor) -> Tensor:
    """Samples z [M, D] of Q in the precision and on the device of particles x [N, D].

    Raises:
        ValueError: If they have another dimension.
    """
    if z.shape[1] != x.shape[1]:
        raise ValueError(f"target must give samples [{len(z)}, {x.shape[1]}], got {list(z.shape)}")
    return z.to(x)


def batch(pool: Tensor, n: int, draws: Draws | None = None) -> Tensor:
    """n rows of a pool [N, D], drawn with replacement; the pool itself where n is not smaller than it."""
    if draws is not None and n < len(pool):
        return draws.rows(pool, n)
    rows = batch_rows(pool, n, draws)
    return pool if rows is None else pool[rows]


def batch_rows(pool: Tensor, n: int, draws: Draws | None = None) -> Tensor | None:
    """The rows that :func:`batch` takes, [n]; None for all of them."""
    if n >= len(pool):
        if draws is not None:
            draws.skip()
        return None
    if draws is not None:
        return draws.indices(n, len(pool), pool.device)
    return torch.randint(len(pool), (n,), device=pool.device, generator=own_generator(pool.device))


def raw_output(critic: nn.Module | None, x: Tensor) -> Tensor:
    """A critic's output at x [N, D], as [N]."""
    if critic is None:
        raise ValueError("critic must be a module, got None")
    v = critic(x)
    if v.shape == (*x.shape[:-1], 1):
        return v.squeeze(-1)
    if v.shape != x.shape[:-1]:
        n = x.shape[0]
        raise ValueError(f"critic must have an output of shape [{n}, 1] or [{n}], got {list(v.shape)}")
    return v


def evaluated(function: Callable[[Tensor], Tensor], x: Tensor, name: str) -> Tensor:
    """A density, or another function of points, at x [N, D], as [N].

    Args:
        function: Maps [N, D] to [N].
        x: Points.
        name: What messages call it.
    """
    is_ours = isinstance(getattr(function, "__self__", None), Density)
    out = function(x) if is_ours else asked(function, x)
    if not isinstance(out, Tensor) or out.shape != x.shape[:-1]:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"{name} must give a tensor of shape {list(x.shape[:-1])} for x {list(x.shape)}, got {got}")
    return out


def map_objective(functional: Functional, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
    """``functional.map_objective``, as every loop asks for it.

    Raises:
        ValueError: If it is no scalar: where a mean was forgotten it would be broadcast over what is added to it.
    """
    return _scalar(functional, "map_objective", functional.map_objective(critic, x, z, reference))


def critic_objective(functional: Functional, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
    """The same of ``functional.critic_objective``."""
    return _scalar(functional, "critic_objective", functional.critic_objective(critic, x, z, reference))


def _scalar(functional: Functional, method: str, out: object) -> Tensor:
    if not isinstance(out, Tensor) or out.ndim:
        got = f"a tensor {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"{type(functional).__name__}.{method} must give a scalar, a tensor [], got {got}")
    return out


CHUNK = 1 << 16
"""Rows differentiated at once: bounds the memory of the activations."""


def descent_direction(objective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """-grad of f at each row of x [N, D], for an objective that is the mean of f over the rows it is given."""
    out = torch.empty_like(x)
    for rows, result in zip(x.detach().split(CHUNK), out.split(CHUNK), strict=True):
        with torch.enable_grad():
            points = rows.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(points), points)
        torch.mul(gradient, -len(rows), out=result)
    return out


_FARTHEST = 4096
"""Particles that a step is judged by: those that it moved most."""


def require_descent(log_q: Callable[[Tensor], Tensor], before: Tensor, moved: Tensor, step_size: float) -> None:
    """Raise NonFiniteError for particles thrown out of the cloud, in a run that is otherwise unsuspicious.

    In a flow of KL(P | Q) nothing holds the map outside the samples: log mu falls as r^2 / (2 s^2) there, s the
    narrowest spread of P_k, and the critic, which should make up for it, is linear. Where 1 / s^2 exceeds 1 / a and the
    curvature of -log Q, few particles that come outside are drawn on, to 10^4 within some steps. At a minimiser
    |T x - x|^2 / (2 a) + log P(T x) - log Q(T x) does not exceed what it is at rest, so that the transport and
    -log Q may rise by no more than log P can fall.

    Args:
        log_q: log Q, [N, D] -> [N].
        before: x, [N, D].
        moved: T x, likewise.
        step_size: a.
    """
    costs = (moved - before).square().sum(-1) / (2 * step_size)
    rows = costs.topk(min(len(costs), _FARTHEST)).indices
    x, tx = before[rows], moved[rows]
    with torch.no_grad():
        rises = costs[rows] + log_q(x) - log_q(tx)
    worst = int(rises.nan_to_num(-math.inf).argmax())
    if rises[worst] > 100 + 20 * x.shape[1]:
        raise NonFiniteError(
            f"a particle was thrown from {_shown(x[worst])} to {_shown(tx[worst])}, where -log Q and the transport"
            f" are {float(rises[worst]):.3g} more than at rest; try a larger batch_size or a smaller lr"
        )


def _shown(point: Tensor) -> str:
    numbers = [f"{value:.4g}" for value in point[:4].tolist()]
    return "(" + ", ".join([*numbers, "..."][: 5 if len(point) > 4 else len(point)]) + ")"
