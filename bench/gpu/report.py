"""What a look at the file shows: one line a result, and the table by rows with the share of the bound.

python -m bench.gpu.report bench/results/gpu/RUN.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.registry import OURS


def line(row: str, contender: str, found: dict, others: dict) -> str:
    """One result on one line."""
    head = f"{row:34} {contender:16}"
    if "unavailable" in found:
        return f"{head} not installed: {found['unavailable']}"
    if "failed" in found:
        return f"{head} FAILED {found['failed']}"
    parts = [f"{1e3 * found['median']:9.4g} ms ({1e3 * found['p20']:.4g} to {1e3 * found['p80']:.4g})"]
    if "pairs_per_second" in found:
        parts.append(f"{found['pairs_per_second'] / 1e9:.4g} G pairs/s")
    if "share_of_bound" in found:
        parts.append(f"{found['share_of_bound']:.0%} of the {found['bound']} bound")
    if "host_seconds" in found:
        parts.append(f"host {1e6 * found['host_seconds']:.0f} us, {found['launches']} launches")
    ours = others.get(OURS, {}).get("median")
    if contender != OURS and ours:
        parts.append(f"{found['median'] / ours:.3g} times ours")
    return f"{head} {'; '.join(parts)}; error {found['error']:.1e}"


def table(data: dict) -> list[str]:
    """Markdown: a line a row, furthest from its bound in sight at once."""
    where = data["environment"]
    lines = [
        f"{where['card']}, {where.get('device', {}).get('peak clock MHz', '?')} MHz,"
        f" torch {where['versions']['torch']}, commit {where['commit']}, {where['date']}.",
        "",
        "| row | ms | p20 to p80 | G pairs/s | share of bound | error | host us | launches | peers: times ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, contenders in data["rows"].items():
        ours = contenders.get(OURS, {})
        peers = ", ".join(_peer(peer, found, ours) for peer, found in contenders.items() if peer != OURS)
        if "median" not in ours:
            state = ours.get("failed") or ours.get("unavailable") or "not run"
            lines.append(f"| {name} | {state.replace('|', '/')} | | | | | | | {peers} |")
            continue
        share = f"{ours['share_of_bound']:.0%} {ours['bound']}" if "share_of_bound" in ours else ""
        rate = f"{ours['pairs_per_second'] / 1e9:.4g}" if "pairs_per_second" in ours else ""
        host = f"{1e6 * ours['host_seconds']:.0f}" if "host_seconds" in ours else ""
        spread = f"{1e3 * ours['p20']:.4g} to {1e3 * ours['p80']:.4g}"
        launches = ours.get("launches")
        lines.append(
            f"| {name} | {1e3 * ours['median']:.4g} | {spread} | {rate} | {share} | {ours['error']:.0e} | {host} |"
            f" {'' if launches is None else launches} | {peers} |"
        )
    return lines


def _peer(name: str, found: dict, ours: dict) -> str:
    if "median" in found and "median" in ours:
        return f"{name} {found['median'] / ours['median']:.3g}"
    if "median" in found:
        return f"{name} {1e3 * found['median']:.4g} ms"
    return f"{name} {'not installed' if 'unavailable' in found else 'failed'}"


if __name__ == "__main__":
    print("\n".join(table(json.loads(Path(sys.argv[1]).read_text()))))
