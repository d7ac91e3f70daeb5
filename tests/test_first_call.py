"""The first call of the reference in a process is its second, bit for bit, with several threads too.

Once seen otherwise (3e-10 in float64, in 3 of 10 processes with two threads) and not again in 135 processes: kept as a
trap, with what it needs to say which operation of PyTorch's it is.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from gwf_fast.selftest import reductions as selftest
from gwf_fast.kernels.reference import pairs as reference

class Record(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.made = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.made.append((str(func), out.clone()))
        return out

name = "sum-gaussian+laplace+rational_quadratic-2x33x70x2-float64-exclude_self-ragged"
case = next(c for c in selftest.cases(False) if str(c) == name)
inputs, runs = selftest._double(case.inputs("cpu")), []
for _ in range(2):
    with Record() as record:
        selftest.OPERATIONS["sum"](reference, inputs)
    runs.append(record.made)
for at, ((what, first), (_, second)) in enumerate(zip(*runs, strict=True)):
    if what.startswith("aten.new_empty") or what.startswith("aten.empty"):
        continue
    assert torch.equal(first.nan_to_num(), second.nan_to_num()), (at, what, (first - second).abs().max())
"""


@pytest.mark.slow
def test_first_calls_are_as_later_ones() -> None:
    for _ in range(10):
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
