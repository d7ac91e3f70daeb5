"""Optimal transport between samples."""

from gwf_fast.transport.sinkhorn import (
    DivergencePotentials,
    SinkhornResult,
    barycentric_map,
    sinkhorn,
    sinkhorn_divergence,
)

__all__ = ["DivergencePotentials", "SinkhornResult", "barycentric_map", "sinkhorn", "sinkhorn_divergence"]
