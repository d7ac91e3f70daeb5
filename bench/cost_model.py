"""The prices of ``gwf_fast.pairs.fast.cost`` against this machine's clock: ``python -m bench.cost_model``.

Prints the quotient of the two costs that decides, as it took, over as the model expects it: 1 is right, between 1/3 and
3 decides well. The suite counts the operations and leaves the clock alone.
"""

from __future__ import annotations

import time
from typing import Literal

import torch

import gwf_fast as gwf
from gwf_fast.pairs.fast import cost, series, sums

KERNELS = (gwf.Gaussian(0.3), gwf.IMQ(0.3), gwf.Laplace(0.3), gwf.Riesz(1.3))
N = 30_000
TOLERANCE = 1e-5


def seconds(x: torch.Tensor, kernel: gwf.Kernel, method: gwf.NUFFT | Literal["exact"]) -> float:
    """Processor time of a gradient, the least of three."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        gwf.kernel_gradient(x, x.clone(), kernel=kernel, method=method)
        times.append(time.process_time() - begin)
    return min(times)


def main() -> None:
    """Print a line a kernel."""
    torch.set_num_threads(1)
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
    for kernel in KERNELS:
        planned = series.plan(kernel.spec, sums.box(x, x)[1], TOLERANCE, 1, N, N, 1, 1)
        assert planned is not None
        exact = cost.direct_seconds(N, N, 2, kernel.terms, 1, 1, 1)
        took = seconds(x, kernel, gwf.NUFFT(TOLERANCE)) / seconds(x, kernel, "exact")
        expected = planned[1] / exact
        print(f"{kernel!r}: nufft / exact took {took:.3f}, expected {expected:.3f}: {took / expected:.2f}")


if __name__ == "__main__":
    main()
