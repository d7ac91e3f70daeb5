"""Costs, forms and plans of transport on the device, against the CPU in float64; it runs where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gwf_fast as gwf
from tests.transport.dense import COSTS, FORMULAS, problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WAYS: dict[str, dict[str, Any]] = {
    "relaxed": {"tolerance": 1e-5, "max_iterations": 500},
    "plain": {"sweeps": "plain", "tolerance": 0.0},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(12, 9), (300, 260)])  # in one launch, and in passes
@pytest.mark.parametrize("cost", [c for c in COSTS if c not in FORMULAS])
def test_values_derivatives_drifts_and_plans(cost: str, size: tuple[int, int], way: str) -> None:
    options: dict[str, Any] = {"epsilon": 0.5, **WAYS[way], **COSTS[cost]}
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        x, y, a, b = (t.to(device, dtype) for t in problem(2, n=size[0], m=size[1], dim=3))
        weights: dict[str, Any] = {"x_weights": a, "y_weights": b}
        leaf = x.clone().requires_grad_()
        values = [gwf.transport_cost(leaf, y, form=form, **weights, **options) for form in ("entropic", "linear")]
        slopes = [torch.autograd.grad(value.sum(), leaf)[0] * x.shape[-2] for value in values]
        result = gwf.sinkhorn(x, y, **weights, **options)
        plans = [result.apply(y) * x.shape[-2], result.apply(x, "y") * y.shape[-2]]
        results.append([*values, *slopes, *plans, gwf.drift.sinkhorn(x, y, **weights, **options)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got.detach().cpu().double(), want.detach(), rtol=1e-3, atol=1e-3)


def test_a_fixed_count_is_captured() -> None:
    """Nothing is read by the host on the way."""
    x, y, _, _ = (t.cuda().float() for t in problem(n=300, m=260, dim=3))
    options: dict[str, Any] = {"epsilon": 0.5, "sweeps": "plain", "tolerance": 0.0, "max_iterations": 5}
    want = gwf.sinkhorn(x, y, **options).g
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = gwf.sinkhorn(x, y, **options).g
    graph.replay()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
