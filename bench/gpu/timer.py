"""How a call is timed: CUDA events with a cold cache, or the clock where there is no GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

CACHE = 256 * 2**20
"""Bytes that are overwritten before each call: more than any card's L2."""


class Timer:
    """Times of a call on a device, in seconds, as triton.testing.do_bench takes them."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        self._scratch = torch.empty(CACHE, dtype=torch.int8, device=device) if self.on_gpu else None

    def wait(self) -> None:
        """Until the device is done; raises what it failed with."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def times(self, call: Callable[[], object], budget: float, most: int = 100) -> list[float]:
        """Repetitions within about ``budget`` seconds, three at least, after two that do not count."""
        first = self._wall(call)
        first = min(first, self._wall(call)) if first < budget else first
        count = max(3, min(most, int(budget / max(first, 1e-6)))) if first < budget else 1
        if self._scratch is None:
            return [self._wall(call) for _ in range(count)]
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        for start, end in events:
            self._scratch.zero_()
            start.record()
            call()
            end.record()
        self.wait()
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def host(self, call: Callable[[], object], count: int = 20) -> float:
        """The median time until a call returns, which on a GPU is the time to launch what it takes."""
        found = []
        for _ in range(count):
            self.wait()
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        self.wait()
        return statistics.median(found)

    def launches(self, call: Callable[[], object]) -> int | None:
        """Device kernels that a call launches; None where there is no GPU."""
        if not self.on_gpu:
            return None
        from torch.profiler import ProfilerActivity, profile

        call()
        self.wait()
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            call()
            self.wait()
        kernels = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        return sum(not event.name.startswith(("Memcpy", "Memset")) for event in kernels)

    def _wall(self, call: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start
