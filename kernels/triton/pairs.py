"""The backend's functions: pack, launch, unpack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gwf_fast.kernels.triton import combine, launch, wide
from gwf_fast.kernels.triton.averages import average_kernel
from gwf_fast.kernels.triton.jets import jet_kernel_few, jet_kernel_many
from gwf_fast.kernels.triton.launch import FEW, GROUP
from gwf_fast.kernels.triton.mmd import mmd_kernel
from gwf_fast.kernels.triton.packing import Pairs, mixture
from gwf_fast.kernels.triton.packing_kernels import ABSENT, CENTRED, FILLED, GIVEN
from gwf_fast.kernels.triton.sums import gradient_kernel, sum_kernel
from gwf_fast.kernels.triton.wide_packing import WidePairs

Tangent = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""A direction (dx, dy, da, db); None is zero."""


def pair_sum(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]
    b: Tensor | None,  # [B, M, C]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    precision: str = "fp16x3",
) -> Tensor:  # [B, N, C]
    """sum_j b_j k_ij; b = None is ones."""
    channels = 1 if b is None else b.shape[2]
    if _empty(x, y) or channels == 0:
        return x.new_zeros(x.shape[0], x.shape[1], channels)
    if max(x.shape[2], channels) > FEW:
        points = WidePairs(x, y, spec, x_lengths, y_lengths, precision=precision)
        return wide.sums(points, b, exclude_self=exclude_self, dtype=x.dtype)[0]
    config = launch.config("sum", x.shape[2], channels, x.dtype)
    pairs = Pairs(
        x, y, spec, (config.rows, config.cols), x_lengths, y_lengths, values=b, kind=_given_or_filled(b)
    )  # fmt: skip
    splits = pairs.splits()
    out = pairs.empty(splits, pairs.batch, pairs.n, channels)
    with launch.on_device(out):
        sum_kernel[(pairs.batch * pairs.n_tiles * splits,)](
            pairs.x, pairs.y, pairs.values, pairs.parameters, pairs.x_lengths, pairs.y_lengths, out,
            pairs.n, pairs.n_tiles, pairs.m_tiles, splits,
            JETS=pairs.mixture.jets(0), D=pairs.dim, C=channels, EXCLUDE_SELF=exclude_self,
            BM=config.rows, BN=config.cols, GROUP=GROUP, **launch.compiler_options(config),
        )  # fmt: skip
    return combine.add_splits(x.dtype, out)[0]


def pair_gradient(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,  # [B, M]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    precision: str = "fp16x3",
) -> Tensor:  # [B, N, D]
    """sum_j b_j grad_x k_ij."""
    return _gradient(x, y, b, spec, False, exclude_self, x_lengths, y_lengths, precision)[1]


def pair_sum_gradient(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,  # [B, M]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    precision: str = "fp16x3",
) -> tuple[Tensor, Tensor]:  # [B, N], [B, N, D]
    """The sum and its gradient, in one pass over the pairs."""
    return _gradient(x, y, b, spec, True, exclude_self, x_lengths, y_lengths, precision)


def pair_logsumexp(
    x: Tensor,
    y: Tensor,
    beta: Tensor | None,  # [B, M]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    precision: str = "fp16x3",
) -> Tensor:  # [B, N]
    """log sum_j e^beta_j k_ij; -inf for an empty sum."""
    return _average(x, y, None, beta, spec, 0, exclude_self, x_lengths, y_lengths, precision)[1]


def pair_average(
    x: Tensor,
    y: Tensor,
    v: Tensor | None,  # [B, M, C]
    beta: Tensor | None,  # [B, M]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    precision: str = "fp16x3",
) -> tuple[Tensor, Tensor]:  # [B, N, C], [B, N]
    """The mean of v (None: y) with weights e^beta_j k_ij, and the logarithm of their sum."""
    channels = y.shape[2] if v is None else v.shape[2]
    return _average(x, y, v, beta, spec, channels, exclude_self, x_lengths, y_lengths, precision)


def mmd_rows(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]
    a: Tensor,  # [B, N]
    b: Tensor,  # [B, M]
    scales: Tensor,  # [B, 2]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    gradient: bool = True,
    rows_of_y: bool = True,
    precision: str = "fp16x3",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the squared MMD and its gradients are made of, in one launch.

    Returns:
        K_xx a and K_xy b [B, N], K_yy b and K_yx a [B, M]; scales_0 grad_x (K_xx a) - grad_x (K_xy b) [B, N, D] and
        scales_1 grad_y (K_yy b) - grad_y (K_yx a) [B, M, D]. Undefined are K_yx and the gradient in y without
        ``rows_of_y``, and both gradients without ``gradient``. ``exclude_self`` drops the diagonals of K_xx and K_yy.
    """
    n, m, dim = x.shape[1], y.shape[1], x.shape[2]
    launch.check_device(x)
    if dim > FEW:
        points = WidePairs(x, y, spec, None, None, precision=precision, coordinates=gradient)
        found = wide.mmd(points, a, b, scales, exclude_self=exclude_self, gradient=gradient, rows_of_y=rows_of_y)
        return tuple(each.to(x.dtype) for each in found)
    values, out, start = _mmd_few(x, y, a, b, scales, spec, exclude_self, gradient, rows_of_y)
    values = values.to(x.dtype)
    out = out.to(x.dtype) if gradient else values[:, 0, :, None]
    of_x, of_y = slice(0, n), slice(start, start + m)
    return (
        *(values[:, k, of_x] for k in range(2)),
        *(values[:, k, of_y] for k in range(2)),
        out[:, of_x],
        out[:, of_y],
    )


def _mmd_few(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    spec: Sequence[float],
    exclude_self: bool,
    gradient: bool,
    rows_of_y: bool,
) -> tuple[Tensor, Tensor, int]:
    """Sums [B, 2, L], gradients [B, L, D], and where the rows of y start."""
    config = launch.config("mmd", x.shape[2], 1, x.dtype)
    pairs = Pairs(
        x, y, spec, (config.rows, config.rows), None, None,
        values=b[:, :, None], kind=GIVEN.value, row_values=a.contiguous(),
    )  # fmt: skip
    tiles = pairs.n_tiles + pairs.m_tiles
    splits = pairs.splits(1, tiles)
    length = tiles * config.rows
    values = pairs.empty(splits, pairs.batch, 2, length)
    out = pairs.empty(splits, pairs.batch, length, pairs.dim) if gradient else values
    with launch.on_device(x):
        mmd_kernel[(pairs.batch * tiles * splits,)](
            pairs.joined, pairs.joined_values, scales.to(pairs.dtype).contiguous(), pairs.parameters, out, values,
            pairs.n_tiles, pairs.m_tiles, splits, int(rows_of_y),
            JETS=pairs.mixture.jets(int(gradient)), D=pairs.dim, GRADIENT=gradient, EXCLUDE_SELF=exclude_self,
            BM=config.rows, BN=config.cols, GROUP=GROUP, **launch.compiler_options(config),
        )  # fmt: skip
    values, out = combine.add_splits(pairs.dtype, values, out if gradient else None)
    return values, out, pairs.n_tiles * config.rows


def pair_jet(
    x: Tensor,
    y: Tensor,
    a: Tensor,  # [B, N, C]
    b: Tensor,  # [B, M, C]
    alpha: Tensor | None,  # [B, N]
    beta: Tensor | None,  # [B, M]
    tangents: Sequence[Tangent],
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    precision: str = "fp16x3",
) -> tuple[Tensor, Tensor]:  # [B, N, D], [B, N, C]
    """Gradients in (x, a) of the derivative along the tangents of sum_ij e^(alpha_i + beta_j) a_i.b_j k_ij."""
    order = len(tangents)
    if order > 2:
        raise NotImplementedError(f"tangents: got {order}, the triton backend has derivatives up to order 2")
    if _empty(x, y):
        return torch.zeros_like(x), torch.zeros_like(a)
    channels = a.shape[2]
    few = x.shape[2] <= FEW and channels <= FEW
    config = launch.config(f"jet{order}", x.shape[2], channels, x.dtype)
    pairs = Pairs(x, y, spec, (config.rows, config.cols), x_lengths, y_lengths)
    scale = pairs.mixture.scale
    packed = [pairs.x, pairs.y, pairs.rows(a), pairs.columns(b)]
    for tangent in tangents:
        dx, dy, da, db = (
            torch.zeros_like(like) if value is None else value for value, like in zip(tangent, (x, y, a, b))
        )
        packed += [pairs.rows(dx, scale), pairs.columns(dy, scale), pairs.rows(da), pairs.columns(db)]
    packed += packed[:4] * (2 - order)  # not read
    shifted = alpha is not None or beta is not None
    base2 = 1.0 / math.log(2.0)
    shifts = [pairs.x, pairs.y]  # not read
    if shifted:
        row, col = (torch.zeros_like(of[..., :1]) if g is None else g[..., None] for of, g in ((x, alpha), (y, beta)))
        shifts = [pairs.rows(row, base2), pairs.columns(col, base2)]
    widest = max(pairs.dim, channels)
    block = config.channels if order == 2 else launch.channel_block(widest, config.channels)  # narrow ones would spill
    chunks = 1 if few else -(-widest // block)
    splits = pairs.splits(chunks)
    out_x = pairs.empty(splits, pairs.batch, pairs.n, pairs.dim)
    out_a = pairs.empty(splits, pairs.batch, pairs.n, channels)
    arguments = [*packed, *shifts, pairs.parameters, pairs.x_lengths, pairs.y_lengths, out_x, out_a]
    options = {
        "JETS": pairs.mixture.jets(order + 1),
        "ORDER": order,
        "SHIFTED": shifted,
        "EXCLUDE_SELF": exclude_self,
        "BM": config.rows,
        "BN": config.cols,
        **launch.compiler_options(config),
    }
    sizes = [pairs.n, pairs.n_tiles, pairs.m_tiles, splits]
    grid = (pairs.batch * pairs.n_tiles * chunks * splits,)
    with launch.on_device(x):
        if few:
            jet_kernel_few[grid](*arguments, *sizes, D=pairs.dim, C=channels, GROUP=GROUP, **options)
        else:
            sizes += [pairs.depth, pairs.dim, channels, chunks]
            jet_kernel_many[grid](
                *arguments, *sizes, PRECISION=launch.dot_precision(precision), BC=block, **options
            )  # fmt: skip
    return combine.add_splits(x.dtype, out_x, out_a)


def _empty(x: Tensor, y: Tensor) -> bool:
    launch.check_device(x)
    return x.shape[0] == 0 or x.shape[1] == 0 or y.shape[1] == 0


def _gradient(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,
    spec: Sequence[float],
    with_value: bool,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """(sum, or garbage without with_value; gradient)."""
    if _empty(x, y):
        return x.new_zeros(x.shape[:2]), torch.zeros_like(x)
    if x.shape[2] > FEW:
        points = WidePairs(x, y, spec, x_lengths, y_lengths, precision=precision, coordinates=True)
        weights = None if b is None else b[:, :, None]
        gradient, value = wide.sums(
            points, weights, coordinates=True, with_value=with_value, exclude_self=exclude_self, dtype=x.dtype
        )  # fmt: skip
        return value, gradient
    profiles = () if with_value else mixture(tuple(map(float, spec))).names
    config = launch.config("gradient", x.shape[2], 1, x.dtype, profiles)
    weights = None if b is None else b[:, :, None]
    pairs = Pairs(
        x, y, spec, (config.rows, config.cols), x_lengths, y_lengths, values=weights, kind=_given_or_filled(b)
    )  # fmt: skip
    splits = pairs.splits()
    out = pairs.empty(splits, *x.shape)
    value = pairs.empty(splits, pairs.batch, pairs.n) if with_value else out
    jets, slope = pairs.mixture.slope
    with launch.on_device(x):
        gradient_kernel[(pairs.batch * pairs.n_tiles * splits,)](
            pairs.x, pairs.y, pairs.values, pairs.parameters, pairs.x_lengths,
            pairs.y_lengths, out, value, pairs.n, pairs.n_tiles, pairs.m_tiles, splits,
            JETS=jets, SLOPE=slope, D=pairs.dim, WITH_VALUE=with_value, EXCLUDE_SELF=exclude_self,
            BM=config.rows, BN=config.cols, GROUP=GROUP, **launch.compiler_options(config),
        )  # fmt: skip
    gradient, value = combine.add_splits(x.dtype, out, value if with_value else None)
    return value, gradient


def _average(
    x: Tensor,
    y: Tensor,
    v: Tensor | None,
    beta: Tensor | None,
    spec: Sequence[float],
    channels: int,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """(mean [B, N, channels], log of the sum of the weights [B, N]); channels = 0 asks for the latter only."""
    batch, n, dim = x.shape
    if _empty(x, y):
        return x.new_full((batch, n, channels), math.nan), x.new_full((batch, n), -math.inf)
    if max(dim, channels) > FEW:
        centred = v is None and channels > 0
        points = WidePairs(x, y, spec, x_lengths, y_lengths, precision=precision, logarithm=True)
        values = None if centred or channels == 0 else v
        return wide.averages(
            points, values, beta, coordinates=centred, exclude_self=exclude_self, dtype=x.dtype
        )  # fmt: skip
    config = launch.config("average", dim, channels, x.dtype)
    centred = v is None and channels > 0
    pairs = Pairs(
        x, y, spec, (config.rows, config.cols), x_lengths, y_lengths,
        values=v if channels else None, kind=(CENTRED if centred else GIVEN if channels else ABSENT).value,
        log_weights=None if beta is None else beta.contiguous(), logs=_given_or_filled(beta),
    )  # fmt: skip
    splits = pairs.splits()
    mean = pairs.empty(splits, batch, n, channels)
    logarithm = pairs.empty(splits, batch, n)
    mass = pairs.empty(splits, batch, n) if splits > 1 else logarithm
    with launch.on_device(x):
        average_kernel[(batch * pairs.n_tiles * splits,)](
            pairs.x, pairs.y, pairs.values, pairs.logs, pairs.parameters, pairs.centre, pairs.x_lengths,
            pairs.y_lengths, mean if channels else logarithm, logarithm, mass,
            n, pairs.n_tiles, pairs.m_tiles, splits,
            JETS=pairs.mixture.jets(0), EXPONENTS=pairs.mixture.exponents, D=pairs.dim, C=channels, CENTRED=centred,
            EXCLUDE_SELF=exclude_self, BM=config.rows, BN=config.cols, GROUP=GROUP,
            **launch.compiler_options(config),
        )  # fmt: skip
    return combine.averages(
        x.dtype, mean, logarithm, mass, pairs.parameters, pairs.x_lengths, pairs.centre if centred else None
    )  # fmt: skip


def _given_or_filled(value: Tensor | None) -> int:
    return (FILLED if value is None else GIVEN).value
