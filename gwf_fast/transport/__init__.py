"""Optimal transport between samples."""

from .sinkhorn import SinkhornResult, barycentric_map, sinkhorn, sinkhorn_divergence

__all__ = ["SinkhornResult", "barycentric_map", "sinkhorn", "sinkhorn_divergence"]
