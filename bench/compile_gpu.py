"""Compiles every Triton kernel for GPUs that aren't here, and counts registers, spills and instructions.

    python bench/compile_gpu.py --quick          # a subset, for CI
    python bench/compile_gpu.py --out FILE.json  # every kernel x profile x D bucket x dtype x target (hours)

The launches are the backend's own: its functions run on small CPU tensors with the kernels replaced by recorders, so
that what is compiled is what a call would compile. bfloat16 and float16 inputs use the float32 kernels (packing
converts them). Exit code 1 if anything fails to compile or spills. Nothing here measures speed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch

from gwf_fast.kernels.profiles import PROFILES
from gwf_fast.nn.functions import ACTIVATIONS
from gwf_fast.selftest import NEEDS_LOGARITHM, OPERATIONS, Case
from gwf_fast.selftest_networks import OUTPUTS, NetworkCase, results

sys.path.insert(0, str(Path(__file__).resolve().parent))
import sass

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
DIMENSIONS = (1, 2, 3, 4, 16, 64)
"""One a bucket: the unrolled ones, and the two widths of output blocks beyond."""

DTYPES = (torch.float32, torch.float64)


class Recorder:
    """Stands for a kernel: keeps the arguments of a launch instead of launching."""

    def __init__(self, kernel: object, launches: list) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple) -> object:
        """The launcher for a grid."""
        return lambda *arguments, **constants: self.launches.append((self.kernel, arguments, constants))


PAIRWISE = ("sum_kernel", "gradient_kernel", "average_kernel", "jet_kernel_few", "jet_kernel_many")
NETWORKS = ("mlp_forward_kernel", "mlp_backward_kernel")


def launches(case: Case | NetworkCase, is_amd: bool) -> list[tuple]:
    """(kernel, positional arguments, constants) of every launch that a case makes on a GPU of this maker."""
    from gwf_fast.kernels.triton import backend, launch, mlp

    is_network = isinstance(case, NetworkCase)
    module, kernels = (mlp, NETWORKS) if is_network else (backend, PAIRWISE)
    found: list[tuple] = []
    originals = {name: getattr(module, name) for name in kernels}
    check, hip = launch.check_device, torch.version.hip
    try:
        launch.check_device = lambda x: None
        torch.version.hip = "as if" if is_amd else None
        for name, kernel in originals.items():
            setattr(module, name, Recorder(kernel, found))
        if is_network:
            results(mlp, *case.inputs("cpu"), case.spec)
        else:
            OPERATIONS[case.operation](backend, case.inputs("cpu"))
    finally:
        launch.check_device, torch.version.hip = check, hip
        for name, kernel in originals.items():
            setattr(module, name, kernel)
    return found


def networks(quick: bool) -> Iterator[NetworkCase]:
    """Every activation, output, padded width and type of the perceptrons; or a subset."""
    shapes = ((2, 16, 16, 1), (2, 32, 2), (3, 64, 3), (64, 128, 64))
    types = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    if quick:
        functions = zip(ACTIVATIONS, itertools.cycle((None, *OUTPUTS)))
        for k, (activation, output) in enumerate(functions):
            yield NetworkCase(shapes[k % 4], 40, types[k // 4 % 4], activation, output, k % 4 in (1, 2))
        return
    for sizes, dtype in itertools.product(shapes, types):
        residual = sizes[0] == sizes[-1]
        halves = dtype in types[2:]  # their arithmetic is that of float32
        for activation in ("silu",) if halves else ACTIVATIONS:
            yield NetworkCase(sizes, 40, dtype, activation, None, residual)
        for output in () if halves else OUTPUTS:
            yield NetworkCase(sizes, 40, dtype, "silu", output, residual)


def cases(quick: bool) -> Iterator[Case]:
    """Every operation, profile, bucket of D and type; or a subset that has each of them at least once."""
    buckets = list(itertools.product(DIMENSIONS, DTYPES))
    pairs = [
        (operation, name)
        for operation, (name, profile) in itertools.product(OPERATIONS, PROFILES.items())
        if profile.positive or operation not in NEEDS_LOGARITHM
    ]
    for position, (operation, name) in enumerate(pairs):
        chosen = [buckets[5 * (position // 2) % len(buckets)]] if position % 2 == 0 else []  # 5: each bucket in turn
        for dim, dtype in chosen if quick else buckets:
            yield Case(operation, (name,), (1, 8, 8, dim), dtype, exclude_self=operation == "sum_ones")


def signature(kernel: object, arguments: tuple, constants: dict) -> tuple[dict, dict, dict]:
    """(types, constant values, compiler options) of a launch."""
    pointers = {
        torch.float32: "*fp32",
        torch.float64: "*fp64",
        torch.bfloat16: "*bf16",
        torch.float16: "*fp16",
        torch.int64: "*i64",
    }
    types = {}
    for name, value in zip(kernel.arg_names, arguments):
        types[name] = pointers[value.dtype] if isinstance(value, torch.Tensor) else "i32"
    values = {name: value for name, value in constants.items() if name in kernel.arg_names}
    options = {name: value for name, value in constants.items() if name not in kernel.arg_names}
    return types | dict.fromkeys(values, "constexpr"), values, options


def compile_case(case: Case | NetworkCase, target: str) -> list[dict]:
    """One row a kernel: registers, shared memory, spills, and instructions per pair where they can be counted."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    rows = []
    for kernel, arguments, constants in launches(case, TARGETS[target][0] == "hip"):
        types, values, options = signature(kernel, arguments, constants)
        start = time.perf_counter()
        row = {"kernel": kernel.__name__, "case": str(case), "target": target}
        try:
            source = ASTSource(fn=kernel, signature=types, constexprs=values)
            compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
        except Exception as problem:  # reported in the table: the other kernels still compile
            rows.append(row | {"error": f"{type(problem).__name__}: {str(problem)[:300]}"})
            continue
        row |= {"seconds": round(time.perf_counter() - start, 2), "shared": compiled.metadata.shared}
        if "cubin" in compiled.asm:
            row |= sass.usage(compiled.asm["cubin"])
            # a perceptron has no pairs; with many coordinates the inner loop runs over them
            if isinstance(case, Case) and case.sizes[3] <= 4 and values.get("C", 0) >= 0:
                pairs = values["BM"] * values["BN"] / (32 * options["num_warps"])
                row["instructions_per_pair"] = sass.per_pair(compiled.asm["cubin"], pairs)
        else:
            row |= sass.amd_usage(compiled.asm["amdgcn"])
        rows.append(row)
    return rows


def main() -> int:
    """Compiles, prints the table, writes it; 1 if something failed or spilled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a subset, for CI")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: the interpreter's functions can't be compiled")

    chosen = [*cases(arguments.quick), *networks(arguments.quick)]
    todo = [
        (case, target)
        for k, case in enumerate(case for case in chosen if arguments.match in str(case))
        for position, target in enumerate(arguments.targets)
        if not arguments.quick or k % len(arguments.targets) == position
    ]
    start = time.perf_counter()
    rows: list[dict] = []
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs) as pool:
        for found in pool.map(compile_case, *zip(*todo)):
            rows += found
            for row in found:
                print(describe(row), flush=True)
    bad = [row for row in rows if "error" in row or row.get("spills", 0)]
    print(f"{len(rows)} kernels in {time.perf_counter() - start:.0f} s, {len(bad)} failed or spilled")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))
    return 1 if bad else 0


def describe(row: dict) -> str:
    """One line of the table."""
    head = f"{row['target']:7} {row['kernel']:16} {row['case']:55}"
    if "error" in row:
        return f"{head} {row['error']}"
    counted = f" {row['instructions_per_pair']:6.2f} instructions/pair" if row.get("instructions_per_pair") else ""
    return f"{head} {row['registers']:4} registers {row['shared']:6} B shared {row['spills']:4} B spilled{counted}"


if __name__ == "__main__":
    sys.exit(main())
