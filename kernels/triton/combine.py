"""What the ranges of columns of a call have found, put together in one launch, in the order of the ranges."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton.packing_kernels import existing_count

LN2 = tl.constexpr(0.6931471805599453)

BLOCK = 256
"""Numbers of a program."""

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _add(parts, out, count, splits, block, BLOCK: tl.constexpr):
    """out = sum over splits of parts [splits, count], for one block."""
    i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(parts + i, mask=i < count, other=0.0)
    for split in range(1, splits):
        total += tl.load(parts + split * count + i, mask=i < count, other=0.0)
    tl.store(out + i, total, mask=i < count)


@triton.jit(do_not_specialize=["count_a", "count_b", "splits"])
def add_kernel(a, out_a, count_a, b, out_b, count_b, splits, BLOCK: tl.constexpr):
    """The sums over splits of a and of b; none of b where count_b is 0."""
    blocks = tl.cdiv(count_a, BLOCK)
    block = tl.program_id(0)
    if block < blocks:
        _add(a, out_a, count_a.to(tl.int64), splits, block, BLOCK)
    else:
        _add(b, out_b, count_b.to(tl.int64), splits, block - blocks, BLOCK)


@triton.jit(do_not_specialize=["n", "rows", "channels", "splits"])
def combine_kernel(
    totals, references, masses, parameters, centres, x_lengths, mean_out, log_out,
    n, rows, channels, splits,
    C: tl.constexpr, CENTRED: tl.constexpr, X_LENGTHS: tl.constexpr, BLOCK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Averages [rows, channels] and logarithms [rows], rows = B n, from sums of splits that are over 2**reference."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    stride = rows.to(tl.int64)
    largest = tl.full((BLOCK,), float("-inf"), references.dtype.element_ty)
    for split in range(splits):
        found = tl.load(references + split * stride + row, mask=inside, other=float("-inf"))
        largest = tl.where(found > largest, found, largest)
    origin = tl.where(largest == float("-inf"), 0.0, largest)
    mass = tl.zeros_like(largest)
    for split in range(splits):
        share = tl.exp2(tl.load(references + split * stride + row, mask=inside, other=float("-inf")) - origin)
        mass += share * tl.load(masses + split * stride + row, mask=inside, other=0.0)
    tl.store(log_out + row, (origin + tl.log2(mass * tl.load(parameters))) * LN2, mask=inside)
    if C:
        batch = row // n
        exists = (row % n) < existing_count(x_lengths, batch, n, X_LENGTHS)
        for c0 in range(0, channels, BC):
            c = c0 + tl.arange(0, BC)
            mask = inside[:, None] & (c < channels)[None, :]
            total = tl.zeros((BLOCK, BC), largest.dtype)
            for split in range(splits):
                place = split * stride + row
                share = tl.exp2(tl.load(references + place, mask=inside, other=float("-inf")) - origin)
                total += share[:, None] * tl.load(totals + place[:, None] * channels + c[None, :], mask=mask, other=0.0)
            mean = total / mass[:, None]
            if CENTRED:
                mean += tl.load(centres + batch[:, None] * channels + c[None, :], mask=mask, other=0.0)
            tl.store(mean_out + row[:, None] * channels + c[None, :], tl.where(exists[:, None], mean, 0.0), mask=mask)


def add_splits(dtype: torch.dtype, a: Tensor, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sums over splits of a [splits, ...] and of b, in a type; a's for b where there is none."""
    if a.shape[0] == 1:
        first = a[0].to(dtype)
        return first, first if b is None else b[0].to(dtype)
    out_a = torch.empty(a.shape[1:], dtype=dtype, device=a.device)
    out_b = out_a if b is None else torch.empty(b.shape[1:], dtype=dtype, device=a.device)
    counts = out_a.numel(), 0 if b is None else out_b.numel()
    with launch.on_device(a):
        add_kernel[(sum(triton.cdiv(count, BLOCK) for count in counts),)](
            a, out_a, counts[0], a if b is None else b, out_b, counts[1], a.shape[0], BLOCK=BLOCK, **OPTIONS
        )
    return out_a, out_b


def averages(
    dtype: torch.dtype,
    totals: Tensor,  # [splits, B, N, C]
    reference: Tensor,  # [splits, B, N]
    mass: Tensor,  # [splits, B, N]
    parameters: Tensor,
    x_lengths: Tensor | None,
    centre: Tensor | None = None,  # [B, C]
) -> tuple[Tensor, Tensor]:  # [B, N, C], [B, N]
    """Averages and logarithms from the sums of each split, each over 2**reference; a single split has them already.

    Args:
        dtype: Of the results.
        totals: Sums of values; C may be 0.
        reference: Base-2 logarithms that sums are over.
        mass: Sums of weights.
        parameters: Of the kernel.
        x_lengths: Of ragged sets: averages beyond are 0.
        centre: What is added to the averages of several splits.
    """
    if reference.shape[0] == 1:
        return totals[0].to(dtype), reference[0].to(dtype)
    splits, batch, n = reference.shape
    channels = totals.shape[3]
    mean = torch.empty(totals.shape[1:], dtype=dtype, device=mass.device)
    logarithm = torch.empty((batch, n), dtype=dtype, device=mass.device)
    block = BLOCK if channels <= 4 else 32
    with launch.on_device(mass):
        combine_kernel[(triton.cdiv(batch * n, block),)](
            totals, reference, mass, parameters, mass if centre is None else centre,
            mass if x_lengths is None else x_lengths, mean if channels else logarithm, logarithm,
            n, batch * n, channels, splits,
            C=channels > 0, CENTRED=centre is not None, X_LENGTHS=x_lengths is not None, BLOCK=block,
            BC=min(64, triton.next_power_of_2(max(channels, 1))), **OPTIONS,
        )  # fmt: skip
    return mean, logarithm
