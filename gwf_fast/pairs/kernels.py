"""The kernel objects a user writes: ``0.5 * Gaussian(1.0) + Riesz()``.

A kernel is immutable, comparable and hashable. It is made of terms, each a profile of the table in
``kernels/table/profiles.py`` with a coefficient, a bandwidth and a parameter; backends see the terms as one flat
tuple of floats, ``kernel.spec``, and evaluate all of them in one pass over the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from gwf_fast.checkpoint.portable import portable
from gwf_fast.kernels.table.profile_numbers import is_formula
from gwf_fast.pairs import terms as parts
from gwf_fast.pairs.terms import Pass, Term
from gwf_fast.pairs.validation import as_number, as_positive


class Kernel:
    """A radial kernel k(x, y). Subclasses say what their terms are; everything else follows from these.

    Kernels add up and take scalar multiples; ``kernel(x, y)`` is the dense matrix.

    Attributes:
        terms: The sum of profiles that the kernel is.
        spec: The terms as backends take them, four floats each; None where a parameter is a tensor.
        passes: The evaluations the kernel needs. One, unless parameters are tensors.
        positive: Whether every term is positive, so that the kernel has a logarithm.
        has_formula: Whether a term is a formula of the user's own (``Radial``).
        batch: The problems *B that its parameters tell apart; () for any.
        dim: The coordinates that it is for; None for any.
    """

    terms: tuple[Term, ...]
    spec: tuple[float, ...] | None
    passes: tuple[Pass, ...]
    positive: bool
    has_formula: bool
    batch: tuple[int, ...]
    dim: int | None

    def _derive(self, terms: tuple[Term, ...]) -> None:
        # Computed once, here, and stored past the frozen __setattr__: every call of a reduction reads them.
        passes = parts.passes_of(terms)
        values = {
            "terms": terms,
            "spec": passes[0].spec if len(passes) == 1 and passes[0].is_plain else None,
            "passes": passes,
            "positive": all(term.is_positive for term in terms),
            "has_formula": any(is_formula(term.profile) for term in terms),
            "batch": parts.batch_of(terms),
            "dim": parts.dim_of(terms),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _components(self) -> tuple[tuple[float | Tensor, Kernel], ...]:
        return ((1.0, self),)

    def _key(self) -> tuple[Any, ...]:
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return (type(self), *map(parts.identity, values))

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Kernel) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __add__(self, other: object) -> Kernel:
        if not isinstance(other, Kernel):
            return NotImplemented
        return Mixture(self._components() + other._components())

    def __radd__(self, other: object) -> Kernel:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum() begins with 0

    def __sub__(self, other: object) -> Kernel:
        return self + (-other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, factor: object) -> Kernel:
        try:
            number = parts.as_coefficient(factor)
        except TypeError:
            return NotImplemented
        before = self._components()
        if isinstance(number, Tensor) or any(isinstance(c, Tensor) for c, _ in before):
            return Mixture(((number, self),))
        components = tuple((number * c, k) for c, k in before)
        return components[0][1] if len(components) == 1 and components[0][0] == 1.0 else Mixture(components)

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> Kernel:
        try:
            return self * (1.0 / as_number("divisor", divisor))
        except TypeError:
            return NotImplemented

    def __neg__(self) -> Kernel:
        return self * -1.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The dense matrix k(x_i, y_j), differentiable; for small sets and tests, as it stores N x M values.

        Args:
            x: Points [*B, N, D].
            y: Points [*B, M, D].

        Returns:
            The matrix [*B, N, M].
        """
        d = x[..., :, None, :] - y[..., None, :, :]  # [*B, N, M, D]
        return torch.stack([parts.dense_term(term, d) for term in self.terms]).sum(0)


class _Elementary(Kernel):
    """A kernel with named parameters, which are its fields."""

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        named = {f.name: parts.shown(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        lengths = named.pop("length_scale", "None")
        shown = [*named.values(), *([f"length_scale={lengths}"] if lengths != "None" else [])]
        return f"{type(self).__name__}({', '.join(shown)})"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Mixture(Kernel):
    """A finite sum of multiples of kernels; what ``+`` and ``*`` make. Evaluated in one pass over the pairs.

    A multiple by a tensor without dimensions that requires grad is differentiated in it, for a pass of its own.
    """

    components: tuple[tuple[float | Tensor, Kernel], ...]

    def __post_init__(self) -> None:
        self._derive(tuple(term.times(c) for c, k in self.components for term in k.terms))

    def _components(self) -> tuple[tuple[float | Tensor, Kernel], ...]:
        return self.components

    def __repr__(self) -> str:
        text = ""
        for c, k in self.components:
            negative = not isinstance(c, Tensor) and c < 0
            sign = ("-" if negative else "") if not text else (" - " if negative else " + ")
            size = parts.shown(c if isinstance(c, Tensor) else abs(c))
            inner = f"({k!r})" if isinstance(k, Mixture) else f"{k!r}"
            text += sign + (inner if size == "1.0" else f"{size} * {inner}")
        return text


class _Scaled(_Elementary):
    """A profile with a bandwidth and, if coordinates differ in scale, one a coordinate besides."""

    bandwidth: float | Tensor
    length_scale: Tensor | None
    _profile: str

    def __post_init__(self) -> None:
        self._set(bandwidth=parts.as_bandwidth(self.bandwidth), length_scale=parts.as_length_scale(self.length_scale))
        self._derive((Term(self._profile, 1.0, self.bandwidth, length_scale=self.length_scale),))


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Gaussian(_Scaled):
    """exp(-r^2 / (2 h^2)).

    Args:
        bandwidth: h > 0; a float, or a tensor that may require grad: 0-d, or [*B] with one h a problem.
        length_scale: Lengths [D] or [*B, D] that coordinates are divided by first; a tensor that may require grad.
    """

    bandwidth: float | Tensor
    length_scale: Tensor | None = field(default=None, kw_only=True)
    _profile = "gaussian"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Laplace(_Scaled):
    """exp(-r / h), r the Euclidean distance. The gradient at r = 0 is defined as 0.

    Args:
        bandwidth: h > 0; a float, or a tensor that may require grad: 0-d, or [*B] with one h a problem.
        length_scale: Lengths [D] or [*B, D] that coordinates are divided by first; a tensor that may require grad.
    """

    bandwidth: float | Tensor
    length_scale: Tensor | None = field(default=None, kw_only=True)
    _profile = "laplace"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class IMQ(_Scaled):
    """The inverse multiquadric (1 + r^2 / h^2)^(-1/2).

    Args:
        bandwidth: h > 0; a float, or a tensor that may require grad: 0-d, or [*B] with one h a problem.
        length_scale: Lengths [D] or [*B, D] that coordinates are divided by first; a tensor that may require grad.
    """

    bandwidth: float | Tensor
    length_scale: Tensor | None = field(default=None, kw_only=True)
    _profile = "imq"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Matern32(_Scaled):
    """(1 + u) e^-u with u = sqrt(3) r / h (Rasmussen & Williams 2006, ch. 4).

    Args:
        bandwidth: h > 0; a float, or a tensor that may require grad: 0-d, or [*B] with one h a problem.
        length_scale: Lengths [D] or [*B, D] that coordinates are divided by first; a tensor that may require grad.
    """

    bandwidth: float | Tensor
    length_scale: Tensor | None = field(default=None, kw_only=True)
    _profile = "matern32"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Matern52(_Scaled):
    """(1 + u + u^2 / 3) e^-u with u = sqrt(5) r / h (Rasmussen & Williams 2006, ch. 4).

    Args:
        bandwidth: h > 0; a float, or a tensor that may require grad: 0-d, or [*B] with one h a problem.
        length_scale: Lengths [D] or [*B, D] that coordinates are divided by first; a tensor that may require grad.
    """

    bandwidth: float | Tensor
    length_scale: Tensor | None = field(default=None, kw_only=True)
    _profile = "matern52"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class RationalQuadratic(_Elementary):
    """(1 + r^2 / (2 alpha h^2))^(-alpha); a Gaussian as alpha grows.

    Args:
        bandwidth: h > 0; a float, or a tensor that may require grad: 0-d, or [*B] with one h a problem.
        length_scale: Lengths [D] or [*B, D] that coordinates are divided by first; a tensor that may require grad.
        alpha: The decay, > 0.
    """

    bandwidth: float | Tensor
    alpha: float
    length_scale: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._set(
            bandwidth=parts.as_bandwidth(self.bandwidth),
            alpha=as_positive("alpha", self.alpha),
            length_scale=parts.as_length_scale(self.length_scale),
        )
        self._derive((Term("rational_quadratic", 1.0, self.bandwidth, self.alpha, self.length_scale),))


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Riesz(_Elementary):
    """-r^e; with e = 1 the kernel of the energy distance. The gradient at r = 0 is 0.

    Args:
        exponent: e, strictly between 0 and 2.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        self._set(exponent=as_number("exponent", self.exponent))
        if not 0 < self.exponent < 2:
            raise ValueError(f"exponent must lie strictly between 0 and 2, got {self.exponent!r}")
        self._derive((_power(-1.0, self.exponent),))


@portable
@dataclass(frozen=True, eq=False, repr=False)
class PowerLaw(_Elementary):
    """The interaction potential r^p / p - r^q / q, where an exponent 0 reads log r.

    A term that is infinite at r = 0 (an exponent <= 0) contributes nothing for coincident points.

    Args:
        attraction: p, the exponent of the attractive term.
        repulsion: q, the exponent of the repulsive term.
    """

    attraction: float
    repulsion: float

    def __post_init__(self) -> None:
        self._set(attraction=as_number("attraction", self.attraction), repulsion=as_number("repulsion", self.repulsion))
        p, q = self.attraction, self.repulsion
        self._derive((_power(1.0 / p if p else 1.0, p), _power(-1.0 / q if q else -1.0, q)))


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Morse(_Elementary):
    """The interaction potential Cr e^(-r / lr) - Ca e^(-r / la).

    Args:
        repulsion_strength: Cr >= 0.
        repulsion_range: lr > 0.
        attraction_strength: Ca >= 0.
        attraction_range: la > 0.
    """

    repulsion_strength: float
    repulsion_range: float
    attraction_strength: float
    attraction_range: float

    def __post_init__(self) -> None:
        for name in ("repulsion_strength", "attraction_strength"):
            value = as_number(name, getattr(self, name))
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value!r}")
            self._set(**{name: value})
        for name in ("repulsion_range", "attraction_range"):
            self._set(**{name: as_positive(name, getattr(self, name))})
        self._derive(
            (
                Term("laplace", self.repulsion_strength, self.repulsion_range),
                Term("laplace", -self.attraction_strength, self.attraction_range),
            )
        )


def _power(coefficient: float, exponent: float) -> Term:
    """A power of r by the profile that computes it best; an exponent 0 reads log r."""
    if exponent == 0:
        return Term("log", coefficient)
    return Term("distance", coefficient) if exponent == 1 else Term("power", coefficient, 1.0, exponent)
