"""GPU code to machine code, without a GPU: Triton kernels for four targets, the CUDA module for three."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "compile_gpu.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the source tree")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    out = tmp_path_factory.mktemp("compile") / "rows.jsonl"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), "--quick", "--jobs", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows, done.stderr[-2000:]
    bad = [row for row in rows if "error" in row or row["spills"]]
    assert (done.returncode == 0) == (bad == []), done.stderr[-2000:]
    return rows


def test_nothing_fails_or_spills(rows):
    assert [row for row in rows if "error" in row or row["spills"]] == []


def test_all_kernels_on_all_targets(rows):
    targets = {"sm_80", "sm_90", "sm_100", "gfx942"}
    kernels = {"sum_kernel", "gradient_kernel", "mmd_kernel", "average_kernel", "jet_kernel_few", "jet_kernel_many"}
    assert {row["target"] for row in rows} == targets
    assert {row["kernel"] for row in rows} >= kernels
    for name in ("sum_kernel", "gradient_kernel", "mmd_kernel", "average_kernel", "jet_kernel_many"):
        assert {row["target"] for row in rows if row["kernel"] == name} == targets
    pairwise = [row for row in rows if row["kernel"] in kernels]
    assert {row["case"].split("-")[1] for row in pairwise} >= {"gaussian", "laplace", "imq", "distance", "power", "log"}


def test_instructions_of_a_gaussian_sum(rows):
    """The inner loop at D = 2 stays near its bound of 6.5 instructions a pair (KeOps: 10.25)."""
    counted = {
        row["target"]: row["instructions_per_pair"]
        for row in rows
        if row["case"].startswith("sum_ones-gaussian-1x8x8x2-float32") and row["target"].startswith("sm_")
    }
    assert len(counted) == 3
    assert max(counted.values()) <= 0.7 * 10.25
