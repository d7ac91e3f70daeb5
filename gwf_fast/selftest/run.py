"""What ``gwf-fast selftest`` runs: every backend present against the float64 reference, on this machine.

What a backend serves is read from the table of ``gwf_fast.ops.table``: each of its operations must have a case that
runs, and each case that does not is counted aloud, with its reason.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from gwf_fast.ops.table import BACKENDS, OPERATIONS
from gwf_fast.selftest import measures, networks, problems
from gwf_fast.selftest import reductions as pairs


class AnyCase(Protocol):
    """What the cases of pairs, networks and measures have in common; ``str`` is a name."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs."""

    @property
    def served_as(self) -> str:
        """A key of the table of operations."""

    @property
    def width(self) -> int:
        """Coordinates, or the widest layer."""

    @property
    def tolerance(self) -> float:
        """The largest error."""

    def measure(self, backend: str, device: str) -> float:
        """The error of a backend."""


def all_cases(half: bool = False) -> Iterator[AnyCase]:
    """Every case of every kind; `half` adds bfloat16 and float16."""
    yield from pairs.cases(half)
    yield from networks.cases(half)
    yield from measures.cases(half)
    yield from (case for case in problems.cases(half) if OPERATIONS[case.served_as].composed)


def skip_reason(name: str, case: AnyCase) -> str | None:
    """Why a backend does not run a case, wherever it is; None if it does."""
    operation = case.served_as
    if name not in OPERATIONS[operation].served_by:
        return (
            f"{operation}: computed from other operations"
            if OPERATIONS[operation].composed
            else f"{operation}: not served"
        )
    reason = BACKENDS[name].limit(case.dtype, False, None if OPERATIONS[operation].composed else operation, case.width)
    if reason is not None:
        return f"{operation}: {reason}"
    if name == "keops" and not _quick_for_keops(case):
        return "each operation, dimension and profile compiles for seconds: a selection runs"
    return None


def serves(name: str, case: AnyCase) -> bool:
    """Whether a backend runs a case."""
    return skip_reason(name, case) is None


def _quick_for_keops(case: Any) -> bool:
    if case.sizes not in ((1, 63, 500, 2), (2, 33, 70, 2), (1, 33, 40, 3)):
        return False
    return case.operation in ("sum", "gradient", "average") or len(case.profiles) > 1


def run(
    backends: list[str] | None = None,
    device: str | None = None,
    match: str = "",
    echo: Callable[[str], None] = print,
) -> int:
    """Runs the case list on every backend present and prints a table.

    Args:
        backends: Names; None is every backend that serves the device. One that is asked for and can't run is a failure.
        device: "cuda" or "cpu"; None is CUDA where there is a device.
        match: Only cases whose name contains this.
        echo: Where lines go.

    Returns:
        The number of failures: 0 is a success, and the exit code is 1 otherwise. An operation of the table without a
        case that ran is one, and so is a run without cases.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    failures = ran = 0
    absent = []
    echo(f"selftest on {_describe(device)}, torch {torch.__version__}")
    echo(f"{'backend':8} {'cases':>6} {'failed':>6} {'skipped':>7} {'largest error / tolerance':>26} {'seconds':>8}")
    for name in backends or BACKENDS:
        if name not in BACKENDS:
            raise ValueError(f"backends: got {name!r}, expected one of {', '.join(BACKENDS)}")
        reason = BACKENDS[name].missing(device)
        if reason is not None:
            failures += backends is not None
            echo(f"{name:8} {'not run: ' + reason if backends is None else 'FAILED: ' + reason}")
            absent.append(name)
            continue
        failed, count = _run_backend(name, device, match, echo)
        failures, ran = failures + failed, ran + count
    if not ran and not failures:
        failures = 1
        echo(f"FAILED: no case was run{f', none matches {match!r}' if match else ''}")
    echo(f"{ran} cases, {failures} failures; backends not run: {', '.join(absent) or 'none'}")
    return failures


def _run_backend(name: str, device: str, match: str, echo: Callable[[str], None]) -> tuple[int, int]:
    """(failures, cases run)."""
    start = time.perf_counter()
    problems: list[str] = []
    skipped: collections.Counter[str] = collections.Counter()
    done: collections.Counter[str] = collections.Counter()
    worst = 0.0
    for case in all_cases(half=device == "cuda"):
        if match not in str(case):
            continue
        reason = skip_reason(name, case)
        if reason is not None:
            skipped[reason] += 1
            continue
        done[case.served_as] += 1
        try:
            ratio = case.measure(name, device) / case.tolerance
        except Exception as problem:  # a self-test reports every failure and goes on
            problems.append(f"{case}: {type(problem).__name__}: {problem}")
            continue
        worst = max(worst, ratio)
        if not ratio <= 1:
            problems.append(f"{case}: error {ratio * case.tolerance:.1e}, tolerance {case.tolerance:.0e}")
    if not match:
        problems += [f"{operation}: no case was run" for operation in BACKENDS[name].operations if not done[operation]]
    seconds = time.perf_counter() - start
    count = done.total()
    echo(f"{name:8} {count:6} {len(problems):6} {skipped.total():7} {worst:26.2f} {seconds:8.1f}")
    if done:
        echo(f"    ran {', '.join(f'{operation} {number}' for operation, number in done.items())}")
    for reason, number in skipped.items():
        echo(f"    skipped {number} {reason}")
    for line in problems:
        echo(f"    FAILED {line}")
    return len(problems), count


def _describe(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "the CPU"
