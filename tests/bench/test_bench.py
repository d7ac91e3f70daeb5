"""The benchmarks check what they time, and their truth is true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def bench_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def race_of(**results):
    from bench.registry import Race

    def prepared(result):
        return lambda: lambda: (result,)

    return Race({name: prepared(r) for name, r in results.items()}, truth=lambda: (torch.ones(3).double(),))


def run(race, **options):
    from bench.measure import run
    from bench.registry import Case

    return run(Case("case", lambda quick: race, **options), quick=True, budget=0.1, peak=None)


def test_a_wrong_result_gets_no_time():
    record = run(race_of(gwf_fast=torch.tensor([1.0, 1.0, 1.0 + 1e-5]), peer=torch.ones(3)))
    assert "allowed" in record["contenders"]["gwf_fast"]["failed"]
    assert all("median" not in result for result in record["contenders"].values())


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, 1.0, 1.1]), torch.tensor([1.0, float("nan"), 1.0])])
def test_no_ratio_over_a_wrong_peer(wrong):
    record = run(race_of(gwf_fast=torch.ones(3), peer=wrong))
    assert "median" in record["contenders"]["gwf_fast"]
    assert "ratio" not in record["contenders"]["peer"]
    assert "failed" in record["contenders"]["peer"]


def test_a_right_result_gets_quantiles_and_a_ratio():
    record = run(race_of(gwf_fast=torch.ones(3), peer=torch.ones(3)), targets={"peer": 25.0})
    ours, peer = record["contenders"]["gwf_fast"], record["contenders"]["peer"]
    assert 0 < ours["p20"] <= ours["median"] <= ours["p80"]
    assert 0.05 < peer["ratio"]["median"] < 20  # both do nothing
    assert peer["target"] == 25.0


def test_a_result_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match="shape"):
        run(race_of(gwf_fast=torch.ones(1)))


def test_two_cases_cannot_share_a_name():
    from bench import registry

    name = next(iter(registry.CASES), None)
    twice = [registry.Case(name or "case", lambda quick: None)] * 2
    with pytest.raises(ValueError, match="two cases"):
        registry.register(twice)


@pytest.mark.parametrize("reduction", ["kernel_sum", "kernel_gradient", "kernel_logsumexp", "kernel_average"])
def test_the_truth_agrees_with_autograd(reduction):
    from bench.problem import clouds, truth

    problem = clouds(40, 70, 3, seed=1)
    x, y, w = problem.x.double().requires_grad_(), problem.y.double(), problem.weights.double()
    k = torch.exp(-(x[:, None] - y).square().sum(-1) / (2 * problem.bandwidth**2))
    expected = {
        "kernel_sum": lambda: k @ w,
        "kernel_gradient": lambda: torch.autograd.grad((k @ w).sum(), x)[0],
        "kernel_logsumexp": lambda: k.sum(1).log(),
        "kernel_average": lambda: (k @ y) / k.sum(1, keepdim=True),
    }[reduction]()
    torch.testing.assert_close(truth(problem, reduction), expected.detach(), rtol=1e-12, atol=1e-12)


def test_every_part_runs_and_leaves_json(tmp_path):
    out = tmp_path / "run.json"
    only = ["overhead/no-grad", "reductions/*/D3", "kernels/*/D2", "parzen*", "mmd2*/D2"]
    options = ["--quick", "--no-peers", "--seconds", "0.1", "--out", str(out), "--only", *only]
    subprocess.run([sys.executable, "-m", "bench", *options], cwd=ROOT, check=True, capture_output=True, timeout=300)
    data = json.loads(out.read_text())
    assert data["environment"]["cpu"]
    assert len(data["records"]) == 10
    failed = {r["name"]: r["contenders"]["gwf_fast"].get("failed") for r in data["records"]}
    assert all(reason is None for reason in failed.values()), failed
