"""What every test has: random numbers of its own, and Triton's interpreter where there is no GPU."""

import os
import random

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
