"""The machine code of the persistent JKO loop: its functions are there, and address shared memory as such."""

import collections
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
#define GWF_ISA gpu
#include "gpu/device_math.h"
#include "gpu/launch.h"
#include "gpu/primal_dual_loop.h"
namespace gwf::gpu {
__global__ void __launch_bounds__(loop_threads, 1) kernel(const __grid_constant__ LoopArguments<float> a) {
    BlockLoop<float, POLICY>(a).run();
}
}
"""
# multiply-adds of one step of each function's innermost loop: four inputs of a row, for one or two outputs; four rows
FUNCTIONS = {"through_layers": 16, "back_through_layers": 16, "products_of_rows": 16, "along_layers": 16}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the path"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton's nvdisasm"),
    pytest.mark.skipif(not (ROOT / "csrc" / "gpu").is_dir(), reason="needs the source tree"),
]


def opcodes(listing):
    """Instructions of each function by name, without modifiers."""
    counts, name = collections.defaultdict(collections.Counter), ""
    for line in listing.splitlines():
        if label := re.match(r"\$?(\S+):\s*$", line):
            name = name if label[1].startswith(".L") else label[1].rsplit("$", 1)[-1]
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", line):
            counts[name][found[1]] += 1
    return counts


@pytest.mark.parametrize("policy", ["Lanes<1>", "Lanes<2>", "Tiles"])
def test_layers_stay_in_shared_memory_and_registers(policy, tmp_path):
    from bench import sass

    source, made = tmp_path / "kernel.cu", tmp_path / "kernel.cubin"
    source.write_text(SOURCE)
    options = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-ftz=true", "-arch=sm_90", f"-DPOLICY={policy}"]
    subprocess.run(["nvcc", *options, f"-I{ROOT / 'csrc'}", "-cubin", "-o", str(made), str(source)], check=True)
    found = opcodes(sass.disassembly(made.read_bytes()))
    for name, products in FUNCTIONS.items():
        (counts,) = [counts for function, counts in found.items() if f"{len(name)}{name}E" in function]
        assert counts["FFMA"] >= products, name  # an assumption that is false leaves an empty function
        assert counts["LDS"] and (counts["STS"] or name == "products_of_rows")
        assert not {op for op in ("LD", "ST", "LDL", "STL") if counts[op]}, name
