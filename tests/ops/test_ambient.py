"""Autocast, inference mode, no_grad and tensors of other kinds: the same result, or a TypeError that says why."""

import inspect
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch

import gwf_fast as gwf
from gwf_fast import ops
from gwf_fast.ops.ambient import entry

GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(n, 3, generator=GENERATOR) for n in (40, 50))
DIRECTIONS = torch.nn.functional.normalize(torch.randn(9, 3, generator=GENERATOR), dim=-1)
KERNEL = gwf.Gaussian(1.0)
NET = gwf.nn.MLP([3, 16, 16, 1], "silu")
CONVEX = gwf.nn.ICNNGradient(3)
NORMAL = gwf.potentials.Gaussian(torch.zeros(3), torch.tensor([[2.0, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]))


def flow(functional, **options):
    training = gwf.Training(batch_size=32, iterations=5)
    result = gwf.JKOFlow(functional, 3, 0.05, training=training, **options).run(X, 1, progress=False)
    return torch.cat([result.particles, result.push(Y)])


def drifting():
    model = gwf.DriftingModel(lambda x, y: gwf.drift.energy(x, y), 3, batch_size=16, seed=1)
    result = model.run(Y, 2, progress=False)
    torch.manual_seed(0)
    return result.sample(4)


FUNCTIONS = {
    "kernel_sum": lambda: gwf.kernel_sum(X, Y, kernel=KERNEL),
    "sliced": lambda: gwf.kernel_sum(X, Y, kernel=KERNEL, method=gwf.Sliced(directions=DIRECTIONS)),
    "nufft": lambda: gwf.kernel_sum(X[:, :2], Y[:, :2], kernel=KERNEL, method="nufft"),
    "mmd2": lambda: gwf.mmd2(X, Y, kernel=KERNEL),
    "parzen_score": lambda: gwf.parzen_score(X, Y, 0.5),
    "sliced_wasserstein2": lambda: gwf.sliced_wasserstein2(X, Y, directions=DIRECTIONS),
    "sinkhorn_divergence": lambda: gwf.sinkhorn_divergence(X, Y, epsilon=1.0),
    "ksd2": lambda: gwf.ksd2(X, -X, kernel=KERNEL),
    "svgd_direction": lambda: gwf.svgd_direction(X, -X, kernel=KERNEL),
    "blob_velocity": lambda: gwf.blob_velocity(X, 1.0),
    "forward_step": lambda: gwf.forward_step(X, 0.1, kernel=KERNEL),
    "drift.coupling": lambda: gwf.drift.coupling(X, Y, temperature=0.5, coupling="sinkhorn", n_sweeps=3),
    "drift.gmd": lambda: gwf.drift.gmd(X, Y, temperature=0.5),
    "drift.gmd_multi": lambda: gwf.drift.gmd_multi(X, Y).velocity,
    "drift.sliced_wasserstein": lambda: gwf.drift.sliced_wasserstein(X, Y, directions=DIRECTIONS),
    "drift.critic": lambda: gwf.drift.critic(X, NET),
    "critic_objective": lambda: gwf.nn.critic_objective(NET, X, Y, divergence="js"),
    "gradient penalty": lambda: gwf.nn.critic_objective(
        NET, X, Y, divergence="ipm", penalty=1.0, mixing=torch.linspace(0, 1, 40)
    ),
    "log_abs_det": lambda: CONVEX.log_abs_det(X),
    "inverse": lambda: CONVEX.inverse(X),
    "score": lambda: NORMAL.score(X),
    "explicit flow": lambda: flow(gwf.Potential(lambda x: (x**2).sum(1)), scheme="explicit"),
    "torch engine": lambda: flow(gwf.JensenShannon(Y), engine="torch"),
    "fused engine": lambda: flow(gwf.JensenShannon(Y), engine="fused"),
    "drifting": drifting,
}


@pytest.mark.parametrize("mode", ["autocast", "inference", "no_grad"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_ambient_modes_change_nothing(name, mode):
    """Under autocast a bfloat16 product was read as float32; JS was .79 for -.01, log |det| off by 580 %."""
    want = FUNCTIONS[name]()
    modes: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode,
        "no_grad": torch.no_grad,
    }
    with modes[mode]():
        got = FUNCTIONS[name]()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.detach(), want.detach(), rtol=1e-6, atol=1e-7)


def test_halves_become_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        got = gwf.kernel_sum(X.bfloat16(), Y.bfloat16(), kernel=KERNEL)
    torch.testing.assert_close(got, gwf.kernel_sum(X.bfloat16().float(), Y.bfloat16().float(), kernel=KERNEL))


def test_tensors_of_inference_mode_may_be_differentiated():
    with torch.inference_mode():
        x, critic = X.clone(), gwf.drift.LearnedCritic(3)
        torch.testing.assert_close(gwf.drift.critic(x, NET), gwf.drift.critic(X, NET))
        assert critic(x, Y.clone()).isfinite().all()
        moved = gwf.drift.critic_step(x, NET, 0.1, out=x)
        assert moved is x
    torch.testing.assert_close(x.clone(), gwf.drift.critic_step(X, NET, 0.1))


def test_library_operators_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.ops.gwf_fast.pair_sum(X.bfloat16(), Y.bfloat16(), None, list(KERNEL.spec), False, None, None, "cpp")
    assert got.dtype == torch.float32


def test_every_function_for_people_passes_the_entry():
    functions = [getattr(gwf, name) for name in gwf.__all__] + [getattr(gwf.drift, name) for name in gwf.drift.__all__]
    entry_file = entry(print).__code__.co_filename
    without = [f.__name__ for f in functions if inspect.isfunction(f) and f.__code__.co_filename != entry_file]
    assert set(without) == {"backends", "explain", "with_error"}  # the last: what it calls does


def test_tensors_in_a_method_are_fitted_too():
    half = gwf.Sliced(directions=DIRECTIONS.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        got, error = gwf.with_error(gwf.kernel_sum, X.bfloat16(), Y.bfloat16(), kernel=KERNEL, method=half)
    whole = gwf.Sliced(directions=DIRECTIONS.bfloat16().float())
    want = gwf.kernel_sum(X.bfloat16().float(), Y.bfloat16().float(), kernel=KERNEL, method=whole)
    assert torch.equal(got, want) and error > 0


class Subclass(torch.Tensor):
    """A tensor with behaviour of its own."""


def others() -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # prototypes
        return {
            "meta": X.to("meta"),
            "sparse": X.to_sparse(),
            "csr": X.to_sparse_csr(),
            "nested": torch.nested.nested_tensor([X, Y]),
            "jagged": torch.nested.nested_tensor([X, Y], layout=torch.jagged),
            "subclass": X.as_subclass(Subclass),
            "masked array": np.ma.masked_array(X.numpy()),
        }


CALLS = {
    "targets": lambda t: gwf.kernel_sum(t, Y, kernel=KERNEL),
    "sources": lambda t: gwf.kernel_sum(X, t, kernel=KERNEL),
    "weights": lambda t: gwf.kernel_sum(X, X, t, kernel=KERNEL),
    "lengths": lambda t: gwf.kernel_sum(X[None], Y[None], kernel=KERNEL, x_lengths=t),
    "mmd2": lambda t: gwf.mmd2(X, t, kernel=KERNEL),
    "sliced_wasserstein2": lambda t: gwf.sliced_wasserstein2(t, Y, directions=DIRECTIONS),
    "directions": lambda t: gwf.sliced_wasserstein2(X, Y, directions=t),
    "sinkhorn": lambda t: gwf.sinkhorn(t, Y, epsilon=1.0),
    "ksd2": lambda t: gwf.ksd2(X, t, kernel=KERNEL),
    "median_bandwidth": lambda t: gwf.median_bandwidth(t),
    "out": lambda t: gwf.forward_step(X, 0.1, kernel=KERNEL, out=t),
    "drift.gmd": lambda t: gwf.drift.gmd(t, Y, temperature=1.0),
    "drift.coupling": lambda t: gwf.drift.coupling(t, Y, temperature=1.0),
    "drift.critic": lambda t: gwf.drift.critic(t, NET),
    "critic_objective": lambda t: gwf.nn.critic_objective(NET, t, Y, divergence="js"),
    "ICNNGradient": lambda t: CONVEX(t),
    "x0": lambda t: gwf.JKOFlow(gwf.JensenShannon(Y), 3, 0.1).init(t),
    "target": lambda t: gwf.JensenShannon(t),
}


@pytest.mark.parametrize("kind", others())
@pytest.mark.parametrize("name", CALLS)
def test_other_kinds_of_tensors_are_refused(name, kind):
    with pytest.raises(TypeError):
        CALLS[name](others()[kind])


def test_public_functions_close_over_no_sets():
    """torch.compile of torch 2.6 has no guard for a set in a closure (`make test-versions` compiles there)."""
    inspected = 0
    for name in gwf.__all__:
        function = getattr(gwf, name)
        while callable(function) and hasattr(function, "__closure__"):
            cells = [cell.cell_contents for cell in function.__closure__ or ()]
            assert not any(isinstance(content, (set, frozenset)) for content in cells), name
            inspected += bool(cells)
            function = getattr(function, "__wrapped__", None)
    assert inspected > 10


def test_sums_of_halves_in_a_graph_that_chooses_a_backend():
    """torch.compile has no identity for a constant from an outer frame."""

    def gradient(x):
        return gwf.kernel_gradient(x, x, kernel=gwf.Matern32(0.3), backend=ops.resolve(None, x.device, x.dtype))

    x = torch.randn(8, 3).half()
    assert torch.compile(gradient, fullgraph=True, backend="eager")(x).dtype == torch.float16
