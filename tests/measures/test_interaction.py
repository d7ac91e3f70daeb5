"""Interactions: energies and velocities against closed forms in float64, steps in place, bad input."""

from __future__ import annotations

import math

import pytest
import torch

import gwf_fast as gwf
from tests.cases import KERNELS, TOLERANCE, dense, error, points

RING = gwf.PowerLaw(4, 2)  # r^4 / 4 - r^2 / 2
PULL = 40 * gwf.PowerLaw(2, 1)


def ring(n: int, radius: float) -> torch.Tensor:
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return radius * torch.stack([angle.cos(), angle.sin()], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KERNELS)
def test_energy_and_velocity_against_closed_forms(name, dtype):
    case = KERNELS[name]
    x, y = points(70, 60, dtype=dtype)
    value, gradient = dense(case, x, x)
    energy = gwf.interaction_energy(x, kernel=case.kernel)
    # Relative to the mean of |W|: the mean of W itself may cancel.
    assert float((energy.double() - value.mean() / 2).abs() / value.abs().mean()) < TOLERANCE["value", dtype]
    assert error(gwf.interaction_velocity(x, kernel=case.kernel), -gradient.mean(1)) < TOLERANCE["gradient", dtype]
    _, gradient = dense(case, x, y)
    assert error(gwf.interaction_velocity(x, y, kernel=case.kernel), -gradient.mean(1)) < TOLERANCE["gradient", dtype]


def test_ring_force_is_radial_and_vanishes_at_the_equilibrium_radius():
    # On a uniform ring the outward force is R (1 - 3 R^2): E (|d|^2 - 1) d . x / R with |d|^2 = 2 R^2 (1 - cos).
    for radius in (0.4, 1 / math.sqrt(3), 0.9):
        x = ring(64, radius)
        expected = (1 - 3 * radius**2) * x
        assert (gwf.interaction_velocity(x, kernel=RING) - expected).abs().max() < 1e-13


def test_velocity_is_n_times_the_downhill_gradient_of_the_energy():
    x = points(40, 1, dim=3, dtype=torch.float64)[0].requires_grad_()
    kernel = -gwf.Gaussian(0.7) / math.pi + 0.2 * RING
    (gradient,) = torch.autograd.grad(gwf.interaction_energy(x, kernel=kernel), x)
    assert error(gwf.interaction_velocity(x.detach(), kernel=kernel), -40 * gradient) < 1e-12


def test_derivatives():
    x, s = (t.requires_grad_() for t in points(5, 4, dtype=torch.float64))
    x = (x.detach() + 0.3).requires_grad_()  # no coincident pairs: finite differences do not know the convention
    h = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def velocity(x, s, h):
        return gwf.interaction_velocity(x, s, kernel=gwf.Gaussian(h) + gwf.PowerLaw(2, 0))

    assert torch.autograd.gradcheck(velocity, (x, s, h))
    assert torch.autograd.gradgradcheck(velocity, (x, s, h))
    assert torch.autograd.gradcheck(lambda x: gwf.interaction_energy(x, kernel=gwf.Morse(1, 0.5, 0.6, 2)), x)
    assert torch.autograd.gradcheck(lambda x, s: gwf.forward_step(x, 0.1, kernel=RING, sources=s), (x, s))


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_forward_step_in_place_and_into_a_buffer(backend, own, batch):
    x, s = points(50, 30, dtype=torch.float32, batch=batch)
    s = None if own else s
    kernel = gwf.PowerLaw(2, 0)
    expected = x + 0.25 * gwf.interaction_velocity(x, s, kernel=kernel, backend=backend)
    step = {"kernel": kernel, "sources": s, "backend": backend}
    torch.testing.assert_close(gwf.forward_step(x, 0.25, **step), expected)
    out = torch.full_like(x, math.nan)
    assert gwf.forward_step(x, 0.25, out=out, **step) is out
    torch.testing.assert_close(out, expected)
    strided = torch.full((*x.shape[:-1], 4), math.nan)[..., ::2]
    assert gwf.forward_step(x, 0.25, out=strided, **step) is strided
    torch.testing.assert_close(strided, expected)
    moved = x.clone()
    assert gwf.forward_step(moved, 0.25, **{**step, "out": moved}) is moved
    torch.testing.assert_close(moved, expected)


def test_a_step_into_a_buffer_allocates_no_tensor():
    x = points(3000, 1, dtype=torch.float32)[0]
    out = torch.empty_like(x)
    with torch.profiler.profile(profile_memory=True) as profile:
        gwf.forward_step(x, 0.1, kernel=gwf.Gaussian(0.5), out=out)
    allocated = sum(max(0, event.self_device_memory_usage, event.self_cpu_memory_usage) for event in profile.events())
    assert allocated < x.nbytes / 10


def test_the_ring_is_where_particles_go():
    x = 0.5 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x -= x.mean(0)
    buffers = [x, torch.empty_like(x)]
    for step in range(400):
        gwf.forward_step(buffers[step % 2], 0.1, kernel=RING, out=buffers[(step + 1) % 2])
    radius = x.norm(dim=-1)
    assert abs(radius.square().mean().sqrt() * math.sqrt(3) - 1) < 2e-3
    assert radius.std() < 0.02


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"step_size": math.nan}, ValueError, "step_size must be a number >= 0, got nan"),
        ({"step_size": math.inf}, ValueError, "step_size"),
        ({"step_size": -0.1}, ValueError, "step_size must be a number >= 0, got -0.1"),
        ({"step_size": "0.1"}, TypeError, "step_size must be a number >= 0, got str '0.1'"),
        ({"step_size": True}, TypeError, "step_size"),
        ({"sources": torch.zeros(4, 3)}, ValueError, "sources must have the dimension of x, D = 2"),
        ({"sources": torch.zeros(4, 2, dtype=torch.float64)}, TypeError, "sources must have the dtype of x"),
        ({"sources": torch.zeros(0, 2)}, ValueError, "sources must have at least one particle"),
        ({"x": torch.zeros(0, 2)}, ValueError, "x must have at least one particle"),
        ({"x": torch.zeros(3)}, ValueError, "x must have shape"),
        ({"kernel": "gaussian"}, TypeError, "kernel must be a kernel"),
        ({"out": torch.zeros(4, 2)}, ValueError, "out must be as x"),
        ({"out": 3}, TypeError, "out must be a torch.Tensor"),
        ({"method": "magic"}, ValueError, "method must be"),
    ],
)
def test_bad_input(arguments, kind, message):
    call = {"x": torch.zeros(3, 2), "step_size": 0.1, "kernel": gwf.Gaussian(1.0), **arguments}
    with pytest.raises(kind, match=message):
        gwf.forward_step(call.pop("x"), call.pop("step_size"), **call)


def test_out_is_not_differentiable_and_not_shared():
    x = torch.randn(4, 2, requires_grad=True)
    with pytest.raises(ValueError, match="out must be None where a gradient is wanted"):
        gwf.forward_step(x, 0.1, kernel=RING, out=torch.empty(4, 2))
    memory = torch.randn(8, 2)
    with pytest.raises(ValueError, match="share no memory with x"):
        gwf.forward_step(memory[:4], 0.1, kernel=RING, out=memory[2:6])
    with pytest.raises(ValueError, match="share no memory with sources"):
        gwf.forward_step(torch.randn(4, 2), 0.1, kernel=RING, sources=memory, out=memory[2:6])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_halves_whose_sums_exceed_their_range(dtype):
    x = points(70, 60, dtype=torch.float32)[0].to(dtype)
    x[0] = 200.0
    kernel = 40 * gwf.Riesz(1.0)  # a sum is 1.6e6
    wide = x.double()
    assert error(gwf.interaction_energy(x, kernel=kernel), gwf.interaction_energy(wide, kernel=kernel)) < 1e-2
    velocity = gwf.interaction_velocity(wide, kernel=PULL)
    assert error(gwf.interaction_velocity(x, kernel=PULL), velocity) < 1e-2
    moved = wide + 0.01 * velocity
    assert error(gwf.forward_step(x, 0.01, kernel=PULL), moved) < 1e-2
    assert error(gwf.forward_step(x.clone(), 0.01, kernel=PULL, out=x), moved) < 1e-2
    assert x.dtype == dtype
    assert "in float32" in str(gwf.explain(gwf.forward_step, x, 0.01, kernel=PULL))
