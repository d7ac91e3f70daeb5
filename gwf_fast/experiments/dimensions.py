"""Experiments that are run in one dimension or in several, with one figure: ``--dim 8`` or ``--dim 2,8,32``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gwf_fast.experiments import base
from gwf_fast.experiments.computation import Computation, Study

HELP = "dimension D, or several: 2,8,32"


@dataclass(frozen=True)
class Case:
    """The experiment in one dimension.

    Attributes:
        computation: What to run.
        compare: Its result beside the exact solution: what figure and metrics are made of.
        metrics: Numbers about a comparison, by name.
    """

    computation: Computation
    compare: Callable[[Any], Any]
    metrics: Callable[[Any], dict[str, Any]]


def parse(text: str) -> tuple[int, ...]:
    """Dimensions from the command line, each once and in increasing order.

    Raises:
        ValueError: If they are not positive integers.
    """
    try:
        dims = sorted({int(part) for part in text.split(",")})
    except ValueError:
        dims = [0]
    if dims[0] < 1:
        raise ValueError(f"dim must be positive integers such as 8 or 2,8,32, got {text!r}")
    return tuple(dims)


def problem(cases: Mapping[int, Case], draw: Callable[[dict[int, Any], Path], None]) -> base.Problem:
    """One case as it is; several as a study, with a folder each.

    Args:
        cases: By dimension.
        draw: Draws comparisons, by dimension, into a file.
    """
    alone = next(iter(cases.values())) if len(cases) == 1 else None
    last: list[Any] = []  # the result last compared, and the comparisons: figure and metrics need the same

    def compared(result: Any) -> dict[int, Any]:
        if not last or last[0] is not result:
            results = {dim: result if alone else result[f"D{dim}"] for dim in cases}
            last[:] = [result, {dim: case.compare(results[dim]) for dim, case in cases.items()}]
        return last[1]

    def metrics(result: Any) -> dict[str, Any]:
        found = {dim: cases[dim].metrics(comparison) for dim, comparison in compared(result).items()}
        if alone:
            return next(iter(found.values()))
        return {f"D={dim}_{name}": value for dim, numbers in found.items() for name, value in numbers.items()}

    computation = alone.computation if alone else Study({f"D{dim}": case.computation for dim, case in cases.items()})
    return base.Problem(computation, lambda result, path: draw(compared(result), path), metrics)


def colours(dims: Mapping[int, Any]) -> dict[int, Any]:
    """A colour for each dimension, from light to dark."""
    palette = base.pyplot().get_cmap("viridis_r")
    return {dim: palette(0.15 + 0.8 * i / max(len(dims) - 1, 1)) for i, dim in enumerate(dims)}


def rounded(values: list[float]) -> list[float]:
    """Four digits of each, for run.json."""
    return [float(f"{value:.4g}") for value in values]
