"""Instructions per pair of a Gaussian sum: KeOps' generated CUDA code, our CUDA code and our Triton code.

    python bench/keops_sass.py [--arch 90]

KeOps' code is compiled with nvcc and KeOps' own options (-use_fast_math), ours with those of build_cuda.py. A pair is
one exponential: instructions of the hot loop over its MUFU.EX2 instructions. Needs nvcc and pykeops, no GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("KEOPS_VERBOSE", "0")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]
import sass  # noqa: E402

import build_cuda  # noqa: E402


def nvcc(source: str, arch: str, *options: str) -> bytes:
    """Compiles CUDA source to a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code.cu")
        path.write_text(source)
        target = Path(folder, "code.cubin")
        command = [build_cuda.nvcc(), "-cubin", f"-arch=sm_{arch}", *options, str(path), "-o", str(target)]
        subprocess.run(command, check=True)
        return target.read_bytes()


def keops_source(dim: int) -> str:
    """The CUDA code that KeOps generates for sum_j exp(-|x - y|^2 g) b_j."""
    from keopscore.config import cuda_config

    cuda_config.get_cuda_version = lambda: 13000  # asked while importing what writes the code
    cuda_config.get_gpu_props = lambda: (0, "")
    from keopscore.mapreduce.gpu.GpuReduc1D import GpuReduc1D
    from keopscore.mapreduce.MapReduce import MapReduce

    variables = f"Var(0,{dim},0), Var(1,{dim},1), Var(2,1,1), Var(3,1,2)".split(", ")
    x, y, b, g = variables
    formula = f"Sum_Reduction(Exp(-SqDist({x},{y})*{g})*{b},0)"
    reduction = GpuReduc1D.__new__(GpuReduc1D)  # its __init__ looks for a GPU
    MapReduce.__init__(reduction, formula, [], 4, "float", "float", "block_sum", 1, 1, 0, 0, 1, 0)
    reduction.dimy = reduction.varloader.dimy
    reduction.get_code()
    return reduction.code


def cuda_cubin(arch: str) -> bytes:
    """The float kernels of our CUDA module, out of the object that build_cuda.py makes (minutes, the first time)."""
    objects = build_cuda.compile_objects(build_cuda.OBJECTS, lambda command: subprocess.run(command, check=True))
    (path,) = (Path(name).resolve() for name in objects if name.endswith("pairwise_float.o"))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sass.tool("cuobjdump"), "-xelf", "all", str(path)], cwd=folder, check=True, capture_output=True)
        (found,) = (file for file in Path(folder).iterdir() if f"sm_{arch}" in file.name)
        return found.read_bytes()


def triton_cubin(dim: int, arch: str) -> bytes:
    """Our Triton kernel for the same call."""
    import gpu_cases
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gwf_fast.selftest import Case

    ((kernel, arguments, constants),) = gpu_cases.launches(Case("sum_ones", sizes=(1, 8, 8, dim)), False)
    types, values, options = gpu_cases.signature(kernel, arguments, constants)
    source = ASTSource(fn=kernel, signature=types, constexprs=values)
    return triton.compile(source, target=GPUTarget("cuda", int(arch), 32), options=options).asm["cubin"]


def count(cubin: bytes, function: str = "") -> tuple[float, int, str]:
    """Instructions per exponential of the loop with most of them, how many it has, and the kinds of instructions."""
    bodies = [body for body in sass.loops(cubin, function) if any("MUFU.EX2" in line for line in body)]

    def exponentials(body: list[str]) -> int:
        return sum("MUFU.EX2" in line for line in body)

    innermost = [b for b in bodies if not any(o is not b and sass.within(o, b) for o in bodies)]
    body = max(innermost, key=exponentials)
    kinds = ", ".join(f"{name} {n}" for name, n in sass.opcodes(body).most_common(8))
    return len(body) / exponentials(body), exponentials(body), kinds


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    os.chdir(ROOT)
    parser.add_argument("--arch", default="90")
    arch = parser.parse_args().arch
    cuda = cuda_cubin(arch)
    for dim in (2, 3):
        peer, *rest = count(nvcc(keops_source(dim), arch, "-use_fast_math"))
        print(f"sm_{arch} D = {dim} KeOps  {peer:6.2f} instructions/pair, {rest[0]} pairs an iteration: {rest[1]}")
        ours = {
            "CUDA": (cuda, f"6SingleINS0_8GaussianEEELi{dim}ELi0Ef"),
            "Triton": (triton_cubin(dim, arch), ""),
        }
        for name, (cubin, function) in ours.items():
            value, pairs, kinds = count(cubin, function)
            print(f"sm_{arch} D = {dim} {name:6} {value:6.2f} = {value / peer:.2f} of KeOps, {pairs} pairs: {kinds}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
