"""Networks for maps and critics."""

from gwf_fast.nn.mlp import MLP

__all__ = ["MLP"]
