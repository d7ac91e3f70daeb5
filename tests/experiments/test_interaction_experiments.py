"""The experiments on interacting particles end at their exact limits."""

from __future__ import annotations

import math

import pytest
import torch

from gwf_fast.experiments import runner
from gwf_fast.experiments.semicircle import distribution, kolmogorov


def test_semicircle_distribution():
    grid = torch.linspace(-math.sqrt(2), math.sqrt(2), 200_001, dtype=torch.float64)
    density = (2 - grid**2).clamp(min=0).sqrt() / math.pi
    cumulative = torch.cumulative_trapezoid(density, grid)
    assert (distribution(grid)[1:] - cumulative).abs().max() < 1e-6
    assert kolmogorov(torch.zeros(10)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "given", "metric", "bound"),
    [
        ("aggregation", {"particles": 500}, "relative_error_of_the_radius", 2e-3),
        ("semicircle", {"particles": 2000, "steps": 8}, "kolmogorov_distance", 0.05),
    ],
)
def test_exact_limits(name, given, metric, bound, tmp_path):
    metrics = runner.run(name, given, tmp_path / "out", resume=False, say=lambda line: None)
    assert metrics[metric] < bound
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
