"""Dense float64 truths of sliced discrepancies and drifts: one problem, arguments as the function's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.fuzz.dense import (
    Terms,
    _mean_shift,
    kernel_gradient,
    kernel_logsumexp,
    offsets,
    origin,
)
from tests.fuzz.radial import at_positive
from tests.fuzz.rounding import Rounding

# ------------------------------------------------------------------------------------------------ sliced


def _lines(R: Rounding, x, y, directions) -> tuple[Tensor, Tensor]:
    """Projections [P, N], [P, M]; a product is off by a rounding of its points' distance from an origin amid y."""
    middle = origin(y)
    # not by a matrix product: points that coincide are to have equal projections, wherever they lie in memory
    lines = ((directions[:, None] * t.contiguous()[None]).sum(-1) for t in offsets(x, y))
    of_x, of_y = (
        R(R.moved(line, (t - middle).detach().norm(dim=1)[None])) for line, t in zip(lines, (x, y), strict=True)
    )
    return of_x, of_y


def _share(R: Rounding, weights, n: int, like: Tensor) -> Tensor:
    return torch.full((n,), 1 / n, dtype=like.dtype) if weights is None else R(R(weights) / R(weights.sum()))


def _costs(R: Rounding, x, y, directions, x_weights, y_weights, p: float) -> Tensor:
    """W_p^p along each direction."""
    a, b = _share(R, x_weights, len(x), x), _share(R, y_weights, len(y), y)
    lines = zip(*_lines(R, x, y, directions), strict=True)
    return torch.stack([_line_cost(R, line_x, line_y, a, b, p) for line_x, line_y in lines])


def _line_cost(R: Rounding, line_x, line_y, a, b, p: float) -> Tensor:
    i, j = line_x.argsort(stable=True), line_y.argsort(stable=True)
    ends_x, ends_y = a[i].cumsum(0), b[j].cumsum(0)
    steps = max(1.0, math.sqrt(len(a) + len(b)) / 4)  # partial sums, each off by those before it
    ends = R.moved(torch.cat((ends_x[:-1], ends_y[:-1])), steps).clamp(0, 1).sort().values
    edges = torch.cat((ends.new_zeros(1), ends, ends.new_ones(1)))
    middles, lengths = (edges[1:] + edges[:-1]) / 2, edges.diff()
    from_x = torch.searchsorted(ends_x.detach().contiguous(), middles.detach()).clamp(max=len(a) - 1)
    from_y = torch.searchsorted(ends_y.detach().contiguous(), middles.detach()).clamp(max=len(b) - 1)
    d = line_x[i][from_x] - line_y[j][from_y]
    return (lengths * R(d**2 if p == 2 else d.abs() ** p)).sum()


def _root(value: Tensor, p: float) -> Tensor:
    """Without a slope at 0."""
    return torch.where(value > 0, torch.where(value > 0, value, 1.0) ** (1 / p), value)


def sliced_wasserstein2(R: Rounding, x, y, directions, x_weights=None, y_weights=None) -> Tensor:
    return _costs(R, x, y, directions, x_weights, y_weights, 2.0).mean()


def sliced_wasserstein(R: Rounding, x, y, directions, x_weights=None, y_weights=None, *, p: float) -> Tensor:
    return _root(_costs(R, x, y, directions, x_weights, y_weights, p).mean(), p)


def max_sliced_wasserstein(R: Rounding, x, y, directions, x_weights=None, y_weights=None, *, p: float) -> Tensor:
    return _root(_costs(R, x, y, directions, x_weights, y_weights, p).max(), p)


def spherical_sliced_wasserstein(R: Rounding, x, y, planes, x_weights=None, y_weights=None, *, p: float) -> Tensor:
    """Each circle cut open at every pair of points, and the cheapest line taken."""
    a, b = _share(R, x_weights, len(x), x), _share(R, y_weights, len(y), y)
    total = x.new_zeros(())
    for plane in planes:
        (u, order_x), (v, order_y) = (_angles(R, t, plane).sort() for t in (x, y))
        s, t = a[order_x], b[order_y]
        best = _best_cut(u.detach(), v.detach(), s.detach(), t.detach(), p)
        total = total + _opened(R, u, v, s, t, best, p)
    return _root(total / len(planes), p)


def _best_cut(u: Tensor, v: Tensor, a: Tensor, b: Tensor, p: float) -> tuple[int, int, int]:
    """Of all pairs of points, and turns between them: the cheapest plan along the line."""
    starts = [(i, j, turn) for i in range(len(u)) for j in range(len(v)) for turn in (-1, 0, 1)]
    x, y, s, t = (
        torch.stack(each)
        for each in zip(
            *(
                (torch.cat((u[i:], u[:i] + 1)) + turn, torch.cat((v[j:], v[:j] + 1)), a.roll(-i), b.roll(-j))
                for i, j, turn in starts
            ),
            strict=True,
        )
    )
    ends_x, ends_y = s.cumsum(1), t.cumsum(1)
    edges = torch.cat((torch.zeros(len(starts), 1, dtype=u.dtype), ends_x[:, :-1], ends_y), 1).sort(1).values
    middles = (edges[:, 1:] + edges[:, :-1]) / 2
    i, j = ((ends[:, None, :-1] < middles[..., None]).sum(2) for ends in (ends_x, ends_y))
    costs = (edges.diff() * (x.gather(1, i) - y.gather(1, j)).abs() ** p).sum(1)
    return starts[int(costs.argmin())]


def _angles(R: Rounding, points: Tensor, plane: Tensor) -> Tensor:
    first, second = (R.moved(points @ plane[side], torch.ones(len(points), dtype=points.dtype)) for side in (0, 1))
    return R(torch.atan2(second, first) / (2 * math.pi))


def _opened(R: Rounding, u: Tensor, v: Tensor, a: Tensor, b: Tensor, start: tuple[int, int, int], p: float) -> Tensor:
    i, j, turn = start
    x, y = torch.cat((u[i:], u[:i] + 1)) + turn, torch.cat((v[j:], v[:j] + 1))
    return _line_cost(R, x, y, a.roll(-i), b.roll(-j), p)


def sliced_energy_distance(
    R: Rounding, x, y, directions, x_weights=None, y_weights=None, *, exponent: float = 1.0
) -> Tensor:
    a, b = _share(R, x_weights, len(x), x), _share(R, y_weights, len(y), y)
    dim = x.shape[1]
    logs = math.lgamma((dim + exponent) / 2) - math.lgamma(dim / 2) - math.lgamma((exponent + 1) / 2)

    def mean(u: Tensor, v: Tensor, p: Tensor, q: Tensor) -> Tensor:
        distance = at_positive((u[:, :, None] - v[:, None]) ** 2, lambda s: s ** (exponent / 2))
        return R(distance * p[None, :, None] * q[None, None]).sum() / len(directions)

    u, v = _lines(R, x, y, directions)
    difference = 2 * mean(u, v, a, b) - mean(u, u, a, a) - mean(v, v, b, b)
    return math.sqrt(math.pi) * math.exp(logs) * difference


def _velocity(R: Rounding, discrepancy, x, y, x_weights, *rest, **options) -> Tensor:
    """Minus half the gradient in x over the weight."""
    with torch.enable_grad():
        at = x if x.requires_grad else x.detach().requires_grad_()
        value = discrepancy(R, at, y, *rest[:1], x_weights, *rest[1:], **options)
        (g,) = torch.autograd.grad(value, at, create_graph=x.requires_grad)
    share = _share(R, x_weights, len(x), x)
    return torch.where(share > 0, -0.5 / share, 0.0)[:, None] * g


def drift_sliced_wasserstein(R: Rounding, x, y, directions, x_weights=None, y_weights=None) -> Tensor:
    return _velocity(R, sliced_wasserstein2, x, y, x_weights, directions, y_weights)


# ------------------------------------------------------------------------------------------------ drifts


def drift_parzen_kl(R: Rounding, x, y, *, bandwidth: float, exclude_self: bool = False) -> Tensor:
    return _mean_shift(R, x, y, bandwidth, False) - _mean_shift(R, x, x, bandwidth, exclude_self)


_FACTORS = {
    "kl": lambda t: 1.0 + 0 * t,
    "reverse_kl": lambda t: torch.exp(-t),  # 1 / r
    "pearson": lambda t: 2 * torch.exp(t),  # 2 r
    "neyman": lambda t: 2 * torch.exp(-2 * t),  # 2 / r^2
    "js": lambda t: torch.sigmoid(-t),  # 1 / (1 + r)
    "jeffreys": lambda t: 1 + torch.exp(-t),
    "log_d": torch.sigmoid,  # r / (1 + r)
    "squared_hellinger": lambda t: 0.5 * torch.exp(-t / 2),  # 1 / (2 sqrt(r))
}
"""r f''(r), of the model's density over the target's, whose logarithm is t."""
DIVERGENCES = tuple(_FACTORS)


def drift_f_divergence(R: Rounding, x, y, *, bandwidth: float, divergence: str, exclude_self: bool = False) -> Tensor:
    kernel = [["gaussian", 1.0, bandwidth]]
    log_q = kernel_logsumexp(R, x, x, kernel=kernel, exclude_self=exclude_self) - math.log(len(x) - exclude_self)
    log_p = kernel_logsumexp(R, x, y, kernel=kernel) - math.log(len(y))
    velocity = drift_parzen_kl(R, x, y, bandwidth=bandwidth, exclude_self=exclude_self)
    return _FACTORS[divergence](log_q - log_p)[:, None] * velocity


def drift_mmd(R: Rounding, x, y, *, kernel: Terms, exclude_self: bool = False) -> Tensor:
    away = kernel_gradient(R, x, x, kernel=kernel, exclude_self=exclude_self)
    return R(kernel_gradient(R, x, y, kernel=kernel) / len(y)) - R(away / (len(x) - exclude_self))


def drift_energy(R: Rounding, x, y, *, exponent: float = 1.0, exclude_self: bool = False) -> Tensor:
    return drift_mmd(R, x, y, kernel=[["riesz", 1.0, exponent]], exclude_self=exclude_self)


def drift_critic(R: Rounding, x, *, wave, transform: str = "wgan", shift: float = 0.0) -> Tensor:
    """Along d(x) = sin(x . w), a critic of the fuzzer's own."""
    w = torch.tensor(wave, dtype=x.dtype)[: x.shape[1]]
    phase = R.moved(x @ w, (x.abs() @ w.abs()).detach())
    d = R(phase.sin())
    factors = {
        "wgan": lambda: 1.0 + 0 * d,
        "identity": lambda: 1.0 + 0 * d,
        "log_sigmoid": lambda: 1 / (1 + d.exp()),
        "minimax": lambda: 1 / (1 + (-d - shift).exp()),
        "arcsinh": lambda: 1 / (1 + d * d).sqrt(),
    }
    # of a divergence: its factor at r = e^-d, d the logarithm of the target's density over the model's
    factor = factors[transform]() if transform in factors else _FACTORS[transform](-d)
    return R(factor * phase.cos())[:, None] * w


def drifting_loss(R: Rounding, x, velocity) -> Tensor:
    v = velocity.detach()  # a constant, and its gradient in x_i is -2 v_i / N
    moved = x - x.detach()
    return (R(v * v) - 2 * R(v) * moved + moved * moved).sum(1).mean()
