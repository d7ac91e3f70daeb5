"""What the table says of a public function, and a call of it: by the package and by its dense truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

import gwf_fast as gwf
from tests.fuzz.arguments import DTYPES, Call, generator, laid_out, make_lengths, make_points, spoilt
from tests.fuzz.radial import kernel_of
from tests.fuzz.rounding import Rounding

Output = tuple[Tensor, ...]


@dataclass(frozen=True)
class Function:
    """A row of the table.

    Attributes:
        name: Where it is in the package, such as "drift.gmd".
        truth: The dense formula for one problem: a rounding, tensors by name, options by name.
        draw: A call, from random numbers: its shape, its tensors by kind (see :func:`make`), its options.
        rows: For each result the set whose rows it has, "x" or "y", or None for a number a problem; may
            depend on the call.
        gradients: The tensors that it can be differentiated in.
        lengths: Arguments with the sizes of ragged sets, and the sets that they are of.
        pad: What results read beyond the lengths.
        least: Members that a ragged set must have.
        refuses: Why the documentation lets it refuse a call; None if it must not.
        floor: Relative error, in the 2-norm, that the documentation grants beyond rounding.
        slack: Error, as it is, that the documentation grants: of iterations that stop at a tolerance.
        modes: The modes that it is called in; None means all.
        through: How the package is called, where that is not the plain call.
        weight: How often it is drawn.
        factor: Of the error that rounding explains, for a formula with more steps than its truth has.
    """

    name: str
    truth: Callable[..., Any]
    draw: Callable[[Random], Call]
    rows: tuple[str | None, ...] | Callable[[Call], tuple[str | None, ...]] = ("x",)
    gradients: tuple[str, ...] = ()
    lengths: dict[str, str] = field(default_factory=dict)
    pad: float = 0.0
    least: int = 0
    refuses: Callable[[Call], str | None] = lambda call: None
    floor: Callable[[Call], float] = lambda call: 0.0
    slack: Callable[[Call], float] = lambda call: 0.0
    modes: tuple[str, ...] | None = None
    through: Callable[..., Any] | None = None
    weight: float = 1.0
    factor: float = 1.0

    @property
    def public(self) -> Callable[..., Any]:
        """The function itself."""
        found: Any = gwf
        for name in self.name.split("."):
            found = getattr(found, name)
        return found

    def __call__(self, tensors: dict[str, Tensor], lengths: dict[str, Tensor], call: Call) -> Output:
        """The package's results."""
        options = dict(call["options"])
        if "kernel" in options:
            options["kernel"] = kernel_of(options["kernel"])
        if call.get("backend"):
            options["backend"] = call["backend"]
        tensors = dict(tensors)
        if options.get("method") == "sliced":
            options["method"] = gwf.Sliced(directions=tensors.pop("directions"))
        elif "method" in options:
            options["method"] = {"nufft": gwf.NUFFT, "auto": gwf.Auto}[options["method"]](options.pop("tolerance"))
        out = (self.through or self.plain)(self, tensors, options | lengths)
        return out if isinstance(out, tuple) else (out,)

    @staticmethod
    def plain(self: Function, tensors: dict[str, Tensor], options: dict[str, Any]) -> Any:
        """Tensors and options by their names."""
        return self.public(**tensors, **options)

    def dense(self, rounding: Rounding, tensors: dict[str, Tensor], lengths: dict[str, Tensor], call: Call) -> Output:
        """The truth for all problems of a batch, padded."""
        batch = call["batch"]
        sizes = {"x": call["n"], "y": call["m"], "z": call.get("k", 0)}
        if 0 in batch:  # no problem at all: the shapes of one
            empty = {
                n: t if unbatched(call["tensors"][n]) else t.new_full(t.shape[len(batch) :], call["scale"])
                for n, t in tensors.items()
            }
            of_one = self.dense(rounding, empty, {}, call | {"batch": []})
            return tuple(t.new_zeros((*batch, *t.shape)) for t in of_one)
        rows = self.rows(call) if callable(self.rows) else self.rows
        results: list[Output] = []
        for index in itertools.product(*map(range, batch)):
            counts = {s: int(lengths[a][index]) for a, s in self.lengths.items() if a in lengths}
            inputs = {}
            for name, t in tensors.items():
                kind = call["tensors"][name]
                one = t if unbatched(kind) else t[index]
                side = side_of(kind)
                inputs[name] = one[: counts[side]] if side in counts else one
            options = {k: v for k, v in call["options"].items() if k not in NOT_MATHEMATICS}
            out = self.truth(rounding, **inputs, **options)
            out = out if isinstance(out, tuple) else (out,)
            results.append(tuple(self._padded(t, side, sizes) for t, side in zip(out, rows, strict=True)))
        return tuple(torch.stack(each).unflatten(0, batch) if batch else each[0] for each in zip(*results, strict=True))

    def _padded(self, t: Tensor, side: str | None, sizes: dict[str, int]) -> Tensor:
        if side is None or len(t) == sizes[side]:
            return t
        return torch.cat((t, t.new_full((sizes[side] - len(t), *t.shape[1:]), self.pad)))


EAGER = ("plain", "grad", "grad2", "no_grad", "inference", "autocast", "threads", "concurrent")
"""Modes of functions that look at values, and so are neither traced nor mapped."""
SERIAL = tuple(mode for mode in EAGER if mode not in ("threads", "concurrent"))
"""Of those whose last digits are documented to change with threads."""
ONCE = tuple(mode for mode in EAGER if mode != "grad2")
"""Of those that are documented to be differentiable once."""
NOT_MATHEMATICS = ("method", "tolerance", "max_iterations", "scaling")


def unbatched(kind: str) -> bool:
    """Whether a tensor is the same for all problems of a batch."""
    return kind in ("directions", "planes") or kind.startswith(("matrix", "vector"))


def side_of(kind: str) -> str | None:
    """The set whose members a tensor belongs to."""
    return kind[-1] if kind[-1] in "xyz" and kind[-2:-1] in ("", "_") else None


def make(function: Function, call: Call) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a call, and lengths. What is beyond the lengths is NaN."""
    x, y = make_points(call)
    if call.get("sphere"):
        one = y is x
        x, y = (torch.nn.functional.normalize(t.double(), dim=-1).to(t.dtype) for t in (x, y))
        y = x if one else y
    lengths: dict[str, Tensor] = {}
    if call["ragged"]:
        for stream, (argument, side) in enumerate(function.lengths.items()):
            size = {"x": call["n"], "y": call["m"], "z": call.get("k", 0)}[side]
            if (side != "z" or "z" in call["tensors"].values()) and argument not in call.get("without", ()):
                lengths[argument] = make_lengths(call, size, 40 + stream, function.least)
    if call["place"] == "same" and {"x_lengths", "y_lengths"} <= lengths.keys():
        lengths["y_lengths"] = lengths["x_lengths"]
    of_side = {side: lengths[argument] for argument, side in function.lengths.items() if argument in lengths}
    tensors: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    for stream, (name, kind) in enumerate(call["tensors"].items()):
        if kind == "y" and y is x and "x" in made:
            tensors[name] = made["x"]
            continue
        t = x if kind == "x" else y if kind == "y" else _companion(call, kind, 10 + stream)
        side = side_of(kind)
        t = spoilt(t, of_side.get(side), t.shape[len(call["batch"])] if side else 0)
        layout = call["y_layout"] if side == "y" else call["x_layout"]
        made[kind] = tensors[name] = laid_out(t, layout)
    return tensors, lengths


def _companion(call: Call, kind: str, stream: int) -> Tensor:
    """A tensor of a kind that is named for what it holds and for the set that it goes with."""
    what, _, side = kind.rpartition("_") if side_of(kind) else (kind, "", "")
    size = {"x": call["n"], "y": call["m"], "z": call.get("k", 0)}.get(side, 0)
    options: dict[str, Any] = {"generator": generator(call, stream), "dtype": torch.float64}
    shape, dtype = (*call["batch"], size), DTYPES[call["dtype"]]
    scale = call["scale"]
    if what == "positive":
        t = 0.1 + torch.rand(*shape, **options)
    elif what == "mass":  # sums to 1
        t = 0.1 + torch.rand(*shape, **options)
        t = t / t.sum(-1, keepdim=True) if size else t
    elif what == "signed":
        t = torch.randn(*shape, **options)
    elif what == "channels":
        t = torch.randn(*shape, call["channels"], **options)
    elif what == "logs":
        t = 3 * torch.randn(*shape, **options)
        if size > 2 and call["seed"] % 4 == 0:
            t[..., 1] = -math.inf
    elif what == "score":
        t = torch.randn(*shape, call["d"], **options) / scale
    elif what == "velocity":
        t = torch.randn(*shape, call["d"], **options) * scale
    elif what == "points":
        t = (torch.randn(*shape, call["d"], **options) / math.sqrt(call["d"]) - 0.2) * scale
        t = t + 1e4 * scale if call["place"] == "shifted" else t
    elif what == "potential":
        t = torch.randn(*shape, **options) * call["options"]["epsilon"]
    elif kind.startswith(("matrix", "vector")):  # of a layer, or of points
        sizes = [int(size) for size in kind.split()[1:]]
        t = torch.randn(*sizes, **options) / math.sqrt(sizes[-1])
    elif kind == "planes":
        t = torch.linalg.qr(torch.randn(call["projections"], call["d"], 2, **options))[0].mT
    elif kind == "directions":
        t = torch.nn.functional.normalize(torch.randn(call["projections"], call["d"], **options), dim=-1)
    else:
        raise KeyError(kind)
    return t.to(dtype)


def is_extreme(call: Call) -> bool:
    """Whether lengths are such that a call may be refused: squares of float32 end at 1e19, and at 1e-19."""
    numbers = [call["scale"]]
    for value in call["options"].values():
        flat = value if isinstance(value, list) else [value]
        if flat and isinstance(flat[0], list):
            flat = list(itertools.chain.from_iterable(flat))
        numbers += [abs(v) for v in flat if isinstance(v, float) and v]
    numbers.append(1e4 * call["scale"] if call["place"] in ("shifted", "outlier", "outlier_y") else call["scale"])
    far = max(abs(math.log10(v)) for v in numbers)
    return far > 9 or call["place"].startswith("inf")
