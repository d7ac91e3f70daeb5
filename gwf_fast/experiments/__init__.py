"""Experiments of the command line. To add one: a module with an ``EXPERIMENT``, and its name in ``NAMES``."""

from __future__ import annotations

import difflib
import importlib

from gwf_fast.experiments.base import Experiment

NAMES = (
    "digits",
    "mnist",
    "gmm",
    "blr",
    "data",
    "ornstein-uhlenbeck",
    "porous-medium",
    "aggregation",
    "semicircle",
    "aggregation-diffusion",
    "regularisation",
    "drift",
)
"""The module of ``a-name`` is ``a_name.py``."""


def find(name: str) -> Experiment:
    """The experiment called ``name``; only its module is imported.

    Raises:
        ValueError: If there is none, with the known names and the closest.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown experiment {name!r}, expected one of: {', '.join(NAMES)}{hint}")
    return importlib.import_module(f"gwf_fast.experiments.{name.replace('-', '_')}").EXPERIMENT
