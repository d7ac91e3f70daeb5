"""The backend's functions: pack, launch, unpack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton.averages import average_kernel
from gwf_fast.kernels.triton.jets import jet_kernel_few, jet_kernel_many
from gwf_fast.kernels.triton.launch import BLOCK_K, FEW, GROUP
from gwf_fast.kernels.triton.packing import Pairs
from gwf_fast.kernels.triton.sums import gradient_kernel, sum_kernel

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
) -> Tensor:  # [B, N, C]
    """sum_j b_j k_ij; b = None is ones."""
    channels = 1 if b is None else b.shape[2]
    if _empty(x, y) or channels == 0:
        return x.new_zeros(x.shape[0], x.shape[1], channels)
    few = channels <= FEW
    config = launch.config("sum", x.shape[2], channels, x.dtype)
    pairs = _pairs(x, y, spec, config, x_lengths, y_lengths)
    out = pairs.empty(pairs.batch, pairs.n, channels)
    _launch_sum(pairs, pairs.columns(b), out, out, config, order=0, few=few, exclude_self=exclude_self)
    return out.to(x.dtype)


def pair_gradient(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,  # [B, M]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> Tensor:  # [B, N, D]
    """sum_j b_j grad_x k_ij."""
    return _gradient(x, y, b, spec, False, exclude_self, x_lengths, y_lengths)[1]


def pair_sum_gradient(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,  # [B, M]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # [B, N], [B, N, D]
    """The sum and its gradient, in one pass over the pairs."""
    return _gradient(x, y, b, spec, True, exclude_self, x_lengths, y_lengths)


def pair_logsumexp(
    x: Tensor,
    y: Tensor,
    beta: Tensor | None,  # [B, M]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> Tensor:  # [B, N]
    """log sum_j e^beta_j k_ij; -inf for an empty sum."""
    return _average(x, y, None, beta, spec, 0, exclude_self, x_lengths, y_lengths)[1]


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
) -> tuple[Tensor, Tensor]:  # [B, N, C], [B, N]
    """The mean of v (None: y) with weights e^beta_j k_ij, and the logarithm of their sum."""
    channels = y.shape[2] if v is None else v.shape[2]
    return _average(x, y, v, beta, spec, channels, exclude_self, x_lengths, y_lengths)


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
) -> tuple[Tensor, Tensor]:  # [B, N, D], [B, N, C]
    """Gradients in (x, a) of the derivative along the tangents of sum_ij e^(alpha_i + beta_j) a_i.b_j k_ij."""
    order = len(tangents)
    if order > 2:
        raise NotImplementedError(f"tangents: got {order}, the triton backend has derivatives up to order 2")
    if _empty(x, y):
        return torch.zeros_like(x), torch.zeros_like(a)
    channels = a.shape[2]
    few = x.shape[2] <= FEW and channels <= FEW
    config = launch.config("jet2" if order else "jet", x.shape[2], channels, x.dtype)
    pairs = Pairs(x, y, spec, (config.rows, config.cols), 1, x_lengths, y_lengths)
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
    out_x = pairs.empty(pairs.batch, pairs.n, pairs.dim)
    out_a = pairs.empty(pairs.batch, pairs.n, channels)
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
    sizes = [pairs.n, pairs.n_tiles, pairs.m_tiles]
    with launch.on_device(x):
        if few:
            grid = (pairs.batch * pairs.n_tiles,)
            jet_kernel_few[grid](*arguments, *sizes, D=pairs.dim, C=channels, GROUP=GROUP, **options)
        else:
            widest = max(pairs.dim, channels)
            block = launch.channel_block(widest, config.channels)
            chunks = -(-widest // block)
            grid = (pairs.batch * pairs.n_tiles * chunks,)
            sizes += [pairs.depth, pairs.dim, channels, chunks]
            jet_kernel_many[grid](*arguments, *sizes, PRECISION=launch.dot_precision(), BC=block, **options)
    return out_x.to(x.dtype), out_a.to(x.dtype)


def _empty(x: Tensor, y: Tensor) -> bool:
    launch.check_device(x)
    return x.shape[0] == 0 or x.shape[1] == 0 or y.shape[1] == 0


def _pairs(
    x: Tensor,
    y: Tensor,
    spec: Sequence[float],
    config: launch.Config,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
) -> Pairs:
    multiple = 1 if x.shape[2] <= FEW else BLOCK_K
    return Pairs(x, y, spec, (config.rows, config.cols), multiple, x_lengths, y_lengths)


def _distance_options(pairs: Pairs) -> tuple[Tensor, dict]:
    """The device's decision on the product form, and the constants of squared_distance."""
    precision = launch.dot_precision()
    dot = pairs.dim > FEW and pairs.mixture.analytic
    if not dot:
        near = pairs.x_lengths  # not read
    elif precision == "tf32":  # asked for: speed over accuracy
        near = torch.ones_like(pairs.x_lengths)
    else:
        near = pairs.near()
    dim = pairs.dim if pairs.dim <= FEW else 0
    return near, {"D": dim, "DOT": dot, "PRECISION": precision, "BLOCK_K": BLOCK_K}


def _launch_sum(
    pairs: Pairs,
    b: Tensor,
    out: Tensor,
    value_out: Tensor,
    config: launch.Config,
    *,
    order: int,
    few: bool,
    exclude_self: bool,
    with_value: bool = False,
) -> None:
    near, options = _distance_options(pairs)
    channels = b.shape[1]
    block = 16 if few else launch.channel_block(channels, config.channels)
    chunks = 1 if few else -(-channels // block)
    with launch.on_device(out):
        sum_kernel[(pairs.batch * pairs.n_tiles * chunks,)](
            pairs.x, pairs.y, b, pairs.parameters, pairs.x_lengths, pairs.y_lengths, near, out, value_out,
            pairs.n, pairs.n_tiles, pairs.m_tiles, pairs.depth, channels, chunks,
            JETS=pairs.mixture.jets(order), ORDER=order, C=channels if few else 0, WITH_VALUE=with_value,
            EXCLUDE_SELF=exclude_self, BM=config.rows, BN=config.cols, BC=block, GROUP=GROUP,
            **launch.compiler_options(config), **options,
        )  # fmt: skip


def _gradient(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,
    spec: Sequence[float],
    with_value: bool,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(sum, or garbage without with_value; gradient)."""
    if _empty(x, y):
        return x.new_zeros(x.shape[:2]), torch.zeros_like(x)
    few = x.shape[2] <= FEW
    config = launch.config("gradient" if few else "sum", x.shape[2], 1, x.dtype)
    pairs = _pairs(x, y, spec, config, x_lengths, y_lengths)
    weights = x.new_ones(y.shape[:2]) if b is None else b
    value = pairs.empty(pairs.batch, pairs.n)
    if few:
        out = torch.empty_like(pairs.x_scaled)
        with launch.on_device(x):
            gradient_kernel[(pairs.batch * pairs.n_tiles,)](
                pairs.x, pairs.y, pairs.columns(weights[:, :, None]), pairs.parameters, pairs.x_lengths,
                pairs.y_lengths, out, value, pairs.n, pairs.n_tiles, pairs.m_tiles,
                JETS=pairs.mixture.jets(1), D=pairs.dim, WITH_VALUE=with_value, EXCLUDE_SELF=exclude_self,
                BM=config.rows, BN=config.cols, GROUP=GROUP, **launch.compiler_options(config),
            )  # fmt: skip
        return value.to(x.dtype), out.to(x.dtype)
    # sum_j w_ij b_j (x_i - y_j) from the sums of w_ij b_j y_j and w_ij b_j
    weights = weights.to(pairs.dtype)[:, :, None]
    moments = torch.cat([weights * pairs.y_scaled, weights], 2)
    sums = pairs.empty(pairs.batch, pairs.n, pairs.dim + 1)
    _launch_sum(
        pairs, pairs.columns(moments), sums, value, config, order=1, few=False, exclude_self=exclude_self,
        with_value=with_value,
    )  # fmt: skip
    gradient = pairs.x_scaled * sums[:, :, -1:] - sums[:, :, :-1]
    if x_lengths is not None:  # what lies beyond may be NaN
        rows = torch.arange(pairs.n, device=x.device) < pairs.x_lengths[:, None]
        gradient = torch.where(rows[:, :, None], gradient, 0.0)
    return value.to(x.dtype), gradient.to(x.dtype)


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
) -> tuple[Tensor, Tensor]:
    """(mean [B, N, channels], log of the sum of the weights [B, N]); channels = 0 asks for the latter only."""
    batch, n, dim = x.shape
    if _empty(x, y):
        return x.new_full((batch, n, channels), math.nan), x.new_full((batch, n), -math.inf)
    few = channels <= FEW
    config = launch.config("average", dim, channels, x.dtype)
    pairs = _pairs(x, y, spec, config, x_lengths, y_lengths)
    log_weights = torch.zeros_like(y[..., :1]) if beta is None else beta[..., None]
    base2 = pairs.columns(log_weights, 1.0 / math.log(2.0), fill=-math.inf)
    centred = v is None and channels > 0
    values = pairs.y_scaled / pairs.mixture.scale if centred else v
    packed = base2 if channels == 0 else pairs.columns(values)
    block = 16 if few else launch.channel_block(channels, config.channels)
    chunks = 1 if few else -(-channels // block)
    mean = pairs.empty(batch, n, channels)
    logarithm = pairs.empty(batch, n)
    near, options = _distance_options(pairs)
    with launch.on_device(x):
        average_kernel[(batch * pairs.n_tiles * chunks,)](
            pairs.x, pairs.y, packed, base2, pairs.parameters, pairs.x_lengths, pairs.y_lengths, near,
            mean if channels else logarithm, logarithm,
            n, pairs.n_tiles, pairs.m_tiles, pairs.depth, channels, chunks,
            JETS=pairs.mixture.jets(0), EXPONENTS=pairs.mixture.exponents, C=channels if few else -1,
            EXCLUDE_SELF=exclude_self, BM=config.rows, BN=config.cols, BC=block,
            GROUP=GROUP if dim <= FEW else 1, **launch.compiler_options(config), **options,
        )  # fmt: skip
    if centred:
        mean = mean + pairs.centre
        if x_lengths is not None:
            rows = torch.arange(n, device=x.device) < pairs.x_lengths[:, None]
            mean = torch.where(rows[:, :, None], mean, 0.0)
    return mean.to(x.dtype), logarithm.to(x.dtype)
