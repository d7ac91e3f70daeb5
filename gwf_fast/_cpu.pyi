"""The compiled module (csrc/module.cpp): addresses and sizes of arrays that the caller keeps alive."""

from collections.abc import Sequence

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
    tangents: Sequence[tuple[int, int, int, int]] = ...,
) -> None: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def threads() -> int: ...
def fma_peak() -> float: ...
