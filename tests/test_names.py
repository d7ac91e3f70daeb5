"""What type checkers know of the names in tables is what the tables hold."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from gwf_fast.drift.critics import TRANSFORMS, Transform
from gwf_fast.flows.engines.choice import ENGINES, EngineName
from gwf_fast.flows.training import SCHEDULES, Schedule
from gwf_fast.nn import divergences
from gwf_fast.nn.functions import ACTIVATIONS, ActivationName, Output, output_activation
from gwf_fast.ops.table import AUTOMATIC, BACKENDS, BackendName
from gwf_fast.pairs.methods import Method, as_method


def names(of: Any) -> set[str]:
    """The strings that a type allows, with those that begin its pairs."""
    if isinstance(of, str):
        return {of}
    return set().union(*map(names, get_args(of)))


def test_backends():
    precise = {f"{backend.name}:{each}" for backend in BACKENDS.values() for each in backend.precisions}
    assert names(BackendName) == {*BACKENDS, *precise}
    assert {name for served in AUTOMATIC.values() for name in served} <= {*BACKENDS}


def test_engines_schedules_and_transforms():
    assert names(EngineName) == {*ENGINES}
    assert names(get_args(Schedule)[0]) == {*SCHEDULES} == {"constant", "cosine"}
    assert names(Transform) == {*TRANSFORMS} and len(TRANSFORMS) == len({*TRANSFORMS})


def test_divergences_and_objectives():
    plain, parametric = names(divergences.VariationalName), names(divergences.ParametricName)
    assert plain | parametric == {*divergences.DIVERGENCES} and parametric == {*divergences.PARAMETRIC}
    assert names(divergences.SmoothName) | parametric == {*divergences.SMOOTH}
    assert names(divergences.ObjectiveName) | {"entropy"} == {*divergences.OBJECTIVES}


def test_activations():
    assert names(ActivationName) == {*ACTIVATIONS}
    parametric = {"scaled_sigmoid", *divergences.PARAMETRIC}
    for name in names(Output):
        output_activation((name, 1.5) if name in parametric else name)
    with pytest.raises(ValueError, match="output must be None or one of") as error:
        output_activation("none of them")
    said = str(error.value).removesuffix(", got 'none of them'").split("one of ")[1]
    assert {word.split('"')[1] if '"' in word else word for word in said.split(", ") if word != "scale)"} == names(
        Output
    )


def test_methods():
    plain = names(get_args(Method)[0])
    for name in plain:
        as_method(name)
    with pytest.raises(ValueError, match=f"one of {', '.join(get_args(get_args(Method)[0]))}, or an object"):
        as_method("none of them")
    assert len(plain) == 4
