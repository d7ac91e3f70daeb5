"""Check, then time contenders in turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from bench.registry import OURS, Case, Contender, Race, Result

ROUND_SECONDS = 0.05  # a fast contender is repeated within a round for this long, a slow one runs once
MAX_REPEATS = 2000


def relative_error(result: Result, truth: Result) -> float:
    """Largest relative error in the 2-norm over the parts of a result; NaN counts as infinite."""
    errors = []
    for got, want in zip(result, truth, strict=True):
        if got.shape != want.shape:
            raise ValueError(f"bench: a result has shape {tuple(got.shape)}, the truth {tuple(want.shape)}")
        errors.append(float((got.double() - want).norm() / want.norm()))
    return max(float("inf") if error != error else error for error in errors)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def fastest(candidates: dict[str, Contender], trials: int = 3) -> tuple[str, Contender]:
    """The candidate with the shortest time: how a peer's own options (its tile) are tuned."""
    best = {}
    for label, call in candidates.items():
        call()
        best[label] = min(seconds(call) for _ in range(trials))
    label = min(best, key=best.__getitem__)
    return label, candidates[label]


def quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "median": statistics.median(ordered),
        "p20": ordered[round(0.2 * last)],
        "p80": ordered[round(0.8 * last)],
    }


def take_turns(calls: dict[str, Contender], budget: float, rounds: tuple[int, int]) -> dict[str, list[float]]:
    """Times of every contender, one median a round; the number of rounds follows from the budget in seconds."""
    repeats = {name: max(1, min(MAX_REPEATS, int(ROUND_SECONDS / seconds(call)))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while len(times[OURS]) < rounds[0] or (
        len(times[OURS]) < rounds[1] and time.perf_counter() - start < budget * (1 - 1 / (len(times[OURS]) + 1))
    ):
        for name, call in calls.items():
            times[name].append(statistics.median(seconds(call) for _ in range(repeats[name])))
    return times


def run(case: Case, *, quick: bool, budget: float, peak: float | None, with_peers: bool = True) -> dict[str, object]:
    """Run one case.

    Args:
        case: The benchmark.
        quick: Whether small sizes will do.
        budget: Seconds for the timed part, exceeded where three rounds take longer.
        peak: Floating-point operations a second that the machine reaches, for the share of the floor.
        with_peers: Whether peers run too.

    Returns:
        A record for JSON. ``failed`` replaces the times where our result is wrong.
    """
    race = case.prepare(quick)
    truth = race.truth() if race.truth else None
    record: dict[str, object] = {"name": case.name, **case.facts, "quick": quick}
    results: dict[str, dict[str, object]] = {}
    calls: dict[str, Contender] = {}
    for name, make in race.contenders.items():
        if name != OURS and not with_peers:
            continue
        try:
            call = make()
        except ImportError as missing:
            results[name] = {"unavailable": str(missing)}
            continue
        error = relative_error(race.checked(call()), truth) if truth else None
        results[name] = {"error": error, "detail": getattr(call, "detail", None)}
        allowed = case.tolerance if name == OURS else case.peer_tolerance
        if error is not None and error > allowed:
            results[name]["failed"] = f"relative error {error:.1e}, allowed {allowed:.0e}"
        else:
            calls[name] = call
    record["contenders"] = results
    if OURS not in calls:
        return record
    times = take_turns(calls, budget, (3, 5) if quick else (3, 15))
    for name, values in times.items():
        results[name] |= {**quantiles(values), "rounds": len(values)}
        if name != OURS:
            ratio = quantiles([peer / ours for peer, ours in zip(values, times[OURS], strict=True)])
            results[name]["ratio"] = ratio
            if name in case.targets:
                results[name]["target"] = case.targets[name]
    record |= rates(race, statistics.median(times[OURS]), peak)
    if case.limit is not None:
        record["limit"] = case.limit
    return record


def rates(race: Race, ours: float, peak: float | None) -> dict[str, float]:
    """Pairs a second as a share of the floor, the peak divided by the floor's work; or operations a second."""
    if race.flops is not None:
        rate = race.flops / ours
        return {"flops_per_second": rate} | ({} if peak is None else {"share_of_peak": rate / peak})
    if race.pairs is None:
        return {}
    rate = race.pairs / ours
    if race.flops_per_pair is None or peak is None:
        return {"pairs_per_second": rate}
    return {"pairs_per_second": rate, "share_of_floor": rate * race.flops_per_pair / peak}


def labelled(call: Contender, detail: str) -> Contender:
    """A contender that says in the record which of its options was chosen."""

    def contender() -> Result:
        return call()

    contender.detail = detail  # type: ignore[attr-defined]
    return contender


def detached(*tensors: torch.Tensor) -> Result:
    return tuple(t.detach() for t in tensors)
