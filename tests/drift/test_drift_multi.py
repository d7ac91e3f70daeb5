"""The released drifting variant, the notebooks' function and the loss against dense transcriptions of MATH.md 4."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.compat.drifting import compute_drift
from gwf_fast.kernels.cpp import drift as drift_cpp
from gwf_fast.kernels.reference import drift as drift_reference

F64 = torch.float64


def draw(*shape, seed):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def released(x, y, negatives, weights, temperatures, clip, scale=None):
    """MATH.md 4, the authors' variant, with every matrix written out; [B, N, D] in and out, in coordinates of x."""
    targets = torch.cat([x, negatives, y], 1)
    n, split = x.shape[1], x.shape[1] + negatives.shape[1]
    dist = (x[:, :, None] - targets[:, None]).square().sum(-1).clamp(min=1e-8).sqrt()
    w = weights[:, None, :] if weights.ndim == 2 else weights  # [B, M], or each row's own [B, N, M]
    scale = (dist * w).sum() / (w.expand_as(dist)).sum() if scale is None else scale
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
        options |= {"x_weights": w[:, :10], "negatives_weights": w[:, 10:15], "y_weights": w[:, 15:]}
    got = gwf.drift.gmd_multi(x, y, **options)
    want = released(x, y, negatives, w, (0.02, 0.05, 0.2), clip)
    for g, h in zip(got, want, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("clip", [1e-6, 1e-300])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 33])
def test_gmd_multi_streams_large_problems(dim, clip):
    """More pairs than a core's cache holds, sizes that no tile divides."""
    x, y, negatives = draw(2, 333, dim, seed=0), draw(2, 301, dim, seed=1) + 0.4, draw(2, 107, dim, seed=2)
    w = draw(2, 741, seed=3).abs()
    options = {"negatives": negatives, "clip": clip, "x_weights": w[:, :333], "negatives_weights": w[:, 333:440]}
    got = gwf.drift.gmd_multi(x, y, y_weights=w[:, 440:], **options)
    for g, h in zip(got, released(x, y, negatives, w, (0.02, 0.05, 0.2), clip), strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-11)


def test_gmd_multi_with_more_particles_than_targets():
    x, y = draw(1, 500, 3, seed=0), draw(1, 7, 3, seed=1)
    want = released(x, y, x[:, :0], torch.ones(1, 507, dtype=F64), (0.02, 0.05, 0.2), 1e-6)
    for g, h in zip(gwf.drift.gmd_multi(x, y), want, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sizes", [(30, 40, 11), (300, 350, 120)])
@pytest.mark.parametrize("normalization", ["batch", "problem"])
def test_gmd_multi_of_ragged_sets_is_that_of_their_members(sizes, normalization):
    (n, m, k), batch = sizes, 3
    x, y, negatives = draw(batch, n, 3, seed=0), draw(batch, m, 3, seed=1), draw(batch, k, 3, seed=2)
    lengths = [torch.tensor([size, 2 + size // 3, size - 1]) for size in sizes]
    w = draw(batch, n + m + k, seed=3).abs()
    pieces = [slice(0, n), slice(n, n + m), slice(n + m, n + m + k)]
    named = {"x_weights": w[:, pieces[0]], "y_weights": w[:, pieces[1]], "negatives_weights": w[:, pieces[2]]}
    for points, size in zip((x, y, negatives), lengths, strict=True):  # what is beyond the lengths is never read
        for b in range(batch):
            points[b, size[b] :] = float("nan")
    for piece, size in zip(pieces, lengths, strict=True):
        for b in range(batch):
            w[b, piece][size[b] :] = float("nan")
    options = {"temperatures": (0.05, 0.3), "clip": 1e-6, "normalization": normalization}
    got = gwf.drift.gmd_multi(
        x,
        y,
        negatives=negatives,
        x_lengths=lengths[0],
        y_lengths=lengths[1],
        negatives_lengths=lengths[2],
        **named,
        **options,
    )
    members = [[points[b : b + 1, : size[b]] for points, size in zip((x, y, negatives), lengths)] for b in range(batch)]
    joint = [
        torch.cat(
            [
                w[b : b + 1, p][:, : s[b]]
                for p, s in zip((pieces[0], pieces[2], pieces[1]), (lengths[0], lengths[2], lengths[1]))
            ],
            1,
        )
        for b in range(batch)
    ]
    scale = None
    if normalization == "batch":
        total = sum(
            ((u[:, :, None] - torch.cat([u, q, v], 1)[:, None]).norm(dim=-1).clamp(min=1e-4) * c[:, None]).sum()
            for (u, v, q), c in zip(members, joint)
        )
        scale = total / sum(c.sum() * u.shape[1] for (u, _, _), c in zip(members, joint))
    each = [released(u, v, q, c, (0.05, 0.3), 1e-6, scale) for (u, v, q), c in zip(members, joint)]
    for b in range(batch):
        assert (got.velocity[b, lengths[0][b] :] == 0).all()
    if normalization == "problem":
        for b, (velocity, s, raw) in enumerate(each):
            torch.testing.assert_close(got.velocity[b, : lengths[0][b]], velocity[0], rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(got.scale[b], s)
            torch.testing.assert_close(got.raw[b], raw)
    else:
        torch.testing.assert_close(got.scale, scale)
        counts = lengths[0].double()
        raw = sum(count * e[2] for count, e in zip(counts, each)) / counts.sum()
        torch.testing.assert_close(got.raw, raw)


def test_gmd_multi_does_not_depend_on_threads():
    x, y = draw(2, 600, 6, seed=0).float(), draw(2, 700, 6, seed=1).float()
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(gwf.drift.gmd_multi(x, y))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("n", [20, 400])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_portable_path_computes_the_same(n, dtype):
    x, y = draw(2, n, 5, seed=0), draw(2, n + 3, 5, seed=1)
    sizes = torch.tensor([[n, n + 1, 2 * n + 4], [n - 7, n, n + 20]])
    targets = torch.cat([x, x[:, :1] + 1, y], 1)
    arguments = [x, targets, draw(2, 2 * n + 4, seed=2).abs(), n + 1, sizes]
    arguments = [t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in arguments]
    rates, own = torch.tensor([[0.3, 0.2], [1.0, 2.0]], dtype=dtype), torch.tensor([100.0, 1e30], dtype=dtype)
    tolerance: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11} if dtype == F64 else {"rtol": 2e-3, "atol": 2e-4}
    got, want = (f.forces(*arguments, rates, own, 1e-8, 1e-6) for f in (drift_cpp, drift_reference))
    torch.testing.assert_close(got, want, **tolerance)
    got, want = (f.total_distances(*arguments, 1e-8) for f in (drift_cpp, drift_reference))
    torch.testing.assert_close(got, want, rtol=1e-12 if dtype == F64 else 1e-5, atol=0)


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
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, temperatures=(0.1, 0.0)), "temperatures must be a positive number"),
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, clip=0.0), "clip must be a positive number"),
        (lambda: gwf.drift.gmd_multi(PAIR[:1], PAIR), "at least two particles"),
        (
            lambda: gwf.drift.gmd_multi(PAIR, PAIR, y_weights=torch.tensor([1.0, -1.0])),
            "y_weights must be finite and not negative",
        ),
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, x_weights=torch.zeros(2)), "positive sum"),
        (lambda: gwf.drift.gmd_multi(PAIR, PAIR, normalization="row"), "normalization must be"),  # type: ignore[arg-type]
        (
            lambda: gwf.drift.gmd_multi(PAIR, PAIR, negatives_weights=torch.ones(2)),
            "negatives_weights and negatives_lengths need",
        ),
        (lambda: gwf.drifting_loss(PAIR, PAIR[:1]), "velocity must have the shape of x"),
        (lambda: compute_drift(PAIR, PAIR, -1.0), "temperature must be a positive number"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_drifting_loss_keeps_its_digits_far_from_the_origin() -> None:
    x, v = 1e6 + torch.randn(9, 3), torch.randn(9, 3)
    assert float(gwf.drifting_loss(x, v)) == pytest.approx(float(v.double().square().sum(-1).mean()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(dtype: torch.dtype) -> None:
    x, y, w = torch.randn(2, 9, 3).to(dtype), torch.randn(2, 7, 3).to(dtype), torch.rand(2, 9).to(dtype)
    got = gwf.drift.gmd_multi(x, y, x_weights=w)
    want = gwf.drift.gmd_multi(x.double(), y.double(), x_weights=w.double())
    assert got.velocity.dtype == dtype
    digits = 30 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.velocity.double(), want.velocity, rtol=digits, atol=digits * float(want.scale))
