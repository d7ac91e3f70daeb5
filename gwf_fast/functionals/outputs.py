"""What a critic or a density of the user's gives, after a look at its shape."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gwf_fast.potentials import Density
from gwf_fast.randomness.seeded import asked


def raw_output(critic: nn.Module | None, x: Tensor) -> Tensor:
    """A critic's output at x [N, D], as [N]."""
    if critic is None:
        raise ValueError("critic: expected a module, got None")
    v = critic(x)
    if v.shape == (*x.shape[:-1], 1):
        return v.squeeze(-1)
    if v.shape != x.shape[:-1]:
        n = x.shape[0]
        raise ValueError(f"critic: expected an output of shape [{n}, 1] or [{n}], got {list(v.shape)}")
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
        raise ValueError(f"{name}: expected a tensor of shape {list(x.shape[:-1])} for x {list(x.shape)}, got {got}")
    return out
