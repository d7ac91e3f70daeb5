"""The table: reductions, discrepancies, interactions, Stein's operators."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch

from tests.fuzz import dense
from tests.fuzz.arguments import DTYPES, Call, draw_bandwidth, draw_kernel, draw_shape, pick
from tests.fuzz.function import EAGER, ONCE, Function, is_extreme
from tests.fuzz.radial import SCALED, smooth_of


def _empty(*sides: str) -> Any:
    def refuses(call: Call) -> str | None:
        sizes = {"x": call["n"], "y": call["m"], "z": call.get("k", 1)}
        least = dict.fromkeys(sides, 1) | call.get("needs", {})
        short = [side for side, count in least.items() if sizes[side] < count]
        if short:
            return f"a mean over too few: {short}"
        return "extreme" if is_extreme(call) else None

    return refuses


def extreme(call: Call) -> str | None:
    return "extreme" if is_extreme(call) else None


def _backend(rng: Random, call: Call) -> None:
    if call["dtype"] in ("float32", "float64"):
        call["backend"] = pick(rng, {None: 60, "cpp": 15, "torch": 25})


def _reduction(weights: dict[str | None, float], *, positive: bool = False, values: bool = False) -> Any:
    def draw(rng: Random) -> Call:
        call = draw_shape(rng)
        call["options"] = {"kernel": draw_kernel(rng, call["scale"], positive=positive)}
        call["tensors"] = {"x": "x", "y": "y"}
        call["channels"] = rng.choice((1, 2, 3, 5, 9))
        name = "log_weights" if positive else "weights"
        if kind := pick(rng, weights):
            call["tensors"][name] = kind
        if values and rng.random() < 0.6:
            call["tensors"]["values"] = "channels_y"
        one_set = not call["place"].endswith("_y")  # a point that is left out is so of both
        if one_set and call["n"] == call["m"] and rng.random() < (0.6 if call["place"] == "same" else 0.15):
            call["options"]["exclude_self"] = True
            if values:
                call["needs"] = {"y": 2}
        _backend(rng, call)
        return call

    return draw


def pair(option: Any, *, least: int = 1, backend: bool = True, **shape: Any) -> Any:
    """x and y, and options from random numbers and the call."""

    def draw(rng: Random) -> Call:
        call = draw_shape(rng, least=least, **shape)
        call["tensors"] = {"x": "x", "y": "y"}
        call["options"] = {}
        option(rng, call)
        if backend:
            _backend(rng, call)
        return call

    return draw


def kernel(rng: Random, call: Call, **kind: Any) -> None:
    call["options"]["kernel"] = draw_kernel(rng, call["scale"], **kind)


_MOST_NEAREST = 4


def _nearest(rng: Random, call: Call) -> None:
    if call["y_layout"] == "expanded":  # all as near: which is meant by its index is anybody's choice
        call["y_layout"] = "contiguous"
    call["options"]["k"] = rng.randint(1, _MOST_NEAREST)
    if call["n"] == call["m"] and not call["place"].endswith("_y") and rng.random() < 0.4:
        call["options"]["exclude_self"] = True


def _too_few(call: Call) -> str | None:
    options = call["options"]
    if call["m"] < options["k"] + options.get("exclude_self", False) + call["ragged"] * _MOST_NEAREST:
        return "fewer sources than k"
    return extreme(call)


def _distances_of_nearest(function: Function, tensors: Any, options: Any) -> Any:
    """Distances, and those of the points that indices name; which of two that tie is rounding's."""
    x, y, k = tensors["x"], tensors["y"], options["k"]
    squares, indices = function.public(**tensors, **options)
    there = (indices >= 0)[..., None]
    flat = indices.clamp(min=0).flatten(-2)[..., None].expand(*indices.shape[:-2], -1, y.shape[-1])
    found = y.double().gather(-2, flat).unflatten(-2, (-1, k))
    apart = torch.where(there, x.double()[..., None, :] - found, 0.0)
    return squares, apart.square().sum(-1).to(squares.dtype)


def _mmd(rng: Random, call: Call) -> None:
    kernel(rng, call)
    if rng.random() < 0.3:
        call["options"]["unbiased"] = True
        call["needs"] = {"x": 2, "y": 2}
    for side in "xy":
        if rng.random() < 0.3:
            call["tensors"][f"{side}_weights"] = f"positive_{side}"


def _parzen(rng: Random, call: Call) -> None:
    call["options"]["bandwidth"] = draw_bandwidth(rng, call["scale"])
    if call["n"] == call["m"] and rng.random() < 0.3:
        call["options"]["exclude_self"] = True
        call["needs"] = {"y": 2}


def _alone(rng: Random, call: Call) -> None:
    del call["tensors"]["y"]
    if call["place"] == "same":
        call["place"] = "plain"


def _median(rng: Random, call: Call) -> None:
    _alone(rng, call)
    call["needs"] = {"x": 2}


def _energy(rng: Random, call: Call) -> None:
    _alone(rng, call)
    kernel(rng, call)


def _velocity(rng: Random, call: Call) -> None:
    kernel(rng, call)
    del call["tensors"]["y"]
    if rng.random() < 0.6:
        call["tensors"]["sources"] = "y"


def _step(rng: Random, call: Call) -> None:
    _velocity(rng, call)
    call["options"]["step_size"] = round(rng.uniform(0, 2), 3)


def _stein(rng: Random, call: Call) -> None:
    _alone(rng, call)
    call["tensors"]["score"] = "score_x"
    kernel(rng, call, positive=True)


def _ksd(rng: Random, call: Call) -> None:
    _alone(rng, call)
    call["tensors"]["score"] = "score_x"
    kernel(rng, call, positive=True, only=tuple(k for k in SCALED if k not in ("laplace", "matern32")))
    call["options"]["unbiased"] = rng.random() < 0.6
    call["needs"] = {"x": 2 if call["options"]["unbiased"] else 1}


def _mollifier(rng: Random, call: Call) -> float:
    """A length beside which densities do not vanish: where they do, blobs are documented not to be finite."""
    if call["dtype"] in ("float16", "bfloat16"):  # whose smallest numbers a density in many dimensions is below
        call["d"] = min(call["d"], 3)
    if call["place"] in ("far", "outlier", "outlier_y") or call["d"] > 17:
        call["place"], call["d"] = "plain", min(call["d"], 17)
    return float(f"{call['scale'] * 10 ** rng.uniform(-0.5, 1):.4g}")


def _vanishing(call: Call) -> str | None:
    """Where the height of a blob is out of the range of its type."""
    if reason := _empty("x")(call):
        return reason
    logarithm = call["d"] * math.log10(math.sqrt(2 * math.pi) * call["options"]["bandwidth"])
    return "extreme" if abs(logarithm) > math.log10(torch.finfo(DTYPES[call["dtype"]]).max) - 0.1 else None


def _blob(rng: Random, call: Call) -> None:
    del call["tensors"]["y"]
    call["options"]["bandwidth"] = _mollifier(rng, call)
    if rng.random() < 0.5:
        call["tensors"]["sources"] = "y"
        call["needs"] = {"y": 1}
    if rng.random() < 0.3:
        call["tensors"]["weights"] = "mass_y" if "sources" in call["tensors"] else "mass_x"


def _blob_energy(rng: Random, call: Call) -> None:
    _alone(rng, call)
    call["options"] = {"bandwidth": _mollifier(rng, call), "m": rng.choice((1.0, 2.0, 3.0, 1.5))}


def _blob_velocity(rng: Random, call: Call) -> None:
    _blob(rng, call)
    call["options"] |= {"m": rng.choice((1.0, 2.0, 3.0)), "form": rng.choice(("energy", "density"))}


def _squares_of_slopes(call: Call) -> float:
    """Second derivatives of logarithms are differences of these, and lose as many units as their exponents: noted."""
    options, far = call["options"], 1e4 if call["place"].startswith("outlier") else 50 if call["place"] == "far" else 2
    lengths = [term[2] for term in options["kernel"]] if "kernel" in options else [options["bandwidth"]]
    exponent = (far * call["scale"] / min(lengths)) ** 2 / 2
    return math.inf if call["mode"] == "grad2" and exponent > 1e9 else 0.0


LENGTHS = {"x_lengths": "x", "y_lengths": "y"}


def _average_refuses(call: Call) -> str | None:
    if call["ragged"] and call["m"] < 2:
        return "lengths that leave nothing to average over"
    return _empty("y")(call) if call["n"] else extreme(call)


def _smooth(call: Call) -> str | None:
    return _empty("x")(call) or (None if smooth_of(call["options"]["kernel"]) else "not smooth")


FUNCTIONS = [
    Function(
        "kernel_sum",
        dense.kernel_sum,
        _reduction({None: 40, "signed_y": 40, "channels_y": 20}),
        gradients=("x", "y", "weights"),
        lengths=LENGTHS,
        refuses=extreme,
        weight=2.5,
    ),
    Function(
        "kernel_gradient",
        dense.kernel_gradient,
        _reduction({None: 50, "signed_y": 50}),
        gradients=("x", "y", "weights"),
        lengths=LENGTHS,
        refuses=extreme,
        weight=2.5,
    ),
    Function(
        "kernel_logsumexp",
        dense.kernel_logsumexp,
        _reduction({None: 50, "logs_y": 50}, positive=True),
        gradients=("x", "y", "log_weights"),
        lengths=LENGTHS,
        pad=float("-inf"),
        refuses=extreme,
        slack=_squares_of_slopes,
        weight=2,
    ),
    Function(
        "kernel_average",
        dense.kernel_average,
        _reduction({None: 50, "logs_y": 50}, positive=True, values=True),
        gradients=("x", "y", "values", "log_weights"),
        lengths=LENGTHS,
        least=2,
        factor=2.0,  # two sums
        refuses=_average_refuses,
        slack=_squares_of_slopes,
        weight=2,
    ),
    Function(
        "kernel_min",
        dense.kernel_min,
        pair(_nearest),
        rows=("x", "x"),
        gradients=("x", "y"),
        lengths=LENGTHS,
        least=_MOST_NEAREST + 1,
        refuses=_too_few,
        through=_distances_of_nearest,
    ),
    Function(
        "mmd2",
        dense.mmd2,
        pair(_mmd),
        rows=(None,),
        gradients=("x", "y", "x_weights", "y_weights"),
        refuses=_empty("x", "y"),
    ),
    Function(
        "energy_distance",
        dense.energy_distance,
        pair(lambda rng, call: None),
        rows=(None,),
        gradients=("x", "y"),
        refuses=_empty("x", "y"),
    ),
    *(
        Function(
            name,
            truth,
            pair(_parzen),
            gradients=("x", "y"),
            refuses=refuses,
            slack=_squares_of_slopes,
        )
        for name, truth, refuses in (
            ("parzen_log_density", dense.parzen_log_density, _empty("y")),
            ("parzen_score", dense.parzen_score, _average_refuses),
        )
    ),
    Function(
        "median_bandwidth",
        dense.median_bandwidth,
        pair(_median, backend=False, least=2),
        rows=(None,),
        refuses=_empty("x"),
        modes=EAGER,  # PyTorch's pdist warns under vmap
        weight=0.5,
    ),
    Function(
        "interaction_energy",
        dense.interaction_energy,
        pair(_energy),
        factor=3.0,  # of a sum over all pairs
        rows=(None,),
        gradients=("x",),
        refuses=_empty("x"),
    ),
    Function(
        "interaction_velocity",
        dense.interaction_velocity,
        pair(_velocity),
        gradients=("x", "sources"),
        refuses=_empty("x", "y"),
    ),
    Function("forward_step", dense.forward_step, pair(_step), gradients=("x", "sources"), refuses=_empty("x", "y")),
    Function(
        "ksd2",
        dense.ksd2,
        pair(_ksd, backend=False),
        rows=(None,),
        gradients=("x", "score"),
        refuses=_smooth,
        modes=ONCE,
    ),
    Function(
        "svgd_direction",
        dense.svgd_direction,
        pair(_stein),
        gradients=("x", "score"),
        refuses=_empty("x"),
        factor=2.0,  # two sums
    ),
    Function(
        "blob_density",
        dense.blob_density,
        pair(_blob),
        gradients=("x", "sources", "weights"),
        refuses=_vanishing,
        factor=3.0,  # powers of a bandwidth
        weight=0.6,
    ),
    Function(
        "blob_energy",
        dense.blob_energy,
        pair(_blob_energy),
        rows=(None,),
        gradients=("x",),
        refuses=_vanishing,
        factor=3.0,  # powers of a bandwidth
        weight=0.6,
    ),
    Function(
        "blob_velocity",
        dense.blob_velocity,
        pair(_blob_velocity),
        gradients=("x", "sources", "weights"),
        refuses=_vanishing,
        factor=3.0,  # powers of a bandwidth
        weight=0.6,
    ),
]
