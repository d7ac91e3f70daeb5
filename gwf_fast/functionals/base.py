"""Functionals F(P) that a flow descends: what a critic maximises, what a map minimises, what the value is.

Inside a JKO step P = T#P_k is known by samples only. A functional either has a closed form in samples
(:class:`SquaredMMD`, :class:`Potential`) or a variational form sup_h E_P A(h) - E_Gamma B(h) with a critic h (Fan et
al., ICML 2022). A critic is a module that maps [N, D] to [N, 1] or [N], its raw output; the functional applies the
activation that its own variational form needs.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from gwf_fast.checkpoint.portable import portable
from gwf_fast.functionals.evaluation import (
    Target,
    check_target,
    critic_objective,
    descent_direction,
    draw_target,
    evaluated,
    map_objective,
    matched,
    raw_output,
    require_descent,
)
from gwf_fast.functionals.forms import CalledBack, CriticForm, FusedForm, compiled_of, whitening
from gwf_fast.kernels.table.mlp import CompiledDensity
from gwf_fast.nn.divergences import ParametricName, VariationalName, objective, tame_exp, variational
from gwf_fast.pairs.validation import as_number
from gwf_fast.potentials import Density, Gaussian
from gwf_fast.randomness.draws import Draws


class Functional:
    """A functional of a distribution. Sums and scalar multiples of functionals are functionals.

    The methods take ``x`` [N, D], samples of P; ``z``, what :meth:`draw` returned for this batch; and ``reference``,
    what :meth:`reference` returned for the particles of P_k at the beginning of the JKO step.

    One of your own writes :meth:`map_objective` and :meth:`value`; :meth:`velocity` for explicit steps; with a critic
    :meth:`critic_objective`, and :meth:`draw` where there is a Gamma. The others have defaults.
    """

    needs_critic: ClassVar[bool] = False

    def build_critic(self, make: Callable[[], nn.Module]) -> nn.Module | None:
        """The critic of this functional, None where it needs none."""
        return make() if self.needs_critic else None

    def reference(self, particles: Tensor) -> Any:
        """What the functional has to know about P_k [N, D]; computed once a JKO step."""
        return None

    def draw(self, n: int, reference: Any, draws: Draws | None = None) -> Any:
        """n samples of Gamma in the variational form, by ``draws``, or the block's generator where there is none.

        None if there is no Gamma. A target that is a callable is given the block's in any case.
        """
        return None

    def critic_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        """What the critic maximises, up to a constant; a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no critic")

    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        """What the map minimises, up to a constant: differentiable in x; a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no map_objective")

    def value(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        """An estimate of F(P); with a critic, a lower bound up to sampling error. A scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no value")

    def velocity(self, x: Tensor, particles: Tensor, critic: nn.Module | None, reference: Any) -> Tensor:
        """-grad dF/dP(P_k) at points x [N, D]: where an explicit step takes them, [N, D].

        A variational form is linear in P once its critic is fitted, so its first variation is what the map minimises.

        Args:
            x: Points.
            particles: Samples of P_k, [M, D].
            critic: Fitted to P_k; None where the functional needs none.
            reference: What :meth:`reference` returned for P_k.
        """
        if not self.needs_critic:
            raise NotImplementedError(f"{type(self).__name__} has no explicit step")
        return descent_direction(lambda rows: map_objective(self, critic, rows, None, reference), x)

    def check_moves(self, before: Tensor, moved: Tensor, step_size: float) -> None:
        """Raise NonFiniteError where a step of size a took a particle where no minimiser would; both [N, D]."""

    def fused_form(self) -> FusedForm | str:
        """How the compiled loop takes this functional; a string says why it can't, and the engine "torch" does.

        Without a critic there is nothing to do: the loop calls ``map_objective`` back.
        """
        return "has a critic, and no compiled form (fused_form)" if self.needs_critic else CalledBack()

    def __add__(self, other: Functional) -> Sum:
        if not isinstance(other, Functional):
            return NotImplemented
        return Sum(terms_of(self) + terms_of(other))

    def __mul__(self, factor: float) -> Sum:
        try:
            number = as_number("coefficient", factor)
        except TypeError:
            return NotImplemented
        return Sum(tuple((number * c, term) for c, term in terms_of(self)))

    __rmul__ = __mul__


def _total(values: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, values)


def terms_of(functional: Functional) -> tuple[tuple[float, Functional], ...]:
    """Pairs (coefficient, functional) that it is the sum of."""
    return functional.terms if isinstance(functional, Sum) else ((1.0, functional),)


@portable
@dataclass(frozen=True, eq=False)
class Sum(Functional):
    """c_1 F_1 + c_2 F_2 + ...; written with + and *. Each term that needs a critic gets one of its own.

    Args:
        terms: Pairs (coefficient, functional). A term with a critic is a supremum, so its coefficient must be positive.
    """

    terms: tuple[tuple[float, Functional], ...]

    def __post_init__(self) -> None:
        for coefficient, term in self.terms:
            if not math.isfinite(coefficient):
                raise ValueError(f"coefficient of {type(term).__name__} must be a finite number, got {coefficient}")
            if term.needs_critic and coefficient <= 0:
                raise ValueError(
                    f"coefficient of {type(term).__name__}: got {coefficient:g}, expected a positive number "
                    "(its variational form is a supremum)"
                )

    @property
    def needs_critic(self) -> bool:  # type: ignore[override]
        """Whether a term needs one."""
        return any(term.needs_critic for _, term in self.terms)

    @override
    def build_critic(self, make: Callable[[], nn.Module]) -> nn.Module | None:
        critics = [term.build_critic(make) for _, term in self.terms]
        wanted = [critic for critic in critics if critic is not None]
        return nn.ModuleList(wanted) if wanted else None

    @override
    def reference(self, particles: Tensor) -> Any:
        return tuple(term.reference(particles) for _, term in self.terms)

    @override
    def draw(self, n: int, reference: Any, draws: Draws | None = None) -> Any:
        return tuple(term.draw(n, r, draws) for (_, term), r in zip(self.terms, reference, strict=True))

    def _each(
        self, critics: nn.Module | None, z: Any, reference: Any
    ) -> Iterator[tuple[float, Functional, Any, Any, Any]]:
        rest = critics.children() if critics is not None else iter(())
        for (coefficient, term), zi, ri in zip(self.terms, z, reference, strict=True):
            yield coefficient, term, next(rest) if term.needs_critic else None, zi, ri

    @override
    def critic_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        each = self._each(critic, z, reference)
        return _total(c * critic_objective(term, h, x, zi, ri) for c, term, h, zi, ri in each if h is not None)

    @override
    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        return _total(c * map_objective(t, h, x, zi, ri) for c, t, h, zi, ri in self._each(critic, z, reference))

    @override
    def value(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        return _total(c * t.value(h, x, zi, ri) for c, t, h, zi, ri in self._each(critic, z, reference))

    @override
    def check_moves(self, before: Tensor, moved: Tensor, step_size: float) -> None:
        for coefficient, term in self.terms:
            term.check_moves(before, moved, step_size * coefficient)

    @override
    def velocity(self, x: Tensor, particles: Tensor, critic: nn.Module | None, reference: Any) -> Tensor:
        each = self._each(critic, (None,) * len(self.terms), reference)
        return _total(c * t.velocity(x, particles, h, ri) for c, t, h, _, ri in each)


@portable
@dataclass(frozen=True, eq=False)
class Potential(Functional):
    """F(P) = E_P V.

    Args:
        V: Maps [N, D] to [N], differentiably.
    """

    V: Callable[[Tensor], Tensor]

    @override
    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        return evaluated(self.V, x, "V").mean()

    value = map_objective

    @override
    def velocity(self, x: Tensor, particles: Tensor, critic: nn.Module | None, reference: Any) -> Tensor:
        return descent_direction(lambda rows: self.map_objective(None, rows, None, None), x)


@portable
@dataclass(frozen=True, eq=False)
class KL(Functional):
    """KL(P | Q) for a density Q known up to its normalisation; the value is then known up to that constant as well.

    No density of P is needed (Fan et al., corollary 3.3): with mu the Gaussian of the mean and covariance of P_k,
    KL = 1 + sup_h E_P [log h + log mu - log Q] - E_mu h, attained at h = dP/dmu. Stabilised as in their appendix E.2,
    h = exp(h_bar) - 1 with h_bar = softplus(v), which is h = e^v: the critic's raw output is log dP/dmu. Above
    v = 15 the exponential goes on as its tangent, so that a critic that overshoots gives large numbers, not infinity.
    The critic sees x whitened by mu, so that it need not learn the scale of P_k.

    Args:
        log_density: log Q up to a constant, maps [N, D] to [N] differentiably; or an object with such a
            ``log_density`` method, as those of ``gwf.potentials``.
    """

    log_density: Any
    needs_critic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(getattr(self.log_density, "log_density", self.log_density)):
            raise TypeError(
                "log_density must be a callable [N, D] -> [N] or an object with a log_density method, "
                f"got {type(self.log_density).__name__}"
            )

    @property
    def density(self) -> Any:
        """The object whose ``log_density`` it is; a function itself."""
        given = self.log_density
        return getattr(given, "__self__", given) if getattr(given, "__name__", "") == "log_density" else given

    @override
    def reference(self, particles: Tensor) -> Gaussian:
        density, dim = self.density, particles.shape[1]
        if isinstance(density, Density) and density.dim != dim:
            raise ValueError(f"log_density: takes {density.dim} dimensions, the particles have {dim}")
        return Gaussian.fit(particles)

    @override
    def draw(self, n: int, reference: Gaussian, draws: Draws | None = None) -> Tensor:
        return reference.sample(n) if draws is None else reference.colour(draws.normals(n, reference.mean))

    @override
    def fused_form(self) -> FusedForm | str:
        compiled = compiled_of(self.density)
        log_q = self.log_q if compiled is None else None
        return CriticForm(
            objective("kl_density"),
            None,
            draws=1,
            density=compiled or CompiledDensity(),
            log_q=log_q,
            frame=whitening,
        )

    def log_q(self, x: Tensor) -> Tensor:
        """log Q at x [N, D] up to a constant, [N]."""
        return evaluated(getattr(self.log_density, "log_density", self.log_density), x, "log_density")

    @override
    def critic_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        v = raw_output(critic, reference.whiten(torch.cat((x, z))))  # one pass of the critic over both batches
        return v[: len(x)].mean() - tame_exp(v[len(x) :]).mean()

    @override
    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        v = raw_output(critic, reference.whiten(x))
        return (v + reference.log_density(x) - self.log_q(x)).mean()

    @override
    def check_moves(self, before: Tensor, moved: Tensor, step_size: float) -> None:
        require_descent(self.log_q, before, moved, step_size)

    @override
    def value(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        return (
            1 + self.map_objective(critic, x, z, reference) - tame_exp(raw_output(critic, reference.whiten(z))).mean()
        )


@portable
@dataclass(frozen=True, eq=False)
class FDivergence(Functional):
    """D_f(P | Q) = E_Q f(dP/dQ) = sup_h E_P h - E_Q f*(h), Q given by samples.

    Args:
        name: A row of ``gwf_fast.nn.divergences.DIVERGENCES``; the model comes first.
        target: Samples of Q, [M, D] or a callable n -> [n, D].
        parameter: alpha or m, for the two rows that have one.
    """

    name: VariationalName | ParametricName
    target: Target
    parameter: float | None = None
    needs_critic: ClassVar[bool] = True
    _row: Any = field(init=False, repr=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "_row", variational(self.name, self.parameter))
        check_target(self.target)

    @override
    def draw(self, n: int, reference: Any, draws: Draws | None = None) -> Tensor:
        return draw_target(self.target, n, draws)

    @override
    def critic_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        v = raw_output(critic, torch.cat((x, matched(z, x))))
        return self._row.activation(v[: len(x)]).mean() - self._row.conjugate_of_activation(v[len(x) :]).mean()

    @override
    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        return self._row.activation(raw_output(critic, x)).mean()

    value = critic_objective

    @override
    def fused_form(self) -> FusedForm | str:
        return CriticForm.of_target(objective(self.name, self.parameter), self.target)


@portable
@dataclass(frozen=True, eq=False)
class JensenShannon(FDivergence):
    """Twice the Jensen-Shannon divergence, KL(P | M) + KL(Q | M) with M = (P + Q)/2; at most log 4.

    With a step size that goes to infinity one JKO step is the GAN of Goodfellow et al. (2014).

    Args:
        target: Samples of Q, [M, D] or a callable n -> [n, D].
    """

    name: VariationalName | ParametricName = field(init=False, default="js")
    parameter: float | None = field(init=False, default=None)


@portable
@dataclass(frozen=True, eq=False)
class SquaredMMD(Functional):
    """F(P) = MMD_k(P, Q)^2 / 2. Its critic has a closed form, so that a JKO step is a plain minimisation.

    Minibatches use the unbiased estimate; its value may be slightly negative.

    Args:
        target: Samples of Q, [M, D] or a callable n -> [n, D].
        kernel: A kernel of this package, e.g. ``gwf.Riesz()``.
    """

    target: Target
    kernel: Any

    def __post_init__(self) -> None:
        check_target(self.target)

    @override
    def draw(self, n: int, reference: Any, draws: Draws | None = None) -> Tensor:
        return draw_target(self.target, n, draws)

    @override
    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        from gwf_fast.measures.discrepancy import mmd2  # here: the other functionals need no pairwise operators

        return 0.5 * mmd2(x, matched(z, x), kernel=self.kernel, unbiased=True)

    value = map_objective

    @override
    def velocity(self, x: Tensor, particles: Tensor, critic: nn.Module | None, reference: Any) -> Tensor:
        from gwf_fast.measures.interaction import interaction_velocity

        z = matched(draw_target(self.target, len(particles)), particles)
        return interaction_velocity(x, particles, kernel=self.kernel) - interaction_velocity(x, z, kernel=self.kernel)

    @override
    def fused_form(self) -> FusedForm | str:
        return CalledBack(draws=int(isinstance(self.target, Tensor)))
