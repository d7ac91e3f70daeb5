"""The study of the step size: runs, resumes, and keeps what a diverging run had."""

import math
from typing import Any

import pytest
import torch

from gwf_fast.experiments import regularisation, runner
from gwf_fast.flows.schemes import PARAMETRIZATIONS
from gwf_fast.functionals.base import JensenShannon, Potential


def poisoned(target):
    """Not finite from its 13th call on: a run of its own gets through one step."""
    start = torch.tensor(0.0)

    def V(x):
        start.add_(1)
        return x.square().sum(-1) * (math.nan if start > 12 else 1.0)

    return Potential(V)


@pytest.fixture
def small(monkeypatch):
    functionals = {"js": ("JS", JensenShannon), "poisoned": ("poisoned", poisoned)}
    monkeypatch.setattr(regularisation, "FUNCTIONALS", functionals)
    monkeypatch.setattr(regularisation, "STEP_SIZES", (0.5, math.inf))


GIVEN = {"particles": 64, "steps": 2, "iterations": 8, "batch_size": 32}


def test_runs_and_keeps_what_diverging_runs_had(small, tmp_path):
    said = []
    metrics = runner.run("regularisation", GIVEN, tmp_path / "run", resume=False, say=said.append)
    assert (tmp_path / "run" / "figure.png").stat().st_size > 10_000
    assert sorted(metrics["diverged"]) == [f"poisoned {p}-{a}" for p in PARAMETRIZATIONS for a in ("0.5", "inf")]
    assert sum("diverged: JKO step 2" in line for line in said) == 4
    rows = [value for name, value in metrics.items() if name.startswith("energy distance, js")]
    assert len(rows) == 2 and all(len(row) == 2 and all(math.isfinite(v) for v in row) for row in rows)
    again = runner.run("regularisation", {}, tmp_path / "run", resume=True, say=said.append)
    assert again["diverged"] == []  # a resumed run tries the step again, which here is finite
    assert all(again[name] == metrics[name] for name in metrics if "js" in name)


def test_every_run_has_its_own_functional_and_step():
    computation: Any = regularisation.build(regularisation._Settings()).computation
    flows = [member.flow for study in computation.members.values() for member in study.members.values()]
    assert len(flows) == len(regularisation.FUNCTIONALS) * len(regularisation.STEP_SIZES) * 2
    assert {flow.step_size for flow in flows} == set(regularisation.STEP_SIZES)
    assert {flow.parametrization for flow in flows} == set(PARAMETRIZATIONS)
