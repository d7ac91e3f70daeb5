"""``pytest -m gpu``: JAX arrays on a CUDA device stay there, their memory shared; under jit they come to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gwf_fast as gwf

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'gwf_fast[jax]'")
if jax:
    from jax import numpy as jnp

    from gwf_fast import jax as gwj

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KERNEL = gwf.Gaussian(1.0)


@pytest.fixture
def device() -> Any:
    try:
        return jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("JAX sees no GPU")


@pytest.mark.parametrize("jit", [False, True])
def test_value_and_gradient(device: Any, jit: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 3)).astype("f4") for n in (300, 200))

    def loss(x: Any, y: Any) -> Any:
        return gwj.mmd2(x, y, kernel=KERNEL)

    call = jax.value_and_grad(loss)
    value, slope = (jax.jit(call) if jit else call)(jax.device_put(x, device), jax.device_put(y, device))
    assert slope.devices() == {device}
    leaf = torch.from_numpy(x).double().requires_grad_()
    want = gwf.mmd2(leaf, torch.from_numpy(y).double(), kernel=KERNEL)
    np.testing.assert_allclose(value, want.detach(), rtol=1e-4)
    np.testing.assert_allclose(slope, torch.autograd.grad(want, leaf)[0], rtol=1e-3, atol=1e-7)
    assert bool(jnp.isfinite(slope).all())
