"""Functions of ``gwf_fast`` on JAX arrays: under ``jax.jit``, ``jax.grad``, ``jax.vmap``, and grad of grad.

    from gwf_fast import jax as gwj
    value, gradient = jax.value_and_grad(lambda x: gwj.mmd2(x, y, kernel=gwf.Gaussian(1.0)))(x)

Names, arguments and results are those of the functions of ``gwf_fast``. Outside ``jax.jit`` and ``jax.vmap`` memory is
shared through DLPack, on the arrays' own device; within them calls are callbacks on the host. Derivatives are reverse
ones, of first and second order, in every floating array; ``jax.jvp`` and ``jax.hessian``, which take forward ones, are
not available: ``jax.jacrev(jax.grad(f))`` is a Hessian. What is not an array is a constant: kernels with their
bandwidths, epsilon, temperatures.
"""

from importlib import import_module as _import_module

try:
    _import_module("jax")
except ModuleNotFoundError as error:
    if error.name not in ("jax", "jaxlib"):
        raise
    raise ImportError("gwf_fast.jax needs JAX: pip install 'gwf_fast[jax]'") from None

from gwf_fast.jax import drift
from gwf_fast.jax.functions import (
    energy_distance,
    kernel_average,
    kernel_gradient,
    kernel_logsumexp,
    kernel_sum,
    mmd2,
    sinkhorn_divergence,
)

__all__ = [
    "drift",
    "energy_distance",
    "kernel_average",
    "kernel_gradient",
    "kernel_logsumexp",
    "kernel_sum",
    "mmd2",
    "sinkhorn_divergence",
]
