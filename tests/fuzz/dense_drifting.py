"""Dense float64 truths of drifting and its variants: one problem, arguments as the function's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.fuzz.dense import _log_sum, _logits, origin, others, pairs, softmax
from tests.fuzz.radial import at_positive, rounded_apart
from tests.fuzz.rounding import ULPS, Rounding


def distances(R: Rounding, x, y, middle=None) -> Tensor:
    """|x_i - y_j|, derivatives of all orders rounded apart; 0 where points coincide."""
    return rounded_apart(lambda q: at_positive(q, torch.sqrt), R)(pairs(R, x, y, centred=True, middle=middle)[1])


def _algorithm_2(R: Rounding, x, y, positive, logits, weights, clip: float) -> Tensor:
    """V of the joint matrix L [N, M], where ``positive`` says which targets are data."""
    product = R(softmax(R, logits, 1) * softmax(R, logits, 0))
    root = at_positive(product.clamp(min=clip), torch.sqrt) * weights[None]
    pull, push = (torch.where(mask[None], root, 0.0) for mask in (positive, ~positive))
    weight = pull * push.sum(1, keepdim=True) - push * pull.sum(1, keepdim=True)
    # the weights of a row add up to 0: differences from x_i do as well as the points, about the middle of the data
    middle = origin(y[positive])
    out = (R(weight)[..., None] * -pairs(R, x, y, centred=True, middle=middle)[0]).sum(1)
    carried = (y - middle).detach().abs()
    lost = (weight.detach().abs()[..., None] * torch.where(weight[..., None] == 0, 0.0, carried[None])).sum(1)
    return R.moved(out, lost / ULPS)


def several(R: Rounding, force: Callable[[float], Tensor], temperature, normalization: str | None) -> Tensor:
    """The sum of a force over temperatures, each of unit mean square if that is wanted."""
    forces, least = [], 1e-28 if R.eps > 1e-9 else 1e-140
    for each in temperature if isinstance(temperature, list) else [temperature]:
        v = force(each)
        if normalization is not None and v.numel():
            size = v.detach().abs().amax()
            if R.eps and 0 < size < least:  # what underflows, or has lost digits, is not brought to a unit
                v = v * math.nan
            v = v / torch.where(size > 0, size, 1.0)
            square = v.square().mean()
            v = v / torch.where(size > 0, square, 1.0).sqrt()
        forces.append(v)
    return torch.stack(forces).sum(0)


def counted(points, log_weights) -> tuple[Tensor, Tensor, Tensor]:
    """Which samples count, those, and the logarithms of their weights."""
    logs = torch.zeros(len(points), dtype=points.dtype) if log_weights is None else log_weights
    there = logs.detach() > -math.inf
    return there, points[there], logs[there]


def drift_gmd(
    R: Rounding,
    x,
    y,
    negatives=None,
    y_log_weights=None,
    negatives_log_weights=None,
    *,
    temperature,
    clip: float | None = None,
    exclude_self: bool | None = None,
    normalization: str | None = None,
) -> Tensor:
    same = negatives is None
    negatives = x if same else negatives
    exclude_self = same if exclude_self is None else exclude_self
    (there, negatives, a), (_, y, b) = counted(negatives, negatives_log_weights), counted(y, y_log_weights)
    targets, logs = torch.cat((negatives, y)), torch.cat((a, b))
    positive = torch.arange(len(targets)) >= len(negatives)
    r = distances(R, x, targets, origin(y))  # points are centred where the data are
    own = others(len(x), len(there), exclude_self)[:, there]
    own = torch.cat((own, others(len(x), len(y), False)), 1)

    def force(temperature: float) -> Tensor:
        logits = R(-r / temperature)
        if not (y_log_weights is negatives_log_weights is None):
            logits = R(logits + R(logs))
        logits = torch.where(own, logits, -math.inf)
        return _algorithm_2(R, x, targets, positive, logits, torch.ones(len(targets), dtype=x.dtype), clip or 0.0)

    return several(R, force, temperature, normalization)


def drift_gmd_multi(
    R: Rounding,
    x,
    y,
    negatives=None,
    x_weights=None,
    y_weights=None,
    negatives_weights=None,
    *,
    temperatures,
    clip=1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    none = x[:0]
    kinds = ((x, x_weights), (none if negatives is None else negatives, negatives_weights), (y, y_weights))
    targets = torch.cat([points for points, _ in kinds])
    weights = torch.cat([torch.ones(len(p), dtype=x.dtype) if w is None else w for p, w in kinds])
    r = distances(R, x, targets, origin(y)).clamp(min=1e-4)
    scale = (r * weights[None]).sum() / (len(x) * weights.sum())
    unit, step = scale.clamp(min=1e-3), (scale / math.sqrt(x.shape[1])).clamp(min=1e-3)
    logits = r / unit + 100 * torch.eye(*r.shape, dtype=x.dtype)
    positive = torch.arange(len(targets)) >= len(targets) - len(y)
    total, raws = torch.zeros_like(x), []
    for temperature in temperatures:
        exponents = R(-logits / temperature)
        v = _algorithm_2(R, x, targets, positive, exponents, weights, clip) / step
        raws.append(v.square().mean())
        total = total + v / raws[-1].clamp(min=1e-8).sqrt()
    return total * step, scale, torch.stack(raws)


Plan = tuple[Tensor, Sequence[Tensor]]
"""Logarithms [N, M], and parts that they are the sum of."""


def drift_coupling(
    R: Rounding,
    x,
    y,
    negatives=None,
    y_log_weights=None,
    negatives_log_weights=None,
    *,
    temperature,
    coupling: str,
    metric: str,
    form: str,
    n_sweeps: int = 20,
    exclude_self: bool | None = None,
    normalization: str | None = None,
) -> Tensor:
    same = negatives is None
    exclude_self = (same and coupling != "sinkhorn") if exclude_self is None else exclude_self
    (_, y, b), (there, z, a) = counted(y, y_log_weights), counted(x if same else negatives, negatives_log_weights)
    own = others(len(x), len(there), exclude_self)[:, there]

    def force(temperature: float) -> Tensor:
        kernel = [["laplace", 1.0, temperature] if metric == "l2" else ["gaussian", 1.0, math.sqrt(temperature / 2)]]
        pull, push = (_logits(R, x, t, None, kernel, False, centred=True)[..., 0] for t in (y, z))
        push = torch.where(own, push, -math.inf)
        if form == "split":
            means = [
                _mean(R, t, _plan(R, logits, logs, coupling, n_sweeps), origin(y))
                for t, logits, logs in ((y, pull, b), (z, push, a))
            ]
            return means[0] - means[1]
        plan, parts = _plan(R, torch.cat((push, pull), 1), torch.cat((a, b)), coupling, n_sweeps)
        minus, plus = ((plan[:, at], [part[:, at] for part in parts]) for at in (slice(len(z)), slice(len(z), None)))
        masses = [R(_log_sum(R, logarithms[..., None])) for logarithms, _ in (minus, plus)]
        difference = _mean(R, y, plus, origin(y)) - _mean(R, z, minus, origin(y))
        return R(R.moved(masses[0] + masses[1], 1.0).exp())[:, None] * difference

    return several(R, force, temperature, normalization)


def _mean(R: Rounding, points, plan: Plan, middle) -> Tensor:
    log_plan, parts = plan
    share, values = softmax(R, log_plan, 1), R(points - middle)
    if not R.eps or not share.numel():
        return R(share[..., None] * values[None]).sum(1)
    known = share.detach()
    slopes = [torch.where(known == 0, 0.0, part - part.detach()) for part in parts]  # of value 0
    for slope in slopes:  # a share less its square, where that is nothing
        share = share * (1 + R.moved(torch.zeros_like(known), 1.0) * slope)
    out = R(share[..., None] * values[None]).sum(1)
    # 0, whose derivative is that of each slope times what a mean has rounded: they are of values less their mean, and
    # the slopes of logarithms that add up to the plan's come by ways of their own
    p, carried = known, values.detach()[None]
    away = (carried - (p[..., None] * carried).sum(1, keepdim=True)).abs()
    exponents = torch.where(p == 0, 0.0, log_plan.detach().abs()).amax(1)[:, None, None]
    size = (p[..., None] * (carried.abs() + exponents / 4 * away)).sum(1)
    for slope in slopes:
        out = out + R.moved(torch.zeros_like(size), size) * (share * slope).sum(1, keepdim=True)
    return out


def _plan(R: Rounding, logits, logs, coupling: str, n_sweeps: int) -> Plan:
    """Logarithms of the coupling [N, M], and what they are the sum of, but for what rows have in common."""

    def lse(values: Tensor, dim: int) -> Tensor:
        flat = values if dim == 1 else values.T
        out = R.moved(R(_log_sum(R, flat[..., None])), 1.0)
        return out[:, None] if dim == 1 else out[None]

    if coupling == "sinkhorn":
        logs = R(logs - logs.logsumexp(0))[None]
        u, v = -math.log(len(logits)), torch.zeros_like(logs)
        f = torch.zeros(len(logits), 1, dtype=logits.dtype)
        for _ in range(n_sweeps):
            f = u - lse(R(logits + R(logs + v)), 1)
            v = -lse(R(logits + R(f)), 0)
        return R(logits + R(f)) + R(logs + v), _parts(logits, logs, v)
    weighted = R(logits + R(logs)[None])
    rows = lse(weighted, 1)
    if coupling == "row":
        return weighted - rows, _parts(logits, logs[None])
    columns = lse(logits, 0)
    return R(logits - R(0.5 * (rows + columns))) + 0.5 * logs[None], _parts(logits, 0.5 * logs[None], 0.5 * columns)


def _parts(logits, *shared) -> tuple[Tensor, ...]:
    return logits, *(t.expand_as(logits) for t in shared)
