"""Which backend serves what. A table to read, and the only place that decides."""

from __future__ import annotations

import importlib
import importlib.util
import os
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

    @property
    def module(self) -> str:
        """Where its functions are."""
        return "gwf_fast.kernels." + ("reference" if self.name == "torch" else self.name)

    def refusal(self, device: str, dtype: torch.dtype, formula: bool = False) -> str | None:
        """Why this backend cannot serve tensors, and a kernel, of this kind; None if it can."""
        interpreted = self.name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        if self.devices is not None and device not in self.devices and not interpreted:
            return f"serves {' and '.join(self.devices)} tensors, not {device}"
        if dtype not in self.dtypes:
            return f"does not serve {dtype}"
        if formula and not self.formulas:
            return "does not evaluate formulas of the user's own (gwf_fast.Radial)"
        return self.absence()

    def absence(self) -> str | None:
        """Why this backend is not in this installation; None if it is."""
        if not importlib.util.find_spec(self.module):
            return "not part of this version"
        if self.requires and not importlib.util.find_spec(self.requires):
            return f"needs {self.requires}: {self.remedy}"
        return None


# In order of preference: the first that serves a call gets it.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("cpp", ("cpu",), _FLOATS, "compiled C++ for AVX-512, AVX2 or any CPU", unbatched=True),
        Backend(
            "cuda",
            ("cuda",),
            _FLOATS + _HALVES,
            "compiled CUDA: sums and gradients of at most 4 coordinates",
            requires="gwf_fast._cuda",
            remedy="install with GWF_FAST_CUDA=1 in the environment and nvcc on the path",
        ),
        Backend("triton", ("cuda",), _FLOATS + _HALVES, "Triton", requires="triton", remedy="pip install triton"),
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

_AUTOMATIC = {False: ("cpp", "triton", "torch"), True: ("keops", "torch")}
"""Who is asked in turn, without and with a formula of the user's own."""


# Plain dicts: torch.compile warns of functools.cache.
_RESOLVED: dict[tuple[str | None, torch.device, torch.dtype, bool], str] = {}
_LOADED: dict[str, ModuleType] = {}
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {}


def resolve(requested: str | None, device: torch.device, dtype: torch.dtype, formula: bool = False) -> str:
    """The name of the backend that serves tensors of this kind.

    Raises:
        ValueError: If the requested backend does not exist or can't serve; says why.
    """
    name = _RESOLVED.get((requested, device, dtype, formula))
    if name is None:
        name = _RESOLVED[requested, device, dtype, formula] = _choose(requested, device.type, dtype, formula)
    return name


def _choose(requested: str | None, device: str, dtype: torch.dtype, formula: bool) -> str:
    if requested is None:
        return next(name for name in _AUTOMATIC[formula] if BACKENDS[name].refusal(device, dtype, formula) is None)
    if requested not in BACKENDS:
        raise ValueError(f"backend must be None or one of {', '.join(BACKENDS)}, got {requested!r}")
    reason = BACKENDS[requested].refusal(device, dtype, formula)
    if reason is not None:
        raise ValueError(f"backend={requested!r} can't serve {dtype} tensors on {device}: {reason}")
    return requested


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
        found = getattr(load(backend), name)
        if not BACKENDS[backend].unbatched:
            found = adapt(found, name)
        _FUNCTIONS[backend, name] = found
    return found


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
    device, dtype = tensors[0].device, tensors[0].dtype
    formula = getattr(kwargs.get("kernel"), "has_formula", False)
    chosen = resolve(kwargs.get("backend"), device, dtype, formula)
    asked = "asked for" if kwargs.get("backend") is not None else "first in the order of preference that can serve"
    lines = [f"{fn.__name__} on {device}, {dtype}: {chosen} ({asked})"]
    for name, backend in BACKENDS.items():
        if name != chosen:
            reason = backend.refusal(device.type, dtype, formula)
            lines.append(f"  {name}: {reason or f'could serve, {backend.summary}'}")
    return "\n".join(lines)
