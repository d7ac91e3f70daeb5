"""How many threads a compiled loop gets: more than one where that was measured to pay, on the spot."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Report = dict[str, float]


class Loop(Protocol):
    """A loop whose result does not depend on the number of threads."""

    def run(self, first: int, count: int, threads: int) -> Report:
        """``count`` iterations; see ``kernels.primal_dual_cpp.PrimalDual.run``."""


class ThreadChoice:
    """Runs a loop with one thread, and with more while each doubling saves a fifth of the time.

    Where threads share an iteration of 50 us, waking them costs more than it gains, and where another process keeps a
    core busy, threads that wait for each other are many times slower than one: so short loops are not tried at all, and
    the choice is made again every other second, or at once when an iteration takes half as long again as it did.

    Args:
        most: Threads at most; None for those of torch.
        clock: Seconds.
    """

    shortest = 3e-4
    """Seconds an iteration from which more threads are tried."""
    trial = 0.005
    """Seconds of a trial, of three iterations at least."""
    lasts = 2.0
    """Seconds until the choice is made again."""

    def __init__(self, most: int | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._most = torch.get_num_threads() if most is None else most
        self._clock = clock
        self.threads = 1
        self._pace: float | None = None  # seconds an iteration with the threads chosen; None: to be chosen
        self._expires = 0.0

    def run(self, loop: Loop, first: int, count: int) -> Report:
        """``count`` iterations, some of them as trials; fewer where the loop ends early."""
        work = _Work(loop, first, count, self._clock)
        while work.left:
            if self._most > 1 and (self._pace is None or self._clock() > self._expires):
                self._choose(work)
                continue
            pace = work.spend(work.left, self.threads)
            if self._pace is not None and self.threads > 1 and pace > 1.5 * self._pace:
                self._pace = None
        return work.report

    def _choose(self, work: _Work) -> None:
        """Spend some of the iterations on trials."""
        threads = 1
        while threads <= self._most and work.left:
            pace = work.spend(1, threads)  # wakes them
            if work.left:
                pace = work.spend(max(3, int(self.trial / max(pace, 1e-9))), threads)
            if threads > 1 and self._pace is not None and pace > 0.8 * self._pace:
                break
            self.threads, self._pace = threads, pace
            if pace < self.shortest:
                break
            threads *= 2
        self._expires = self._clock() + self.lasts


class _Work:
    """Iterations of a loop that are to be done, and the report of those that were."""

    def __init__(self, loop: Loop, first: int, count: int, clock: Callable[[], float]) -> None:
        self._loop, self._next, self._clock = loop, first, clock
        self.left = count
        self.report: Report = {"iterations": 0, "mean_map_loss": 0.0}

    def spend(self, count: int, threads: int) -> float:
        """``count`` iterations, or all that are left; seconds of one. None are left where the loop ended early."""
        count = min(count, self.left)
        start = self._clock()
        part = self._loop.run(self._next, count, threads)
        seconds = self._clock() - start
        before, done = self.report["iterations"], part["iterations"]
        mean = (before * self.report["mean_map_loss"] + done * part["mean_map_loss"]) / max(before + done, 1)
        self.report = {**part, "iterations": before + done, "mean_map_loss": mean}
        self._next += int(done)
        self.left = self.left - count if done == count else 0
        return seconds / count
