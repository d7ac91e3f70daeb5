"""Compiles every Triton kernel for GPUs that aren't here, and counts registers, spills and instructions.

    python bench/compile_gpu.py --quick               # a subset, in half a minute
    python bench/compile_gpu.py --out rows.jsonl      # every kernel x profile x D bucket x dtype x target: half an hour
    python bench/gpu_table.py rows.jsonl              # the summary in docs/gpu.md

What is compiled is what calls would compile (gpu_cases.py). Exit code 1 if anything fails to compile or spills. With
--out a run can be stopped and taken up again: rows of the same sources are kept. Nothing here measures speed.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script finds bench here
from bench import sass
from bench.gpu_cases import TARGETS, AnyCase, Case, all_cases, fingerprint, launches, quick_cases, signature


def aligned(arguments: tuple) -> dict:
    """What a launch tells the compiler of its tensors: they start at multiples of 16 bytes."""
    return {(k,): [["tt.divisibility", 16]] for k, value in enumerate(arguments) if isinstance(value, torch.Tensor)}


def compile_case(case: AnyCase, target: str) -> list[dict]:
    """One row a kernel: registers, shared memory, spills, and instructions per pair where they can be counted."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    rows = []
    is_amd = TARGETS[target][0] == "hip"
    key = fingerprint(case, is_amd)
    for kernel, arguments, constants in launches(case, is_amd):
        types, values, options = signature(kernel, arguments, constants)
        start = time.perf_counter()
        row = {"kernel": kernel.__name__, "case": str(case), "target": target, "key": key}
        try:
            source = ASTSource(fn=kernel, signature=types, constexprs=values, attrs=aligned(arguments))
            compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
        except Exception as problem:  # reported in the table: the other kernels still compile
            rows.append(row | {"error": f"{type(problem).__name__}: {str(problem)[:300]}"})
            continue
        row |= {"seconds": round(time.perf_counter() - start, 2), "shared": compiled.metadata.shared}
        if "cubin" in compiled.asm:
            row |= sass.usage(compiled.asm["cubin"])
            # a perceptron has no pairs; with many coordinates the inner loop runs over them
            if isinstance(case, Case) and case.sizes[3] <= 4 and "BM" in values:
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
    parser.add_argument("--out", type=Path, help="add the rows to this file, one JSON object a line")
    parser.add_argument("--seconds", type=float, default=0.0, help="start nothing new after this many")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: the interpreter's functions can't be compiled")

    table = quick_cases(arguments.targets) if arguments.quick else itertools.product(all_cases(), arguments.targets)
    chosen = [(case, target) for case, target in table if arguments.match in str(case)]
    done = load_rows(arguments.out, chosen)
    finished = {(row["case"], row["target"]) for row in done}
    todo = [(case, target) for case, target in chosen if (str(case), target) not in finished]
    start = time.perf_counter()
    rows = done
    out = arguments.out.open("a") if arguments.out else None
    torch.set_num_threads(1)  # a forked process would wait forever for its parent's OpenMP threads
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs) as pool:
        waiting = collections.deque(todo)
        running: set = set()
        while waiting or running:
            late = arguments.seconds and time.perf_counter() - start > arguments.seconds
            while waiting and not late and len(running) < 2 * arguments.jobs:
                running.add(pool.submit(compile_case, *waiting.popleft()))
            if not running:
                break
            ended, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for row in (row for future in ended for row in future.result()):
                rows.append(row)
                print(describe(row), flush=True)
                if out:
                    out.write(json.dumps(row) + "\n")
                    out.flush()
    bad = [row for row in rows if "error" in row or row.get("spills", 0)]
    left = f", {len(waiting)} left for the next run" if waiting else ""
    print(f"{len(rows)} kernels, {time.perf_counter() - start:.0f} s, {len(bad)} failed or spilled{left}")
    return 1 if bad else 0


def load_rows(path: Path | None, wanted: Iterable[tuple[AnyCase, str]]) -> list[dict]:
    """What earlier runs left of these cases, where it is up to date."""
    if path is None or not path.exists():
        return []
    keys = {(str(case), target): fingerprint(case, TARGETS[target][0] == "hip") for case, target in wanted}
    latest = {
        (row["case"], row["target"], row["kernel"]): row for row in map(json.loads, path.read_text().splitlines())
    }
    return [row for row in latest.values() if keys.get((row["case"], row["target"])) == row["key"]]


def describe(row: dict) -> str:
    """One line of the table."""
    head = f"{row['target']:7} {row['kernel']:16} {row['case']:55}"
    if "error" in row:
        return f"{head} {row['error']}"
    counted = f" {row['instructions_per_pair']:6.2f} instructions/pair" if row.get("instructions_per_pair") else ""
    spills = f"{row['spills']:4} B spilled" + (f", {row['parked']} scalars parked" if row.get("parked") else "")
    return f"{head} {row['registers']:4} registers {row['shared']:6} B shared {spills}{counted}"


if __name__ == "__main__":
    sys.exit(main())
