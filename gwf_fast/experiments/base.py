"""What an experiment is, and the data and figures that all of them share."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gwf_fast.experiments.computation import Computation
from gwf_fast.flows.engines.choice import EngineName
from gwf_fast.functionals.base import Functional, JensenShannon, SquaredMMD
from gwf_fast.functionals.evaluation import Target

FUNCTIONALS = ("js", "mmd", "js+mmd")
ENGINES = ("auto", "fused", "torch")


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    choices: tuple[str, ...] = (),
    extends: bool = False,
    least: int = 1,
) -> Any:
    """A field of ``Settings``, and so an option of the command line.

    Args:
        help: For the help text.
        default: Where the user gives none; the experiment's ``defaults`` have the last word.
        choices: What a string may be; () for anything.
        extends: Whether a run that has begun can be resumed with another value.
        least: Of an integer other than the seed, what the end of the run needs too.
    """
    metadata = {"help": help, "choices": choices, "extends": extends, "least": least}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of every run. An experiment with more of its own derives from this or from ``FlowSettings``.

    Fields are int, float, str or bool, or one of these or None. Integers other than ``seed`` have a least value; what
    else an experiment asks of them is checked where they are used.

    Attributes:
        seed: Seed of everything random.
    """

    seed: int = option("seed of everything random", 0)


@dataclass(frozen=True, kw_only=True)
class FlowSettings(Settings):
    """The options of an experiment on JKO flows.

    Attributes:
        particles: N.
        steps: JKO steps.
        step_size: a.
        iterations: J1.
        batch_size: M.
    """

    particles: int = option("number of particles N", least=2)
    steps: int = option("JKO steps", extends=True)
    step_size: float = option("JKO step size a")
    iterations: int = option("training iterations a JKO step")
    batch_size: int = option("samples an iteration")


@dataclass(frozen=True)
class Problem:
    """An experiment made concrete by its settings.

    Attributes:
        computation: What to run: a ``Flow``, a ``Study`` of several, or another one; see
            ``gwf_fast.experiments.computation``.
        figure: Draws the result of the computation into a file.
        metrics: Numbers about the result, by name; printed, and kept in run.json.
    """

    computation: Computation
    figure: Callable[[Any, Path], None]
    metrics: Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """One entry of the command line.

    Attributes:
        name: How it is called.
        summary: One line for the help text.
        defaults: Settings where the user gives none; its class says which options there are.
        build: Settings to problem. It may read data, and must not train.
    """

    name: str
    summary: str
    defaults: Settings
    build: Callable[[Any], Problem]

    def options(self) -> dict[str, dataclasses.Field]:
        """The fields of its settings by name."""
        return {field.name: field for field in dataclasses.fields(self.defaults)}

    def types(self) -> dict[str, type]:
        """The types of its settings by name."""
        return typing.get_type_hints(type(self.defaults))


def spelled(name: str) -> str:
    """A setting as an option of the command line."""
    return "--" + name.replace("_", "-")


def sample_functional(name: str, target: Target, mmd_scale: float, kernel: Any = None) -> Functional:
    """A functional of samples by its command-line name.

    Args:
        name: One of ``FUNCTIONALS``.
        target: Samples of Q.
        mmd_scale: Factor on the squared MMD, which is small beside a W2^2 in many dimensions.
        kernel: Its kernel; None for the energy distance.
    """
    from gwf_fast.pairs.kernels import Riesz

    mmd = mmd_scale * SquaredMMD(target, Riesz() if kernel is None else kernel)
    if name == "mmd":
        return mmd
    return JensenShannon(target) if name == "js" else JensenShannon(target) + mmd


def engine(name: str) -> EngineName | None:
    """What ``JKOFlow`` takes for one of ``ENGINES``."""
    return None if name == "auto" else typing.cast(EngineName, name)


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
