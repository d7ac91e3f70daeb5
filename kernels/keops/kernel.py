"""A kernel's spec as KeOps text: the profile numbers shape the formula, everything else is a parameter."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.kernels.keops.profiles_generated import FORMULAS
from gwf_fast.kernels.table import formulas
from gwf_fast.kernels.table.keops_printer import split_text
from gwf_fast.kernels.table.profiles import PROFILES


class Text(NamedTuple):
    """Formulas of a mixture in x, y and the parameter vector h: [coefficient, 1/bandwidth^2, parameter] a term."""

    exponent: str | None  # the smallest of the terms; None is 0
    derivatives: tuple[str, ...]  # in q = |x - y|^2, times exp(exponent), or times exp of a shift


@functools.lru_cache(maxsize=512)
def split(number: int) -> tuple[str | None, tuple[str, ...]]:
    """(X, R_0..R_3) of a profile, from the generated file or, for a user's formula, printed now."""
    if number < formulas.FIRST:
        return FORMULAS[list(PROFILES)[number]]
    return split_text(formulas.profile(number))


def term_count(spec: Sequence[float]) -> int:
    """Terms of a spec."""
    return len(spec) // 4


def parameters(spec: Sequence[float], like: Tensor) -> Tensor:
    """The vector h."""
    rows = [(spec[i + 1], 1.0 / spec[i + 2] ** 2, spec[i + 3]) for i in range(0, len(spec), 4)]
    return torch.tensor(rows, dtype=like.dtype, device=like.device).flatten()


def mixture(numbers: tuple[int, ...], shift: str | None) -> Text:
    """The text of a mixture; derivatives are multiplied by exp(shift), inside the exponential."""
    exponents, terms = [], []
    for m, number in enumerate(numbers):
        coefficient, rate, p = (f"Elem(h,{3 * m + k})" for k in range(3))
        s = f"({rate}*SqDist(x,y))"
        exponent, prefactors = split(number)
        if exponent is not None:
            exponent = exponent.format(s=s, p=p)
        exponents.append(exponent)
        total = _add(shift, exponent)
        scale = coefficient
        rows = []
        for prefactor in prefactors:
            rows.append("*".join([scale, f"({prefactor.format(s=s, p=p)})"] + ([f"Exp({total})"] if total else [])))
            scale += f"*{rate}"
        terms.append(rows)
    derivatives = tuple("(" + "+".join(rows) + ")" for rows in zip(*terms))
    return Text(_smallest(exponents), derivatives)


def _add(shift: str | None, exponent: str | None) -> str | None:
    """shift - exponent."""
    if exponent is None:
        return shift
    return f"IntCst(-1)*{exponent}" if shift is None else f"{shift}-{exponent}"


def _smallest(exponents: list[str | None]) -> str | None:
    if any(exponent is None for exponent in exponents):
        return None  # a term without exponential: 0 is the smallest
    text = exponents[0]
    for exponent in exponents[1:]:
        text = f"IfElse({exponent}-{text},{text},{exponent})"  # KeOps' Min is a reduction over coordinates
    return text
