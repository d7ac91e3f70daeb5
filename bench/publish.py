"""Put measured figures where readers see them: ``python -m bench.publish bench/results/RUN.json``.

Copies the run to bench/results/published.json, draws docs/time_against_n.png, writes docs/benchmarks.md, and fills
the parts of README.md between ``<!-- bench:NAME -->`` and ``<!-- /bench -->``. No figure is typed by hand; with
``--check`` it only says whether README.md agrees with the published run.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "bench" / "results" / "published.json"
README = ROOT / "README.md"
FULL = ROOT / "docs" / "benchmarks.md"
FIGURE = ROOT / "docs" / "time_against_n.png"
OURS = "gwf_fast"


def duration(seconds: float) -> str:
    """Three digits with the unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def times(result: dict) -> str:
    """A peer's time as a multiple of ours, with its own error where it is off; or why there is none."""
    if "ratio" in result:
        return f"{result['ratio']['median']:.3g}×"
    return result.get("failed") or "not installed"


def error_of(result: dict) -> str:
    """The error of a result, empty where nothing was compared."""
    return "" if result.get("error") is None else f"{result['error']:.1e}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def hardware(data: dict) -> str:
    """One sentence on where and with what the figures were measured."""
    where = data["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version)
    machine = f"{where['cpu']}, {where['instruction_set']}, {where['threads']} threads"
    peak = f"Measured FMA peak: {where['peak_flops'] / 1e9:.0f} GFLOP/s."
    return f"{machine}, float32, {where['date']}, commit {where['commit']}; {versions}. {peak}"


def reductions_table(data: dict) -> str:
    """Reductions by dimension: our time, KeOps' time as a multiple of it, and our largest error."""
    records = [r for r in data["records"] if r["family"] == "reductions"]
    dims = sorted({r["D"] for r in records})
    rows = []
    for reduction in dict.fromkeys(r["reduction"] for r in records):
        by_dim = {r["D"]: r["contenders"] for r in records if r["reduction"] == reduction}
        both = [(by_dim[d][OURS], by_dim[d]["KeOps"]) for d in dims]
        cells = [f"{duration(ours['median'])}, {times(keops)}" for ours, keops in both]
        worst = max(contenders[OURS]["error"] for contenders in by_dim.values())
        rows.append([f"`{reduction}`", *cells, f"{worst:.1e}"])
    sizes = {r["D"]: r["N"] for r in records}
    return table(["", *(f"D = {d}, N = M = {sizes[d]:,}" for d in dims), "error"], rows)


def others_table(data: dict) -> str:
    """Everything else but the scaling runs."""
    rows = []
    for record in data["records"]:
        if record["family"] in ("reductions", "scaling", "memory", "networks", "primal_dual"):
            continue
        peers = [f"{name} {times(r)}" for name, r in record["contenders"].items() if name != OURS]
        ours = record["contenders"][OURS]
        kernel = [record["kernel"]] if "kernel" in record else []
        what = ", ".join([record["reduction"], *kernel, f"D = {record['D']}", f"N = M = {record['N']:,}"])
        rows.append([what, duration(ours["median"]), error_of(ours), "; ".join(peers)])
    return table(["", "ours", "error", "peers"], rows)


def full_table(data: dict) -> str:
    """Every case with its spread, rate, error, and every peer with its error."""
    rows = []
    for record in data["records"]:
        if record["family"] == "memory":
            continue
        ours = record["contenders"][OURS]
        spread = f"{duration(ours['median'])} ({duration(ours['p20'])} to {duration(ours['p80'])})"
        rate = f"{record['pairs_per_second'] / 1e9:.3g}" if "pairs_per_second" in record else ""
        share = f"{record['share_of_floor']:.0%}" if "share_of_floor" in record else ""
        peers = []
        for name, result in record["contenders"].items():
            if name != OURS:
                error = f"error {result['error']:.0e}" if "ratio" in result else None
                detail = ", ".join(filter(None, [result.get("detail"), error]))
                peers.append(f"{name} {times(result)}" + (f" ({detail})" if detail else ""))
        rows.append([record["name"], spread, rate, share, error_of(ours), "<br>".join(peers)])
    return table(
        ["case", "ours: median (p20 to p80)", "G pairs/s", "of the floor", "error", "peers, by our time"], rows
    )


def full_page(data: dict) -> str:
    return f"""# Benchmarks

{hardware(data)}

Made by `python -m bench` and `python -m bench.publish`. What a case is, how peers are tuned and how errors are measured
stands in `bench/`. A ratio is the median over rounds of the peer's time by ours in the same round.

![time against N](time_against_n.png)

{full_table(data)}
"""


def memory_sentence(data: dict) -> str:
    for record in data["records"]:
        if record["family"] == "memory":
            n = max(run["N"] for run in record["runs"])
            return (
                f"`kernel_sum` with {n:,} points needs {record['extra_mib']:.0f} MiB beside its inputs and its output"
                " (many rows and many sources measured in turn, and added)."
            )
    return ""


def blocks(data: dict) -> dict[str, str]:
    return {
        "hardware": hardware(data),
        "reductions": reductions_table(data),
        "others": others_table(data),
        "memory": memory_sentence(data),
    }


def filled(text: str, data: dict) -> str:
    """README text with its marked parts replaced."""
    for name, block in blocks(data).items():
        pattern = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench -->)", re.DOTALL)

        def put(match: re.Match[str], block: str = block) -> str:
            return f"{match[1]}{block}\n{match[2]}"

        text, found = pattern.subn(put, text)
        if found != 1:
            raise ValueError(f"README.md: expected one part marked bench:{name}, found {found}")
    return text


def check(data: dict) -> None:
    """Refuse a run that nobody should read: small sizes, a wrong result, a tree that isn't the commit."""
    if data["environment"]["commit"].endswith(("+", "unknown")):
        raise SystemExit("bench.publish: the run was made with changes that no commit holds")
    for record in data["records"]:
        if record.get("quick"):
            raise SystemExit(f"bench.publish: {record['name']} ran with --quick")
        failed = record.get("contenders", {}).get(OURS, {}).get("failed")
        if failed:
            raise SystemExit(f"bench.publish: {record['name']}: {failed}")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    if sys.argv[1] == "--check":
        current = README.read_text()
        raise SystemExit(
            None if filled(current, json.loads(PUBLISHED.read_text())) == current else "README.md is not current"
        )
    from bench.plot import time_against_n

    source = Path(sys.argv[1])
    data = json.loads(source.read_text())
    check(data)
    if source.resolve() != PUBLISHED:
        shutil.copyfile(source, PUBLISHED)
    FULL.parent.mkdir(exist_ok=True)
    FULL.write_text(full_page(data))
    time_against_n(PUBLISHED, FIGURE)
    README.write_text(filled(README.read_text(), data))


if __name__ == "__main__":
    main()
