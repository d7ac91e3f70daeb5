"""The entry of the functions for people: PyTorch's ambient modes, autocast and inference mode, and NumPy's arrays.

Sums over pairs cancel, so that half the digits of float32 would be none of the result's: under autocast they take and
give float32. Forces that are gradients need autograd, which inference mode switches off for good.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled
from torch.compiler import is_dynamo_compiling

from gwf_fast.ops.arrays import from_outside, has_array, with_tensors
from gwf_fast.ops.dispatch import resolve
from gwf_fast.ops.sharding import are_shards, of_shards

P = ParamSpec("P")
T = TypeVar("T")


@overload
def entry(function: Callable[P, T]) -> Callable[P, T]: ...
@overload
def entry(
    *, differentiates: bool = False, direct: Callable[..., Any] | None = None
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def entry(function: Any = None, *, differentiates: bool = False, direct: Callable[..., Any] | None = None) -> Any:
    """Make a function that people call the same under autocast, in inference mode if it asks autograd, and of arrays.

    NumPy arrays are looked for where a call has failed, since validation refuses all but tensors: calls of tensors pay
    nothing. Functions that draw are asked before, for what is drawn is gone. Methods do not take arrays. DTensors, and
    calls with a ``group=``, are looked for in the same places.

    Args:
        function: Takes tensors as arguments, in lists and tuples of them, or in objects with ``fitted(change)``.
        differentiates: Whether it forms gradients by itself.
        direct: Its short way (``ops/direct.py``), which is tried first.
    """
    if function is None:
        return functools.partial(entry, differentiates=differentiates, direct=direct)

    # Calls are of a few microseconds, and a layer is half of one: it is passed by where no former argument is given.
    # A tuple: torch.compile of torch 2.6 has no guard for sets in a closure.
    former: tuple[str, ...] = getattr(function, "former_names", ())
    plain = getattr(function, "without_former", function)
    takes_arrays = "." not in function.__qualname__ and not function.__name__.startswith("_")
    draws = takes_arrays and "generator" in inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not is_dynamo_compiling() and direct is not None:
            found = direct(*args, **kwargs)
            if found is not None:
                return found
        if draws and are_shards(args, kwargs) and from_outside() and not torch.compiler.is_compiling():
            return of_shards(function, args, kwargs)
        if draws and not torch.compiler.is_compiling() and has_array((*args, *kwargs.values())) and from_outside():
            return with_tensors(function, call, args, kwargs)
        try:
            if not _is_any_autocast_enabled() and not (differentiates and _is_inference_mode()):
                for name in former:
                    if name in kwargs:
                        return function(*args, **kwargs)
                return plain(*args, **kwargs)
            with plain_modes(differentiates):
                args, kwargs = _fitted(args, differentiates), _fitted(kwargs, differentiates)
                return function(*args, **kwargs)
        except Exception:
            shards = takes_arrays and are_shards(args, kwargs)
            arrays = takes_arrays and not shards and has_array((*args, *kwargs.values()))
            if not (shards or arrays) or not from_outside():
                raise
        if shards:
            return of_shards(function, args, kwargs)
        return with_tensors(function, call, args, kwargs)

    return call


@contextlib.contextmanager
def plain_modes(differentiates: bool = True) -> Iterator[None]:
    """Without autocast and, where something is to be differentiated, without inference mode."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if differentiates and _is_inference_mode():
            stack.enter_context(torch.inference_mode(False))
        yield


HALVES = (torch.float16, torch.bfloat16)


def widens(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function compute in float32 on CPUs where it is called with halves, which do not hold what it forms.

    Such as a mean over h^2, or a power of a density. Tensors of one type come in, and go out in it. It stands next to
    the function: ``entry`` passes by what is between.
    """
    assert not hasattr(function, "without_former"), f"widens goes next to {function.__name__}"

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].dtype not in HALVES:  # the usual case
            return function(*args, **kwargs)
        if kwargs.get("out") is not None:  # written by the function, from a call of itself without
            return function(*args, **kwargs)
        dtype, wide, named = widened(args, kwargs)
        out: Any = function(*wide, **named)
        if dtype is None:
            return out
        if isinstance(out, Tensor):
            return out.to(dtype)
        # a named tuple of tensors, indices among them
        return type(out)(*(value.to(dtype) if value.is_floating_point() else value for value in out))

    call.widens = True  # type: ignore[attr-defined]  # for explain
    return call


def widened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.dtype | None, list[Any], dict[str, Any]]:
    """The arguments in float32 where all tensors are of one type of halves on a CPU, and that type; else None."""
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.is_floating_point()]
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) != 1 or not dtypes.issubset(HALVES) or not all(t.is_cpu for t in tensors):
        return None, list(args), kwargs
    (dtype,) = dtypes
    if kwargs.get("backend") is not None:
        resolve(kwargs["backend"], tensors[0].device, dtype)  # which may not serve halves
    wide = {id(t): t.float() for t in tensors}  # what is one tensor stays one

    def fit(value: Any) -> Any:  # torch.compile knows the identity of tensors, and not of every number
        return wide.get(id(value), value) if isinstance(value, Tensor) else value

    return dtype, [fit(value) for value in args], {name: fit(value) for name, value in kwargs.items()}


def _is_inference_mode() -> bool:
    """Whether it is on; no where torch.compile traces, to which the question is a break of the graph."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _fitted(value: Any, differentiates: bool) -> Any:
    """Tensors as autocast gives them to functions that want float32; copies of those made in inference mode."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dtype in HALVES:
            return value.float()
        return value.clone() if differentiates and value.is_inference() else value
    if isinstance(value, dict):
        return {name: each if name == "out" else _fitted(each, differentiates) for name, each in value.items()}
    if hasattr(value, "fitted"):
        return value.fitted(lambda each: _fitted(each, differentiates))
    if type(value) in (list, tuple):
        return type(value)(_fitted(each, differentiates) for each in value)
    return value
