"""Times of the persistent kernel of the JKO loop on a CUDA device, for numbers of blocks and threads that may pay.

    python -m bench.primal_dual_cuda --quick        # the plan's own choice and a few others, S and M: half a minute
    python -m bench.primal_dual_cuda [--iterations 500] [--out FILE.json]

A row is checked first: the parameters after ten iterations must be those of the CPU's loop in float64, to 1e-9 in
float64 and 1e-3 in float32 (whose plan may differ). Milliseconds are of a whole JKO step of the engine (500 iterations
of 3 + 2 updates: packing, launches, reading losses, writing back), the median of five, and of the kernel alone for an
iteration, in microseconds.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import gwf_fast as gwf
from gwf_fast.flows.engines.base import StepProblem
from gwf_fast.flows.engines.fused import compiled_problem
from gwf_fast.flows.training import CHECK_EVERY
from gwf_fast.kernels.cpp.primal_dual import PrimalDual as HostLoop
from gwf_fast.kernels.cuda.primal_dual import PrimalDual
from gwf_fast.nn import MLP

Choice = tuple[int, int]  # blocks and threads of a block; 0: the plan's own

# dimension, hidden layers of map and critic, batch, and choices to try
SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int, tuple[Choice, ...]]] = {
    "paper, 2-D": (2, (16,) * 4, (16,) * 3, 100, ((0, 0), (1, 0), (2, 0), (4, 0), (13, 0), (25, 0))),
    "S": (2, (16,) * 4, (16,) * 4, 100, ((0, 0), (8, 128), (8, 256), (8, 512), (4, 512), (2, 512), (1, 512), (25, 0))),
    "M": (32, (64,) * 4, (64,) * 4, 512, ((0, 0), (64, 256), (32, 0), (128, 0), (128, 256))),
    "L": (64, (128,) * 5, (128,) * 4, 1024, ((0, 0), (64, 0), (128, 0))),
}
QUICK: dict[str, tuple[Choice, ...]] = {
    "S": ((0, 0), (8, 256), (4, 512), (1, 512)),
    "M": ((0, 0), (64, 256), (32, 0), (128, 0)),
}
BAR = 50.0  # milliseconds of a step of 500 iterations of S
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-3}


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
    samples = gwf.potentials.GaussianMixture(means).sample(10_000)  # on the CPU: the same for both loops
    term = gwf.KL(potential) if functional == "density" else gwf.JensenShannon(samples.to(device, dtype))
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


def parameters(size: str, functional: str, device: str, dtype: torch.dtype, choice: Choice) -> torch.Tensor:
    """Of both networks after ten iterations."""
    step = problem(size, device, dtype, 10, functional)
    torch.manual_seed(3)
    with torch.no_grad():
        loop = HostLoop(compiled_problem(step)) if device == "cpu" else PrimalDual(compiled_problem(step), *choice)
        loop.run(0, 10, 1)
        loop.write_back()
    nets = [net for net in (step.map, step.critic) if net]
    return torch.cat([p.detach().flatten().double().cpu() for net in nets for p in net.parameters()])


@functools.cache
def truth(size: str, functional: str) -> torch.Tensor:
    """The CPU loop's."""
    return parameters(size, functional, "cpu", torch.float64, (0, 0))


def error(size: str, functional: str, dtype: torch.dtype, choice: Choice) -> float:
    """Relative difference of the parameters to the CPU loop's in float64."""
    expected = truth(size, functional)
    return ((parameters(size, functional, "cuda", dtype, choice) - expected).norm() / expected.norm()).item()


def row(size: str, functional: str, dtype: torch.dtype, choice: Choice, iterations: int) -> dict[str, Any]:
    """One line of the table."""
    made: dict[str, Any] = {"size": size, "functional": functional, "dtype": str(dtype)[6:], "asked": choice}
    made["errors"] = {str(kind)[6:]: error(size, functional, kind, choice) for kind in BOUNDS}
    made["right"] = all(made["errors"][str(kind)[6:]] < bound for kind, bound in BOUNDS.items())
    steps, kernels = [], []
    for _ in range(6):
        step = problem(size, "cuda", dtype, iterations, functional)
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.no_grad():
            loop = PrimalDual(compiled_problem(step), *choice)
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
    facts = ("blocks", "threads", "cluster", "rows", "per_lane", "everywhere", "resident", "shared_bytes")
    made |= {name: layout[name] for name in facts}
    return made | {"step_ms": 1e3 * statistics.median(steps[1:]), "iteration_us": statistics.median(kernels[1:])}


def main() -> int:
    """Print the table; write it as JSON. 1 where a row is wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--quick", action="store_true", help="S and M, a few choices, densities only")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    choices = QUICK if options.quick else {size: SIZES[size][4] for size in options.sizes}
    rows = []
    print(torch.cuda.get_device_name(), torch.__version__)
    for size, tried in choices.items():
        for functional in ("density",) if options.quick else ("density", "samples"):
            for choice in tried if functional == "density" else ((0, 0),):
                try:
                    rows.append(row(size, functional, torch.float32, choice, options.iterations))
                except RuntimeError as found:
                    rows.append({"size": size, "functional": functional, "asked": choice, "failed": str(found)})
                print(rows[-1], flush=True)
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1))
    for made in rows:
        if made["size"] == "S" and made["asked"] == (0, 0) and "step_ms" in made:
            per_step = made["step_ms"] * 500 / options.iterations
            print(f"S, {made['functional']}: {per_step:.1f} ms a step of 500 iterations; bar {BAR:.0f}")
    return 0 if all(made.get("right") for made in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
