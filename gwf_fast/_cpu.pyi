"""The compiled module (csrc/module*.cpp): addresses and sizes of arrays that the caller keeps alive."""

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

class Function(enum.IntEnum):
    identity = 0
    leaky = 1
    elu = 2
    silu = 3
    softplus = 4
    tanh = 5
    sigmoid = 6
    log_sigmoid = 7
    minus_exp = 8
    square = 9
    expm1 = 10
    exp_shifted = 11
    parabola = 12
    exp_half = 13
    alpha_power = 14
    alpha_bounded = 15
    entropy_power = 16

class Mlp:
    def __init__(
        self,
        sizes: Sequence[int],
        functions: Sequence[int],
        constants: Sequence[float],
        learned: Sequence[bool],
        residual: bool,
    ) -> None: ...
    def forward(self, is_double: bool, rows: int, x: int, parameters: Sequence[int], out: int, /) -> None: ...
    def backward(
        self,
        is_double: bool,
        rows: int,
        x: int,
        parameters: Sequence[int],
        cotangent: int,
        out: int,
        dx: int,
        gradients: Sequence[int],
        /,
    ) -> None: ...
    def second(
        self,
        is_double: bool,
        rows: int,
        x: int,
        parameters: Sequence[int],
        cotangent: int,
        x_tangent: int,
        tangents: Sequence[int],
        out_tangent: int,
        dx: int,
        gradients: Sequence[int],
        /,
    ) -> None: ...
    def objective(
        self,
        is_double: bool,
        parameters: Sequence[int],
        sides: Sequence[tuple[int, int, int, float, float, int]],
        with_gradients: bool,
        gradients: Sequence[int],
        /,
    ) -> float: ...

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
def stein(
    kernel: Kernel,
    is_double: bool,
    sizes: Sequence[int],
    x: int,
    score: int,
    diagonal: bool,
    total: int,
    x_gradient: int,
    score_gradient: int,
) -> None: ...
def near_field(
    kernel: Kernel,
    order: int,
    dim: int,
    degree: int,
    radius: float,
    targets: int,
    stride: int,
    x: int,
    cell: int,
    y: int,
    weights: int,
    start: int,
    grid: Sequence[int],
    reach: int,
    out: int,
) -> None: ...
def sliced(
    is_double: bool,
    kind: int,
    power: float,
    scale: float,
    sizes: Sequence[int],
    addresses: Sequence[int],
) -> None: ...
def sliced_sum(
    is_double: bool,
    order: int,
    sizes: Sequence[int],
    period: float,
    addresses: Sequence[int],
) -> None: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def threads() -> int: ...
def fma_peak() -> float: ...
def philox_indices(seed: int, iteration: int, stream: int, count: int, bound: int, out: int) -> None: ...
def philox_uniforms(seed: int, iteration: int, stream: int, count: int, out: int) -> None: ...
def philox_normals(is_double: bool, seed: int, iteration: int, stream: int, count: int, out: int) -> None: ...

class PrimalDual:
    def __init__(self, is_double: bool, problem: dict[str, object]) -> None: ...
    def run(self, first: int, count: int, threads: int) -> dict[str, float]: ...
    def write_back(self) -> None: ...

def drift(is_double: bool, sizes: Sequence[int], addresses: Sequence[int], floor: float, clip: float) -> None: ...
