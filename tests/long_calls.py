"""`python -m tests.long_calls THREADS [NAME ...]` interrupts calls that take minutes, and says how soon each ended.

A line a call: its name, and the seconds from SIGINT to KeyboardInterrupt.
"""

import functools
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast.kernels.cpp import mlp as mlp_cpp
from gwf_fast.kernels.cpp import pairs as cpp
from gwf_fast.kernels.cpp import sliced as sliced_cpp
from gwf_fast.kernels.table.mlp import MLPSpec
from gwf_fast.kernels.table.profiles import PROFILES

N = 2_000_000
KERNEL = gwf.Gaussian(1.0)
SPEC = (list(PROFILES).index("gaussian"), 1.0, 1.0, 0.0)


def step() -> Callable[[], Any]:
    """A step of a flow whose iterations take seconds."""
    training = gwf.Training(batch_size=200_000, iterations=10_000)
    functional = gwf.JensenShannon(lambda n: torch.randn(n, 16))
    flow = gwf.JKOFlow(functional, 16, 0.5, map=gwf.nn.MLP([16, 256, 256, 16]), training=training, engine="fused")
    state = flow.init(torch.randn(200_000, 16))
    return lambda: flow.step(state)


def wide_network() -> Callable[[], Any]:
    """A network of 4096 x 4096 on a million rows."""
    spec = MLPSpec((4, 4096, 4096, 1), ("leaky", "leaky", "identity"), (0.1, 0.1, 0.0), (False,) * 3, False)
    sizes = list(zip(spec.sizes, spec.sizes[1:], strict=False))
    parameters = [p for i, o in sizes for p in (torch.full((o, i), 1e-3), torch.zeros(o))]
    rows = torch.ones(1_000_000, 4)
    return lambda: mlp_cpp.mlp_forward(rows, parameters, spec)


def near_field() -> Callable[[], Any]:
    """All points in one cell."""
    points, weights = torch.rand(N, 1, dtype=torch.float64), torch.rand(N, dtype=torch.float64)
    cell, start = torch.zeros(N, dtype=torch.int64), torch.tensor([0, N])
    return lambda: cpp.near_field(points, cell, points, weights, start, [1], 0, SPEC, 2.0, 0, 0)


def lines() -> Callable[[], Any]:
    """A million waves on four lines of a million points."""
    points, weights = torch.rand(4, N // 2), torch.rand(1, 1, N // 2)
    waves, powers = torch.rand(N // 2, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    return lambda: sliced_cpp.sliced_sum(points, points, weights, 0, 1.0, 1, waves, powers)


class Data(NamedTuple):
    """What the calls share."""

    x: Tensor
    y: Tensor
    wide: Tensor
    many: Tensor
    channels: Tensor
    directions: Tensor


@functools.cache
def data() -> Data:
    """Made where the calls are, not where they are counted."""
    x = torch.randn(N, 3)
    wide, many = torch.randn(N // 4, 40), torch.randn(16, N // 4, 3)
    directions = torch.nn.functional.normalize(torch.randn(N, 3), dim=-1)
    return Data(x, x[:-1].clone(), wide, many, torch.rand(N, 2), directions)


def with_data(call: Callable[[Data], Any]) -> Callable[[], Callable[[], Any]]:
    """A call whose arguments are the shared ones."""
    return lambda: functools.partial(call, data())


CALLS: dict[str, Callable[[], Callable[[], Any]]] = {
    "sum": with_data(lambda d: gwf.kernel_sum(d.x, d.y, kernel=KERNEL)),
    "channels": with_data(lambda d: gwf.kernel_sum(d.x, d.x, d.channels, kernel=KERNEL)),
    "two kernels": with_data(lambda d: gwf.kernel_sum(d.wide, d.wide[1:], kernel=KERNEL + gwf.Laplace(2.0))),
    "nearest": with_data(lambda d: gwf.kernel_min(d.x, d.y, k=3)),
    "nearest, wide": with_data(lambda d: gwf.kernel_min(d.wide, d.wide[1:])),
    "of a set with itself": with_data(lambda d: gwf.kernel_sum(d.x, d.x, kernel=KERNEL)),
    "batch": with_data(lambda d: gwf.kernel_sum(d.many, d.many, kernel=KERNEL)),
    "gradient": with_data(lambda d: gwf.kernel_gradient(d.x, d.y, kernel=KERNEL)),
    "logsumexp": with_data(lambda d: gwf.kernel_logsumexp(d.x, d.y, kernel=KERNEL)),
    "average": with_data(lambda d: gwf.kernel_average(d.x, d.y, kernel=KERNEL)),
    "jet": with_data(lambda d: cpp.pair_jet(d.x, d.x, d.channels, d.channels, None, None, [], SPEC)),
    "Stein": with_data(lambda d: gwf.ksd2(d.x, d.x, kernel=KERNEL)),
    "derivatives of Stein": with_data(lambda d: cpp.stein_sum_gradients(d.x[None], d.x[None], SPEC, True)),
    "interactions": with_data(lambda d: gwf.interaction_velocity(d.x, kernel=gwf.PowerLaw(2.0, 1.0))),
    "drift": with_data(lambda d: gwf.drift.gmd(d.x, d.y, temperature=0.5)),
    "drift at several temperatures": with_data(lambda d: gwf.drift.gmd_multi(d.x, d.y)),
    "near field": near_field,
    "sliced Wasserstein": with_data(lambda d: gwf.sliced_wasserstein2(d.x, d.y, directions=d.directions)),
    "sliced energy": with_data(lambda d: gwf.sliced_energy_distance(d.x, d.y, directions=d.directions)),
    "its exponent": with_data(lambda d: gwf.sliced_energy_distance(d.x, d.y, directions=d.directions, exponent=0.5)),
    "sums on lines": lines,
    "network": wide_network,
    "flow": step,
}


def interrupt(sent: list[float]) -> None:
    """What a user does, and when."""
    sent.append(time.perf_counter())
    signal.raise_signal(signal.SIGINT)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    for name, make in CALLS.items():
        if len(sys.argv) > 2 and name not in sys.argv[2:]:
            continue
        call, sent = make(), list[float]()
        timer = threading.Timer(0.2, interrupt, [sent])
        timer.start()
        try:
            call()
        except KeyboardInterrupt:
            print(f"{name}\t{time.perf_counter() - sent[0]:.3f}", flush=True)
        timer.join()


if __name__ == "__main__":
    main()
