"""Triton backend: the pairwise reductions on NVIDIA and AMD GPUs, as ``reference/pairs.py`` defines them.

Up to four coordinates and channels stay in registers and squared distances are sums of squared differences. Beyond
that, distances and products run on tensor cores: in halves where the cloud is small enough and the profile smooth, in
float64 elsewhere (decided on the device; wide_tiles.py).
Inputs may be float64, float32, bfloat16 or float16; sums are in float64 for the first and in float32 for the others.
"""
