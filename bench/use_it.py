"""What changing one import line changes: time and memory before and after, for docs/use_it_in_your_code.md.

``python -m bench.use_it`` prints the table; ``--write`` puts it into the page. Each side runs in a process of its own:
one call to load and compile, then the median of up to twenty in five seconds (at least one), then the growth of the
resident set in one more. About six minutes.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.memory import PROCESS, status

PAGE = Path(__file__).parent.parent / "docs" / "use_it_in_your_code.md"
BEGIN, END = "<!-- bench.use_it -->", "<!-- end -->"
SECONDS = 5.0  # for the timed calls

Call = Callable[[], object]


def draw(n: int, dim: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


def with_gradient(loss: Callable[..., torch.Tensor], n: int, dim: int) -> Call:
    x, y = draw(n, dim, 0).requires_grad_(), draw(n, dim, 1, 0.5)
    return lambda: torch.autograd.grad(loss(x, y), x)


def samples_loss(after: bool) -> Callable[..., Callable[..., torch.Tensor]]:
    return importlib.import_module("gwf_fast.compat.geomloss" if after else "geomloss").SamplesLoss


def sinkhorn(after: bool, n: int, backend: str) -> Call:
    return with_gradient(samples_loss(after)("sinkhorn", p=2, blur=0.05, backend=backend), n, 3)


def gaussian(after: bool, n: int) -> Call:
    return with_gradient(samples_loss(after)("gaussian", blur=1.0, backend="tensorized"), n, 3)


def mmd_gan(after: bool, n: int, dim: int) -> Call:
    scales = [1.0, 2.0, 4.0, 8.0, 16.0]

    def published(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = torch.cat((x, y))
        products = z @ z.T
        norms = products.diagonal()
        exponent = norms[:, None] + norms - 2 * products
        k = sum((torch.exp(-exponent / (2 * s**2)) for s in scales), start=z.new_zeros(()))
        m = len(x)
        return (k[:m, :m].sum() + k[m:, m:].sum() - 2 * k[:m, m:].sum()) / m**2

    if not after:
        return with_gradient(published, n, dim)
    from gwf_fast.compat.mmd_gan import mix_rbf_mmd2

    return with_gradient(lambda x, y: mix_rbf_mmd2(x, y, scales), n, dim)


def svgd(after: bool, n: int, dim: int) -> Call:
    import numpy as np
    from scipy.spatial.distance import pdist, squareform

    start, steps = draw(n, dim, 0).double().numpy(), 5

    def published() -> object:
        theta, history = start.copy(), 0.0
        for i in range(steps):
            square = squareform(pdist(theta)) ** 2
            h = math.sqrt(0.5 * np.median(square) / math.log(n + 1))
            k = np.exp(-square / h**2 / 2)
            slope = (-k @ theta + theta * k.sum(1)[:, None]) / h**2
            gradient = (k @ -theta + slope) / n
            history = gradient**2 if i == 0 else 0.9 * history + 0.1 * gradient**2
            theta = theta + 0.01 * gradient / (1e-6 + np.sqrt(history))
        return theta

    if not after:
        return published
    from gwf_fast.compat.svgd import SVGD

    return lambda: SVGD().update(start, lambda theta: -theta, n_iter=steps, stepsize=0.01)


def drifting(after: bool, n: int) -> Call:
    x, y = draw(n, 2, 0), draw(n, 2, 1)
    if after:
        from gwf_fast.compat.drifting import compute_drift

        return lambda: compute_drift(x, y, 0.05)
    from bench.drifts import notebook_drift

    return lambda: notebook_drift(x, y, 0.05)


def sliced(after: bool, n: int, dim: int) -> Call:
    distance = importlib.import_module("gwf_fast.compat.pot" if after else "ot.sliced").sliced_wasserstein_distance
    return with_gradient(lambda x, y: distance(x, y, n_projections=100, seed=0), n, dim)


ROWS: dict[str, tuple[str, Callable[[bool], Call]]] = {
    "sinkhorn": (
        'geomloss `SamplesLoss("sinkhorn")`, N = M = 4,000, D = 3',
        lambda after: sinkhorn(after, 4_000, "tensorized"),
    ),
    "online": (
        'the same with `backend="online"` (KeOps), N = M = 10,000',
        lambda after: sinkhorn(after, 10_000, "online"),
    ),
    "gaussian": ('geomloss `SamplesLoss("gaussian")`, N = M = 4,000, D = 3', lambda after: gaussian(after, 4_000)),
    "mmd_gan": ("MMD-GAN `mix_rbf_mmd2`, 5 scales, N = 2,048, D = 64", lambda after: mmd_gan(after, 2_048, 64)),
    "svgd": ("SVGD `update`, 5 iterations, N = 2,000, D = 16", lambda after: svgd(after, 2_000, 16)),
    "drifting": ("`compute_drift`, N = P = 2,048, D = 2", lambda after: drifting(after, 2_048)),
    "sliced": (
        "POT `sliced_wasserstein_distance`, N = M = 100,000, D = 16, 100 directions",
        lambda after: sliced(after, 100_000, 16),
    ),
}


def measure(name: str, after: bool) -> dict[str, float]:
    """Median seconds of a call, and how far the resident set rises above what was there before it, in MiB."""
    if not after and name == "online":
        from bench.peers import keops

        keops.load()
    call = ROWS[name][1](after)
    call()
    times: list[float] = []
    begin = time.perf_counter()
    while not times or (len(times) < 20 and time.perf_counter() - begin < SECONDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    (PROCESS / "clear_refs").write_text("5")  # the peak starts again from the present size
    before = status("VmRSS")
    call()
    return {"seconds": statistics.median(times), "mib": status("VmHWM") - before}


def in_a_process(name: str, side: str) -> dict[str, float]:
    # Freed blocks go back to the system at once, so that the second call has to ask for them again.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "bench.use_it", name, side]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def readable(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def table() -> str:
    lines = ["| value and gradient of | before | after | times faster | memory before | after |", "| --- " * 6 + "|"]
    for name, (title, _) in ROWS.items():
        before, after = (in_a_process(name, side) for side in ("before", "after"))
        ratio = before["seconds"] / after["seconds"]
        memory = " | ".join(f"{side['mib']:.0f} MiB" if side["mib"] >= 1 else "< 1 MiB" for side in (before, after))
        line = f"| {title} | {readable(before['seconds'])} | {readable(after['seconds'])} | {ratio:.3g} | {memory} |"
        print(line, flush=True)
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2] == "after")))
        return
    text = table()
    if "--write" in sys.argv:
        page = PAGE.read_text()
        head, rest = page.split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
