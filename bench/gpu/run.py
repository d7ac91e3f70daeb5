"""Runs the rows: a parent that keeps the file and the time, and a child on the device that may die.

A kernel that writes where it must not takes the whole process' device with it, so the rows run in a child; what it was
at when it died is recorded as failed, and another child goes on with the rest.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.environment import environment
from bench.gpu.cards import Card, clocks
from bench.gpu.report import line, table
from bench.gpu.rows import Made, Row, Setting, all_rows
from bench.gpu.timer import Timer
from bench.measure import quantiles, relative_error
from bench.registry import OURS

RESULTS = Path(__file__).resolve().parents[1] / "results" / "gpu"
FATAL = 3
"""The child's exit code where its device is lost."""


class Journal:
    """The JSON file: environment, rows so far, and what is being done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict = (
            json.loads(path.read_text()) if path.exists() else {"environment": {}, "rows": {}, "doing": None}
        )

    def save(self) -> None:
        """To disk, in one step."""
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(draft, self.path)

    def begin(self, row: str, contender: str) -> None:
        """Say what comes next, in case it is the last thing."""
        self.data["doing"] = [row, contender]
        self.save()

    def keep(self, row: str, contender: str, found: dict) -> None:
        """The result of a contender."""
        self.data["rows"].setdefault(row, {})[contender] = found
        self.data["doing"] = None
        self.save()

    def died(self, how: str) -> bool:
        """Record that the child died; False if it was at nothing, so that another would die likewise."""
        doing = self.data["doing"]
        if doing is not None:
            row, contender = doing
            self.keep(row, contender, {"failed": how})
        return doing is not None

    def has(self, row: str, contender: str) -> bool:
        """Whether there is a result."""
        return contender in self.data["rows"].get(row, {})


def tasks(rows: list[Row], setting: Setting, with_peers: bool) -> list[tuple[Row, str]]:
    """Rows and contenders in order: ours of a tier, then its peers."""
    ordered = []
    for tier in sorted({row.tier for row in rows}):
        inside = [row for row in rows if row.tier == tier]
        ordered += [(row, OURS) for row in inside]
        if with_peers:
            ordered += [(row, name) for row in inside for name in contenders(row, setting) if name != OURS]
    return ordered


def contenders(row: Row, setting: Setting) -> list[str]:
    """The names, without making inputs of full size."""
    return list(row.make(Setting(setting.device, 10**9)).contenders)


def measure(row: Row, name: str, made: Made, timer: Timer, card: Card, seconds: float) -> dict:
    """Check, then time: no time is reported for a wrong result."""
    start = time.perf_counter()
    call = made.contenders[name]()
    result = getattr(call, "check", call)()
    timer.wait()
    ready = time.perf_counter() - start
    found: dict = {"seconds_to_first_result": ready}
    error = relative_error(made.checked(result), made.truth())
    allowed = row.tolerance if name == OURS else row.peer_tolerance
    found["error"] = error
    del result
    if not error <= allowed:
        return found | {"failed": f"relative error {error:.1e}, allowed {allowed:.0e}"}
    before = clocks(timer.device).get("clocks.sm MHz") if timer.on_gpu else None
    found |= quantiles(times := timer.times(call, seconds)) | {"repetitions": len(times)}
    if before is not None:
        found["sm clock MHz"] = [before, clocks(timer.device).get("clocks.sm MHz")]
    if made.work.pairs:
        found["pairs_per_second"] = made.work.pairs / found["median"]
    found |= made.work.shares(card, found["median"])
    if row.host:
        found |= {"host_seconds": timer.host(call), "launches": timer.launches(call)}
    return found


def child(options: argparse.Namespace) -> int:
    """Do what the journal does not have yet, until the time is over."""
    journal, setting = Journal(options.out), setting_of(options)
    timer, card = Timer(setting.device), Card.of(setting.device)
    end = options.until
    made: Made | None = None
    made_for = ""
    for row, name in tasks(chosen(options.only), setting, not options.no_peers):
        left = end - time.time()
        if left <= 0:
            break
        if journal.has(row.name, name):
            continue
        journal.begin(row.name, name)
        try:
            if made is None or made_for != row.name:
                made = None
                gc.collect()
                made, made_for = row.make(setting), row.name
            found = measure(row, name, made, timer, card, min(options.seconds, max(0.02, left / 20)))
        except ImportError as missing:
            found = {"unavailable": str(missing)}
        except Exception as problem:  # recorded; the rest goes on
            found = {"failed": f"{type(problem).__name__}: {problem}"[:400]}
        journal.keep(row.name, name, found)
        print(line(row.name, name, found, journal.data["rows"][row.name]), flush=True)
        try:
            timer.wait()
        except RuntimeError:
            return FATAL
    return 0


def chosen(patterns: list[str]) -> list[Row]:
    """Rows whose names match."""
    import fnmatch

    return [row for row in all_rows() if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]


def setting_of(options: argparse.Namespace) -> Setting:
    """The device, and the sizes of a dry run."""
    return Setting(torch.device("cpu"), 256) if options.dry_run else Setting(torch.device("cuda", 0))


def main(options: argparse.Namespace) -> int:
    """The parent.

    Returns:
        1 where a row of ours failed.

    Raises:
        SystemExit: There is no CUDA device, or no row has such a name.
    """
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("bench: --device cuda needs a CUDA device; --dry-run tries the script without one")
    if not chosen(options.only):
        raise SystemExit(f"bench: no row matches {' '.join(options.only)}; see --list")
    start, setting = time.time(), setting_of(options)
    card = Card.of(setting.device)
    where = environment() | {"card": card.name, "device": card.facts, "dry_run": options.dry_run}
    where |= {
        "cuda": torch.version.cuda,
        "peaks": {k: getattr(card, k) for k in ("fma", "fma64", "tensor", "mufu", "bytes")},
    }
    label = "dry-run" if options.dry_run else card.name.replace(" ", "-")
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    options.out = options.out or RESULTS / f"{stamp}-{where['commit']}-{label}.json"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.unlink(missing_ok=True)
    journal = Journal(options.out)
    journal.data["environment"] = where
    journal.save()
    print(f"{card.name}, {card.facts}, torch {torch.__version__}, commit {where['commit']}", flush=True)
    until = start + (options.seconds_total or 1e9)
    command = [sys.executable, "-m", "bench", "--device", "cuda", "--child", "--until", str(until)]
    command += ["--out", str(options.out.resolve()), "--seconds", str(options.seconds), "--only", *options.only]
    command += ["--dry-run"] * options.dry_run + ["--no-peers"] * options.no_peers
    while True:
        left = until - time.time()
        try:
            code = subprocess.run(
                command, cwd=Path(__file__).resolve().parents[2], timeout=max(5.0, left + 15)
            ).returncode
        except subprocess.TimeoutExpired:
            code = None  # killed by run()
        journal = Journal(options.out)
        if code == 0:
            break
        how = "out of time" if code is None else f"the process ended with code {code}"
        went_on = journal.died(how) or code == FATAL
        if code is None or not went_on:
            break
    rows = [row.name for row in chosen(options.only)]
    journal.data |= {"seconds": time.time() - start, "not_run": [r for r in rows if not journal.has(r, OURS)]}
    journal.save()
    print("\n".join(table(journal.data)))
    print(f"\n{options.out}: {len(journal.data['rows'])} rows, {len(journal.data['not_run'])} not reached")
    return int(any("failed" in found.get(OURS, {}) for found in journal.data["rows"].values()))
