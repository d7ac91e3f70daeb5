"""Powers as sums of exponentials, which sweep over sorted points in linear time (Beylkin & Monzon 2005)."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

_CLOSEST = 1e-12  # distances, as shares of the largest, that are told apart
_PER_DECADE = 6


@functools.lru_cache(maxsize=64)
def power_of_distance(exponent: float) -> tuple[Tensor, Tensor]:
    """Rates t and coefficients c of u^(e-1) = sum_q c_q exp(-t_q u), 0 < u <= 1, for 0 <= e < 2.

    Rates are 0 and a geometric row; coefficients a least-squares fit on the logarithmic scale of u, relative where the
    power is above 1 and absolute where it is below.

    Args:
        exponent: e; 0 is that of the logarithm, of which this is the slope.

    Returns:
        Two vectors of float64, rates increasing. The error is below 2e-10.
    """
    slowest, fastest = 0.2, 20 / _CLOSEST
    count = math.ceil(math.log10(fastest / slowest) * _PER_DECADE) + 1
    rates = torch.cat(
        [torch.zeros(1), torch.logspace(math.log10(slowest), math.log10(fastest), count, dtype=torch.float64)]
    )
    u = torch.logspace(math.log10(_CLOSEST), 0, 8 * count, dtype=torch.float64)
    power = u ** (exponent - 1)
    size = power.clamp(min=1)
    columns = rates.clamp(min=1) ** (1 - exponent)  # the size of what each contributes
    matrix = torch.exp(-u[:, None] * rates) / size[:, None] * columns
    fit = torch.linalg.lstsq(matrix, (power / size)[:, None], rcond=1e-15, driver="gelsd").solution[:, 0]
    return rates, fit * columns


class Exponentials(NamedTuple):
    """Powers of |t|, and log |t|, for |t| up to a length: b_0 + b_1 |t| + sum_q decays[q] exp(-rates[q] |t|).

    Attributes:
        rates: Increasing.
        decays: Of either sign.
        tied: What the exponentials are to read at t = 0, so that it all reads 0 there.
        powers: b_0 and b_1.
    """

    rates: Tensor
    decays: Tensor
    tied: float
    powers: Tensor


def exponentials(powers: dict[float, float], logarithm: float, length: float) -> Exponentials:
    """sum_e a_e |t|^e + a_0 log |t|, 0 < e < 2, by the integral of the slopes' exponentials down from t = L.

    Of error 2e-10 relative to the size at the length, as long as |t| is above 1e-12 of it; closer pairs are given less
    than their power, by what there is between: 1e-12^e.

    Args:
        powers: a_e by exponent.
        logarithm: a_0.
        length: L.
    """
    rates = power_of_distance(1.0)[0]  # the same for all exponents
    decays, constant, linear = torch.zeros_like(rates), 0.0, 0.0
    sums = [(e, a * e * length**e, a * length**e) for e, a in powers.items()]
    if logarithm:
        sums.append((0.0, logarithm, logarithm * math.log(length)))
    for exponent, size, at_length in sums:
        # u^e = 1 - e int_u^1 v^(e-1) dv and log u = -int_u^1 dv / v, u = t / L
        c = size * power_of_distance(exponent)[1]
        parts = c[1:] / rates[1:]
        decays[1:] -= parts
        constant += at_length - float(c[0]) + float(parts @ torch.exp(-rates[1:]))
        linear += float(c[0]) / length
    low = torch.tensor([constant, linear], dtype=torch.float64)
    return Exponentials(rates[1:] / length, decays[1:].clone(), -constant, low)
