"""Triton backend: the pairwise reductions on NVIDIA and AMD GPUs."""
