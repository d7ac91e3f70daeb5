"""Stein's operators: the kernel Stein discrepancy and the direction of Stein variational gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor

from gwf_fast import ops
from gwf_fast.kernels.cpp import small as small_cpp
from gwf_fast.ops import direct
from gwf_fast.ops.ambient import entry
from gwf_fast.ops.modes import is_concrete
from gwf_fast.ops.sharding import agreed, count_of
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Gaussian, Kernel
from gwf_fast.pairs.passes import centre_of, over, scaled_passes
from gwf_fast.pairs.reductions import kernel_gradient, kernel_sum
from gwf_fast.pairs.validation import check_companion, check_points

# Of the points, in bandwidths: beyond, x_i sum_j k_ij - sum_j k_ij x_j would lose digits of their differences.
_FUSED_RADIUS = 8.0


@entry
def ksd2(
    x: Tensor, score: Tensor, *, kernel: Kernel, unbiased: bool = True, backend: BackendName | None = None
) -> Tensor:
    """Squared kernel Stein discrepancy of samples from a density with the given score (Liu et al. 2016).

    The mean over pairs of k s_i.s_j + s_i.grad_y k + s_j.grad_x k + tr grad_x grad_y k, in one pass that takes each
    pair once; sums are formed in float64.

    Args:
        x: Samples [*B, N, D].
        score: grad log p at the samples, [*B, N, D].
        kernel: A kernel with numbers as bandwidths. ``gwf.IMQ`` detects what escapes to infinity (Gorham & Mackey
            2017). The diagonal (``unbiased=False``) exists for kernels smooth at 0.
        unbiased: Leave out pairs i = j and divide by N (N - 1); else divide by N^2.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], differentiable once in x and score.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, or there are too few samples.
    """
    _check(x, score)
    n = x.shape[-2]
    if n < 1 + unbiased:
        least = "two samples for unbiased=True" if unbiased else "one sample"
        raise ValueError(f"x must have at least {least}, got shape {list(x.shape)}")
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel must be a kernel such as gwf_fast.IMQ(1.0), got {type(kernel).__name__}")
    if kernel.spec is None or kernel.has_formula:
        raise ValueError("kernel must have numbers as bandwidths and come from the table of profiles, for ksd2")
    backend = ops.resolve(backend, x.device, x.dtype, False, "stein", x.shape[-1])
    fold = (-1, *x.shape[-2:])
    pairs = n * (n - 1) if unbiased else n * n
    mean = ops.stein_mean(x.reshape(fold), score.reshape(fold), kernel.spec, not unbiased, pairs, backend)
    return mean.view(x.shape[:-2])


@entry(direct=direct.short_way("svgd_direction", "svgd"))
def svgd_direction(x: Tensor, score: Tensor, *, kernel: Kernel, backend: BackendName | None = None) -> Tensor:
    """phi(x_i) = mean_j [k(x_j, x_i) score_j + grad_{x_j} k(x_j, x_i)] (Liu & Wang 2016, equation 8).

    Args:
        x: Particles [*B, N, D].
        score: grad log p at the particles, [*B, N, D].
        kernel: The kernel k; ``gwf.Gaussian(gwf.median_bandwidth(x))`` is the paper's.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, D]; ``x + step * phi`` is one iteration. Differentiable in x, score and bandwidth.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other.
    """
    _check(x, score)
    if not agreed(x.numel() > 0, backend):
        return x + score  # nothing moves nothing
    fused = _in_one_call(x, score, kernel, backend)
    fused = _in_one_launch(x, score, kernel, backend) if fused is None else fused
    if fused is not None:
        return fused
    if isinstance(kernel, Gaussian) and kernel.spec is not None and is_concrete(x, score) and x.is_cpu:
        h = float(kernel.bandwidth)
        u = x - centre_of(x, None, backend)
        is_wide = x.numel() > 0 and float(u.detach().square().sum(-1).amax()) > (_FUSED_RADIUS * h) ** 2
        if not agreed(is_wide, backend):
            # grad k is -(x_i - x_j) k / h^2: one pass with the kernel's values for both terms
            scaled = over(u, h**2)
            values = torch.cat([score - scaled, torch.ones_like(u[..., :1])], -1)
            sums = kernel_sum(u, u, values, kernel=kernel, backend=backend)
            return (sums[..., :-1] + scaled * sums[..., -1:]) / count_of(x, backend)
    driving = kernel_sum(x, x, score, kernel=kernel, backend=backend)
    repulsion = kernel_gradient(x, x, kernel=kernel, backend=backend)  # k is symmetric: grad in x_j is minus this
    return (driving - repulsion) / count_of(x, backend)


def _in_one_call(x: Tensor, score: Tensor, kernel: Kernel, backend: BackendName | None) -> Tensor | None:
    """The direction without a graph on a CPU, of a set that its core's cache holds the distances of; else None."""
    if not (type(kernel) is Gaussian and x.is_cpu and is_concrete(x, score) and x.ndim <= 4):
        return None
    h = kernel.bandwidth
    if kernel.length_scale is not None or kernel.batch:
        return None
    graph = torch.is_grad_enabled() and any(t.requires_grad for t in (x, score, h) if isinstance(t, Tensor))
    if graph or ops.resolve(backend, x.device, x.dtype, False, "svgd", x.shape[-1]) != "cpp":
        return None
    return small_svgd_direction(x, score, float(h))


def small_svgd_direction(x: Tensor, score: Tensor, bandwidth: float | None) -> Tensor | None:
    """The direction under a Gaussian in one compiled call on a CPU; None where the set is too large, or it declines.

    Args:
        x: Particles [*B, N, D].
        score: Of the shape of x.
        bandwidth: h; None for the median rule over all N^2 pairs, the zeros of the diagonal included.
    """
    if x.shape[-2] > small_cpp.LARGEST_SVGD:
        return None
    return small_cpp.svgd(x, score, "all" if bandwidth is None else bandwidth)


def _in_one_launch(x: Tensor, score: Tensor, kernel: Kernel, backend: BackendName | None) -> Tensor | None:
    """The direction without a graph on a GPU, a launch a bandwidth; None where a graph is wanted, or elsewhere."""
    if not isinstance(kernel, Kernel) or kernel.has_formula or not is_concrete(x, score):
        return None
    passes = list(scaled_passes(x, x, kernel, None))
    parameters = (t for each in passes for t in (each.divisor, each.coefficient) if t is not None)
    tensors = (x, score, *parameters)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return None
    module = ops.dispatch.special(ops.resolve(backend, x.device, x.dtype, False, "svgd", x.shape[-1]), "svgd")
    if module is None:
        return None
    total = None
    for each in passes:  # in units of a bandwidth, gradients are too large by it
        drive = score if each.divisor is None else score * each.divisor
        flat = (value.reshape(-1, *x.shape[-2:]) for value in (each.x, drive))
        part = each.slope(module.svgd_sum(*flat, each.spec).view(x.shape))
        total = part if total is None else total + part
    assert total is not None  # a kernel has terms
    return total / x.shape[-2]


def _check(x: Tensor, score: Tensor) -> None:
    check_points("x", x)
    check_companion("score", score, x, channels=True, y_name="x")
    if score.shape != x.shape:
        raise ValueError(f"score must have the shape of x, {list(x.shape)}, got {list(score.shape)}")
