"""The table: sliced discrepancies and their drift."""

from __future__ import annotations

from random import Random

from tests.fuzz import dense_flows as truths
from tests.fuzz.arguments import Call
from tests.fuzz.function import EAGER, ONCE, Function
from tests.fuzz.table_flows import _FINITE, _MODERATE, _SLOPES, _sets
from tests.fuzz.table_pairs import LENGTHS, pair


def _sliced(rng: Random, call: Call) -> None:
    call["projections"] = rng.choice((1, 2, 5, 20))
    call["tensors"]["directions"] = "directions"
    for side in "xy":
        if rng.random() < 0.3:
            call["tensors"][f"{side}_weights"] = f"positive_{side}"


def _sliced_power(rng: Random, call: Call) -> None:
    _sliced(rng, call)
    call["options"]["p"] = rng.choice((1.0, 1.5, 2.0, 3.0))


def _max_sliced(rng: Random, call: Call) -> None:
    _sliced_power(rng, call)
    call["options"]["max_iterations"] = 0  # an ascent ends elsewhere in another precision


def _spherical(rng: Random, call: Call) -> None:
    _sliced_power(rng, call)
    call["tensors"]["planes"] = "planes"
    del call["tensors"]["directions"]
    call["sphere"], call["d"], call["scale"] = True, max(2, call["d"]), 1.0


def _sliced_energy(rng: Random, call: Call) -> None:
    _sliced(rng, call)
    if rng.random() < 0.5:
        call["options"]["exponent"] = round(rng.uniform(0.1, 1.9), 2)


FUNCTIONS = [
    Function(
        "sliced_wasserstein2",
        truths.sliced_wasserstein2,
        pair(_sliced, backend=False, places=_FINITE),
        rows=(None,),
        factor=2.0,  # of a sum over directions
        gradients=_SLOPES,
        lengths=LENGTHS,
        least=1,
        refuses=_sets,
        modes=EAGER,
    ),
    Function(
        "sliced_wasserstein",
        truths.sliced_wasserstein,
        pair(_sliced_power, backend=False, places=_FINITE),
        rows=(None,),
        factor=2.0,  # of a sum over directions
        gradients=_SLOPES,
        lengths=LENGTHS,
        least=1,
        refuses=_sets,
        modes=EAGER,
        weight=0.5,
    ),
    Function(
        "max_sliced_wasserstein",
        truths.max_sliced_wasserstein,
        pair(_max_sliced, backend=False, places=_MODERATE),
        rows=(None,),
        factor=2.0,
        gradients=_SLOPES,
        lengths=LENGTHS,
        least=1,
        refuses=_sets,
        modes=ONCE,
        weight=0.3,
    ),
    Function(
        "spherical_sliced_wasserstein",
        truths.spherical_sliced_wasserstein,
        pair(_spherical, backend=False, largest=9, places=("plain", "near", "same")),
        rows=(None,),
        factor=2.0,
        # a mass of a rounding may go to a neighbour where the circle was cut
        floor=lambda call: 4e-7 if call["dtype"] == "float32" else 8e-16,
        gradients=_SLOPES,
        lengths=LENGTHS,
        least=1,
        refuses=_sets,
        modes=ONCE,
        weight=0.3,
    ),
    Function(
        "sliced_energy_distance",
        truths.sliced_energy_distance,
        pair(_sliced_energy, backend=False),
        rows=(None,),
        gradients=(*_SLOPES, "x_weights", "y_weights"),
        lengths=LENGTHS,
        least=1,
        refuses=_sets,
        floor=lambda call: 2e-9 if call["options"].get("exponent", 1.0) != 1 else 0.0,
        modes=ONCE,
    ),
    Function(
        "drift.sliced_wasserstein",
        truths.drift_sliced_wasserstein,
        pair(_sliced, backend=False, places=_FINITE),
        lengths=LENGTHS,
        least=1,
        refuses=_sets,
        modes=EAGER,
    ),
]
