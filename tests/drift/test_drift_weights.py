"""Weights in drifting: of the kernel, of the affinities, each particle's own; several temperatures in one pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast.kernels.cpp import drift as drift_cpp
from gwf_fast.kernels.reference import drift as drift_reference
from tests.drift import dense
from tests.drift.dense import F64, draw
from tests.drift.test_drift_multi import released

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def sets(n: int, p: int, m: int, *batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, y, z = draw(*batch, n, 3, seed=0), draw(*batch, p, 3, seed=1) + 0.4, draw(*batch, m, 3, seed=2)
    logs = 2 * draw(*batch, p, seed=3), 2 * draw(*batch, m, seed=4)
    logs[0][..., 1] = logs[1][..., m - 1] = -math.inf
    return x, y, z, *logs


@pytest.mark.parametrize("clip", [None, 1e-4])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize(("n", "p", "m"), [(12, 17, 14), (60, 5, 7), (300, 350, 120)])  # cached, tall, streamed
def test_gmd_weighs_its_kernel(n: int, p: int, m: int, backend: Any, clip: float | None) -> None:
    x, y, z, a, b = sets(n, p, m)
    got = gwf.drift.gmd(
        x, y, temperature=0.3, negatives=z, y_log_weights=a, negatives_log_weights=b, clip=clip, backend=backend
    )
    torch.testing.assert_close(got, clipped(x, y, z, a, b, 0.3, clip), **CLOSE)


def clipped(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor, temperature: float, clip: float | None) -> Tensor:
    """Algorithm 2 with the weights' logarithms in its exponents; targets of weight 0 are left out."""
    y, a, z, b = y[a > -math.inf], a[a > -math.inf], z[b > -math.inf], b[b > -math.inf]
    logits = torch.cat([dense.exponents(x, z, temperature) + b, dense.exponents(x, y, temperature) + a], 1)
    affinity = (logits.softmax(1) * logits.softmax(0)).clamp(min=clip or 0.0).sqrt()
    minus, plus = affinity.split([len(z), len(y)], 1)
    return minus.sum(1, keepdim=True) * (plus @ y) - plus.sum(1, keepdim=True) * (minus @ z)


def test_weights_are_those_of_copies() -> None:
    """A target of weight 2 in the rows: as in Algorithm 2 with it twice, whose columns are each their own."""
    x, y, z, *_ = sets(12, 17, 14)
    twice = torch.cat([y, y[:1]])
    logs = torch.zeros(17, dtype=F64)
    logs[0] = math.log(2)
    got = gwf.drift.coupling(x, y, temperature=0.4, negatives=z, y_log_weights=logs)
    torch.testing.assert_close(got, gwf.drift.coupling(x, twice, temperature=0.4, negatives=z), **CLOSE)
    five = torch.full((12,), 5.0, dtype=F64)
    shifted = gwf.drift.gmd(x, y, temperature=0.4, y_log_weights=logs + 5, negatives_log_weights=five)
    torch.testing.assert_close(shifted, gwf.drift.gmd(x, y, temperature=0.4, y_log_weights=logs), **CLOSE)


@pytest.mark.parametrize("batch", [(), (2,), (2, 2)])
def test_guidance_has_the_particles_and_others(batch: tuple[int, ...]) -> None:
    """Negatives are the particles, each without itself, and some of all classes, which are off in one problem."""
    x, y, z, *_ = sets(9, 12, 5, *batch)
    negatives = torch.cat([x, z], -2)
    logs = torch.cat([torch.zeros(*batch, 9, dtype=F64), torch.full((*batch, 5), math.log(0.3), dtype=F64)], -1)
    logs.view(-1, 14)[0, 9:] = -math.inf
    options: dict[str, Any] = {
        "temperature": 0.5,
        "negatives": negatives,
        "negatives_log_weights": logs,
        "exclude_self": True,
    }
    want = torch.stack([
        dense.drift(u, v, w, 0.5, negatives_logs=g, own=True)
        for u, v, w, g in zip(*(t.reshape(-1, *t.shape[len(batch) :]) for t in (x, y, negatives, logs)), strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(gwf.drift.gmd(x, y, **options).view_as(want), want, **CLOSE)
    streamed = gwf.drift.gmd(x.clone().requires_grad_(), y, **options)
    torch.testing.assert_close(streamed.view_as(want), want, **CLOSE)
    streamed.sum().backward()


@pytest.mark.parametrize("n", [10, 400])
def test_gmd_differentiates_in_logarithms_of_weights(n: int) -> None:
    x, y, z, a, b = sets(n, n + 3, n + 1)
    a[1] = b[n] = 0.0
    inputs = [x, y, z, a, b]
    u = draw(n, 3, seed=5)

    def ours(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return gwf.drift.gmd(x, y, temperature=0.9, negatives=z, y_log_weights=a, negatives_log_weights=b)

    def theirs(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return dense.drift(x, y, z, 0.9, y_logs=a, negatives_logs=b)

    found = []
    for function in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in inputs]
        found.append(torch.autograd.grad((u * function(*leaves)).sum(), leaves))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n", [12, 400])
@pytest.mark.parametrize("clip", [None, 1e-6])
def test_temperatures_are_added_up(n: int, clip: float | None) -> None:
    x, y, z, a, _ = sets(n, n + 2, n + 1, 2)
    temperatures = [0.05, 0.2, 1.0]
    options: dict[str, Any] = {"negatives": z, "y_log_weights": a, "clip": clip}
    each = torch.stack([gwf.drift.gmd(x, y, temperature=t, **options) for t in temperatures])
    torch.testing.assert_close(gwf.drift.gmd(x, y, temperature=temperatures, **options), each.sum(0), **CLOSE)
    got = gwf.drift.gmd(x, y, temperature=temperatures, normalization="problem", **options)
    want = torch.stack([torch.stack([dense.unit(force[b]) for force in each]).sum(0) for b in range(2)])
    torch.testing.assert_close(got, want, **CLOSE)


def test_normalised_forces_differentiate_and_have_any_size() -> None:
    x, y, *_ = sets(6, 7, 2)
    options: dict[str, Any] = {"temperature": (0.5, 2.0), "normalization": "problem"}
    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gwf.drift.gmd(x, y, **options), leaf)
    want = gwf.drift.gmd(x, y, **options)
    for scale in (1e-25, 1e25):
        options["temperature"] = (0.5 * scale, 2.0 * scale)
        got = gwf.drift.gmd((x * scale).float(), (y * scale).float(), **options)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_one_call_does_all_temperatures(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a pass over the pairs outside the call")

    from gwf_fast import _cpu

    monkeypatch.setattr(_cpu, "drift", refuse)
    monkeypatch.setattr(_cpu, "pairwise", refuse)
    x, y, z, a, b = sets(12, 17, 14, 2)
    gwf.drift.gmd(x, y, temperature=[0.1, 0.2], negatives=z, y_log_weights=a, negatives_log_weights=b)


@pytest.mark.parametrize("n", [20, 400])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("by_row", [False, True])
def test_the_portable_path_weighs_the_same(n: int, dtype: torch.dtype, by_row: bool) -> None:
    x, y = draw(2, n, 5, seed=0), draw(2, n + 3, 5, seed=1)
    m = 2 * n + 4
    sizes = torch.tensor([[n, n + 1, m], [n - 7, n, n + 20]])
    targets, logs = torch.cat([x, x[:, :1] + 1, y], 1), 2 * draw(2, m, seed=3)
    logs[:, 2] = -math.inf
    weights = draw(2, n, m, seed=2).abs() if by_row else draw(2, m, seed=2).abs()
    arguments: list[Any] = [x, targets, weights, n + 1, sizes]
    arguments = [t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in arguments]
    rates, own = torch.tensor([[0.3, 0.2], [1.0, 2.0]], dtype=dtype), torch.tensor([100.0, 1e30], dtype=dtype)
    tolerance: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11} if dtype == F64 else {"rtol": 2e-3, "atol": 3e-4}
    rest: Any = rates, own, 1e-8, 1e-6, logs.to(dtype)
    got, want = (f.forces(*arguments, *rest) for f in (drift_cpp, drift_reference))
    torch.testing.assert_close(got, want, **tolerance)
    got, want = (f.total_distances(*arguments, 1e-8) for f in (drift_cpp, drift_reference))
    torch.testing.assert_close(got, want, rtol=1e-12 if dtype == F64 else 1e-5, atol=0)


# ------------------------------------------------------------------------------------------------ the released variant


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(("n", "p", "m"), [(10, 14, 5), (333, 301, 107)])
@pytest.mark.parametrize("normalization", ["batch", "problem"])
def test_released_weights_of_negatives(n: int, p: int, m: int, by_row: bool, normalization: Any) -> None:
    """All 0 in one problem, where guidance is off; or each particle's own."""
    x, y, z, *_ = sets(n, p, m, 2)
    weights = draw(2, *([n] if by_row else []), m, seed=5).abs()
    weights[1] = 0
    got = gwf.drift.gmd_multi(x, y, negatives=z, negatives_weights=weights, normalization=normalization)
    by = weights if by_row else weights[:, None].expand(2, n, m)
    joint = torch.cat([by.new_ones(2, n, n), by, by.new_ones(2, n, p)], 2)
    if normalization == "batch":
        want = released(x, y, z, joint, (0.02, 0.05, 0.2), 1e-6)
        for g, h in zip(got, want, strict=True):
            torch.testing.assert_close(g, h, **CLOSE)
        return
    for b in range(2):
        want = released(x[b : b + 1], y[b : b + 1], z[b : b + 1], joint[b : b + 1], (0.02, 0.05, 0.2), 1e-6)
        torch.testing.assert_close(got.velocity[b], want[0][0], **CLOSE)
        torch.testing.assert_close(got.scale[b], want[1])
        torch.testing.assert_close(got.raw[b], want[2])


def test_released_rows_of_ragged_sets() -> None:
    (n, p, m), batch = (8, 9, 5), 3
    x, y, z, *_ = sets(n, p, m, batch)
    lengths = [torch.tensor(sizes) for sizes in ([8, 3, 5], [9, 2, 7], [5, 1, 3])]
    weights = draw(batch, n, m, seed=5).abs()
    for b in range(batch):
        weights[b, lengths[0][b] :] = math.nan
        weights[b, :, lengths[2][b] :] = math.nan
    named: dict[str, Any] = dict(zip(("x_lengths", "y_lengths", "negatives_lengths"), lengths, strict=True))
    options: dict[str, Any] = {"temperatures": (0.05, 0.3), "normalization": "problem"}
    got = gwf.drift.gmd_multi(x, y, negatives=z, negatives_weights=weights, **named, **options)
    for b in range(batch):
        i, j, k = (int(size[b]) for size in lengths)
        want = gwf.drift.gmd_multi(
            x[b, :i], y[b, :j], negatives=z[b, :k], negatives_weights=weights[b, :i, :k], **options
        )
        torch.testing.assert_close(got.velocity[b, :i], want.velocity, **CLOSE)
        torch.testing.assert_close(got.scale[b], want.scale)
        torch.testing.assert_close(got.raw[b], want.raw)
        assert (got.velocity[b, i:] == 0).all()


X = torch.zeros(2, 4, 3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(2, 5), r"negatives_weights must have shape \[2, 6\] or \[2, 4, 6\], got \[2, 5\]"),
        (torch.ones(2, 3, 6), r"negatives_weights must have shape \[2, 6\] or \[2, 4, 6\], got \[2, 3, 6\]"),
        (-torch.ones(2, 6), "negatives_weights must be finite and not negative, got values in -1..-1"),
        (torch.full((2, 4, 6), math.inf), "negatives_weights must be finite and not negative, got values in inf..inf"),
    ],
)
def test_bad_weights_are_named(weights: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gwf.drift.gmd_multi(X, X, negatives=torch.zeros(2, 6, 3), negatives_weights=weights)
