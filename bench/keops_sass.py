"""Instructions per pair of the reductions, read from the machine code: ours as a call would compile them, and KeOps'.

    python bench/keops_sass.py --out bench/results/gpu/sass_after.json   # both; minutes, and the table as .md beside it
    python bench/keops_sass.py --quick                                   # sums in two and three dimensions, printed
    python bench/keops_sass.py --only ours --dims 16 64 --precision tf32x3 --before bench/results/gpu/sass_before.json

KeOps' code is compiled by nvcc with KeOps' own options (-use_fast_math). Ours is what the backends would launch,
recorded on small CPU tensors (record.py), whatever the kernels are called. Counted is the loop over tiles of pairs
(nests.py): the instructions of all threads in an iteration over the pairs of a tile, times the programs that compute
the same pairs. "near" and "far" are forms of distances that the device chooses by the radius of the cloud. What only
few tiles take is not in the number, and stands beside it, with the share of tiles that took it in a cloud of these
dimensions (`shares`): differences of coordinates where float64 cannot tell a pair's distance, and sweeps that are made
again where weights leave their window.
Needs nvcc and pykeops, no GPU, and measures no time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KEOPS_VERBOSE", "0")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds bench there
import build_cuda  # noqa: E402
from bench import keops_code, nests, sass  # noqa: E402

OPERATIONS = ("sum", "gradient", "logsumexp", "average")
DIMS = (2, 3, 16, 64, 128, 784)
REGIMES = {"gaussian near": ("gaussian", min), "gaussian far": ("gaussian", max), "laplace": ("laplace", max)}
N = 1024
"""Points of the recorded calls: a multiple of every tile."""

TILES = (("BM", "BN"), ("BLOCK_M", "BLOCK_N"), ("ROWS", "COLS"))
"""Names of a kernel's constants for the rows and columns of a tile."""

PRODUCTS = {"tf32x3": 3, "bf16x3": 3, "bf16x6": 6}
"""Products that a precision takes in the place of one."""


def nvcc(source: str, arch: str, *options: str) -> bytes:
    """Compiles CUDA source to a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code.cu")
        path.write_text(source)
        target = Path(folder, "code.cubin")
        command = [build_cuda.nvcc(), "-cubin", f"-arch=sm_{arch}", *options, str(path), "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True)
        return target.read_bytes()


def keops_row(operation: str, kernel: str, dim: int, arch: str) -> dict:
    """What KeOps takes a pair."""
    made = keops_code.source(operation, kernel, dim)
    cubin = nvcc(made.code, arch, *keops_code.OPTIONS)
    return keops_code.per_pair(cubin, made.code, dim, made.chunked) | sass.usage(cubin)


def call(operation: str, kernel: str, dim: int, precision: str) -> None:
    """One of the four reductions as the backend is called for it, float32."""
    import torch

    from gwf_fast.kernels.table.profile_numbers import profile_id
    from gwf_fast.kernels.triton import pairs as backend

    x, y = torch.randn(1, N, dim), torch.randn(1, N, dim)
    spec = (float(profile_id(kernel)), 1.0, dim**0.5, 0.0)
    options = {"precision": precision} if precision else {}
    arguments = {"logsumexp": (x, y, None), "average": (x, y, None, None)}.get(operation, (x, y, torch.ones(1, N)))
    if operation == "sum":
        arguments = (x, y, torch.ones(1, N, 1))
    getattr(backend, f"pair_{operation}")(*arguments, spec, **options)


@functools.cache
def compiled(operation: str, kernel: str, dim: int, arch: str, precision: str) -> list[tuple]:
    """(name, constants, warps, programs, cubin) of every launch of a call."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bench import record
    from bench.compile_gpu import aligned
    from bench.gpu_cases import signature

    found = []
    for launch in record.launches(lambda: call(operation, kernel, dim, precision)):
        types, values, options = signature(launch.kernel, launch.arguments, launch.constants)
        source = ASTSource(fn=launch.kernel, signature=types, constexprs=values, attrs=aligned(launch.arguments))
        code = triton.compile(source, target=GPUTarget("cuda", int(arch), 32), options=options)
        warps = code.metadata.num_warps
        found.append((launch.kernel.__name__, values, warps, launch.programs, code.asm["cubin"]))
    return found


def our_row(operation: str, kernel: str, dim: int, arch: str, precision: str, pick: Callable) -> dict:
    """What a call of ours takes a pair, over all kernels that it launches.

    With many coordinates they come in pairs, for clouds that are near and for others, of which one has its cloud;
    within the latter, the way by differences is for tiles with a pair that is very close.
    """
    parts = []
    for name, constants, warps, programs, cubin in compiled(operation, kernel, dim, arch, precision):
        if "NEAR" in constants and constants["NEAR"] != (pick is min and kernel == "gaussian"):
            continue
        part = per_pair(cubin, constants, warps, programs, dim, min)
        parts.append({"kernel": name, "warps": warps, "programs": programs} | part | sass.usage(cubin))
    total = sum(part["instructions"] for part in parts)
    again = sum(part.get("rarely", 0.0) for part in parts)
    found = {"instructions": total, "kernels": parts}
    return found | ({"where rare": total + again, "share": share_of_rare(operation, kernel, dim)} if again else {})


def share_of_rare(operation: str, kernel: str, dim: int) -> float:
    """The share of tiles of a standard normal cloud that take the way which the number leaves out.

    What the kernels decide (closeness in wide_sums.py, the window in averages.py), in float64, on the call's own size.
    """
    import torch

    from gwf_fast.kernels.triton import averages, wide_packing
    from gwf_fast.kernels.triton.packing import mixture

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(N, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    squares = torch.cdist(x, y) ** 2 / dim  # of bandwidth D^.5
    if dim > 4:
        import types

        from gwf_fast.kernels.table.profile_numbers import profile_id

        made = mixture((float(profile_id(kernel)), 1.0, dim**0.5, 0.0))
        pairs = types.SimpleNamespace(mixture=made, halves=False, smooth=made.analytic, dtype=torch.float32, products=3)
        _, smooth, share = vars(wide_packing.WidePairs)["limits"].func(pairs)
        radius = max(float((each - y.median(0).values).square().sum(1).max()) for each in (x, y)) * made.scale**2
        close = -1.0 if radius <= smooth else radius * share
        tiles = (squares * dim * made.scale**2).unfold(0, 32, 32).unfold(1, 32, 32).amin((2, 3))
        return float((tiles < close).double().mean())
    exponents = {"gaussian": squares / 2, "laplace": squares.sqrt()}[kernel] * math.log2(math.e)
    probed = exponents[:, :: N // averages.PROBES.value].amin(1, keepdim=True)
    sums = torch.exp2(probed - exponents).sum(1)  # a group is all of the columns
    return float(((sums > averages.WINDOW.value) | (sums < 1 / averages.WINDOW.value)).double().mean())


def per_pair(cubin: bytes, constants: dict, warps: int, programs: int, dim: int, pick: Callable) -> dict:
    """Instructions per pair of a kernel: its loop over tiles, and other sweeps over them beside it."""
    tile = next((names for names in TILES if set(names) <= constants.keys()), None)
    if tile is None:
        return {"instructions": 0.0, "note": "no tile of pairs"}  # packing, adding up
    rows, cols = (constants[name] for name in tile)
    pairs_a_warp = rows * cols / warps
    products = constants["PRODUCTS"] if constants.get("NEAR") else PRODUCTS.get(constants.get("PRECISION", ""), 1)
    (function,) = nests.functions(cubin)

    def exponentials(loop: nests.Loop) -> int:
        return sass.kinds(function.code(loop))["MUFU.EX2"]

    candidates = [
        loop for loop in function.all_loops() if exponentials(loop) and not any(map(exponentials, loop.inside))
    ]
    if not candidates:
        return {"instructions": 0.0, "note": "no loop with an exponential"}
    main = max(candidates, key=exponentials)
    around = function.parent(main)
    beside = [] if around is None else [loop for loop in around.inside if loop is not main and not exponentials(loop)]
    sweep = cost(function, main, pairs_a_warp * products, dim, pick)
    dearest = cost(function, main, pairs_a_warp * products, dim, max, everything=True)
    unrolled = max(1, round(32 * sweep["kinds"].get("MUFU.EX2", 0) / pairs_a_warp)) if not main.inside else 1
    sweeps = [sweep["instructions"] / unrolled]
    rarely = dearest["instructions"] / unrolled - sweeps[0]
    for loop in beside:
        other = cost(function, loop, pairs_a_warp * products, dim, pick)
        if sass.multiply_adds(other["kinds"]) >= pairs_a_warp:
            rarely += other["instructions"] + sweeps[0]  # for the largest weight, and again under it
    again = programs * rows / N  # programs that have the same pairs, for other channels
    kinds = {kind: round(count, 1) for kind, count in sorted(sweep.pop("kinds").items(), key=lambda i: -i[1])[:12]}
    facts = {"tile": [rows, cols], "distances computed": again * len(sweeps), "tiles an iteration": unrolled}
    facts |= {"rarely": rarely * 32 / pairs_a_warp * again} if rarely > 0.5 else {}
    return facts | sweep | {"instructions": sum(sweeps) * 32 / pairs_a_warp * again, "kinds": kinds}


def differences(function: nests.Function, loop: nests.Loop) -> tuple[nests.Loop, ...]:
    """Loops inside without tensor products, where the iteration has these too: over coordinates of very close pairs."""

    def products(code: list[str]) -> bool:
        return any(kind.startswith(("HMMA", "HGMMA", "DMMA")) for kind in sass.kinds(code))

    if not products(function.code(loop)):
        return ()
    return tuple(inner for inner in loop.inside if not products(function.code(inner)))


def cost(
    function: nests.Function,
    loop: nests.Loop,
    pairs_a_warp: float,
    dim: int,
    pick: Callable,
    *,
    everything: bool = False,
) -> dict:
    """Instructions of an iteration over a tile: of the ways through it, that which ``pick`` chooses.

    Those by ``differences`` are left out, unless ``everything`` is asked for.

    Loops inside run over coordinates before the exponential, and over channels after it (as many): those with the
    longest step first, the others for what is left. A step takes a power of two of them.
    """
    found = []
    for way, code in function.ways(loop, without=() if everything else differences(function, loop)).items():
        total, steps = dict(code), []
        for inner in (way.before, way.after):
            left = dim
            bodies = [(function.path(one), 0) for one in inner]
            bodies = [(body, _step(sass.multiply_adds(body) / pairs_a_warp)) for body, _ in bodies]
            for body, step in sorted(bodies, key=lambda item: -item[1]):
                times = left // step if step else 1
                times += step == min(s for _, s in bodies) and bool(step) and left % step > 0  # masked, or padded
                left -= times * step
                steps += [[step, times]] if step else []
                for kind, count in body.items():
                    total[kind] = total.get(kind, 0.0) + times * count
        found.append({"instructions": sum(total.values()), "kinds": total, "coordinates a step, steps": steps})
    return pick(found, key=lambda one: one["instructions"])


def _step(work: float) -> int:
    return 0 if work < 1 else 1 << (int(work).bit_length() - 1)


def row(side: str, operation: str, regime: str, dim: int, arch: str, precision: str) -> dict:
    """One row of the table, or why there is none."""
    kernel, pick = REGIMES[regime]
    result = {"side": side, "operation": operation, "regime": regime, "D": dim, "arch": f"sm_{arch}"}
    try:
        if side == "KeOps":
            return result | keops_row(operation, kernel, dim, arch)
        return result | {"precision": precision or "default"} | our_row(operation, kernel, dim, arch, precision, pick)
    except Exception as problem:  # the others are still counted
        return result | {"failed": f"{type(problem).__name__}: {str(problem)[:300]}"}


def table(rows: list[dict], before: list[dict]) -> list[str]:
    """Markdown: a line for each operation, regime and D."""
    found = {(r["side"], r["operation"], r["regime"], r["D"]): r.get("instructions") for r in rows}
    was = {(r["operation"], r["regime"], r["D"]): r.get("instructions") for r in before if r["side"] == "ours"}
    theirs = {key[1:]: value for key, value in found.items() if key[0] == "KeOps"}
    theirs |= {(r["operation"], r["regime"], r["D"]): r.get("instructions") for r in before if r["side"] == "KeOps"}
    times = {
        (r["operation"], r["regime"], r["D"]): sum(part.get("distances computed", 0) for part in r.get("kernels", []))
        for r in rows
        if r["side"] == "ours"
    }
    names = ("operation", "kernel", "D", "before", "ours", "KeOps", "ours / KeOps", "bar", "distances computed")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for operation, regime, dim in itertools.product(OPERATIONS, REGIMES, DIMS):
        key = (operation, regime, dim)
        ours, peer = found.get(("ours", *key)), theirs.get(key)
        if ours is None and peer is None:
            continue
        numbers = [
            was.get(key),
            ours,
            peer,
            ours / peer if ours and peer else None,
            bar(regime, dim, peer),
            times.get(key),
        ]
        lines.append(f"| {operation} | {regime} | {dim} | " + " | ".join(map(cell, numbers)) + " |")
    return lines


def bar(regime: str, dim: int, peer: float | None) -> float | None:
    """The most that we allow ourselves."""
    return 0.6 * dim + 6 if regime == "gaussian near" and dim >= 16 else peer


def cell(value: float | None) -> str:
    """A number for the table."""
    return "" if value is None else f"{value:.2f}" if value < 20 else f"{value:.0f}"


def main() -> int:
    """Prints the table and writes it; 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    os.chdir(ROOT)
    parser.add_argument("--arch", default="90")
    parser.add_argument("--quick", action="store_true", help="sums at D = 2 and 3 only")
    parser.add_argument("--only", choices=("ours", "KeOps"), help="one side")
    parser.add_argument("--dims", type=int, nargs="*", default=DIMS)
    parser.add_argument("--operations", nargs="*", default=OPERATIONS, choices=OPERATIONS)
    parser.add_argument("--precision", default="", help="of our tile products; default: the backend's")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--before", type=Path, help="an earlier --out, for its column and for KeOps' where it isn't run"
    )
    parser.add_argument("--out", type=Path, help="JSON file; the table goes beside it as .md")
    options = parser.parse_args()
    dims, operations = ((2, 3), ("sum",)) if options.quick else (options.dims, options.operations)
    sides = (options.only,) if options.only else ("ours", "KeOps")
    wanted = [
        (side, operation, regime, dim, options.arch, options.precision)
        for side, dim, operation, regime in itertools.product(sides, dims, operations, REGIMES)
        if not (side == "KeOps" and regime == "gaussian far")  # KeOps takes differences always
    ]
    rows = []
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        for found in pool.map(row, *zip(*wanted, strict=True)):
            same = [found] if (found["side"], found["regime"]) != ("KeOps", "gaussian near") else [
                found, found | {"regime": "gaussian far"}
            ]  # fmt: skip
            rows += same
            print(*(str(found.get(key, "")) for key in ("side", "operation", "regime", "D", "instructions", "failed")))
            sys.stdout.flush()
    before = json.loads(options.before.read_text())["rows"] if options.before else []
    lines = table(rows, before)
    print("\n".join(lines))
    if options.out:
        import triton

        options.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"arch": f"sm_{options.arch}", "triton": triton.__version__, "nvcc": nvcc_version()}
        options.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
        head = f"Instructions per pair, {', '.join(f'{name} {value}' for name, value in facts.items())}.\n\n"
        options.out.with_suffix(".md").write_text(head + "\n".join(lines) + "\n")
    return 1 if any("failed" in found for found in rows) else 0


def nvcc_version() -> str:
    """The release of the compiler that KeOps' code goes through."""
    text = subprocess.run([build_cuda.nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return text.split("release ")[1].split(",")[0]


if __name__ == "__main__":
    sys.exit(main())
