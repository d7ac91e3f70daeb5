"""The CUDA code that KeOps generates for a reduction, and what its inner loop costs a pair. Needs no GPU."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import os
import re

os.environ.setdefault("KEOPS_VERBOSE", "0")

from bench import nests, sass

KERNELS = {"gaussian": "Exp(-SqDist({x},{y})*{g})", "laplace": "Exp(-Sqrt(SqDist({x},{y}))*{g})"}
SLOPES = {  # of k in s = |x - y|^2, over k
    "gaussian": "{g}",
    "laplace": "{g}*Rsqrt(SqDist({x},{y}))",
}
OPTIONS = ("-use_fast_math",)
"""What KeOps compiles with by default."""


def formula(operation: str, kernel: str, dim: int) -> str:
    """The reduction as its users write it; a gradient written out, which takes fewer instructions than Grad()."""
    names = {"x": f"Var(0,{dim},0)", "y": f"Var(1,{dim},1)", "b": "Var(2,1,1)", "g": "Var(3,1,2)"}
    value = KERNELS[kernel].format(**names)
    if operation == "sum":
        return f"Sum_Reduction({value}*{names['b']},0)"
    if operation == "gradient":
        slope = SLOPES[kernel].format(**names)
        return f"Sum_Reduction({slope}*{value}*{names['b']}*({names['y']}-{names['x']}),0)"
    exponent = value.removeprefix("Exp(").removesuffix(")")
    names = {"x": f"Var(0,{dim},0)", "y": f"Var(1,{dim},1)", "g": "Var(2,1,2)"}
    exponent = exponent.replace("Var(3,1,2)", names["g"])
    weight = f",{names['y']}" if operation == "average" else ""
    name = "Max_SumShiftExpWeight_Reduction" if weight else "Max_SumShiftExp_Reduction"
    return f"{name}({exponent},0{weight})"


@dataclasses.dataclass(frozen=True)
class Source:
    """What KeOps generates.

    Attributes:
        code: In CUDA.
        chunked: Whether it takes 64 coordinates at a time, as it does beyond some number of them.
        shared: Numbers of a source in shared memory.
        threads: Of a block.
    """

    code: str
    chunked: bool
    shared: int
    threads: int


def source(operation: str, kernel: str, dim: int) -> Source:
    """The code of a reduction, and how KeOps launches it."""
    with contextlib.redirect_stdout(io.StringIO()):  # it warns of missing CUDA libraries there
        from keopscore.config import cuda_config
        from keopscore.config.chunks import dimchunk, get_enable_chunk
    cuda_config.get_cuda_version = lambda: 13000  # asked while importing what writes the code
    cuda_config.get_gpu_props = lambda: (0, "")
    from keopscore import cuda_block_size
    from keopscore.formulas.GetReduction import GetReduction
    from keopscore.mapreduce.Chunk_Mode_Constants import Chunk_Mode_Constants
    from keopscore.mapreduce.gpu.GpuReduc1D import GpuReduc1D
    from keopscore.mapreduce.gpu.GpuReduc1D_chunks import GpuReduc1D_chunks
    from keopscore.mapreduce.MapReduce import MapReduce

    text = formula(operation, kernel, dim)
    parsed = GetReduction(text, [])
    # the choice of keopscore.get_keops_dll
    chunked = get_enable_chunk() and len(parsed.formula.chunked_formulas(dimchunk)) == 1
    chunked = chunked and not Chunk_Mode_Constants(parsed).chunk_postchunk_mix
    kind = GpuReduc1D_chunks if chunked else GpuReduc1D
    reduction = kind.__new__(kind)  # its __init__ looks for a GPU
    n_args = 3 if operation in ("logsumexp", "average") else 4
    scheme = "block_sum" if operation in ("sum", "gradient") else "direct_sum"
    MapReduce.__init__(reduction, text, [], n_args, "float", "float", scheme, 1, 1, 0, 0, 1, 0)
    if chunked:
        reduction.chk = Chunk_Mode_Constants(reduction.red_formula)
        reduction.dimy = reduction.chk.dimy
        reduction.blocksize_chunks = min(cuda_block_size or 192, 1024, 49152 // max(1, reduction.dimy * 4))
    else:
        reduction.dimy = reduction.varloader.dimy
    reduction.get_code()
    threads = min(cuda_block_size or 192, 1024, 49152 // max(1, reduction.dimy * 4))  # keops_nvrtc.cpp, launch_kernel
    return Source(reduction.code, chunked, reduction.dimy, threads)


def per_pair(cubin: bytes, code: str, dim: int, chunked: bool) -> dict:
    """Instructions per pair of the loop over sources, along its cheapest path (no new maximum in a logarithm's sum)."""
    (function,) = nests.functions(cubin)
    loops = function.all_loops()
    over_sources = [loop for loop in loops if _counts(function, loop)["MUFU.EX2"]]
    main = min(over_sources, key=lambda loop: len(loop.blocks))
    if not chunked and main.inside:
        # too many coordinates to unroll: points lie in local memory, and each operation is a loop over them
        totals = []
        for way, kinds in function.ways(main).items():
            bodies = [function.path(loop) for loop in (*way.before, *way.after)]
            own = sum(count for _, count in kinds)
            totals.append(own + sum(sum(body.values()) * dim / _coordinates(body) for body in bodies))
        total = min(totals)
        return {"instructions": total, "pairs an iteration": 1, "kinds": function.path(main), "in local memory": True}
    paths = [function.path(loop) for loop in loops if not loop.inside]
    exponential = max(paths, key=lambda path: (path.get("MUFU.EX2", 0), sum(path.values())))
    if not chunked:
        # sources lie in shared memory, dimy numbers each: the loads of an iteration tell how many it takes
        width = re.search(r"yj \+ threadIdx\.x \* (\d+)", code)
        if width is None:
            raise ValueError("the code does not say how wide a source is")
        pairs = _words(exponential, "LDS") / int(width.group(1))
        return {"instructions": sum(exponential.values()) / pairs, "pairs an iteration": pairs, "kinds": exponential}
    # a sweep for each 64 coordinates, then one with the exponential
    sweep = max(paths, key=sass.multiply_adds)
    a_coordinate = sum(sweep.values()) / sweep["FFMA"]
    pairs = exponential["MUFU.EX2"]
    total = dim * a_coordinate + sum(exponential.values()) / pairs
    return {"instructions": total, "pairs an iteration": pairs, "kinds": sweep, "sweeps of 64 coordinates": True}


def _words(path: dict[str, float], name: str) -> float:
    """Numbers of 4 bytes that the instructions of a name move: LDS loads from shared memory, STL stores to local."""
    return path.get(name, 0) + 2 * path.get(f"{name}.64", 0) + 4 * path.get(f"{name}.128", 0)


def _counts(function: nests.Function, loop: nests.Loop) -> collections.Counter[str]:
    return sass.kinds(function.code(loop))


def _coordinates(body: dict[str, float]) -> float:
    """Coordinates that one iteration of a loop over them takes."""
    return max(body.get(kind, 0) for kind in ("FADD", "FMUL", "FFMA")) or _words(body, "STL") or 1
