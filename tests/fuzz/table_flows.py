"""The table: drifts."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor

import gwf_fast as gwf
from tests.fuzz import dense_flows as truths
from tests.fuzz.arguments import Call, draw_bandwidth, draw_kernel
from tests.fuzz.function import EAGER, Function
from tests.fuzz.rounding import Rounding
from tests.fuzz.table_pairs import LENGTHS, _alone, _empty, pair

_FINITE = ("plain", "coincident", "near", "same", "collapsed", "far", "shifted", "outlier", "outlier_y")
_MODERATE = ("plain", "coincident", "near", "same", "collapsed", "shifted")


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
