"""NumPy arrays in the place of tensors: the same numbers, as arrays where all that came were arrays."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast.ops.arrays import as_tensor
from tests.fuzz.calls import FUNCTIONS
from tests.fuzz.function import make
from tests.test_other_tensors import arguments, usual

NAMES = [name for name in FUNCTIONS if not name.startswith(("nn.", "potentials."))]
K = gwf.Gaussian(1.0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 2)), RNG.normal(size=(5, 2))
T = torch.from_numpy


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """What ``change`` makes of the arrays and tensors in a result."""
    if isinstance(value, tuple):
        parts = [mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: mapped(getattr(value, name), change) for name in names})
    return change(value) if isinstance(value, (Tensor, np.ndarray, np.generic)) else value


def on_arrays(function: Callable[..., Any], wanted: list[Tensor], seen: set[bool]) -> Callable[..., Any]:
    """A function that is given some tensors as arrays, and its results as tensors; whether they were is noted."""

    def given(value: Any) -> Any:
        if hasattr(value, "fitted"):
            return value.fitted(given)
        return value.numpy() if any(value is t for t in wanted) else value

    def back(value: Any) -> Any:
        seen.add(isinstance(value, Tensor))
        return torch.as_tensor(value)

    def call(*args: Any, **kwargs: Any) -> Any:
        return mapped(function(*map(given, args), **{name: given(value) for name, value in kwargs.items()}), back)

    functools.update_wrapper(call, function)
    return call


def called(name: str, wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, set[bool]]:
    """Results for tensors, for arrays in the place of some, and whether those of the second were tensors."""
    function, call = FUNCTIONS[name], usual(name)
    tensors, lengths = make(function, call)
    chosen = [t for n, t in (tensors | lengths).items() if n in wanted]
    seen: set[bool] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of Sinkhorn's tolerance
        want = function(tensors, lengths, call)
        for space in (gwf, gwf.drift):
            for public in space.__all__:
                found = getattr(space, public)
                if inspect.isfunction(found) and public != "with_error":  # which is asked by name
                    monkeypatch.setattr(space, public, on_arrays(found, chosen, seen))
        got = function(tensors, lengths, call)
    return want, got, seen


@pytest.mark.parametrize("name", NAMES)
def test_arrays_in_arrays_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want, got, tensors = called(name, tuple(usual(name)["tensors"]), monkeypatch)
    assert tensors == {False}
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other.detach())


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name in NAMES for argument in arguments(name)])
def test_an_array_beside_tensors_is_one_of_them(name: str, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if len(arguments(name)) == 1:
        pytest.skip("it takes one tensor")
    want, got, tensors = called(name, (argument,), monkeypatch)
    assert tensors == {True}
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.detach(), other.detach())


LAYOUTS: dict[str, Callable[[np.ndarray, Path], np.ndarray]] = {
    "fortran": lambda a, _: np.asfortranarray(a),
    "strided": lambda a, _: np.repeat(a, 2, axis=1)[:, ::2],
    "backwards": lambda a, _: a[::-1].copy()[::-1],
    "transposed backwards": lambda a, _: a[:, ::-1].copy(order="F")[:, ::-1],
    "read-only": lambda a, _: np.broadcast_to(a, a.shape),
    "other byte order": lambda a, _: a.astype(a.dtype.newbyteorder()),
    "unaligned": lambda a, _: np.frombuffer(b"." + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "field of a record": lambda a, _: np.rec.fromarrays([a, a.astype("u1")], names="a, b").a,
    "mapped": lambda a, folder: _saved(a, folder / "a.npy"),
}


def _saved(array: np.ndarray, path: Path) -> np.ndarray:
    np.save(path, array)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: str, tmp_path: Path) -> None:
    x, y = X.astype(dtype), Y.astype(dtype)
    other = LAYOUTS[layout](x, tmp_path)
    assert np.array_equal(other, x)
    got = gwf.kernel_sum(other, y, kernel=K)
    assert type(got) is np.ndarray and got.dtype == dtype
    assert np.array_equal(got, gwf.kernel_sum(T(x), T(y), kernel=K).numpy())


def test_memory_is_shared_where_it_can_be() -> None:
    assert as_tensor("x", X.T).data_ptr() == X.ctypes.data
    out = np.empty_like(X)
    assert gwf.forward_step(X, 0.1, kernel=K, out=out) is out
    assert np.array_equal(out, gwf.forward_step(T(X), 0.1, kernel=K).numpy())
    moved = X.copy()
    assert gwf.drift.critic_step(moved, lambda x: x.square().sum(-1), 0.1, out=moved) is moved
    np.testing.assert_allclose(moved, 1.2 * X)
    with pytest.raises(ValueError, match="out must be a writable array of the machine's byte order"):
        gwf.forward_step(X, 0.1, kernel=K, out=out[::-1])


REFUSED = [
    (X.tolist(), "x must be a torch.Tensor, got list"),
    (np.ma.masked_array(X), "x must be a torch.Tensor, got MaskedArray"),
    (X.astype(object), "x must have numbers that PyTorch has, such as float64, got object"),
    (X.astype("g"), "x must have numbers that PyTorch has, such as float64, got "),
    (X.astype(int), "x must have a floating dtype"),
]


@pytest.mark.parametrize(("x", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused(x: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        gwf.kernel_sum(x, Y, kernel=K)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


DRAWS: dict[str, Callable[..., Any]] = {
    "sliced_wasserstein2": lambda x, w, g: gwf.sliced_wasserstein2(x, Y_T, n_projections=3, x_weights=w, generator=g),
    "sliced_energy": lambda x, w, g: gwf.sliced_energy_distance(x, Y_T, n_projections=3, x_weights=w, generator=g),
    "drift.mmd": lambda x, w, g: gwf.drift.mmd(x, Y_T, kernel=K, noise=0.1, generator=g),
    "drift.sliced": lambda x, w, g: gwf.drift.sliced_wasserstein(x, Y_T, n_projections=3, generator=g),
    "Sliced": lambda x, w, g: gwf.kernel_sum(Y_T, x, w, kernel=K, method=gwf.Sliced(3, generator=g)),
}
Y_T = T(Y)


@pytest.mark.parametrize("name", DRAWS)
def test_an_array_draws_once(name: str) -> None:
    """Though weights are looked at after directions are drawn, and the call is made again where one is an array."""
    w = np.full(len(X), 1 / len(X))
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    want = DRAWS[name](T(X), T(w), generators[0])
    for generator, given in zip(generators[1:], ((X, T(w)), (T(X), w)), strict=True):
        assert torch.equal(DRAWS[name](*given, generator), want)
        assert torch.equal(generator.get_state(), generators[0].get_state())


def test_arrays_within_arguments() -> None:
    found = gwf.sinkhorn(X, Y, epsilon=1.0)
    assert type(found.f) is type(found.g) is np.ndarray
    again = gwf.sinkhorn(X, Y, epsilon=1.0, start=found, tolerance=1e-5)
    assert again.n_iterations == 1 and type(again.g) is np.ndarray
    value, potentials = gwf.sinkhorn_divergence(X, Y, epsilon=1.0, return_potentials=True)
    assert type(value) is np.float64 and type(potentials.cross.f) is np.ndarray
    gwf.sinkhorn_divergence(X, Y, epsilon=1.0, start=potentials)
    directions = np.eye(2)
    got, error = gwf.with_error(gwf.kernel_sum, X, Y, kernel=K, method=gwf.Sliced(directions=directions))
    want = gwf.with_error(gwf.kernel_sum, T(X), T(Y), kernel=K, method=gwf.Sliced(directions=T(directions)))
    assert np.array_equal(got, want[0].numpy()) and error == want[1].numpy()
    assert gwf.explain(gwf.kernel_sum, X, Y, kernel=K) == gwf.explain(gwf.kernel_sum, T(X), T(Y), kernel=K)


def test_numbers_are_numbers() -> None:
    """Arrays without dimensions do not make a call one of arrays."""
    h = np.array(0.5)
    assert type(gwf.parzen_score(T(X), T(Y), h)) is Tensor and type(gwf.parzen_score(X, Y, h)) is np.ndarray
    assert gwf.median_bandwidth(X) == gwf.median_bandwidth(T(X)).item()
    assert type(gwf.mmd2(X, Y, kernel=gwf.Gaussian(gwf.median_bandwidth(X)))) is np.float64


def test_a_gradient_is_not_lost() -> None:
    """Of what is no argument but wants one: the result is a tensor, with its graph."""
    h = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    out = gwf.kernel_sum(X, Y, kernel=gwf.Gaussian(h))
    (got,) = torch.autograd.grad(out.sum(), h)
    (want,) = torch.autograd.grad(gwf.kernel_sum(T(X), T(Y), kernel=gwf.Gaussian(h)).sum(), h)
    assert torch.equal(got, want)


def test_one_array_is_one_tensor() -> None:
    """x with itself is told by identity: its divergence is 0 to the last bit, f = g."""
    found = gwf.sinkhorn(X, X, epsilon=1.0)
    assert np.array_equal(found.f, found.g)


def test_methods_take_tensors() -> None:
    with pytest.raises(TypeError, match="got ndarray"):
        gwf.potentials.Gaussian(torch.zeros(2), torch.eye(2)).score(X)


def test_functions_of_the_package_are_given_tensors() -> None:
    """Between them nothing is converted: an array there would make NumPy do what PyTorch is to do."""
    space: dict[str, Any] = {"__name__": "gwf_fast.elsewhere", "gwf": gwf}
    exec("def call(x, y, k): return gwf.kernel_sum(x, y, kernel=k)", space)
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got ndarray"):
        space["call"](X, Y, K)
