"""Figures of the drifting experiment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwf_fast.experiments import base
from gwf_fast.experiments.drift_data import Data
from gwf_fast.experiments.images import sheet
from gwf_fast.flows.drifting_state import DriftingResult

_TRUE, _GENERATED = "#b9c3cd", "#c8323c"
_SHOWN = 1500  # points
_ROWS, _COLUMNS = 8, 12  # images
_LIMIT = 2.6  # of a panel, in standard deviations


def single(kind: str, data: Data, result: DriftingResult, path: Path) -> None:
    """True and generated samples, the MMD against training time, and |V|^2."""
    plt = base.pyplot()
    if data.images is None:
        figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
        plane = _plane(data)
        _scatter(axes[0], data.truth @ plane, None, "true")
        _scatter(axes[1], None, result.sample(_SHOWN) @ plane, f"generated, {kind}, {result.step} updates")
        curves = axes[2:]
    else:
        figure = plt.figure(figsize=(14, 5.6), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[2, 1])
        tops = left.subplots(1, 2)
        _images(tops[0], data.decode(result.sample(_ROWS * _COLUMNS)), f"generated, {kind}, not selected")
        chosen = torch.randperm(len(data.images))[: _ROWS * _COLUMNS]
        _images(tops[1], data.images[chosen], "true")
        curves = right.subplots(2, 1)
    _curve(curves[0], {"": result}, data)
    curves[0].set(xlabel="training time, s", ylabel="MMD to the data", title="MMD (dashed: of true samples)")
    steps = [record.step for record in result.history]
    curves[1].plot(steps, [record.drift for record in result.history], color="#35618f")
    curves[1].set(xlabel="updates", ylabel=r"mean $|V|^2$", yscale="log", title=r"the drift, before normalisation")
    base.save_figure(figure, path)


def comparison(
    name: str, data: Data, rows: Mapping[str, tuple[str, Mapping[Any, DriftingResult | None]]], path: Path
) -> None:
    """A row a drift: true and generated samples for each setting, and the MMD against training time of them all.

    Args:
        name: Of the data.
        data: The data.
        rows: By drift: the name of its parameter, and results by its value, None where training diverged.
        path: The file.
    """
    plt = base.pyplot()
    from matplotlib.ticker import NullFormatter

    columns = max(len(results) for _, results in rows.values())
    figure, axes = plt.subplots(
        len(rows), columns + 1, figsize=(2.1 * columns + 3.2, 2.12 * len(rows)), layout="constrained",
        width_ratios=[1] * columns + [1.45],
    )  # fmt: skip
    plane = _plane(data)
    for line, (kind, (parameter, results)) in zip(axes, rows.items(), strict=True):
        for axis, (value, result) in zip(line, results.items(), strict=False):
            if result is None:
                _scatter(axis, data.truth @ plane, None, f"{parameter} {value}: diverged")
                continue
            x = result.sample(len(data.truth))
            judged = data.metrics(x)
            title = f"{parameter} {value}\nMMD {judged['mmd']:.3f}, coverage {judged['coverage']:.0%}"
            _scatter(axis, data.truth @ plane, x @ plane, title)
            outside = ((x @ plane).abs() > _LIMIT).any(1).float().mean().item()
            if outside > 0.1:
                axis.text(0, -0.93 * _LIMIT, f"{outside:.0%} outside", fontsize=7, ha="center", color=_GENERATED)
        line[0].set_ylabel(kind, fontsize=11)
        _curve(line[-1], results, data)
        line[-1].set(xscale="log", ylim=(2e-3, 2.5))
        line[-1].xaxis.set_minor_formatter(NullFormatter())
    axes[-1, -1].set_xlabel("training time, s", fontsize=8)
    axes[0, -1].set_title("MMD (dashed: of true samples)", fontsize=8)
    figure.suptitle(f"{name}: true samples in grey, generated ones in red", fontsize=12)
    base.save_figure(figure, path)


def _plane(data: Data) -> Tensor:
    """[D, 2]: the plane itself, or the two leading principal directions."""
    return torch.eye(data.dim)[:, :2]


def _scatter(axis: Any, true: Tensor | None, generated: Tensor | None, title: str) -> None:
    for points, colour, size in ((true, _TRUE, 2.0), (generated, _GENERATED, 1.2)):
        if points is not None:
            shown = base.as_array(points[:_SHOWN])
            axis.scatter(*shown.T, s=size, color=colour, alpha=0.7, linewidths=0, rasterized=True)
    axis.set(xlim=(-_LIMIT, _LIMIT), ylim=(-_LIMIT, _LIMIT), aspect="equal", xticks=[], yticks=[])
    axis.set_title(title, fontsize=8)


def _curve(axis: Any, results: Mapping[Any, DriftingResult | None], data: Data) -> None:
    colours = base.pyplot().get_cmap("viridis")(torch.linspace(0.0, 0.85, max(2, len(results))).numpy())
    for (value, result), colour in zip(results.items(), colours, strict=False):
        if result is not None:
            seconds = [record.seconds for record in result.history]
            values = [max(record.value or 0.0, 1e-3) for record in result.history]
            axis.plot(seconds, values, color=colour, linewidth=1.2, label=str(value))
    axis.axhline(max(data.mmd(data.held), 1e-3), color="grey", linestyle="--", linewidth=0.8)
    axis.set_yscale("log")
    axis.tick_params(labelsize=7)
    if sum(result is not None for result in results.values()) > 1:
        axis.legend(fontsize=6, frameon=False, loc="lower left")


def _images(axis: Any, images: Tensor, title: str) -> None:
    colours = base.pyplot().get_cmap("magma_r").with_extremes(bad="white")
    picture = sheet(images, _ROWS, _COLUMNS)
    axis.imshow(base.as_array(picture), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
