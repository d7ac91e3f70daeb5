"""``method=``: names and objects mean the same, every option is read or refused, old spellings warn and go on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.pairs import methods

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randn(30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
K = gwf.Gaussian(0.9)
THETA = torch.nn.functional.normalize(
    torch.randn(9, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CALLS = {
    "kernel_sum": lambda **o: gwf.kernel_sum(X, Y, kernel=K, **o),
    "kernel_gradient": lambda **o: gwf.kernel_gradient(X, Y, kernel=K, **o),
    "interaction_energy": lambda **o: gwf.interaction_energy(X, kernel=K, **o),
    "interaction_velocity": lambda **o: gwf.interaction_velocity(X, Y, kernel=K, **o),
    "forward_step": lambda **o: gwf.forward_step(X, 0.1, kernel=K, **o),
    "blob_density": lambda **o: gwf.blob_density(X, 0.4, **o),
    "blob_energy": lambda **o: gwf.blob_energy(X, 0.4, **o),
    "blob_velocity": lambda **o: gwf.blob_velocity(X, 0.4, **o),
}
FORMER = [
    ({"method": "nufft", "tolerance": 1e-4}, gwf.NUFFT(1e-4)),
    ({"method": "auto", "tolerance": 1e-4}, gwf.Auto(1e-4)),
    ({"method": "sliced", "directions": THETA}, gwf.Sliced(directions=THETA)),
]


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize(("former", "method"), FORMER, ids=["nufft", "auto", "sliced"])
def test_former_spellings_mean_the_same(function, former, method):
    want = CALLS[function](method=method)
    with pytest.warns(DeprecationWarning, match=rf"^{function}: \w+= is deprecated; use method=gwf\.") as caught:
        got = CALLS[function](**former)
    assert torch.equal(got, want) and caught[0].filename == __file__
    assert not torch.equal(want, CALLS[function]()) or isinstance(method, gwf.Auto)  # the exact sum has other digits


def test_names_are_the_defaults():
    assert torch.equal(
        gwf.kernel_sum(X, Y, kernel=K, method="nufft"), gwf.kernel_sum(X, Y, kernel=K, method=gwf.NUFFT())
    )
    torch.manual_seed(0)
    got = gwf.kernel_sum(X, Y, kernel=K, method="sliced")
    torch.manual_seed(0)
    assert torch.equal(got, gwf.kernel_sum(X, Y, kernel=K, method=gwf.Sliced(64)))
    wide, far = X.repeat(1, 20), Y.repeat(1, 20)  # 4 D directions where those are more
    got = gwf.kernel_sum(wide, far, kernel=K, method=gwf.Sliced(generator=seeded()))
    assert torch.equal(got, gwf.kernel_sum(wide, far, kernel=K, method=gwf.Sliced(160, generator=seeded())))


def test_every_option_decides():
    def draw(**options):
        return gwf.kernel_sum(X, Y, kernel=K, method=gwf.Sliced(16, generator=seeded(), **options))

    assert torch.equal(draw(), draw()) and not torch.equal(draw(), draw(sampling="normal"))
    loose, sharp = (gwf.kernel_sum(X, Y, kernel=K, method=gwf.NUFFT(t)) for t in (1e-2, 1e-11))
    exact = gwf.kernel_sum(X, Y, kernel=K)
    assert (loose - exact).norm() > 1e3 * (sharp - exact).norm()


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 1e-3}, r"tolerance goes with method=gwf.NUFFT or gwf.Auto\(...\), got method='exact'"),
        ({"generator": seeded()}, r"generator goes with method=gwf.Sliced\(...\), got method='exact'"),
        ({"sampling": "normal", "method": "nufft"}, r"sampling goes with method=gwf.Sliced\(...\), got method='nufft'"),
        (
            {"n_projections": 3, "method": gwf.Auto()},
            r"n_projections goes with method=gwf.Sliced\(...\), got method=Auto",
        ),
        ({"tolerance": 1e-3, "method": "sliced"}, r"tolerance goes with method=gwf.NUFFT or gwf.Auto"),
        ({"method": "tree"}, "method must be one of exact, nufft, sliced, auto, or an object with options, got 'tree'"),
    ],
)
def test_what_a_method_has_not_is_refused(function, options, message):
    with pytest.raises(ValueError, match=message):
        CALLS[function](**options)


@pytest.mark.parametrize("function", CALLS)
def test_what_nobody_has_is_refused(function):
    with pytest.raises(TypeError, match=rf"{function}\(\) got an unexpected keyword argument 'tolerence'"):
        CALLS[function](tolerence=1e-3)
    with pytest.raises(TypeError, match=r"method must be a name or one of gwf.NUFFT, .* got the class NUFFT"):
        CALLS[function](method=gwf.NUFFT)


def test_a_backend_goes_with_exact_sums():
    for method in ("nufft", gwf.Sliced(3)):
        with pytest.raises(ValueError, match=r"backend must be None .*gwf.(NUFFT|Sliced).* got 'torch'"):
            gwf.kernel_sum(X, Y, kernel=K, method=method, backend="torch")
    want = gwf.kernel_sum(X, Y, kernel=K, backend="torch")
    assert torch.equal(gwf.kernel_sum(X, Y, kernel=K, method="auto", backend="torch"), want)


def test_errors_come_by_a_function_of_their_own():
    method = gwf.Sliced(directions=THETA)
    functions: tuple[Callable[..., Any], ...] = gwf.kernel_sum, gwf.kernel_gradient, gwf.interaction_velocity
    for fn in functions:
        out, error = gwf.with_error(fn, X, Y, kernel=K, method=method)
        assert torch.equal(out, fn(X, Y, kernel=K, method=method)) and error.shape == () and 0 < error < 1
        with pytest.warns(DeprecationWarning, match=rf"{fn.__name__}: return_error= is .* use .*gwf.with_error"):
            pair = fn(X, Y, kernel=K, method=method, return_error=True)
        assert torch.equal(pair[0], out) and torch.equal(pair[1], error)
    with pytest.raises(ValueError, match=r"method must be gwf.Sliced\(...\), whose sums are estimates, got 'nufft'"):
        gwf.with_error(gwf.kernel_sum, X, Y, kernel=K, method="nufft")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fn must be one of kernel_sum, kernel_gradient"):
        gwf.with_error(gwf.interaction_energy, X, kernel=K)
    with pytest.raises(ValueError, match=r"return_error=True goes with method=gwf.Sliced\(...\), got method='exact'"):
        functions[0](X, Y, kernel=K, return_error=True)
    for call in (CALLS["interaction_energy"], CALLS["forward_step"]):
        with pytest.raises(ValueError, match="return_error must be False"):
            call(method="sliced", return_error=True)


def test_functionals_carry_methods_into_checkpoints(tmp_path):
    functional = gwf.Interaction(K, method=gwf.NUFFT(1e-7)) + 0.1 * gwf.GeneralizedEntropy(
        2, 0.3, method=gwf.Auto(1e-3)
    )
    flow = gwf.JKOFlow(functional, 2, 0.1, scheme="explicit")
    flow.run(X, 1, progress=False, checkpoint=tmp_path)
    resumed = gwf.JKOFlow.resume(tmp_path, n_steps=2, progress=False)
    assert torch.equal(resumed.particles, flow.run(X, 2, progress=False).particles)


@pytest.mark.parametrize("make", [lambda **o: gwf.Interaction(K, **o), lambda **o: gwf.GeneralizedEntropy(2, 0.3, **o)])
def test_functionals_take_a_tolerance_in_its_former_place(make):
    with pytest.warns(DeprecationWarning, match=r"^\w+: tolerance= is deprecated; use method=gwf.Auto\(") as caught:
        assert make(tolerance=1e-3).method == gwf.Auto(1e-3)
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=r"use method=gwf.NUFFT\("):
        assert make(tolerance=1e-3, method="nufft").method == gwf.NUFFT(1e-3)
    for method in ("exact", gwf.NUFFT()):
        with pytest.raises(ValueError, match=r"tolerance goes with method=gwf.NUFFT or gwf.Auto\(...\), got method="):
            make(tolerance=1e-3, method=method)
    for other in ("sliced", gwf.Sliced()):
        with pytest.raises(ValueError, match=r"method must be one of exact, nufft, auto, gwf.NUFFT and gwf.Auto, got"):
            make(method=other)


def test_auto_with_a_backend_is_exact(monkeypatch):
    monkeypatch.setattr(methods, "choose", lambda *_: "nufft")
    assert not torch.equal(gwf.kernel_sum(X, Y, kernel=K, method="auto"), gwf.kernel_sum(X, Y, kernel=K))
    want = gwf.kernel_sum(X, Y, kernel=K, backend="torch")
    assert torch.equal(gwf.kernel_sum(X, Y, kernel=K, method="auto", backend="torch"), want)
    want = gwf.interaction_velocity(X, kernel=K, backend="torch")
    assert torch.equal(gwf.interaction_velocity(X, kernel=K, method=gwf.Auto(1e-3), backend="torch"), want)
