"""What there is, and who would serve a call: for people, from the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gwf_fast.ops.dispatch import load, resolve
from gwf_fast.ops.table import AUTOMATIC, BACKENDS, OPERATIONS, Backend, needed

CALLED_FOR: dict[str, tuple[str, ...]] = {
    "kernel_sum": ("sum",),
    "kernel_gradient": ("gradient",),
    "kernel_logsumexp": ("logsumexp",),
    "kernel_average": ("average",),
    "mmd2": ("mmd",),
    "energy_distance": ("mmd",),
    "parzen_log_density": ("logsumexp",),
    "parzen_score": ("average",),
    "ksd2": ("stein",),
    "svgd_direction": ("svgd", "sum", "gradient"),
    "interaction_energy": ("interaction",),
    "interaction_velocity": ("interaction",),
    "forward_step": ("interaction",),
    "blob_density": ("sum",),
    "blob_energy": ("sum",),
    "blob_velocity": ("gradient", "sum"),
    "sinkhorn": ("transport", "logsumexp"),
    "sinkhorn_divergence": ("transport", "logsumexp"),
    "barycentric_map": ("average",),
    "sliced_energy_distance": ("sliced",),
    "sliced_wasserstein2": ("sliced",),
    "drift.gmd": ("drift", "logsumexp", "average"),
    "drift.gmd_multi": ("drift",),
    "drift.mmd": ("gradient",),
    "drift.energy": ("gradient",),
    "drift.parzen_kl": ("average",),
    "drift.f_divergence": ("logsumexp", "average"),
    "drift.sinkhorn": ("transport", "logsumexp", "average"),
    "drift.sliced_wasserstein": ("sliced",),
}
"""The operations of the table that functions for people ask for, on plain tensors without derivatives."""


def backends() -> dict[str, str]:
    """The backends of this installation.

    Returns:
        For each backend: "available", or why it is not.
    """
    return {name: _state(backend) for name, backend in BACKENDS.items()}


def _state(backend: Backend) -> str:
    absence = backend.absence()
    if absence is not None:
        return absence
    if backend.devices == ("cuda",) and not torch.cuda.is_available():
        return "no CUDA device"
    try:
        load(backend.name)
    except ImportError as error:
        return f"does not import: {error}"
    return "available"


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Which backend ``fn(*args, **kwargs)`` would run on, and why not the others. Computes nothing.

    Args:
        fn: A function of this package that works on pairs of points; or a method of a flow, as ``flow.run``: then
            which engine solves its steps, whatever the arguments.
        *args: Its arguments.
        **kwargs: Its keyword arguments; ``backend`` counts.

    Returns:
        A few lines to print.

    Raises:
        TypeError: There is no tensor among the arguments, or ``fn`` is not a function that a backend serves.
        ValueError: The backend that is asked for can't serve.
    """
    owner = getattr(fn, "__self__", None)
    if str(type(owner).__module__).startswith("gwf_fast.flows.") and hasattr(owner, "explain"):
        return str(owner.explain())
    name = public_name(fn)
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not tensors:
        raise TypeError(f"explain: no tensor among the arguments of {name}")
    x = tensors[0]
    formula, dim = getattr(kwargs.get("kernel"), "has_formula", False), x.shape[-1] if x.ndim else None
    requested = kwargs.get("backend")
    asked = "asked for" if requested is not None else "first in the order of preference that can serve"
    lines = []
    for operation in CALLED_FOR[name]:
        kind = (formula, operation, dim)
        chosen = resolve(requested, x.device, x.dtype, *kind)
        part = "" if len(CALLED_FOR[name]) == 1 else f", {operation}"
        lines.append(f"{name}{part} on {x.device}, {x.dtype}: {chosen} ({asked})")
        for other, backend in BACKENDS.items():
            if other != chosen.partition(":")[0]:
                reason = backend.refusal(x.device, x.dtype, *kind)
                lines.append(f"  {other}: {reason or f'could serve, {backend.summary}'}")
    return "\n".join(lines)


def public_name(fn: Callable[..., Any]) -> str:
    """The key of CALLED_FOR of a function.

    Raises:
        TypeError: It has none.
    """
    name, module = getattr(fn, "__name__", repr(fn)), str(getattr(fn, "__module__", ""))
    name = f"drift.{name}" if module.startswith("gwf_fast.drift.") else name
    if name not in CALLED_FOR or not module.startswith("gwf_fast."):
        raise TypeError(
            f"explain: expected a function that a backend serves, such as gwf_fast.kernel_sum, got {module}.{name};"
            f" known are {', '.join(CALLED_FOR)}"
        )
    return name


def served_table() -> list[str]:
    """The table of docs/gpu.md, operations by backends, in Markdown (``bench/gpu_table.py --operations`` writes it)."""
    lines = [f"| operation | asked for by | {' | '.join(BACKENDS)} | on a GPU |", "|" + " --- |" * (len(BACKENDS) + 3)]
    for name, row in OPERATIONS.items():
        callers = ", ".join(f"`{function}`" for function, asked in CALLED_FOR.items() if name in asked)
        cells = []
        for backend in BACKENDS:
            service = row.served_by.get(backend)
            limit = f"≤ {service.widest} {'wide' if name.startswith('mlp') else 'coordinates'}" if service else ""
            parts = [OPERATIONS[part].served_by for part in needed(name)]
            made = "composed" if row.composed and all(backend in served for served in parts) else ""
            cells.append(made if service is None else limit if service.widest else "yes")
        order = AUTOMATIC.get(name, AUTOMATIC[""])
        able = [
            b for b in order if b in row.served_by and (BACKENDS[b].devices is None or "cuda" in BACKENDS[b].devices)
        ]
        first = " or ".join(able[: 2 if row.served_by[able[0]].widest else 1]) if able else "composed"
        lines.append(f"| {name}: {row.meaning} | {callers} | {' | '.join(cells)} | {first} |")
    return lines


MARKERS = ("<!-- table: python bench/gpu_table.py --operations -->", "<!-- end of the table of operations -->")


def documented(text: str) -> str:
    """A document with the table between its markers brought up to date."""
    before, rest = text.split(MARKERS[0])
    return "\n".join([before + MARKERS[0], "", *served_table(), "", MARKERS[1] + rest.split(MARKERS[1])[1]])
