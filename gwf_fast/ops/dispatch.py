"""The choice of a backend for a call, by the table of ``table.py``: the only place that decides."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import torch

from gwf_fast.ops.adapt import adapt
from gwf_fast.ops.sharding import Sharded
from gwf_fast.ops.table import AUTOMATIC, BACKENDS, OPERATIONS, BackendName

# Plain dicts: torch.compile warns of functools.cache.
_RESOLVED: dict[tuple[Any, ...], BackendName] = {}
_LOADED: dict[str, ModuleType] = {}
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {}


def resolve(
    requested: str | None,
    device: torch.device,
    dtype: torch.dtype,
    formula: bool = False,
    operation: str | None = None,
    dim: int | None = None,
) -> BackendName:
    """The name of the backend that serves a call of this kind.

    Args:
        requested: None picks; a name asks for a backend, "triton:tf32" for one of its precisions.
        device: Where the tensors are.
        dtype: Their type.
        formula: Whether the kernel is a formula of the user's own.
        operation: A key of OPERATIONS; None is all that the pairwise functions need.
        dim: Number of coordinates, or the widest layer.

    Raises:
        ValueError: If the requested backend does not exist or can't serve; says every reason.
    """
    key = (requested, device, dtype, formula, operation, dim)
    name = _RESOLVED.get(key)
    if name is None:
        if isinstance(requested, Sharded):
            return cast(BackendName, requested.resolved(device, dtype, formula, operation, dim))
        name = _choose(requested, device, dtype, formula, operation, dim)
        if not torch.compiler.is_compiling():  # a trace may not change what is outside of it
            _RESOLVED[key] = name
    return name


def _choose(requested: str | None, device: torch.device, dtype: torch.dtype, *kind: Any) -> BackendName:
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
        raise ValueError(f"backend={requested!r} can't serve {dtype} tensors on {device.type}: {reason}")
    return cast(BackendName, requested)


# torch.compile takes the answer as a constant and does not trace the search for installed packages, which older
# versions can't. (What torch.compiler.assume_constant_result does, at the price of importing the compiler.)
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _first(
    device: torch.device, dtype: torch.dtype, formula: bool, operation: str | None, dim: int | None
) -> BackendName:
    names = AUTOMATIC["formula"] if formula else AUTOMATIC.get(operation or "", AUTOMATIC[""])
    chosen = next(n for n in names if BACKENDS[n].refusal(device, dtype, formula, operation, dim) is None)
    if device.type == "cuda" and chosen == "torch" and not formula:  # it works, and is slow: not in silence
        triton = BACKENDS["triton"]
        if triton.limit(dtype, formula, operation, None) is None:  # what it can't do anywhere is in docs/gpu.md
            reason = triton.refusal(device, dtype, formula, operation, dim)
            warnings.warn(f"gwf_fast runs plain PyTorch on this GPU: triton {reason}", stacklevel=4)
    return chosen


def load(name: str, operation: str | None = None) -> ModuleType:
    """The module of a backend with its pairwise functions, or those of an operation, imported on first use.

    A backend that is there but does not import (an extension that was not built) is an error, never a reason
    to fall back to a slower one.
    """
    key = name if operation is None else f"{name} {operation}"
    module = _LOADED.get(key)
    if module is None:
        path = (
            BACKENDS[name].module
            if operation is None
            else f"gwf_fast.kernels.{OPERATIONS[operation].served_by[name].module}"
        )
        module = _LOADED[key] = importlib.import_module(path)
    return module


def implementation(operation: str, device: torch.device, dtype: torch.dtype, dim: int | None = None) -> ModuleType:
    """The module with the functions of an operation, for tensors of this kind."""
    return load(resolve(None, device, dtype, False, operation, dim), operation)


def special(backend: str, operation: str) -> ModuleType | None:
    """The module that has an operation as one; None where this backend computes it from others."""
    name = backend.partition(":")[0]
    return load(name, operation) if name in OPERATIONS[operation].served_by else None


def function(backend: str, name: str) -> Callable[..., Any]:
    """A backend's function, which takes tensors with or without the batch dimension, and weights without channels."""
    found = _FUNCTIONS.get((backend, name))
    if found is None:
        if isinstance(backend, Sharded):
            return backend.function(name)
        owner, _, precision = backend.partition(":")
        if not hasattr(load(owner), name) and BACKENDS[owner].derivatives:
            owner = BACKENDS[owner].derivatives
            absence = BACKENDS[owner].absence()
            if absence is not None:
                raise ValueError(f"backend={backend!r} can't serve {name}: it is {owner}'s, which {absence}")
        found = getattr(load(owner), name)
        if precision:
            found = functools.partial(found, precision=precision)
        if not BACKENDS[owner].unbatched:
            found = adapt(found, name)
        _FUNCTIONS[backend, name] = found
    return found


def optional(backend: str, name: str) -> Callable[..., Any] | None:
    """A function that only some backends have, as it is; None where this one has not."""
    if isinstance(backend, Sharded):
        return None
    owner, _, precision = backend.partition(":")
    found = getattr(load(owner), name, None)
    return functools.partial(found, precision=precision) if found and precision else found
