"""The one operator of derivatives: gradients of directional derivatives of a bilinear energy.

    E(x, y, a, b) = sum_ij exp(alpha_i + beta_j) (a_i . b_j) k(x_i, y_j)

``pair_jet`` of order k returns G_k(t_1 .. t_k) = grad_(x, a) D_t1 .. D_tk E. The family is closed, because the
derivatives of E are symmetric multilinear forms: the vector-Jacobian product of G_k with cotangent u is
G_{k+1}(t_1 .. t_k, u) in the points and G_k(.. u in the place of t_l ..) in the tangent t_l; the part in (y, b)
is the same operator with rows and columns exchanged. See ``kernels/reference/pairs.py`` for the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gwf_fast.kernels.plain import plain
from gwf_fast.ops import dispatch
from gwf_fast.ops.modes import is_concrete, may_need_tangents
from gwf_fast.ops.registry import Operator

Tangent = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # (dx, dy, da, db); None is zero

MAX_ORDER = 2


class Options(NamedTuple):
    """What every operator takes after its tensors."""

    spec: Sequence[float]
    exclude_self: bool
    x_lengths: Tensor | None
    y_lengths: Tensor | None
    backend: str

    def swapped(self) -> Options:
        """The same with rows and columns exchanged."""
        return Options(self.spec, self.exclude_self, self.y_lengths, self.x_lengths, self.backend)


OPTIONS = "float[] kernel, bool exclude_self, Tensor? x_lengths, Tensor? y_lengths, str backend"


def save(ctx: Any, tensors: Sequence[Tensor | None], options: Sequence[Any]) -> None:
    """Keep tensors and options for backward; tensors where autograd and functorch can see them."""
    spec, exclude_self, x_lengths, y_lengths, backend = options
    ctx.save_for_backward(*tensors, x_lengths, y_lengths)
    if may_need_tangents():
        ctx.save_for_forward(*tensors, x_lengths, y_lengths)
    ctx.rest = (spec, exclude_self, backend)


def load(ctx: Any) -> tuple[list[Any], Options]:
    """What ``save`` kept."""
    *tensors, x_lengths, y_lengths = ctx.saved_tensors
    spec, exclude_self, backend = ctx.rest
    return tensors, Options(spec, exclude_self, x_lengths, y_lengths, backend)


def contiguous(*tensors: Tensor | None) -> list[Any]:
    """Tensors as backends take them."""
    return [None if tensor is None else plain(tensor) for tensor in tensors]


def jet(
    x: Tensor,  # [B?, N, D]
    y: Tensor,  # [B?, M, D]
    a: Tensor,  # [B?, N, C]
    b: Tensor,  # [B?, M, C]
    alpha: Tensor | None,  # [B?, N]
    beta: Tensor | None,  # [B?, M]
    tangents: Sequence[Tangent],
    options: Options,
) -> tuple[Tensor, Tensor]:  # [B?, N, D], [B?, N, C]
    """G_k as a differentiable operator, k = len(tangents)."""
    if len(tangents) > MAX_ORDER:
        raise NotImplementedError("derivatives of this reduction are implemented up to the second order")
    zero: Tangent = (None, None, None, None)
    t1, t2 = (*tangents, zero, zero)[:MAX_ORDER]
    return pair_jet(x, y, a, b, alpha, beta, *t1, *t2, len(tangents), *options)


def swap(tangent: Tangent) -> Tangent:
    """The tangent with rows and columns exchanged."""
    dx, dy, da, db = tangent
    return dy, dx, db, da


def _run(x: Tensor, y: Tensor, a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    alpha, beta, *directions = contiguous(*rest[:10])
    order, spec, exclude_self, x_lengths, y_lengths, backend = rest[10:]
    x_lengths, y_lengths = contiguous(x_lengths, y_lengths)
    return dispatch.function(backend, "pair_jet")(
        *contiguous(x, y, a, b),
        alpha,
        beta,
        [tuple(directions[:4]), tuple(directions[4:])][:order],
        tuple(spec),
        exclude_self=exclude_self,
        x_lengths=x_lengths,
        y_lengths=y_lengths,
    )


def _fake(x: Tensor, y: Tensor, a: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), a.new_empty(a.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    save(ctx, inputs[:14], inputs[15:])
    ctx.order = inputs[14]
    ctx.set_materialize_grads(False)  # an unused result costs nothing: None is a zero tangent


def _backward(ctx: Any, ux: Tensor | None, ua: Tensor | None) -> tuple[Any, ...]:
    (x, y, a, b, alpha, beta, *directions), options = load(ctx)
    tangents: list[Tangent] = [tuple(directions[:4]), tuple(directions[4:])][: ctx.order]
    u: Tangent = (ux, None, ua, None)

    def rows_and_columns(needs: Sequence[bool], along: list[Tangent]) -> list[Tensor | None]:
        """Gradients in (x, y, a, b) or in one tangent (dx, dy, da, db), where needed."""
        out: list[Tensor | None] = [None] * 4
        if needs[0] or needs[2]:
            out[0], out[2] = jet(x, y, a, b, alpha, beta, along, options)
        if needs[1] or needs[3]:
            out[1], out[3] = jet(y, x, b, a, beta, alpha, [swap(t) for t in along], options.swapped())
        return [value if needed else None for value, needed in zip(out, needs, strict=True)]

    needs = ctx.needs_input_grad
    grads = [*rows_and_columns(needs[:4], [*tangents, u]), None, None]
    for position in range(MAX_ORDER):
        others = [t for other, t in enumerate(tangents) if other != position]
        wanted = needs[6 + 4 * position : 10 + 4 * position]
        grads += rows_and_columns(wanted, [*others, u]) if position < ctx.order else [None] * 4
    return *grads, None, None, None, None, None, None


def _jvp(ctx: Any, *directions: Any) -> tuple[Tensor, Tensor]:
    (x, y, a, b, alpha, beta, *saved), options = load(ctx)
    tangents: list[Tangent] = [tuple(saved[:4]), tuple(saved[4:])][: ctx.order]
    moved = [tuple(directions[6:10]), tuple(directions[10:14])]
    families = [[*tangents, directions[:4]]]
    families += [[*tangents[:k], moved[k], *tangents[k + 1 :]] for k in range(ctx.order)]
    parts = [jet(x, y, a, b, alpha, beta, family, options) for family in families]
    return sum(gx for gx, _ in parts), sum(ga for _, ga in parts)  # type: ignore[return-value]


pair_jet = Operator(
    "pair_jet(Tensor x, Tensor y, Tensor a, Tensor b, Tensor? alpha, Tensor? beta,"
    " Tensor? dx1, Tensor? dy1, Tensor? da1, Tensor? db1, Tensor? dx2, Tensor? dy2, Tensor? da2, Tensor? db2,"
    f" int order, {OPTIONS}) -> (Tensor, Tensor)",
    run=_run,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    jvp=_jvp,
)


def present(values: Tensor | None, lengths: Tensor | None) -> Any:  # [B?, M] or [B?, M, C]
    """Values with zeros beyond the lengths, where anything may stand: 0 times NaN is not 0."""
    if values is None or lengths is None:
        return values
    exists = torch.arange(values.shape[lengths.ndim], device=values.device) < lengths[..., None]
    return torch.where(exists if values.ndim == lengths.ndim + 1 else exists[..., None], values, 0.0)


def safe_exp_difference(value: Tensor) -> Tensor:
    """exp(value - value.detach()): 1, with the derivative of ``value`` to every order; also where value is -inf."""
    if is_concrete(value) and not (torch.is_grad_enabled() and value.requires_grad):
        return torch.ones_like(value)
    finite = torch.where(value.detach() == -torch.inf, 0.0, value)
    return (finite - finite.detach()).exp()
