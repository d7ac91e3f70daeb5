"""Functionals: the table of f-divergences by finite differences, variational forms against exact values."""

import dataclasses
import math

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.functionals.base import KL, FDivergence, Functional, JensenShannon, Potential
from gwf_fast.nn.divergences import DIVERGENCES, PARAMETRIC, SMOOTH, divergence, variational
from gwf_fast.potentials import Density, Gaussian

DTYPE = torch.float64
ROWS = [(name, None) for name in DIVERGENCES if name not in PARAMETRIC] + [
    ("alpha", -0.5),
    ("alpha", 0.5),
    ("alpha", 3.0),
    ("generalized_entropy", 2.0),
    ("generalized_entropy", 3.0),
]
U = torch.tensor([0.05, 0.3, 0.7, 1.4, 2.0, 5.0], dtype=DTYPE)  # not 1, where |u - 1| has its kink
rows = pytest.mark.parametrize(("name", "parameter"), ROWS, ids=[f"{n}-{p}" if p else n for n, p in ROWS])


@pytest.mark.parametrize("name", [*gwf.__all__, *(f"potentials.{name}" for name in gwf.potentials.__all__)])
def test_functionals_and_densities_do_not_change_and_are_themselves(name):
    """A run holds what it was given; and comparing tensors by == would ask each element."""
    kind = getattr(gwf.potentials if "." in name else gwf, name.split(".")[-1])
    if not (isinstance(kind, type) and issubclass(kind, (Functional, Density)) and dataclasses.is_dataclass(kind)):
        return
    one, other = object.__new__(kind), object.__new__(kind)
    field = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, field, 1.0)
    for each in (one, other):
        object.__setattr__(each, field, torch.ones(2))
    assert one == one and one != other and len({one, other}) == 2


@rows
def test_f_vanishes_at_one_and_f_prime_is_its_derivative(name, parameter):
    row = divergence(name, parameter)
    assert row.f(torch.ones(1, dtype=DTYPE)).abs().item() < 1e-14
    step = 1e-6
    torch.testing.assert_close((row.f(U + step) - row.f(U - step)) / (2 * step), row.f_prime(U), rtol=1e-6, atol=1e-8)


SLOPES = [(name, None) for name in SMOOTH if name not in PARAMETRIC] + [row for row in ROWS if row[0] in PARAMETRIC]


@pytest.mark.parametrize(("name", "parameter"), SLOPES)
def test_slopes_are_u_times_the_second_derivative(name, parameter):
    row = divergence(name, parameter)
    assert row.f(torch.ones(1, dtype=DTYPE)).abs().item() < 1e-14
    step = 1e-6 * U
    for function, derivative in ((row.f, row.f_prime), (row.f_prime, lambda u: row.slope(u.log()) / u)):
        differences = (function(U + step) - function(U - step)) / (2 * step)
        torch.testing.assert_close(differences, derivative(U), rtol=1e-7, atol=1e-8)


def test_rows_without_a_critic():
    assert {"jeffreys", "log_d"} <= set(SMOOTH) - set(DIVERGENCES) and "total_variation" not in SMOOTH
    with pytest.raises(ValueError, match="name must be one of kl, "):
        FDivergence("jeffreys", torch.ones(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"name must be one of .*got 'log_d'"):
        variational("log_d")


@rows
def test_conjugate_is_the_supremum(name, parameter):
    row = variational(name, parameter)
    t = row.f_prime(U)
    if name == "total_variation":  # f' takes two values only; between them the supremum is at u = 1
        t = torch.linspace(-0.45, 0.45, 7, dtype=DTYPE)
    u = torch.cat((torch.linspace(-12, 4, 400_001, dtype=DTYPE).exp(), torch.ones(1, dtype=DTYPE)))
    supremum = torch.stack([(u * ti - row.f(u)).max() for ti in t])
    torch.testing.assert_close(row.conjugate(t), supremum, rtol=1e-6, atol=1e-5)


@rows
def test_fenchel_equality(name, parameter):
    row = variational(name, parameter)
    t = row.f_prime(U)
    torch.testing.assert_close(row.conjugate(t), U * t - row.f(U), rtol=1e-9, atol=1e-9)


@rows
def test_composed_conjugate_and_range_of_the_activation(name, parameter):
    row = variational(name, parameter)
    v = torch.linspace(-6, 6, 41, dtype=DTYPE, requires_grad=True)
    composed, plain = row.conjugate_of_activation(v), row.conjugate(row.activation(v))
    assert plain.isfinite().all()
    torch.testing.assert_close(composed, plain, rtol=1e-9, atol=1e-9)
    (a,) = torch.autograd.grad(composed.sum(), v)
    (b,) = torch.autograd.grad(plain.sum(), v)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_js_is_finite_in_float32_where_the_plain_composition_is_not():
    row = variational("js")
    v = torch.tensor([-200.0, -30.0, 30.0, 200.0])
    assert not row.conjugate(row.activation(v)).isfinite().all()
    assert row.activation(v).isfinite().all() and row.conjugate_of_activation(v).isfinite().all()


def _ratio(p, q, inverse):
    """The critic with output f'(dP/dQ) after the activation, for two known densities."""
    return lambda x: inverse((p.log_density(x) - q.log_density(x)).exp()).unsqueeze(-1)


@pytest.mark.parametrize(
    ("name", "parameter", "inverse"),
    [
        ("kl", None, lambda u: 1 + u.log()),
        ("reverse_kl", None, lambda u: u.log()),
        ("js", None, lambda u: u.log()),
        ("pearson", None, lambda u: 2 * (u - 1)),
        ("neyman", None, lambda u: 2 * u.log()),
        ("squared_hellinger", None, lambda u: u.log() / 2),
        ("alpha", 2.0, lambda u: u - 1),
        ("alpha", 0.5, lambda u: -torch.log(torch.expm1(2 / u.sqrt()))),
        ("generalized_entropy", 2.0, lambda u: 2 * u - 1),
    ],
)
def test_optimal_critic_attains_the_divergence(name, parameter, inverse):
    """With the optimal critic the estimate is the integral of f(dP/dQ) dQ, by quadrature here."""
    p = Gaussian(torch.zeros(1, dtype=DTYPE), torch.eye(1, dtype=DTYPE))
    q = Gaussian(torch.full((1,), 0.5, dtype=DTYPE), torch.eye(1, dtype=DTYPE))
    grid = torch.linspace(-9, 9, 4001, dtype=DTYPE)[:, None]
    row = divergence(name, parameter)
    log_p, log_q = p.log_density(grid), q.log_density(grid)
    exact = torch.trapezoid(row.f((log_p - log_q).exp()) * log_q.exp(), grid[:, 0]).item()
    assert exact > 0.02  # so that the comparison below means something
    torch.manual_seed(0)
    functional, critic = FDivergence(name, q.sample, parameter), _ratio(p, q, inverse)
    x, z = p.sample(400_000), functional.draw(400_000, None)
    estimate = functional.value(critic, x, z, None).item()
    assert estimate == pytest.approx(exact, abs=0.01)
    assert functional.value(lambda x: critic(x) + 0.5, x, z, None).item() < estimate  # type: ignore[arg-type]


def _log_ratio(p, mu):
    """KL's optimal critic log dP/dmu; it sees x whitened by mu."""

    def critic(white):
        x = white @ mu._scale.T + mu.mean
        return (p.log_density(x) - mu.log_density(x)).unsqueeze(-1)

    return critic


def test_kl_with_its_optimal_critic():
    """Q unnormalised by a factor e^-3 adds 3; P is not the Gaussian that was fitted."""
    torch.manual_seed(0)
    p = Gaussian(torch.tensor([0.3, 0.0], dtype=DTYPE), 0.8 * torch.eye(2, dtype=DTYPE))
    q = Gaussian(torch.tensor([1.0, -1.0], dtype=DTYPE), torch.eye(2, dtype=DTYPE))
    functional = KL(lambda x: q.log_density(x) - 3)
    mu = functional.reference(torch.randn(20_000, 2, dtype=DTYPE))
    exact = 0.5 * (2 * 0.8 - 2 - 2 * math.log(0.8) + 0.7**2 + 1) + 3
    x, z = p.sample(400_000), functional.draw(400_000, mu)
    assert functional.value(_log_ratio(p, mu), x, z, mu).item() == pytest.approx(exact, abs=0.01)


def test_kl_stays_finite_where_its_critic_overshoots():
    """e^v is infinite in float32 from v = 89; the objective goes on as a tangent, and still pulls v down."""
    x, z = torch.zeros(4, 2), torch.zeros(4, 2)
    functional = KL(Gaussian(torch.zeros(2), torch.eye(2)))
    mu = Gaussian(torch.zeros(2), torch.eye(2))
    for v in (14.9, 15.1, 500.0):
        level = torch.tensor(v, requires_grad=True)
        objective = functional.critic_objective(lambda w, v=level: v.expand(len(w), 1), x, z, mu)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(objective, level)
        assert objective.isfinite() and gradient.item() == pytest.approx(1 - math.exp(min(v, 15.0)), rel=1e-5)


def test_kl_map_gradient_is_that_of_the_first_variation():
    """With the optimal critic the gradient in x is grad log p - grad log q."""
    torch.manual_seed(0)
    p, q = (Gaussian(torch.randn(2, dtype=DTYPE), torch.eye(2, dtype=DTYPE)) for _ in range(2))
    functional = KL(q)
    mu = functional.reference(torch.randn(1000, 2, dtype=DTYPE))
    x = torch.randn(20, 2, dtype=DTYPE, requires_grad=True)
    (gradient,) = torch.autograd.grad(functional.map_objective(_log_ratio(p, mu), x, None, mu), x)
    torch.testing.assert_close(gradient * len(x), p.score(x) - q.score(x), rtol=1e-9, atol=1e-9)


def test_critic_objective_and_value_differ_by_a_constant_in_the_critic():
    torch.manual_seed(0)
    x, z = torch.randn(30, 2, dtype=DTYPE), torch.randn(40, 2, dtype=DTYPE)
    for functional in (KL(Gaussian(torch.zeros(2, dtype=DTYPE), torch.eye(2, dtype=DTYPE))), JensenShannon(z)):
        reference = functional.reference(x)
        critics = [torch.nn.Linear(2, 1, dtype=DTYPE) for _ in range(2)]
        objective = [functional.critic_objective(h, x, z, reference) for h in critics]
        value = [functional.value(h, x, z, reference) for h in critics]
        torch.testing.assert_close(objective[0] - objective[1], value[0] - value[1])
        assert (value[0] - value[1]).abs() > 1e-3


def test_sums_and_multiples():
    torch.manual_seed(0)
    x = torch.randn(50, 2, dtype=DTYPE)
    a, b = Potential(lambda x: x[:, 0] ** 2), Potential(lambda x: x[:, 1])
    total = 2 * a + b * 0.5 + (-1.0) * a
    reference = total.reference(x)
    expected = (x[:, 0] ** 2).mean() + 0.5 * x[:, 1].mean()
    torch.testing.assert_close(total.value(None, x, total.draw(50, reference), reference), expected)
    assert not total.needs_critic and total.build_critic(lambda: torch.nn.Linear(2, 1)) is None

    js, kl = JensenShannon(x), FDivergence("kl", x)
    mixed = js + 0.1 * a + 0.5 * kl
    critics = mixed.build_critic(lambda: torch.nn.Linear(2, 1, dtype=DTYPE))
    assert isinstance(critics, torch.nn.ModuleList)
    assert mixed.needs_critic and len(critics) == 2
    reference = mixed.reference(x)
    value = mixed.value(critics, x, mixed.draw(50, reference), reference)
    parts = (
        js.value(critics[0], x, x, None) + 0.1 * a.value(None, x, None, None) + 0.5 * kl.value(critics[1], x, x, None)
    )
    torch.testing.assert_close(value, parts)


def test_draw_takes_a_tensor_or_a_callable():
    target = torch.arange(6.0).reshape(3, 2)
    assert JensenShannon(target).draw(2, None).shape == (2, 2)
    assert JensenShannon(target).draw(3, None) is target
    assert JensenShannon(lambda n: torch.zeros(n, 2)).draw(7, None).shape == (7, 2)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: FDivergence("kullback", torch.zeros(3, 2)), ValueError, "name must be one of .* got 'kullback'"),  # type: ignore[arg-type]
        (lambda: FDivergence("alpha", torch.zeros(3, 2)), ValueError, "parameter: "),
        (lambda: FDivergence("alpha", torch.zeros(3, 2), 1.0), ValueError, "parameter: "),
        (lambda: FDivergence("generalized_entropy", torch.zeros(3, 2), 1.0), ValueError, "parameter: "),
        (lambda: FDivergence("kl", torch.zeros(3, 2), 2.0), ValueError, "parameter: "),
        (lambda: JensenShannon(torch.zeros(0, 2)), ValueError, "target must be "),
        (lambda: JensenShannon(torch.zeros(3, 2, dtype=torch.int64)), ValueError, "target must be "),
        (lambda: JensenShannon(torch.full((3, 2), math.nan)), ValueError, "target: contains NaN"),
        (lambda: JensenShannon([1, 2]), TypeError, "target must be "),  # type: ignore[arg-type]
        (lambda: KL(3.0), TypeError, "log_density must be "),
        (lambda: -1.0 * JensenShannon(torch.zeros(3, 2)), ValueError, "coefficient of JensenShannon"),
        (lambda: math.inf * Potential(lambda x: x[:, 0]), ValueError, "coefficient must be a finite number"),
    ],
)
def test_bad_arguments_are_named(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_wrong_shapes_from_the_user_are_named():
    x = torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"V must give a tensor of shape \[5\]"):
        Potential(lambda x: x).value(None, x, None, None)
    with pytest.raises(ValueError, match=r"critic must have an output of shape \[5, 1\] or \[5\]"):
        JensenShannon(x).map_objective(lambda x: x, x, x, None)  # type: ignore[arg-type]


def banana(x):
    """log density of a bent Gaussian whose tails are as steep as x^4, up to a constant."""
    return -0.5 * (x[:, 0] ** 2 / 4 + (x[:, 1] - 0.25 * x[:, 0] ** 2) ** 2 / 0.25)


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 12))])
def test_a_density_of_the_users_own_with_steep_tails_at_the_defaults(seed):
    """Without a gradient clip NonFiniteError at step 4; with one, seed 8 threw particles to 10^4 in silence."""
    try:
        result = JKOFlow(KL(banana), 2, 1.0, seed=seed).run(lambda n: torch.randn(n, 2), 5, progress=False)
    except NonFiniteError as error:
        assert "a particle was thrown from" in str(error)  # noqa: PT017 - the other way out is to finish
        assert seed != 0
        return
    assert result.particles.abs().max() < 20
    assert 0.5 < result.particles.std(0)[0] < 3


@pytest.mark.parametrize("name", ["map_objective", "value"])
def test_a_functional_says_which_method_it_lacks(name):
    class Unfinished(Functional):
        pass

    with pytest.raises(NotImplementedError, match=f"^Unfinished has no {name}$"):
        getattr(Unfinished(), name)(None, torch.zeros(2, 1), None, None)


def test_a_particle_that_is_thrown_out_ends_the_run():
    """One of 4096, where means do not tell."""
    x = torch.randn(4096, 2, generator=torch.Generator().manual_seed(0))
    moved = 0.9 * x
    functional = 0.5 * KL(banana) + Potential(lambda x: x[:, 0])
    functional.check_moves(x, moved, 1.0)
    moved[7] = torch.tensor([3.0, 66.0])
    with pytest.raises(NonFiniteError, match=r"thrown from \(.*\) to \(3, 66\), where -log Q"):
        functional.check_moves(x, moved, 1.0)


def test_far_moves_towards_the_density_are_none_of_that():
    """An outlier comes home, a cloud goes a long way, a point spreads out."""
    generator = torch.Generator().manual_seed(0)
    cloud, tight = (torch.randn(100, dim, generator=generator) for dim in (2, 64))
    for start in (cloud + 1e3, 0 * cloud, 1e-3 * tight):
        dim = start.shape[1]
        start[0, 0] = 1e4
        moved = torch.randn(100, dim, generator=generator)
        KL(lambda x: -0.5 * x.square().sum(-1)).check_moves(start, moved, math.inf)
        KL(lambda x: -0.5 * x.square().sum(-1)).check_moves(start, moved, 1e3)
