"""``pytest -m gpu``: the self-test's cases on a CUDA device, for every backend and operation of the table."""

import collections

import pytest
import torch

from gwf_fast.ops.table import BACKENDS
from gwf_fast.selftest import run as selftest_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SERVED = [
    (name, operation)
    for name, backend in BACKENDS.items()
    if backend.devices is None or "cuda" in backend.devices
    for operation in backend.operations
]


@pytest.mark.parametrize(("name", "operation"), SERVED)
def test_operation(name, operation):
    reason = BACKENDS[name].missing("cuda")
    if reason is not None:
        pytest.skip(reason)
    cases = [case for case in selftest_run.all_cases(half=True) if case.served_as == operation]
    skipped = collections.Counter(filter(None, (selftest_run.skip_reason(name, case) for case in cases)))
    served = [case for case in cases if selftest_run.serves(name, case)]
    assert served, f"all are skipped: {dict(skipped)}"
    ratios = {str(case): case.measure(name, "cuda") / case.tolerance for case in served}
    assert {case: ratio for case, ratio in ratios.items() if not ratio <= 1} == {}
