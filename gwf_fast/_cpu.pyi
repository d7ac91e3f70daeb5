"""The compiled module (csrc/bindings/*.cpp), which checks its tensors (csrc/bindings/crossing.h)."""

import enum
from collections.abc import Callable, Sequence

from torch import Tensor

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
    def forward(self, x: Tensor, parameters: Sequence[Tensor], out: Tensor, /) -> None: ...
    def backward(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        cotangent: Tensor | None,
        out: Tensor | None,
        dx: Tensor | None,
        gradients: Sequence[Tensor],
        /,
    ) -> None: ...
    def second(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        cotangent: Tensor,
        x_tangent: Tensor | None,
        tangents: Sequence[Tensor | None],
        out: Tensor,
        dx: Tensor | None,
        gradients: Sequence[Tensor],
        /,
    ) -> None: ...
    def objective(
        self,
        parameters: Sequence[Tensor],
        sides: Sequence[tuple[Tensor, int, float, float, Tensor | None]],
        with_gradients: bool,
        gradients: Sequence[Tensor],
        /,
    ) -> float: ...

def pairwise(
    kernel: Kernel,
    reduction: int,
    x: Tensor,
    y: Tensor,
    b: Tensor | None,
    out: Tensor,
    out2: Tensor | None = None,
    exclude_self: bool = False,
    a: Tensor | None = None,
    row_shift: Tensor | None = None,
    column_shift: Tensor | None = None,
    row_lengths: Tensor | None = None,
    column_lengths: Tensor | None = None,
    tangents: Sequence[Sequence[Tensor | None]] = ...,
) -> None: ...
def stein(
    kernel: Kernel,
    x: Tensor,
    score: Tensor,
    diagonal: bool,
    total: Tensor | None = None,
    x_gradient: Tensor | None = None,
    score_gradient: Tensor | None = None,
) -> None: ...
def near_field(
    kernel: Kernel,
    order: int,
    degree: int,
    radius: float,
    x: Tensor,
    cell: Tensor,
    y: Tensor,
    start: Tensor,
    grid: Sequence[int],
    reach: int,
    out: Tensor,
) -> None: ...

_Pair = tuple[Tensor | None, Tensor | None]

def sliced(
    kind: int,
    power: float,
    scale: float,
    x: Tensor,
    y: Tensor,
    directions: Tensor,
    weights: _Pair,
    tangents: _Pair,
    gradients: _Pair,
    values: Tensor,
    counts: _Pair,
    potentials: _Pair,
    nodes: _Pair,
) -> None: ...
def sliced_sum(
    order: int,
    period: float,
    first: int,
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    waves: Tensor,
    powers: Tensor,
    decays: _Pair,
    tied: float,
    out: Tensor,
) -> None: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def threads() -> int: ...
def fma_peak() -> float: ...
def philox_indices(seed: int, iteration: int, stream: int, bound: int, out: Tensor) -> None: ...
def philox_uniforms(seed: int, iteration: int, stream: int, out: Tensor) -> None: ...
def philox_normals(seed: int, iteration: int, stream: int, out: Tensor) -> None: ...

class PrimalDual:
    def __init__(self, problem: dict[str, object]) -> None: ...
    def run(self, first: int, count: int, threads: int) -> dict[str, float]: ...
    def write_back(self) -> None: ...

def drift(
    x: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    split: int,
    sizes: Tensor | None,
    temperatures: Tensor,
    own: Tensor | None,
    floor: float,
    clip: float,
    out: Tensor | None,
    total: Tensor | None,
    log_weights: Tensor | None = None,
) -> None: ...
def transport(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    start: Tensor | None,
    x_start: Tensor | None,
    y_start: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    epsilon: float,
    strength: float,
    max_iterations: int,
    tolerance: float,
    scaling: float,
    diameter: float,
    p: int,
    itself: bool,
    debias: bool,
    only_anneal: bool,
    plain: bool,
    potentials: Sequence[Tensor | None],
    errors: Sequence[Tensor | None],
    optimum: Sequence[Tensor | None],
    /,
) -> tuple[int, int, int, float] | None: ...
def mmd(
    kernel: Kernel,
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    unbiased: bool,
    value: Tensor,
    x_gradient: Tensor | None,
    y_gradient: Tensor | None,
    a_gradient: Tensor | None,
    b_gradient: Tensor | None,
    /,
) -> None: ...
def svgd(
    x: Tensor,
    score: Tensor | None,
    rule: int,
    bandwidth: float,
    out: Tensor | None,
    bandwidths: Tensor | None,
    /,
) -> bool: ...
def nearest(
    x: Tensor,
    y: Tensor,
    exclude_self: bool,
    row_lengths: Tensor | None,
    column_lengths: Tensor | None,
    squares: Tensor,
    indices: Tensor,
    /,
) -> None: ...
def joint_drift(
    x: Tensor,
    x_weights: Tensor | None,
    negatives: Sequence[tuple[Tensor, Tensor | None]],
    y: Tensor,
    y_weights: Tensor | None,
    temperatures: list[float],
    clip: float,
    exclude_self: bool,
    per_problem: bool,
    velocity: Tensor,
    scale: Tensor | None,
    raw: Tensor | None,
    logarithms: bool,
    /,
) -> bool: ...
def direct_function(
    name: str, apply: Callable[..., object] | None, serves: Callable[[bool], bool]
) -> Callable[..., object]: ...
def use_direct(on: bool) -> bool: ...
def sum_vjp(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,
    u: Tensor,
    spec: tuple[float, ...],
    exclude_self: bool,
    needs: Sequence[bool],
    /,
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None: ...
def scaled(factor: Tensor, /, *values: Tensor | None) -> tuple[Tensor | None, ...] | None: ...
