"""Triton backend: the pairwise reductions on NVIDIA and AMD GPUs, the functions and conventions of ``reference.py``.

Up to four coordinates and channels stay in registers and squared distances are sums of squared differences. Beyond
that, distances and products run on tensor cores: in halves where the cloud is small enough and the profile smooth, in
float64 elsewhere (decided on the device; wide_tiles.py).
Inputs may be float64, float32, bfloat16 or float16; sums are in float64 for the first and in float32 for the others.
"""

from gwf_fast.kernels.triton.backend import (
    mmd_rows,
    pair_average,
    pair_gradient,
    pair_jet,
    pair_logsumexp,
    pair_sum,
    pair_sum_gradient,
)

__all__ = ["mmd_rows", "pair_average", "pair_gradient", "pair_jet", "pair_logsumexp", "pair_sum", "pair_sum_gradient"]
