"""Tensors whose sign is yet to change (the imaginary part of a conjugate) are read as they stand for.

Halves, which Triton serves on the CPU too, under its interpreter.
"""

import pytest
import torch

import gwf_fast as gwf

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNEL = gwf.Gaussian(1.0)

CALLS = {
    "kernel_sum": lambda x, y: gwf.kernel_sum(x, y, kernel=KERNEL),
    "kernel_gradient": lambda x, y: gwf.kernel_gradient(x, y, kernel=KERNEL),
    "kernel_logsumexp": lambda x, y: gwf.kernel_logsumexp(x, y, kernel=KERNEL),
    "kernel_average": lambda x, y: gwf.kernel_average(x, y, kernel=KERNEL),
    "mmd2": lambda x, y: gwf.mmd2(x, y, kernel=KERNEL),
    "ksd2": lambda x, y: gwf.ksd2(x, x / 2, kernel=KERNEL),
    "svgd_direction": lambda x, y: gwf.svgd_direction(x, x / 2, kernel=KERNEL),
    "interaction_velocity": lambda x, y: gwf.interaction_velocity(x, kernel=KERNEL),
    "forward_step": lambda x, y: gwf.forward_step(x, 0.1, kernel=KERNEL),
    "drift.gmd": lambda x, y: gwf.drift.gmd(x, y, temperature=0.5, clip=1.0),
    "drift.mmd": lambda x, y: gwf.drift.mmd(x, y, kernel=KERNEL),
    "sinkhorn": lambda x, y: gwf.sinkhorn(x, y, epsilon=0.5, max_iterations=3, tolerance=0.0).f,
}


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:.*(converge|marginal).*")
def test_calls(name, dim):
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(count, dim, generator=generator).to(DEVICE, torch.float16) for count in (9, 12))
    got = CALLS[name](torch._neg_view(-x), torch._neg_view(-y))
    assert torch.equal(got, CALLS[name](x, y))
