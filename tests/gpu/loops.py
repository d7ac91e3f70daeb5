"""Inner problems for the loops of the CPU and of a GPU: the same problem, solved by both."""

from __future__ import annotations

import torch
from torch import nn

from gwf_fast.flows.engines.base import StepProblem
from gwf_fast.flows.engines.fused import compiled_problem
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import KL, FDivergence
from gwf_fast.kernels.cpp.primal_dual import PrimalDual as HostLoop
from gwf_fast.nn import MLP
from gwf_fast.potentials import BayesianLogisticRegression, Gaussian, GaussianMixture


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def samples(dim, dtype=torch.float64, n=300):
    return (0.7 * normals(1, n, dim) + 0.5).to(dtype)


def gaussian(dim):
    root = normals(3, dim, dim)
    return KL(Gaussian(normals(6, dim), root @ root.T / dim + torch.eye(dim)))


def mixture(dim):
    return KL(GaussianMixture(normals(2, 5, dim), 0.8, torch.tensor([1.0, 2, 3, 4, 5])))


def logistic(dim, count=150):
    return KL(BayesianLogisticRegression(normals(4, count, dim - 1), normals(5, count).sign()))


def divergence(name="js", parameter=None):
    return lambda dim: FDivergence(name, samples(dim), parameter)


def inner_problem(functional, dim=3, *, dtype=torch.float64, training=None, activation="prelu", widths=(16, 16),
                  pool=500, latent=None, step_size=0.5, seed=0, device="cpu", output=None, slope=None):  # fmt: skip
    """A StepProblem with networks away from their start."""
    training = training or Training(batch_size=64, iterations=20, critic_steps=3, map_steps=2)
    torch.manual_seed(seed)
    transport = MLP([latent or dim, *widths, dim], activation, output, residual=latent is None)
    critic = functional.build_critic(lambda: MLP([dim, *widths, 1], activation))
    with torch.no_grad():
        for p in transport.parameters():
            p.add_(0.05 * torch.randn_like(p))
        for unit in (m for net in (transport, critic) for m in net.modules() if isinstance(m, nn.PReLU)):
            if slope is not None:
                unit.weight.fill_(slope)
    transport, critic = (net.to(device, dtype) for net in (transport, critic))
    inputs = normals(0, pool, latent or dim).to(dtype)
    anchors = (1.5 * inputs[:, :dim] + 0.3).contiguous().to(device)
    inputs = inputs.to(device)
    flow = JKOFlow(functional, dim, step_size, map=transport, critic=critic, training=training)
    problem = StepProblem(
        functional=functional,
        step_size=step_size,
        inputs=inputs if latent else anchors,
        anchors=anchors,
        reference=functional.reference(anchors),
        map=transport,
        critic=critic,
        map_optimizer=flow._optimizer(transport, training.lr, None),
        critic_optimizer=flow._optimizer(critic, training.critic_lr or training.lr, None),
        training=training,
    )
    torch.manual_seed(seed + 5)
    return problem


def state(problem):
    """Parameters, first and second moments of both networks, one vector each."""
    parts = ([], [], [])
    for net, optimizer in ((problem.map, problem.map_optimizer), (problem.critic, problem.critic_optimizer)):
        for p in net.parameters():
            moments = optimizer.state[p]
            for part, value in zip(parts, (p, moments["exp_avg"], moments["exp_avg_sq"]), strict=True):
                part.append(value.detach().flatten().double().cpu())
    return [torch.cat(part) for part in parts]


def solved(loop, problem, chunks=()):
    """Runs a loop in so many parts; its report of the last."""
    with torch.no_grad():
        made, done = loop(compiled_problem(problem)), 0
        for count in (*chunks, problem.training.iterations - sum(chunks)):
            report = made.run(done, count, 1)
            done += count
        made.write_back()
    return report


def difference(loop, make, *, chunks=(), output_bias=True, **options):
    """The largest relative difference between the loop's results and the CPU's.

    Of parameters, of first and of second moments, and of the losses. The parameters must have moved. Without
    ``output_bias`` all but the bias of the critic's output, which an IPM has no gradient in, so that Adam steps on
    rounding, and but the map's losses, which it shifts.
    """
    truth = inner_problem(make(options.get("dim", 3)), **options | {"device": "cpu"})
    start = state_of_parameters(truth)
    expected = solved(HostLoop, truth, chunks)
    assert (state(truth)[0] - start).norm() > 1e-3 * start.norm()
    problem = inner_problem(make(options.get("dim", 3)), **options)
    report = solved(loop, problem, chunks)
    assert report["iterations"] == expected["iterations"]
    compared = slice(None) if output_bias else slice(-1)
    pairs = zip(state(problem), state(truth), strict=True)
    errors = [((a[compared] - b[compared]).norm() / b[compared].norm()).item() for a, b in pairs]
    for key in ("map_loss", "critic_loss", "mean_map_loss") if output_bias else ("critic_loss",):
        errors.append(abs(report[key] - expected[key]) / max(1.0, abs(expected[key])))
    return max(errors)


def state_of_parameters(problem):
    nets: list[nn.Module] = [problem.map, problem.critic]
    return torch.cat([p.detach().flatten().double().cpu() for net in nets for p in net.parameters()]).clone()
