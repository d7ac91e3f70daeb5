"""Triton's Stein, drifting and transport kernels: on a GPU where there is one, under the interpreter elsewhere."""

import importlib

import pytest
import torch

from gwf_fast import selftest_problems as problems

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def module(case):
    return importlib.import_module(f"gwf_fast.kernels.triton.{problems.OPERATIONS[case.operation][0]}")


@pytest.mark.parametrize("case", list(problems.cases(half=True)), ids=str)
def test_matches_reference(case):
    assert problems.error(case, module(case), DEVICE) <= problems.TOLERANCE[case.dtype]


def test_an_error_would_show():
    """The comparison has teeth: a relative error of 1e-5 in one result fails its case."""
    from gwf_fast.kernels import stein_reference

    class Wrong:
        stein_sum = staticmethod(stein_reference.stein_sum)

        @staticmethod
        def stein_sum_gradients(*arguments):
            of_x, of_score = stein_reference.stein_sum_gradients(*arguments)
            return of_x, of_score * (1 + 1e-5)

    case = problems.ProblemCase("stein")
    assert problems.error(case, Wrong, "cpu") > problems.TOLERANCE[case.dtype]
    assert problems.error(case, stein_reference, "cpu") <= problems.TOLERANCE[case.dtype]
