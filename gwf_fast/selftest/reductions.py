"""Cases of the pairwise functions for ``gwf-fast selftest``: every backend against the float64 reference.

One list of cases drives every backend, the tests included. A case calls functions of a backend, as dispatch hands them
out or of a module, and the same ones of the reference on the same inputs in float64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gwf_fast.kernels.reference import pairs as reference
from gwf_fast.kernels.table.profile_numbers import profile_id
from gwf_fast.kernels.table.profiles import PROFILES
from gwf_fast.ops import dispatch

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
"""Relative error in the 2-norm; half precisions are allowed the rounding of their results."""

DIMENSIONS = (1, 2, 3, 5, 16, 17, 64, 130)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        operation: A key of OPERATIONS below.
        profiles: The terms of the kernel.
        sizes: (B, N, M, D).
        dtype: Type of the inputs.
        shift: Added to every coordinate: far clouds.
        coincident: Whether some sources are targets too.
        exclude_self: Whether to drop j = i.
        ragged: Whether to give lengths.
    """

    operation: str
    profiles: tuple[str, ...] = ("gaussian",)
    sizes: tuple[int, int, int, int] = (1, 63, 500, 2)
    dtype: torch.dtype = torch.float32
    shift: float = 0.0
    coincident: bool = False
    exclude_self: bool = False
    ragged: bool = False

    def __str__(self) -> str:
        """A name for tables and test identifiers."""
        marks = [name for name in ("coincident", "exclude_self", "ragged") if getattr(self, name)]
        marks += ["far"] if self.shift else []
        size = "x".join(map(str, self.sizes))
        return "-".join([self.operation, "+".join(self.profiles), size, str(self.dtype).split(".")[1], *marks])

    @property
    def served_as(self) -> str:
        """The operation of the table that it takes."""
        return SERVED_AS.get(self.operation, self.operation)

    @property
    def width(self) -> int:
        """Coordinates."""
        return self.sizes[3]

    @property
    def tolerance(self) -> float:
        """The largest error."""
        return TOLERANCE[self.dtype]

    def measure(self, backend: str, device: str) -> float:
        """The error of a backend."""
        return error(self, _Functions(backend), device)

    @property
    def spec(self) -> tuple[float, ...]:
        """The kernel: bandwidths around the typical distance."""
        numbers: list[float] = []
        for k, name in enumerate(self.profiles):
            profile = PROFILES[name]
            bandwidth = math.sqrt(self.sizes[3]) * (0.8 + 0.7 * k) if profile.scaled else 1.0
            numbers += [profile_id(name), 0.7 + 0.5 * k, bandwidth, profile.test_parameter or 0.0]
        return tuple(numbers)

    def inputs(self, device: str) -> dict[str, Any]:
        """Tensors by name, the same numbers on every device."""
        batch, n, m, dim = self.sizes
        generator = torch.Generator().manual_seed(20 * dim + n)

        def normal(*shape: int) -> Tensor:
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            return value.to(device=device, dtype=self.dtype)

        x, y = normal(batch, n, dim) + self.shift, normal(batch, m, dim) + self.shift
        if self.coincident:
            shared = min(n, m) // 2
            y[:, :shared] = x[:, :shared]
        channels = CHANNELS.get(self.operation, 1)
        values = {"x": x, "y": y, "a": normal(batch, n, channels), "b": normal(batch, m, channels)}
        values |= {"beta": normal(batch, m), "alpha": normal(batch, n)}
        tangents = [
            (normal(batch, n, dim), normal(batch, m, dim), normal(batch, n, channels), normal(batch, m, channels)),
            (normal(batch, n, dim), None, normal(batch, n, channels), None),
        ]
        options: dict[str, Any] = {"exclude_self": self.exclude_self}
        if self.ragged:
            options["x_lengths"] = torch.tensor([n - 5, *[n] * (batch - 1)], device=device)
            options["y_lengths"] = torch.tensor([0, *[m // 2 + 1] * (batch - 1)], device=device)
        return values | {"tangents": tangents, "options": options, "spec": self.spec}


class _Functions:
    """A backend's functions as calls get them from dispatch, derivatives that are another's included."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("pair_"):
            return dispatch.function(self._backend, name)
        found = dispatch.optional(self._backend, name)
        if found is None:
            raise AttributeError(name)
        return found


def _ones(k: Any, v: dict[str, Any]) -> Tensor:
    """A sum with unit weights; without channels where the backend does without them (``Backend.unbatched``)."""
    out = k.pair_sum(v["x"], v["y"], None, v["spec"], **v["options"])
    return out[..., None] if out.ndim == 2 else out


def _interaction(k: Any, v: dict[str, Any]) -> tuple[Tensor, ...]:
    """Velocity among the particles and from others, energy, and a step, where a backend has them in one launch."""
    x, y, spec = v["x"], v["y"], v["spec"]
    if hasattr(k, "interaction_velocity"):
        moved = k.forward_step(x, 0.25, y, spec)
        return (
            k.interaction_velocity(x, None, spec),
            k.interaction_velocity(x, y, spec),
            moved,
            k.interaction_energy(x, spec),
        )
    among, others = (-k.pair_gradient(x, of, None, spec) / of.shape[1] for of in (x, y))
    energy = k.pair_sum(x, x, None, spec).flatten(1).mean(1) / (2 * x.shape[1])
    return among, others, x + 0.25 * others, energy


def _jet(order: int, shifted: bool = True) -> Callable[[ModuleType, dict[str, Any]], Any]:
    def call(backend: ModuleType, v: dict[str, Any]) -> Any:
        scales = (v["alpha"], v["beta"]) if shifted else (None, None)
        tangents = v["tangents"][:order]
        return backend.pair_jet(v["x"], v["y"], v["a"], v["b"], *scales, tangents, v["spec"], **v["options"])

    return call


def _mmd(backend: ModuleType, v: dict[str, Any], gradient: bool) -> Any:
    """The rows of the squared MMD; of the reference, from its sums."""
    x, y, spec, exclude_self = v["x"], v["y"], v["spec"], v["options"]["exclude_self"]
    a, b, scales = v["a"][..., 0], v["b"][..., 0], x.new_tensor([[1.25, 1.5]]).expand(x.shape[0], 2)
    if backend is not reference:
        rows = backend.mmd_rows(x, y, a, b, scales, spec, exclude_self=exclude_self, gradient=gradient)
        return rows if gradient else rows[:4]
    xx, slope_xx = reference.pair_sum_gradient(x, x, a, spec, exclude_self=exclude_self)
    yy, slope_yy = reference.pair_sum_gradient(y, y, b, spec, exclude_self=exclude_self)
    (xy, slope_xy), (yx, slope_yx) = (reference.pair_sum_gradient(*of, spec) for of in ((x, y, b), (y, x, a)))
    slopes = (scales[:, :1, None] * slope_xx - slope_xy, scales[:, 1:, None] * slope_yy - slope_yx)
    return (xx, xy, yy, yx, *(slopes if gradient else ()))


OPERATIONS: dict[str, Callable[[ModuleType, dict[str, Any]], Any]] = {
    "sum": lambda k, v: k.pair_sum(v["x"], v["y"], v["b"], v["spec"], **v["options"]),
    "sum_ones": _ones,
    "sum_20": lambda k, v: k.pair_sum(v["x"], v["y"], v["b"], v["spec"], **v["options"]),
    "gradient": lambda k, v: k.pair_gradient(v["x"], v["y"], v["b"][..., 0], v["spec"], **v["options"]),
    "sum_gradient": lambda k, v: k.pair_sum_gradient(v["x"], v["y"], v["b"][..., 0], v["spec"], **v["options"]),
    "logsumexp": lambda k, v: k.pair_logsumexp(v["x"], v["y"], v["beta"], v["spec"], **v["options"]),
    "average": lambda k, v: k.pair_average(v["x"], v["y"], None, None, v["spec"], **v["options"]),
    "average_20": lambda k, v: k.pair_average(v["x"], v["y"], v["b"], v["beta"], v["spec"], **v["options"]),
    "interaction": _interaction,
    "mmd": lambda k, v: _mmd(k, v, gradient=True),
    "mmd_values": lambda k, v: _mmd(k, v, gradient=False),
    "jet0": _jet(0),
    "jet1": _jet(1),
    "jet2": _jet(2),
    "jet2_plain": _jet(2, shifted=False),
}
"""Functions of (backend module, inputs)."""

SERVED_AS = {
    "sum_ones": "sum", "sum_20": "sum", "average_20": "average", "mmd_values": "mmd",
    "jet0": "jet", "jet1": "jet", "jet2": "jet", "jet2_plain": "jet",
}  # fmt: skip
"""The operations of the table, where the names differ."""

CHANNELS = {"sum": 3, "sum_20": 20, "average_20": 20, "jet0": 2, "jet1": 2, "jet2": 2, "jet2_plain": 2}

NEEDS_LOGARITHM = ("logsumexp", "average", "average_20", "jet0", "jet1", "jet2")
"""Operations that take the logarithm of the kernel, and so need positive profiles."""


def cases(half: bool = False) -> Iterator[Case]:
    """The case list; `half` adds bfloat16 and float16."""
    for operation in OPERATIONS:
        for dim in DIMENSIONS:
            yield Case(operation, sizes=(1, 63, 500, dim) if dim <= 3 else (1, 33, 70, dim))
        for name, profile in PROFILES.items():
            if profile.positive or operation not in NEEDS_LOGARITHM:
                for dim in (3, 17):
                    yield Case(operation, (name,), (1, 33, 40, dim), torch.float64, coincident=True)
        several = ("gaussian", "laplace", "rational_quadratic")
        yield Case(operation, several, (2, 33, 70, 2), torch.float64, exclude_self=True, ragged=True)
        yield Case(operation, several, (2, 33, 70, 6), torch.float64, exclude_self=True, ragged=True)
        for dim in (2, 17):
            yield Case(operation, ("laplace",), (1, 33, 70, dim), shift=1e3, coincident=True)
            yield Case(operation, ("gaussian", "imq"), (1, 1, 1, dim))
    if half:
        for dtype in (torch.bfloat16, torch.float16):
            for operation in ("sum", "sum_gradient", "logsumexp", "average", "jet1"):
                yield Case(operation, sizes=(1, 63, 200, 3), dtype=dtype)
                yield Case(operation, sizes=(1, 63, 200, 17), dtype=dtype)


def error(case: Case, backend: Any, device: str) -> float:
    """The largest relative error, in the 2-norm, of the results of a case; inf for a wrong shape, type or infinity."""
    inputs = case.inputs(device)  # the backend: a module, or what has its functions
    results = _as_tuple(OPERATIONS[case.operation](backend, inputs))
    truths = _as_tuple(OPERATIONS[case.operation](reference, _double(inputs)))
    worst = 0.0
    for index, (result, truth) in enumerate(zip(results, truths, strict=True)):
        if result.shape != truth.shape or result.dtype != case.dtype:
            return math.inf
        # an average over no sources is undefined: backends may return anything
        defined = truth.isfinite() if case.operation.startswith("average") else torch.ones_like(truth, dtype=torch.bool)
        infinite = truth.isinf() & defined
        if not torch.equal(result[infinite].double(), truth[infinite]):
            return math.inf
        finite = defined & ~infinite
        difference = (result.double()[finite] - truth[finite]).norm()
        scale = truth[finite].norm()
        if index == len(truths) - 1 and case.operation.startswith(("average", "logsumexp")):
            scale = math.hypot(scale, math.sqrt(finite.sum()))  # a logarithm: an error of 1 is 100 % of the sum
        relative = float(difference / scale) if scale > 0 else float(difference)
        worst = max(worst, relative if math.isfinite(relative) else math.inf)
    return worst


def _as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _double(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor | list | tuple) for item in value):
        return type(value)(_double(item) for item in value)
    return value
