"""``pytest -m gpu``: the self-test's cases on a CUDA device, for every backend that serves one."""

import importlib

import pytest
import torch

from gwf_fast import selftest
from gwf_fast.ops.dispatch import BACKENDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NAMES = [name for name, backend in BACKENDS.items() if backend.devices is None or "cuda" in backend.devices]


@pytest.mark.parametrize("name", NAMES)
def test_backend(name):
    reason = BACKENDS[name].refusal("cuda", torch.float32)
    if reason is not None:
        pytest.skip(reason)
    module = importlib.import_module(BACKENDS[name].module)
    served = [case for case in selftest.cases(half=True) if selftest.serves(name, case)]
    ratios = {str(case): selftest.error(case, module, "cuda") / selftest.TOLERANCE[case.dtype] for case in served}
    assert {case: ratio for case, ratio in ratios.items() if not ratio <= 1} == {}
