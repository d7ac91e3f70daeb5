"""Without a GPU, Triton kernels run under Triton's interpreter (tests/conftest.py)."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def quiet_interpreter():
    """The interpreter computes both sides of a `where` in NumPy, which warns of the 1/0 that is then dropped."""
    with np.errstate(all="ignore"):
        yield
