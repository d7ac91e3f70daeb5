"""The fused inner loop of a JKO step on the CPU, and the counter-based draws that it shares with the other engines.

Tensors of one dtype, float32 or float64. The loop keeps them alive, and works on copies of its own until
:meth:`PrimalDual.write_back`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gwf_fast.kernels.cpp.mlp import _function
from gwf_fast.kernels.cpp.pairs import _cpu
from gwf_fast.kernels.table.mlp import CompiledDensity, MLPSpec

Elementwise = tuple[str, float]

TARGET_KINDS = ("whole", "samples", "normal", "callback")


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
        inputs: What the map takes, [N, L].
        anchors: Samples of P_k, [N, D]; the same tensor as ``inputs`` in a composition.
        batch_size: M, at most N; all of them where equal.
        target_kind: One of ``TARGET_KINDS``.
        target: Samples of Q, for "whole" and "samples".
        target_batch: Samples of Gamma an iteration.
        begin: Called with the number of each iteration; for "callback" it returns the samples of Q.
        coefficient, map_coefficient: c, on all that the critic is about, in ascents and in descents.
        of_model, of_target: A and B, names of ``csrc/mlp/mlp.h`` with their constants.
        log_mean: Whether log E e^h stands in place of E B(h).
        whitening: Mean [D] and lower triangular matrix [D, D] of w(y) = matrix (y - mean), None without w; the log of
            the normalisation of mu, None where log mu does not enter.
        density: log Q where it enters.
        rest: R: y [M, D] to its value and its gradient [M, D]; None for none.
        map, critic: The networks; a critic where there is one.
        dropout: Rates at which hidden units are dropped, of map and critic.
        step_size: a.
        critic_steps, map_steps: J2, J3.
        schedule: Factor on the rates, [J1] float64.
        adam: beta_1, beta_2, epsilon, weight decay, clip, average.
        seed: Of the draws.
        target_stream, penalty_stream: Their numbers in an iteration.
        penalty: lambda of lambda E (|grad h| - 1)^2 between the batches; 0 for none.
    """

    inputs: Tensor
    anchors: Tensor
    batch_size: int
    target_kind: str
    target: Tensor | None
    target_batch: int
    begin: Callable[[int], Tensor | None] | None
    coefficient: float
    map_coefficient: float
    of_model: Elementwise
    of_target: Elementwise
    log_mean: bool
    whitening: tuple[Tensor, Tensor, float | None] | None
    density: CompiledDensity
    rest: Callable[[Tensor], tuple[float, Tensor]] | None
    map: Trained
    critic: Trained | None
    dropout: tuple[float, float]
    step_size: float
    critic_steps: int
    map_steps: int
    schedule: Tensor
    adam: tuple[float, float, float, float, float, float]
    seed: int
    target_stream: int
    penalty_stream: int
    penalty: float


def compiled_problem(p: Problem) -> dict[str, Any]:
    """A problem as the compiled modules take it, without its callbacks. Its tensors must outlive the loop."""
    mean, whitening, log_norm = p.whitening or (None, None, None)
    return {
        "batch": p.batch_size,
        "critic_steps": p.critic_steps,
        "map_steps": p.map_steps,
        "step_size": p.step_size,
        "inputs": p.inputs,
        "anchors": None if p.anchors is p.inputs else p.anchors,
        "target_kind": TARGET_KINDS.index(p.target_kind),
        "target": p.target,
        "target_batch": p.target_batch,
        "coefficient": p.coefficient,
        "map_coefficient": p.map_coefficient,
        "of_model": (_function(p.of_model[0]), p.of_model[1]),
        "of_target": (_function(p.of_target[0]), p.of_target[1]),
        "log_mean": p.log_mean,
        "penalty": p.penalty,
        "mean": mean,
        "whitening": whitening,
        "with_log_mu": log_norm is not None,
        "log_norm": log_norm or 0.0,
        "density": (p.density.kind, p.density.arrays, p.density.numbers),
        "map": p.map.problem(),
        "critic": None if p.critic is None else p.critic.problem(),
        "dropout": p.dropout,
        "adam": p.adam,
        "schedule": p.schedule,
        "seed": p.seed,
        "target_stream": p.target_stream,
        "penalty_stream": p.penalty_stream,
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
        _view(address, problem.target_batch, problem.anchors).copy_(samples)


def _rest(problem: Problem, y: int, gradient: int) -> float:
    assert problem.rest is not None
    value, slope = problem.rest(_view(y, problem.batch_size, problem.anchors).clone())
    _view(gradient, problem.batch_size, problem.anchors).copy_(slope)
    return value
