"""Peak memory of one kernel_sum, in a process of its own: ``python -m bench.memory N M D``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

NAME = "memory/kernel_sum/D2"
PROCESS = Path("/proc/self")


def status(field: str) -> float:
    """A memory field of this process, in MiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"this system does not tell {field}")
    return int(found[1]) / 1024


def measure(n: int, m: int, dim: int) -> dict[str, float]:
    """How far the resident set rises above what the process held with its inputs, and the size of the output."""
    import torch

    import gwf_fast as gwf

    x, y, w = torch.randn(n, dim), torch.randn(m, dim), torch.rand(m)
    kernel = gwf.Gaussian(0.5)
    with torch.no_grad():
        gwf.kernel_sum(x[:1000].clone(), y[:1000].clone(), w[:1000].clone(), kernel=kernel)  # loads, starts threads
        (PROCESS / "clear_refs").write_text("5")  # the peak starts again from the present size
        before = status("VmRSS")
        out = gwf.kernel_sum(x, y, w, kernel=kernel)
        grown = status("VmHWM") - before
    return {"N": n, "M": m, "D": dim, "grown_mib": grown, "output_mib": out.nbytes / 2**20}


def in_a_process(n: int, m: int, dim: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.memory", str(n), str(m), str(dim)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def both_sides(quick: bool, dim: int = 2) -> dict[str, object]:
    """A million points on each side in turn against a slice of the other, so that it takes seconds.

    What the library holds for the rows and what it holds for the columns add up to no less than what one call
    with both holds.
    """
    many, few = (100_000, 2_000) if quick else (1_000_000, 20_000)
    runs = [in_a_process(many, few, dim), in_a_process(few, many, dim)]
    extra = sum(max(0.0, run["grown_mib"] - run["output_mib"]) for run in runs)
    return {"name": NAME, "family": "memory", "runs": runs, "extra_mib": extra, "limit_mib": 64}


if __name__ == "__main__":
    print(json.dumps(measure(*(int(argument) for argument in sys.argv[1:]))))
