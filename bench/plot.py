"""Figures from measured JSON."""

from __future__ import annotations

import json
from pathlib import Path

# Okabe and Ito's colours, told apart by every eye.
COLOURS = {"gwf_fast": "#0072B2", "KeOps": "#D55E00", "torch tiled": "#009E73"}


def time_against_n(results: Path, figure: Path) -> Path:
    """Draw the scaling cases: time of a call against N = M, log-log, a line a contender.

    Args:
        results: JSON that ``python -m bench`` left.
        figure: File to write; its suffix chooses the format.

    Returns:
        ``figure``.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data = json.loads(results.read_text())
    records = sorted((r for r in data["records"] if r["family"] == "scaling"), key=lambda r: r["N"])
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for record in records:
        for name, result in record["contenders"].items():
            if "median" in result:
                point = (record["N"], result["median"], result["p20"], result["p80"])
                lines.setdefault(name, []).append(point)

    plt.rcParams.update({"font.size": 10, "font.family": "DejaVu Sans"})
    fig, axes = plt.subplots(figsize=(6.4, 4.0), dpi=200, layout="constrained")
    for name, points in lines.items():
        n, median, low, high = zip(*points, strict=True)
        colour = COLOURS.get(name, "#555555")
        axes.fill_between(n, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(n, median, "o-", color=colour, linewidth=2 if name == "gwf_fast" else 1.4, markersize=4)
        end, above = (n[-1], median[-1]), (0, 7)
        axes.annotate(name, end, above, textcoords="offset points", ha="center", color=colour, weight="bold")
    axes.set(xscale="log", yscale="log", xlabel="N = M", ylabel="seconds a call")
    axes.margins(x=0.1, y=0.12)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    where = data["environment"]
    axes.set_title(
        f"Gaussian kernel sum, D = {records[0]['D']}, float32\n"
        f"{where['cpu']}, threads: {where['threads']}; median, band from p20 to p80",
        loc="left",
        fontsize=9,
    )
    fig.savefig(figure)
    plt.close(fig)
    return figure
