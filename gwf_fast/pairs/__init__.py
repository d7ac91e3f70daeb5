"""Sums over pairs of points: kernels, the four reductions, and the fast methods beside the exact one."""
