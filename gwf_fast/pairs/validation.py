"""What bad input is told: one line that names the argument, what came and what was expected."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import torch
from torch import Tensor

from gwf_fast.ops.modes import PLAIN, is_concrete, is_eager, is_readable, is_strided

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def as_integer(name: str, value: Any, least: int = 1) -> int:
    """An integer of any kind, of Python, NumPy, or a tensor without dimensions, as Python's: JSON knows no other.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is too small.
    """
    if type(value) is not int:
        single = value.item() if _is_single(value) else value
        if isinstance(single, (bool, Tensor)) or not isinstance(single, numbers.Integral):
            raise TypeError(f"{name} must be {_integers(least)}, got {_shown(value)}")
        value = operator.index(single)
    if value < least:
        raise ValueError(f"{name} must be {_integers(least)}, got {value}")
    return value


def _integers(least: int) -> str:
    return "a positive integer" if least == 1 else f"an integer >= {least}"


def as_number(
    name: str,
    value: Any,
    expected: str = "a finite number",
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> float:
    """A real number of any kind, of Python, NumPy, or a tensor without dimensions, as Python's float.

    Args:
        name: Of the argument.
        value: What came.
        expected: What the message says.
        above: What it must exceed.
        least: What it must not fall below.
        below: What it must not reach.
        most: What it must not exceed; infinity admits every finite number.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is out of this range.
    """
    number = value
    if type(value) is not float:  # the usual case
        number = value.item() if _is_single(value) else value
        if not isinstance(number, numbers.Real) or isinstance(number, bool):
            raise TypeError(f"{name} must be {expected}, got {_shown(value)}")
        number = float(number)
    if not (above < number < below and least <= number <= most and number - number == 0):  # finite, as a trace can tell
        raise ValueError(f"{name} must be {expected}, got {number!r}")
    return number


def as_positive(name: str, value: Any) -> float:
    """A positive number, as :func:`as_number`."""
    return as_number(name, value, "a positive number", above=0)


def _is_single(value: Any) -> bool:
    """Whether it is a number as a tensor or array without dimensions, and no gradient would be lost in reading it."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.requires_grad
    return getattr(value, "shape", None) == () and hasattr(value, "item")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        graph = " that requires grad" if value.requires_grad else ""
        return f"a tensor of shape {list(value.shape)} and {value.dtype}{graph}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, (bool, int, float, str)) else type(value).__name__


def check_pair(x: Tensor, y: Tensor, y_name: str = "y") -> None:
    """Points x [*B, N, D] and y [*B, M, D] are of the same kind."""
    # The usual case first, with few attribute reads: it is on the path of every call.
    if (
        type(x) in PLAIN
        and type(y) in PLAIN
        and not torch.compiler.is_compiling()
        and x.layout is y.layout is torch.strided
        and not (x.is_nested or y.is_nested)
    ):
        dtype, shape, other = x.dtype, x.shape, y.shape
        if (
            dtype is y.dtype
            and dtype in _FLOATING
            and (rank := len(shape)) == len(other)
            and rank >= 2
            and shape[-1] == other[-1] > 0
            and (rank == 2 or shape[:-2] == other[:-2])
            and x.device == y.device
            and not x.is_meta
        ):
            return
    check_points("x", x)
    check_points(y_name, y)
    _check_same(y_name, y, x)
    if x.ndim == y.ndim and x.shape[:-2] == y.shape[:-2] and x.shape[-1] == y.shape[-1]:
        return
    if x.ndim != y.ndim or x.shape[:-2] != y.shape[:-2]:
        raise ValueError(
            f"{y_name} must have the batch dimensions of x, {list(x.shape[:-2])}, got shape {list(y.shape)}"
        )
    raise ValueError(f"{y_name} must have the dimension of x, D = {x.shape[-1]}, got shape {list(y.shape)}")


def check_points(name: str, points: Tensor) -> None:
    """Points are a floating tensor [*B, N, D]."""
    check_floating(name, points)
    if points.ndim < 2 or points.shape[-1] == 0:
        raise ValueError(f"{name} must have shape [*B, N, D] with D >= 1, got {list(points.shape)}")


def check_floating(name: str, value: Tensor) -> None:
    """A tensor of real numbers."""
    check_kind(name, value)
    if value.dtype not in _FLOATING:
        raise TypeError(f"{name} must have a floating dtype (float32, float64, float16, bfloat16), got {value.dtype}")


def check_kind(name: str, value: Tensor) -> None:
    """A dense tensor with memory of its own; while tracing or transforming, what stands for one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one: pad it, and give x_lengths or y_lengths")
    if not is_strided(value):
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}: give {name}.to_dense()")
    if is_eager() and type(value) not in PLAIN:
        raise TypeError(f"{name} must be a torch.Tensor itself, got its subclass {type(value).__name__}")
    if is_eager() and value.is_meta:
        raise TypeError(f"{name} must have values, got a meta tensor")


def _check_same(name: str, value: Tensor, x: Tensor) -> None:
    if value.dtype != x.dtype:
        raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {value.dtype}")
    check_device(name, value, x)


def check_device(name: str, value: Tensor, x: Tensor) -> None:
    """A tensor is where the points are."""
    if value.device != x.device:
        remedy = f"move it there, {name}.to(x.device)"
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {value.device}: {remedy}")


def check_companion(name: str, value: Tensor, y: Tensor, channels: bool, y_name: str = "y") -> None:
    """A quantity per source: [*B, M], or [*B, M, C] where channels are allowed."""
    if not (
        type(value) in PLAIN
        and is_strided(value)
        and not value.is_nested
        and value.dtype is y.dtype
        and value.device == y.device
    ):
        check_floating(name, value)
        _check_same(name, value, y)
    shape, expected = value.shape, y.shape[:-1]
    if shape == expected or (channels and value.ndim == y.ndim and shape[:-1] == expected):
        return
    wanted = f"{list(expected)}" + (f" or [{', '.join(map(str, [*expected, 'C']))}]" if channels else "")
    raise ValueError(f"{name} must have shape {wanted} to go with {y_name} {list(y.shape)}, got {list(value.shape)}")


def check_weights(name: str, weights: Tensor, points: Tensor, points_name: str) -> None:
    """Weights [*B, N] of points [*B, N, D]: finite, not negative, with a positive sum for each set."""
    check_companion(name, weights, points, channels=False, y_name=points_name)
    if not is_readable(weights):
        return
    if not (bool(torch.isfinite(weights).all()) and bool((weights >= 0).all()) and bool((weights.sum(-1) > 0).all())):
        got = f"values in {float(weights.min()):g}..{float(weights.max()):g}" if weights.numel() else "none"
        raise ValueError(f"{name} must be finite and not negative, with a positive sum for each set, got {got}")


def check_lengths(name: str, lengths: Tensor, points: Tensor, readable: bool) -> None:
    """Lengths [*B] of ragged sets that are padded to the shape of points [*B, N, D]; the values where readable."""
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64:
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"{name} must be an int64 tensor, got {got}")
    if points.ndim < 3 or lengths.shape != points.shape[:-2]:
        raise ValueError(
            f"{name} must have the batch shape {list(points.shape[:-2])} of its points (at least one batch"
            f" dimension), got {list(lengths.shape)}"
        )
    if lengths.device != points.device:
        where = f"{name} must be on the device of its points, {points.device}, got {lengths.device}"
        raise ValueError(f"{where}: move it there, {name}.to({str(points.device)!r})")
    if readable and lengths.numel():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > points.shape[-2]:
            raise ValueError(f"{name} must lie in 0..{points.shape[-2]}, got values in {low}..{high}")


def check_counts(name: str, lengths: Tensor | None, points: Tensor, least: int) -> None:
    """Ragged lengths in their range, each set with ``least`` members or, where that is allowed, none at all."""
    if lengths is None:
        return
    readable = isinstance(lengths, Tensor) and is_concrete(lengths) and lengths.is_cpu
    check_lengths(name, lengths, points, readable)
    if readable and (lengths < least).any():
        raise ValueError(f"{name} must be at least {least}, got {lengths.tolist()}")
