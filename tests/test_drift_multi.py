"""The released drifting variant, the notebooks' function and the loss against dense transcriptions of MATH.md 4."""

from __future__ import annotations

import math

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.compat.drifting import compute_drift

F64 = torch.float64


def draw(*shape, seed):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def released(x, y, negatives, weights, temperatures, clip):
    """MATH.md 4, the authors' variant, with every matrix written out; [B, N, D] in and out, in coordinates of x."""
    targets = torch.cat([x, negatives, y], 1)
    n, split = x.shape[1], x.shape[1] + negatives.shape[1]
    dist = (x[:, :, None] - targets[:, None]).square().sum(-1).clamp(min=1e-8).sqrt()
    w = weights[:, None, :]
    scale = (dist * w).mean() / w.mean()
    step = (scale / math.sqrt(x.shape[-1])).clamp(min=1e-3)
    scaled, normed = targets / step, dist / scale.clamp(min=1e-3)
    normed = torch.cat([normed[..., :n] + 100 * torch.eye(n, dtype=F64), normed[..., n:]], -1)
    total, raw = 0, []
    for rate in temperatures:
        logit = -normed / rate
        a = (logit.softmax(-1) * logit.softmax(-2)).clamp(min=clip).sqrt() * w
        neg, pos = a[..., :split], a[..., split:]
        force = (pos * neg.sum(-1, keepdim=True)) @ scaled[:, split:] - (neg * pos.sum(-1, keepdim=True)) @ scaled[
            :, :split
        ]
        raw.append(force.square().mean())
        total = total + force / raw[-1].clamp(min=1e-8).sqrt()
    return total * step, scale, torch.stack(raw)


@pytest.mark.parametrize("clip", [1e-6, 1e-300])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [2, 17])
def test_gmd_multi_is_the_released_variant(dim, weighted, clip):
    x, y, negatives = draw(3, 10, dim, seed=0), draw(3, 14, dim, seed=1) + 0.4, draw(3, 5, dim, seed=2)
    w = draw(3, 29, seed=3).abs() if weighted else torch.ones(3, 29, dtype=F64)
    options = {"negatives": negatives, "clip": clip}
    if weighted:
        options |= {"x_weights": w[:, :10], "negative_weights": w[:, 10:15], "y_weights": w[:, 15:]}
    got = gwf.drift.gmd_multi(x, y, **options)
    want = released(x, y, negatives, w, (0.02, 0.05, 0.2), clip)
    for g, h in zip(got, want, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-11)


def test_gmd_multi_by_problem_is_each_problem_alone():
    x, y = draw(2, 3, 8, 4, seed=0), draw(2, 3, 12, 4, seed=1)
    together = gwf.drift.gmd_multi(x, y, normalization="problem")
    alone = gwf.drift.gmd_multi(x[1, 2], y[1, 2])
    for g, h in zip(together, alone, strict=True):
        torch.testing.assert_close(g[1, 2], h)


def test_gmd_multi_in_float32():
    x, y = draw(2, 64, 32, seed=0), draw(2, 160, 32, seed=1)
    want = gwf.drift.gmd_multi(x, y).velocity
    got = gwf.drift.gmd_multi(x.float(), y.float()).velocity
    assert (got - want).norm() / want.norm() < 1e-4


def notebook(gen, pos, temp):
    """``compute_drift`` as the notebooks define it."""
    targets = torch.cat([gen, pos])
    g = len(gen)
    dist = torch.cdist(gen, targets)
    dist[:, :g].fill_diagonal_(1e6)
    kernel = (-dist / temp).exp()
    normalizer = (kernel.sum(-1, keepdim=True) * kernel.sum(-2, keepdim=True)).clamp_min(1e-12).sqrt()
    kernel = kernel / normalizer
    pos_v = (kernel[:, g:] * kernel[:, :g].sum(-1, keepdim=True)) @ targets[g:]
    return pos_v - (kernel[:, :g] * kernel[:, g:].sum(-1, keepdim=True)) @ targets[:g]


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_compute_drift_is_the_notebooks(temperature):
    x, y = draw(80, 2, seed=0), draw(120, 2, seed=1)
    torch.testing.assert_close(compute_drift(x, y, temperature), notebook(x, y, temperature), rtol=1e-8, atol=1e-10)


def test_drifting_loss_regresses_on_the_moved_samples():
    x, v = draw(7, 3, seed=0).requires_grad_(), draw(7, 3, seed=1).requires_grad_()
    loss = gwf.drifting_loss(x, v)
    torch.testing.assert_close(loss, v.detach().square().sum(1).mean())
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(gradient, -2 * v.detach() / 7)
    assert not torch.autograd.grad(gwf.drifting_loss(x, v), (x, v), allow_unused=True)[1]


PAIR = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, temperatures=()), "temperatures must have at least one"),
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, temperatures=(0.1, 0.0)), "temperatures must be positive"),
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, clip=0.0), "clip must be positive"),
        (lambda: gwf.drift.gmd_multi(PAIR[:1], PAIR), "at least two particles"),
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, y_weights=torch.tensor([1.0, -1.0])), "must not be negative"),
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, x_weights=torch.zeros(2)), "positive sum"),
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, normalization="row"), "normalization must be"),
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, negative_weights=torch.ones(2)), "negative_weights needs"),
        (lambda: gwf.drifting_loss(PAIR, PAIR[:1]), "velocity must have the shape of x"),
        (lambda: compute_drift(PAIR, PAIR, -1.0), "temperature must be positive"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
