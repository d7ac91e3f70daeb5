"""Without a GPU, Triton kernels run under Triton's interpreter, which must be asked for before they are imported."""

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def quiet_interpreter():
    """The interpreter computes both sides of a `where` in NumPy, which warns of the 1/0 that is then dropped."""
    with np.errstate(all="ignore"):
        yield
