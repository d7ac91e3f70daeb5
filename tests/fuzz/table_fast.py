"""The table: fast sums over pairs, which keep a tolerance or are defined by directions."""

from __future__ import annotations

import functools
from random import Random
from typing import Any

import gwf_fast as gwf
from tests.fuzz import dense
from tests.fuzz.arguments import Call
from tests.fuzz.function import EAGER, SERIAL, Function
from tests.fuzz.table_pairs import LENGTHS, extreme, kernel, pair


def _fast(rng: Random, call: Call) -> None:
    """ "nufft", where it serves: D <= 3, points that are finite."""
    call["d"] = rng.choice((1, 2, 3))
    call["n"], call["m"] = (rng.choice((1, 5, 33, 100)) for _ in "nm")
    if call["place"] == "same":
        call["m"] = call["n"]
    if call["dtype"] not in ("float32", "float64"):
        call["dtype"] = "float32"
    kernel(rng, call, only=("gaussian", "imq", "matern52", "riesz"))
    tolerance = rng.choice((1e-3, 1e-5) if call["dtype"] == "float32" else (1e-4, 1e-6, 1e-9))
    call["options"] |= {"method": rng.choice(("nufft", "auto")), "tolerance": tolerance}
    if rng.random() < 0.5:
        call["tensors"]["weights"] = "signed_y"


def _granted(call: Call) -> float:
    return 2 * call["options"]["tolerance"]


def _sliced(order: int) -> Any:
    def option(rng: Random, call: Call) -> None:
        call["d"], call["projections"] = min(call["d"], 9), rng.choice((1, 3, 20))
        if call["dtype"] not in ("float32", "float64"):
            call["dtype"] = "float32"
        h = call["scale"] * round(10 ** rng.uniform(-0.5, 0.5), 3)
        term = rng.choice((["gaussian", 1.0, h], ["riesz", 1.0, 1.0]))
        if term[0] == "gaussian":  # on a line it is summed by transforms, which are drawn by themselves
            call["d"] = max(2, call["d"])
        call["options"] = {"kernel": [term], "method": "sliced"}
        call["tensors"]["directions"] = "directions"
        if rng.random() < 0.5:
            call["tensors"]["weights"] = "signed_y"
        call["order"] = order

    return option


def _series(call: Call, order: int) -> float:
    """What the error of a Fourier series is of a kernel's largest value or slope, where the sum is of small ones."""
    name, _, h = call["options"]["kernel"][0]
    return 3e-5 * call["m"] / (h if order else 1.0) if name == "gaussian" else 0.0


def _by_name(name: str) -> Any:
    def through(function: Function, tensors: Any, options: Any) -> Any:
        return getattr(gwf, name)(**tensors, **options)

    return through


_FINITE = ("plain", "coincident", "near", "same", "collapsed", "far", "shifted", "outlier", "outlier_y")

FUNCTIONS = [
    *(
        Function(
            f"{name} nufft",
            truth,
            pair(_fast, backend=False, places=_FINITE),
            gradients=("x", "y", "weights"),
            lengths=LENGTHS,
            refuses=extreme,
            floor=_granted,
            modes=SERIAL,
            through=_by_name(name),
            weight=0.4,
        )
        for name, truth in (("kernel_sum", dense.kernel_sum), ("kernel_gradient", dense.kernel_gradient))
    ),
    *(
        Function(
            f"{name} sliced",
            functools.partial(dense.sliced_sum, order=order),
            pair(_sliced(order), backend=False, places=("plain", "coincident", "near", "same", "shifted")),
            lengths=LENGTHS,
            refuses=extreme,
            floor=lambda call: 1e-5,  # of its Fourier series
            slack=functools.partial(_series, order=order),
            modes=EAGER,
            through=_by_name(name),
            weight=0.3,
        )
        for order, name in enumerate(("kernel_sum", "kernel_gradient"))
    ),
]
