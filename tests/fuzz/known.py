"""Findings that stand: what is not right yet, said aloud by the suite. This list is to shrink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .arguments import Call
from .function import is_extreme


class Known(NamedTuple):
    """A finding that stands.

    Attributes:
        name: What is wrong, in a phrase.
        matches: Whether a call that went wrong is of this kind; takes the call and its result, or None where it died.
    """

    name: str
    matches: Callable[[Call, dict[str, Any] | None], bool]


def _by_torch_out_of_range(call: Call, result: dict[str, Any] | None) -> bool:
    return call.get("backend") == "torch" and is_extreme(call)


def _padding_by_torch(call: Call, result: dict[str, Any] | None) -> bool:
    derivative = call["mode"] in ("grad", "grad2")
    return call.get("backend") == "torch" and call["ragged"] and derivative and "NaN" in (result or {}).get("why", "")


def _steep_logarithms(call: Call, result: dict[str, Any] | None) -> bool:
    log_domain = ("kernel_logsumexp", "kernel_average", "parzen", "drift.parzen", "drift.f_div", "barycentric_map")
    derivative = call["mode"] in ("grad", "grad2")
    return derivative and call["place"].startswith(("outlier", "far", "shifted")) and call["f"].startswith(log_domain)


KNOWN: tuple[Known, ...] = (
    # Shares are exp(logit - logsumexp): at exponents of 1e8 both are off by units, and shares no longer add up to 1.
    Known("derivatives of log-domain sums at exponents that leave float32's digits", _steep_logarithms),
    # The compiled backend goes to float64 there; the portable one has float32's squares.
    Known('backend="torch": lengths whose squares leave the range', _by_torch_out_of_range),
    # 0 times NaN, where derivatives in y multiply by a mask.
    Known('backend="torch": derivatives where padding holds NaN', _padding_by_torch),
)


def known_finding(call: Call, result: dict[str, Any] | None = None) -> str | None:
    """The name of the kind that a finding is of."""
    return next((k.name for k in KNOWN if k.matches(call, result)), None)
