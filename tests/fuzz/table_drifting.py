"""The table: drifting and its variants."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.fuzz import dense_drifting as truths
from tests.fuzz.arguments import Call, draw_bandwidth
from tests.fuzz.function import EAGER, Function
from tests.fuzz.rounding import Rounding
from tests.fuzz.table_flows import _sets
from tests.fuzz.table_pairs import LENGTHS, pair

_TRIPLE = {**LENGTHS, "negatives_lengths": "z"}


def _weights(rng: Random, call: Call) -> None:
    """Logarithms of weights, of which some set's are all there are: ragged ones may have one member."""
    if rng.random() < 0.3:
        call["tensors"]["y_log_weights"] = "signed_y" if call["ragged"] else "logs_y"
    if "negatives" in call["tensors"] and rng.random() < 0.5:
        call["tensors"]["negatives_log_weights"] = "signed_z" if call["ragged"] else "logs_z"


def _temperatures(rng: Random, call: Call) -> None:
    """Sometimes several, and of unit mean square."""
    if rng.random() < 0.2:
        first = call["options"]["temperature"]
        call["options"]["temperature"] = [first, float(f"{3 * first:.4g}")]
        if rng.random() < 0.5 and call["place"] != "collapsed":  # of what is 0 but for rounding
            call["options"]["normalization"] = "problem"


def _gmd(rng: Random, call: Call) -> None:
    call["options"]["temperature"] = draw_bandwidth(rng, call["scale"])
    call["needs"] = {"x": 2}
    if rng.random() < 0.5:
        call["k"] = rng.choice((1, 2, 5, 17, 40))
        call["tensors"]["negatives"] = "points_z"
        call["needs"] = {}
    _weights(rng, call)
    _temperatures(rng, call)
    if rng.random() < 0.2:
        call["options"]["clip"] = rng.choice((1e-6, 1e-3))
        call["backend"] = None
        call["constant"] = True  # to autograd


def _traced(call: Call) -> str | None:
    if call["mode"] == "compile" and call["ragged"] and call["options"].get("clip"):
        return "an exception of docs/torch_compile.md"
    return _sets(call)


def _gmd_multi(rng: Random, call: Call) -> None:
    call["options"]["temperatures"] = rng.choice(([0.02, 0.05, 0.2], [0.1], [1.0, 0.3]))
    call["options"]["clip"] = rng.choice((1e-6, 1e-6, 1e-4))
    call["options"]["normalization"] = "problem"
    call["needs"] = {"x": 2}
    if rng.random() < 0.5:
        call["k"] = rng.choice((1, 2, 5, 17, 40))
        call["tensors"]["negatives"] = "points_z"
        call["needs"] = {}
        if rng.random() < 0.4:
            call["tensors"]["negatives_weights"] = "positive_z"
    for side in "xy":
        if rng.random() < 0.3 and call[{"x": "n", "y": "m"}[side]]:  # weights of nothing have no positive sum
            call["tensors"][f"{side}_weights"] = f"positive_{side}"


def _gmd_multi_truth(R: Rounding, *, normalization: str, **rest: Any) -> Any:
    return truths.drift_gmd_multi(R, **rest)


def _coupling(rng: Random, call: Call) -> None:
    metric = call["options"]["metric"] = rng.choice(("l2", "l2_sq"))
    length = call["scale"] * 10 ** rng.uniform(-0.5, 1)
    call["options"]["temperature"] = float(f"{length if metric == 'l2' else length**2:.4g}")
    call["options"]["coupling"] = rng.choice(("row", "two_sided", "sinkhorn"))
    call["options"]["form"] = rng.choice(("split", "joint"))
    call["options"]["n_sweeps"] = rng.choice((1, 3, 8))
    call["needs"] = {"x": 2}
    if rng.random() < 0.5:
        call["k"] = rng.choice((1, 2, 5, 17, 40))
        call["tensors"]["negatives"] = "points_z"
        call["needs"] = {}
    _weights(rng, call)
    _temperatures(rng, call)


def _of_nothing(call: Call) -> float:
    """Second derivatives that cancel: of means of points that are all one, and of distances along a line."""
    along_line = call["options"]["metric"] == "l2" and call["d"] == 1
    if call["mode"] != "grad2" or not (call["y_layout"] == "expanded" or call["m"] == 1 or along_line):
        return 0.0
    return (2e-8 if call["dtype"] == "float32" else 4e-17) if call["scale"] == 1 else 0.0


FUNCTIONS = [
    Function(
        "drift.gmd",
        truths.drift_gmd,
        pair(_gmd),
        gradients=("x", "y", "negatives", "y_log_weights", "negatives_log_weights"),
        lengths=_TRIPLE,
        least=2,
        refuses=_traced,
    ),
    Function(
        "drift.gmd_multi",
        _gmd_multi_truth,
        pair(_gmd_multi, backend=False),
        rows=("x", None, None),
        floor=lambda call: 1e-6 if call["dtype"] == "float32" else 1e-14,  # of a sum over all pairs
        factor=2.0,
        lengths=_TRIPLE,
        least=2,
        refuses=_sets,
        through=lambda function, tensors, options: tuple(function.public(**tensors, **options)),
        modes=EAGER,
    ),
    Function(
        "drift.coupling",
        truths.drift_coupling,
        pair(_coupling, places=("plain", "coincident", "near", "same", "collapsed", "shifted")),
        gradients=("x", "y", "negatives", "y_log_weights", "negatives_log_weights"),
        lengths=_TRIPLE,
        slack=_of_nothing,
        least=2,
        refuses=_sets,
    ),
]
