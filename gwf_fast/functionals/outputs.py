"""What a critic of the user's gives, after a look at its shape."""

from __future__ import annotations

from torch import Tensor, nn


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
