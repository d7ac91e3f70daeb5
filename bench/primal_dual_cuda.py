"""Times of the persistent kernel of the JKO loop on a CUDA device, for each number of blocks that may pay.

    python -m bench.primal_dual_cuda [--iterations 500] [--out FILE.json]

A row is checked first: the parameters after ten iterations in float64 must be the CPU loop's. Milliseconds are of a
whole JKO step of the engine (500 iterations of 3 + 2 updates: packing, launches, reading losses, writing back), the
median of five, and of the kernel alone for an iteration, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import gwf_fast as gwf
from gwf_fast.engine import StepProblem
from gwf_fast.fused_engine import compiled_problem
from gwf_fast.kernels.primal_dual_cpp import PrimalDual as HostLoop
from gwf_fast.kernels.primal_dual_cuda import PrimalDual
from gwf_fast.nn import MLP
from gwf_fast.training import CHECK_EVERY

# dimension, hidden layers of map and critic, batch, and numbers of blocks to try (0: the plan's own)
SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]] = {
    "paper, 2-D": (2, (16,) * 4, (16,) * 3, 100, (0, 1, 2, 4, 5, 8, 13, 25)),
    "S": (2, (16,) * 4, (16,) * 4, 100, (0, 1, 4, 8, 25)),
    "M": (32, (64,) * 4, (64,) * 4, 512, (0, 8, 32, 64, 128)),
    "L": (64, (128,) * 5, (128,) * 4, 1024, (0, 64, 128)),
}


def problem(size: str, device: str, dtype: torch.dtype, iterations: int, functional: str) -> StepProblem:
    """The step of one size, its networks away from their start."""
    dim, of_map, of_critic, batch, _ = SIZES[size]
    torch.manual_seed(0)
    transport, critic = MLP([dim, *of_map, dim], residual=True), MLP([dim, *of_critic, 1])
    with torch.no_grad():
        for p in transport.parameters():
            p.add_(0.02 * torch.randn_like(p))
    x = (1.5 * torch.randn(4096, dim, dtype=torch.float64) + 0.3).to(device, dtype)
    means = 2 * torch.randn(3, dim, dtype=torch.float64)
    potential = gwf.potentials.GaussianMixture(means.to(device, dtype))
    term = (
        gwf.KL(potential) if functional == "density" else gwf.JensenShannon(potential.sample(10_000).to(device, dtype))
    )
    training = gwf.Training(batch_size=batch, iterations=iterations, critic_steps=3, map_steps=2)
    flow = gwf.JKOFlow(term, dim, 0.1, map=transport, critic=critic, training=training)
    transport, critic = transport.to(device, dtype), critic.to(device, dtype)
    return StepProblem(
        functional=term,
        step_size=0.1,
        inputs=x,
        anchors=x,
        reference=term.reference(x),
        map=transport,
        critic=critic,
        map_optimizer=flow._optimizer(transport, training.lr, None),
        critic_optimizer=flow._optimizer(critic, training.lr, None),
        training=training,
    )


def error(size: str, functional: str, blocks: int) -> float:
    """Relative difference of the parameters to the CPU loop's after ten iterations in float64."""
    found = []
    for device in ("cpu", "cuda"):
        step = problem(size, device, torch.float64, 10, functional)
        torch.manual_seed(3)
        with torch.no_grad():
            loop = HostLoop(compiled_problem(step)) if device == "cpu" else PrimalDual(compiled_problem(step), blocks)
            loop.run(0, 10, 1)
            loop.write_back()
        nets = (step.map, step.critic)
        found.append(torch.cat([p.detach().flatten().cpu() for net in nets if net for p in net.parameters()]))
    return ((found[1] - found[0]).norm() / found[0].norm()).item()


def row(size: str, functional: str, dtype: torch.dtype, blocks: int, iterations: int) -> dict[str, Any]:
    """One line of the table."""
    made: dict[str, Any] = {"size": size, "functional": functional, "dtype": str(dtype)[6:], "asked": blocks}
    made["error"] = error(size, functional, blocks)
    steps, kernels = [], []
    for _ in range(6):
        step = problem(size, "cuda", dtype, iterations, functional)
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.no_grad():
            loop = PrimalDual(compiled_problem(step), blocks)
            for first in range(0, iterations, CHECK_EVERY):
                loop.run(first, min(CHECK_EVERY, iterations - first))
            loop.write_back()
        torch.cuda.synchronize()
        steps.append(time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        loop.run(0, CHECK_EVERY)
        end.record()
        torch.cuda.synchronize()
        kernels.append(begin.elapsed_time(end) / CHECK_EVERY * 1e3)
    layout = loop.layout
    made |= {"blocks": layout["blocks"], "cluster": layout["cluster"], "rows": layout["rows"]}
    made |= {"resident": layout["resident"], "shared_bytes": layout["shared_bytes"]}
    return made | {"step_ms": 1e3 * statistics.median(steps[1:]), "iteration_us": statistics.median(kernels[1:])}


def main() -> None:
    """Print the table; write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    print(torch.cuda.get_device_name(), torch.__version__)
    for size in options.sizes:
        for functional in ("density", "samples"):
            for blocks in SIZES[size][4] if functional == "density" else (0,):
                try:
                    rows.append(row(size, functional, torch.float32, blocks, options.iterations))
                except RuntimeError as problem_found:
                    rows.append({"size": size, "functional": functional, "asked": blocks, "failed": str(problem_found)})
                print(rows[-1], flush=True)
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
