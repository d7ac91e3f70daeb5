"""`python -m tests.fuzz`: makes calls, prints what went wrong, each with the line that makes it again."""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import time

from tests.fuzz.known import KNOWN
from tests.fuzz.supervise import BAD, PATIENCE, once, supervise

MANY = 50_000
"""Calls in which each kind that is known has to come up."""


def main() -> int:
    """0 where all that went wrong is known, and all that is known still goes wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", help="regular expression of whole names: drift.*")
    parser.add_argument("--mode", help="the mode of all calls")
    parser.add_argument("--larger", type=int, default=1, help="factor on the numbers of points")
    parser.add_argument("--call", help="one call, as a finding prints it")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds that a call may take")
    parser.add_argument("--most", type=int, default=3, help="findings of a kind that are printed")
    options = parser.parse_args()
    if options.call:
        report = once(json.loads(options.call), options.patience)
    else:
        began = time.perf_counter()
        report = supervise(
            options.seed,
            options.calls,
            first=options.first,
            jobs=options.jobs,
            choice={"only": options.only, "mode": options.mode, "larger": options.larger},
            patience=options.patience,
        )
        print(f"{time.perf_counter() - began:.0f} s")
    shown: collections.Counter[tuple[str, ...]] = collections.Counter()
    for finding in sorted(report.findings, key=lambda f: (f.call["f"], f.outcome)):
        kind: tuple[str, ...] = (finding.call["f"], finding.outcome, finding.call["mode"], finding.known or "")
        shown[kind] += 1
        if shown[kind] <= options.most and not (finding.known and options.call is None):
            print(finding)
    for kind, count in shown.items():
        if count > options.most:
            print(f"{count - options.most} more: {' '.join(kind)}")
    print(report)
    for name, counts in sorted(report.functions.items()):
        print(f"  {name}: " + ", ".join(f"{n} {o}" for o, n in counts.most_common() if o in (*BAD, "right", "refused")))
    met = {finding.known for finding in report.findings}
    stale = [known.name for known in KNOWN if known.name not in met]
    if sum(report.outcomes.values()) >= MANY and stale:
        print("no longer wrong, to be taken out of known.py: " + "; ".join(stale))
        return 1
    return 1 if report.unknown else 0


if __name__ == "__main__":
    sys.exit(main())
