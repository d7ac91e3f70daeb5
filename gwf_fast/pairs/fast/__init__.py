"""Sums over all pairs in about O(N + M): ``method="nufft"``, ``"sliced"`` and ``"auto"``.

A radial kernel on a bounded set of points is, to a tolerance, a short Fourier series plus a correction at short
distances: sources go to its coefficients by one non-uniform FFT, and from there to the targets by another (Potts
& Steidl, Fast summation at nonequispaced knots by NFFTs, 2003). Kernels that are even powers of the distance need only
moments. How many modes, how short a distance and whether any of this is cheaper than the direct sum is decided
by ``series.plan`` and ``cost``; every sum is checked on some rows against direct summation.
"""

from gwf_fast.pairs.fast.entry import METHODS, FastOptions, choose, fast_reduction
from gwf_fast.pairs.fast.sliced import Directions
from gwf_fast.pairs.fast.sums import AccuracyError

__all__ = ["METHODS", "AccuracyError", "Directions", "FastOptions", "choose", "fast_reduction"]
