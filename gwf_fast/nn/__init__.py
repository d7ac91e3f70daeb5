"""Networks for maps and critics."""

from .icnn import ICNNGradient
from .mlp import MLP
from .objective import critic_objective

__all__ = ["MLP", "ICNNGradient", "critic_objective"]
