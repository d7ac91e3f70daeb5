"""The critic's objective in one pass: value and derivatives against formulas, for every divergence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gwf_fast as gwf
from gwf_fast.nn.divergences import DIVERGENCES, divergence, variational

ROWS = [
    "kl",
    "reverse_kl",
    "js",
    "pearson",
    "neyman",
    "squared_hellinger",
    "total_variation",
    ("alpha", 1.7),
    ("alpha", 0.5),
    ("alpha", -1.0),
    ("generalized_entropy", 2.0),
    ("generalized_entropy", 3.5),
]


def row(name):
    return divergence(*((name,) if isinstance(name, str) else name))


def batches(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x, z = (torch.randn(n, 3, generator=generator, dtype=dtype).requires_grad_() for n in (50, 70))
    return x, z


def expectations(name, critic: nn.Module, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """E_P A and E_Q B, from f* itself and not from its simplified composition."""
    r = row(name)
    h = [r.activation(nn.Sequential.forward(critic, points)[:, 0]) for points in (x, z)]  # type: ignore[arg-type]
    return h[0].mean(), r.conjugate(h[1]).mean()


def reference(name, critic: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    model, data = expectations(name, critic, x, z)
    return model - data


def test_every_row_is_here():
    assert {name if isinstance(name, str) else name[0] for name in ROWS} == set(DIVERGENCES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ROWS, ids=str)
def test_value_and_derivatives(name):
    critic = gwf.nn.MLP((3, 20, 20, 1), "silu").double()
    x, z = batches()
    inputs = [x, z, *critic.parameters()]
    value, want = gwf.nn.critic_objective(critic, x, z, divergence=name), reference(name, critic, x, z)
    torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-13)
    first = torch.autograd.grad(3 * value, inputs, retain_graph=True)
    for mine, theirs in zip(first, torch.autograd.grad(3 * want, inputs, retain_graph=True), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)

    def second(f: Tensor) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(f, inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs, materialize_grads=True)  # type: ignore[arg-type]

    for mine, theirs in zip(second(value), second(want), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ROWS, ids=str)
def test_float32(name):
    critic = gwf.nn.MLP((3, 20, 20, 1))
    x, z = batches(torch.float32)
    got = torch.autograd.grad(gwf.nn.critic_objective(critic, x, z, divergence=name), [x, z, *critic.parameters()])
    exact = gwf.nn.MLP((3, 20, 20, 1)).double()
    exact.load_state_dict(critic.state_dict())
    points = [t.detach().double().requires_grad_() for t in (x, z)]
    inputs = [*points, *exact.parameters()]
    sides = expectations(name, exact, *points)
    model, data = (torch.autograd.grad(side, inputs, retain_graph=True, materialize_grads=True) for side in sides)
    for mine, plus, minus in zip(got, model, data, strict=True):
        # the two sides cancel; rounding is relative to each of them
        assert (mine - (plus - minus)).norm() < 1e-6 * (plus.norm() + minus.norm())


def test_only_what_requires_grad_gets_one():
    critic = gwf.nn.MLP((3, 8, 1)).double()
    x, z = batches()
    gwf.nn.critic_objective(critic, x.detach(), z.detach(), divergence="js").backward()
    assert all(p.grad is not None for p in critic.parameters())
    critic.requires_grad_(False)
    (dx,) = torch.autograd.grad(gwf.nn.critic_objective(critic, x, z.detach(), divergence="js"), x)
    (want,) = torch.autograd.grad(reference("js", critic, x, z), x)
    torch.testing.assert_close(dx, want)
    with torch.no_grad():
        assert not gwf.nn.critic_objective(critic, x, z, divergence="js").requires_grad


def test_any_module_is_a_critic():
    x, z = batches()
    for critic in (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)),
    ):
        critic.double()
        value = gwf.nn.critic_objective(critic, x, z, divergence="js")
        r = variational("js")
        want = r.activation(critic(x)).mean() - r.conjugate_of_activation(critic(z)).mean()
        torch.testing.assert_close(value, want)
    tamed = gwf.nn.MLP((3, 4, 1), output="tanh").double()  # its own activation stays between network and divergence
    torch.testing.assert_close(gwf.nn.critic_objective(tamed, x, z, divergence="kl"), reference("kl", tamed, x, z))


def test_compile():
    critic = gwf.nn.MLP((3, 8, 1)).double()
    x, z = batches()

    def value(x: Tensor, z: Tensor) -> Tensor:
        return gwf.nn.critic_objective(critic, x, z, divergence="js")

    inputs = [x, z, *critic.parameters()]
    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(x, z), inputs) for f in (compiled, value))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_threads_do_not_matter():
    critic = gwf.nn.MLP((3, 128, 128, 1), "softplus")
    x, z = (torch.randn(n, 3, requires_grad=True) for n in (1000, 1300))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            value = gwf.nn.critic_objective(critic, x, z, divergence="js")
            results.append([value, *torch.autograd.grad(value, [x, z, *critic.parameters()])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def _hinge(hx: Tensor, hz: Tensor) -> Tensor:
    """Miyato et al. (2018), with D = -h: E_Q min(0, D - 1) + E_P min(0, -D - 1)."""
    return torch.minimum(torch.zeros_like(hz), -hz - 1).mean() + torch.minimum(torch.zeros_like(hx), hx - 1).mean()


OTHERS = {
    "ipm": lambda hx, hz: hx.mean() - hz.mean(),
    "hinge": _hinge,
    "donsker_varadhan": lambda hx, hz: hx.mean() - hz.exp().mean().log(),
    "kl_density": lambda hx, hz: hx.mean() - hz.exp().mean(),
    ("entropy", 2.5): lambda hx, hz: (2.5 * hx.mean() - 1.5 * (nn.functional.relu(hz) ** (2.5 / 1.5)).mean()) / 1.5,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OTHERS, ids=str)
def test_the_other_objectives(name, dtype):
    critic: Any = gwf.nn.MLP((3, 20, 20, 1), "silu")
    with torch.no_grad():
        critic[-1].weight.mul_(8)  # outputs on either side of the hinges
    critic = critic.to(dtype)
    x, z = batches(dtype)
    exact, (xd, zd) = copy.deepcopy(critic).double(), (t.detach().double().requires_grad_() for t in (x, z))
    value = gwf.nn.critic_objective(critic, x, z, divergence=name)
    want = OTHERS[name](*(nn.Sequential.forward(exact, points)[:, 0] for points in (xd, zd)))
    rtol = 1e-10 if dtype is torch.float64 else 3e-5
    torch.testing.assert_close(value.double(), want, rtol=rtol, atol=rtol)
    got = torch.autograd.grad(3 * value, [x, z, *critic.parameters()], retain_graph=True)
    truth = torch.autograd.grad(3 * want, [xd, zd, *exact.parameters()], create_graph=True)
    for mine, theirs in zip(got, truth, strict=True):
        assert (mine - theirs).norm() <= rtol * (1 + theirs.norm())
    if dtype is torch.float64:
        graph = torch.autograd.grad(3 * value, [x, z, *critic.parameters()], create_graph=True)
        seconds = [
            torch.autograd.grad(sum(g.square().sum() for g in first), inputs, materialize_grads=True)  # type: ignore[arg-type]
            for first, inputs in ((graph, [x, *critic.parameters()]), (truth, [xd, *exact.parameters()]))
        ]
        for mine, theirs in zip(*seconds, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("activation", ["leaky_relu", "prelu", "silu", "softplus"])
@pytest.mark.parametrize("name", ["ipm", "js"])
def test_wgan_gp_gradient_against_plain_pytorch(name, activation):
    critic = gwf.nn.MLP((3, 20, 20, 1), activation).double()
    x, z = batches()
    e = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    value = gwf.nn.critic_objective(critic, x, z, divergence=name, penalty=7.0, mixing=e)
    plain = nn.Sequential(*critic)
    between = (e[:, None] * x + (1 - e[:, None]) * z[:50]).detach().requires_grad_()
    (slope,) = torch.autograd.grad(plain(between).sum(), between, create_graph=True)
    base = plain(x).mean() - plain(z).mean() if name == "ipm" else reference(name, critic, x, z)
    want = base - 7.0 * ((slope.norm(dim=1) - 1) ** 2).mean()
    torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-12)
    got, truth = (torch.autograd.grad(v, [x, z, *critic.parameters()], materialize_grads=True) for v in (value, want))
    for mine, theirs in zip(got, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_spectral_norm_goes_through_the_compiled_pass():
    critic = gwf.nn.MLP((3, 20, 20, 1), "leaky_relu").double()
    for layer in critic:
        if isinstance(layer, nn.Linear):
            nn.utils.parametrizations.spectral_norm(layer)
    x, z = batches()
    assert critic.objective_parameters(x) is not None
    twin = copy.deepcopy(critic)
    value = gwf.nn.critic_objective(critic, x, z, divergence="ipm")
    want = nn.Sequential.forward(twin, torch.cat((x, z)))[:, 0]  # one power iteration, as ours
    want = want[:50].mean() - want[50:].mean()
    torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-12)
    got = torch.autograd.grad(value, [x, *critic.parameters()], materialize_grads=True)
    truth = torch.autograd.grad(want, [x, *twin.parameters()], materialize_grads=True)
    for mine, theirs in zip(got, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_donsker_varadhan_does_not_overflow():
    critic: Any = gwf.nn.MLP((3, 4, 1))
    with torch.no_grad():
        critic[-1].bias.fill_(500.0)
    x, z = batches(torch.float32)
    value = gwf.nn.critic_objective(critic, x, z, divergence="donsker_varadhan")
    assert value.isfinite() and abs(value.item()) < 1  # a constant changes nothing
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, list(critic.parameters())))


def test_the_penalty_of_any_module_and_of_draws():
    x, z = batches()
    modules = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    twin = gwf.nn.MLP((3, 8, 1), "tanh").double()
    twin.load_state_dict(modules.state_dict())
    values = []
    for critic in (modules, twin):
        torch.manual_seed(3)
        values.append(gwf.nn.critic_objective(critic, x, z, divergence="ipm", penalty=1.0))
    torch.testing.assert_close(*values)


def test_bad_input():
    critic = gwf.nn.MLP((3, 4, 1)).double()
    x, z = batches()
    for bad, message in (
        ({"divergence": "hing"}, "divergence must be one of kl, .*, hinge, .* got 'hing'"),
        ({"divergence": ("hinge", 2.0)}, "'hinge' takes no parameter"),
        ({"divergence": "entropy"}, "with m > 1"),
        ({"divergence": "ipm", "penalty": -1.0}, "penalty must be a number >= 0"),
        ({"divergence": "ipm", "penalty": 1.0, "mixing": torch.ones(3)}, r"mixing must have shape \[50\], got \[3\]"),
        ({"divergence": ("alpha", 1.0)}, "alpha = 1 is a limit"),
        ({"divergence": ("alpha",)}, r"divergence must be a name or a pair"),
        ({"z": z[:, :2], "divergence": "kl"}, "z must have the dimension of x, D = 3"),
        ({"z": z[:0], "divergence": "kl"}, r"z must have shape \[N, D\] with N >= 1, got \[0, 3\]"),
        (
            {"critic": gwf.nn.MLP((3, 4, 2)).double(), "divergence": "kl"},
            r"critic must map \[N, D\] to \[N, 1\] or \[N\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            gwf.nn.critic_objective(**({"critic": critic, "x": x, "z": z} | bad))
