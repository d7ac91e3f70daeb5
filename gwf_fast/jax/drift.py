"""Drifts on JAX arrays."""

from __future__ import annotations

import gwf_fast as gwf
from gwf_fast.jax.bridge import on_arrays

__all__ = ["gmd"]

gmd = on_arrays(gwf.drift.gmd, shape=lambda x, **_: x)
