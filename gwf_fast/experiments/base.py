"""What an experiment is, and the data that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gwf_fast.functional import Functional, JensenShannon, SquaredMMD, Target
from gwf_fast.jko import JKOFlow
from gwf_fast.state import FlowResult

FUNCTIONALS = ("js", "mmd", "js+mmd")


@dataclass(frozen=True)
class Settings:
    """The options of a run.

    Attributes:
        particles: N.
        steps: JKO steps.
        step_size: a.
        iterations: J1.
        batch_size: M.
        seed: Seed of everything random.
        dim: D, where the experiment leaves a choice.
        functional: One of ``FUNCTIONALS``, where the target is samples.
        input: A file with data; "" for the experiment's own.
    """

    particles: int
    steps: int
    step_size: float
    iterations: int
    batch_size: int
    seed: int = 0
    dim: int = 0
    functional: str = ""
    input: str = ""


SPECIAL = ("dim", "functional", "input")
"""Settings that only some experiments have."""


@dataclass(frozen=True)
class Problem:
    """An experiment made concrete by its settings.

    Attributes:
        flow: What to run.
        source: n -> samples of P_0, from torch's global generator.
        decode: Particles of the flow [N, D] to what a user wants to see and save.
        figure: Draws the result into a file.
        metrics: Numbers about the result, by name; printed, and kept in run.json.
    """

    flow: JKOFlow
    source: Callable[[int], Tensor]
    figure: Callable[[FlowResult, Path], None]
    metrics: Callable[[FlowResult], dict[str, Any]]
    decode: Callable[[Tensor], Tensor] = lambda x: x


@dataclass(frozen=True)
class Experiment:
    """One entry of the command line.

    Attributes:
        name: How it is called.
        summary: One line for the help text.
        defaults: Settings where the user gives none.
        build: Settings to problem.
        special: Which of ``SPECIAL`` it has.
    """

    name: str
    summary: str
    defaults: Settings
    build: Callable[[Settings], Problem]
    special: tuple[str, ...] = ()


def sample_functional(name: str, target: Target, mmd_scale: float, kernel: Any = None) -> Functional:
    """A functional of samples by its command-line name.

    Args:
        name: One of ``FUNCTIONALS``.
        target: Samples of Q.
        mmd_scale: Factor on the squared MMD, which is small beside a W2^2 in many dimensions.
        kernel: Its kernel; None for the energy distance.
    """
    if name not in FUNCTIONALS:
        raise ValueError(f"functional: expected one of {', '.join(FUNCTIONALS)}, got {name!r}")
    from gwf_fast.radial import Riesz

    mmd = mmd_scale * SquaredMMD(target, Riesz() if kernel is None else kernel)
    if name == "mmd":
        return mmd
    return JensenShannon(target) if name == "js" else JensenShannon(target) + mmd


def generator(seed: int) -> torch.Generator:
    """A generator for an experiment's own draws: data sets, splits."""
    return torch.Generator().manual_seed(seed)


def principal_plane(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and the two leading principal directions [D, 2] of x [N, D], for figures."""
    mean = x.mean(0)
    _, _, vh = torch.linalg.svd(x - mean, full_matrices=False)
    return mean, vh[:2].T


def as_array(x: Tensor) -> np.ndarray:
    """A tensor as matplotlib takes it."""
    return x.detach().cpu().numpy()


def pyplot() -> Any:
    """Matplotlib's pyplot on the backend that needs no display."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure and free it."""
    figure.savefig(path, dpi=130, facecolor="white")
    pyplot().close(figure)
