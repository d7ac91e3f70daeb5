"""Calls: how they are drawn, and how their tensors are made. A call is a dictionary that JSON can carry."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.radial import SCALED

Call = dict[str, Any]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = ("contiguous", "strided", "columns", "transposed", "flipped", "offset", "negated", "expanded")
PLACES = {  # where points lie, and how often that is drawn
    "plain": 44,
    "coincident": 8,  # some y are x
    "near": 7,  # y is x + 1e-4 noise
    "same": 8,  # y is the tensor x
    "collapsed": 4,  # all points are one
    "far": 5,  # x and y apart by 50 lengths
    "shifted": 8,  # both at 1e4 lengths from the origin
    "outlier": 6,  # a point of x at 1e4 lengths
    "outlier_y": 4,
    "nan": 2,
    "nan_y": 2,
    "inf": 2,
    "inf_y": 2,
}
_SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 33, 48, 63, 65, 100)
_DIMS = (1, 1, 2, 2, 2, 3, 3, 4, 5, 7, 8, 9, 16, 17, 33, 64, 70, 130)


def pick(rng: Random, weighted: dict[Any, float]) -> Any:
    """One of the keys, in proportion to its value."""
    return rng.choices(list(weighted), list(weighted.values()))[0]


def draw_shape(rng: Random, *, least: int = 0, largest: int = 100, places: tuple[str, ...] | None = None) -> Call:
    """Sizes, dtype, layouts, places and scale."""
    call: Call = {"seed": rng.randrange(1 << 30)}
    sizes = [s for s in _SIZES if s <= largest]
    call["n"], call["m"] = (max(rng.choice(sizes), least if rng.random() < 0.95 else 0) for _ in "nm")
    call["d"] = rng.choice(_DIMS)
    call["batch"] = pick(rng, {(): 60, (1,): 4, (2,): 20, (3,): 5, (2, 2): 6, (0,): 2, (2, 1): 3})
    call["batch"] = list(call["batch"])
    call["ragged"] = bool(call["batch"]) and rng.random() < 0.4
    call["dtype"] = pick(rng, {"float32": 55, "float64": 37, "float16": 3, "bfloat16": 5})
    chosen = {k: v for k, v in PLACES.items() if places is None or k in places}
    call["place"] = pick(rng, chosen)  # type: ignore[arg-type]
    if call["place"] in ("coincident", "near") and rng.random() < 0.7:
        call["m"] = call["n"]
    for place, size in (("outlier", "n"), ("outlier_y", "m")):
        if call["place"] == place and call[size] < 3:  # of two, who is the outlier?
            call["place"] = "plain"
    if call["place"] == "same":
        call["m"] = call["n"]
    for side in "xy":
        call[f"{side}_layout"] = pick(rng, {"contiguous": 60, **dict.fromkeys(LAYOUTS[1:], 6)})
    call["scale"] = 1.0
    if call["dtype"] in ("float32", "float64"):
        exponent = pick(rng, {0: 75, rng.uniform(-3, 3): 15, rng.uniform(-30, 30): 10})
        call["scale"] = float(f"{10.0**exponent:.3g}")
    return call


def draw_bandwidth(rng: Random, scale: float) -> float:
    """A length that goes with the scale of the points, mostly."""
    relative = pick(
        rng, {rng.uniform(-0.7, 0.7): 80, rng.uniform(-2, 2): 12, rng.uniform(-4, 6): 5, 25.0: 0.3, -25.0: 0.3}
    )
    return float(f"{scale * 10.0**relative:.4g}")


def draw_kernel(rng: Random, scale: float, *, positive: bool = False, only: tuple[str, ...] | None = None) -> list:
    """The terms of a kernel."""
    kinds = list(only or SCALED) if positive or only else [*SCALED, *SCALED, "riesz", "riesz", "power_law", "morse"]
    terms = []
    for _ in range(pick(rng, {1: 80, 2: 15, 3: 5})):
        name = rng.choice(kinds)
        c = 1.0 if rng.random() < 0.6 else round(rng.uniform(0.1, 3), 2) * (1 if positive or rng.random() < 0.7 else -1)
        h = draw_bandwidth(rng, scale)
        rest: tuple[float, ...] = (h,)
        if name == "rational_quadratic":
            rest = (h, round(rng.uniform(0.3, 4), 2))
        elif name == "riesz":
            rest = (1.0 if rng.random() < 0.5 else round(rng.uniform(0.1, 1.9), 2),)
        elif name == "power_law":
            rest = rng.choice(((4, 2), (2, 0), (2, 1), (3, -1), (4, 1), (1.5, 0.5), (3, 1), (2, -0.5)))
        elif name == "morse":
            rest = (1.0, h, 0.5, 2 * h)
        terms.append([name, c, *rest])
    return terms


# ------------------------------------------------------------------------------------------------ tensors


def generator(call: Call, stream: int) -> torch.Generator:
    """Numbers of a call's own; each tensor has its stream."""
    return torch.Generator().manual_seed(call["seed"] * 64 + stream)


def make_points(call: Call) -> tuple[Tensor, Tensor]:
    """x and y, contiguous, in the dtype of the call; y is x where the place says so."""
    batch, n, m, d = call["batch"], call["n"], call["m"], call["d"]
    options: dict[str, Any] = {"generator": generator(call, 0), "dtype": torch.float64}
    x = torch.randn(*batch, n, d, **options) / math.sqrt(d)
    y = torch.randn(*batch, m, d, **options) / math.sqrt(d) + 0.3 / math.sqrt(d)
    place, shared = call["place"], min(n, m)
    rows = slice(0, max(1, shared // 2))
    if place == "coincident":
        y[..., :shared, :][..., rows, :] = x[..., :shared, :][..., rows, :]
    elif place == "near":
        y[..., :shared, :] = x[..., :shared, :] + 1e-4 * y[..., :shared, :]
    elif place == "collapsed":
        x[...] = y[...] = 0.7
    elif place == "far":
        y += 50 / math.sqrt(d)
    elif place == "shifted":
        x, y = x + 1e4, y + 1e4
    for name, where in (("x", x), ("y", y)):
        if call[f"{name}_layout"] == "expanded" and where.shape[-2]:
            where[...] = where[..., :1, :].clone()
    marks = {"outlier": 1e4, "nan": math.nan, "inf": math.inf}
    dtype = DTYPES[call["dtype"]]
    x, y = x * call["scale"], y * call["scale"]
    kind = place.removesuffix("_y")
    if kind in marks:
        target = y if place.endswith("_y") else x
        if target.numel():
            value = marks[kind] * (call["scale"] if kind == "outlier" else 1)
            target[(0,) * len(batch)][target.shape[-2] // 2, 0] = value
    x, y = x.to(dtype), y.to(dtype)
    return (x, x) if place == "same" else (x, y)


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same values in another layout of memory."""
    if layout == "contiguous" or t.ndim < 1:
        return t.contiguous()
    if layout == "expanded":  # rows that are one row; other values can't be expanded
        rows = t.ndim >= 2 and t.shape[-2] > 1 and bool((t == t[..., :1, :]).all())
        return t[..., :1, :].clone().expand(t.shape) if rows else t.contiguous()
    if layout == "strided":  # every other element of the first dimension
        store = t.new_full((2 * t.shape[0], *t.shape[1:]), math.nan if t.is_floating_point() else 1 << 40)
        store[::2] = t
        return store[::2]
    if layout == "columns":
        store = t.new_full((*t.shape[:-1], t.shape[-1] + 3), math.nan if t.is_floating_point() else 1 << 40)
        store[..., 1 : t.shape[-1] + 1] = t
        return store[..., 1 : t.shape[-1] + 1]
    if layout == "transposed":
        return t.mT.contiguous().mT if t.ndim >= 2 else t.contiguous()
    if layout == "flipped":  # the first dimensions in the order of the last
        order = list(range(t.ndim))[::-1]
        return t.permute(order).contiguous().permute(order)
    if layout == "offset":
        store = t.new_zeros(t.numel() + 1)
        store[1:] = t.flatten()
        return store[1:].view(t.shape)
    return torch._neg_view(-t.contiguous()) if t.is_floating_point() else t.contiguous()


def make_lengths(call: Call, size: int, stream: int, least: int) -> Tensor:
    """Sizes of ragged sets [*B], in a layout of their own."""
    options: dict[str, Any] = {"generator": generator(call, stream)}
    low = min(least, size)
    lengths = torch.randint(low, size + 1, call["batch"], **options)
    layout = LAYOUTS[int(torch.randint(0, 3, (), **options))]
    return laid_out(lengths, layout)


def spoilt(t: Tensor, lengths: Tensor | None, rows: int) -> Tensor:
    """Anything at all beyond the lengths."""
    if lengths is None or not t.is_floating_point():
        return t
    beyond = torch.arange(rows) >= lengths[..., None]
    return torch.where(beyond[(...,) + (None,) * (t.ndim - beyond.ndim)], math.nan, t)
