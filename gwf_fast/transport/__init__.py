"""Optimal transport between samples."""

from gwf_fast.transport.results import DivergencePotentials, SinkhornResult
from gwf_fast.transport.sinkhorn import barycentric_map, sinkhorn, sinkhorn_divergence
from gwf_fast.transport.value import transport_cost

__all__ = [
    "DivergencePotentials",
    "SinkhornResult",
    "barycentric_map",
    "sinkhorn",
    "sinkhorn_divergence",
    "transport_cost",
]
