"""``python -m bench``: run benchmarks, print a line for each, leave JSON and a figure in bench/results/."""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="names, e.g. 'reductions/*/D2'")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how fast")
    parser.add_argument("--no-peers", action="store_true", help="time this library alone")
    parser.add_argument("--seconds", type=float, help="for the timed part of a case (default 20; cuda: 0.5)")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--isa", choices=("avx512", "avx2", "baseline"), help="default: the best that the CPU has")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/DATE-COMMIT.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda has rows of its own (bench/gpu)")
    parser.add_argument("--seconds-total", type=float, help="cuda: for everything, the important rows first")
    parser.add_argument("--dry-run", action="store_true", help="cuda: the same on the CPU, small: shows that it runs")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help="print the names and leave")
    return parser.parse_args()


def line(record: dict) -> str:
    """One case on one line: our time, its spread, the error, and every peer as a ratio."""
    if "extra_mib" in record:
        return f"{record['name']:46} {record['extra_mib']:.1f} MiB above inputs and output"
    parts = []
    for name, result in record["contenders"].items():
        if "failed" in result or "unavailable" in result:
            parts.append(f"{name}: {result.get('failed') or 'not installed'}")
        elif "ratio" in result:
            missed = " (below target)" if result["ratio"]["median"] < result.get("target", 0.0) else ""
            parts.append(f"{name} {result['ratio']['median']:.3g}x{missed}")
        elif "median" in result:
            spread = f"{result['p20'] * 1e3:.4g} to {result['p80'] * 1e3:.4g}"
            error = "" if result["error"] is None else f", error {result['error']:.1e}"
            late = " (above limit)" if result["median"] > record.get("limit", float("inf")) else ""
            parts.append(f"{result['median'] * 1e3:9.4g} ms ({spread}){late}{error}")
    if "pairs_per_second" in record:
        share = f", {record['share_of_floor']:.0%} of the floor" if "share_of_floor" in record else ""
        parts.insert(1, f"{record['pairs_per_second'] / 1e9:.3g} G pairs/s{share}")
    if "flops_per_second" in record:
        share = f", {record['share_of_peak']:.0%} of the FMA peak" if "share_of_peak" in record else ""
        parts.insert(1, f"{record['flops_per_second'] / 1e9:.3g} GFLOP/s{share}")
    return f"{record['name']:46} " + "; ".join(parts)


def on_cuda(options: argparse.Namespace) -> int:
    from bench.gpu import run
    from bench.gpu.rows import all_rows

    options.seconds = options.seconds or 0.5
    if options.list:
        print(*(row.name for row in all_rows()), sep="\n")
        return 0
    return run.child(options) if options.child else run.main(options)


def main() -> None:
    options = arguments()
    if options.device == "cuda":
        raise SystemExit(on_cuda(options))
    options.seconds = options.seconds or 20.0
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before anything loads OpenMP
    if options.isa:
        os.environ["GWF_FAST_ISA"] = options.isa  # before gwf_fast._cpu is loaded
    import torch

    # Modules that register their cases.
    from bench import (  # noqa: F401
        discrepancies,
        drifts,
        interactions,
        memory,
        nearest,
        networks,
        overhead,
        primal_dual,
        reductions,
        sliced,
        small,
        stein,
        transport,
    )
    from bench.environment import environment
    from bench.measure import run
    from bench.plot import time_against_n
    from bench.registry import CASES

    if options.threads:
        torch.set_num_threads(options.threads)
    chosen = [name for name in CASES if any(fnmatch.fnmatch(name, pattern) for pattern in options.only)]
    with_memory = any(fnmatch.fnmatch(memory.NAME, pattern) for pattern in options.only)
    if options.list:
        print(*CASES, memory.NAME, sep="\n")
        return
    if not chosen and not with_memory:
        raise SystemExit(f"bench: no case matches {' '.join(options.only)}; see --list")

    where = environment()
    out = options.out or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{where['commit']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    print(
        f"{where['cpu']}, {where['instruction_set']}, {where['threads']} threads, "
        f"torch {torch.__version__}, commit {where['commit']}"
    )
    records: list[dict] = []

    def keep(record: dict) -> None:
        records.append(record)
        print(line(record), flush=True)
        out.write_text(json.dumps({"environment": where, "records": records}, indent=1) + "\n")

    for name in chosen:
        peak = where["peak_flops"]
        keep(run(CASES[name], quick=options.quick, budget=options.seconds, peak=peak, with_peers=not options.no_peers))
        gc.collect()
    if with_memory:
        keep(memory.both_sides(options.quick))
    print(f"\n{out}")
    if not options.quick and any(record["family"] == "scaling" for record in records):
        print(time_against_n(out, out.with_suffix(".png")))


if __name__ == "__main__":
    main()
