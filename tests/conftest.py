"""What every test has: random numbers of its own, and Triton's interpreter where there is no GPU."""

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any test imports Triton: it is asked for at the import


@pytest.fixture(autouse=True)
def own_random_numbers() -> None:
    """The global generators begin alike in every test, whichever ran before it in this process."""
    random.seed(20261127)
    np.random.seed(20261127)
    torch.manual_seed(20261127)


_RESOLVED: dict[Any, Any] = {}
_SERVED: dict[Any, Any] = {}


@pytest.fixture(autouse=True)
def interpreter_where_it_is_tested(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of tests/gpu halves on the CPU go where they go for users, not to Triton's interpreter."""
    if "gpu" not in request.path.parent.name:
        monkeypatch.setattr("gwf_fast.ops.table.interprets_triton", lambda: False)
        monkeypatch.setattr("gwf_fast.ops.dispatch._RESOLVED", _RESOLVED)
        monkeypatch.setattr("gwf_fast.ops.mlp._SERVED", _SERVED)


@contextlib.contextmanager
def long_way() -> Iterator[None]:
    """Calls go through the registry of operators and the table, also where compiled code would take them directly."""
    from gwf_fast.kernels.cpp.direct import use_direct

    before = use_direct(False)
    try:
        yield
    finally:
        use_direct(before)


@pytest.fixture
def the_long_way() -> Iterator[None]:
    """The same around a test that looks into it."""
    with long_way():
        yield
