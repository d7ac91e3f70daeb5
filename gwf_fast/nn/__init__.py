"""Networks for maps and critics."""

from .mlp import MLP
from .objective import critic_objective

__all__ = ["MLP", "critic_objective"]
