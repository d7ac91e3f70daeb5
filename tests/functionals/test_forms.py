"""Compiled forms: a stranger's class has its own, or falls back to torch with the reason; none is another's."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.flows.engines.fused import compiled_problem
from gwf_fast.functionals.evaluation import draw_target, matched, raw_output
from gwf_fast.functionals.forms import CalledBack, CriticForm, form_of
from gwf_fast.kernels.table.mlp import CompiledDensity
from gwf_fast.nn.divergences import objective
from gwf_fast.potentials import Density, Gaussian, GaussianMixture
from tests.flows.test_fused_engine import assert_same_path, samples
from tests.gpu.loops import HostLoop, inner_problem

TRAINING = gwf.Training(batch_size=64, iterations=12, critic_steps=2, map_steps=2)


@dataclass(frozen=True, eq=False)
class Hinge(gwf.Functional):
    """What a stranger writes: the critic of Lim and Ye's GAN, in one class, with its compiled form."""

    target: torch.Tensor
    needs_critic: ClassVar[bool] = True

    def draw(self, n, reference, draws=None):
        return draw_target(self.target, n, draws)

    def critic_objective(self, critic, x, z, reference):
        v = raw_output(critic, torch.cat((x, matched(z, x))))
        return (v[: len(x)].clamp(max=1) - 1).mean() - (v[len(x) :].clamp(min=-1) + 1).mean()

    def map_objective(self, critic, x, z, reference):
        return (raw_output(critic, x).clamp(max=1) - 1).mean()

    value = critic_objective

    def fused_form(self):
        return CriticForm.of_target(objective("hinge"), self.target)


class Formless(Hinge):
    """Without a form."""

    fused_form = gwf.Functional.fused_form


class OtherMap(gwf.KL):
    """Inherits KL's form, and minimises something else."""

    def map_objective(self, critic, x, z, reference):
        return 2 * super().map_objective(critic, x, z, reference)


class OtherValue(gwf.KL):
    """What the loop does is KL's."""

    def value(self, critic, x, z, reference):
        return super().value(critic, x, z, reference) - 7


class Shifted(Gaussian):
    """Inherits a compiled form that is another density's."""

    def log_density(self, x):
        return super().log_density(x - 2)


class OwnDraw(gwf.SquaredMMD):
    """Draws that nobody counts."""

    def draw(self, n, reference, draws=None):
        return draw_target(self.target, n)


def shifted():
    return gwf.KL(Shifted(torch.zeros(3).double(), torch.eye(3).double()))


def mmd():
    return gwf.SquaredMMD(samples(n=200), gwf.Gaussian(0.8))


def mixture():
    return GaussianMixture(torch.tensor([[0.0, 1.0, 2.0], [1.0, -1.0, 0.0]]).double())


@pytest.mark.parametrize(
    "make",
    [lambda: Hinge(samples()), lambda: 0.7 * Hinge(samples()) + mmd(), shifted],
    ids=["a form of its own", "in a sum", "a density that inherits one"],
)
def test_a_strangers_functional_against_the_torch_path(make):
    assert_same_path(make(), training=TRAINING)


@pytest.mark.parametrize(
    ("functional", "reason"),
    [
        (Formless(samples(2)), "the functional Formless has a critic, and no compiled form (fused_form)"),
        (
            OtherMap(lambda x: -x.square().sum(-1)),
            "the functional OtherMap has its own map_objective, but the compiled form of another class",
        ),
        (
            gwf.IPM(samples(2), "spectral_norm"),
            "the functional IPM has no compiled form with constraint='spectral_norm'",
        ),
        (OwnDraw(samples(2), gwf.Riesz()) + gwf.JensenShannon(samples(2)), "it doesn't know what OwnDraw draws"),
    ],
)
def test_without_a_form_torch_runs_and_explain_says_why(functional, reason):
    flow = gwf.JKOFlow(functional, 2, 0.5, training=gwf.Training(batch_size=16, iterations=3))
    text = gwf.explain(flow.run)
    assert text.splitlines() == [
        "engine: torch (first in the order of preference that can serve)",
        f"  fused: {reason}",
    ]
    x0 = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    asked = gwf.JKOFlow(functional, 2, 0.5, engine="torch", training=flow.training)
    runs = [f.run(x0, 1, progress=False) for f in (flow, asked)]
    assert torch.equal(runs[0].particles, runs[1].particles)
    with pytest.raises(ValueError, match="engine: none can take this flow"):
        gwf.JKOFlow(functional, 2, 0.5, engine="fused")


def test_explain_of_flows():
    flow = gwf.JKOFlow(gwf.JensenShannon(samples(2)), 2, 0.5, engine="fused")
    assert gwf.explain(flow.step).splitlines() == ["engine: fused (asked for)", "  torch: could serve"]
    explicit = gwf.JKOFlow(gwf.Interaction(gwf.Gaussian(1.0)), 2, 0.5, scheme="explicit")
    assert gwf.explain(explicit.run) == "engine: none, scheme 'explicit' has no inner problem"


def test_what_a_form_stands_for_decides():
    """A class keeps the form that it inherits as long as it changes nothing that the form replaces."""
    assert isinstance(form_of(OtherValue(lambda x: x.sum(-1))), CriticForm)
    assert isinstance(form_of(gwf.JensenShannon(samples(2))), CriticForm)
    assert form_of(gwf.MMDUnbalanced(samples(2), gwf.Riesz())) == CalledBack(draws=1)
    assert form_of(OwnDraw(samples(2), gwf.Riesz())) == CalledBack(draws=None)
    form = form_of(shifted())
    assert isinstance(form, CriticForm)
    assert form.density.kind == "none" and form.log_q is not None
    form = form_of(gwf.KL(mixture()))
    assert isinstance(form, CriticForm)
    assert form.density.kind == "mixture" and form.log_q is None


class Unknown(Density):
    """A compiled form that no loop has."""

    dim = 3
    told = CompiledDensity("mixtur", (torch.ones(2, 3).double(),))

    def log_density(self, x):
        return -x.square().sum(-1)

    def compiled(self):
        return self.told


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (("mixtur", ()), "density: csrc/primal_dual/density.h has no mixtur"),
        (("mixture", ()), "density: array 0 of the kind mixture is missing"),
        (("mixture", (torch.ones(2, 4).double(),)), "density: array 0 of the kind mixture has another shape"),
        (("gaussian", (torch.ones(3).double(), torch.eye(3).double())), "density: the kind gaussian has more numbers"),
    ],
)
def test_a_compiled_density_that_does_not_fit_is_named(told, message):
    functional = gwf.KL(Unknown())
    Unknown.told = CompiledDensity(*told)
    with pytest.raises(ValueError, match=message), torch.no_grad():
        HostLoop(compiled_problem(inner_problem(functional, training=TRAINING)))
