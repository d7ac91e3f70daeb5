"""A process that makes calls and says what came of each; it may die of one."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from typing import IO, Any

import torch

from tests.fuzz.calls import Choice, draw, perform
from tests.fuzz.known import known_finding

DEFECTS = {"!crash": os.abort, "!hang": lambda: time.sleep(1000)}
"""Not functions of the package: what the supervisor has to see."""


def report(pipe: IO[str], number: int, call: dict[str, Any]) -> None:
    """Say that a call begins, make it, say what came of it."""
    print(json.dumps({"begin": number, "call": call}), file=pipe, flush=True)
    if call["f"] in DEFECTS:
        DEFECTS[call["f"]]()
    before = time.process_time()
    try:
        result = perform(call)
    except Exception as error:  # of the fuzzer itself: as loud as any other
        result = {"outcome": "error", "why": f"the fuzzer's own {type(error).__name__}: {error}"}
    if result["outcome"] in ("wrong", "error"):
        result["known"] = known_finding(call, result)
    print(json.dumps({"end": number, "seconds": time.process_time() - before, **result}), file=pipe, flush=True)


def main() -> None:
    """Arguments: a file descriptor, seed, first number, one past the last, stride, and which calls, as JSON."""
    descriptor, seed, first, last, stride = map(int, sys.argv[1:6])
    choice = Choice(**json.loads(sys.argv[6]))
    faulthandler.enable()
    torch.set_num_threads(1)
    with os.fdopen(descriptor, "w") as pipe:
        if first < 0:  # one call, as JSON, from standard input
            report(pipe, -1, json.load(sys.stdin))
            return
        for number in range(first, last, stride):
            report(pipe, number, draw(seed, number, choice))


if __name__ == "__main__":
    main()
