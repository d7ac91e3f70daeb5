"""The profile table as PyTorch functions: what the reference backend and dense kernels evaluate.

At s = 0 any negative power, and log s, read 0, so that singular terms contribute nothing there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import sympy as sp
import torch
from torch import Tensor

from gwf_fast.kernels.table import formulas, profiles

FUNCTIONS = ("exp", "sin", "cos", "tan", "sinh", "cosh", "tanh", "erf", "sign", "acos", "asin", "atan")
"""What a formula may be made of, beside powers, log and Abs."""


def power(s: Tensor, exponent: float) -> Tensor:
    """A power of s, where a negative power of 0 is 0."""
    if exponent < 0:
        return torch.where(s == 0, 0.0, s**exponent)
    return s.sqrt() if exponent == 0.5 else s**exponent


def log(s: Tensor) -> Tensor:
    """The logarithm, where log 0 is 0."""
    return torch.where(s == 0, 0.0, s.log())


def _compile(expression: sp.Expr) -> Callable[[Tensor, float], Tensor]:
    """A function of (s, p) that keeps the conventions at s = 0."""
    named = expression.replace(lambda e: e.is_Pow and e.base.has(profiles.s), lambda e: sp.Function("power")(*e.args))
    modules = {"power": power, "log": log, "Abs": torch.abs} | {name: getattr(torch, name) for name in FUNCTIONS}
    return sp.lambdify((profiles.s, profiles.p), named, modules=[modules, "math"])


class _Profile(NamedTuple):
    """A profile as functions of (s, p): its derivatives; and, if positive, log phi and the ratios phi^(k) / phi.

    Of a cost times exp(-its multiple), which may be 0: the logarithm of the exponential, and ratios over that.
    """

    derivatives: tuple[Callable[[Tensor, float], Tensor], ...]
    log_phi: Callable[[Tensor, float], Tensor] | None
    ratios: tuple[Callable[[Tensor, float], Tensor], ...]


@functools.cache
def _profile(number: int) -> _Profile:
    profile = formulas.profile(number)
    if isinstance(profile, formulas.CostFormula):
        log_factor = -profile.split[1]
        derivatives = tuple(_compile(row * sp.exp(log_factor)) for row in profile.rows)
        return _Profile(derivatives, _compile(log_factor), tuple(_compile(row) for row in profile.rows))
    derivatives = tuple(_compile(d) for d in profile.derivatives)
    if not profile.positive:
        return _Profile(derivatives, None, ())
    prefactor, exponent = profile.split
    ratios = ((sp.expand(d * sp.exp(exponent)) if exponent else d) / prefactor for d in profile.derivatives)
    log_phi = sp.expand_log(sp.log(prefactor), force=True) - exponent
    return _Profile(derivatives, _compile(log_phi), tuple(_compile(r) for r in ratios))


def profile_derivative(number: int, order: int, s: Tensor, parameter: float) -> Tensor:
    """The derivative of a profile of the given order, with respect to s, at each s."""
    return _profile(number).derivatives[order](s, parameter)


class Term(NamedTuple):
    """One term of a kernel: coefficient * phi(|x - y|^2 / bandwidth^2; parameter)."""

    profile: int
    coefficient: float
    bandwidth: float
    parameter: float


def terms(spec: Sequence[float]) -> list[Term]:
    """The flat ``spec`` as terms."""
    return [Term(int(spec[k]), *spec[k + 1 : k + 4]) for k in range(0, len(spec), 4)]


def kernel_derivatives(q: Tensor, spec: Sequence[float], order: int, shift: Tensor | None = None) -> list[Tensor]:
    """k, dk/dq, ..., d^order k / dq^order as functions of q = |x - y|^2, each times exp(shift).

    A shift is only meaningful for positive kernels. It joins the exponent before anything is exponentiated:
    exp(shift) alone may overflow where k underflows.
    """
    rows = [torch.zeros_like(q) for _ in range(order + 1)]
    for term in terms(spec):
        s = q / term.bandwidth**2
        profile = _profile(term.profile)
        if shift is None:
            factor, functions = torch.ones_like(s), profile.derivatives
        else:
            factor, functions = (_log_phi(term, s) + shift).exp(), profile.ratios
        for k in range(order + 1):
            rows[k] = rows[k] + term.coefficient / term.bandwidth ** (2 * k) * functions[k](s, term.parameter) * factor
    return rows


def _log_phi(term: Term, s: Tensor) -> Tensor:
    log_phi = _profile(term.profile).log_phi
    if log_phi is None or term.coefficient <= 0:
        raise ValueError(f"a logarithm needs a kernel with positive terms only, got {term}")
    return log_phi(s, term.parameter)


def log_kernel(q: Tensor, spec: Sequence[float]) -> Tensor:
    """The logarithm of k, without forming k; a mixture is a log-sum-exp over its terms."""
    rows = [math.log(term.coefficient) + _log_phi(term, q / term.bandwidth**2) for term in terms(spec)]
    return torch.stack(rows).logsumexp(0) if len(rows) > 1 else rows[0]
