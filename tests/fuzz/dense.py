"""Dense float64 truths of reductions, discrepancies, interactions: one problem, arguments as the public function's."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import hyp1f1
from torch import Tensor

from tests.fuzz.radial import Dense, smooth_of
from tests.fuzz.rounding import ULPS, Rounding

Terms = list
PRODUCTS_FROM = 8
"""The fewest coordinates of which scalar products are formed."""


def origin(*sets: Tensor) -> Tensor | float:
    """As the package takes it: near the median where the cloud is far from 0, by some lengths of its own; else 0."""
    if not sum(map(len, sets)):
        return 0.0
    points = torch.cat(sets).detach()
    middle = points.nanmedian(0).values
    spread = (points - middle).abs().nan_to_num(0.0).amax(0)
    return torch.where(middle.abs() > 4 * spread, middle * (1 - 2.0**-8), 0.0)


def offsets(*sets: Tensor, middle: Tensor | float | None = None) -> list[Tensor]:
    """Points about that origin, or another."""
    middle = origin(*sets) if middle is None else middle
    return [t - middle for t in sets]


def pairs(
    R: Rounding,
    x: Tensor,
    y: Tensor,
    kernel: Terms | None = None,
    *,
    centred: bool = False,
    middle: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """x_i - y_j [N, M, D] and its square [N, M]; all that a difference costs is a rounding of itself.

    In many dimensions a kernel that is smooth at 0 may be a function of |x|^2 + |y|^2 - 2 x.y, about the middle of the
    cloud: both are then off by roundings of these, and so are sums that are centred by themselves, there or elsewhere.
    """
    d = R(R.behind(x)[:, None] - R.behind(y)[None])
    q = (d * d).sum(-1)
    if not R.eps:
        return d, q
    smooth = kernel is not None and smooth_of(kernel)
    products = smooth and x.shape[1] >= PRODUCTS_FROM
    u, v = offsets(x, y, middle=middle)
    apart = (R(u) - u)[:, None] - (R(v) - v)[None]
    if smooth and not products:  # coordinates may be scaled before they are subtracted, which rounds once
        d = d + apart / 8
        q = (d * d).sum(-1)
    elif products:  # slopes are along differences that are rounded likewise
        d = d + apart
        q = (d * d).sum(-1)
        q = R.moved(q, ((u * u).sum(1)[:, None] + (v * v).sum(1)[None]).detach())
        q = q - q.detach().clamp(max=0)
    elif centred:
        d = d + apart
        q = torch.where(q == 0, q, (d * d).sum(-1))
    return d, q


def others(n: int, m: int, exclude_self: bool) -> Tensor:
    """The pairs that count, [N, M]."""
    return ~torch.eye(n, m, dtype=torch.bool) if exclude_self else torch.ones(n, m, dtype=torch.bool)


def kernel_sum(R: Rounding, x, y, weights=None, *, kernel: Terms, exclude_self: bool = False) -> Tensor:
    k = Dense(kernel, R)(pairs(R, x, y, kernel)[1])
    k = torch.where(others(len(x), len(y), exclude_self), k, 0.0)  # not a weight's slope either
    channels = weights is not None and weights.ndim == 2
    w = torch.ones(len(y), 1, dtype=x.dtype) if weights is None else weights if channels else weights[:, None]
    out = R(torch.where(others(len(x), len(y), exclude_self)[..., None], k[..., None] * w, 0.0)).sum(1)
    return out if channels else out[:, 0]


def kernel_gradient(R: Rounding, x, y, weights=None, *, kernel: Terms, exclude_self: bool = False) -> Tensor:
    d, q = pairs(R, x, y, kernel)
    pull = 2 * Dense(kernel, R).slope(q)[..., None] * d
    if weights is not None:
        pull = pull * weights[None, :, None]
    return R(torch.where(others(len(x), len(y), exclude_self)[..., None], pull, 0.0)).sum(1)


def kernel_min(R: Rounding, x, y, *, k: int, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
    q = (x[:, None] - y[None]).detach().square().sum(-1)  # of the numbers given; results are rounded
    key = torch.where(q.isnan(), -1.0, q)
    nearest = torch.where(others(len(x), len(y), exclude_self), key, torch.nan).argsort(dim=1, stable=True)[:, :k]
    squares = (x[:, None] - y[nearest]).square().sum(-1)
    return R(squares), R(squares)


def _logits(
    R: Rounding, x, y, log_weights, kernel: Terms, exclude_self: bool, centred: bool = False
) -> Tensor:  # [N, M, terms]
    logs = Dense(kernel, R).log(pairs(R, x, y, kernel, centred=centred)[1])
    if log_weights is not None:
        logs = logs + R(log_weights[None, :, None] + 0 * logs)
    return torch.where(others(len(x), len(y), exclude_self)[..., None], logs, -math.inf)


def _log_sum(R: Rounding, logits: Tensor) -> Tensor:  # [N, M, terms] -> [N]
    flat = logits.flatten(1)
    if not flat.shape[1]:
        return flat.new_full((len(flat),), -math.inf)
    top = flat.detach().amax(1, keepdim=True)
    top = torch.where(top.isinf(), 0.0, top)
    terms = torch.where(flat == -math.inf, 0.0, (flat - top).exp())
    # apart from the derivatives' own terms, which are formed anew, and of which a covariance of slopes cancels
    total = R.moved(terms, terms.detach() * (1 + torch.where(flat == -math.inf, 0.0, flat).detach().abs() / 4)).sum(1)
    empty = total == 0
    return torch.where(empty, -math.inf, torch.where(empty, 1.0, total).log() + top[:, 0])


def kernel_logsumexp(R: Rounding, x, y, log_weights=None, *, kernel: Terms, exclude_self: bool = False) -> Tensor:
    out = _log_sum(R, _logits(R, x, y, log_weights, kernel, exclude_self))
    return R.moved(R(out), 1.0)


def softmax(R: Rounding, logits: Tensor, dim: int) -> Tensor:
    """e^l over its sum; 0 where a logit is -inf."""
    if not logits.numel():
        return torch.zeros_like(logits)
    top = logits.detach().amax(dim, keepdim=True)
    terms = R(torch.where(logits == -math.inf, 0.0, (R.moved(logits, 1.0) - top).exp()))
    # derivatives form exponentials anew, of exponents that have rounded: the shares of a row then do not add up to 1
    size = 1 + torch.where(logits == -math.inf, 0.0, logits).detach().abs() / 4
    total = R.moved(terms, terms.detach() * size).sum(dim, keepdim=True)
    return R(terms / R(total))


def shares(R: Rounding, x, y, log_weights, kernel: Terms, exclude_self: bool) -> Tensor:
    """w_j k_ij / sum_j w_j k_ij, [N, M]."""
    logits = _logits(R, x, y, log_weights, kernel, exclude_self, centred=True)  # averages are taken about a centre
    return softmax(R, logits.flatten(1), 1).view(logits.shape).sum(-1)


def kernel_average(
    R: Rounding, x, y, values=None, log_weights=None, *, kernel: Terms, exclude_self: bool = False
) -> Tensor:
    share = shares(R, x, y, log_weights, kernel, exclude_self)
    if values is not None:
        lost = _lost_of_a_mean(R, x, y, log_weights, kernel, exclude_self, share, values)
        return R(R(share)[..., None] * values[None]).sum(1) + lost
    # about the middle of the cloud, as the package does: what is far from the origin loses nothing there
    middle = origin(x, y)
    terms = share[..., None] * torch.where(share[..., None] == 0, 0.0, (y - middle)[None])
    lost = _lost_of_a_mean(R, x, y, log_weights, kernel, exclude_self, share, y - middle)
    return R(middle + R(terms).sum(1)) + lost


def _lost_of_a_mean(R: Rounding, x, y, log_weights, kernel: Terms, exclude_self: bool, share, values) -> Tensor | float:
    """0, whose derivative is that of slopes times what a mean has rounded: they are of values less their mean."""
    if R.eps == 0 or not share.numel():
        return 0.0
    logits = _logits(R, x, y, log_weights, kernel, exclude_self, centred=True).flatten(1)
    p = softmax(R, logits, 1).detach()
    moved = torch.where(p == 0, 0.0, p * (logits - logits.detach())).sum(1, keepdim=True)
    carried = torch.where(share[..., None] == 0, 0.0, values.detach()[None])
    share = share.detach()[..., None]
    away = (carried - (share * carried).sum(1, keepdim=True)).abs()
    exponents = torch.where(p == 0, 0.0, logits.detach().abs()).view(len(x), len(y), -1).amax(-1, keepdim=True)
    size = (share * (carried.abs() + exponents / 4 * away)).sum(1)  # the shares of slopes are formed anew
    return R.moved(torch.zeros_like(size), size) * moved


def _mean_shift(R: Rounding, x, y, bandwidth: float, exclude_self: bool) -> Tensor:
    """(m(x) - x) / h^2 of a Gaussian, by differences."""
    share = shares(R, x, y, None, [["gaussian", 1.0, bandwidth]], exclude_self)
    if not R.eps:
        return (share[..., None] * torch.where(share[..., None] == 0, 0.0, y[None] - x[:, None])).sum(1) / bandwidth**2
    middle = origin(x, y)  # a mean of points about it, less the point
    mean = R(R(share[..., None]) * torch.where(share[..., None] == 0, 0.0, (y - middle)[None])).sum(1)
    kernel = [["gaussian", 1.0, bandwidth]]
    mean = mean + _lost_of_a_mean(R, x, y, None, kernel, exclude_self, share, y - middle)
    return (R(mean) - R(x - middle)) / bandwidth**2


def parzen_log_density(R: Rounding, x, y, bandwidth: float, *, exclude_self: bool = False) -> Tensor:
    total = kernel_logsumexp(R, x, y, kernel=[["gaussian", 1.0, bandwidth]], exclude_self=exclude_self)
    rest = x.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(bandwidth))
    return R.moved(total - math.log(max(len(y) - exclude_self, 1)) - rest, abs(rest) + 1)


def parzen_score(R: Rounding, x, y, bandwidth: float, *, exclude_self: bool = False) -> Tensor:
    return _mean_shift(R, x, y, bandwidth, exclude_self)


def mmd2(R: Rounding, x, y, x_weights=None, y_weights=None, *, kernel: Terms, unbiased: bool = False) -> Tensor:
    a = torch.full((len(x),), 1 / len(x), dtype=x.dtype) if x_weights is None else x_weights
    b = torch.full((len(y),), 1 / len(y), dtype=x.dtype) if y_weights is None else y_weights

    def own(points: Tensor, w: Tensor) -> Tensor:
        terms = Dense(kernel, R)(pairs(R, points, points, kernel)[1]) * w[:, None] * w[None]
        total = R(torch.where(others(len(w), len(w), unbiased), terms, 0.0)).sum()
        if not unbiased:
            return total
        return total * w.sum() ** 2 / (w.sum() ** 2 - (w * w).sum())

    cross = R(Dense(kernel, R)(pairs(R, x, y, kernel)[1]) * a[:, None] * b[None]).sum()
    return R(own(x, a)) + R(own(y, b)) - 2 * R(cross)


def energy_distance(R: Rounding, x, y) -> Tensor:
    return mmd2(R, x, y, kernel=[["riesz", 1.0, 1.0]])


def median_bandwidth(R: Rounding, x) -> Tensor:
    q = pairs(R, x, x)[1]
    i, j = torch.triu_indices(len(x), len(x), 1)
    return R(q[i, j].median().div(2 * math.log(len(x) + 1)).sqrt())


def interaction_energy(R: Rounding, x, *, kernel: Terms) -> Tensor:
    return kernel_sum(R, x, x, kernel=kernel).sum() / (2 * len(x) ** 2)


def interaction_velocity(R: Rounding, x, sources=None, *, kernel: Terms) -> Tensor:
    sources = x if sources is None else sources
    return -kernel_gradient(R, x, sources, kernel=kernel) / len(sources)


def forward_step(R: Rounding, x, sources=None, *, step_size: float, kernel: Terms) -> Tensor:
    return R(x + step_size * interaction_velocity(R, x, sources, kernel=kernel))


def _normal(R: Rounding, x, y, weights, h: float) -> tuple[Tensor, Tensor, Terms]:
    m = torch.full((len(y),), 1 / len(y), dtype=x.dtype) if weights is None else weights
    logarithm = -x.shape[1] / 2 * math.log(2 * math.pi * h * h)
    off = R.moved(x.new_zeros(()), 1 + abs(logarithm) / ULPS)  # of a power that is formed as an exponential
    return m, math.exp(logarithm) * (1 + off), [["gaussian", 1.0, h]]


def blob_density(R: Rounding, x, sources=None, weights=None, *, bandwidth: float) -> Tensor:
    y = x if sources is None else sources
    m, scale, kernel = _normal(R, x, y, weights, bandwidth)
    return R(scale * kernel_sum(R, x, y, m, kernel=kernel))


def blob_energy(R: Rounding, x, *, bandwidth: float, m: float = 1.0) -> Tensor:
    rho = blob_density(R, x, bandwidth=bandwidth)
    return (rho.log() if m == 1 else R(rho ** (m - 1)) / (m - 1)).mean()


def blob_velocity(
    R: Rounding, x, sources=None, weights=None, *, bandwidth: float, m: float = 1.0, form: str = "energy"
) -> Tensor:
    y = x if sources is None else sources
    mass, scale, kernel = _normal(R, x, y, weights, bandwidth)
    if m == 2:  # the density to the power of 0
        return -2 * scale * kernel_gradient(R, x, y, mass, kernel=kernel)
    own = blob_density(R, x, y, weights, bandwidth=bandwidth) ** (m - 2)
    if form == "density":
        return -m * own[:, None] * scale * kernel_gradient(R, x, y, mass, kernel=kernel)
    theirs = blob_density(R, y, y, weights, bandwidth=bandwidth) ** (m - 2)
    both = kernel_gradient(R, x, y, mass * theirs, kernel=kernel)
    return -scale * (both + own[:, None] * kernel_gradient(R, x, y, mass, kernel=kernel))


def ksd2(R: Rounding, x, score, *, kernel: Terms, unbiased: bool = True) -> Tensor:
    d, q = pairs(R, x, x, kernel, centred=True)
    phi = Dense(kernel, R)
    with torch.enable_grad():
        at = q if q.requires_grad else q.detach().requires_grad_()
        slope = phi.slope(at)
        (curvature,) = torch.autograd.grad(slope.sum(), at, create_graph=q.requires_grad)
    k = phi(q)
    s = R(score[:, None] * score[None]).sum(-1)
    lean = R(d * (score[None] - score[:, None])).sum(-1)
    terms = R(k * s) + R(2 * slope * lean) - R(2 * x.shape[1] * slope) - R(4 * q * curvature)
    n = len(x)
    return R(torch.where(others(n, n, unbiased), terms, 0.0)).sum() / (n * (n - 1) if unbiased else n * n)


def svgd_direction(R: Rounding, x, score, *, kernel: Terms) -> Tensor:
    driving = kernel_sum(R, x, x, score, kernel=kernel)
    if len(kernel) == 1 and kernel[0][0] == "gaussian":  # one sum of scores and centred points
        d, q = pairs(R, x, x, kernel, centred=True)
        return (driving - R(2 * Dense(kernel, R).slope(q)[..., None] * d).sum(1)) / len(x)
    return (driving - kernel_gradient(R, x, x, kernel=kernel)) / len(x)


def sliced_sum(R: Rounding, x, y, directions, weights=None, *, kernel: Terms, order: int) -> Tensor:
    """The mean over directions of one-dimensional sums, order 1 for its gradient (Hertrich 2024, table 1).

    A Gaussian in R^D is the mean of 1F1(D/2; 1/2; -t^2 / (2 h^2)) along lines, -r^e that of -c |t|^e.
    """
    dim, w = x.shape[1], torch.ones(len(y), dtype=x.dtype) if weights is None else weights
    u, v = (R.moved(t @ directions.T, t.detach().norm(dim=1)[:, None]) for t in offsets(x, y))
    t = u[:, None] - v[None]  # [N, M, P]
    total = 0.0
    for name, c, number in kernel:
        if name == "gaussian":
            z = t.detach().numpy() ** 2 / (2 * number**2)
            # Kummer's transformation: the series of the exponential's side does not cancel
            parts = hyp1f1((1 - dim) / 2, 0.5 + order, z) * np.exp(-z)
            line = torch.as_tensor(parts)
            if order:
                line = -line * dim * t / number**2
        else:
            logs = math.lgamma((dim + number) / 2) - math.lgamma(dim / 2) - math.lgamma((number + 1) / 2)
            size = math.sqrt(math.pi) * math.exp(logs)
            line = -size * (number * t.sign() * t.abs() ** (number - 1) if order else t.abs() ** number)
            line = torch.where(t == 0, 0.0, line) if order else line
        total = total + c * R(line)
    terms = total * w[None, :, None]
    return R(terms @ directions).sum(1) / len(directions) if order else R(terms).sum((1, 2)) / len(directions)
