"""NumPy arrays in the place of tensors: one place, which ``entry`` asks where a call has met one.

Arrays come in without a copy where PyTorch can read their memory, and results go out as arrays where everything that
came was one. A tensor among the arguments makes it PyTorch's call: results are tensors then.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ARRAYS = (np.ndarray, np.memmap)
"""Not their other subclasses, whose masks, units and products tensors do not have."""


def has_array(values: Iterable[Any]) -> bool:
    """Whether there is an array among arguments, in lists of them, or in results given back as a start."""
    return any(_is_array(value) or (_is_nested(value) and has_array(_parts(value))) for value in values)


def from_outside(level: int = 2) -> bool:
    """Whether the caller's caller is not of this package, in which functions pass each other tensors."""
    return sys._getframe(level).f_globals.get("__name__", "").partition(".")[0] != "gwf_fast"


def with_tensors(function: Callable[..., Any], call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """``call`` with tensors in the place of arrays, and its results as the arguments were.

    Args:
        function: Whose arguments these are, for what is said of them.
        call: What is called.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Raises:
        TypeError: If an array has no counterpart in PyTorch.
    """
    crossing = _Crossing()
    names = list(inspect.signature(function).parameters)
    names += [f"argument {k}" for k in range(len(names), len(args))]
    args = [crossing.inward(name, value) for name, value in zip(names, args)]
    kwargs = {name: crossing.inward(name, value) for name, value in kwargs.items()}
    result = call(*args, **kwargs)
    return result if crossing.mixed else crossing.outward(result)


def as_tensor(name: str, array: np.ndarray) -> Tensor:
    """An array as a tensor, on its memory where that is possible: not where strides are negative, or it is read-only.

    Raises:
        TypeError: If PyTorch has no such numbers.
    """
    plain = np.asarray(array)
    if not plain.dtype.isnative:
        plain = plain.astype(plain.dtype.newbyteorder("="))
    if not plain.flags.writeable or any(s < 0 or s % plain.itemsize for s in plain.strides):
        plain = plain.copy()
    try:
        return torch.from_numpy(plain)
    except TypeError:
        raise TypeError(f"{name} must have numbers that PyTorch has, such as float64, got {array.dtype}") from None


def _is_array(value: Any) -> bool:
    return type(value) in _ARRAYS and value.ndim > 0  # without dimensions they are numbers


def _is_nested(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    return [getattr(value, each.name) for each in dataclasses.fields(value)]


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same list, tuple or dataclass of what ``change`` makes of its parts; itself where that is nothing new."""
    before = _parts(value)
    after = [change(part) for part in before]
    if all(new is old for new, old in zip(after, before)):
        return value
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
        return dataclasses.replace(value, **dict(zip(names, after)))  # type: ignore[type-var]
    return type(value)(*after) if hasattr(value, "_fields") else type(value)(after)


class _Crossing:
    """One call's way into PyTorch and back: what is one array is one tensor, and comes back as itself."""

    def __init__(self) -> None:
        self.mixed = False
        self._known: dict[int, tuple[np.ndarray, Tensor]] = {}

    def inward(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            self.mixed = True
            return value
        if _is_array(value):
            return self._tensor(name, value)
        return _mapped(value, lambda part: self.inward(name, part)) if _is_nested(value) else value

    def _tensor(self, name: str, array: np.ndarray) -> Tensor:
        if id(array) not in self._known:
            tensor = as_tensor(name, array)
            if name == "out" and not np.shares_memory(array, tensor.numpy()):
                raise ValueError(
                    "out must be a writable array of the machine's byte order, without negative strides, got"
                    f" strides {array.strides}"
                )
            self._known[id(array)] = array, tensor
        return self._known[id(array)][1]

    def outward(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return _mapped(value, self.outward) if _is_nested(value) else value
        if value.requires_grad:  # of a bandwidth or a network: an array would lose it
            return value
        for array, tensor in self._known.values():
            if value is tensor:
                return array
        return value.numpy()[()]  # numbers as NumPy's, not arrays without dimensions
