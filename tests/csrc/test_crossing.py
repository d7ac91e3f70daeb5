"""Tensors cross into compiled code checked: strides are followed, and what does not fit is refused."""

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.kernels.cpp import drift as drift_cpp
from gwf_fast.kernels.cpp import mlp as mlp_cpp
from gwf_fast.kernels.cpp import pairs as cpp
from gwf_fast.kernels.cpp import primal_dual as primal_dual_cpp
from gwf_fast.kernels.cpp import sliced as sliced_cpp
from gwf_fast.kernels.cpp import small as small_cpp
from gwf_fast.kernels.cpp.transport import Solver
from gwf_fast.kernels.table.mlp import CompiledDensity

KERNEL = gwf.Gaussian(0.7)
GENERATOR = torch.Generator().manual_seed(0)
B, N, M, D = 3, 40, 50, 2
X, Y = (torch.randn(B, n, D, generator=GENERATOR, dtype=torch.float64) for n in (N, M))
SOLVER = Solver(1.0)
DIRECTIONS = torch.nn.functional.normalize(torch.randn(7, D, generator=GENERATOR, dtype=torch.float64), dim=-1)

RAGGED = {
    "kernel_sum": lambda x, y, **n: gwf.kernel_sum(x, y, kernel=KERNEL, **n),
    "kernel_gradient": lambda x, y, **n: gwf.kernel_gradient(x, y, kernel=KERNEL, **n),
    "kernel_logsumexp": lambda x, y, **n: gwf.kernel_logsumexp(x, y, kernel=KERNEL, **n).exp(),
    "kernel_average": lambda x, y, **n: gwf.kernel_average(x, y, kernel=KERNEL, **n),
    "nufft": lambda x, y, **n: gwf.kernel_sum(x, y, kernel=KERNEL, method="nufft", **n),
    "sliced": lambda x, y, **n: gwf.kernel_sum(x, y, kernel=KERNEL, method=gwf.Sliced(directions=DIRECTIONS), **n),
    "sliced_wasserstein2": lambda x, y, **n: gwf.sliced_wasserstein2(x, y, directions=DIRECTIONS, **n),
    "sliced_energy_distance": lambda x, y, **n: gwf.sliced_energy_distance(x, y, directions=DIRECTIONS, **n),
    "sinkhorn_divergence": lambda x, y, **n: gwf.sinkhorn_divergence(x, y, epsilon=1.0, **n),
    "drift.parzen_kl": lambda x, y, **n: gwf.drift.parzen_kl(x, y, 0.5, **n),
    "drift.f_divergence": lambda x, y, **n: gwf.drift.f_divergence(x, y, 0.5, divergence="js", **n),
    "drift.mmd": lambda x, y, **n: gwf.drift.mmd(x, y, kernel=KERNEL, **n),
    "drift.energy": lambda x, y, **n: gwf.drift.energy(x, y, **n),
    "drift.gmd": lambda x, y, **n: gwf.drift.gmd(x, y, temperature=0.5, **n),
    "drift.gmd_multi": lambda x, y, **n: gwf.drift.gmd_multi(x, y, **n).velocity,
    "drift.sinkhorn": lambda x, y, **n: gwf.drift.sinkhorn(x, y, epsilon=1.0, **n),
    "drift.sliced_wasserstein": lambda x, y, **n: gwf.drift.sliced_wasserstein(x, y, directions=DIRECTIONS, **n),
}


def lengths_in(layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same sizes for rows and columns, laid out in memory in several ways."""
    if layout == "expanded":
        return torch.tensor(9).expand(B), torch.tensor(23).expand(B)
    rows, columns = torch.tensor([[7, 31], [40, 4], [2, 50]]).unbind(1)
    return rows, columns


@pytest.mark.parametrize("layout", ["column", "expanded"])
@pytest.mark.parametrize("name", RAGGED)
def test_ragged_lengths_may_lie_in_memory_as_they_like(name, layout):
    """They were read by pointer: wrong by 2.0, out of bounds, or an abort."""
    strided = lengths_in(layout)
    assert not strided[0].is_contiguous()
    results = []
    for x_lengths, y_lengths in (strided, [n.clone(memory_format=torch.contiguous_format) for n in strided]):
        x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
        out = RAGGED[name](x, y, x_lengths=x_lengths, y_lengths=y_lengths)
        gradients = torch.autograd.grad(out.sum(), [x, y]) if out.requires_grad else ()
        results.append([out.detach(), *gradients])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def layouts(points: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values, in other orders of memory."""
    padded = torch.full((2 * len(points), points.shape[1] + 3), torch.nan, dtype=points.dtype)
    padded[::2, 1:-2] = points
    return {"transposed": points.T.contiguous().T, "strided": padded[::2, 1:-2]}


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_backends_follow_strides_themselves(layout):
    for dtype in (torch.float32, torch.float64):
        u, v = X[0].to(dtype), Y[0].to(dtype)
        got = cpp.pair_sum(layouts(u)[layout], layouts(v)[layout], None, KERNEL.spec)
        assert torch.equal(got, cpp.pair_sum(u, v, None, KERNEL.spec))
        same = layouts(u)[layout]
        assert torch.equal(cpp.pair_sum(same, same, None, KERNEL.spec), cpp.pair_sum(u, u, None, KERNEL.spec))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_that_are_minus_what_is_in_memory(dtype):
    """Such as the imaginary part of a conjugate: they were read with the wrong sign."""
    u, v = X[0].to(dtype), Y[0].to(dtype)
    turned = torch.complex(v, -v).conj().imag
    assert turned.is_neg() and torch.equal(turned, v)
    for call in (
        lambda y: gwf.kernel_sum(u, y, kernel=KERNEL),
        lambda y: gwf.sliced_energy_distance(u, y, directions=DIRECTIONS.to(dtype)),
        lambda y: gwf.drift.gmd_multi(u, y).velocity,
        lambda y: gwf.nn.critic_objective(gwf.nn.MLP([D, 4, 1]).to(dtype), y, u, divergence="js").sign() * 0 + y.sum(),
    ):
        assert torch.equal(call(turned), call(v))
    torch.manual_seed(0)
    net = gwf.nn.MLP([D, 4, 1]).to(dtype)
    assert torch.equal(net(turned), net(v))


def _mlp(x, parameters=None):
    net = gwf.nn.MLP([D, 4, 1]).double()
    return mlp_cpp.mlp_backward(x, parameters or net.parameter_list(), None, net.spec, wants_out=True)


def _sliced_sum(y):
    x, weights = X[0].T, torch.ones(1, 1, M, dtype=torch.float64)
    return sliced_cpp.sliced_sum(x, y, weights, 0, 9.0, 0, torch.ones(3).double(), torch.ones(2).double())


CROSSINGS = {
    "pairwise": lambda t: cpp.pair_sum(X[0], t, None, KERNEL.spec),
    "pairwise weights": lambda t: cpp.pair_sum(X[0], Y[0], t, KERNEL.spec),
    "pairwise log weights": lambda t: cpp.pair_logsumexp(X[0], Y[0], t, KERNEL.spec),
    "pairwise values": lambda t: cpp.pair_average(X[0], Y[0], t, None, KERNEL.spec),
    "pairwise lengths": lambda t: cpp.pair_sum(X, Y, None, KERNEL.spec, y_lengths=t),
    "pairwise out": lambda t: cpp.pair_gradient(X[0], Y[0], None, KERNEL.spec, out=t),
    "jet": lambda t: cpp.pair_jet(X[0], Y[0], X[0], t, None, None, [], KERNEL.spec),
    "jet tangent": lambda t: cpp.pair_jet(X[0], Y[0], X[0], Y[0], None, None, [(t, None, None, None)], KERNEL.spec),
    "stein": lambda t: cpp.stein_sum(X, t, KERNEL.spec, False),
    "drift": lambda t: drift_cpp.forces(X, t, None, 20, None, torch.ones(1, B).double(), None, 0.0, 0.0),
    "drift temperatures": lambda t: drift_cpp.forces(X, Y, None, 20, None, t, None, 0.0, 0.0),
    "drift sizes": lambda t: drift_cpp.total_distances(X, Y, None, 20, t, 0.0),
    "drift log weights": lambda t: drift_cpp.forces(X, Y, None, 20, None, torch.ones(1, B).double(), None, 0.0, 0.0, t),
    "joint drift": lambda t: drift_cpp.gmd(X, (t, None), (X, None), [1.0], 0.0, True),
    "joint drift negatives": lambda t: drift_cpp.gmd(X, (Y, None), (t, None), [1.0], 0.0, False),
    "joint drift log weights": lambda t: drift_cpp.gmd(X, (Y, t), (X, None), [1.0], 0.0, False),
    "joint drift weights": lambda t: drift_cpp.released([(X, t), (Y, None)], [1.0], 1e-6, False),
    "mmd": lambda t: small_cpp.mmd2(X, t, None, None, KERNEL.spec, False),
    "mmd weights": lambda t: small_cpp.mmd2(X, Y, None, t, KERNEL.spec, False),
    "svgd": lambda t: small_cpp.svgd(X, t, "pairs"),
    "transport": lambda t: SOLVER.run(X, t),
    "transport weights": lambda t: SOLVER.run(X, Y, None, t),
    "transport start": lambda t: SOLVER.run(X, Y, starts=(None, t, None)),
    "transport lengths": lambda t: SOLVER.run(X, Y, lengths=(t, None)),
    "transport potentials": lambda t: SOLVER.run(X, Y, potentials=(None, t, None, None)),
    "transport velocity": lambda t: SOLVER.run(X, Y, optimum=(None, None, None, None, None, t)),
    "sliced": lambda t: sliced_cpp.sliced("energy", X, t, DIRECTIONS),
    "sliced directions": lambda t: sliced_cpp.sliced("energy", X, Y, t),
    "sliced weights": lambda t: sliced_cpp.sliced("energy", X, Y, DIRECTIONS, weights=(t, None)),
    "sliced lengths": lambda t: sliced_cpp.sliced("energy", X, Y, DIRECTIONS, lengths=(None, t)),
    "sliced_sum": _sliced_sum,
    "mlp": _mlp,
    "mlp parameters": lambda t: _mlp(X[0], [t, *gwf.nn.MLP([D, 4, 1]).double().parameter_list()[1:]]),
}
HOSTILE = {
    "dtype": lambda: torch.zeros(3, 5, dtype=torch.bfloat16),
    "integers": lambda: torch.zeros(3, 5, dtype=torch.int32),
    "shape": lambda: torch.zeros(3, 1, 5, 7, dtype=torch.float64),
    "scalar": lambda: torch.tensor(1.0, dtype=torch.float64),
    "meta": lambda: torch.zeros(50, 2, dtype=torch.float64, device="meta"),
    "sparse": lambda: torch.eye(3, dtype=torch.float64).to_sparse(),
    "array": lambda: torch.zeros(3).numpy(),
    "number": lambda: 3.0,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", CROSSINGS)
def test_what_does_not_fit_is_refused(name, kind):
    with pytest.raises((TypeError, ValueError, AttributeError, IndexError)):
        CROSSINGS[name](HOSTILE[kind]())


def test_lengths_out_of_range_are_refused():
    for bad in ([1, 2, M + 1], [0, -1, 3]):
        with pytest.raises(ValueError, match="y_lengths"):
            cpp.pair_sum(X, Y, None, KERNEL.spec, y_lengths=torch.tensor(bad))


def test_the_fused_loop_checks_what_it_trains():
    spec = gwf.nn.MLP([2, 4, 2]).spec
    good = [torch.zeros(4, 2), torch.zeros(4), torch.zeros(1), torch.zeros(2, 4), torch.zeros(2)]
    bad = [*good[:3], torch.zeros(2, 5), good[4]]
    for parts in ((bad, good, good), (good, bad, good), (good, good, bad)):
        with pytest.raises(TypeError, match="weight"):
            primal_dual_cpp.PrimalDual(problem(primal_dual_cpp.Trained(spec, *parts, 0, 1e-3)))
    primal_dual_cpp.PrimalDual(problem(primal_dual_cpp.Trained(spec, good, good, good, 0, 1e-3)))


def problem(trained):
    """A step without a critic."""
    numbers: dict[str, object] = {"target_kind": "whole", "log_mean": False, "with_log_mu": False, "log_norm": 0.0}
    numbers |= {"batch": 10, "target_batch": 0, "coefficient": 1.0, "map_coefficient": 1.0, "step_size": 0.1}
    numbers |= {"critic_steps": 0, "map_steps": 1, "seed": 0, "target_stream": 1, "penalty_stream": 1, "penalty": 0.0}
    numbers |= {"map_dropout": 0.0, "critic_dropout": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    numbers |= {"weight_decay": 0.0}
    return primal_dual_cpp.Problem(
        numbers=numbers | {"clip": 0.0, "average": 0.0},
        inputs=torch.zeros(10, 2),
        anchors=torch.zeros(10, 2),
        density=CompiledDensity(),
        of_model=("identity", 0.0),
        of_target=("identity", 0.0),
        map=trained,
        schedule=torch.ones(3, dtype=torch.float64),
        **dict.fromkeys(("target", "begin", "whitening", "rest", "critic")),
    )
