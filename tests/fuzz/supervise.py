"""Has calls made in subprocesses: what kills one, or does not come back, is a finding and not the end."""

from __future__ import annotations

import collections
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from tests.fuzz.arguments import Call
from tests.fuzz.known import known_finding

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
"""Seconds that a call may take, on a machine that does much else."""
ALL: Mapping[str, Any] = MappingProxyType({})
BAD = ("wrong", "error", "crash", "hang")


@dataclass
class Finding:
    """A call that went wrong."""

    call: Call
    outcome: str
    why: str
    known: str | None = None

    def __str__(self) -> str:
        where = f"{self.call['f']} [{self.call['mode']}, {self.call['dtype']}, {self.call['place']}]"
        return f"{self.outcome}: {where}: {self.why}\n    {reproducer(self.call)}"


@dataclass
class Report:
    """What came of a number of calls."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    functions: dict[str, collections.Counter[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def unknown(self) -> list[Finding]:
        """Findings that nobody has written down."""
        return [f for f in self.findings if f.known is None]

    def __str__(self) -> str:
        calls = sum(self.outcomes.values())
        counts = ", ".join(f"{self.outcomes[o]} {o}" for o in ("right", "refused", "unconverged", *BAD))
        known = collections.Counter(f.known for f in self.findings if f.known)
        lines = [f"{calls} calls in {self.seconds:.0f} s of CPU: {counts}"]
        lines += [f"  known: {count} x {name}" for name, count in sorted(known.items())]
        return "\n".join(lines)

    def add(self, call: Call, result: dict[str, Any]) -> None:
        """Count a result."""
        outcome = result["outcome"]
        self.outcomes[outcome] += 1
        self.functions.setdefault(call["f"], collections.Counter())[outcome] += 1
        self.seconds += result.get("seconds", 0.0)
        if outcome in BAD:
            self.findings.append(Finding(call, outcome, result.get("why", ""), result.get("known")))


def reproducer(call: Call) -> str:
    """The line that makes a call again."""
    return f"python -m tests.fuzz --call '{json.dumps(call)}'"


def supervise(
    seed: int,
    calls: int,
    *,
    first: int = 0,
    jobs: int = 1,
    choice: Mapping[str, Any] = MappingProxyType({}),
    patience: float = PATIENCE,
) -> Report:
    """Make calls ``first`` to ``first + calls`` of a seed; ``choice`` as in ``calls.Choice``."""
    report, lock = Report(), threading.Lock()
    failures: list[Exception] = []

    def work(job: int) -> None:
        number = first + job
        try:
            while number < first + calls:
                number = _until_it_dies(seed, number, first + calls, jobs, choice, patience, report, lock)
        except Exception as failure:  # of the fuzzer itself, which a thread would keep to itself
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(job,)) for job in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return report


def once(call: Call, patience: float = PATIENCE) -> Report:
    """Make one call."""
    report = Report()
    _until_it_dies(0, -1, 0, 1, {}, patience, report, threading.Lock(), json.dumps(call))
    return report


def _until_it_dies(
    seed: int,
    first: int,
    last: int,
    stride: int,
    choice: Mapping[str, Any],
    patience: float,
    report: Report,
    lock: threading.Lock,
    stdin: str = "",
) -> int:
    """Run a worker to its end or its death; the number to go on with."""
    reader, writer = os.pipe()
    numbers = [str(n) for n in (seed, first, last, stride)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(writer), *numbers, json.dumps(dict(choice))],
            pass_fds=(writer,),
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            cwd=ROOT,
            text=True,
            # without Triton's interpreter, which would serve halves on the CPU
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"), "TRITON_INTERPRET": "0"},
        )
        os.close(writer)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        begun: dict[str, Any] | None = None
        line: bytes | None = b""
        done = first
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            for line in _lines(pipe, patience):
                if line is None:
                    process.send_signal(signal.SIGABRT)
                    break
                message = json.loads(line)
                if "begin" in message:
                    begun = message
                else:
                    assert begun is not None
                    with lock:
                        report.add(begun["call"], message)
                    done, begun = begun["begin"] + stride, None
        try:
            status = process.wait(max(patience, 30))  # on a loaded machine, sanitizers take their time to end
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if begun is None:
            if line is None and done != first:  # the machine stood still between two calls
                return done
            if status != 0:
                raise RuntimeError(f"a worker ended with {status}, not in a call:\n{_tail(errors)}")
            return last
        hung = line is None
        with lock:
            what = {"outcome": "hang" if hung else "crash", "why": _tail(errors, status)}
            report.add(begun["call"], what | {"known": known_finding(begun["call"], what)})
        return begun["begin"] + stride if begun["begin"] >= 0 else last


def _lines(pipe: IO[bytes], patience: float) -> Iterator[bytes | None]:
    """Lines as they come; None where none has come for long."""
    rest = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], patience)
        if not ready:
            yield None
            return
        chunk = pipe.read(1 << 16)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _tail(errors: IO[str], status: int | None = None) -> str:
    errors.seek(0)
    text = errors.read()
    if status is None:
        return text[-3000:]
    name = signal.Signals(-status).name if status < 0 else f"exit {status}"
    telling = [
        s for s in text.splitlines() if "what()" in s or "runtime error" in s or "ERROR: " in s or "/gwf_fast/" in s
    ]
    return f"{name}; {' | '.join(t.strip() for t in telling[:3])}"
