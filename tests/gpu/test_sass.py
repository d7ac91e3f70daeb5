"""Instructions per pair are counted right: on listings whose answer is known, and on our kernels and KeOps'."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "keops_sass.py"
BEFORE = ROOT / "bench" / "results" / "gpu" / "sass_before.json"

pytestmark = [
    pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the source tree"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]


def listing(*lines):
    """A listing as nvdisasm prints it; a line that ends in a colon is a label."""
    return "\n".join(line if line.endswith(":") else f"        /*0000*/                   {line} ;" for line in lines)


KERNEL = listing(
    "S2R R0, SR_TID.X",
    ".L_groups:",
    "MOV R9, RZ",
    ".L_tiles:",
    "LDG.E R1, desc[UR4][R2.64]",
    "@!P0 BRA `(.L_far)",
    ".L_products:",  # 4 multiply-adds: as many coordinates, for the one pair of a thread
    *["FFMA R4, R5, R6, R4"] * 4,
    "IADD3 R3, R3, 0x4, RZ",
    "@P1 BRA `(.L_products)",
    "BRA `(.L_join)",
    ".L_far:",
    "@P3 BRA `(.L_rest)",  # too few coordinates for the next loop
    ".L_differences:",
    *["FADD R5, R5, -R6", "FFMA R4, R5, R5, R4"] * 2,
    "@P1 BRA `(.L_differences)",
    "@P4 BRA `(.L_join)",  # none is left
    ".L_rest:",
    "FADD R5, R5, -R6",
    "FFMA R4, R5, R5, R4",
    "@P1 BRA `(.L_rest)",
    ".L_join:",
    "MUFU.EX2 R7, R4",
    "FADD R8, R8, R7",
    "@P2 BRA `(.L_tiles)",
    "@P5 BRA `(.L_groups)",
    "EXIT",
)


class TestNests:
    def function(self):
        from bench import nests

        return nests.Function(KERNEL)

    def test_loops(self):
        function = self.function()
        (groups,) = function.loops
        (tiles,) = groups.inside
        assert len(tiles.inside) == 3
        assert function.parent(tiles) is groups
        assert all(function.parent(loop) is tiles for loop in tiles.inside)

    def test_ways(self):
        """By products, or by differences with what is left of them; not by what is left alone."""
        function = self.function()
        ways = function.ways(function.loops[0].inside[0])
        assert sorted(len(way.before) for way in ways) == [1, 2]
        assert all(way.after == () for way in ways)

    @pytest.mark.parametrize(
        ("dim", "near", "far"),
        # outside of loops: 2 + 3 and a branch by products, 2 + 3 and two branches by differences
        [(8, 6 + 2 * 6, 7 + 4 * 5), (7, 6 + 2 * 6, 7 + 3 * 5 + 3), (4, 6 + 6, 7 + 2 * 5)],
    )
    def test_costs(self, dim, near, far):
        from bench import keops_sass

        function = self.function()
        tiles = function.loops[0].inside[0]
        for pick, wanted in ((min, near), (max, far)):
            assert keops_sass.cost(function, tiles, 32, dim, pick)["instructions"] == wanted

    def test_differences_are_not_what_a_tile_takes(self):
        """Where tiles have tensor products, the loop without them is for very close pairs: it is counted apart."""
        from bench import keops_sass, nests

        function = nests.Function(KERNEL.replace("FFMA R4, R5, R6, R4", "DMMA.8x8x4 R4, R5, R6, R4"))
        tiles = function.loops[0].inside[0]
        assert len(keops_sass.differences(function, tiles)) == 2
        assert len(keops_sass.differences(self.function(), tiles)) == 0
        usual, all_ways = (
            keops_sass.cost(function, tiles, 32, 8, max, everything=everything)["instructions"]
            for everything in (False, True)
        )
        assert usual < all_ways
        way = function.ways(tiles, without=keops_sass.differences(function, tiles))
        assert [len(one.before) for one in way] == [1]

    def test_multiply_adds(self):
        from bench import sass

        code = [
            "FFMA R1, R2, R3, R1",
            "HMMA.1688.F32.TF32 R1",
            "HMMA.16816.F32 R1",
            "HGMMA.64x128x8.F32.TF32 R1",
            "NOP",
        ]
        assert sass.multiply_adds(sass.kinds(code)) == 32 + 1024 + 2048 + 64 * 128 * 8 / 4  # type: ignore[arg-type]


def count(tmp_path, *options):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    out = tmp_path / "sass.json"
    command = [sys.executable, str(SCRIPT), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert out.with_suffix(".md").is_file()
    return {(row["side"], row["regime"], row["D"]): row for row in rows}


def test_ours(tmp_path):
    """Sums stay at their bound for few coordinates, and take no more than before for many."""
    rows = count(tmp_path, "--only", "ours", "--operations", "sum", "--dims", "2", "16")
    assert 6 <= rows["ours", "gaussian near", 2]["instructions"] <= 7.2
    near, far = (rows["ours", f"gaussian {form}", 16]["instructions"] for form in ("near", "far"))
    assert near < far
    earlier = [row for row in json.loads(BEFORE.read_text())["rows"] if row["operation"] == "sum"]
    before = {(row["side"], row["regime"], row["D"]): row["instructions"] for row in earlier}
    for key, row in rows.items():
        assert row["instructions"] <= 1.1 * before[key]  # compilers differ a little
        assert all(kernel["spills"] == 0 for kernel in row["kernels"])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the path: KeOps' code was not compiled")
@pytest.mark.skipif(importlib.util.find_spec("pykeops") is None, reason="needs pykeops")
def test_keops(tmp_path):
    """Its sum in two dimensions: 2 subtractions, 2 multiply-adds, 2 products, the exponential, loads, the loop."""
    rows = count(tmp_path, "--only", "KeOps", "--operations", "sum", "--dims", "2")
    assert 9.5 <= rows["KeOps", "gaussian near", 2]["instructions"] <= 11
    assert rows["KeOps", "gaussian far", 2]["instructions"] == rows["KeOps", "gaussian near", 2]["instructions"]
