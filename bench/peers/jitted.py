"""Training losses as codes in JAX write them: one jitted function of value and gradient, on a CPU of XLA's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from bench.registry import Contender, Result


def jitted(function: Callable, *arrays: torch.Tensor) -> Contender:
    """Of a function of arrays of JAX: compiled, called until its results are there."""
    import jax

    compiled = jax.jit(function)
    inputs = [jax.numpy.asarray(array.numpy()) for array in arrays]

    def contender() -> Result:
        found = jax.block_until_ready(compiled(*inputs))
        return tuple(torch.from_numpy(np.array(part)) for part in found)

    return contender


def drift_loss(x: torch.Tensor, y: torch.Tensor, temperatures: Sequence[float]) -> Contender:
    """The released variant of drifting (Deng et al. 2026) and the gradient of its regression loss in x [B, N, D]."""
    import jax
    import jax.numpy as jnp

    def drift(x: jax.Array, y: jax.Array) -> jax.Array:
        n, targets = x.shape[1], jnp.concatenate([x, y], 1)
        square = (x**2).sum(-1)[:, :, None] + (targets**2).sum(-1)[:, None] - 2 * x @ targets.mT
        distance = jnp.sqrt(jnp.maximum(square, 1e-8))
        scale = distance.mean()
        step = scale / x.shape[-1] ** 0.5
        normed = distance / scale + 100 * jnp.eye(n, targets.shape[1])
        total = jnp.zeros_like(x)
        for rate in temperatures:
            logit = -normed / rate
            a = jnp.sqrt(jnp.maximum(jax.nn.softmax(logit, -1) * jax.nn.softmax(logit, -2), 1e-6))
            negative, positive = a[..., :n], a[..., n:]
            force = (positive * negative.sum(-1, keepdims=True)) @ (y / step)
            force -= (negative * positive.sum(-1, keepdims=True)) @ (x / step)
            total += force / jnp.sqrt(jnp.maximum((force**2).mean(), 1e-8))
        return total * step

    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        goal = jax.lax.stop_gradient(x + drift(x, y))
        return ((x - goal) ** 2).sum(-1).mean()

    return jitted(jax.value_and_grad(loss), x, y)


def ott_divergence(x: torch.Tensor, y: torch.Tensor, epsilon: float, iterations: int) -> Contender:
    """The Sinkhorn divergence of OTT-JAX (Cuturi et al. 2022) at cost r^2 / 2, and its gradient in x [N, D]."""
    import jax
    from ott.geometry.costs import SqEuclidean
    from ott.tools.sinkhorn_divergence import sinkdiv

    def divergence(x: jax.Array, y: jax.Array) -> jax.Array:
        # their cost is r^2, so epsilon and the value double
        options = {"threshold": 1e-6, "max_iterations": iterations}
        return 0.5 * sinkdiv(x, y, cost_fn=SqEuclidean(), epsilon=2 * epsilon, solve_kwargs=options)[0]

    return jitted(jax.value_and_grad(divergence), x, y)
