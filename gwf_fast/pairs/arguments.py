"""What the reductions ask of their arguments, and what becomes of those that do not agree yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gwf_fast import ops
from gwf_fast.ops.modes import PLAIN, is_concrete
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.alignment import Companion, aligned, goes_into
from gwf_fast.pairs.kernels import Kernel
from gwf_fast.pairs.outputs import written
from gwf_fast.pairs.validation import check_floating, check_lengths, check_pair, check_points


def agree(
    x: Tensor, y: Tensor, companions: Sequence[Companion], problems: Sequence[int] = (), *, exclude_self: bool
) -> bool:
    """Whether all is of one dtype and for the same problems, as operators want it.

    Args:
        x: Targets [*B, N, D].
        y: Sources [*B, M, D].
        companions: What goes with the sources.
        problems: A batch shape that something else has.
        exclude_self: Whether targets are sources.

    Raises:
        ValueError, TypeError: If that is not to be mended.
    """
    for name, points in (("x", x), ("y", y)):
        if type(points) not in PLAIN or points.is_nested:
            check_points(name, points)
    check_same_set(x, y, exclude_self)
    batch, dtype = x.shape[:-2], x.dtype
    if dtype is not y.dtype or batch != y.shape[:-2] or (problems and not goes_into(problems, batch)):
        return False
    return all(_goes_with(each, y) for each in companions)


def check_kernel(kernel: Kernel) -> None:
    """A kernel is one."""
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel must be a kernel such as gwf_fast.Gaussian(1.0), got {type(kernel).__name__}")


def check_same_set(x: Tensor, y: Tensor, exclude_self: bool) -> None:
    """With ``exclude_self`` targets are sources."""
    if exclude_self and x.shape != y.shape:
        raise ValueError(
            f"exclude_self=True needs x and y to be the same set, got x {list(x.shape)} and y {list(y.shape)}"
        )


def _goes_with(companion: Companion, y: Tensor) -> bool:
    value, channels = companion.value, companion.channels
    if value is None:
        return True
    check_floating(companion.name, value)
    if value.dtype is not y.dtype or value.device != y.device:
        return False
    shape, expected = value.shape, y.shape[:-1]
    return (channels != "all" and shape == expected) or (channels != "none" and shape[:-1] == expected)


def rerouted(
    again: Callable[..., Tensor],
    x: Tensor,
    y: Tensor,
    companions: Sequence[Companion],
    kernel: Kernel,
    out: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
) -> Tensor:
    """A call with ``out``, or whose arguments do not agree: made of one without."""
    lengths = {"x_lengths": x_lengths, "y_lengths": y_lengths}
    values = [each.value for each in companions]
    if out is not None:
        return written(out, lambda: again(x, y, *values, **lengths), kernel, x, y, *values)
    result: Tensor = aligned(again, x, y, companions, kernel.batch, **lengths)
    return result


def check_reduction(
    x: Tensor,
    y: Tensor,
    kernel: Kernel,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    backend: BackendName | None,
    operation: str,
) -> str:
    """Points and lengths of a reduction whose arguments agree. Returns the name of the backend."""
    check_pair(x, y)
    check_sizes(x, y, x_lengths, y_lengths)
    return ops.resolve(backend, x.device, x.dtype, kernel.has_formula, operation, x.shape[-1])


def check_sizes(x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None) -> None:
    """Lengths of ragged sets, with their values where these may be looked at."""
    if x_lengths is not None:
        check_lengths("x_lengths", x_lengths, x, is_readable_on_host(x_lengths))
    if y_lengths is not None:
        check_lengths("y_lengths", y_lengths, y, is_readable_on_host(y_lengths))


def is_readable_on_host(lengths: Any) -> bool:
    """Whether values may be looked at: elsewhere than on the CPU it would wait, and while tracing there are none."""
    return isinstance(lengths, Tensor) and is_concrete(lengths) and lengths.is_cpu


def check_logarithm(kernel: Kernel) -> None:
    """A kernel has a logarithm."""
    if not kernel.positive:
        raise ValueError(f"kernel must be positive in every term to have a logarithm, got {kernel!r}")
