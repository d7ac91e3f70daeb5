"""The one table of f-divergences D_f(P|Q) = E_Q f(dP/dQ), and of what else critics maximise.

A row is all that the package knows of a divergence: functionals, critics' objectives, output activations, the compiled
loops and the drifts read it. To add one, write its row, and enter it in ``_PLAIN`` or ``_PARAMETRIC``.

Convention of Fan et al. (ICML 2022): the model P comes first. f-GAN (Nowozin et al., 2016) puts the data first, so that
KL and reverse KL, Pearson and Neyman swap names. A critic's raw output v is mapped by ``activation`` into the
domain of the conjugate; the optimum of sup_h E_P h - E_Q f*(h) is h = f'(dP/dQ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gwf_fast.pairs.validation import as_number

_LOG2 = math.log(2.0)
_Elementwise = Callable[[Tensor], Tensor]


class Compiled(NamedTuple):
    """An elementwise function of ``csrc/mlp/mlp.h`` and its constant."""

    name: str
    constant: float = 0.0


@dataclass(frozen=True)
class Divergence:
    """One row of the table; every entry is elementwise on tensors of any shape.

    Attributes:
        name: The name of the row.
        f: Convex, f(1) = 0; defined for u > 0.
        f_prime: Derivative of f.
        slope: u f''(u) as a function of log u: the drift is this times the difference of the scores. None where f''
            is not a function.
    """

    name: str
    f: _Elementwise
    f_prime: _Elementwise
    slope: _Elementwise | None


@dataclass(frozen=True)
class Variational(Divergence):
    """A row with a critic: sup_h E_P h - E_Q f*(h).

    Attributes:
        conjugate: f*(t) = sup_u (u t - f(u)), for t in the range of ``activation``.
        activation: Maps a critic's raw output onto the domain of ``conjugate``.
        conjugate_of_activation: f*(activation(v)), simplified by hand where the composition would overflow.
        compiled: The last two as the compiled networks have them.
    """

    conjugate: _Elementwise
    activation: _Elementwise
    conjugate_of_activation: _Elementwise
    compiled: tuple[Compiled, Compiled]


TAME = 15.0
"""Where :func:`tame_exp` becomes a straight line."""


def tame_exp(v: Tensor) -> Tensor:
    """e^v up to v = 15, its tangent there from then on."""
    return v.clamp(max=TAME).exp() + math.exp(TAME) * (v - TAME).clamp(min=0)


def _identity(v: Tensor) -> Tensor:
    return v


def _expm1(v: Tensor) -> Tensor:
    """e^v - 1; its derivative is e^v far down as well, where autograd's, the value + 1, is a rounding."""
    low, high = torch.where(v < -1, v, -1.0), torch.where(v < -1, -1.0, v)  # not clamp, whose slope at NaN is 0
    return torch.where(v < -1, low.exp() - 1, torch.expm1(high))


_RAW = Compiled("identity")


def _tanh(v: Tensor) -> Tensor:
    """tanh v; its derivatives keep their digits where it is 1, which autograd's, 1 - tanh^2, do not."""

    def of_positive(u: Tensor) -> Tensor:
        fallen = _expm1(-2 * torch.where(u < 0, 0.0, u))
        return -fallen / (2 + fallen)

    return torch.where(v < 0, -of_positive(-v), of_positive(v))


def _kl() -> Divergence:
    return Variational(
        "kl",
        f=lambda u: u * u.log(),
        f_prime=lambda u: 1 + u.log(),
        slope=torch.ones_like,
        conjugate=lambda t: (t - 1).exp(),
        activation=_identity,
        conjugate_of_activation=lambda v: (v - 1).exp(),
        compiled=(_RAW, Compiled("exp_shifted", 1.0)),
    )


def _reverse_kl() -> Divergence:
    return Variational(
        "reverse_kl",
        f=lambda u: -u.log(),
        f_prime=lambda u: -1 / u,
        slope=lambda t: (-t).exp(),
        conjugate=lambda t: -1 - (-t).log(),
        activation=lambda v: -(-v).exp(),
        conjugate_of_activation=lambda v: v - 1,
        compiled=(Compiled("minus_exp", 0.0), Compiled("identity", -1.0)),
    )


def _js() -> Divergence:
    return Variational(
        "js",
        f=lambda u: u * u.log() - (1 + u) * ((1 + u) / 2).log(),
        f_prime=lambda u: (2 * u / (1 + u)).log(),
        slope=lambda t: (-t).sigmoid(),
        conjugate=lambda t: -(2 - t.exp()).log(),
        activation=lambda v: _LOG2 - softplus(-v),
        conjugate_of_activation=lambda v: softplus(v) - _LOG2,
        compiled=(Compiled("log_sigmoid", _LOG2), Compiled("softplus", -_LOG2)),
    )


def _pearson() -> Divergence:
    def conjugate(t: Tensor) -> Tensor:
        t = t.clamp(min=-2)
        return t * t / 4 + t

    return Variational(
        "pearson",
        f=lambda u: (u - 1).square(),
        f_prime=lambda u: 2 * (u - 1),
        slope=lambda t: 2 * t.exp(),
        conjugate=conjugate,
        activation=_identity,
        conjugate_of_activation=conjugate,
        compiled=(_RAW, Compiled("parabola")),
    )


def _neyman() -> Divergence:
    return Variational(
        "neyman",
        f=lambda u: (1 - u).square() / u,
        f_prime=lambda u: 1 - u**-2,
        slope=lambda t: 2 * (-2 * t).exp(),
        conjugate=lambda t: 2 - 2 * (1 - t).sqrt(),
        activation=lambda v: -_expm1(-v),
        conjugate_of_activation=lambda v: -2 * _expm1(-v / 2),
        compiled=(Compiled("minus_exp", 1.0), Compiled("exp_half")),
    )


def _squared_hellinger() -> Divergence:
    return Variational(
        "squared_hellinger",
        f=lambda u: (u.sqrt() - 1).square(),
        f_prime=lambda u: 1 - u**-0.5,
        slope=lambda t: 0.5 * (-0.5 * t).exp(),
        conjugate=lambda t: t / (1 - t),
        activation=lambda v: -_expm1(-v),
        conjugate_of_activation=_expm1,
        compiled=(Compiled("minus_exp", 1.0), Compiled("expm1")),
    )


def _total_variation() -> Divergence:
    return Variational(
        "total_variation",
        f=lambda u: (u - 1).abs() / 2,
        f_prime=lambda u: (u - 1).sign() / 2,
        slope=None,
        conjugate=_identity,
        activation=lambda v: _tanh(v) / 2,
        conjugate_of_activation=lambda v: _tanh(v) / 2,
        compiled=(Compiled("tanh", 0.5), Compiled("tanh", 0.5)),
    )


def _jeffreys() -> Divergence:
    """The sum of both KL; f* takes Lambert's W."""
    return Divergence(
        "jeffreys",
        f=lambda u: (u - 1) * u.log(),
        f_prime=lambda u: u.log() + 1 - 1 / u,
        slope=lambda t: 1 + (-t).exp(),
    )


def _log_d() -> Divergence:
    """2 KL((P + Q)/2 | Q), which Gao et al. (2019) descend."""
    return Divergence(
        "log_d",
        f=lambda u: (1 + u) * ((1 + u) / 2).log() - (u - 1),
        f_prime=lambda u: ((1 + u) / 2).log(),
        slope=torch.sigmoid,
    )


def _alpha(a: float) -> Divergence:
    if a in (0.0, 1.0):
        raise ValueError(
            f"parameter: alpha = {a:g} is a limit of the alpha divergence; use 'reverse_kl' (0) or 'kl' (1)"
        )

    def conjugate(t: Tensor) -> Tensor:
        return (((a - 1) * t + 1).clamp(min=0) ** (a / (a - 1)) - 1) / a

    def bounded(v: Tensor) -> Tensor:
        return 1 / (1 - a) - softplus(-v)

    def conjugate_of_bounded(v: Tensor) -> Tensor:
        return (((1 - a) * softplus(-v)) ** (a / (a - 1)) - 1) / a

    is_whole = a > 1  # else the conjugate lives on t < 1 / (1 - a)
    bounds = Compiled("log_sigmoid", 1 / (1 - a))
    return Variational(
        "alpha",
        f=lambda u: (u**a - 1 - a * (u - 1)) / (a * (a - 1)),
        f_prime=lambda u: (u ** (a - 1) - 1) / (a - 1),
        slope=lambda t: ((a - 1) * t).exp(),
        conjugate=conjugate,
        activation=_identity if is_whole else bounded,
        conjugate_of_activation=conjugate if is_whole else conjugate_of_bounded,
        compiled=(_RAW, Compiled("alpha_power", a)) if is_whole else (bounds, Compiled("alpha_bounded", a)),
    )


def _generalized_entropy(m: float) -> Divergence:
    if not m > 1:
        raise ValueError(f"parameter: the generalized entropy needs m > 1, got {m:g}")

    def conjugate(t: Tensor) -> Tensor:
        return (((m - 1) * t + 1).clamp(min=0) / m) ** (m / (m - 1))

    return Variational(
        "generalized_entropy",
        f=lambda u: (u**m - u) / (m - 1),
        f_prime=lambda u: (m * u ** (m - 1) - 1) / (m - 1),
        slope=lambda t: m * ((m - 1) * t).exp(),
        conjugate=conjugate,
        activation=_identity,
        conjugate_of_activation=conjugate,
        compiled=(_RAW, Compiled("entropy_power", m)),
    )


VariationalName = Literal["kl", "reverse_kl", "js", "pearson", "neyman", "squared_hellinger", "total_variation"]
SmoothName = Literal["kl", "reverse_kl", "js", "pearson", "neyman", "squared_hellinger", "jeffreys", "log_d"]
ParametricName = Literal["alpha", "generalized_entropy"]
ObjectiveName = Literal["ipm", "hinge", "donsker_varadhan", "kl_density"]
"""What type checkers know of the tables below; a test holds them to be equal."""

_Rows = dict[str, Callable[..., Divergence]]
_PLAIN: _Rows = {
    "kl": _kl,
    "reverse_kl": _reverse_kl,
    "js": _js,
    "pearson": _pearson,
    "neyman": _neyman,
    "squared_hellinger": _squared_hellinger,
    "total_variation": _total_variation,
    "jeffreys": _jeffreys,
    "log_d": _log_d,
}
_PARAMETRIC: _Rows = {
    "alpha": _alpha,
    "generalized_entropy": _generalized_entropy,
}
PARAMETRIC: tuple[str, ...] = tuple(_PARAMETRIC)
"""Rows that need a ``parameter``."""

DIVERGENCES: tuple[str, ...] = (*(name for name, row in _PLAIN.items() if isinstance(row(), Variational)), *PARAMETRIC)
"""Rows with a critic."""

SMOOTH: tuple[str, ...] = (*(name for name, row in _PLAIN.items() if row().slope is not None), *PARAMETRIC)
"""Rows with a slope."""


def divergence(name: str, parameter: float | None = None) -> Divergence:
    """The row of the table called ``name``.

    Args:
        name: One of :data:`DIVERGENCES` or :data:`SMOOTH`.
        parameter: alpha of ``"alpha"`` (not 0 or 1), m > 1 of ``"generalized_entropy"``; None for the others.

    Raises:
        ValueError: If there is no such row, or its parameter is missing, superfluous or out of range.
    """
    if name in _PLAIN:
        if parameter is not None:
            raise ValueError(f"parameter: the divergence {name!r} takes none, got {parameter!r}")
        return _PLAIN[name]()
    if name in _PARAMETRIC:
        if parameter is None:
            raise ValueError(f"parameter: the divergence {name!r} needs one, got None")
        return _PARAMETRIC[name](float(parameter))
    raise ValueError(f"name must be one of {', '.join((*_PLAIN, *_PARAMETRIC))}, got {name!r}")


def variational(name: str, parameter: float | None = None) -> Variational:
    """As :func:`divergence`, for what needs a critic.

    Raises:
        ValueError: As there, and if the row has none.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"name must be one of {', '.join(DIVERGENCES)}, got {name!r}")
    row = divergence(name, parameter)
    assert isinstance(row, Variational)
    return row


class Objective(NamedTuple):
    """scale (E_P A(h) - E_Q B(h)), what a critic h maximises.

    Attributes:
        model: A.
        target: B.
        compiled: The two as the compiled networks have them.
        scale: What both are multiplied by.
        log_mean: Whether log E_Q e^h stands in place of E_Q B(h).
    """

    model: _Elementwise
    target: _Elementwise
    compiled: tuple[Compiled, Compiled]
    scale: float = 1.0
    log_mean: bool = False


_OBJECTIVES: dict[str, Objective] = {
    "ipm": Objective(_identity, _identity, (_RAW, _RAW)),
    "hinge": Objective(
        lambda v: v.clamp(max=1) - 1, lambda v: v.clamp(min=-1) + 1, (Compiled("below", 1.0), Compiled("above", 1.0))
    ),
    "donsker_varadhan": Objective(_identity, _identity, (_RAW, _RAW), log_mean=True),
    "kl_density": Objective(_identity, tame_exp, (_RAW, Compiled("exp_tamed", TAME))),
}
OBJECTIVES: tuple[str, ...] = (*_OBJECTIVES, "entropy")
"""What :func:`objective` takes beside the rows of the table; "entropy" needs a ``parameter``."""


def objective(name: str, parameter: float | None = None) -> Objective:
    """What the critic of a row of the table maximises, or that of another functional.

    Args:
        name: One of :data:`DIVERGENCES` or :data:`OBJECTIVES`.
        parameter: As in :func:`divergence`; m > 1 of ``"entropy"``.

    Raises:
        ValueError: If there is no such objective, or its parameter is missing, superfluous or out of range.
    """
    if name in DIVERGENCES:
        row = variational(name, parameter)
        return Objective(row.activation, row.conjugate_of_activation, row.compiled)
    if name == "entropy":
        if parameter is None or not parameter > 1:
            raise ValueError(f'divergence must be ("entropy", m) with m > 1, got {_given(name, parameter)!r}')
        power = parameter / (parameter - 1)
        compiled = _RAW, Compiled("ramp_power", power)
        return Objective(_identity, lambda v: v.clamp(min=0) ** power / power, compiled, scale=power)
    if name not in _OBJECTIVES:
        known = ", ".join((*DIVERGENCES, *OBJECTIVES))
        raise ValueError(f"divergence must be one of {known}, got {name!r}")
    if parameter is not None:
        raise ValueError(f"divergence: {name!r} takes no parameter, got {_given(name, parameter)!r}")
    return _OBJECTIVES[name]


def _given(name: str, parameter: float | None) -> str | tuple[str, float]:
    return name if parameter is None else (name, parameter)


def split_name(value: str | Sequence, argument: str) -> tuple[str, float | None]:
    """("alpha", 0.5) from itself or the list that JSON makes of it; a bare name has no parameter."""
    if isinstance(value, str):
        return value, None
    if len(value) == 2 and isinstance(value[0], str):
        return value[0], as_number(argument, value[1], "a name or a pair (name, number)")
    raise ValueError(f"{argument} must be a name or a pair (name, number), got {value!r}")
