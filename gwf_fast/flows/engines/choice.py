"""The engines there are, and which one takes a flow."""

from __future__ import annotations

from typing import Literal

from torch import nn

from gwf_fast.flows.engines.base import Engine
from gwf_fast.flows.engines.fused import FusedEngine
from gwf_fast.flows.engines.torch import TorchEngine
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import Functional
from gwf_fast.ops.report import ORDER, others

EngineName = Literal["fused", "torch"]
ENGINES: dict[str, Engine] = {engine.name: engine for engine in (FusedEngine(), TorchEngine())}
"""Engines by name, the preferred one first."""


def require_known(name: str | None) -> None:
    """Raise ValueError if there is no engine of this name."""
    if name is not None and name not in ENGINES:
        raise ValueError(f"engine must be None or one of {', '.join(ENGINES)}, got {name!r}")


def resolve(
    name: str | None, functional: Functional, map: nn.Module, critic: nn.Module | None, training: Training
) -> Engine:
    """The engine called ``name``, or the first that takes the problem where it is None.

    Raises:
        ValueError: If there is no such engine, or it can't take the problem; with the reason.
    """
    require_known(name)
    reasons = []
    for engine in [ENGINES[name]] if name is not None else ENGINES.values():
        reason = engine.refuses(functional, map, critic, training)
        if reason is None:
            return engine
        reasons.append(f"{engine.name}: {reason}")
    raise ValueError("engine: none can take this flow (" + "; ".join(reasons) + ")")


def explained(
    name: str | None, functional: Functional, map: nn.Module, critic: nn.Module | None, training: Training
) -> str:
    """Which engine :func:`resolve` gives, and why not the others, as lines to print.

    Raises:
        ValueError: As there.
    """
    chosen = resolve(name, functional, map, critic, training)
    refusals = {engine.name: engine.refuses(functional, map, critic, training) for engine in ENGINES.values()}
    head = f"engine: {chosen.name} ({ORDER if name is None else 'asked for'})"
    return "\n".join([head, *others(chosen.name, refusals)])
