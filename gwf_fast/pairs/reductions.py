"""The four pairwise reductions: validate, resolve the backend, call the operator. None stores N x M values.

Shapes: targets x [*B, N, D], sources y [*B, M, D]; batch dimensions broadcast, and dtypes are promoted, as PyTorch's
do. All four are differentiable twice in every floating argument and in the kernel's parameters that are tensors,
streaming too. An empty sum is 0; its logarithm -inf.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gwf_fast import ops
from gwf_fast.ops import direct
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.modes import is_concrete
from gwf_fast.ops.sharding import count_of, spread
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.alignment import Companion
from gwf_fast.pairs.arguments import (
    agree,
    check_kernel,
    check_logarithm,
    check_reduction,
    is_readable_on_host,
    rerouted,
)
from gwf_fast.pairs.batches import flat, fold, fold_values, unfold
from gwf_fast.pairs.kernels import Kernel
from gwf_fast.pairs.methods import Method, as_method, fast_sum, method_options
from gwf_fast.pairs.passes import Scaled, centre_of, is_own, own_share, scaled_passes
from gwf_fast.pairs.ragged import exists, members


@entry(direct=direct.kernel_sum)
@method_options
@widens
def kernel_sum(
    x: Tensor,
    y: Tensor,
    weights: Tensor | None = None,
    *,
    kernel: Kernel,
    method: Method = "exact",
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    out: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """sum_j k(x_i, y_j) w_j.

    Args:
        x: Targets [*B, N, D].
        y: Sources [*B, M, D]. A batch dimension that one set lacks, or has once, is the same for all problems.
        weights: [*B, M], or several channels [*B, M, C] with all batch dimensions that x and y have together; None
            means ones.
        kernel: The kernel k, such as ``Gaussian(0.5)``.
        method: "exact", or one of ``gwf.NUFFT``, ``gwf.Sliced`` and ``gwf.Auto`` with options; "nufft", "sliced" and
            "auto" mean their defaults.
        exclude_self: Drop j = i; x and y are then the same set (N = M).
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M; sources beyond do not exist.
        out: Where the result goes, of its shape and dtype; not differentiable.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N], or [*B, N, C] where the weights have channels.

    Raises:
        ValueError, TypeError: If an argument does not fit the others, or the backend or method can't serve.
        AccuracyError: If transforms did not reach their tolerance.
    """
    companions = (Companion("weights", weights, "some"),)
    check_kernel(kernel)
    if out is not None or not agree(x, y, companions, kernel.batch, exclude_self=exclude_self):
        again = functools.partial(kernel_sum, kernel=kernel, method=method, exclude_self=exclude_self, backend=backend)
        return rerouted(again, x, y, companions, kernel, out, x_lengths, y_lengths)
    name = check_reduction(x, y, kernel, x_lengths, y_lengths, backend, "sum")
    if method != "exact" and (how := as_method(method, backend)) is not None:
        fast = fast_sum(0, x, y, weights, kernel, how, exclude_self, x_lengths, y_lengths, name)
        if fast is not None:
            return fast
    if is_own(x, y, exclude_self, x_lengths, y_lengths):
        apart = _sum(x, y, weights, kernel, True, x_lengths, y_lengths, name)
        own = _own_shares(x, x_lengths, kernel, name)
        own = own if weights is not None and weights.ndim == y.ndim else own[..., 0]
        return apart + members(own if weights is None else own * weights, x_lengths)
    return _sum(x, y, weights, kernel, exclude_self, x_lengths, y_lengths, name)


def _sum(
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    kernel: Kernel,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    name: str,
) -> Tensor:
    if x.ndim <= 3 and kernel.spec is not None:  # the usual case, without detours
        return ops.pair_sum(x, y, weights, kernel.spec, exclude_self, x_lengths, y_lengths, name)
    channels = weights is not None and weights.ndim == y.ndim
    others = (fold(weights) if channels else fold_values(weights),)
    parts = _evaluate(ops.pair_sum, x, y, others, kernel, exclude_self, x_lengths, y_lengths, name)
    return unfold(_total(each.multiplied(part) for each, part in parts), x)


@entry(direct=direct.kernel_gradient)
@method_options
@widens
def kernel_gradient(
    x: Tensor,
    y: Tensor,
    weights: Tensor | None = None,
    *,
    kernel: Kernel,
    method: Method = "exact",
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    out: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """sum_j w_j grad_x k(x_i, y_j): the gradient of ``kernel_sum`` in each target, as if x and y were distinct.

    Args:
        x: Targets [*B, N, D].
        y: Sources [*B, M, D]. A batch dimension that one set lacks, or has once, is the same for all problems.
        weights: [*B, M]; None means ones.
        kernel: The kernel k. A gradient that does not exist at x = y reads 0.
        method: "exact", or one of ``gwf.NUFFT``, ``gwf.Sliced`` and ``gwf.Auto`` with options; "nufft", "sliced" and
            "auto" mean their defaults.
        exclude_self: Drop j = i; x and y are then the same set (N = M).
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M; sources beyond do not exist.
        out: Where the result goes, of its shape and dtype; not differentiable.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, D].

    Raises:
        ValueError, TypeError: If an argument does not fit the others, or the backend or method can't serve.
        AccuracyError: If transforms did not reach their tolerance.
    """
    companions = (Companion("weights", weights),)
    check_kernel(kernel)
    if out is not None or not agree(x, y, companions, kernel.batch, exclude_self=exclude_self):
        again = functools.partial(
            kernel_gradient, kernel=kernel, method=method, exclude_self=exclude_self, backend=backend
        )
        return rerouted(again, x, y, companions, kernel, out, x_lengths, y_lengths)
    name = check_reduction(x, y, kernel, x_lengths, y_lengths, backend, "gradient")
    if method != "exact" and (how := as_method(method, backend)) is not None:
        fast = fast_sum(1, x, y, weights, kernel, how, exclude_self, x_lengths, y_lengths, name)
        if fast is not None:
            return fast
    if is_own(x, y, exclude_self, x_lengths, y_lengths):
        apart = _gradient(x, y, weights, kernel, True, x_lengths, y_lengths, name)
        return apart + members(own_share(x, x_lengths).expand_as(x), x_lengths)
    return _gradient(x, y, weights, kernel, exclude_self, x_lengths, y_lengths, name)


def _gradient(
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    kernel: Kernel,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    name: str,
) -> Tensor:
    if x.ndim <= 3 and kernel.spec is not None:
        return ops.pair_gradient(x, y, weights, kernel.spec, exclude_self, x_lengths, y_lengths, name)
    others = (fold_values(weights),)
    parts = _evaluate(ops.pair_gradient, x, y, others, kernel, exclude_self, x_lengths, y_lengths, name)
    return _total(each.slope(unfold(part, x)) for each, part in parts)


@entry(direct=direct.kernel_logsumexp)
@widens
def kernel_logsumexp(
    x: Tensor,
    y: Tensor,
    log_weights: Tensor | None = None,
    *,
    kernel: Kernel,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    out: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """Logarithm of sum_j w_j k(x_i, y_j), stable far from the data, where the sum itself underflows.

    Args:
        x: Targets [*B, N, D].
        y: Sources [*B, M, D]. A batch dimension that one set lacks, or has once, is the same for all problems.
        log_weights: log w [*B, M], -inf allowed; None means zeros.
        kernel: A kernel whose terms are all positive.
        exclude_self: Drop j = i; x and y are then the same set (N = M).
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give -inf.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M; sources beyond do not exist.
        out: Where the result goes, of its shape and dtype; not differentiable.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N]; -inf where there is nothing to sum.

    Raises:
        ValueError, TypeError: If an argument does not fit the others, or the backend can't serve.

    Note:
        Second derivatives are covariances of slopes, whose squares are 2 L / h^2 where L is the exponent: what is left
        of them has a relative error of L units of the last place. In float32 on CPUs they are computed in float64 where
        exponents exceed 4, as first derivatives are beyond 1e6.
    """
    companions = (Companion("log_weights", log_weights),)
    check_kernel(kernel)
    if out is not None or not agree(x, y, companions, kernel.batch, exclude_self=exclude_self):
        again = functools.partial(kernel_logsumexp, kernel=kernel, exclude_self=exclude_self, backend=backend)
        return rerouted(again, x, y, companions, kernel, out, x_lengths, y_lengths)
    name = check_reduction(x, y, kernel, x_lengths, y_lengths, backend, "logsumexp")
    check_logarithm(kernel)
    if x.ndim <= 3 and kernel.spec is not None:
        return ops.pair_logsumexp(x, y, log_weights, kernel.spec, exclude_self, x_lengths, y_lengths, name)
    others = (fold_values(log_weights),)
    parts = _evaluate(ops.pair_logsumexp, x, y, others, kernel, exclude_self, x_lengths, y_lengths, name)
    logs = [_raised(each, part) for each, part in parts]
    return unfold(logs[0] if len(logs) == 1 else torch.stack(logs).logsumexp(0), x)


@entry(direct=direct.kernel_average)
@widens
def kernel_average(
    x: Tensor,
    y: Tensor,
    values: Tensor | None = None,
    log_weights: Tensor | None = None,
    *,
    kernel: Kernel,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    out: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """sum_j w_j k(x_i, y_j) v_j / sum_j w_j k(x_i, y_j), stable far from the data.

    With ``values=None`` it is the mean shift: where each target would move.

    Args:
        x: Targets [*B, N, D].
        y: Sources [*B, M, D]. A batch dimension that one set lacks, or has once, is the same for all problems.
        values: What is averaged, [*B, M, C]; None means y.
        log_weights: log w [*B, M], -inf allowed; None means zeros.
        kernel: A kernel whose terms are all positive.
        exclude_self: Drop j = i; x and y are then the same set (N = M).
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M; sources beyond do not exist.
        out: Where the result goes, of its shape and dtype; not differentiable.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, C]; C = D for the mean shift.

    Raises:
        ValueError, TypeError: If an argument does not fit the others, if there is nothing to average over, or if
            the backend can't serve.
    """
    companions = (Companion("values", values, "all"), Companion("log_weights", log_weights))
    check_kernel(kernel)
    if out is not None or not agree(x, y, companions, kernel.batch, exclude_self=exclude_self):
        again = functools.partial(kernel_average, kernel=kernel, exclude_self=exclude_self, backend=backend)
        return rerouted(again, x, y, companions, kernel, out, x_lengths, y_lengths)
    name = check_reduction(x, y, kernel, x_lengths, y_lengths, backend, "average")
    check_logarithm(kernel)
    m = count_of(y, name)
    if count_of(x, name) and m <= int(exclude_self):  # a symbolic size knows no bool
        left = "no other point (exclude_self=True)" if m else "no source (M = 0)"
        raise ValueError(f"an average needs something to average over: y {list(y.shape)} leaves {left}")
    if y_lengths is not None and is_readable_on_host(y_lengths) and (y_lengths <= exclude_self).any():
        raise ValueError(
            f"an average needs something to average over: y_lengths must exceed {int(exclude_self)}"
            f" (exclude_self={exclude_self}), got {y_lengths.tolist()}"
        )
    # The derivative of a mean needs v_j - mean_i, which cancels in the rounding of values far from 0: centre them.
    centre = None
    if (
        kernel.spec is None
        or not is_concrete(x, y, values)
        or (torch.is_grad_enabled() and _require_grad(x, y, values, log_weights))
    ):
        centre = centre_of(y if values is None else values, y_lengths, name)
        if values is None:
            x, y = x - centre, x - centre if x is y else y - centre
        else:
            values = values - centre
    if values is None and kernel.spec is None:
        values = y  # the mean shift averages the points themselves, not what a tensor bandwidth makes of them
    others = (fold(values), fold_values(log_weights))
    parts = _evaluate(ops.pair_average, x, y, others, kernel, exclude_self, x_lengths, y_lengths, name)
    if len(parts) == 1:
        mean = parts[0][1][0]
    else:
        means, totals = zip(*((m, _raised(each, total)) for each, (m, total) in parts), strict=True)
        shares = torch.stack(totals).softmax(0).unsqueeze(-1)  # [passes, B, N, 1]
        mean = (shares * torch.stack(means)).sum(0)
    mean = unfold(mean, x)
    if centre is None:
        return mean
    return mean + (centre if x_lengths is None else torch.where(exists(x, x_lengths)[..., None], centre, 0.0))


# ---------------------------------------------------------------------------------------------- helpers


def _total(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, parts)


def _raised(each: Scaled, logarithm: Tensor) -> Tensor:
    """The logarithm of a sum, with that of its coefficient."""
    return logarithm if each.coefficient is None else logarithm + each.coefficient.log().to(logarithm.dtype)


def _own_shares(x: Tensor, x_lengths: Tensor | None, kernel: Kernel, backend: str) -> Tensor:  # [*B, N, 1]
    """What points make with themselves in a sum."""
    own = [(spread(each.coefficient, backend), own_share(x, x_lengths, each.spec, backend)) for each in kernel.passes]
    return torch.stack([share if c is None else share * c.to(share.dtype) for c, share in own]).sum(0)


def _evaluate(
    operation: Any,
    x: Tensor,
    y: Tensor,
    others: tuple[Tensor | None, ...],
    kernel: Kernel,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    backend: str,
) -> list[tuple[Scaled, Any]]:
    """The operator on each pass of the kernel."""
    options = (exclude_self, flat(x_lengths), flat(y_lengths), backend)
    return [
        (each, operation(fold(each.x), fold(each.y), *others, each.spec, *options))
        for each in scaled_passes(x, y, kernel, y_lengths, backend)
    ]


def _require_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
