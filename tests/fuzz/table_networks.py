"""The table: networks, what critics maximise, densities with closed forms."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

import gwf_fast as gwf
from tests.fuzz import dense_networks as truths
from tests.fuzz.arguments import DTYPES, Call, draw_shape
from tests.fuzz.function import EAGER, Function

_PLACES = ("plain", "coincident", "collapsed", "shifted", "outlier", "nan", "inf")
_NAMES = {"w": "weight", "b": "bias", "s": "weight"}


def _shape(rng: Random, largest_dim: int = 33) -> Call:
    call = draw_shape(rng, places=_PLACES)
    while call["d"] > largest_dim or call["dtype"] not in ("float32", "float64"):
        call = draw_shape(rng, places=_PLACES)
    if call["scale"] > 1e6:
        call["scale"] = 1.0
    call["ragged"] = False
    return call


def _layers(rng: Random, call: Call, out: int) -> None:
    """Parameters as tensors of the call, by the place that they have in the network."""
    hidden = [rng.choice((1, 2, 3, 7, 8, 16, 17, 33, 64)) for _ in range(rng.choice((0, 1, 2, 2, 3)))]
    sizes = [call["d"], *hidden, out]
    activation = rng.choice(("prelu", *truths.ACTIVATIONS))
    call["options"] |= {"sizes": sizes, "activation": activation}
    for k in range(len(sizes) - 1):
        call["tensors"] |= {f"w{k}": f"matrix {sizes[k + 1]} {sizes[k]}", f"b{k}": f"vector {sizes[k + 1]}"}
        if activation == "prelu" and k < len(sizes) - 2:
            call["tensors"][f"s{k}"] = "vector 1"


def _draw_mlp(rng: Random) -> Call:
    call = _shape(rng)
    call["tensors"] = {"x": "x"}
    what = rng.choice(("forward", "forward", "value_and_grad"))
    residual = what == "forward" and rng.random() < 0.3
    out = call["d"] if residual else 1 if what == "value_and_grad" else rng.choice((1, 2, 5))
    output = rng.choice((None, None, "tanh", "softplus", "js", "reverse_kl", "neyman")) if what == "forward" else None
    call["options"] = {"what": what, "residual": residual, "output": output}
    _layers(rng, call, out)
    if rng.random() < 0.1:
        call["batch"] = []
    return call


def _draw_critic(rng: Random) -> Call:
    call = _shape(rng)
    call["tensors"] = {"x": "x", "z": "y"}
    call["batch"] = []
    call["n"], call["m"] = max(call["n"], 1), max(call["m"], 1)
    call["options"] = {"divergence": rng.choice(truths.OBJECTIVES)}
    _layers(rng, call, 1)
    return call


def _state(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{2 * int(n[1]) + (n[0] == 's')}.{_NAMES[n[0]]}": t for n, t in tensors.items() if n[0] in _NAMES}


class _Value(torch.nn.Module):
    """A method of a module as its forward, which is what functional_call calls."""

    def __init__(self, inner: torch.nn.Module, method: Any) -> None:
        super().__init__()
        self.inner, self.method = inner, method

    def forward(self, *args: Tensor) -> Any:
        return self.method(self.inner, *args)


def _module(options: dict[str, Any], like: Tensor) -> gwf.nn.MLP:
    known = {k: options[k] for k in ("activation", "output", "residual") if k in options}
    return gwf.nn.MLP(options["sizes"], **known).to(like.dtype)


def _mlp_through(function: Function, tensors: dict[str, Tensor], options: dict[str, Any]) -> Any:
    net, x = _module(options, tensors["x"]), tensors["x"]
    if options["what"] == "forward":
        return functional_call(net, _state(tensors), (x,))
    wrapped = _Value(net, lambda inner, x: inner.value_and_grad(x))
    return functional_call(wrapped, _state(tensors, "inner."), (x,))


def _critic_through(function: Function, tensors: dict[str, Tensor], options: dict[str, Any]) -> Any:
    net = _module({k: options[k] for k in ("sizes", "activation")}, tensors["x"])
    wrapped = _Value(net, lambda inner, x, z: gwf.nn.critic_objective(inner, x, z, divergence=options["divergence"]))
    return functional_call(wrapped, _state(tensors, "inner."), (tensors["x"], tensors["z"]))


def _mixture(rng: Random) -> Call:
    call = _shape(rng)
    count = rng.choice((1, 2, 5))
    call["tensors"] = {"x": "x", "means": f"matrix {count} {call['d']}"}
    call["options"] = {
        "scales": [round(call["scale"] * rng.uniform(0.3, 2), 12) or 1.0 for _ in range(count)],
        "weights": [round(rng.uniform(0.1, 2), 2) for _ in range(count)],
        "what": rng.choice(("log_density", "score")),
    }
    return call


def _mixture_through(function: Function, tensors: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    x = tensors["x"]
    scales, weights = (torch.tensor(options[k], dtype=x.dtype) for k in ("scales", "weights"))
    density = gwf.potentials.GaussianMixture(tensors["means"], scales, weights)
    return getattr(density, options["what"])(x)


def _logistic(rng: Random) -> Call:
    call = _shape(rng)
    call["d"], call["scale"] = max(call["d"], 2), 1.0
    if call["place"] in ("shifted", "outlier"):
        call["place"] = "plain"
    count = rng.choice((1, 2, 17))
    call["tensors"] = {"x": "x", "features": f"matrix {count} {call['d'] - 1}"}
    labels = [rng.choice((-1.0, 1.0)) for _ in range(count)]
    call["options"] = {"labels": labels, "rate": rng.choice((0.01, 1.0)), "what": rng.choice(("log_density", "score"))}
    return call


def _logistic_through(function: Function, tensors: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    labels = torch.tensor(options["labels"], dtype=tensors["x"].dtype)
    density = gwf.potentials.BayesianLogisticRegression(tensors["features"], labels, options["rate"])
    return getattr(density, options["what"])(tensors["x"])


def _parameters(depth: int = 4) -> tuple[str, ...]:
    return tuple(f"{kind}{k}" for k in range(depth) for kind in "wbs")


def _mlp_rows(call: Call) -> tuple[str | None, ...]:
    return ("x", "x") if call["options"]["what"] == "value_and_grad" else ("x",)


def _saturated(call: Call) -> float:
    """Where an activation is flat its slope is the rounding of what it was computed from, beside those that are not.

    Its second slope has a factor of 1 less the first, whose rounding is multiplied by slopes in points far away.
    """
    twice = 1e3 if call["mode"] == "grad2" and call["scale"] > 10 else 1.0
    return 16 * torch.finfo(DTYPES[call["dtype"]]).eps * twice


_NOT_AUTOCAST = tuple(mode for mode in EAGER if mode != "autocast")

FUNCTIONS = [
    Function(
        "nn.MLP",
        truths.mlp,
        _draw_mlp,
        rows=_mlp_rows,
        gradients=("x", *_parameters()),
        through=_mlp_through,
        floor=_saturated,
        modes=_NOT_AUTOCAST,  # which leaves it to its modules, as documented
        weight=1.5,
        factor=2.0,
    ),
    Function(
        "nn.critic_objective",
        truths.critic_objective,
        _draw_critic,
        rows=(None,),
        gradients=("x", "z", *_parameters()),
        through=_critic_through,
        floor=_saturated,
        modes=EAGER,
        factor=3.0,
    ),
    Function(
        "potentials.GaussianMixture",
        truths.mixture,
        _mixture,
        factor=2.0,  # of a mean over components, whose exponents cancel
        gradients=("x",),
        through=_mixture_through,
        weight=0.3,
        modes=_NOT_AUTOCAST,
    ),
    Function(
        "potentials.BayesianLogisticRegression",
        truths.logistic,
        _logistic,
        gradients=("x",),
        through=_logistic_through,
        modes=_NOT_AUTOCAST,
        weight=0.3,
    ),
]
