"""What ``compile_gpu.py`` compiles: cases, and the launches that the backends make for them.

The launches are the backend's own: its functions run on small CPU tensors with the kernels replaced by recorders, so
that what is compiled is what a call would compile. Reductions of bfloat16 and float16 use the float32 kernels (packing
converts them).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from bench import record
from gwf_fast.kernels.table.profiles import PROFILES
from gwf_fast.nn.functions import ACTIVATIONS, ActivationName
from gwf_fast.selftest.networks import OUTPUTS, NetworkCase, results
from gwf_fast.selftest.problems import OPERATIONS as PROBLEMS
from gwf_fast.selftest.problems import ProblemCase
from gwf_fast.selftest.reductions import NEEDS_LOGARITHM, OPERATIONS, Case

AnyCase = Case | NetworkCase | ProblemCase

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
DIMENSIONS = (1, 2, 3, 4, 16, 64)
"""One a bucket: the unrolled ones, and the two widths of output blocks beyond."""

DTYPES = (torch.float32, torch.float64)


OPERATIONS_OF_TABLE = (
    "sum_ones", "sum_20", "sum_gradient", "mmd", "logsumexp", "average", "average_20",
    "jet0", "jet1", "jet2", "jet2_plain",
)  # fmt: skip
"""Each kernel at its largest: the other operations are these with fewer outputs. jet2_plain is for profiles that have
no logarithm."""


def launches(case: AnyCase, is_amd: bool) -> list[tuple]:
    """(kernel, positional arguments, constants) of every launch that a case makes on a GPU of this maker."""
    from gwf_fast.kernels.triton import mlp
    from gwf_fast.kernels.triton import pairs as backend

    def call() -> None:
        if isinstance(case, ProblemCase):
            module = importlib.import_module(f"gwf_fast.kernels.triton.{PROBLEMS[case.operation].module}")
            PROBLEMS[case.operation].call(module, case, *case.points("cpu"))
        elif isinstance(case, NetworkCase):
            results(mlp, *case.inputs("cpu"), case.spec)
        else:
            OPERATIONS[case.operation](backend, case.inputs("cpu"))

    return [found[:3] for found in record.launches(call, is_amd)]


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
        activations: Iterable[ActivationName] = ("silu",) if halves else ACTIVATIONS
        for activation in activations:
            yield NetworkCase(sizes, 40, dtype, activation, None, residual)
        for output in () if halves else OUTPUTS:
            yield NetworkCase(sizes, 40, dtype, "silu", output, residual)


def problems() -> Iterator[ProblemCase]:
    """Every kernel of Stein's operators, drifting and small transport, bucket of sizes and type."""
    for operation, dim, dtype in itertools.product(("stein", "svgd"), DIMENSIONS, DTYPES):
        for name in (name for name, profile in PROFILES.items() if profile.scaled):
            yield ProblemCase(operation, (name,), (1, 8, 8, dim), dtype)
    for n, dim, dtype, marks in itertools.product((16, 64, 80), DIMENSIONS, DTYPES, ((), ("weights", "ragged"))):
        yield ProblemCase("drift", (), (1, n, 8, dim), dtype, marks)
    shapes = ((16, 16), (64, 64), (64, 128), (64, 256), (16, 512))
    for (n, m), dtype, marks in itertools.product(shapes, DTYPES, ((), ("linear", "started"), ("itself",))):
        if n * m <= (1 << 14 if dtype == torch.float32 else 1 << 13) and (n == m or "itself" not in marks):
            yield ProblemCase("sinkhorn", (), (1, n, m, 3), dtype, marks)


def quick_problems(targets: list[str]) -> Iterator[tuple[ProblemCase, str]]:
    """Where registers are scarcest, for every target; other buckets for one each."""
    full = (
        ProblemCase("stein", ("rational_quadratic",), (1, 8, 8, 3), torch.float64),
        ProblemCase("drift", (), (1, 64, 8, 64), torch.float64),
        ProblemCase("drift", (), (1, 80, 8, 16), torch.float32, ("weights", "ragged")),
        ProblemCase("sinkhorn", (), (1, 64, 256, 3)),
    )
    yield from itertools.product(full, targets)
    others = (
        ProblemCase("stein", ("gaussian",), (1, 8, 8, 16)),
        ProblemCase("svgd", ("imq",), (1, 8, 8, 64)),
        ProblemCase("svgd", ("laplace",), (1, 8, 8, 2), torch.float64),
        ProblemCase("drift", (), (1, 80, 8, 3), torch.float64),
        ProblemCase("sinkhorn", (), (1, 64, 128, 3), torch.float64, ("linear", "started")),
        ProblemCase("sinkhorn", (), (1, 64, 64, 3), torch.float32, ("itself",)),
    )
    yield from zip(others, itertools.cycle(targets))


REPRESENTATIVE = (
    Case("sum_ones", ("gaussian",), (1, 8, 8, 2)),
    Case("sum_gradient", ("matern52",), (1, 8, 8, 3)),
    Case("mmd", ("rational_quadratic",), (1, 8, 8, 3), exclude_self=True),
    Case("sum_gradient", ("gaussian",), (1, 8, 8, 64)),
    Case("average", ("laplace",), (1, 8, 8, 3), torch.float64),
    Case("average_20", ("imq",), (1, 8, 8, 64)),
    Case("jet2", ("rational_quadratic",), (1, 8, 8, 64)),
)
"""What even a quick run compiles for every target."""


def cases() -> Iterator[Case]:
    """Every kernel, profile, bucket of D and type."""
    for operation, (name, profile) in itertools.product(OPERATIONS_OF_TABLE, PROFILES.items()):
        only_without = operation == "jet2_plain"
        if (operation in NEEDS_LOGARITHM and not profile.positive) or (only_without and profile.positive):
            continue
        for dim, dtype in itertools.product(DIMENSIONS, DTYPES):
            yield Case(operation, (name,), (1, 8, 8, dim), dtype, exclude_self=operation in ("sum_ones", "mmd"))


def quick_cases(targets: list[str]) -> Iterator[tuple[AnyCase, str]]:
    """The representative ones, and a walk that has each kernel, profile, bucket and target at least once."""
    yield from itertools.product(REPRESENTATIVE, targets)
    yield from zip(networks(quick=True), itertools.cycle(targets))
    yield from quick_problems(targets)
    everything = list(cases())
    step = 2 * len(DIMENSIONS) * len(DTYPES) + 5  # 5 has no divisor in common with the number of buckets
    for position, k in enumerate(range(0, len(everything), step)):
        yield everything[k], targets[position % len(targets)]


def all_cases() -> list[AnyCase]:
    """The whole table."""
    return distinct([*cases(), *networks(quick=False), *problems()])


def distinct(found: Iterable[AnyCase]) -> list[AnyCase]:
    """The cases that launch kernels which no earlier one does: wide buckets of D may share one."""
    seen: set[str] = set()
    kept = []
    for case in found:
        keys = [f"{kernel.__name__} {signature(kernel, *rest)}" for kernel, *rest in launches(case, False)]
        if not seen.issuperset(keys):
            kept.append(case)
        seen.update(keys)
    return kept


@functools.cache
def fingerprint(case: AnyCase, is_amd: bool) -> str:
    """Of everything that the compiler is given for a case: rows with another one are out of date."""
    import triton

    parts = [triton.__version__]
    for kernel, arguments, constants in launches(case, is_amd):
        functions = [value for values in constants.values() if isinstance(values, tuple) for value in values]
        parts += [function.cache_key for function in (kernel, *functions) if hasattr(function, "cache_key")]
        parts.append(str(signature(kernel, arguments, constants)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def number_type(value: float) -> str:
    """The type that a launch gives to a number: 64 bits where 32 do not hold it, the bits of a double among them."""
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def signature(kernel: Any, arguments: tuple, constants: dict) -> tuple[dict, dict, dict]:
    """(types, constant values, compiler options) of a launch."""
    pointers = {
        torch.float32: "*fp32",
        torch.float64: "*fp64",
        torch.bfloat16: "*bf16",
        torch.float16: "*fp16",
        torch.int64: "*i64",
        torch.int32: "*i32",
    }
    types = {}
    for name, value in zip(kernel.arg_names, arguments):
        types[name] = pointers[value.dtype] if isinstance(value, torch.Tensor) else number_type(value)
    values = {name: value for name, value in constants.items() if name in kernel.arg_names}
    options = {name: value for name, value in constants.items() if name not in kernel.arg_names}
    return types | dict.fromkeys(values, "constexpr"), values, options
