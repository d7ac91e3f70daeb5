"""Calls that are made of whole sets by one process, and of their shards by several: results and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gwf_fast as gwf

Data = dict[str, Tensor]

SHARDS: dict[int, dict[str, tuple[int, ...]]] = {2: {"x": (5, 18), "y": (14, 3)}, 3: {"x": (9, 0, 14), "y": (0, 4, 13)}}
"""Rows of each process, by their number: uneven, and none."""
OF = {"x": "x", "y": "y", "a": "x", "b": "y", "beta": "y", "v": "y", "w": "y", "score": "x", "z": "x"}
"""Whose rows what is drawn has; h is the same for all."""


def drawn(dtype: torch.dtype) -> Data:
    g = torch.Generator().manual_seed(7)
    n, m, dim = 23, 17, 3

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    data = {
        "x": normal(n, dim) + 3, "y": 1.5 * normal(m, dim) + 2.5, "z": normal(n, dim), "score": normal(n, dim),
        "a": normal(n).square() + 0.1, "b": normal(m).square() + 0.1, "beta": normal(m),
        "v": normal(m, 2), "w": normal(m, 4), "h": torch.tensor(0.8, dtype=torch.float64),
    }  # fmt: skip
    return {name: value.to(dtype) for name, value in data.items()}


def shard(data: Data, rank: int, size: int) -> Data:
    """This process's rows."""
    found = {}
    for name, value in data.items():
        rows = SHARDS[size][OF[name]] if name in OF else None
        found[name] = value if rows is None else value.split(rows)[rank].clone()
    return found


K = gwf.Gaussian(0.9)
ROUGH = 0.7 * gwf.Laplace(1.1) + gwf.IMQ(0.8)

Call = Callable[[Any, Data], Tensor]


def inferred(call: Callable[[], Tensor]) -> Tensor:
    with torch.inference_mode():
        return call()


# name: (call, the inputs that are differentiated, whether rows come out)
CASES: dict[str, tuple[Call, str, bool]] = {
    "sum": (lambda s, d: s.kernel_sum(d["x"], d["y"], d["b"], kernel=K), "x y b", True),
    "sum, plain": (lambda s, d: s.kernel_sum(d["x"], d["y"], kernel=ROUGH), "x y", True),
    "sum, channels": (lambda s, d: s.kernel_sum(d["x"], d["y"], d["w"], kernel=K), "x y w", True),
    "sum, own": (lambda s, d: s.kernel_sum(d["x"], d["x"], d["a"], kernel=K), "x a", True),
    "sum, others": (lambda s, d: s.kernel_sum(d["x"], d["x"], kernel=ROUGH, exclude_self=True), "x", True),
    "sum, bandwidth": (
        lambda s, d: s.kernel_sum(d["x"], d["y"], kernel=d["h"] * gwf.Gaussian(d["h"]) + gwf.Gaussian(2.0)),
        "x y h",
        True,
    ),
    "sum, problems": (
        lambda s, d: s.kernel_sum(torch.stack([d["x"], 2 * d["x"]]), torch.stack([d["y"], d["y"] - 1]), kernel=K).mT,
        "x y",
        True,
    ),
    "sum, the same targets": (lambda s, d: s.kernel_sum(d["x"], d["y"][None], kernel=K)[0], "x y", True),
    "sum, inference": (lambda s, d: inferred(lambda: s.kernel_sum(d["x"].T.clone().T, d["y"], kernel=K)), "", True),
    "gradient": (lambda s, d: s.kernel_gradient(d["x"], d["y"], d["b"], kernel=K), "x y b", True),
    "gradient, own": (lambda s, d: s.kernel_gradient(d["x"], d["x"], kernel=ROUGH), "x", True),
    "logsumexp": (lambda s, d: s.kernel_logsumexp(d["x"], d["y"], d["beta"], kernel=K), "x y beta", True),
    "logsumexp, far": (lambda s, d: s.kernel_logsumexp(5 * d["x"], d["y"], kernel=K), "x y", True),
    "logsumexp, bandwidth": (lambda s, d: s.kernel_logsumexp(d["x"], d["y"], kernel=gwf.Gaussian(d["h"])), "x h", True),
    "average": (
        lambda s, d: s.kernel_average(d["x"], d["y"], d["v"], d["beta"], kernel=K), "x y v beta", True,
    ),
    "average, shift": (lambda s, d: s.kernel_average(d["x"], d["y"], kernel=gwf.Gaussian(d["h"])), "x y h", True),
    "average, others": (lambda s, d: s.kernel_average(d["x"], d["x"], kernel=K, exclude_self=True), "x", True),
    "mmd2": (lambda s, d: s.mmd2(d["x"], d["y"], kernel=K), "x y", False),
    "mmd2, weights": (
        lambda s, d: s.mmd2(d["x"], d["y"], kernel=ROUGH, unbiased=True, x_weights=d["a"], y_weights=d["b"]),
        "x y a b",
        False,
    ),
    "mmd2, bandwidth": (
        lambda s, d: s.mmd2(d["x"], d["y"], kernel=d["h"] * gwf.Gaussian(d["h"]) + K, y_weights=d["b"]), "x b h", False,
    ),
    "energy": (lambda s, d: s.energy_distance(d["x"], d["y"]), "x y", False),
    "log density": (lambda s, d: s.parzen_log_density(d["x"], d["y"], d["h"]), "x y h", True),
    "log density, others": (lambda s, d: s.parzen_log_density(d["x"], d["x"], 0.7, exclude_self=True), "x", True),
    "score": (lambda s, d: s.parzen_score(d["x"], d["y"], d["h"]), "x y h", True),
    "score, others": (lambda s, d: s.parzen_score(d["x"], d["x"], 0.7, exclude_self=True), "x", True),
    "svgd": (lambda s, d: s.svgd_direction(d["x"], d["score"], kernel=K), "x score", True),
    "svgd, sharp": (lambda s, d: s.svgd_direction(d["x"], d["score"], kernel=gwf.Gaussian(0.3)), "x score", True),
    "svgd, rough": (lambda s, d: s.svgd_direction(d["x"], d["score"], kernel=d["h"] * ROUGH), "x score h", True),
    "interaction energy": (lambda s, d: s.interaction_energy(d["x"], kernel=d["h"] * K), "x h", False),
    "velocity": (lambda s, d: s.interaction_velocity(d["x"], kernel=gwf.PowerLaw(2.0, 1.0)), "x", True),
    "velocity, sources": (lambda s, d: s.interaction_velocity(d["x"], d["y"], kernel=K), "x y", True),
    "step": (lambda s, d: s.forward_step(d["x"], 0.3, kernel=K), "x", True),
    "drift, mmd": (lambda s, d: s.drift.mmd(d["x"], d["y"], kernel=K, exclude_self=True), "x y", True),
    "drift, noise": (
        lambda s, d: s.drift.mmd(d["x"], d["y"], kernel=K, noise=0.3, generator=torch.Generator().manual_seed(1)),
        "x y",
        True,
    ),
    "drift, energy": (lambda s, d: s.drift.energy(d["x"], d["y"]), "x y", True),
    "drift, kl": (lambda s, d: s.drift.parzen_kl(d["x"], d["y"], 0.9, exclude_self=True), "x y", True),
    "drift, pearson": (lambda s, d: s.drift.f_divergence(d["x"], d["y"], 1.5, divergence="pearson"), "x y", True),
    "drift, gmd": (lambda s, d: s.drift.gmd(d["x"], d["y"], temperature=0.7), "x y", True),
    "drift, gmd weights": (
        lambda s, d: s.drift.gmd(
            d["x"], d["y"], temperature=[0.4, 1.0], negatives=d["z"], normalization="problem", y_log_weights=d["beta"]
        ),
        "x y z beta",
        True,
    ),
    "drift, coupling": (
        lambda s, d: s.drift.coupling(d["x"], d["y"], temperature=0.7, coupling="two_sided", metric="l2_sq"),
        "x y",
        True,
    ),
}  # fmt: skip

FAST: dict[str, tuple[Callable[[Any, Data, Any], Tensor], str, bool]] = {
    "sum": (lambda s, d, m: s.kernel_sum(d["x"], d["y"], d["w"], kernel=K, method=m), "x y w", True),
    "sum, others": (
        lambda s, d, m: s.kernel_sum(d["x"], d["x"], d["a"], kernel=K, method=m, exclude_self=True), "x a", True
    ),
    "sum, powers": (
        lambda s, d, m: s.kernel_sum(d["x"], d["y"], d["b"], kernel=K + gwf.PowerLaw(4.0, 2.0), method=m), "x y b", True
    ),
    "gradient": (lambda s, d, m: s.kernel_gradient(d["x"], d["y"], kernel=gwf.IMQ(d["h"]), method=m), "x h", True),
    "energy": (lambda s, d, m: s.interaction_energy(d["x"], kernel=K, method=m), "x", False),
    "step": (lambda s, d, m: s.forward_step(d["x"], 0.3, kernel=gwf.PowerLaw(4.0, 2.0), method=m), "x", True),
}  # fmt: skip
"""Calls by transforms, of what the exact method is compared with: data in two dimensions, of many points."""


def many(data: Data) -> Data:
    """More points than a series has modes, so that it is one: each set in 12 places, in two dimensions."""
    places = torch.linspace(0, 1.1, 12, dtype=torch.float64)[:, None, None]
    moved = {k: (v[..., :2] + places * (1 + v[..., :2].sin())).flatten(0, 1) for k, v in data.items() if k in "xy"}
    return moved | {k: v.repeat(12, *[1] * (v.ndim - 1)) for k, v in data.items() if k in "abw"} | {"h": data["h"]}


AS_DTENSORS = ("sum", "sum, own", "average", "mmd2", "score", "interaction energy")
"""Cases that are made of DTensors too: y in shards, and whole."""


def squares(call: Call, space: Any, data: Data, inputs: str) -> dict[str, Tensor]:
    """The result, and what the gradients of its square are."""
    leaves = {name: data[name].detach().requires_grad_() for name in inputs.split()}
    out = call(space, data | leaves)
    loss = (out * out).sum()
    (loss.full_tensor() if hasattr(loss, "full_tensor") else loss).backward()
    found = {"out": out.detach()} | {f"d/d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {name: t.to_local() if hasattr(t, "to_local") else t for name, t in found.items()}


def outcome(call: Call, space: Any, data: Data, inputs: str, order: int) -> dict[str, Tensor]:
    """The result, and what derivatives in the inputs are, to the second order of one functional."""
    leaves = {name: data[name].clone().requires_grad_() for name in inputs.split()} if order else {}
    out = call(space, data | leaves)
    found = {"out": out.detach()}
    names = list(leaves)
    if not names:
        return found
    if order:
        weight = torch.linspace(0.5, 1.5, out[:1].numel()).to(out).view(out[:1].shape) if out.ndim else 1 + out.detach()
        loss = (out * weight).sum() + (out**2).sum()
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=order > 1)
        found |= {f"d/d{name}": g.detach() for name, g in zip(names, first, strict=True)}
    if order > 1:
        parts = [(g * (g + 1 + leaves[n].detach().cos())).sum() for n, g in zip(names, first, strict=True)]
        second = torch.autograd.grad(torch.stack(parts).sum(), list(leaves.values()))
        found |= {f"d2/d{name}": g.detach() for name, g in zip(names, second, strict=True)}
    return found
