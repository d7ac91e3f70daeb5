"""nn.ICNNGradient: derivatives against autograd, the inverse in hard cases, densities of flows with known answer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.flows.jko import FlowResult
from gwf_fast.nn import ICNNGradient


def rough(dim: int, hidden=(16, 16), size: float = 1.0, seed: int = 0) -> ICNNGradient:
    """A map far from the identity, float64."""
    torch.manual_seed(100 * seed + dim)
    icnn = ICNNGradient(dim, hidden).double()
    with torch.no_grad():
        for parameter in icnn.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return icnn


def cloud(n: int, dim: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("hidden", [(), (7,), (16, 5, 9)])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_derivatives_agree_with_autograd(dim, hidden):
    icnn, x = rough(dim, hidden), cloud(6, dim).requires_grad_()
    (gradient,) = torch.autograd.grad(icnn.potential(x).sum(), x)
    torch.testing.assert_close(icnn(x), gradient)
    hessian = torch.stack([torch.autograd.functional.jacobian(icnn, row) for row in x.detach()])
    torch.testing.assert_close(icnn.jacobian(x), hessian)
    torch.testing.assert_close(icnn.log_abs_det(x), hessian.slogdet()[1])
    assert torch.autograd.gradcheck(icnn.log_abs_det, x)


@pytest.mark.parametrize("size", [1.0, 5.0])
def test_convex_whatever_the_parameters(size):
    icnn = rough(3, size=size)
    assert torch.linalg.eigvalsh(icnn.jacobian(3 * cloud(500, 3))).min() >= 1e-3 - 1e-9


@pytest.mark.parametrize("size", [0.3, 1.0, 3.0])
def test_round_trip_over_many_points(size):
    icnn, x = rough(2, size=size), 3 * cloud(100_000, 2)
    z = icnn(x).detach()
    back = icnn.inverse(z)
    assert ((icnn(back) - z).norm(dim=1) / (1 + z.norm(dim=1))).max() <= 1e-12
    assert (back - x).abs().max() < 1e-7  # a residual of 1e-12 over the least curvature, 1e-3, and |z|


def test_inverse_where_full_newton_steps_never_end():
    """T(x) = c x + 50 sigmoid(50 x): from the flat parts a full step leaps to the other side, and back again."""
    icnn = ICNNGradient(1, (1,)).double()
    with torch.no_grad():
        icnn.scale.zero_()
        inputs: Any = icnn.inputs[0]
        inputs.weight.fill_(50.0)
        inputs.bias.zero_()
        icnn.positive[-1].fill_(math.log(math.expm1(1.0)))
    x = torch.linspace(-3, 3, 2001, dtype=torch.float64)[:, None]
    assert (icnn(x) - (1e-3 * x + 50 * torch.sigmoid(50 * x))).abs().max() < 1e-12
    z = icnn(x).detach()
    back = icnn.inverse(z)
    assert ((icnn(back) - z).abs() / (1 + z.abs())).max() <= 1e-12


def test_round_trip_in_single_precision():
    icnn = rough(3, size=0.3).float()
    x = cloud(1000, 3).float()
    assert (icnn.inverse(icnn(x).detach()) - x).abs().max() < 1e-4


def test_inverse_of_shapes_and_of_rows_that_are_not_finite():
    icnn = rough(2)
    z = cloud(12, 2).view(3, 4, 2)
    assert icnn.inverse(z).shape == (3, 4, 2) and icnn.log_abs_det(z).shape == (3, 4)
    z[0, 0, 0] = math.nan
    back = icnn.inverse(z)
    assert back[0, 0].isnan().all() and back.flatten(0, 1)[1:].isfinite().all()
    assert icnn.inverse(z[:0]).shape == (0, 4, 2)
    with pytest.raises(RuntimeError, match="did not reach tolerance=1e-12 in 0 iterations"):
        icnn.inverse(cloud(3, 2), max_iterations=0)


def test_density_of_a_flow_with_known_answer():
    """F = E |x - eta|^2 / 2 takes N(0, I) to N((1 - r) eta, r^2 I) with r = (1 + a)^-k."""
    eta, a = torch.tensor([2.0, -1.0], dtype=torch.float64), 0.5
    start = gwf.potentials.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    training = gwf.Training(
        batch_size=256, iterations=400, lr=0.05, lr_schedule="cosine", warm_start=False, pool_size=256
    )
    flow = gwf.JKOFlow(
        gwf.Potential(lambda x: (x - eta).square().sum(-1) / 2), 2, a, map=ICNNGradient(2, (8,)), training=training
    )
    result = flow.run(start.sample, 2, progress=False)
    r = (1 + a) ** -2
    exact = gwf.potentials.Gaussian((1 - r) * eta, r**2 * torch.eye(2).double())
    x = exact.sample(2000)
    assert (result.log_density(x) - exact.log_density(x)).abs().max() < 0.02
    torch.testing.assert_close(result.log_density(x, start.log_density), result.log_density(x))


def test_density_through_exact_maps():
    """Linear maps between Gaussians, set by hand: the change of variables itself, without training."""
    flow = gwf.JKOFlow(gwf.Potential(lambda x: x.sum(-1)), 3, 1.0, map=ICNNGradient(3, ()))
    start = gwf.potentials.Gaussian(torch.zeros(3).double(), torch.eye(3).double())
    state = flow.init(cloud(200, 3))
    maps = [rough(3, ()), rough(3, (), seed=1)]  # they do not commute
    result = FlowResult(replace(state, maps=tuple(maps)), start.sample)
    linear = [m.jacobian(torch.zeros(3).double()) for m in maps]
    whole = linear[1] @ linear[0]
    mean = linear[1] @ maps[0].shift + maps[1].shift
    exact = gwf.potentials.Gaussian(mean.detach(), (whole @ whole.T).detach())
    x = exact.sample(1000)
    torch.testing.assert_close(result.log_density(x), exact.log_density(x), rtol=1e-9, atol=1e-9)


def test_densities_that_are_not_known():
    flow = gwf.JKOFlow(gwf.Potential(lambda x: x.sum(-1)), 2, 1.0, training=gwf.Training(batch_size=8, iterations=1))
    result = flow.run(torch.zeros(9, 2), 1, progress=False)
    with pytest.raises(ValueError, match="log P_0 is not known"):
        result.log_density(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="step 1 is a MLP"):
        result.log_density(torch.zeros(3, 2), lambda x: x[:, 0])


def test_a_checkpoint_holds_it(tmp_path):
    training = gwf.Training(batch_size=8, iterations=2)
    flow = gwf.JKOFlow(
        gwf.SquaredMMD(torch.ones(8, 2), gwf.Riesz()), 2, 1.0, map=ICNNGradient(2, (4,)), training=training
    )
    result = flow.run(torch.randn(9, 2), 1, progress=False, checkpoint=tmp_path)
    resumed = gwf.JKOFlow.resume(tmp_path, progress=False)
    assert torch.equal(resumed.push(torch.ones(3, 2)), result.push(torch.ones(3, 2)))


def test_bad_arguments():
    for arguments in ((0, (4,)), (2, (4, 0)), (2, (1.5,))):
        with pytest.raises((ValueError, TypeError), match=r"(dim|hidden) must be a positive integer"):
            ICNNGradient(*arguments)
    with pytest.raises(ValueError, match="convexity must be a number between"):
        ICNNGradient(2, convexity=0.0)
    with pytest.raises(ValueError, match=r"z must have shape \[\*B, 2\], got \[5, 3\]"):
        ICNNGradient(2).inverse(torch.zeros(5, 3))
    with pytest.raises(TypeError, match="must have the dtype of the map"):
        ICNNGradient(2)(torch.zeros(5, 2).double())
