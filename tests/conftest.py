"""What every test has: random numbers of its own."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def own_random_numbers() -> None:
    """The global generators begin alike in every test, whichever ran before it in this process."""
    random.seed(20261127)
    np.random.seed(20261127)
    torch.manual_seed(20261127)
