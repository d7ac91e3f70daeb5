"""The fused inner loop of a JKO step on the CPU, and the counter-based draws that it shares with the other engines.

Tensors of one dtype, float32 or float64. The loop keeps them alive, and works on copies of its own until
:meth:`PrimalDual.write_back`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gwf_fast.kernels.cpp.mlp import _function
from gwf_fast.kernels.cpp.pairs import _cpu
from gwf_fast.kernels.table.mlp import CompiledDensity, MLPSpec

Elementwise = tuple[str, float]


def philox_indices(seed: int, iteration: int, stream: int, n: int, bound: int) -> Tensor:
    """n integers in 0 .. bound - 1, [n] int64."""
    out = torch.empty(n, dtype=torch.int64)
    _cpu.philox_indices(seed, iteration, stream, bound, out)
    return out


def philox_uniforms(seed: int, iteration: int, stream: int, n: int) -> Tensor:
    """Uniform in (0, 1), [n] float64; from 32 bits each."""
    out = torch.empty(n, dtype=torch.float64)
    _cpu.philox_uniforms(seed, iteration, stream, out)
    return out


def philox_normals(seed: int, iteration: int, stream: int, n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Standard normals [n, d]; from 32 bits each, in either precision."""
    out = torch.empty((n, d), dtype=dtype)
    _cpu.philox_normals(seed, iteration, stream, out)
    return out


@dataclass(frozen=True)
class Trained:
    """A network in training.

    Attributes:
        spec: Its shape.
        parameters: Weight, bias and, where learned, slope of each layer.
        first_moments, second_moments: Of Adam, likewise.
        steps: That Adam has done.
        rate: Learning rate.
    """

    spec: MLPSpec
    parameters: Sequence[Tensor]
    first_moments: Sequence[Tensor]
    second_moments: Sequence[Tensor]
    steps: int
    rate: float

    def problem(self) -> dict[str, Any]:
        """As the compiled module takes it."""
        return {
            "sizes": self.spec.sizes,
            "functions": [_function(name) for name in self.spec.functions],
            "constants": self.spec.constants,
            "learned": self.spec.learned,
            "residual": self.spec.residual,
            "parameters": self.parameters,
            "first_moments": self.first_moments,
            "second_moments": self.second_moments,
            "steps": self.steps,
            "rate": self.rate,
        }


@dataclass(frozen=True)
class Problem:
    """What ``csrc/primal_dual/primal_dual.h`` is told; see there.

    Attributes:
        numbers: Those of GWF_LOOP_NUMBERS and GWF_ADAM_NUMBERS there, by name.
        inputs: What the map takes, [N, L].
        anchors: Samples of P_k, [N, D]; the same tensor as ``inputs`` in a composition.
        target: Samples of Q, where they are stored.
        begin: Called with the number of each iteration; for the target kind "callback" it returns the samples of Q.
        of_model, of_target: A and B, names of ``csrc/mlp/mlp.h`` with their constants.
        whitening: Mean [D] and lower triangular matrix [D, D] of w(y) = matrix (y - mean), None without w.
        density: log Q where it enters.
        rest: R: y [M, D] to its value and its gradient [M, D]; None for none.
        map, critic: The networks; a critic where there is one.
        schedule: Factor on the rates, [J1] float64.
    """

    numbers: Mapping[str, Any]
    inputs: Tensor
    anchors: Tensor
    target: Tensor | None
    begin: Callable[[int], Tensor | None] | None
    of_model: Elementwise
    of_target: Elementwise
    whitening: tuple[Tensor, Tensor] | None
    density: CompiledDensity
    rest: Callable[[Tensor], tuple[float, Tensor]] | None
    map: Trained
    critic: Trained | None
    schedule: Tensor


def compiled_problem(p: Problem) -> dict[str, Any]:
    """A problem as the compiled modules take it, without its callbacks. Its tensors must outlive the loop."""
    mean, whitening = p.whitening or (None, None)
    return {
        "numbers": dict(p.numbers),
        "inputs": p.inputs,
        "anchors": None if p.anchors is p.inputs else p.anchors,
        "target": p.target,
        "of_model": (_function(p.of_model[0]), p.of_model[1]),
        "of_target": (_function(p.of_target[0]), p.of_target[1]),
        "mean": mean,
        "whitening": whitening,
        "density": (p.density.kind, p.density.arrays, p.density.numbers),
        "map": p.map.problem(),
        "critic": None if p.critic is None else p.critic.problem(),
        "schedule": p.schedule,
    }


class PrimalDual:
    """The loop.

    Args:
        problem: What to solve. Its tensors are kept alive.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = p = problem  # kept: the loop has addresses only
        callbacks = {
            "begin": None if p.begin is None else functools.partial(_begin, p),
            "rest": None if p.rest is None else functools.partial(_rest, p),
        }
        self._loop = _cpu.PrimalDual(compiled_problem(p) | callbacks)

    def run(self, first: int, count: int, threads: int) -> dict[str, float]:
        """Iterations first .. first + count - 1; fewer where a loss is not finite.

        Returns:
            ``iterations`` done, ``map_loss`` and ``critic_loss`` of the last update, ``mean_map_loss`` over them.
        """
        return self._loop.run(first, count, threads)

    def write_back(self) -> None:
        """Write parameters and moments to the tensors they came from."""
        self._loop.write_back()


def _view(address: int, rows: int, like: Tensor) -> Tensor:
    memory = (ctypes.c_char * (rows * like.shape[1] * like.element_size())).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype).view(rows, like.shape[1])


# What the loop calls back must not hold the loop: nobody could see that cycle.
def _begin(problem: Problem, iteration: int, address: int) -> None:
    assert problem.begin is not None
    samples = problem.begin(iteration)
    if samples is not None:
        _view(address, problem.numbers["target_batch"], problem.anchors).copy_(samples)


def _rest(problem: Problem, y: int, gradient: int) -> float:
    assert problem.rest is not None
    value, slope = problem.rest(_view(y, problem.numbers["batch"], problem.anchors).clone())
    _view(gradient, problem.numbers["batch"], problem.anchors).copy_(slope)
    return value
