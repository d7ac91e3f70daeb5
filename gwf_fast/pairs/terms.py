"""What a kernel is made of: terms, and the evaluations that they take, of which each is one pass over the pairs."""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gwf_fast.kernels.table.profile_numbers import is_positive, profile_id
from gwf_fast.ops.modes import is_concrete
from gwf_fast.pairs.validation import as_number, as_positive, check_floating


class Term(NamedTuple):
    """``coefficient * phi(|x - y|^2 / bandwidth^2; parameter)``, phi by its name in the profile table.

    A tensor as bandwidth has a number a problem, [*B]; coordinates are first divided by the length scale, [*B, D].
    Factors are tensors without dimensions, which multiply the coefficient.
    """

    profile: str
    coefficient: float
    bandwidth: float | Tensor = 1.0
    parameter: float = 0.0
    length_scale: Tensor | None = None
    factors: tuple[Tensor, ...] = ()

    @property
    def is_positive(self) -> bool:
        """Whether it has a logarithm. A factor that can't be looked at is taken to be positive."""
        negative = any(is_concrete(c) and c.is_cpu and bool(c.detach() <= 0) for c in self.factors)
        return self.coefficient > 0 and not negative and is_positive(self.profile)

    def times(self, factor: float | Tensor) -> Term:
        """A multiple. Tensors are multiplied when the kernel is evaluated: a graph of today ends with its backward."""
        if isinstance(factor, Tensor):
            return self._replace(factors=(*self.factors, factor))
        return self._replace(coefficient=factor * self.coefficient)


class Pass(NamedTuple):
    """Terms that a backend evaluates together: it takes numbers, and so knows none of the tensors.

    Where a bandwidth is a tensor, points are divided by it instead, as k_h(x, y) = k_1(x / h, y / h): autograd of the
    division is then its derivative, to every order. Results are multiplied by the factors.

    Attributes:
        bandwidth: What points are divided by, [*B]; None: by nothing.
        length_scale: What coordinates are divided by besides, [*B, D]; None: by nothing.
        factors: Tensors without dimensions.
        spec: The terms as backends take them, four floats each.
    """

    bandwidth: Tensor | None
    length_scale: Tensor | None
    factors: tuple[Tensor, ...]
    spec: tuple[float, ...]

    @property
    def divides(self) -> bool:
        """Whether points are divided first."""
        return self.bandwidth is not None or self.length_scale is not None

    @property
    def is_plain(self) -> bool:
        """Whether it takes points as they are, and gives results as they are."""
        return not self.divides and not self.factors

    @property
    def coefficient(self) -> Tensor | None:
        """What results are multiplied by; None: 1."""
        return functools.reduce(operator.mul, self.factors) if self.factors else None

    def divisor(self, points: Tensor) -> Tensor | None:
        """What points [*B, N, D] are divided by, of a shape that goes with theirs."""
        h = None if self.bandwidth is None else per_problem(self.bandwidth, points)
        lengths = self.length_scale
        if lengths is None:
            return h
        lengths = lengths.to(points.dtype).unsqueeze(-2)
        return lengths if h is None else h * lengths


def per_problem(h: Tensor, points: Tensor) -> Tensor:
    """A number a problem [*B] in a shape that goes with points [*B, N, D]; one without dimensions goes with all."""
    return h if not h.ndim else h.to(points.dtype)[..., None, None]


def passes_of(terms: tuple[Term, ...]) -> tuple[Pass, ...]:
    """Group the terms: one pass for all that are made of numbers, one for each distinct choice of tensors."""
    groups: dict[tuple[int | None, ...], Pass] = {}
    for term in terms:
        h = term.bandwidth if isinstance(term.bandwidth, Tensor) else None
        key = tuple(None if t is None else id(t) for t in (h, term.length_scale, *term.factors))
        before = groups[key].spec if key in groups else ()
        bandwidth = 1.0 if isinstance(term.bandwidth, Tensor) else term.bandwidth
        spec = (*before, float(profile_id(term.profile)), term.coefficient, bandwidth, term.parameter)
        groups[key] = Pass(h, term.length_scale, term.factors, spec)
    return tuple(groups.values())


# ------------------------------------------------------------------------------------------------ parameters


def as_bandwidth(value: Any) -> float | Tensor:
    """A positive number, or a tensor of them: one a problem."""
    if not isinstance(value, Tensor):
        return as_positive("bandwidth", value)
    if not value.is_floating_point():
        raise ValueError(
            f"bandwidth must be a float or a floating tensor, without dimensions or with one number a problem,"
            f" got shape {list(value.shape)}, {value.dtype}"
        )
    _check_positive("bandwidth", value)
    return value


def as_length_scale(value: Any) -> Tensor | None:
    """Positive numbers [*B, D], one a coordinate; None for none."""
    if value is None:
        return None
    check_floating("length_scale", value)
    if not value.ndim:
        raise ValueError("length_scale must have shape [D] or [*B, D], one number a coordinate, got []")
    _check_positive("length_scale", value)
    length_scale: Tensor = value
    return length_scale


def _check_positive(name: str, value: Tensor) -> None:
    if not (is_concrete(value) and value.device.type == "cpu"):
        return  # on other devices a look would wait for the queue
    if not value.ndim:
        as_positive(name, value.item())
    elif not bool(((value > 0) & value.isfinite()).all()):
        seen = f"{float(value.detach().min()):g}..{float(value.detach().max()):g}"
        raise ValueError(f"{name} must be positive numbers, got values in {seen}")


def as_coefficient(value: Any) -> float | Tensor:
    """A number; a tensor without dimensions where its derivative is wanted, or can't be known not to be."""
    single = isinstance(value, Tensor) and value.is_floating_point() and not value.ndim
    if single and (value.requires_grad or not is_concrete(value)):
        return value
    return as_number("coefficient", value)


def shown(value: Any) -> str:
    """A parameter as text."""
    if not isinstance(value, Tensor):
        return repr(value)
    if value.ndim:
        return f"tensor of shape {list(value.shape)}"
    return f"tensor({value.item():g})" if is_concrete(value) else repr(value)


def identity(value: Any) -> Any:
    """What parameters are compared by: tensors are themselves, as two that are equal now need not stay so."""
    if isinstance(value, Tensor):
        return id(value)
    return tuple(map(identity, value)) if type(value) is tuple else value


# ------------------------------------------------------------------------------------------------ dense values


def dense_term(term: Term, d: Tensor) -> Tensor:
    """A term of differences d [*B, N, M, D]; [*B, N, M]."""
    if term.length_scale is not None:
        d = d / term.length_scale[..., None, None, :]
    h = term.bandwidth
    h = h[..., None, None] if isinstance(h, Tensor) and h.ndim else h
    s = (d * d).sum(-1) / h**2
    value = term.coefficient * _DenseProfile.apply(s, profile_id(term.profile), term.parameter, 0)
    return functools.reduce(operator.mul, term.factors, value)


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
        ctx.save_for_forward(s)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (s,) = ctx.saved_tensors
        number, parameter, order = ctx.rest
        return g * _DenseProfile.apply(s, number, parameter, order + 1), None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: Any) -> Tensor:
        (s,) = ctx.saved_tensors
        number, parameter, order = ctx.rest
        return ds * _DenseProfile.apply(s, number, parameter, order + 1)


def batch_of(terms: tuple[Term, ...]) -> tuple[int, ...]:
    """The problems that tensors tell apart, *B; () where they tell none apart.

    Raises:
        ValueError: If they do not go together.
    """
    shapes = [t.bandwidth.shape for t in terms if isinstance(t.bandwidth, Tensor)]
    shapes += [t.length_scale.shape[:-1] for t in terms if t.length_scale is not None]
    if not any(shapes):
        return ()
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        raise ValueError(
            f"bandwidths must go together, got one a problem for {', '.join(map(_listed, shapes))}"
        ) from None


def dim_of(terms: tuple[Term, ...]) -> int | None:
    """The coordinates that length scales are for; None where there are none.

    Raises:
        ValueError: If they do not go together.
    """
    dims = sorted({t.length_scale.shape[-1] for t in terms if t.length_scale is not None})
    if len(dims) > 1:
        raise ValueError(f"length_scale must have the same D in all terms, got {', '.join(map(str, dims))}")
    return dims[0] if dims else None


def _listed(shape: Any) -> str:
    return str(list(shape))
