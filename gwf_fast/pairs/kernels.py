"""The kernel objects a user writes: ``0.5 * Gaussian(1.0) + Riesz()``.

A kernel is immutable, comparable and hashable. It is made of terms, each a profile of the table in
``kernels/table/profiles.py`` with a coefficient, a bandwidth and a parameter; backends see the terms as one flat
tuple of floats, ``kernel.spec``, and evaluate all of them in one pass over the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gwf_fast.checkpoint.portable import portable
from gwf_fast.kernels.table.profile_numbers import is_formula, is_positive, profile_id
from gwf_fast.ops.modes import is_concrete
from gwf_fast.pairs.validation import as_number, as_positive


class Term(NamedTuple):
    """``coefficient * phi(|x - y|^2 / bandwidth^2; parameter)``, phi by its name in the profile table."""

    profile: str
    coefficient: float
    bandwidth: float | Tensor = 1.0
    parameter: float = 0.0


class Pass(NamedTuple):
    """Terms that a backend evaluates together: the points divided by ``bandwidth`` (None: as they are) and a spec."""

    bandwidth: Tensor | None
    spec: tuple[float, ...]


class Kernel:
    """A radial kernel k(x, y). Subclasses say what their terms are; everything else follows from these.

    Kernels add up and take scalar multiples; ``kernel(x, y)`` is the dense matrix.

    Attributes:
        terms: The sum of profiles that the kernel is.
        spec: The terms as backends take them, four floats each; None where a bandwidth is a tensor.
        passes: The evaluations the kernel needs. One, unless bandwidths are tensors.
        positive: Whether every term is positive, so that the kernel has a logarithm.
        has_formula: Whether a term is a formula of the user's own (``Radial``).
    """

    terms: tuple[Term, ...]
    spec: tuple[float, ...] | None
    passes: tuple[Pass, ...]
    positive: bool
    has_formula: bool

    def _derive(self, terms: tuple[Term, ...]) -> None:
        # Computed once, here, and stored past the frozen __setattr__: every call of a reduction reads them.
        passes = _passes(terms)
        spec = passes[0].spec if len(passes) == 1 and passes[0].bandwidth is None else None
        positive = all(term.coefficient > 0 and is_positive(term.profile) for term in terms)
        has_formula = any(is_formula(term.profile) for term in terms)
        values = {"terms": terms, "spec": spec, "passes": passes, "positive": positive, "has_formula": has_formula}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _components(self) -> tuple[tuple[float, Kernel], ...]:
        return ((1.0, self),)

    def _key(self) -> tuple[Any, ...]:
        # A tensor is compared by identity: two parameters that happen to be equal now are not the same kernel.
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return (type(self), *(id(v) if isinstance(v, Tensor) else v for v in values))

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
            number = as_number("coefficient", factor)
        except TypeError:
            return NotImplemented
        components = tuple((number * c, k) for c, k in self._components())
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
        q = (d * d).sum(-1)
        out = torch.zeros_like(q)
        for term in self.terms:
            s = q / term.bandwidth**2
            out = out + term.coefficient * _DenseProfile.apply(s, profile_id(term.profile), term.parameter, 0)
        return out


class _DenseProfile(torch.autograd.Function):
    """phi^(order)(s), whose derivative is the next row of the table: exact at s = 0, where autograd's sqrt is not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, number: int, parameter: float, order: int) -> Tensor:
        from gwf_fast.kernels.reference.profiles import profile_derivative

        return profile_derivative(number, order, s, parameter)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, *ctx.rest = inputs
        ctx.save_for_backward(s)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (s,) = ctx.saved_tensors
        number, parameter, order = ctx.rest
        return g * _DenseProfile.apply(s, number, parameter, order + 1), None, None, None


def _passes(terms: tuple[Term, ...]) -> tuple[Pass, ...]:
    """Group the terms: one pass for all float bandwidths, one for each distinct tensor.

    A backend takes bandwidths as floats. Where one is a tensor, the points are divided by it instead, as
    k_h(x, y) = k_1(x / h, y / h): autograd of the division is then its derivative, to every order.
    """
    groups: dict[int | None, tuple[Tensor | None, list[float]]] = {}
    for term in terms:
        tensor = term.bandwidth if isinstance(term.bandwidth, Tensor) else None
        _, spec = groups.setdefault(None if tensor is None else id(tensor), (tensor, []))
        bandwidth = 1.0 if isinstance(term.bandwidth, Tensor) else term.bandwidth
        spec += [float(profile_id(term.profile)), term.coefficient, bandwidth, term.parameter]
    return tuple(Pass(tensor, tuple(spec)) for tensor, spec in groups.values())


def _bandwidth(value: Any) -> float | Tensor:
    if not isinstance(value, Tensor):
        return as_positive("bandwidth", value)
    if value.ndim != 0 or not value.is_floating_point():
        raise ValueError(
            f"bandwidth must be a float or a 0-d floating tensor, got shape {list(value.shape)}, {value.dtype}"
        )
    if is_concrete(value) and value.device.type == "cpu":  # on other devices a look would wait for the queue
        as_positive("bandwidth", value.item())
    return value


class _Elementary(Kernel):
    """A kernel with named parameters, which are its fields."""

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        shown = (f"tensor({v.item():g})" if isinstance(v, Tensor) and is_concrete(v) else repr(v) for v in values)
        return f"{type(self).__name__}({', '.join(shown)})"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Mixture(Kernel):
    """A finite sum of multiples of kernels; what ``+`` and ``*`` make. Evaluated in one pass over the pairs."""

    components: tuple[tuple[float, Kernel], ...]

    def __post_init__(self) -> None:
        self._derive(
            tuple(term._replace(coefficient=c * term.coefficient) for c, k in self.components for term in k.terms)
        )

    def _components(self) -> tuple[tuple[float, Kernel], ...]:
        return self.components

    def __repr__(self) -> str:
        text = ""
        for c, k in self.components:
            sign = ("-" if c < 0 else "") if not text else (" - " if c < 0 else " + ")
            text += sign + (f"{k!r}" if abs(c) == 1.0 else f"{abs(c)!r} * {k!r}")
        return text


class _Scaled(_Elementary):
    """A profile with a bandwidth and nothing else."""

    bandwidth: float | Tensor
    _profile: str

    def __post_init__(self) -> None:
        self._set(bandwidth=_bandwidth(self.bandwidth))
        self._derive((Term(self._profile, 1.0, self.bandwidth),))


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Gaussian(_Scaled):
    """exp(-r^2 / (2 h^2)).

    Args:
        bandwidth: h > 0; a float, or a 0-d tensor that may require grad.
    """

    bandwidth: float | Tensor
    _profile = "gaussian"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Laplace(_Scaled):
    """exp(-r / h), r the Euclidean distance. The gradient at r = 0 is defined as 0.

    Args:
        bandwidth: h > 0; a float, or a 0-d tensor that may require grad.
    """

    bandwidth: float | Tensor
    _profile = "laplace"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class IMQ(_Scaled):
    """The inverse multiquadric (1 + r^2 / h^2)^(-1/2).

    Args:
        bandwidth: h > 0; a float, or a 0-d tensor that may require grad.
    """

    bandwidth: float | Tensor
    _profile = "imq"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Matern32(_Scaled):
    """(1 + u) e^-u with u = sqrt(3) r / h (Rasmussen & Williams 2006, ch. 4).

    Args:
        bandwidth: h > 0; a float, or a 0-d tensor that may require grad.
    """

    bandwidth: float | Tensor
    _profile = "matern32"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class Matern52(_Scaled):
    """(1 + u + u^2 / 3) e^-u with u = sqrt(5) r / h (Rasmussen & Williams 2006, ch. 4).

    Args:
        bandwidth: h > 0; a float, or a 0-d tensor that may require grad.
    """

    bandwidth: float | Tensor
    _profile = "matern52"


@portable
@dataclass(frozen=True, eq=False, repr=False)
class RationalQuadratic(_Elementary):
    """(1 + r^2 / (2 alpha h^2))^(-alpha); a Gaussian as alpha grows.

    Args:
        bandwidth: h > 0; a float, or a 0-d tensor that may require grad.
        alpha: The decay, > 0.
    """

    bandwidth: float | Tensor
    alpha: float

    def __post_init__(self) -> None:
        self._set(bandwidth=_bandwidth(self.bandwidth), alpha=as_positive("alpha", self.alpha))
        self._derive((Term("rational_quadratic", 1.0, self.bandwidth, self.alpha),))


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
