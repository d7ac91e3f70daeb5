"""Every option of POT's sliced functions, beside POT."""

from __future__ import annotations

from typing import Any

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gwf_fast.compat import pot

FUNCTIONS = {
    name: (getattr(ot.sliced, name), getattr(pot, name))
    for name in ("sliced_wasserstein_distance", "max_sliced_wasserstein_distance")
}
SAMPLES = np.random.default_rng(0)
X, Y = SAMPLES.normal(size=(9, 3)), SAMPLES.normal(size=(7, 3)) + 0.3
PROJECTIONS = SAMPLES.normal(size=(3, 6))


def both(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    theirs, ours = FUNCTIONS[name]
    return theirs(*args, **options), ours(*args, **options)


# ------------------------------------------------------------------------------------------------- drawn calls


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes, weights and options of a call."""
    most = {"n": 20, "m": 20, "dim": 5, "count": 8}
    call: dict[str, Any] = {name: draw(st.integers(1, largest)) for name, largest in most.items()}
    call["p"] = draw(st.sampled_from([1, 1.5, 2, 3]))
    call["masses"] = draw(st.sampled_from([(None, None), (1, None), (1, 1), (3.0, 3.0), (2.0, 0.7), (None, 1.5)]))
    call["name"] = draw(st.sampled_from(sorted(FUNCTIONS)))
    call["tensors"] = draw(st.booleans())
    call["dtype"] = draw(st.sampled_from(["float64", "float64", "float32"]))
    call["seeded"] = draw(st.booleans())
    call["backwards"] = draw(st.booleans())
    call["scaler"] = draw(st.sampled_from([None, "function", "object"]))
    call["ties"] = draw(st.booleans())
    call["seed"] = draw(st.integers(0, 2**30))
    return call


def made(call: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(call["seed"])
    x, y = rng.normal(size=(call["n"], call["dim"])), 0.7 * rng.normal(size=(call["m"], call["dim"])) + 0.4
    if call["ties"]:
        x, y = np.round(x), np.round(y)
    weights = [
        None if mass is None else mass * (w := rng.random(size) + 0.1) / w.sum()
        for size, mass in zip((call["n"], call["m"]), call["masses"], strict=True)
    ]
    projections = None if call["seeded"] else rng.normal(size=(call["dim"], call["count"]))
    inputs = [v if v is None else v.astype(call["dtype"]) for v in (x, y, *weights, projections)]
    if call["tensors"]:
        inputs = [v if v is None else torch.from_numpy(v) for v in inputs]
    elif call["backwards"]:
        inputs = [v if v is None else v[::-1] for v in inputs]
    options = {"p": call["p"], "projections": inputs.pop(), "log": True}
    if call["seeded"]:
        options |= {"seed": call["seed"], "n_projections": call["count"]}
    if call["scaler"] == "function":
        options["scaler"] = lambda points: 0.5 * points + 1
    elif call["scaler"] == "object":
        many = rng.normal(size=(9, call["dim"])).astype(call["dtype"])
        options["scaler"] = ot.utils.DataScaler("minmax").fit(torch.from_numpy(many) if call["tensors"] else many)
    return inputs, options


def is_pots(call: dict[str, Any]) -> None:
    inputs, options = made(call)
    leaves = [v.requires_grad_() for v in inputs[:2]] if call["tensors"] else []
    if leaves and options["projections"] is not None:
        leaves.append(options["projections"].requires_grad_())
    (want, details), (got, mine) = both(call["name"], *inputs, **options)
    rtol, atol = (1e-9, 1e-9) if call["dtype"] == "float64" else (2e-4, 2e-5)
    assert type(got) is type(want) and got.dtype == want.dtype
    want, got = torch.as_tensor(want), torch.as_tensor(got)
    if not call["tensors"]:
        details = {name: value.copy() for name, value in details.items()}
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
    for name in ("projections", "projected_emds"):
        a, b = (torch.as_tensor(d[name]).detach().double() for d in (mine, details))
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
    if not leaves or call["ties"] or float(want.detach()) < 1e-3:
        return  # of ties the order is anybody's
    if call["name"].startswith("max") and call["count"] > 1:
        first, second = torch.as_tensor(details["projected_emds"]).topk(2).values
        if first - second < 1e-4 * first:
            return
    for g, w in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(g, w, rtol=10 * rtol, atol=10 * atol)


@given(calls())
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_drawn_calls(call: dict[str, Any]) -> None:
    is_pots(call)


@pytest.mark.slow
@given(calls())
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_a_thousand_drawn_calls(call: dict[str, Any]) -> None:
    is_pots(call)


# --------------------------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_of_several_types(name: str) -> None:
    """The kind of the result is that of NumPy's and PyTorch's own rules."""
    f4, t4 = X.astype("f4"), torch.from_numpy(X).float()
    kinds = [
        (f4, Y, None, PROJECTIONS), (f4, Y.astype("f4"), None, PROJECTIONS.astype("f4")),
        (f4, Y.astype("f4"), np.full(9, 1 / 9), PROJECTIONS.astype("f4")), (f4, Y, None, None),
        (X.tolist(), Y.tolist(), None, None),
    ]  # fmt: skip
    for x, y, a, projections in kinds:
        want, got = both(name, x, y, a, projections=projections, seed=None if projections is not None else 3)
        assert got.dtype == want.dtype and abs(got / want - 1) < 1e-6
    equal = torch.full((9,), 1 / 9, dtype=torch.float64)
    want, got = both(name, t4, t4 + 1, equal, equal, projections=torch.from_numpy(PROJECTIONS).float())
    assert got.dtype == want.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_integers_have_weights() -> None:
    """POT's 1 / n of integer tensors is 0, and so is its distance."""
    x, y = torch.arange(6).reshape(3, 2), torch.arange(6).reshape(3, 2) + 2
    theta = torch.eye(2)
    assert pot.sliced_wasserstein_distance(x, y, projections=theta) == 2
    assert pot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=theta.numpy()) == 2


@pytest.mark.parametrize("name", FUNCTIONS)
def test_seeds(name: str) -> None:
    t, u = torch.from_numpy(X), torch.from_numpy(Y)
    for x, y, make in (
        (X, Y, lambda: np.random.RandomState(4)),
        (X, Y, lambda: 4),
        (t, u, lambda: 4),
        (t, u, lambda: torch.Generator().manual_seed(4)),
    ):
        (want, _), (got, _) = (f(x, y, seed=make(), log=True) for f in FUNCTIONS[name])
        assert abs(float(got / want) - 1) < 1e-12
    ours = FUNCTIONS[name][1]
    generator = np.random.default_rng(5)
    first = ours(X, Y, seed=generator)
    assert first != ours(X, Y, seed=generator) and first == ours(X, Y, seed=np.random.default_rng(5))
    for state, draw in (
        (torch.get_rng_state, lambda: ours(t, u, seed=1)),
        (np.random.rand, lambda: ours(X, Y, seed=1)),
    ):
        torch.manual_seed(0), np.random.seed(0)
        before = state()
        torch.manual_seed(0), np.random.seed(0)
        draw()
        assert np.array_equal(np.asarray(state()), np.asarray(before))  # the global generator was left alone


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_in_weights_of_other_masses(name: str, p: int) -> None:
    theirs, ours = FUNCTIONS[name]
    x, y, theta = (torch.from_numpy(v) for v in (X, Y, PROJECTIONS))
    rng = torch.Generator().manual_seed(1)
    a, b = (torch.rand(k, generator=rng, dtype=torch.float64) + 0.1 for k in (9, 7))
    gradients = []
    for f in (theirs, ours):
        leaves = [(a / a.sum()).requires_grad_(), (2 * b / b.sum()).requires_grad_()]
        gradients.append(torch.autograd.grad(f(x, y, *leaves, p=p, projections=theta), leaves))
    for got, want in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_distance_has_no_slope(name: str) -> None:
    """POT's is NaN: the root's slope is infinite there, what it is of has none."""
    theirs, ours = FUNCTIONS[name]
    x, y, theta = torch.from_numpy(X).requires_grad_(), torch.from_numpy(X.copy()), torch.from_numpy(PROJECTIONS)
    assert torch.autograd.grad(theirs(x, y, projections=theta), x)[0].isnan().any()
    assert (torch.autograd.grad(ours(x, y, projections=theta), x)[0] == 0).all()


def test_the_largest_is_one_of_them() -> None:
    value, log = pot.max_sliced_wasserstein_distance(X, Y, n_projections=20, seed=0, log=True)
    assert type(log["projections"]) is type(log["projected_emds"]) is np.ndarray
    one, mean = (
        pot.sliced_wasserstein_distance(X, Y, projections=log["projections"][:, columns])
        for columns in ([int(log["projected_emds"].argmax())], slice(None))
    )
    assert abs(one / value - 1) < 1e-12 and mean < value


BAD = [
    ({"a": -np.ones(9)}, ValueError, "a must be finite and not negative"),
    ({"a": np.ones(8)}, ValueError, "a must have shape"),
    ({"b": np.zeros(7)}, ValueError, "b must be finite and not negative, with a positive sum"),
    ({"p": 0.5}, ValueError, "p must be a number >= 1"),
    ({"scaler": 3}, ValueError, "scaler must be None, a callable or an object with transform"),
    ({"projections": np.ones(3)}, ValueError, r"projections must have shape \[D, P\]"),
    ({"projections": np.ones((4, 2))}, ValueError, "directions must have shape"),
    ({"seed": torch.Generator()}, TypeError, "seed must be an integer or a generator of NumPy for arrays"),
    ({"n_projections": 0}, ValueError, "n_projections must be a positive integer"),
    ({"a": np.array(["1"] * 9)}, TypeError, "a must have numbers that PyTorch has"),
]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_input(name: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        FUNCTIONS[name][1](X, Y, **change)
    assert "\n" not in str(caught.value)


def test_seeds_of_the_other_library() -> None:
    t = torch.from_numpy(X)
    for seed in (np.random.RandomState(0), np.random.default_rng(0)):
        with pytest.raises(TypeError, match=r"seed must be an integer or a torch\.Generator for tensors"):
            pot.sliced_wasserstein_distance(t, t, seed=seed)


def test_nothing_for_points() -> None:
    with pytest.raises(TypeError, match="X_s must have numbers that PyTorch has"):
        pot.sliced_wasserstein_distance(None, X)
