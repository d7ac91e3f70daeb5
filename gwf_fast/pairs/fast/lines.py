"""Sums over all pairs of numbers in each of several lines, as one differentiable function."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from gwf_fast.pairs.fast.series import Series
from gwf_fast.pairs.fast.slicing import LineForm
from gwf_fast.pairs.fast.transform import series_sum

FEW_WAVES = 1024
"""Waves that are summed one after the other; more go through a non-uniform FFT a line."""


def line_sums(x: Tensor, y: Tensor, weights: Tensor, form: LineForm, order: int) -> Tensor:  # [L, C, N]
    """sum_j w_j f^(order)(x_i - y_j) for x [L, N], y [L, M], weights [1 or L, C, M]; differentiable.

    Raises:
        NotImplementedError: The terms along lines have no mean.
    """
    if order > form.most:
        raise NotImplementedError(
            f'method="sliced": derivatives of order {order} of this kernel along lines have no mean, up to {form.most}'
            ' they have; use method="exact" or "nufft"'
        )
    return _LineSums.apply(x, y, weights, form, order)


class _LineSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weights: Tensor, form: LineForm, order: int) -> Tensor:
        ctx.save_for_backward(x, y, weights)
        ctx.form, ctx.order = form, order
        u = x.contiguous()
        return _evaluate(u, u if y is x else y.contiguous(), weights.contiguous(), form, order)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        """f is even: its derivatives in y are those in x with the sign of their order."""
        x, y, weights = ctx.saved_tensors
        form, order = ctx.form, ctx.order
        of_x = of_y = of_weights = None
        if ctx.needs_input_grad[0]:
            of_x = (g * line_sums(x, y, weights, form, order + 1)).sum(1)
        if ctx.needs_input_grad[1]:
            of_y = (-1) ** order * (weights * line_sums(y, x, g, form, order + 1)).sum(1)
        if ctx.needs_input_grad[2]:
            of_weights = (-1) ** order * line_sums(y, x, g, form, order)
            of_weights = of_weights.sum(0, keepdim=True) if len(weights) == 1 else of_weights
        return of_x, of_y, of_weights, None, None


def _evaluate(x: Tensor, y: Tensor, weights: Tensor, form: LineForm, order: int) -> Tensor:
    from gwf_fast.kernels.cpp.sliced import sliced_sum  # here: importing the package loads no compiled module

    if len(form.waves) <= FEW_WAVES:
        return sliced_sum(x, y, weights, order, form.period, form.first, form.waves, form.powers, *form.decaying)
    out = sliced_sum(x, y, weights, order, form.period, 0, form.waves[:0], form.powers, *form.decaying)
    largest = form.first + len(form.waves) - 1
    half = torch.zeros(largest + 1, dtype=torch.float64)
    half[form.first :] = form.waves / 2
    half[0] *= 2
    coefficients = torch.cat([half[1:].flip(0), half])
    series = Series((form.period,), (largest,), (0.0, 0), 0.0, 0, 0.0)
    accuracy, single = (1e-5, True) if x.dtype is torch.float32 else (1e-9, False)

    @torch.no_grad()  # which a thread does not inherit
    def add(line: int) -> None:
        a, b = x[line, :, None].double(), y[line, :, None].double()
        carried = weights[line if len(weights) > 1 else 0].T
        part = series_sum(a, b, carried, series, coefficients, order, accuracy, single, threads=1)
        out[line] += part[..., 0].T.to(out.dtype)

    # A line is too little work for several threads; FINUFFT leaves Python's lock alone.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(add, range(len(x))))
    return out
