"""The largest N at which compute_drift (N = P, D = 2) fits in a limit of memory: dense PyTorch and this library.

``python -m bench.largest [--gib 4]``. Dense: bisection, each try in a process whose data may grow by the limit and no
further. Ours: the growth of the resident set at two sizes, and the N at which that line meets the limit, which is far
beyond what there is time for.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from bench.memory import PROCESS, status


def attempt(side: str, n: int, gib: float) -> dict[str, float]:
    """One drift of n points; MemoryError, or torch's RuntimeError, where it does not fit."""
    import torch

    import gwf_fast as gwf
    from bench.drifts import notebook_drift

    x, y = torch.randn(n, 2), torch.randn(n, 2)
    function = notebook_drift if side == "dense" else lambda x, y, t: gwf.drift.gmd(x, y, temperature=t)
    with torch.no_grad():
        for few in (100, 600):  # loads, starts threads
            function(x[:few].clone(), y[:few].clone(), 0.05)
        grown = int((status("VmData") + gib * 1024) * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (grown, grown))
        (PROCESS / "clear_refs").write_text("5")
        before, start = status("VmRSS"), time.perf_counter()
        function(x, y, 0.05)
        return {"seconds": time.perf_counter() - start, "mib": status("VmHWM") - before}


def in_a_process(side: str, n: int, gib: float) -> dict[str, float] | None:
    command = [sys.executable, "-m", "bench.largest", "--try", side, str(n), "--gib", str(gib)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if any(word in done.stderr for word in ("MemoryError", "allocate memory", "not enough memory", "bad_alloc")):
        return None
    raise RuntimeError(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.largest", description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--sizes", type=int, nargs=2, default=(50_000, 100_000), help="of ours")
    parser.add_argument("--try", nargs=2, dest="attempt", metavar=("SIDE", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attempt:
        print(json.dumps(attempt(options.attempt[0], int(options.attempt[1]), options.gib)))
        return
    low, high = 256, 512
    while in_a_process("dense", high, options.gib):
        low, high = high, 2 * high
    while high - low > 0.02 * low:
        middle = (low + high) // 2
        low, high = (middle, high) if in_a_process("dense", middle, options.gib) else (low, middle)
    print(f"dense PyTorch: N = {low:,} fits in {options.gib:g} GiB, N = {high:,} does not")
    runs = {}
    for n in options.sizes:
        if (run := in_a_process("ours", n, options.gib)) is None:
            raise SystemExit(f"gwf_fast: N = {n:,} does not fit in {options.gib:g} GiB")
        runs[n] = run
        print(f"gwf_fast: N = {n:,} takes {run['mib']:.1f} MiB and {run['seconds']:.2f} s")
    few, many = options.sizes
    slope = max((runs[many]["mib"] - runs[few]["mib"]) / (many - few), 1e-6)
    fits = options.gib * 1024 / slope
    print(f"gwf_fast: {slope * 2**20:.0f} bytes a particle, so that {options.gib:g} GiB hold N = {fits:,.0f}")


if __name__ == "__main__":
    main()
