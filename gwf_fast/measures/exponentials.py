"""Powers as sums of exponentials, which sweep over sorted points in linear time (Beylkin & Monzon 2005)."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

_CLOSEST = 1e-12  # distances, as shares of the largest, that are told apart
_PER_DECADE = 6


@functools.lru_cache(maxsize=64)
def power_of_distance(exponent: float) -> tuple[Tensor, Tensor]:
    """Rates t and coefficients c of u^(e-1) = sum_q c_q exp(-t_q u), 0 < u <= 1, for 0 < e < 2.

    Rates are 0 and a geometric row; coefficients a least-squares fit on the logarithmic scale of u, relative where the
    power is above 1 and absolute where it is below.

    Args:
        exponent: e.

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
