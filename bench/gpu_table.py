"""The summary of ``compile_gpu.py`` for docs/gpu.md: registers and shared memory of each kernel, and every spill.

python bench/gpu_table.py rows.jsonl            # replaces the part of docs/gpu.md between its markers
python bench/gpu_table.py --operations          # the table of operations there, from gwf_fast/ops/report.py
"""

from __future__ import annotations

import collections
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script finds bench here
from bench import compile_gpu, gpu_cases

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
MARKERS = ("<!-- table: bench/gpu_table.py -->", "<!-- end of table -->")

NAMES = {
    "sum_ones": "sum",
    "sum_20": "sum, 20 channels",
    "sum_gradient": "sum and gradient",
    "mmd": "squared MMD, value and gradients",
    "logsumexp": "log-sum-exp",
    "average": "average (mean shift)",
    "average_20": "average, 20 channels",
    "jet0": "first derivatives",
    "jet1": "second derivatives",
    "jet2": "third derivatives",
    "jet2_plain": "third, kernels without a logarithm",
}


def summary(rows: list[dict]) -> list[str]:
    """Lines of Markdown."""
    groups: dict[tuple, list[dict]] = collections.defaultdict(list)
    for row in rows:
        if row["kernel"].startswith("mlp_"):
            groups[row["kernel"], "", "", row["target"]].append(row)
            continue
        operation, _, size, dtype, *_ = row["case"].split("-")
        bucket = "D ≤ 4" if int(size.split("x")[3]) <= 4 else "D > 4"
        groups[operation, bucket, dtype, row["target"]].append(row)
    targets = list(gpu_cases.TARGETS)
    lines = ["| kernel | D | type | " + " | ".join(targets) + " |", "| --- | --- | --- |" + " --- |" * len(targets)]
    for operation, name in NAMES.items():
        for bucket in ("D ≤ 4", "D > 4"):
            for dtype in ("float32", "float64"):
                cells = [groups[operation, bucket, dtype, target] for target in targets]
                if any(cells):
                    lines.append(f"| {name} | {bucket} | {dtype} | {' | '.join(map(cell, cells))} |")
    for kernel, name in (("mlp_forward_kernel", "perceptron, forward"), ("mlp_backward_kernel", "and backward")):
        cells = [groups[kernel, "", "", target] for target in targets]
        if any(cells):
            lines.append(f"| {name} | | all | {' | '.join(map(cell, cells))} |")
    spilled = [row for row in rows if row.get("spills", 0)]
    failed = [row for row in rows if "error" in row]
    counts = collections.Counter(row["target"] for row in rows)
    parked = [row["parked"] for row in rows if row.get("parked")]
    lines += [
        "",
        f"{len(rows)} kernels ({', '.join(f'{target} {counts[target]}' for target in targets)}):"
        f" {len(spilled)} spill, {len(failed)} failed to compile.",
        *(f"- {compile_gpu.describe(row)}" for row in [*spilled, *failed]),
    ]
    if parked:
        lines.append(
            f"Scalar registers kept in lanes of a vector register on gfx942 ({len(parked)} kernels, at most"
            f" {max(parked)} of them) are not spills: they touch no memory."
        )
    return lines


def cell(rows: list[dict]) -> str:
    """Registers, from the least to the most over the profiles and dimensions, and the most shared memory."""
    if not rows:
        return ""
    registers = [row["registers"] for row in rows if "registers" in row]
    shared = max(row["shared"] for row in rows if "shared" in row) / 1024
    least, most = min(registers), max(registers)
    return f"{least if least == most else f'{least}–{most}'}, {shared:.1f} KiB"


def main() -> int:
    """Writes the table; 1 if rows are missing."""
    if sys.argv[1:] == ["--operations"]:  # the other table of that page: who serves what
        from gwf_fast.ops.report import documented

        DOCUMENT.write_text(documented(DOCUMENT.read_text()))
        return 0
    path = Path(sys.argv[1])
    wanted = list(itertools.product(gpu_cases.all_cases(), gpu_cases.TARGETS))
    rows = compile_gpu.load_rows(path, wanted)
    missing = len(wanted) - len({(row["case"], row["target"]) for row in rows})
    text = DOCUMENT.read_text()
    (start, end), (before, rest) = MARKERS, text.split(MARKERS[0])
    after = rest.split(end)[1]
    note = [f"{missing} of the table's cases were not compiled.", ""] if missing else []
    DOCUMENT.write_text(before + "\n".join([start, "", *note, *summary(rows), "", end]) + after)
    print(f"{len(rows)} rows, {missing} missing: {DOCUMENT}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
