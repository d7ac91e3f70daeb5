"""Which backend serves what. A table to read, and the only place that decides."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .adapt import adapt

_FLOATS = (torch.float32, torch.float64)
_HALVES = (torch.float16, torch.bfloat16)


class Backend(NamedTuple):
    """A row of the table: a module with the functions of ``kernels/reference.py``, and what it serves."""

    name: str
    devices: tuple[str, ...] | None  # None: any
    dtypes: tuple[torch.dtype, ...]
    summary: str
    unbatched: bool = False  # whether its functions do without a batch dimension, and sums without channels
    formulas: bool = False  # whether it can evaluate a formula of the user's own
    requires: str = ""  # a module that it needs
    remedy: str = ""  # what to do where that is missing
    operations: tuple[str, ...] | None = None  # what it was written for; None: everything
    largest_dim: int | None = None  # coordinates; None: any number
    derivatives: str = ""  # the backend that has the derivatives of its operations, where it has none
    precisions: tuple[str, ...] = ()  # what may follow its name, as in "triton:tf32"

    @property
    def module(self) -> str:
        """Where its functions are."""
        return "gwf_fast.kernels." + ("reference" if self.name == "torch" else self.name)

    def refusal(
        self,
        device: str,
        dtype: torch.dtype,
        formula: bool = False,
        operation: str | None = None,
        dim: int | None = None,
    ) -> str | None:
        """Every reason why this backend cannot serve a call of this kind; None if it can.

        Args:
            device: Type of the tensors' device.
            dtype: Type of the tensors.
            formula: Whether the kernel is a formula of the user's own.
            operation: What is to be computed; None asks for every operation.
            dim: Number of coordinates; None is any.
        """
        reasons = []
        interpreted = self.name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        if self.devices is not None and device not in self.devices and not interpreted:
            reasons.append(f"serves {' and '.join(self.devices)} tensors, not {device}")
        if dtype not in self.dtypes:
            reasons.append(f"does not serve {dtype}, but {', '.join(str(known) for known in self.dtypes)}")
        if formula and not self.formulas:
            reasons.append("does not evaluate formulas of the user's own (gwf_fast.Radial); keops and torch do")
        if self.operations is not None and operation not in self.operations:
            reasons.append(f"serves {', '.join(self.operations)} only, not {operation or 'all that this needs'}")
        if self.largest_dim is not None and (dim or 0) > self.largest_dim:
            reasons.append(f"serves at most {self.largest_dim} coordinates, not {dim}")
        absence = self.absence()
        return "; ".join(reasons + ([absence] if absence else [])) or None

    def absence(self) -> str | None:
        """Why this backend is not in this installation; None if it is."""
        if not importlib.util.find_spec(self.module):
            return "not part of this version"
        if self.requires and not importlib.util.find_spec(self.requires):
            return f"needs {self.requires}: {self.remedy}"
        return None


# The table: who serves what.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("cpp", ("cpu",), _FLOATS, "compiled C++ for AVX-512, AVX2 or any CPU", unbatched=True),
        Backend(
            "cuda",
            ("cuda",),
            _FLOATS + _HALVES,
            "compiled CUDA: sums, gradients and interactions of at most 4 coordinates; their derivatives are Triton's",
            requires="gwf_fast._cuda",
            remedy="install with GWF_FAST_CUDA=1 in the environment and nvcc on the path",
            operations=("sum", "gradient", "interaction"),
            largest_dim=4,
            derivatives="triton",
        ),
        Backend(
            "triton",
            ("cuda",),
            _FLOATS + _HALVES,
            "Triton",
            requires="triton",
            remedy="pip install triton",
            precisions=("ieee", "tf32x3", "tf32"),
        ),
        Backend(
            "keops",
            ("cpu", "cuda"),
            _FLOATS,
            "KeOps, for user-written formulas",
            formulas=True,
            requires="pykeops",
            remedy="pip install pykeops",
        ),
        Backend("torch", None, _FLOATS + _HALVES, "plain PyTorch, chunked: the reference", formulas=True),
    )
}

_AUTOMATIC = {
    "interaction": ("cpp", "cuda", "triton", "torch"),
    "formula": ("keops", "torch"),
    "": ("cpp", "triton", "torch"),
}
"""Who is asked in turn, by operation: the first that can serve does."""


# Plain dicts: torch.compile warns of functools.cache.
_RESOLVED: dict[tuple[Any, ...], str] = {}
_LOADED: dict[str, ModuleType] = {}
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {}


def resolve(
    requested: str | None,
    device: torch.device,
    dtype: torch.dtype,
    formula: bool = False,
    operation: str | None = None,
    dim: int | None = None,
) -> str:
    """The name of the backend that serves a call of this kind.

    Args:
        requested: None picks; a name asks for a backend, "triton:tf32" for one of its precisions.
        device: Where the tensors are.
        dtype: Their type.
        formula: Whether the kernel is a formula of the user's own.
        operation: "sum", "gradient" or "interaction", which all backends have; None is every operation.
        dim: Number of coordinates.

    Raises:
        ValueError: If the requested backend does not exist or can't serve; says every reason.
    """
    key = (requested, device, dtype, formula, operation, dim)
    name = _RESOLVED.get(key)
    if name is None:
        name = _RESOLVED[key] = _choose(requested, device.type, dtype, formula, operation, dim)
    return name


def _choose(requested: str | None, device: str, dtype: torch.dtype, *kind: Any) -> str:
    if requested is None:
        return _first(device, dtype, *kind)
    name, _, precision = requested.partition(":")
    if name not in BACKENDS:
        raise ValueError(f"backend must be None or one of {', '.join(BACKENDS)}, got {requested!r}")
    known = BACKENDS[name].precisions
    if ":" in requested and precision not in known:
        choice = ", ".join(f"{name}:{each}" for each in known)
        expected = f"expected one of {choice}" if known else f"{name} has no choice of precision"
        raise ValueError(f"backend: got {requested!r}, {expected}")
    reason = BACKENDS[name].refusal(device, dtype, *kind)
    if reason is not None:
        raise ValueError(f"backend={requested!r} can't serve {dtype} tensors on {device}: {reason}")
    return requested


def _order(formula: bool, operation: str | None) -> tuple[str, ...]:
    return _AUTOMATIC["formula"] if formula else _AUTOMATIC.get(operation or "", _AUTOMATIC[""])


def _first(device: str, dtype: torch.dtype, formula: bool, operation: str | None, dim: int | None) -> str:
    names = _order(formula, operation)
    chosen = next(n for n in names if BACKENDS[n].refusal(device, dtype, formula, operation, dim) is None)
    if device == "cuda" and chosen == "torch" and not formula:  # it works, and is slow: not in silence
        missing = BACKENDS["triton"].absence() or f"does not serve {dtype}"
        warnings.warn(f"gwf_fast runs plain PyTorch on this GPU: triton {missing}", stacklevel=4)
    return chosen


def load(name: str) -> ModuleType:
    """The module of a backend, imported on first use.

    A backend that is there but does not import (an extension that was not built) is an error, never a reason
    to fall back to a slower one.
    """
    module = _LOADED.get(name)
    if module is None:
        module = _LOADED[name] = importlib.import_module(BACKENDS[name].module)
    return module


def function(backend: str, name: str) -> Callable[..., Any]:
    """A backend's function, which takes tensors with or without the batch dimension, and weights without channels."""
    found = _FUNCTIONS.get((backend, name))
    if found is None:
        owner, _, precision = backend.partition(":")
        if not hasattr(load(owner), name) and BACKENDS[owner].derivatives:
            owner = BACKENDS[owner].derivatives
        found = getattr(load(owner), name)
        if precision:
            found = functools.partial(found, precision=precision)
        if not BACKENDS[owner].unbatched:
            found = adapt(found, name)
        _FUNCTIONS[backend, name] = found
    return found


def optional(backend: str, name: str) -> Callable[..., Any] | None:
    """A function that only some backends have, as it is; None where this one has not."""
    owner, _, precision = backend.partition(":")
    found = getattr(load(owner), name, None)
    return functools.partial(found, precision=precision) if found and precision else found


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
        fn: A function of this package.
        *args: Its arguments.
        **kwargs: Its keyword arguments; ``backend`` counts.

    Returns:
        A few lines to print.
    """
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not tensors:
        raise TypeError(f"explain: no tensor among the arguments of {getattr(fn, '__name__', fn)}")
    x = tensors[0]
    name = getattr(fn, "__name__", str(fn))
    kind = (
        getattr(kwargs.get("kernel"), "has_formula", False),
        _OPERATION_OF.get(name),
        x.shape[-1] if x.ndim else None,
    )
    requested = kwargs.get("backend")
    chosen = resolve(requested, x.device, x.dtype, *kind)
    asked = "asked for" if requested is not None else "first in the order of preference that can serve"
    lines = [f"{name} on {x.device}, {x.dtype}: {chosen} ({asked})"]
    for other, backend in BACKENDS.items():
        if other != chosen.partition(":")[0]:
            reason = backend.refusal(x.device.type, x.dtype, *kind)
            lines.append(f"  {other}: {reason or f'could serve, {backend.summary}'}")
    return "\n".join(lines)


_OPERATION_OF = {
    "kernel_sum": "sum",
    "kernel_gradient": "gradient",
    "interaction_energy": "interaction",
    "interaction_velocity": "interaction",
    "forward_step": "interaction",
}
"""What the functions for people ask of a backend; the others need everything."""
