"""The compiled module (csrc/module.cpp): addresses and sizes of arrays that the caller keeps alive."""

import enum
from collections.abc import Sequence

class Reduction(enum.IntEnum):
    sum = 0
    gradient = 1
    sum_gradient = 2
    logsumexp = 3
    average = 4
    jet = 5

class Kernel:
    def __init__(self, spec: Sequence[float]) -> None: ...

def pairwise(
    kernel: Kernel,
    reduction: int,
    is_double: bool,
    batch: int,
    rows: int,
    columns: int,
    dim: int,
    channels: int,
    x: int,
    y: int,
    b: int,
    out: int,
    out2: int = 0,
    exclude_self: bool = False,
    a: int = 0,
    row_shift: int = 0,
    column_shift: int = 0,
    row_lengths: int = 0,
    column_lengths: int = 0,
    tangents: Sequence[Sequence[int]] = ...,
) -> None: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def threads() -> int: ...
def fma_peak() -> float: ...
