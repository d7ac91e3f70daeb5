"""The fuzzer finds what it is to find, and the package stands it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from tests.fuzz.arguments import LAYOUTS, laid_out
from tests.fuzz.calls import FUNCTIONS, draw
from tests.fuzz.judge import judge
from tests.fuzz.radial import _RADIALS
from tests.fuzz.supervise import once, supervise

CALLS = 2000

ELSEWHERE = {
    "AccuracyError": "an exception",
    "NonFiniteError": "an exception",
    "backends": "takes no tensors",
    "explain": "takes no tensors of its own",
    "__version__": "text",
    "by_label": "moves points, bit for bit; test_labels.py",
    "LabelGroups": "a result",
    "NUFFT": "a method, in kernel_sum",
    "Sliced": "a method, in kernel_sum",
    "Auto": "a method, in kernel_sum",
    "with_error": "a call's own sum; test_methods.py",
    "FlowResult": "a result",
    "FlowState": "a state",
    "DriftingResult": "a result",
    "DriftingState": "a state",
    "SinkhornResult": "a result",
    "DivergencePotentials": "a result",
    "drift.MultiDrift": "a result",
    "drift.LearnedCritic": "a training loop; test_drift.py",
    "DriftingModel": "a training loop; test_drifting_model.py",
    "JKOFlow": "a training loop; test_jko.py, test_fused_engine.py",
    "Training": "options",
    "load": "reads a folder; test_results.py",
    "nn.ICNNGradient": "PyTorch operations throughout; test_icnn.py",
    "Kernel": "the base class",
}
"""Public names that the table does not have, and why."""
FUNCTIONALS = [
    "IPM",
    "KL",
    "Potential",
    "SquaredMMD",
    "MMDUnbalanced",
    "JensenShannon",
    "FDivergence",
    "Functional",
    "DonskerVaradhan",
    "GeneralizedEntropy",
    "Interaction",
]
KERNELS = [
    "IMQ",
    "Gaussian",
    "Laplace",
    "Matern32",
    "Matern52",
    "Morse",
    "PowerLaw",
    "Radial",
    "RationalQuadratic",
    "Riesz",
]
MODULES = ["distributed", "drift", "nn", "potentials", "presets"]


def test_every_public_function_is_in_the_table() -> None:
    names = [*gwf.__all__, *(f"drift.{n}" for n in gwf.drift.__all__), *(f"nn.{n}" for n in gwf.nn.__all__)]
    skipped = {*ELSEWHERE, *FUNCTIONALS, *KERNELS, *MODULES}
    assert [name for name in names if name not in FUNCTIONS and name not in skipped] == [], (
        "exported and never drawn: a function needs a row in tests/fuzz/table_*.py, a kernel one in _RADIALS of"
        " tests/fuzz/radial.py and its name in KERNELS above, another class its name in FUNCTIONALS or ELSEWHERE"
    )
    assert [name for name in skipped if name not in names] == [], "listed above, and not exported"


def test_every_kernel_is_drawn() -> None:
    drawn = {make.__name__ for make, _ in _RADIALS.values()}
    assert drawn == {*KERNELS} - {"Radial"}, "a kernel needs a row in _RADIALS of tests/fuzz/radial.py"


def test_a_failure_of_the_fuzzer_is_one() -> None:
    """It was seen on the terminal, and 0 calls were 0 wrong."""
    with pytest.raises(RuntimeError, match="not in a call"):
        supervise(seed=0, calls=4, jobs=2, choice={"only": "no_such_function"})


def test_a_call_is_the_same_everywhere() -> None:
    assert draw(3, 14) == draw(3, 14)
    assert draw(3, 14) != draw(3, 15)
    drawn = [draw(0, k) for k in range(1000)]
    assert {call["f"] for call in drawn} == set(FUNCTIONS)
    assert len({call["mode"] for call in drawn}) >= 9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_values(layout: str) -> None:
    t = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(laid_out(t, layout), t)
    rows = t[:, :1].expand(2, 3, 4)
    assert torch.equal(laid_out(rows, layout), rows)


def test_the_judge_sees_what_is_wrong() -> None:
    truth = torch.tensor([[1.0, 2.0], [3.0, -4.0]], dtype=torch.float64)
    perturbed = [truth * (1 + 1e-6)]

    def fault(got: torch.Tensor, want: torch.Tensor = truth, place: str = "plain") -> str | None:
        options: dict[str, Any] = {"batch": 0, "pads": True, "floor": 0.0, "slack": 0.0, "place": place}
        return judge("v", got.float(), want, perturbed, **options).fault

    assert fault(truth) is None
    assert fault(truth * (1 + 1e-4)) is not None
    assert fault(truth[:1]) is not None
    hole = truth.clone()
    hole[1, 0] = torch.nan
    assert "NaN in [1]" in fault(hole)
    assert "NaN is lost in [1]" in fault(truth, hole, "nan")
    assert "inf in [1]" in fault(hole.nan_to_num(torch.inf))


def test_crashes_and_hangs_are_seen() -> None:
    crash = once({**draw(0, 0), "f": "!crash"})
    assert crash.outcomes == {"crash": 1}
    assert "SIGABRT" in crash.findings[0].why
    assert "--call '{" in str(crash.findings[0])
    assert once({**draw(0, 0), "f": "!hang"}, patience=20).outcomes == {"hang": 1}


def test_the_package_stands_it(capsys: pytest.CaptureFixture[str]) -> None:
    report = supervise(seed=0, calls=CALLS, jobs=len(os.sched_getaffinity(0)))
    with capsys.disabled():  # what is known is said aloud
        print(f"\n{report}")
    assert sum(report.outcomes.values()) == CALLS
    assert report.outcomes["right"] > 0.85 * CALLS
    assert not report.unknown, "\n".join(str(finding) for finding in report.unknown)
