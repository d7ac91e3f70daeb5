"""The table: transport, drifts."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
from torch import Tensor

import gwf_fast as gwf
from tests.fuzz import dense_flows as truths
from tests.fuzz.arguments import Call, draw_bandwidth, draw_kernel, pick
from tests.fuzz.function import EAGER, ONCE, Function
from tests.fuzz.rounding import EXACT, Rounding
from tests.fuzz.table_pairs import LENGTHS, _alone, _empty, pair

_TRIPLE = {**LENGTHS, "negatives_lengths": "z"}
_FINITE = ("plain", "coincident", "near", "same", "collapsed", "far", "shifted", "outlier", "outlier_y")
_MODERATE = ("plain", "coincident", "near", "same", "collapsed", "shifted")


def _transport(rng: Random, call: Call) -> None:
    call["options"] |= {
        "epsilon": call["scale"] ** 2 * pick(rng, {0.1: 20, 0.5: 40, 2.0: 30, 30.0: 10}),
        "max_iterations": 500,
        "tolerance": 1e-6 if call["dtype"] == "float32" else 1e-12,
    }
    for side in "xy":
        if rng.random() < 0.3 and not call["ragged"]:  # whose members' masses would not add up to 1
            call["tensors"][f"{side}_weights"] = f"mass_{side}"
    if rng.random() < 0.3:
        call["options"]["marginal_strength"] = call["scale"] ** 2 * rng.choice((0.3, 2.0, 20.0))


def _unconverged(call: Call) -> float:
    """What a marginal error that is tolerated does to values, in units of r^2, and to drifts and gradients."""
    options, r2 = call["options"], call["scale"] ** 2
    in_lengths = call["f"] == "drift.sinkhorn" or call["mode"].startswith("grad")
    stiff = max(1.0, (options.get("marginal_strength", 0.0) + options["epsilon"]) / r2)
    return 30 * options["tolerance"] * stiff * (call["scale"] if in_lengths else r2)


def _divergence(rng: Random, call: Call) -> None:
    _transport(rng, call)
    if rng.random() < 0.2:
        call["options"]["debias"] = False


def _map(rng: Random, call: Call) -> None:
    call["options"]["epsilon"] = call["scale"] ** 2 * pick(rng, {0.1: 20, 0.5: 40, 2.0: 30})
    call["tensors"]["g"] = "potential_y"
    if rng.random() < 0.3:
        call["tensors"]["y_weights"] = "mass_y"


def _centred(a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The potentials without their free constant: what one side has on average, to the other."""
    f, g = (torch.where(w > 0, t, 0.0) for w, t in ((a, f), (b, g)))
    of_f, of_g = ((w * t).sum(-1, keepdim=True) / w.sum(-1, keepdim=True) for w, t in ((a, f), (b, g)))
    return f + of_g, g + of_f


def _sinkhorn_truth(R: Rounding, x: Tensor, y: Tensor, x_weights=None, y_weights=None, **options: Any) -> Any:
    a, b = truths._masses(x, y, x_weights, y_weights)
    rho = options.get("marginal_strength")
    f, g = truths._potentials(R, x, y, a, b, options["epsilon"], rho, False)
    top = max(float(f.abs().max()), float(g.abs().max())) + options["epsilon"]
    if R.eps and math.isfinite(top):  # what is tolerated moves potentials between masses that hardly meet by far more
        plan = truths.plan_of(EXACT, x, y, f, g, a, b, options["epsilon"]).detach()
        root = [plan.sum(k, keepdim=True).clamp(min=1e-300).rsqrt() for k in (1, 0)]
        rates = torch.linalg.svdvals(root[0] * plan * root[1]).nan_to_num(0.0)
        rate = float(rates[1]) if rho is None and len(rates) > 1 else 0.0
        marginal = (1e-6 if R.eps > 1e-10 else 1e-12) * max(len(x), len(y)) / 4  # relative to the mass of a point
        top += options["epsilon"] * max(3.0, marginal / R.eps) / max(1 - rate**2, 1e-12)
    return tuple(R.moved(t, top) for t in _centred(a, b, f, g))


def _sinkhorn_through(function: Function, tensors: dict[str, Tensor], options: dict[str, Any]) -> Any:
    out = gwf.sinkhorn(**tensors, **options)
    sides = []
    for side, t in (("x", out.f), ("y", out.g)):
        w = tensors.get(f"{side}_weights", torch.ones_like(t))
        if (lengths := options.get(f"{side}_lengths")) is not None:
            w = torch.where(torch.arange(t.shape[-1]) < lengths[..., None], w, 0.0)
        sides.append(w / w.sum(-1, keepdim=True))
    f, g = _centred(*sides, out.f, out.g)
    return f * (sides[0] > 0), g * (sides[1] > 0)


def _parzen_drift(rng: Random, call: Call) -> None:
    call["options"]["bandwidth"] = draw_bandwidth(rng, call["scale"])
    if rng.random() < 0.3:
        call["options"]["exclude_self"] = True
        call["needs"] = {"x": 2}


def _f_drift(rng: Random, call: Call) -> None:
    _parzen_drift(rng, call)
    call["options"]["divergence"] = rng.choice(truths.DIVERGENCES)


def _mmd_drift(rng: Random, call: Call) -> None:
    call["options"]["kernel"] = draw_kernel(rng, call["scale"])
    if rng.random() < 0.3:
        call["options"]["exclude_self"] = True
        call["needs"] = {"x": 2}


def _energy_drift(rng: Random, call: Call) -> None:
    call["options"]["exponent"] = 1.0 if rng.random() < 0.5 else round(rng.uniform(0.1, 1.9), 2)
    if rng.random() < 0.3:
        call["options"]["exclude_self"] = True
        call["needs"] = {"x": 2}


def _gmd(rng: Random, call: Call) -> None:
    call["options"]["temperature"] = draw_bandwidth(rng, call["scale"])
    call["needs"] = {"x": 2}
    if rng.random() < 0.5:
        call["k"] = rng.choice((1, 2, 5, 17, 40))
        call["tensors"]["negatives"] = "points_z"
        call["needs"] = {}
    if rng.random() < 0.2:
        call["options"]["clip"] = rng.choice((1e-6, 1e-3))
        call["backend"] = None
        call["constant"] = True  # to autograd


def _traced_sets(call: Call) -> str | None:
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


def _critic(rng: Random, call: Call) -> None:
    _alone(rng, call)
    call["options"]["wave"] = [round(rng.uniform(-2, 2) / call["scale"], 6) for _ in range(call["d"])]
    if call["dtype"] == "float16" and call["place"] == "shifted":  # its phase is no half
        call["place"] = "plain"
    call["options"]["transform"] = rng.choice(gwf.drift.critics.TRANSFORMS)
    if call["options"]["transform"] == "minimax":
        call["options"]["shift"] = round(rng.uniform(-1, 2), 2)


def _critic_through(function: Function, tensors: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    options = dict(options)
    wave = options.pop("wave")
    return function.public(**tensors, **options, critic=lambda x: (x @ torch.tensor(wave, dtype=x.dtype)).sin())


def _critic_step(rng: Random, call: Call) -> None:
    _critic(rng, call)
    call["options"]["step_size"] = call["scale"] ** 2 * round(rng.uniform(0, 1), 2)


def _critic_step_truth(R: Rounding, x: Tensor, *, step_size: float, **options: Any) -> Tensor:
    return R(x + step_size * truths.drift_critic(R, x, **options))


def _loss(rng: Random, call: Call) -> None:
    del call["tensors"]["y"]
    call["tensors"]["velocity"] = "velocity_x"
    call["batch"], call["ragged"] = [], False  # a mean over all batches


def _sets(call: Call) -> str | None:
    """Drifts ask for a target where there is a particle."""
    return _empty("x", "y", *("z" * ("k" in call)))(call)


_SLOPES = ("x", "y")

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
    Function(
        "drift.parzen_kl",
        truths.drift_parzen_kl,
        pair(_parzen_drift),
        gradients=_SLOPES,
        lengths=LENGTHS,
        least=2,
        refuses=_sets,
    ),
    Function(
        "drift.f_divergence",
        truths.drift_f_divergence,
        pair(_f_drift),
        gradients=_SLOPES,
        lengths=LENGTHS,
        least=2,
        refuses=_sets,
        factor=3.0,  # a ratio of two densities, times a difference of two means
    ),
    Function(
        "drift.mmd", truths.drift_mmd, pair(_mmd_drift), gradients=_SLOPES, lengths=LENGTHS, least=2, refuses=_sets
    ),
    Function(
        "drift.energy",
        truths.drift_energy,
        pair(_energy_drift),
        gradients=_SLOPES,
        lengths=LENGTHS,
        least=2,
        refuses=_sets,
    ),
    Function(
        "drift.gmd",
        truths.drift_gmd,
        pair(_gmd),
        gradients=(*_SLOPES, "negatives"),
        lengths=_TRIPLE,
        least=2,
        refuses=_traced_sets,
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
        "drift.critic",
        truths.drift_critic,
        pair(_critic, backend=False),
        refuses=_sets,
        through=_critic_through,
        weight=0.3,
        modes=EAGER,
    ),
    Function(
        "drift.critic_step",
        _critic_step_truth,
        pair(_critic_step, backend=False),
        refuses=_sets,
        through=_critic_through,
        weight=0.3,
        modes=EAGER,
    ),
    Function(
        "drifting_loss",
        truths.drifting_loss,
        pair(_loss, backend=False, places=_FINITE),
        rows=(None,),
        gradients=("x",),
        refuses=_sets,
        weight=0.3,
    ),
]
