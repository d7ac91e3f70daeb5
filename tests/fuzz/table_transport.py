"""The table: entropic transport."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
from torch import Tensor

import gwf_fast as gwf
from tests.fuzz import dense_transport as truths
from tests.fuzz.arguments import Call, pick
from tests.fuzz.function import EAGER, ONCE, Function
from tests.fuzz.rounding import EXACT, Rounding
from tests.fuzz.table_flows import _MODERATE, _SLOPES, _sets
from tests.fuzz.table_pairs import LENGTHS, pair


def _ground(rng: Random, call: Call) -> float:
    """The cost, and its unit."""
    kind = pick(rng, {"square": 70, "distance": 20, "cosine": 10})
    if kind == "distance":
        call["options"]["p"] = 1
    elif kind == "cosine":
        call["options"]["cost"] = "cosine"
    return {"square": call["scale"] ** 2, "distance": call["scale"], "cosine": 1.0}[kind]


def _unit(call: Call) -> float:
    options = call["options"]
    return 1.0 if "cost" in options else call["scale"] ** options.get("p", 2)


def _transport(rng: Random, call: Call) -> None:
    unit = _ground(rng, call)
    call["options"] |= {
        "epsilon": unit * pick(rng, {0.1: 20, 0.5: 40, 2.0: 30, 30.0: 10}),
        "max_iterations": 500,
        "tolerance": 1e-6 if call["dtype"] == "float32" else 1e-12,
    }
    for side in "xy":
        if rng.random() < 0.3 and not call["ragged"]:  # whose members' masses would not add up to 1
            call["tensors"][f"{side}_weights"] = f"mass_{side}"
    if rng.random() < 0.3:
        call["options"]["marginal_strength"] = unit * rng.choice((0.3, 2.0, 20.0))


def _unconverged(call: Call) -> float:
    """What a marginal error that is tolerated does to values, in units of the cost, and to drifts and gradients."""
    options, unit = call["options"], _unit(call)
    is_slope = call["f"] == "drift.sinkhorn" or call["mode"].startswith("grad")
    stiff = max(1.0, (options.get("marginal_strength", 0.0) + options["epsilon"]) / unit)
    return 30 * options["tolerance"] * stiff * unit / (call["scale"] if is_slope else 1.0)


def _divergence(rng: Random, call: Call) -> None:
    _transport(rng, call)
    if rng.random() < 0.2:
        call["options"]["debias"] = False


def _price(rng: Random, call: Call) -> None:
    _transport(rng, call)
    call["options"]["form"] = rng.choice(("entropic", "linear"))


def _map(rng: Random, call: Call) -> None:
    call["options"]["epsilon"] = _ground(rng, call) * pick(rng, {0.1: 20, 0.5: 40, 2.0: 30})
    call["tensors"]["g"] = "potential_y"
    if rng.random() < 0.3:
        call["tensors"]["y_weights"] = "mass_y"


def _centred(a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The potentials without their free constant: what one side has on average, to the other."""
    f, g = (torch.where(w > 0, t, 0.0) for w, t in ((a, f), (b, g)))
    of_f, of_g = ((w * t).sum(-1, keepdim=True) / w.sum(-1, keepdim=True) for w, t in ((a, f), (b, g)))
    return f + of_g, g + of_f


def _sinkhorn_truth(R: Rounding, x: Tensor, y: Tensor, x_weights=None, y_weights=None, **options: Any) -> Any:
    rho, kind = options.get("marginal_strength"), (options.get("p", 2), options.get("cost"))
    a, b = truths._masses(x, y, x_weights, y_weights, rho)
    f, g = truths._potentials(R, x, y, a, b, options["epsilon"], rho, False, kind)
    top = max(float(f.abs().max()), float(g.abs().max())) + options["epsilon"]
    if R.eps and math.isfinite(top):  # what is tolerated moves potentials between masses that hardly meet by far more
        plan = truths.plan_of(EXACT, x, y, f, g, a, b, options["epsilon"], kind).detach()
        root = [plan.sum(k, keepdim=True).clamp(min=1e-300).rsqrt() for k in (1, 0)]
        rates = torch.linalg.svdvals(root[0] * plan * root[1]).nan_to_num(0.0)
        rate = float(rates[1]) if rho is None and len(rates) > 1 else 0.0
        marginal = (1e-6 if R.eps > 1e-10 else 1e-12) * max(len(x), len(y)) / 4  # relative to the mass of a point
        top += options["epsilon"] * max(3.0, marginal / R.eps) / max(1 - rate**2, 1e-12)
    return tuple(R.moved(t, top) for t in _centred(a, b, f, g))


def _sinkhorn_through(function: Function, tensors: dict[str, Tensor], options: dict[str, Any]) -> Any:
    out = gwf.sinkhorn(**tensors, **options)  # type: ignore[arg-type]
    sides = []
    for side, t in (("x", out.f), ("y", out.g)):
        w = tensors.get(f"{side}_weights", torch.ones_like(t))
        if (lengths := options.get(f"{side}_lengths")) is not None:
            w = torch.where(torch.arange(t.shape[-1]) < lengths[..., None], w, 0.0)
        sides.append(w / w.sum(-1, keepdim=True))
    f, g = _centred(sides[0], sides[1], out.f, out.g)
    return f * (sides[0] > 0), g * (sides[1] > 0)


FUNCTIONS = [
    Function(
        "sinkhorn",
        _sinkhorn_truth,
        pair(_transport, backend=False, largest=24, places=_MODERATE),
        rows=("x", "y"),
        lengths=LENGTHS,
        least=1,
        refuses=_sets,
        slack=_unconverged,
        modes=EAGER,
        through=_sinkhorn_through,
        weight=0.4,
    ),
    Function(
        "sinkhorn_divergence",
        truths.sinkhorn_divergence,
        pair(_divergence, backend=False, largest=24, places=_MODERATE),
        rows=(None,),
        gradients=_SLOPES,  # those in weights that sum to 1 are given up to a constant
        lengths=LENGTHS,
        least=1,
        refuses=_sets,
        slack=_unconverged,
        modes=ONCE,  # the truth takes first derivatives only
        weight=0.5,
    ),
    Function(
        "transport_cost",
        truths.transport_cost,
        pair(_price, backend=False, largest=24, places=_MODERATE),
        rows=(None,),
        gradients=_SLOPES,
        lengths=LENGTHS,
        least=1,
        refuses=_sets,
        slack=_unconverged,
        modes=ONCE,
        weight=0.5,
    ),
    Function(
        "barycentric_map",
        truths.barycentric_map,
        pair(_map, backend=False),
        gradients=("x", "y", "g"),
        factor=2.0,  # exponents of two parts
        lengths={"y_lengths": "y"},
        least=1,
        refuses=_sets,
        modes=EAGER,
    ),
    Function(
        "drift.sinkhorn",
        truths.drift_sinkhorn,
        pair(_transport, backend=False, largest=24, places=_MODERATE),
        slack=_unconverged,
        modes=EAGER,
        lengths=LENGTHS,
        least=1,
        refuses=_sets,
        weight=0.4,
    ),
]
