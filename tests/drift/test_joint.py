"""Drifting from its sets in one compiled call: against dense float64, and against the sets joined in Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast import _cpu


def sets(*batch: int, n: int = 12, p: int = 17, m: int = 14, dim: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + p + dim)
    x, y, z = (torch.randn(*batch, k, dim, generator=generator, dtype=torch.float64) for k in (n, p, m))
    return x, y + 0.3, z


def dense(x: Tensor, y: Tensor, negatives: Tensor, temperature: float, clip: float, own: bool) -> Tensor:
    """Algorithm 2 as it is written down."""
    targets = torch.cat([negatives, y], -2)
    distance = (x[..., :, None, :] - targets[..., None, :, :]).square().sum(-1).sqrt()
    if own:
        distance[..., range(x.shape[-2]), range(x.shape[-2])] = math.inf
    logit = -distance / temperature
    a = (logit.softmax(-1) * logit.softmax(-2)).clamp(min=clip).sqrt()
    minus, plus = a.split([negatives.shape[-2], y.shape[-2]], -1)
    return (plus @ y) * minus.sum(-1, keepdim=True) - (minus @ negatives) * plus.sum(-1, keepdim=True)


@pytest.mark.parametrize("clip", [None, 1e-3])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_gmd_is_algorithm_2(batch: tuple[int, ...], clip: float | None, shift: float) -> None:
    x, y, z = (t + shift for t in sets(*batch))
    for negatives in (None, z):
        got = gwf.drift.gmd(x, y, temperature=0.8, negatives=negatives, clip=clip)
        # as in the released code, an excluded pair is clipped too
        want = dense(x, y, x if negatives is None else z, 0.8, clip or 0.0, negatives is None)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        if clip is None:  # with derivatives it is made of averages and logarithms
            wanted = [t.clone().requires_grad_() for t in (x, y)]
            found = gwf.drift.gmd(*wanted, temperature=0.8, negatives=negatives)
            torch.testing.assert_close(found.detach(), want, rtol=1e-8, atol=1e-8)
        singles = [t.float() for t in (x, y, x if negatives is None else z)]
        got = gwf.drift.gmd(*singles[:2], temperature=0.8, negatives=None if negatives is None else singles[2])
        doubles = [t.double() for t in singles]
        want = dense(doubles[0], doubles[1], doubles[2], 0.8, 0.0, negatives is None)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("normalization", ["batch", "problem"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_gmd_multi_is_the_joined_one(
    batch: tuple[int, ...], weighted: bool, normalization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, z = sets(*batch)
    options: dict[str, Any] = {"negatives": z, "normalization": normalization, "temperatures": (0.05, 0.3)}
    if weighted:
        options |= {f"{name}weights": t[..., 0].abs() + 0.1 for name, t in (("x_", x), ("y_", y), ("negatives_", z))}
    got = gwf.drift.gmd_multi(x, y, **options)
    monkeypatch.setattr(_cpu, "joint_drift", lambda *_: False)
    want = gwf.drift.gmd_multi(x, y, **options)
    assert [t.shape for t in got] == [t.shape for t in want]
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_one_call_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a pass over the pairs outside the call")

    monkeypatch.setattr(_cpu, "drift", refuse)
    monkeypatch.setattr(_cpu, "pairwise", refuse)
    x, y, z = sets(2)
    gwf.drift.gmd(x, y, temperature=1.0)
    gwf.drift.gmd(x, y, temperature=1.0, negatives=z, clip=1e-6)
    gwf.drift.gmd_multi(x, y, negatives=z)


@pytest.mark.parametrize("scale", [1e-20, 1e30])
def test_units_are_the_general_way(scale: float) -> None:
    x, y, _ = sets()
    want = gwf.drift.gmd(x, y, temperature=0.5) * scale
    got = gwf.drift.gmd((x * scale).float(), (y * scale).float(), temperature=0.5 * scale)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * scale)


def test_what_is_no_number_stays_none() -> None:
    x, y, _ = sets()
    y[2] = math.nan
    assert bool(torch.isnan(gwf.drift.gmd(x, y, temperature=0.5)).any())
    x[0] = math.inf
    assert not bool(torch.isfinite(gwf.drift.gmd(x, sets()[1], temperature=0.5)).all())
