"""The nearest sources of each target as an operator, whose derivatives are those of the distances found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gwf_fast.ops import dispatch
from gwf_fast.ops.jet import contiguous
from gwf_fast.ops.modes import may_need_tangents
from gwf_fast.ops.registry import Operator


def _run(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    count: int,
    exclude_self: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    x, y, x_lengths, y_lengths = contiguous(x, y, x_lengths, y_lengths)
    found: tuple[Tensor, Tensor] = dispatch.load(backend, "nearest").nearest(
        x, y, count, exclude_self, x_lengths, y_lengths
    )
    return found


def _fake(x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, count: int, *_: Any) -> Any:
    shape = (*x.shape[:-1], count)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    saved = (*inputs[:2], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*saved)
    if may_need_tangents():
        ctx.save_for_forward(*saved)


def _found(points: Tensor, indices: Tensor) -> Tensor:  # [B?, M, D], [B?, N, k] -> [B?, N, k, D]
    flat = indices.clamp(min=0).flatten(-2)[..., None].expand(*indices.shape[:-2], -1, points.shape[-1])
    return points.gather(-2, flat).unflatten(-2, indices.shape[-2:])


def _differences(x: Tensor, y: Tensor, indices: Tensor) -> Tensor:  # [B?, N, k, D]
    """x_i - y_j of what was found; 0 where there was nothing, whatever is in memory there."""
    return torch.where((indices >= 0)[..., None], x[..., :, None, :] - _found(y, indices), 0.0)


def _backward(ctx: Any, u: Tensor, *_: Any) -> tuple[Any, ...]:
    x, y, indices = ctx.saved_tensors
    u = torch.where(indices >= 0, u, 0.0)
    pull = 2 * u[..., None] * _differences(x, y, indices)  # [B?, N, k, D]
    gx = gy = None
    if ctx.needs_input_grad[0]:
        gx = pull.sum(-2)
    if ctx.needs_input_grad[1]:
        flat = indices.clamp(min=0).flatten(-2)[..., None].expand(*indices.shape[:-2], -1, y.shape[-1])
        gy = torch.zeros_like(y).scatter_add(-2, flat, -pull.flatten(-3, -2))
    return gx, gy, None, None, None, None, None


def _jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None, *_: Any) -> tuple[Tensor, None]:
    x, y, indices = ctx.saved_tensors
    dx = torch.zeros_like(x) if dx is None else dx
    dy = torch.zeros_like(y) if dy is None else dy
    return 2 * (_differences(x, y, indices) * _differences(dx, dy, indices)).sum(-1), None


pair_nearest = Operator(
    "pair_nearest(Tensor x, Tensor y, Tensor? x_lengths, Tensor? y_lengths, int count, bool exclude_self, str backend)"
    " -> (Tensor, Tensor)",
    run=_run,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    jvp=_jvp,
)
