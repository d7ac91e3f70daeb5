"""Drifts against minus the gradient of what they descend, by finite differences in float64, and dense definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import gwf_fast as gwf

F64 = torch.float64


def clouds(n=7, m=9, dim=3, batch=(), seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, dim, generator=g, dtype=F64)
    y = 0.8 * torch.randn(*batch, m, dim, generator=g, dtype=F64) + 0.5
    return x.to(dtype), y.to(dtype)


def descent(f, x, eps=1e-5):
    """-df/dx by central differences, [N, D]."""
    out = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x).view(-1)
        step[i] = eps
        out.view(-1)[i] = -(f(x + step.view_as(x)) - f(x - step.view_as(x))) / (2 * eps)
    return out


def distances(x, y):
    return (x[..., :, None, :] - y[..., None, :, :]).norm(dim=-1)


def mean_pairs(k, x, y):
    return k(distances(x, y)).mean()


def half_mmd2(k, x, y):
    return 0.5 * (mean_pairs(k, x, x) + mean_pairs(k, y, y)) - mean_pairs(k, x, y)


RADIAL = {
    "gaussian": (gwf.Gaussian(0.9), lambda r: torch.exp(-(r**2) / (2 * 0.81))),
    "imq": (gwf.IMQ(0.7), lambda r: (1 + r**2 / 0.49) ** -0.5),
    "laplace": (gwf.Laplace(1.1), lambda r: torch.exp(-r / 1.1)),
}


@pytest.mark.parametrize("name", RADIAL)
def test_mmd_descends_half_the_squared_mmd(name):
    kernel, k = RADIAL[name]
    x, y = clouds()
    want = descent(lambda x: len(x) * half_mmd2(k, x, y), x)
    torch.testing.assert_close(gwf.drift.mmd(x, y, kernel=kernel), want, rtol=1e-6, atol=1e-8)


def test_mmd_without_self_descends_the_u_statistic():
    kernel, k = RADIAL["gaussian"]
    x, y = clouds()
    n = len(x)

    def energy(x):
        off = ~torch.eye(n, dtype=torch.bool)
        return n * (0.5 * k(distances(x, x))[off].sum() / (n * (n - 1)) - mean_pairs(k, x, y))

    got = gwf.drift.mmd(x, y, kernel=kernel, exclude_self=True)
    torch.testing.assert_close(got, descent(energy, x), rtol=1e-6, atol=1e-8)


def test_mmd_noise_moves_where_the_gradient_is_taken():
    kernel, k = RADIAL["gaussian"]
    x, y = clouds()
    u = torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(3))

    def witness(z):
        return (k(distances(z, x)).mean(1) - k(distances(z, y)).mean(1)).sum()

    got = gwf.drift.mmd(x, y, kernel=kernel, noise=0.3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(got, descent(witness, x + 0.3 * u), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("exponent", [1.0, 1.5])
def test_energy_descends_half_the_energy_distance(exponent):
    x, y = clouds()
    want = descent(lambda x: len(x) * half_mmd2(lambda r: -(r**exponent), x, y), x)
    torch.testing.assert_close(gwf.drift.energy(x, y, exponent=exponent), want, rtol=1e-6, atol=1e-8)


def parzen(z, samples, h, exclude_self=False):
    k = torch.exp(-(distances(z, samples) ** 2) / (2 * h**2)) / (2 * math.pi * h**2) ** (z.shape[-1] / 2)
    if exclude_self:
        return (k - torch.diag(k.diag())).sum(1) / (len(samples) - 1)
    return k.mean(1)


F_PRIME = {
    "kl": lambda r: 1 + r.log(),
    "reverse_kl": lambda r: -1 / r,
    "pearson": lambda r: 2 * (r - 1),
    "neyman": lambda r: 1 - r**-2,
    "js": lambda r: (2 * r / (1 + r)).log(),
    "jeffreys": lambda r: 1 + r.log() - 1 / r,
    "log_d": lambda r: (1 + r).log(),
    "squared_hellinger": lambda r: 1 - r**-0.5,
    ("alpha", 0.5): lambda r: -2 * (r**-0.5 - 1),
    ("generalized_entropy", 3.0): lambda r: (3 * r**2 - 1) / 2,
}


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("name", F_PRIME)
def test_f_divergence_descends_the_first_variation(name, exclude_self):
    x, y = clouds()
    h = 0.8

    def first_variation(z):  # at z, the densities being those of x and y: so the sources stay
        return F_PRIME[name](parzen(z, x, h, exclude_self) / parzen(z, y, h)).sum()

    got = gwf.drift.f_divergence(x, y, h, divergence=name, exclude_self=exclude_self)
    torch.testing.assert_close(got, descent(first_variation, x), rtol=1e-6, atol=1e-7)
    if name == "kl":
        torch.testing.assert_close(gwf.drift.parzen_kl(x, y, h, exclude_self=exclude_self), got)


def test_far_clouds_do_not_matter():
    x, y = clouds(dtype=torch.float32)
    near, far = (gwf.drift.parzen_kl(x + s, y + s, 0.8) for s in (0.0, 1024.0))
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-3)  # x itself is rounded to 1e-4


def algorithm_2(x, y, negatives, temperature, mask, clip=0.0):
    """Deng et al., Algorithm 2, dense: MATH.md 4; the clip of the released code."""
    d_neg = distances(x, negatives)
    if mask:
        d_neg = d_neg + 1e6 * torch.eye(len(x), dtype=x.dtype)
    logit = -torch.cat([distances(x, y), d_neg], 1) / temperature
    a = (logit.softmax(1) * logit.softmax(0)).clamp(min=clip).sqrt()
    pos, neg = a[:, : len(y)], a[:, len(y) :]
    return (pos * neg.sum(1, keepdim=True)) @ y - (neg * pos.sum(1, keepdim=True)) @ negatives


@pytest.mark.parametrize("clip", [None, 1e-6, 1e-3])
@pytest.mark.parametrize("temperature", [0.02, 0.3, 5.0])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("n", "m"), [(70, 130), (401, 388)])  # in a core's cache, and streamed
def test_gmd_is_algorithm_2(n, m, own, temperature, clip):
    x, y = clouds(n, m, 2)
    negatives = x if own else clouds(55, 5, 2, seed=4)[0]
    got = gwf.drift.gmd(x, y, temperature=temperature, negatives=None if own else negatives, clip=clip)
    want = algorithm_2(x, y, negatives, temperature, own, clip or 0.0)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n", [60, 300])
def test_gmd_clips_on_the_portable_path(n):
    x, y = clouds(n, 2 * n, 7)
    options: dict[str, Any] = {"temperature": 0.4, "clip": 1e-5}
    assert torch.allclose(gwf.drift.gmd(x, y, **options), gwf.drift.gmd(x, y, backend="torch", **options), atol=1e-12)
    with pytest.raises(ValueError, match="clip is served by backend"):
        gwf.drift.gmd(x, y, backend="keops", **options)


def test_gmd_in_float32():
    x, y = clouds(70, 130, 64)
    want = algorithm_2(x, y, x, 0.5, True)
    got = gwf.drift.gmd(x.float(), y.float(), temperature=0.5)
    assert (got - want).norm() / want.norm() < 1e-5


def test_batches_are_problems_of_their_own():
    x, y = clouds(6, 8, 3, batch=(2, 3))
    kernel = gwf.Gaussian(0.8)
    for f in (
        lambda x, y: gwf.drift.gmd(x, y, temperature=0.5),
        lambda x, y: gwf.drift.parzen_kl(x, y, 0.7, exclude_self=True),
        lambda x, y: gwf.drift.f_divergence(x, y, 0.7, divergence="js"),
        lambda x, y: gwf.drift.mmd(x, y, kernel=kernel),
        gwf.drift.energy,
    ):
        torch.testing.assert_close(f(x, y)[1, 2], f(x[1, 2], y[1, 2]))


@pytest.mark.parametrize("exclude_self", [False, True])
def test_ragged_sets_are_their_members(exclude_self):
    x, y = clouds(6, 8, 3, batch=(3,))
    n, m = torch.tensor([6, 2, 4]), torch.tensor([8, 1, 5])
    options = {"exclude_self": exclude_self}
    for f in (
        lambda x, y, **k: gwf.drift.gmd(x, y, temperature=0.5, **k),
        lambda x, y, **k: gwf.drift.parzen_kl(x, y, 0.7, **k),
        lambda x, y, **k: gwf.drift.f_divergence(x, y, 0.7, divergence="reverse_kl", **k),
        lambda x, y, **k: gwf.drift.mmd(x, y, kernel=gwf.Gaussian(0.8), **k),
        lambda x, y, **k: gwf.drift.energy(x, y, **k),
        lambda x, y, **k: gwf.drift.gmd(x, y, temperature=0.5, clip=1e-3, **k),
    ):
        got = f(x, y, x_lengths=n, y_lengths=m, **options)
        for b in range(3):
            torch.testing.assert_close(got[b, : n[b]], f(x[b, : n[b]], y[b, : m[b]], **options))
            assert (got[b, n[b] :] == 0).all()


def test_gmd_differentiates():
    x, y = clouds(5, 6, 2)
    f = lambda x, y: gwf.drift.gmd(x, y, temperature=0.7)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x.requires_grad_(), y.requires_grad_()))


# MonoFlow's h and VGrow's antiderivatives of s: the flow ascends them.
ASCENDED = {
    "wgan": lambda d: d,
    "identity": lambda d: d,
    "kl": lambda d: d,
    "log_sigmoid": torch.nn.functional.logsigmoid,
    "minimax": lambda d: -torch.log(1 - torch.sigmoid(d + 0.4)),
    "arcsinh": torch.arcsinh,
    "js": torch.nn.functional.softplus,
    "log_d": torch.nn.functional.logsigmoid,
    "jeffreys": lambda d: d + d.exp(),
    "reverse_kl": torch.exp,
    "pearson": lambda d: -2 * (-d).exp(),
    "neyman": lambda d: (2 * d).exp(),
    "squared_hellinger": lambda d: (d / 2).exp(),
}


@pytest.mark.parametrize("name", ASCENDED)
def test_critic_ascends_its_transform(name):
    x, _ = clouds(dim=2)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    with torch.no_grad():
        want = descent(lambda x: -ASCENDED[name](net(x)).sum(), x)
    got = gwf.drift.critic(x, net, transform=name, shift=0.4)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    bounds = (-0.7, 0.9)
    moved = (x + 0.3 * want).clamp(*bounds)
    step = gwf.drift.critic_step(x, net, 0.3, transform=name, shift=0.4, bounds=bounds)
    torch.testing.assert_close(step, moved, rtol=1e-6, atol=1e-8)
    inplace = x.clone()
    assert gwf.drift.critic_step(inplace, net, 0.3, transform=name, shift=0.4, bounds=bounds, out=inplace) is inplace
    torch.testing.assert_close(inplace, moved, rtol=1e-6, atol=1e-8)


ONE = torch.zeros(1, 2)
TWO = torch.zeros(2, 2)
G = gwf.Gaussian(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gwf.drift.gmd(TWO, TWO, temperature=0.0), "temperature must be a positive number"),
        (lambda: gwf.drift.gmd(TWO, TWO, temperature=float("nan")), "temperature must be a positive number"),
        (lambda: gwf.drift.gmd(TWO, TWO, temperature=1.0, clip=0.0), "clip must be a positive number"),
        (lambda: gwf.drift.gmd(ONE, TWO, temperature=1.0), "at least two particles"),
        (lambda: gwf.drift.gmd(TWO, TWO, temperature=1.0, negatives=TWO[:0]), "negatives must have at least one"),
        (lambda: gwf.drift.gmd(TWO, TWO[:0], temperature=1.0), "y must have at least one sample"),
        (lambda: gwf.drift.gmd(TWO, TWO, temperature=1.0, negatives=ONE, exclude_self=True), "as many negatives"),
        (lambda: gwf.drift.parzen_kl(TWO, TWO, -1.0), "bandwidth must be a positive number"),
        (lambda: gwf.drift.parzen_kl(ONE, TWO, 1.0, exclude_self=True), "at least two particles"),
        (lambda: gwf.drift.f_divergence(TWO, TWO, 1.0, divergence="tv"), "divergence must be one of"),  # type: ignore[arg-type]
        (lambda: gwf.drift.mmd(TWO, TWO, kernel=G, noise=-1.0), "noise must be"),
        (lambda: gwf.drift.mmd(TWO, TWO, kernel=G, x_lengths=torch.tensor([1])), "x_lengths must have"),
        (lambda: gwf.drift.energy(TWO, torch.zeros(2, 3)), "y must have the dimension of x"),
        (lambda: gwf.drift.critic(TWO, lambda x: x, transform="wgan"), r"critic must give \[\*B, N\]"),
        (lambda: gwf.drift.critic(TWO, lambda x: x[:, 0], transform="gan"), "transform must be one of"),  # type: ignore[arg-type]
        (
            lambda: gwf.drift.gmd(
                TWO[None], TWO[None], temperature=1.0, x_lengths=torch.tensor([1]), y_lengths=torch.tensor([2])
            ),
            "x_lengths must be at least 2",
        ),
        (
            lambda: gwf.drift.energy(TWO[None], TWO[None], y_lengths=torch.tensor([3])),
            "y_lengths must lie in 0..2",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ragged_means_keep_the_digits_of_float64():
    x, y = torch.randn(1, 9, 2, dtype=torch.float64), torch.randn(1, 8, 2, dtype=torch.float64)
    got = gwf.drift.energy(x, y, x_lengths=torch.tensor([7]), y_lengths=torch.tensor([3]))[:, :7]
    torch.testing.assert_close(got, gwf.drift.energy(x[:, :7], y[:, :3]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("temperature", [1e20, 9e29])
def test_gmd_of_a_temperature_that_makes_all_alike(temperature, dtype):
    """Lanes of the compiled code that are no targets, at a distance of 1e30, began to count."""
    x, y = clouds(dtype=dtype)
    # All affinities of a pair are 1 / sqrt(M + N - 1) / sqrt(N or N - 1 rows), up to what a column leaves out.
    columns_y, columns_x = len(x) ** -0.5, (len(x) - 1) ** -0.5
    rows = (len(y) + len(x) - 1) ** -0.5
    positive, negative = rows * columns_y, rows * columns_x
    others = (x.double().sum(0) - x.double()) * negative
    want = positive * y.double().sum(0) * negative * (len(x) - 1) - others * positive * len(y)
    got = gwf.drift.gmd(x, y, temperature=temperature)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
