"""What a benchmark is, and the list of all of them. A family of cases is a module that fills CASES."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

Result = tuple[torch.Tensor, ...]
Contender = Callable[[], Result]
OURS = "gwf_fast"


@dataclass(frozen=True)
class Race:
    """Contenders that compute the same thing.

    Attributes:
        contenders: By name, a function that makes the contender: it compiles and tunes, and may raise
            ImportError where a peer isn't installed. The first is OURS.
        truth: The right result in float64; None where there is nothing to compare (call overhead).
        checked: The part of a contender's result that ``truth`` holds.
        pairs: Pairs (i, j) in one call, for the rate.
        flops_per_pair: Floating-point work of the known floor, for the share of the machine's peak.
        flops: Floating-point work of one call, where there are no pairs.
    """

    contenders: Mapping[str, Callable[[], Contender]]
    truth: Callable[[], Result] | None = None
    checked: Callable[[Result], Result] = lambda result: result
    pairs: float | None = None
    flops_per_pair: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Case:
    """One benchmark.

    Attributes:
        name: Unique; slashes make it easy to choose with ``--only``.
        prepare: Makes the race; the argument says whether small sizes will do (``--quick``).
        tolerance: Largest relative error (2-norm, against float64) at which our time is reported.
        peer_tolerance: The same for peers: no ratio is reported over a wrong result.
        targets: By peer, the ratio peer time / our time that we hold ourselves to.
        limit: Largest time in seconds that we hold ourselves to.
        facts: What identifies the case in tables: reduction, kernel, D, N.
    """

    name: str
    prepare: Callable[[bool], Race]
    tolerance: float = 1e-6
    peer_tolerance: float = 1e-4
    targets: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    facts: dict[str, object] = field(default_factory=dict)


CASES: dict[str, Case] = {}


def register(cases: Iterable[Case]) -> None:
    """Add cases; a name can't be used twice."""
    for case in cases:
        if case.name in CASES:
            raise ValueError(f"bench: two cases are named {case.name!r}")
        CASES[case.name] = case
