"""The backend's functions through KeOps: one formula each, batches one after the other.

KeOps is here for kernels that nobody has written a loop for. Each reduction is compiled on its first use for a number
of coordinates and a set of profiles; coefficients, bandwidths and parameters are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gwf_fast.kernels.keops import kernel
from gwf_fast.kernels.keops.compile import reduction

Tangent = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""A direction (dx, dy, da, db); None is zero."""

ABSENT = 1e30
"""Taken from the exponent of a pair that is left out of a log-sum-exp."""

SMALL = 4096
"""Row numbers are split into digits of this base, exact in float32."""


class _Call:
    """The variables of a formula, and how to run it for every batch."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        spec: Sequence[float],
        exclude_self: bool,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
    ) -> None:
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"x: got {x.dtype}, the keops backend expects torch.float32 or torch.float64")
        self.batch, self.n, self.dim = x.shape
        self.m = y.shape[1]
        self.x = x
        self.exclude_self = exclude_self
        self.numbers = tuple(int(number) for number in spec[::4])
        self.x_lengths = [self.n] * self.batch if x_lengths is None else x_lengths.tolist()
        self.y_lengths = [self.m] * self.batch if y_lengths is None else y_lengths.tolist()
        self.names: list[str] = []
        self.values: list[tuple[str, Tensor]] = []
        self.rows("x", x)
        self.columns("y", y)
        self._parameter(kernel.parameters(spec, x))
        if exclude_self:
            self.rows("ni", _digits(self.n, x))
            self.columns("nj", _digits(self.m, x))

    def rows(self, name: str, value: Tensor) -> str:
        """Adds a variable of i, [B, N, K]."""
        return self._add(name, "Vi", value)

    def columns(self, name: str, value: Tensor) -> str:
        """Adds a variable of j, [B, M, K]."""
        return self._add(name, "Vj", value)

    def _add(self, name: str, category: str, value: Tensor) -> str:
        self.names.append(f"{name}={category}({len(self.names)},{value.shape[-1]})")
        self.values.append((category, value))
        return name

    def _parameter(self, value: Tensor) -> None:
        self.names.append(f"h=Pm({len(self.names)},{value.shape[0]})")
        self.values.append(("Pm", value))

    def without_self(self, formula: str) -> str:
        """The formula, 0 where j == i if asked for."""
        return f"(Sign(SqDist(ni,nj))*{formula})" if self.exclude_self else formula

    def run(
        self, formula: str, width: int, empty: float = 0.0, operation: str = "Sum", weight: str | None = None
    ) -> Tensor:  # [B, N, width]
        """Reduces over j; rows beyond the lengths, and sums of nothing, are `empty`."""
        out = self.x.new_full((self.batch, self.n, width), empty)
        for b, (n, m) in enumerate(zip(self.x_lengths, self.y_lengths)):
            if n > 0 and m > 0:
                arguments = [self._of_batch(category, value, b, n, m) for category, value in self.values]
                out[b, :n] = reduction(formula, tuple(self.names), operation, weight)(*arguments)
        return out

    def _of_batch(self, category: str, value: Tensor, b: int, n: int, m: int) -> Tensor:
        if category == "Pm":
            return value
        part = value[b] if value.shape[0] > 1 else value[0]
        return part[: n if category == "Vi" else m].contiguous()


def _digits(count: int, like: Tensor) -> Tensor:  # [1, count, 2]
    index = torch.arange(count, device=like.device)
    return torch.stack([index % SMALL, index // SMALL], 1).to(like.dtype)[None]


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
    call = _Call(x, y, spec, exclude_self, x_lengths, y_lengths)
    formula = call.without_self(kernel.mixture(call.numbers, None).derivatives[0])
    if b is None:
        return call.run(formula, 1)
    return call.run(f"{formula}*{call.columns('b', b)}", b.shape[2])


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
    call = _Call(x, y, spec, exclude_self, x_lengths, y_lengths)
    weight = "" if b is None else f"*{call.columns('b', b[:, :, None])}"
    formula = call.without_self(f"IntCst(2)*{kernel.mixture(call.numbers, None).derivatives[1]}")
    return call.run(f"({formula}{weight})*(x-y)", x.shape[2])


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
    call = _Call(x, y, spec, exclude_self, x_lengths, y_lengths)
    weight = "" if b is None else f"*{call.columns('b', b[:, :, None])}"
    text = kernel.mixture(call.numbers, None)
    value = call.without_self(text.derivatives[0])
    slope = call.without_self(f"IntCst(2)*{text.derivatives[1]}")
    out = call.run(f"Concat({value}{weight},({slope}{weight})*(x-y))", 1 + x.shape[2])
    return out[:, :, 0].contiguous(), out[:, :, 1:].contiguous()


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
    return _logsumexp(_Call(x, y, spec, exclude_self, x_lengths, y_lengths), _or_zeros(beta, y))


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
    call = _Call(x, y, spec, exclude_self, x_lengths, y_lengths)
    logarithm = _logsumexp(call, _or_zeros(beta, y))
    call.rows("total", logarithm[:, :, None])
    weight = call.without_self(kernel.mixture(call.numbers, "(beta-total)").derivatives[0])
    values = "y" if v is None else call.columns("v", v)
    return call.run(f"{weight}*{values}", y.shape[2] if v is None else v.shape[2]), logarithm


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
    """Gradients in (x, a) of the derivative along the tangents of sum_ij e^(alpha_i + beta_j) a_i.b_j k_ij.

    The formulas are those of ``kernels/triton/jets.py``.
    """
    order = len(tangents)
    if order > 2:
        raise NotImplementedError(f"tangents: got {order}, the keops backend has derivatives up to order 2")
    call = _Call(x, y, spec, exclude_self, x_lengths, y_lengths)
    call.rows("a", a)
    call.columns("b", b)
    for k, (dx, dy, da, db) in enumerate(tangents, 1):
        for name, add, value, like in (
            (f"dx{k}", call.rows, dx, x), (f"dy{k}", call.columns, dy, y),
            (f"da{k}", call.rows, da, a), (f"db{k}", call.columns, db, b),
        ):  # fmt: skip
            add(name, torch.zeros_like(like) if value is None else value)
    shift = None
    if alpha is not None or beta is not None:
        call.rows("alpha", _or_zeros(alpha, x)[:, :, None])
        call.columns("beta", _or_zeros(beta, y)[:, :, None])
        shift = "(alpha+beta)"
    f = [call.without_self(row) for row in kernel.mixture(call.numbers, shift).derivatives]
    gx, ga = _JETS[order](f)
    out = call.run(f"Concat(IntCst(2)*({gx}),{ga})", x.shape[2] + a.shape[2])
    return out[:, :, : x.shape[2]].contiguous(), out[:, :, x.shape[2] :].contiguous()


def _jet0(f: list[str]) -> tuple[str, str]:
    return f"((a|b)*{f[1]})*(x-y)", f"{f[0]}*b"


_D1, _D2 = "(dx1-dy1)", "(dx2-dy2)"
_Q1, _Q2, _Q12 = f"(IntCst(2)*((x-y)|{_D1}))", f"(IntCst(2)*((x-y)|{_D2}))", f"(IntCst(2)*({_D1}|{_D2}))"
_A1, _A2 = "((da1|b)+(a|db1))", "((da2|b)+(a|db2))"
_A12 = "((da1|db2)+(da2|db1))"


def _jet1(f: list[str]) -> tuple[str, str]:
    along_d = f"({_A1}*{f[1]}+(a|b)*{f[2]}*{_Q1})"
    return f"{along_d}*(x-y)+((a|b)*{f[1]})*{_D1}", f"({f[1]}*{_Q1})*b+{f[0]}*db1"


def _jet2(f: list[str]) -> tuple[str, str]:
    along_d = f"({_A12}*{f[1]}+{_A1}*{f[2]}*{_Q2}+{_A2}*{f[2]}*{_Q1}+(a|b)*({f[3]}*{_Q1}*{_Q2}+{f[2]}*{_Q12}))"
    along_d1 = f"({_A2}*{f[1]}+(a|b)*{f[2]}*{_Q2})"
    along_d2 = f"({_A1}*{f[1]}+(a|b)*{f[2]}*{_Q1})"
    gx = f"{along_d}*(x-y)+{along_d1}*{_D1}+{along_d2}*{_D2}"
    ga = f"({f[2]}*{_Q1}*{_Q2}+{f[1]}*{_Q12})*b+({f[1]}*{_Q2})*db1+({f[1]}*{_Q1})*db2"
    return gx, ga


_JETS: tuple[Callable[[list[str]], tuple[str, str]], ...] = (_jet0, _jet1, _jet2)


def _or_zeros(value: Tensor | None, like: Tensor) -> Tensor:  # [B, L]
    return like.new_zeros(like.shape[:2]) if value is None else value


def _logsumexp(call: _Call, beta: Tensor) -> Tensor:  # [B, N]
    call.columns("beta", beta[:, :, None])
    exponent = kernel.mixture(call.numbers, None).exponent
    # The smallest exponent goes into the maximum; what the terms keep is moderate, and multiplies it as a weight.
    shifted = "beta" if exponent is None else f"beta-{exponent}"
    weight = kernel.mixture(call.numbers, exponent).derivatives[0]
    if call.exclude_self:
        absent = call.x.new_tensor([ABSENT]).expand(1, call.n, 1)
        shifted = f"({shifted})+{call.rows('absent', absent)}*(Sign(SqDist(ni,nj))-IntCst(1))"
    out = call.run(shifted, 1, -math.inf, "LogSumExp", weight)[:, :, 0]
    return torch.where(out < -0.5 * ABSENT, -math.inf, out)
