"""The four pairwise reductions: validate, resolve the backend, call the operator. None stores N x M values.

Shapes: targets x [*B, N, D], sources y [*B, M, D]. All four are differentiable twice in every floating
argument and in the kernel's bandwidth, streaming too. An empty sum is 0; its logarithm -inf.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gwf_fast import ops
from gwf_fast.ops import direct
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.modes import is_concrete
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Kernel
from gwf_fast.pairs.methods import Method, as_method, fast_sum, method_options
from gwf_fast.pairs.passes import centre_of, is_own, own_share, scaled_passes
from gwf_fast.pairs.ragged import exists, members
from gwf_fast.pairs.validation import check_companion, check_lengths, check_pair


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
    backend: BackendName | None = None,
) -> Tensor:
    """sum_j k(x_i, y_j) w_j.

    Args:
        x: Targets [*B, N, D].
        y: Sources [*B, M, D].
        weights: [*B, M], or several channels [*B, M, C]; None means ones.
        kernel: The kernel k, such as ``Gaussian(0.5)``.
        method: "exact", or one of ``gwf.NUFFT``, ``gwf.Sliced`` and ``gwf.Auto`` with options; "nufft", "sliced" and
            "auto" mean their defaults.
        exclude_self: Drop j = i; x and y are then the same set (N = M).
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M; sources beyond do not exist.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N], or [*B, N, C] where the weights have channels.

    Raises:
        ValueError, TypeError: If an argument does not fit the others, or the backend or method can't serve.
        AccuracyError: If transforms did not reach their tolerance.
    """
    name = _check(x, y, kernel, exclude_self, x_lengths, y_lengths, backend, "sum")
    if weights is not None:
        check_companion("weights", weights, y, channels=True)
    if method != "exact" and (how := as_method(method, backend)) is not None:
        fast = fast_sum(0, x, y, weights, kernel, how, exclude_self, x_lengths, y_lengths)
        if fast is not None:
            return fast
    if is_own(x, y, exclude_self, x_lengths, y_lengths):
        apart = _sum(x, y, weights, kernel, True, x_lengths, y_lengths, name)
        own = torch.stack([own_share(x, x_lengths, spec, name) for _, spec in kernel.passes]).sum(0)
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
    others = (_fold(weights) if channels else _fold_values(weights),)
    parts = _evaluate(ops.pair_sum, x, y, others, kernel, exclude_self, x_lengths, y_lengths, name)
    out = parts[0][1] if len(parts) == 1 else sum(part for _, part in parts)
    return _unfold(out, x)


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
    backend: BackendName | None = None,
) -> Tensor:
    """sum_j w_j grad_x k(x_i, y_j): the gradient of ``kernel_sum`` in each target, as if x and y were distinct.

    Args:
        x: Targets [*B, N, D].
        y: Sources [*B, M, D].
        weights: [*B, M]; None means ones.
        kernel: The kernel k. A gradient that does not exist at x = y reads 0.
        method: "exact", or one of ``gwf.NUFFT``, ``gwf.Sliced`` and ``gwf.Auto`` with options; "nufft", "sliced" and
            "auto" mean their defaults.
        exclude_self: Drop j = i; x and y are then the same set (N = M).
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M; sources beyond do not exist.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, D].

    Raises:
        ValueError, TypeError: If an argument does not fit the others, or the backend or method can't serve.
        AccuracyError: If transforms did not reach their tolerance.
    """
    name = _check(x, y, kernel, exclude_self, x_lengths, y_lengths, backend, "gradient")
    if weights is not None:
        check_companion("weights", weights, y, channels=False)
    if method != "exact" and (how := as_method(method, backend)) is not None:
        fast = fast_sum(1, x, y, weights, kernel, how, exclude_self, x_lengths, y_lengths)
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
    others = (_fold_values(weights),)
    parts = _evaluate(ops.pair_gradient, x, y, others, kernel, exclude_self, x_lengths, y_lengths, name)
    return _unfold(sum(part if bandwidth is None else part / bandwidth for bandwidth, part in parts), x)


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
    backend: BackendName | None = None,
) -> Tensor:
    """Logarithm of sum_j w_j k(x_i, y_j), stable far from the data, where the sum itself underflows.

    Args:
        x: Targets [*B, N, D].
        y: Sources [*B, M, D].
        log_weights: log w [*B, M], -inf allowed; None means zeros.
        kernel: A kernel whose terms are all positive.
        exclude_self: Drop j = i; x and y are then the same set (N = M).
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give -inf.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M; sources beyond do not exist.
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
    name = _check(x, y, kernel, exclude_self, x_lengths, y_lengths, backend, "logsumexp")
    _check_logarithm(log_weights, y, kernel)
    if x.ndim <= 3 and kernel.spec is not None:
        return ops.pair_logsumexp(x, y, log_weights, kernel.spec, exclude_self, x_lengths, y_lengths, name)
    others = (_fold_values(log_weights),)
    parts = _evaluate(ops.pair_logsumexp, x, y, others, kernel, exclude_self, x_lengths, y_lengths, name)
    out = parts[0][1] if len(parts) == 1 else torch.stack([part for _, part in parts]).logsumexp(0)
    return _unfold(out, x)


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
    backend: BackendName | None = None,
) -> Tensor:
    """sum_j w_j k(x_i, y_j) v_j / sum_j w_j k(x_i, y_j), stable far from the data.

    With ``values=None`` it is the mean shift: where each target would move.

    Args:
        x: Targets [*B, N, D].
        y: Sources [*B, M, D].
        values: What is averaged, [*B, M, C]; None means y.
        log_weights: log w [*B, M], -inf allowed; None means zeros.
        kernel: A kernel whose terms are all positive.
        exclude_self: Drop j = i; x and y are then the same set (N = M).
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M; sources beyond do not exist.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, C]; C = D for the mean shift.

    Raises:
        ValueError, TypeError: If an argument does not fit the others, if there is nothing to average over, or if
            the backend can't serve.
    """
    name = _check(x, y, kernel, exclude_self, x_lengths, y_lengths, backend, "average")
    _check_logarithm(log_weights, y, kernel)
    if values is not None:
        _check_values(values, y)
    if x.shape[-2] and y.shape[-2] <= int(exclude_self):  # a symbolic size knows no bool
        left = "no other point (exclude_self=True)" if y.shape[-2] else "no source (M = 0)"
        raise ValueError(f"an average needs something to average over: y {list(y.shape)} leaves {left}")
    if y_lengths is not None and _readable(y_lengths) and (y_lengths <= exclude_self).any():
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
        centre = centre_of(y if values is None else values, y_lengths)
        if values is None:
            x, y = x - centre, x - centre if x is y else y - centre
        else:
            values = values - centre
    if values is None and kernel.spec is None:
        values = y  # the mean shift averages the points themselves, not what a tensor bandwidth makes of them
    others = (_fold(values), _fold_values(log_weights))
    parts = _evaluate(ops.pair_average, x, y, others, kernel, exclude_self, x_lengths, y_lengths, name)
    if len(parts) == 1:
        out = parts[0][1][0]
    else:
        means, totals = zip(*(part for _, part in parts), strict=True)
        shares = torch.stack(totals).softmax(0).unsqueeze(-1)  # [passes, B, N, 1]
        out = (shares * torch.stack(means)).sum(0)
    out = _unfold(out, x)
    if centre is None:
        return out
    return out + (centre if x_lengths is None else torch.where(exists(x, x_lengths)[..., None], centre, 0.0))


# ---------------------------------------------------------------------------------------------- helpers


def _check(
    x: Tensor,
    y: Tensor,
    kernel: Kernel,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    backend: BackendName | None,
    operation: str | None = None,
) -> str:
    """Everything the reductions have in common. Returns the name of the backend."""
    check_pair(x, y)
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel must be a kernel such as gwf_fast.Gaussian(1.0), got {type(kernel).__name__}")
    if exclude_self and x.shape != y.shape:
        raise ValueError(
            f"exclude_self=True needs x and y to be the same set, got x {list(x.shape)} and y {list(y.shape)}"
        )
    if x_lengths is not None:
        check_lengths("x_lengths", x_lengths, x, _readable(x_lengths))
    if y_lengths is not None:
        check_lengths("y_lengths", y_lengths, y, _readable(y_lengths))
    return ops.resolve(backend, x.device, x.dtype, kernel.has_formula, operation, x.shape[-1])


def _readable(lengths: Tensor) -> bool:
    """Whether values may be looked at: elsewhere than on the CPU it would wait, and while tracing there are none."""
    return isinstance(lengths, Tensor) and is_concrete(lengths) and lengths.is_cpu


def _check_logarithm(log_weights: Tensor | None, y: Tensor, kernel: Kernel) -> None:
    if log_weights is not None:
        check_companion("log_weights", log_weights, y, channels=False)
    if not kernel.positive:
        raise ValueError(f"kernel must be positive in every term to have a logarithm, got {kernel!r}")


def _check_values(values: Tensor, y: Tensor) -> None:
    if isinstance(values, Tensor) and values.ndim != y.ndim:
        raise ValueError(f"values must have shape [*B, M, C] to go with y {list(y.shape)}, got {list(values.shape)}")
    check_companion("values", values, y, channels=True)


def _evaluate(
    operator: Any,
    x: Tensor,
    y: Tensor,
    others: tuple[Tensor | None, ...],
    kernel: Kernel,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    backend: str,
) -> list[tuple[Tensor | None, Any]]:
    """The operator on each pass of the kernel, with the bandwidth that its points were divided by."""
    options = (exclude_self, _flat(x_lengths), _flat(y_lengths), backend)
    return [
        (bandwidth, operator(_fold(u), _fold(v), *others, spec, *options))
        for u, v, bandwidth, spec in scaled_passes(x, y, kernel, y_lengths)
    ]


def _require_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


# Operators take one batch dimension or none, so that the usual calls need no views of their arguments.


def _fold(value: Tensor | None) -> Tensor | None:  # [*B, M, C] -> [B?, M, C]
    return value if value is None or value.ndim <= 3 else value.flatten(0, -3)


def _fold_values(value: Tensor | None) -> Tensor | None:  # [*B, M] -> [B?, M]
    return value if value is None or value.ndim <= 2 else value.flatten(0, -2)


def _unfold(out: Tensor, x: Tensor) -> Tensor:  # [B?, N, ...] -> [*B, N, ...]
    return out if x.ndim <= 3 else out.unflatten(0, x.shape[:-2])


def _flat(lengths: Tensor | None) -> Tensor | None:  # [*B] -> [B]
    return None if lengths is None else lengths.flatten()
