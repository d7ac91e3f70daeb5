"""Interaction energies W(P) = (1/2) E E W(x - x') of particles, and the explicit step of their flow.

The energy has the factor 1/2; the force has not: the flow is dP/dt = div(P grad W * P), and particles move with
-mean_j grad W(x_i - x_j) (Carrillo, Craig & Yao 2019). A pair of coincident points, the particle with itself
included, exerts no force, and adds W(0) to the energy, or nothing where W(0) is infinite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gwf_fast import ops
from gwf_fast.kernels.plain import plain
from gwf_fast.ops.ambient import HALVES, entry, widened, widens
from gwf_fast.ops.modes import is_concrete
from gwf_fast.ops.sharding import count_of, mean_of
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Kernel
from gwf_fast.pairs.methods import Auto, Method, as_method, method_options
from gwf_fast.pairs.passes import moved
from gwf_fast.pairs.reductions import kernel_gradient, kernel_sum
from gwf_fast.pairs.validation import as_number, check_kind, check_pair, check_points


@entry
@method_options
@widens
def interaction_energy(
    x: Tensor, *, kernel: Kernel, method: Method = "exact", backend: BackendName | None = None
) -> Tensor:
    """(1/2) mean_ij W(x_i - x_j), over all N^2 pairs.

    Args:
        x: Particles [*B, N, D], N >= 1.
        kernel: W, such as ``-Gaussian(0.7) / math.pi`` or ``PowerLaw(2, 0)``.
        method: Of the sums, as in ``kernel_sum``.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], differentiable twice in x and in bandwidths.

    Raises:
        ValueError, TypeError: If x is not a set of at least one particle, or as ``kernel_sum``.
    """
    n = _check_particles("x", x, backend)
    backend = _backend(backend, x, kernel, as_method(method))
    return 0.5 / n * mean_of(kernel_sum(x, x, kernel=kernel, method=method, backend=backend), n, backend)


@entry
@method_options
@widens
def interaction_velocity(
    x: Tensor,
    sources: Tensor | None = None,
    *,
    kernel: Kernel,
    method: Method = "exact",
    backend: BackendName | None = None,
) -> Tensor:
    """-mean_j grad W(x_i - s_j): where the particles go.

    Args:
        x: Particles [*B, N, D].
        sources: What they interact with, [*B, M, D], M >= 1; None means x itself, each particle included.
        kernel: W. A gradient that does not exist at x = s reads 0.
        method: Of the sums, as in ``kernel_gradient``.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, D], differentiable twice in x, sources and bandwidths.

    Raises:
        ValueError, TypeError: If the sources do not go with x, or as ``kernel_gradient``.
    """
    sources = _check_sources(x, sources, backend)
    backend = _backend(backend, x, kernel, as_method(method))
    gradient = kernel_gradient(x, sources, kernel=kernel, method=method, backend=backend)
    return gradient * (-1.0 / count_of(sources, backend))


@entry
@method_options
def forward_step(
    x: Tensor,
    step_size: float,
    *,
    kernel: Kernel,
    sources: Tensor | None = None,
    out: Tensor | None = None,
    method: Method = "exact",
    backend: BackendName | None = None,
) -> Tensor:
    """The explicit Euler step x_i - a mean_j grad W(x_i - s_j) of the interaction flow.

    Args:
        x: Particles [*B, N, D].
        step_size: a, finite and not negative.
        kernel: W. A gradient that does not exist at x = s reads 0.
        sources: What they interact with, [*B, M, D], M >= 1; None means x itself, each particle included.
        out: Where the result goes, of the shape of x; not differentiable. ``out=x`` steps in place, with a
            temporary of the size of x; a flow that alternates between two buffers allocates nothing in a step.
        method: Of the sums, as in ``kernel_gradient``.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        The moved particles [*B, N, D]; ``out`` where given. Differentiable as ``interaction_velocity``.

    Raises:
        ValueError, TypeError: If the step size is not finite or negative, if the sources or ``out`` do not go
            with x, or as ``kernel_gradient``.
    """
    how = as_method(method)
    step = as_number("step_size", step_size, "a number >= 0", least=0)
    sources = _check_sources(x, sources, backend)
    if out is not None:
        _check_out(out, x, sources)
    if x.dtype in HALVES:  # their range does not hold what a mean is a sum of
        dtype, (points, others), options = widened((x, sources), {"backend": backend})
        if dtype is not None:
            there = forward_step(points, step, kernel=kernel, sources=others, method=method, **options).to(dtype)
            return there if out is None else out.copy_(there)
    scale = -step / count_of(sources, backend)
    backend = _backend(backend, x, kernel, how)
    exactly = backend if how is None else None
    if exactly is not None and (fused := _fused_step(x, sources, kernel, exactly)) is not None:
        with torch.no_grad():
            return fused(step, out)
    if out is None:
        return moved(x, kernel_gradient(x, sources, kernel=kernel, method=method, backend=backend), scale)
    direct = kernel.spec is not None and is_concrete(x, sources, out)
    with torch.no_grad():
        if exactly is not None and direct and out is not x and out.is_contiguous():
            u = x.reshape(-1, *x.shape[-2:])
            v = u if sources is x else sources.reshape(-1, *sources.shape[-2:])
            ops.pair_gradient_into(out.view(u.shape), u, v, kernel.spec, exactly)
            return moved(x, out, scale, out)
        velocity = kernel_gradient(x, sources, kernel=kernel, method=method, backend=backend)
        return moved(x, velocity, scale, out)


forward_step.widens = True  # type: ignore[attr-defined]  # for explain; by itself, for the sake of out


# ---------------------------------------------------------------------------------------------- helpers


def _backend(requested: BackendName | None, x: Tensor, kernel: Kernel, how: object) -> BackendName | None:
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel must be a kernel such as gwf_fast.Gaussian(1.0), got {type(kernel).__name__}")
    if how is not None and not (isinstance(how, Auto) and not x.is_cpu):  # no backend has a part, or not yet
        return requested
    return ops.resolve(requested, x.device, x.dtype, kernel.has_formula, "interaction", x.shape[-1])


def _fused_step(
    x: Tensor, sources: Tensor, kernel: Kernel, backend: str
) -> Callable[[float, Tensor | None], Tensor] | None:
    """The step as one launch of a backend that has it, where nothing is to be differentiated."""
    if kernel.spec is None or not is_concrete(x, sources):
        return None
    if torch.is_grad_enabled() and (x.requires_grad or sources.requires_grad):
        return None
    function = ops.optional(backend, "forward_step")
    if function is None:
        return None
    spec = kernel.spec

    def step(size: float, out: Tensor | None) -> Tensor:
        flat = (-1, *x.shape[-2:])
        u = plain(x).view(flat)
        v = None if sources is x else sources.reshape(-1, *sources.shape[-2:])
        if out is not None and out.is_contiguous():
            function(u, size, v, spec, out.view(flat))
            return out
        there = function(u, size, v, spec).view(x.shape)
        return there if out is None else out.copy_(there)

    return step


def _check_particles(name: str, points: Tensor, backend: str | None) -> int:
    """How many there are."""
    check_points(name, points)
    n = count_of(points, backend)
    if n == 0:
        raise ValueError(f"{name} must have at least one particle for a mean, got shape {list(points.shape)}")
    return n


def _check_sources(x: Tensor, sources: Tensor | None, backend: str | None) -> Tensor:
    if sources is None:
        _check_particles("x", x, backend)
        return x
    check_pair(x, sources, "sources")
    _check_particles("sources", sources, backend)
    return sources


def _check_out(out: Tensor, x: Tensor, sources: Tensor) -> None:
    check_kind("out", out)
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        raise ValueError(
            f"out must be as x, {list(x.shape)} {x.dtype} on {x.device},"
            f" got {list(out.shape)} {out.dtype} on {out.device}"
        )
    if torch.is_grad_enabled() and (x.requires_grad or sources.requires_grad or out.requires_grad):
        raise ValueError("out must be None where a gradient is wanted: writing into a tensor is not differentiable")
    for name, points in (("x", x), ("sources", sources)):
        overlap = out.untyped_storage().data_ptr() == points.untyped_storage().data_ptr()
        if overlap and out is not x and out.numel():
            raise ValueError(f"out must be x itself, or share no memory with {name}")
