"""Which backend serves what. A table to read, and the only place that decides."""

from __future__ import annotations

import importlib
import importlib.util
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

    @property
    def module(self) -> str:
        """Where its functions are."""
        return "gwf_fast.kernels." + ("reference" if self.name == "torch" else self.name)

    def refusal(self, device: str, dtype: torch.dtype) -> str | None:
        """Why this backend cannot serve tensors of this kind; None if it can."""
        if self.devices is not None and device not in self.devices:
            return f"serves {' and '.join(self.devices)} tensors, not {device}"
        if dtype not in self.dtypes:
            return f"does not serve {dtype}"
        return None if importlib.util.find_spec(self.module) else "not part of this version"


# In order of preference: the first that serves a call gets it.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("cpp", ("cpu",), _FLOATS, "compiled C++ for AVX-512, AVX2 or any CPU", unbatched=True),
        Backend("cuda", ("cuda",), _FLOATS + _HALVES, "compiled CUDA"),
        Backend("triton", ("cuda",), _FLOATS + _HALVES, "Triton"),
        Backend("keops", ("cpu", "cuda"), _FLOATS, "KeOps, for user-written formulas"),
        Backend("torch", None, _FLOATS + _HALVES, "plain PyTorch, chunked: the reference"),
    )
}

_AUTOMATIC = ("cpp", "cuda", "triton", "torch")


# Plain dicts: torch.compile warns of functools.cache.
_RESOLVED: dict[tuple[str | None, torch.device, torch.dtype], str] = {}
_LOADED: dict[str, ModuleType] = {}
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {}


def resolve(requested: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the backend that serves tensors of this kind.

    Raises:
        ValueError: If the requested backend does not exist or can't serve; says why.
    """
    name = _RESOLVED.get((requested, device, dtype))
    if name is None:
        name = _RESOLVED[requested, device, dtype] = _choose(requested, device.type, dtype)
    return name


def _choose(requested: str | None, device: str, dtype: torch.dtype) -> str:
    if requested is None:
        return next(name for name in _AUTOMATIC if BACKENDS[name].refusal(device, dtype) is None)
    if requested not in BACKENDS:
        raise ValueError(f"backend must be None or one of {', '.join(BACKENDS)}, got {requested!r}")
    reason = BACKENDS[requested].refusal(device, dtype)
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
    if not importlib.util.find_spec(backend.module):
        return "not part of this version"
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
    chosen = resolve(kwargs.get("backend"), device, dtype)
    asked = "asked for" if kwargs.get("backend") is not None else "first in the order of preference that can serve"
    lines = [f"{fn.__name__} on {device}, {dtype}: {chosen} ({asked})"]
    for name, backend in BACKENDS.items():
        if name != chosen:
            lines.append(f"  {name}: {backend.refusal(device.type, dtype) or f'could serve, {backend.summary}'}")
    return "\n".join(lines)
