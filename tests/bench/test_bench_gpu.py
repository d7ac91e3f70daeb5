"""The GPU's benchmark, tried without one: what it checks, what it records, and that it never stops at a failure."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def bench_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def made(result, truth=None, **others):
    from bench.gpu.cards import Work
    from bench.gpu.rows import Made

    contenders = {"gwf_fast": lambda: lambda: (result,)} | {n: (lambda r=r: lambda: (r,)) for n, r in others.items()}
    return Made(contenders, truth=lambda: (torch.ones(3).double(),), work=Work(pairs=9.0, fma=9.0))  # type: ignore[arg-type]


def row(name="row", tier=0, make=None, **options):
    from bench.gpu.rows import Row

    return Row(name, tier, make or (lambda setting: made(torch.ones(3))), **options)


def measured(the_row, name="gwf_fast"):
    from bench.gpu.cards import Card
    from bench.gpu.run import measure
    from bench.gpu.timer import Timer

    device = torch.device("cpu")
    card = Card("a card", {}, 1e9, 1e9, 1e9, 1e9, 1e9)
    return measure(the_row, name, the_row.make(None), Timer(device), card, 0.01)


def test_a_right_result_gets_a_time_and_a_share_of_its_bound():
    found = measured(row(host=True))
    assert 0 < found["p20"] <= found["median"] <= found["p80"]
    assert found["error"] == 0
    assert found["bound"] == "FMA"
    assert found["share_of_bound"] == pytest.approx(9 / 1e9 / found["median"])
    assert found["pairs_per_second"] == pytest.approx(9 / found["median"])
    assert found["host_seconds"] > 0
    assert found["launches"] is None  # nobody counts them here


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, 1.0, 1.001]), torch.full((3,), float("nan"))])
def test_no_time_for_a_wrong_result(wrong):
    found = measured(row(make=lambda setting: made(wrong)))
    assert "relative error" in found["failed"]
    assert "median" not in found


def test_a_peer_has_a_tolerance_of_its_own():
    near = torch.tensor([1.0, 1.0, 1.001])
    the_row = row(make=lambda setting: made(torch.ones(3), peer=near), peer_tolerance=1e-2)
    assert "median" in measured(the_row, "peer")


def test_ours_of_a_tier_come_before_its_peers():
    from bench.gpu.run import tasks

    rows = [row("a", 1, lambda s: made(torch.ones(3), peer=torch.ones(3))), row("b", 0), row("c", 1)]
    order = [(found.name, contender) for found, contender in tasks(rows, argparse.Namespace(device=None), True)]  # type: ignore[arg-type]
    assert order == [("b", "gwf_fast"), ("a", "gwf_fast"), ("c", "gwf_fast"), ("a", "peer")]


class TestPeaks:
    """Published figures of cards, from multiprocessors and clocks."""

    @pytest.mark.parametrize(
        ("capability", "multiprocessors", "mhz", "tflops", "tensor_tflops"),
        [((8, 0), 108, 1410, 19.5, 156), ((9, 0), 132, 1830, 61.8, 494.7), ((8, 9), 128, 2520, 82.6, 82.6)],
    )
    def test_of_cards(self, monkeypatch, capability, multiprocessors, mhz, tflops, tensor_tflops):
        from bench.gpu import cards

        properties = argparse.Namespace(
            major=capability[0], minor=capability[1], multi_processor_count=multiprocessors, total_memory=2**36,
            name="NVIDIA A100-SXM4-80GB",
        )  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(cards, "clocks", lambda device: {"clocks.max.sm MHz": str(mhz)})
        card = cards.Card.of(torch.device("cuda", 0))
        assert 2 * card.fma / 1e12 == pytest.approx(tflops, rel=0.01)
        assert 2 * card.tensor / 1e12 == pytest.approx(tensor_tflops, rel=0.01)
        assert card.mufu == 16 * multiprocessors * mhz * 1e6
        assert card.bytes == 1.94e12

    def test_an_unknown_card_has_no_bound(self):
        from bench.gpu.cards import Card, Work

        assert Work(1.0, 1.0, 1.0, 1.0, 1.0).shares(Card("new", {}, None, None, None, None, None), 1.0) == {}

    @pytest.mark.parametrize(
        ("operation", "kernel", "dim", "bound"),
        [
            ("sum", "Gaussian", 2, "MUFU"),  # an exponential takes 1/16 cycle, the rest 5/128
            ("sum", "Laplace", 2, "MUFU"),
            ("sum", "Laplace", 64, "FMA"),
            ("sum", "Gaussian", 784, "tensor"),
            ("gradient", "Gaussian", 64, "tensor"),
        ],
    )
    def test_what_binds_on_an_h100(self, operation, kernel, dim, bound):
        from bench.gpu.cards import Card, reduction

        unit = 132 * 1.83e9
        card = Card("H100", {}, 128 * unit, 64 * unit, 1024 * unit, 16 * unit, 3.35e12)
        assert reduction(operation, kernel, 10**5, 10**5, dim).shares(card, 1.0)["bound"] == bound


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Replaces the rows of a bench in its own processes, by code that they import when Python starts."""

    def install(code):
        (tmp_path / "sitecustomize.py").write_text(code)
        return os.environ | {"PYTHONPATH": str(tmp_path)}

    return install


ROWS = """
import os, sys, time
if "bench" in " ".join(sys.orig_argv):
    sys.path.insert(0, os.getcwd())
    import torch
    from bench.gpu import rows
    def made(result):
        return rows.Made({"gwf_fast": lambda: result}, truth=lambda: (torch.ones(2).double(),))
    right = lambda: (torch.ones(2),)
    def die(): os._exit(77)
    def fail(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
    def slow():
        time.sleep(3600)
    found = {"first": right, "dies": die, "raises": fail, "wrong": lambda: (torch.zeros(2),), "last": right}
    found = {"slow": slow, "never": right} if os.environ.get("SLOW") else found
    rows.all_rows = lambda: [rows.Row(name, 0, lambda s, f=f: made(f)) for name, f in found.items()]
"""


def bench(out, environment, *options):
    command = [sys.executable, "-m", "bench", "--device", "cuda", "--dry-run", "--seconds", "0.01", "--out", str(out)]
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return done, json.loads(out.read_text()) if out.exists() else None


def test_failures_are_recorded_and_the_rest_goes_on(tmp_path, plugin):
    done, data = bench(tmp_path / "run.json", plugin(ROWS))
    rows = {name: found["gwf_fast"] for name, found in data["rows"].items()}
    assert "median" in rows["first"] and "median" in rows["last"]
    assert rows["dies"] == {"failed": "the process ended with code 77"}
    assert rows["raises"]["failed"].startswith("RuntimeError: CUDA error: an illegal memory access")
    assert rows["wrong"]["failed"].startswith("relative error 1.0e+00")
    assert data["not_run"] == []
    assert data["environment"]["dry_run"] is True
    assert done.returncode == 1
    assert "| dies | the process ended with code 77 |" in done.stdout


def test_the_time_is_kept(tmp_path, plugin):
    _, data = bench(tmp_path / "run.json", plugin(ROWS) | {"SLOW": "1"}, "--seconds-total", "1")
    assert data["not_run"] in (["never"], ["slow", "never"])


def test_the_rows_run(tmp_path):
    """One of each kind, at the sizes of a dry run."""
    only = ["sum/*/D3", "average/Gaussian/D64", "sum/Gaussian/D16-far", "call/mmd2", "drift.gmd/4096*", "jko/KL/auto"]
    only += ["sum/Gaussian/D64-triton:tf32", "mmd2/*/D2"]
    done, data = bench(tmp_path / "run.json", dict(os.environ), "--no-peers", "--only", *only)
    failed = {name: found["gwf_fast"] for name, found in data["rows"].items() if "median" not in found["gwf_fast"]}
    assert failed == {}
    assert len(data["rows"]) == 9
    assert done.returncode == 0


def test_peers_agree():
    """Dense PyTorch, attention and geomloss compute what we do, in float64 at the sizes of a dry run."""
    from bench.gpu import rows
    from bench.measure import relative_error

    setting = rows.Setting(torch.device("cpu"), 1024)
    for the_row in rows.all_rows():
        if the_row.name in ("sum/Gaussian/D3", "sum/Gaussian/D64", "average/Gaussian/D64", "mmd2/value+gradient/D2"):
            prepared = the_row.make(setting)
            for name in ("torch dense", "SDPA"):
                if name in prepared.contenders:
                    result = prepared.contenders[name]()()
                    assert relative_error(prepared.checked(result), prepared.truth()) < the_row.peer_tolerance


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--device", "cuda"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "bench: --device cuda needs a CUDA device; --dry-run tries the script without one\n"
