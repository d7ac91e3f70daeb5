"""Networks for maps and critics."""

from gwf_fast.nn.icnn import ICNNGradient
from gwf_fast.nn.mlp import MLP
from gwf_fast.nn.objective import critic_objective

__all__ = ["MLP", "ICNNGradient", "critic_objective"]
