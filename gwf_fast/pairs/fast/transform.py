"""Fourier series of point sets, by FINUFFT (Barnett, Magland & af Klinteberg 2019): source side, then target side.

On a GPU by cuFINUFFT (Shih et al. 2021), its twin, where that is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gwf_fast.pairs.fast.series import Series


def multi_indices(dim: int, order: int) -> list[tuple[int, ...]]:
    """The partial derivatives of an order, as sorted tuples of axes: (), (0,), (1,), ... (0, 0), (0, 1), ..."""
    if order == 0:
        return [()]
    return [(*index, axis) for index in multi_indices(dim, order - 1) for axis in range(index[-1] if index else 0, dim)]


def series_sum(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    weights: Tensor,  # [M, C]
    series: Series,
    coefficients: Tensor,  # [2 modes + 1] * D
    order: int,
    tolerance: float,
    single: bool,
    threads: int,
    summed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # [N, C, A], float64
    """sum_j w_jc d^a k_far(x_i - y_j) for every partial derivative a of the order.

    x and y are centred, and float64; transforms are in single precision where asked for. Of sources in shards,
    ``summed`` adds up the spectra.
    """
    real, kind = (torch.float32, torch.complex64) if single else (torch.float64, torch.complex128)
    scale = torch.tensor([2 * math.pi / period for period in series.period], dtype=torch.float64, device=x.device)
    accuracy = max(0.3 * tolerance, 1e-6 if single else 1e-14)
    shape = [2 * m + 1 for m in series.modes]
    channels = weights.shape[1]
    # k is real and even: two real channels go through one complex transform, and come out in its two parts.
    strengths = _in_pairs(weights.T.to(real))  # [C / 2, M]
    spectrum = _run(1, _angles(y, scale, real), strengths, shape, accuracy, threads)  # [C / 2, *shape]
    spectrum = spectrum if summed is None else summed(spectrum)
    spectrum = spectrum * coefficients.to(x.device, real)
    dim = x.shape[1]
    indices = multi_indices(dim, order)
    frequencies = [
        (scale[a] * torch.arange(-m, m + 1, device=x.device)).to(real).view([-1 if b == a else 1 for b in range(dim)])
        for a, m in enumerate(series.modes)
    ]
    angles = _angles(x, scale, real)
    if channels == 1:  # two derivatives in one transform instead
        factors = [_factor(index, frequencies, order) for index in indices]
        pairs = [
            factors[k] + 1j * factors[k + 1] if k + 1 < len(factors) else factors[k] for k in range(0, len(factors), 2)
        ]
        out = _run(2, angles, torch.stack([spectrum[0] * pair for pair in pairs]).to(kind), shape, accuracy, threads)
        return torch.view_as_real(out).permute(1, 0, 2).flatten(1)[:, None, : len(indices)].double()
    parts = []
    for index in indices:
        out = _run(2, angles, (spectrum * _factor(index, frequencies, order)).to(kind), shape, accuracy, threads)
        parts.append(torch.view_as_real(out).permute(1, 0, 2).flatten(1)[:, :channels])  # [N, C]
    return torch.stack(parts, -1).double()


def _factor(index: tuple[int, ...], frequencies: Sequence[Tensor], order: int) -> Tensor:
    """(i k)^a, which a derivative multiplies the series by."""
    out = torch.tensor((1, 1j, -1, -1j)[order % 4], dtype=torch.complex128)
    for axis in index:
        out = out * frequencies[axis]
    return out


def _in_pairs(rows: Tensor) -> Tensor:  # [C, M] -> [ceil(C / 2), M], complex
    if rows.shape[0] % 2:
        rows = torch.cat([rows, torch.zeros_like(rows[:1])])
    return torch.complex(rows[0::2].contiguous(), rows[1::2].contiguous())


def _angles(points: Tensor, scale: Tensor, dtype: torch.dtype) -> list[Tensor]:
    # FINUFFT's first axis varies slowest here, as in our arrays.
    return [(points[:, a].double() * scale[a]).to(dtype) for a in range(points.shape[1])]


def _run(kind: int, angles: list[Tensor], values: Tensor, shape: list[int], accuracy: float, threads: int) -> Tensor:
    """One transform, from points to modes (1, with exp(-i)) or from modes to points (2, with exp(+i))."""
    if not angles[0].numel():  # a shard may be empty
        return values.new_zeros((len(values), *(shape if kind == 1 else (0,))))
    values = values.contiguous().resolve_conj()
    options = {
        "n_trans": values.shape[0],
        "eps": accuracy,
        "isign": -1 if kind == 1 else 1,
        "dtype": "complex64" if values.dtype is torch.complex64 else "complex128",
    }
    transform = _run_on_gpu if _on_gpu(values) else _run_on_cpu
    out = transform(kind, tuple(shape), angles, values[0] if len(values) == 1 else values, options, threads)
    return out[None] if len(values) == 1 else out


def _on_gpu(values: Tensor) -> bool:
    return values.is_cuda


def _run_on_cpu(
    kind: int, shape: tuple[int, ...], angles: list[Tensor], values: Tensor, options: dict[str, Any], threads: int
) -> Tensor:
    import finufft  # here: a program without fast sums need not load it

    plan = finufft.Plan(kind, shape, **options, nthreads=threads)
    plan.setpts(*(angle.numpy() for angle in angles))
    return torch.from_numpy(plan.execute(values.numpy()))


def _run_on_gpu(
    kind: int, shape: tuple[int, ...], angles: list[Tensor], values: Tensor, options: dict[str, Any], threads: int
) -> Tensor:
    import cufinufft

    sums = values.shape[: values.ndim - (1 if kind == 1 else len(shape))]
    out = values.new_empty((*sums, *(shape if kind == 1 else angles[0].shape)))
    with torch.cuda.device(values.device):
        stream = torch.cuda.current_stream().cuda_stream
        plan = cufinufft.Plan(kind, shape, **options, gpu_device_id=values.get_device(), gpu_stream=stream)
        plan.setpts(*angles)
        plan.execute(values, out)
    return out
