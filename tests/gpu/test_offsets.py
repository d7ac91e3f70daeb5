"""Addresses are computed in 64 bits: N M passes 2^31 at 46,000 points. No machine of the tests holds sizes that would
tell, so the intermediate code is read: nothing that grows with a size is multiplied in 32 bits and widened after.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"

pytestmark = [
    pytest.mark.skipif(not (BENCH / "gpu_cases.py").is_file(), reason="needs the source tree"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]

# Outside of the interpreter; what test_compile.py compiles as well, and Triton keeps.
PROGRAM = """
import sys
import triton
from bench import compile_gpu, gpu_cases
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

for case in gpu_cases.REPRESENTATIVE:
    for kernel, arguments, constants in gpu_cases.launches(case, False):
        if kernel.__name__ in sys.argv[1:]:
            types, values, options = gpu_cases.signature(kernel, arguments, constants)
            source = ASTSource(fn=kernel, signature=types, constexprs=values, attrs=compile_gpu.aligned(arguments))
            compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            print(f"// {kernel.__name__}\\n{compiled.asm['ttir']}")
"""
KERNELS = ("sum_kernel", "gradient_kernel", "average_kernel", "mmd_kernel", "jet_kernel_many")
WITHIN_A_TILE = {"arith.constant", "arith.extui", "tt.make_range", "tt.broadcast", "tt.expand_dims"}


def narrow(code):
    """Operations that lose digits of an offset: (operation, what made its operand)."""
    made = dict(re.findall(r"(%[\w#]+)(?::\d+)? = ([\w.]+)", code))
    found = []
    for line in code.splitlines():
        if offset := re.search(r"tt\.addptr %\S+ (%\S+) : .*, (\S+)", line):
            if "i32" in offset[2] and made.get(offset[1]) not in WITHIN_A_TILE:
                found.append(("tt.addptr", made.get(offset[1])))
        elif widened := re.search(r"arith.extsi (%\S+) : (\S+)", line):
            product = made.get(widened[1])
            if product == "arith.muli" or (product == "arith.addi" and widened[2].startswith("tensor")):
                found.append(("arith.extsi", product))
    return found


def test_offsets_are_made_of_64_bits():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", PROGRAM, *KERNELS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = re.split(r"^// (\w+)$", done.stdout, flags=re.MULTILINE)[1:]
    assert set(parts[::2]) == set(KERNELS)
    assert {name: narrow(code) for name, code in zip(parts[::2], parts[1::2], strict=True)} == {k: [] for k in KERNELS}


def test_what_is_narrow_is_seen():
    assert narrow("%1 = arith.muli %a, %b : i32\n%2 = arith.extsi %1 : i32 to i64") == [("arith.extsi", "arith.muli")]
    code = "%1 = arith.addi %a, %b : tensor<16xi32>\n%2 = tt.addptr %p, %1 : tensor<16x!tt.ptr<f32>>, tensor<16xi32>"
    assert narrow(code) == [("tt.addptr", "arith.addi")]
    code = "%1 = tt.make_range {end = 16 : i32, start = 0 : i32} : tensor<16xi32>"
    assert narrow(f"{code}\n%2 = tt.addptr %p, %1 : tensor<16x!tt.ptr<f32>>, tensor<16xi32>") == []
