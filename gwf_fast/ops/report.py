"""What there is, and who would serve a call: for people, from the table."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from gwf_fast.ops.ambient import widened
from gwf_fast.ops.arrays import has_array, with_tensors
from gwf_fast.ops.dispatch import load, resolve
from gwf_fast.ops.table import AUTOMATIC, BACKENDS, OPERATIONS, Backend, needed

CALLED_FOR: dict[str, tuple[str, ...]] = {
    "kernel_sum": ("sum",),
    "kernel_gradient": ("gradient",),
    "kernel_logsumexp": ("logsumexp",),
    "kernel_average": ("average",),
    "kernel_min": ("nearest",),
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
    "transport_cost": ("transport", "logsumexp", "jet"),
    "sliced_energy_distance": ("sliced",),
    "sliced_wasserstein": ("sliced",),
    "sliced_wasserstein2": ("sliced",),
    "max_sliced_wasserstein": ("sliced",),
    "spherical_sliced_wasserstein": ("sliced",),
    "drift.coupling": ("average", "logsumexp", "transport"),
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

SWITCHED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "drift.energy": (("sliced", "directions"), ("sliced",)),
}
"""Arguments with one of which functions ask for others."""

SUMMARIES = {name: backend.summary for name, backend in BACKENDS.items()}

ORDER = "first in the order of preference that can serve"


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


Explanation = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], list[str]]

F = TypeVar("F", bound=Callable[..., Any])


def explained_by(explanation: Explanation) -> Callable[[F], F]:
    """Decorator where a choice is not the table's alone: ``explanation(fn, args, kwargs)`` gives the lines."""

    def mark(function: F) -> F:
        function.explained_by = explanation  # type: ignore[attr-defined]
        return function

    return mark


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """What ``fn(*args, **kwargs)`` would run on, and why not on the others. Computes nothing.

    Args:
        fn: A function with a choice of backend or method, such as ``gwf.kernel_sum``, a network of ``gwf.nn``, or a
            method of a flow, as ``flow.run``, which has engines: arguments are then its particles, or none.
        *args: Its arguments.
        **kwargs: Its keyword arguments; ``backend`` and ``method`` count.

    Returns:
        A few lines to print: what is chosen, then the others, each with the reason or what it could do.

    Raises:
        TypeError: There is no tensor among the arguments, or ``fn`` has no such choice, or no such argument.
        ValueError: The backend, method or engine that is asked for can't serve.
    """
    if has_array((*args, *kwargs.values())):
        return str(with_tensors(fn, functools.partial(explain, fn), args, kwargs))
    owner = getattr(fn, "__self__", None)
    if str(type(owner).__module__).startswith("gwf_fast.flows.") and hasattr(owner, "explain"):
        found = (getattr(value, "particles", value) for value in (*args, *kwargs.values()))
        return str(owner.explain(next((value for value in found if isinstance(value, Tensor)), None)))
    called = fn.forward if isinstance(fn, torch.nn.Module) else fn
    lines: list[str] = []
    if _is_ours(called) and getattr(called, "widens", False):
        dtype, wide, kwargs = widened(args, kwargs)
        args, lines = tuple(wide), [] if dtype is None else [f"{dtype} on a CPU is computed in float32"]
    if _is_ours(called) and hasattr(called, "explained_by"):
        lines += called.explained_by(called, args, kwargs)
    else:
        lines += by_table(fn, arguments(fn, args, kwargs))
    return "\n".join(lines)


def _is_ours(fn: Callable[..., Any]) -> bool:
    return str(getattr(fn, "__module__", "")).startswith("gwf_fast.")


def by_table(fn: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    """Who serves the operations that a function asks for, a paragraph each."""
    name = public_name(fn)
    x = first_tensor(name, given)
    formula, dim = getattr(given.get("kernel"), "has_formula", False), x.shape[-1] if x.ndim else None
    requested = given.get("backend")
    switches, instead = SWITCHED.get(name, ((), ()))
    operations = instead if any(given.get(switch) is not None for switch in switches) else CALLED_FOR[name]
    lines = []
    for operation in operations:
        kind = (x.device, x.dtype, formula, operation, dim)
        chosen = resolve(requested, *kind)
        part = "" if len(operations) == 1 else f", {operation}"
        lines += [header(name + part, x, chosen, requested is not None)]
        lines += others(chosen, {other: backend.refusal(*kind) for other, backend in BACKENDS.items()}, SUMMARIES)
    return lines


def header(name: str, x: Tensor, chosen: str, asked: bool, why: str = ORDER) -> str:
    """The line that says what is chosen."""
    return f"{name} on {x.device}, {x.dtype}: {chosen} ({'asked for' if asked else why})"


def others(chosen: str, refusals: Mapping[str, str | None], summaries: Mapping[str, str] | None = None) -> list[str]:
    """A line for each of those that were not chosen, with why they can't serve; None where they could."""
    left = {name: reason for name, reason in refusals.items() if name != chosen.partition(":")[0]}
    able = {name: f"could serve, {summaries[name]}" if summaries else "could serve" for name in left}
    return [f"  {name}: {reason or able[name]}" for name, reason in left.items()]


def arguments(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, as the call would have them.

    Raises:
        TypeError: There is no such function or no such argument.
    """
    if not hasattr(fn, "explained_by"):
        public_name(fn)
    return dict(inspect.signature(fn).bind_partial(*args, **kwargs).arguments)


def first_tensor(name: str, given: Mapping[str, Any]) -> Tensor:
    """The tensor whose kind decides.

    Raises:
        TypeError: There is none.
    """
    found = next((value for value in given.values() if isinstance(value, Tensor)), None)
    if found is None:
        raise TypeError(f"explain: no tensor among the arguments of {name}")
    return found


def public_name(fn: Callable[..., Any]) -> str:
    """The key of CALLED_FOR of a function.

    Raises:
        TypeError: It has none.
    """
    short, module = getattr(fn, "__name__", None) or type(fn).__name__, str(getattr(fn, "__module__", ""))
    name = f"drift.{short}" if module.startswith("gwf_fast.drift.") else short
    if name not in CALLED_FOR or not _is_ours(fn):
        raise TypeError(
            f"fn must be a function that a backend serves, such as gwf_fast.kernel_sum, got {module}.{short};"
            f" known are {', '.join(CALLED_FOR)}; besides networks of gwf_fast.nn, and JKOFlow.run and .step"
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
