"""The functions on JAX arrays beside those on tensors: eagerly, under jit, grad, vmap, and grad of grad."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import gwf_fast as gwf

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'gwf_fast[jax]'")
if jax:
    from jax import numpy as jnp

    from gwf_fast import jax as gwj

K = gwf.Gaussian(0.8) + 0.5 * gwf.IMQ(1.0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(7, 2)), RNG.normal(size=(6, 2)) + 0.4
W, V = RNG.random(6), RNG.normal(size=(6, 3))

Call = Callable[[Any, dict[str, Any]], Any]
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # a function, its arrays, its options
    "kernel_sum": ("kernel_sum", {"x": X, "y": Y, "weights": W}, {"kernel": K}),
    "channels": ("kernel_sum", {"x": X, "y": Y, "weights": V}, {"kernel": K}),
    "no weights": ("kernel_sum", {"x": X, "y": Y}, {"kernel": K}),
    "kernel_gradient": ("kernel_gradient", {"x": X, "y": Y, "weights": W}, {"kernel": K}),
    "kernel_logsumexp": ("kernel_logsumexp", {"x": X, "y": Y, "log_weights": np.log(W)}, {"kernel": K}),
    "kernel_average": ("kernel_average", {"x": X, "y": Y, "values": V, "log_weights": np.log(W)}, {"kernel": K}),
    "mean shift": ("kernel_average", {"x": X, "y": Y}, {"kernel": K}),
    "mmd2": ("mmd2", {"x": X, "y": Y, "y_weights": W}, {"kernel": K}),
    "unbiased": ("mmd2", {"x": X, "y": Y}, {"kernel": K, "unbiased": True}),
    "energy_distance": ("energy_distance", {"x": X, "y": Y}, {}),
    "sinkhorn_divergence": ("sinkhorn_divergence", {"x": X, "y": Y}, {"epsilon": 0.8, "tolerance": 1e-11}),
    "drift.gmd": ("drift.gmd", {"x": X, "y": Y}, {"temperature": 0.7}),
    "negatives": ("drift.gmd", {"x": X, "y": Y, "negatives": Y + 1}, {"temperature": 0.7}),
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


def found(space: Any, name: str) -> Callable[..., Any]:
    for part in name.split("."):
        space = getattr(space, part)
    return space


def scalars(name: str) -> tuple[Callable[..., Any], Callable[..., Any], list[np.ndarray]]:
    """Of a case a number as a function of JAX's arrays, and as one of tensors; and the arrays."""
    function, arrays, options = CASES[name]
    ours, theirs = found(gwf, function), found(gwj, function)
    factor = RNG_FACTORS[name]

    def of_arrays(*values: Any) -> Any:
        return (theirs(**dict(zip(arrays, values, strict=True)), **options) * factor).sum()

    def of_tensors(*values: Any) -> Any:
        return (ours(**dict(zip(arrays, values, strict=True)), **options) * torch.as_tensor(factor)).sum()

    return of_arrays, of_tensors, list(arrays.values())


def factors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    made = {}
    for name, (function, arrays, options) in CASES.items():
        out = found(gwf, function)(**{k: torch.from_numpy(v) for k, v in arrays.items()}, **options)
        made[name] = rng.normal(size=tuple(out.shape))
    return made


RNG_FACTORS = factors()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, jit: bool) -> None:
    of_arrays, of_tensors, arrays = scalars(name)
    every = tuple(range(len(arrays)))
    function = jax.value_and_grad(of_arrays, argnums=every)
    value, gradients = (jax.jit(function) if jit else function)(*map(jnp.asarray, arrays))
    leaves = [torch.from_numpy(a).requires_grad_() for a in arrays]
    want = of_tensors(*leaves)
    np.testing.assert_allclose(value, want.detach(), rtol=1e-12)
    for got, wanted in zip(gradients, torch.autograd.grad(want, leaves), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name: str, jit: bool) -> None:
    of_arrays, of_tensors, arrays = scalars(name)
    others = arrays[1:]

    def slope(x: Any, *rest: Any) -> Any:
        return (jax.grad(of_arrays)(x, *rest) * X).sum()

    every = tuple(range(len(arrays)))
    function = jax.grad(slope, argnums=every)
    got = (jax.jit(function) if jit else function)(*map(jnp.asarray, arrays))
    leaves = [torch.from_numpy(a).requires_grad_() for a in (X, *others)]
    (first,) = torch.autograd.grad(of_tensors(*leaves), leaves[0], create_graph=True)
    want = torch.autograd.grad((first * torch.from_numpy(X)).sum(), leaves, allow_unused=True, materialize_grads=True)
    for mine, wanted in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_vmap_is_a_loop(name: str) -> None:
    of_arrays, _, arrays = scalars(name)
    x = jnp.stack([jnp.asarray(X), jnp.asarray(X) * 0.5, jnp.asarray(X) + 1])
    rest = [jnp.asarray(a) for a in arrays[1:]]
    axes = (0, *(None for _ in rest))
    got = jax.vmap(jax.value_and_grad(of_arrays), in_axes=axes)(x, *rest)
    want = [jax.value_and_grad(of_arrays)(each, *rest) for each in x]
    np.testing.assert_allclose(got[0], [value for value, _ in want], rtol=1e-9)
    np.testing.assert_allclose(got[1], [slope for _, slope in want], rtol=1e-8, atol=1e-10)


def test_hessian() -> None:
    def f(x: Any) -> Any:
        return gwj.mmd2(x, jnp.asarray(Y), kernel=K)

    def g(x: torch.Tensor) -> torch.Tensor:
        return gwf.mmd2(x, torch.from_numpy(Y), kernel=K)

    want = torch.autograd.functional.hessian(g, torch.from_numpy(X))
    np.testing.assert_allclose(jax.jacrev(jax.grad(f))(jnp.asarray(X)), want, rtol=1e-9, atol=1e-12)


def test_ragged_batches() -> None:
    x, y = np.stack([X, X + 1]), np.stack([Y, Y - 1])
    lengths = np.array([4, 7])
    want = gwf.kernel_sum(*map(torch.from_numpy, (x, y)), kernel=K, x_lengths=torch.from_numpy(lengths))

    def total(x: Any, y: Any, n: Any) -> Any:
        return gwj.kernel_sum(x, y, kernel=K, x_lengths=n)

    for call in (total, jax.jit(total)):
        np.testing.assert_allclose(call(x, jnp.asarray(y), lengths.astype("i4")), want, rtol=1e-12)
    slope = jax.jit(jax.grad(lambda x: total(x, y, lengths).sum()))(jnp.asarray(x))
    assert (slope[0, 4:] == 0).all() and (slope[0, :4] != 0).any()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(dtype: str, jit: bool) -> None:
    x, y = (jnp.asarray(v).astype(dtype) for v in (X, Y))
    call = jax.jit(lambda x, y: gwj.kernel_sum(x, y, kernel=K)) if jit else lambda x, y: gwj.kernel_sum(x, y, kernel=K)
    got = call(x, y)
    assert got.dtype == dtype
    tolerance = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}[dtype]
    wide = [torch.from_numpy(np.asarray(v, np.float64)) for v in (x, y)]
    np.testing.assert_allclose(np.asarray(got, np.float64), gwf.kernel_sum(*wide, kernel=K), rtol=tolerance)


@pytest.mark.parametrize("jit", [False, True])
def test_empty_sets(jit: bool) -> None:
    def call(x: Any, y: Any) -> Any:
        return gwj.kernel_sum(x, y, kernel=K)

    call = jax.jit(call) if jit else call
    assert call(jnp.zeros((0, 2)), jnp.asarray(Y)).shape == (0,)
    assert (call(jnp.asarray(X), jnp.zeros((0, 2))) == 0).all()


def test_large_arrays_do_not_wait_for_themselves() -> None:
    """Arrays that the runtime copies in the background, within a graph that has more to do."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20_000, 16)), jnp.float32)

    @jax.jit
    def step(x: Any) -> Any:
        return x + 0.1 * gwj.kernel_average(x @ jnp.eye(16, dtype=x.dtype), x[:50] * 1.0, kernel=gwf.Gaussian(1.0))

    for _ in range(5):
        x = step(x)
    assert bool(jnp.isfinite(x).all())


BAD = [
    (lambda x, y: gwj.kernel_sum(x, y[:, :1], kernel=K), ValueError, "y must have the dimension of x, D = 2"),
    (lambda x, y: gwj.kernel_sum(x, y.astype("f4"), kernel=K), TypeError, "y must have the dtype of x"),
    (lambda x, y: gwj.kernel_sum(x, y, x[:, 0], kernel=K), ValueError, "weights must have shape"),
    (lambda x, y: gwj.kernel_average(x, y, x, kernel=K), ValueError, "values must have shape"),
    (lambda x, y: gwj.mmd2(x, y, kernel=K, x_weights=y[:, 0]), ValueError, "x_weights must have shape"),
    (lambda x, y: gwj.drift.gmd(x, y, temperature=1.0, negatives=x[:, :1]), ValueError, "negatives must have the dim"),
    (lambda x, y: gwj.sinkhorn_divergence(x, y, epsilon=1.0, return_potentials=True), TypeError, "return_potentials"),
    (lambda x, y: gwj.kernel_sum(x, kernel=K), TypeError, "missing a required argument: 'y'"),  # type: ignore[call-arg]
    (lambda x, y: gwj.kernel_sum(x.astype(int), y.astype(int), kernel=K), TypeError, "x must have a floating dtype"),
]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(call: Any, error: type[Exception], message: str, jit: bool) -> None:
    with pytest.raises(error, match=message) as caught:
        (jax.jit(call) if jit else call)(jnp.asarray(X), jnp.asarray(Y))
    assert "\n" not in str(caught.value)


def test_memory_is_shared_outside_of_jit() -> None:
    """No copy on the way in: what is seen is JAX's own memory."""
    x = jnp.asarray(X)
    seen = []

    def looked(x: torch.Tensor, y: torch.Tensor, kernel: gwf.Kernel) -> torch.Tensor:
        seen.append(x.data_ptr())
        return gwf.kernel_sum(x, y, kernel=kernel)

    gwj.bridge.on_arrays(looked, shape=lambda x, **_: x[:-1])(x, jnp.asarray(Y), kernel=K)
    assert seen == [x.unsafe_buffer_pointer()]
