"""The fused inner loop of a JKO step on a CUDA device: one persistent kernel (csrc/gpu/primal_dual.h).

No checks: contiguous tensors of one dtype, float32 or float64, on one device; a critic, and no callbacks. The loop
keeps them alive, and works on copies of its own until :meth:`PrimalDual.write_back`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gwf_fast.kernels.cpp.primal_dual import Problem, Trained, compiled_problem
from gwf_fast.kernels.cuda.pairs import _module


def refusal(
    like: Tensor, rows: int, map_sizes: Sequence[int], critic_sizes: Sequence[int], *, penalty: bool, density: str
) -> str | None:
    """Why a device can't hold networks of these widths; None where it can.

    Args:
        like: A tensor of the loop's dtype on the device.
        rows: M.
        map_sizes: Widths of the map's layers.
        critic_sizes: The same of the critic.
        penalty: Whether there is a gradient penalty.
        density: The kind of ``CompiledDensity``.
    """
    with _on(like):
        reason = _module().primal_dual_refusal(
            like.dtype is torch.float64, rows, list(map_sizes), list(critic_sizes), penalty, density
        )
    return reason or None


class PrimalDual:
    """The loop.

    Args:
        problem: What to solve. Its tensors are kept alive.
        blocks: That share the batch; 0 for as many as pay.
        threads: Of a block, a multiple of 32 up to 512; 0 for as many as pay.

    Raises:
        RuntimeError: If the networks don't fit the device, or there is none.
    """

    def __init__(self, problem: Problem, blocks: int = 0, threads: int = 0) -> None:
        assert problem.critic is not None
        like = self._like = problem.inputs
        # kept: the loop has addresses only
        self._problem = problem = dataclasses.replace(problem, schedule=problem.schedule.to(like.device))
        with _on(like):
            self._loop = _module().PrimalDual(like.dtype is torch.float64, compiled_problem(problem), blocks, threads)
        self.layout: dict[str, Any] = self._loop.layout()
        self._numbers = like.new_zeros(self.layout["numbers"])
        self._rows = like.new_empty(problem.numbers["batch"] + problem.numbers["target_batch"], dtype=torch.int64)
        self._norms = like.new_empty(self.layout["blocks"], dtype=torch.float64)
        self._state = like.new_zeros(2, dtype=torch.int64)  # arrivals at barriers; a failure
        self._pack()

    def run(self, first: int, count: int, threads: int = 1) -> dict[str, float]:
        """Iterations first .. first + count - 1; waits for them.

        Args:
            first: The first one's number.
            count: How many.
            threads: Ignored: as the loop of the CPU.

        Returns:
            ``iterations`` to the first loss that is not finite, ``map_loss`` and ``critic_loss`` of the last of them,
            ``mean_map_loss`` over them.

        Raises:
            RuntimeError: If the kernel can't be started, or its blocks waited for each other in vain.
        """
        losses = self._like.new_zeros((count, self.layout["blocks"], 2), dtype=torch.float64)
        self._state.zero_()
        with _on(self._like) as stream:
            arrivals = self._state.data_ptr()
            buffers = (self._numbers, self._rows, losses, self._norms)
            addresses = [*(buffer.data_ptr() for buffer in buffers), arrivals, arrivals + 8, stream]
            self._loop.run(first, count, addresses)
        of_map, of_critic = losses.sum(1).T.tolist()  # blocks in their order
        if self._state[1].item():
            raise RuntimeError("gwf_fast._cuda.PrimalDual: blocks waited for each other in vain")
        bad = (j for j in range(count) if not (math.isfinite(of_map[j]) and math.isfinite(of_critic[j])))
        done = next(bad, count - 1) + 1
        mean = sum(of_map[:done]) / max(done, 1)
        last = (of_map[done - 1], of_critic[done - 1]) if done else (0.0, 0.0)
        return {"iterations": done, "map_loss": last[0], "critic_loss": last[1], "mean_map_loss": mean}

    def write_back(self) -> None:
        """Write parameters and moments to the tensors they came from."""
        for net, at in self._networks():
            values = at["values"] if at["average"] < 0 else at["average"]
            pairs = [
                *zip(net.parameters, self._views(at, values), strict=True),
                *zip(net.first_moments, self._views(at, at["first_moments"]), strict=True),
                *zip(net.second_moments, self._views(at, at["second_moments"]), strict=True),
            ]
            torch._foreach_copy_([to for to, _ in pairs], [part for _, part in pairs])

    def _pack(self) -> None:
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for net, at in self._networks():
            flats = [(net.parameters, at["values"]), (net.first_moments, at["first_moments"])]
            flats.append((net.second_moments, at["second_moments"]))
            if at["average"] >= 0:
                flats.append((net.parameters, at["average"]))
            for tensors, offset in flats:
                targets += self._views(at, offset)
                sources += tensors
        problem, density = self._problem, self._problem.density
        affine = [] if problem.whitening is None else [(self.layout["whitening"], *problem.whitening)]
        if density.kind == "gaussian":
            affine.append((self.layout["density"], *density.arrays))
        for offset, mean, matrix in affine:  # matrix (x - mean), as a layer
            dim, stride = len(mean), _padded(len(mean))
            rows = self._numbers[offset : offset + dim * stride].view(dim, stride)
            targets += (rows[:, :dim], rows[:, dim])
            sources += (matrix, -(matrix.double() @ mean.double()).to(mean.dtype))
        torch._foreach_copy_(targets, sources)

    def _networks(self) -> list[tuple[Trained, dict[str, Any]]]:
        assert self._problem.critic is not None
        return [(self._problem.map, self.layout["map"]), (self._problem.critic, self.layout["critic"])]

    def _views(self, at: dict[str, Any], offset: int) -> Sequence[Tensor]:
        """Weight, bias and, where learned, slope of each layer in the flat array that begins at an offset."""
        views: list[Tensor] = []
        for out, into, stride, weight, slope in at["layers"]:
            rows = self._numbers[offset + weight : offset + weight + out * stride].view(out, stride)
            views += (rows[:, :into], rows[:, into])
            if slope >= 0:
                views.append(self._numbers[offset + slope : offset + slope + 1])
        return views


def _padded(n: int) -> int:
    return (n + 4) // 4 * 4  # csrc/gpu/primal_dual.h


class _on:  # noqa: N801 - a context
    """The device of a tensor; gives the address of its stream."""

    def __init__(self, like: Tensor) -> None:
        self._device = like.device

    def __enter__(self) -> int:
        if self._device.type != "cuda":
            return 0  # an emulation
        self._context = torch.cuda.device(self._device)
        self._context.__enter__()
        return torch.cuda.current_stream(self._device).cuda_stream

    def __exit__(self, *error: object) -> None:
        if self._device.type == "cuda":
            self._context.__exit__(*error)
