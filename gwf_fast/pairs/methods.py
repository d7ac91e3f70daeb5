"""``method=`` of sums over pairs: "exact", or an object that carries its own options; and sums by those methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from gwf_fast.checkpoint.portable import portable
from gwf_fast.errors import called, former, warn_former
from gwf_fast.ops.arrays import has_array, with_tensors
from gwf_fast.ops.report import ORDER, arguments, by_table, explain, explained_by, first_tensor, header, others
from gwf_fast.ops.sharding import Sharded
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.fast import Directions, FastOptions, choose, fast_reduction
from gwf_fast.pairs.fast.directions import DEFAULT_SAMPLING, Sampling, check_sampling, checked_directions
from gwf_fast.pairs.fast.entry import refusal, sliced_refusal
from gwf_fast.pairs.kernels import Gaussian, Kernel
from gwf_fast.pairs.passes import scaled_passes
from gwf_fast.pairs.ragged import members
from gwf_fast.pairs.validation import as_integer, as_number

FEWEST_PROJECTIONS = 64
"""Directions of a sliced sum that says nothing of them, unless 4 D are more."""


@portable
@dataclass(frozen=True)
class NUFFT:
    """Sums by non-uniform fast Fourier transforms, for D <= 3, at a cost of about O(N + M).

    They are done directly where a grid that resolves the kernel would have more points than there are pairs, or where
    terms cancel too much and pairs are few. Their derivatives are such sums too, to any order for kernels that are
    smooth at x = y, up to second derivatives of the kernel for the others. Last digits may change from run to run with
    several threads. Even powers of the distance, and in one dimension r itself, need no transform and are summed to
    rounding. A CPU or, for kernels that are smooth at x = y, an NVIDIA GPU.

    Args:
        tolerance: The error relative to the result, both in the 2-norm, not counting what rounding does in any method.
            From 1e-6 (float32) or 1e-12 (float64) to 0.1. Checked against direct summation of 64 rows;
            ``gwf.AccuracyError`` where it is not reached.
    """

    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        _check_tolerance(self)

    def _options(self, x: Tensor) -> FastOptions:
        return FastOptions("nufft", self.tolerance)


@portable
@dataclass(frozen=True)
class Auto:
    """The exact sum or :class:`NUFFT`, whichever a cost model expects to be faster; exact where a backend is asked for.

    Args:
        tolerance: Of the transforms, where they are chosen.
    """

    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        _check_tolerance(self)

    def _options(self, x: Tensor) -> FastOptions:
        return FastOptions("auto", self.tolerance)


@portable
@dataclass(frozen=True, eq=False)
class Sliced:
    """Sums over P directions of sums over pairs of numbers: a Monte Carlo estimate for any D, in O(P (N + M)).

    For powers r^e with 0 < e < 2 or e = 2, 3, ..., 7, log r, Gaussian, Laplace, IMQ, rational quadratic and Matern
    kernels, and mixtures of these (Hertrich, Fast kernel summation in high dimensions via slicing and Fourier
    transforms, 2024). In one dimension there is one direction, and the sums are those of :class:`NUFFT`. A CPU.

    Along a line whole powers are summed by moments, others and log r by sweeps of 85 exponentials over the order of the
    points, of error 2e-10, smooth kernels by Fourier series. ``gwf.with_error`` estimates the error of the mean. It is
    infinite where the terms have no variance, as the forces of r^e for e <= 1/2, which settle no faster than P^-e. The
    forces of log r along lines have no mean: they are refused.

    Args:
        n_projections: P; None for 64, or 4 D where that is more, which a sharp estimate of the error takes.
        sampling: Of the directions: "orthogonal", "normal" or "quasi", as in ``sliced_wasserstein2``.
        directions: [P, D] of unit length, instead of drawn ones.
        generator: Source of the directions; None means torch's global one.
    """

    n_projections: int | None = None
    sampling: Sampling = DEFAULT_SAMPLING
    directions: Tensor | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.n_projections is not None:
            object.__setattr__(self, "n_projections", as_integer("n_projections", self.n_projections))
        check_sampling(self.sampling, self.directions, self.generator)

    def fitted(self, change: Callable[[Any], Any]) -> Sliced:
        """The same with its tensor changed: for modes of PyTorch in which functions see others than were given."""
        return replace(self, directions=change(self.directions))

    def _options(self, x: Tensor) -> FastOptions:
        dim, count = x.shape[-1], self.n_projections
        if count is None and self.directions is None:
            count = max(FEWEST_PROJECTIONS, 4 * dim)
        theta = checked_directions(x, count, self.generator, self.sampling, self.directions, unit=True)
        if theta.requires_grad:
            raise ValueError("directions must not require grad: of a sum over pairs only points and weights do")
        drawn = self.directions is None and self.sampling == "orthogonal"
        return FastOptions("sliced", directions=Directions(theta, dim if drawn else 1))


@dataclass(frozen=True, eq=False)
class _Estimated:
    """What :func:`with_error` passes on: a method, and where the error of its sum is written."""

    method: Sliced
    errors: list[Tensor] = field(default_factory=list)

    def fitted(self, change: Callable[[Any], Any]) -> _Estimated:
        """As :meth:`Sliced.fitted`; errors go where they went."""
        return replace(self, method=self.method.fitted(change))

    def _options(self, x: Tensor) -> FastOptions:
        return self.method._options(x)


def _check_tolerance(method: NUFFT | Auto) -> None:
    tolerance = as_number("tolerance", method.tolerance, "a number in 0..0.1", above=0, most=0.1)
    object.__setattr__(method, "tolerance", tolerance)


_Options = NUFFT | Sliced | Auto | _Estimated

Method = Literal["exact", "nufft", "sliced", "auto"] | NUFFT | Sliced | Auto
"""What ``method=`` takes; "nufft", "sliced" and "auto" stand for the defaults of the three."""

_NAMED: dict[str, type[NUFFT] | type[Sliced] | type[Auto]] = {"nufft": NUFFT, "sliced": Sliced, "auto": Auto}


def as_method(method: Any, backend: BackendName | None = None) -> _Options | None:
    """The object that a method stands for; None for the exact one.

    Raises:
        ValueError: There is no such method, or it does not take the backend.
        TypeError: It is nothing of the kind.
    """
    found: _Options | None
    if isinstance(method, (NUFFT, Sliced, Auto, _Estimated)):
        found = method
    elif not isinstance(method, str):
        got = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
        raise TypeError(f"method must be a name or one of gwf.NUFFT, gwf.Sliced and gwf.Auto, got {got}")
    elif method != "exact" and method not in _NAMED:
        raise ValueError(f"method must be one of exact, {', '.join(_NAMED)}, or an object with options, got {method!r}")
    else:
        found = None if method == "exact" else _NAMED[method]()
    if backend is None or found is None:
        return found
    if isinstance(backend, Sharded):
        if not isinstance(found, NUFFT):
            raise ValueError(f'method must be "exact" or "nufft" with shards, got {method!r}')
        return found
    if not isinstance(found, Auto):
        name = type(found.method if isinstance(found, _Estimated) else found).__name__
        raise ValueError(
            f"backend must be None with method=gwf.{name}(...), which has no choice of one, got {backend!r}"
        )
    return None  # what backends differ in is the exact sum


def fast_sum(
    order: int,
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    kernel: Kernel,
    method: _Options,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    backend: str | None = None,
) -> Tensor | None:
    """The sum (order 0) or its gradient; None where the exact method is to do it.

    Raises:
        ValueError, TypeError: If the method can't serve.
    """
    options = method._options(x)._replace(backend=backend)
    # What lies beyond the lengths may be anything, and must not be looked at: a box is fitted to the points.
    same = y is x and y_lengths is x_lengths
    x = members(x, x_lengths)
    y = x if same else members(y, y_lengths)
    channels = weights is not None and weights.ndim == y.ndim
    carried = weights if weights is None or channels else weights.unsqueeze(-1)  # [*B, M, C]
    count = 1 if carried is None else carried.shape[-1]
    if choose(options, x, y, kernel.terms, kernel.spec, order, count) == "exact":
        return None
    passes = scaled_passes(x, y, kernel, y_lengths, backend)
    out, error = fast_reduction(order, passes, carried, options, exclude_self, x_lengths, y_lengths)
    if isinstance(method, _Estimated):
        method.errors.append(error)
    return out if order or channels else out.squeeze(-1)


# ------------------------------------------------------------------------------------- errors, and former spellings

_WITH_ERROR = ("kernel_sum", "kernel_gradient", "interaction_velocity")


@explained_by(lambda fn, args, kwargs: _explain_estimate(fn, args, kwargs))
def with_error(
    fn: Callable[..., Tensor], *args: Any, method: Literal["sliced"] | Sliced = "sliced", **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """``fn(*args, method=method, **kwargs)`` with an estimate of its error.

    Args:
        fn: ``kernel_sum``, ``kernel_gradient`` or ``interaction_velocity``.
        *args: Its arguments.
        method: "sliced", or ``gwf.Sliced`` with options.
        **kwargs: Its keyword arguments.

    Returns:
        The result, and the standard error as the directions' spread shows it, relative to the result, both in the
        2-norm, [*B] in float64.

    Raises:
        TypeError: ``fn`` is not one of these.
        ValueError: The method has no error but its tolerance, or as ``fn``.
    """
    name = getattr(fn, "__name__", repr(fn))
    if not str(getattr(fn, "__module__", "")).startswith("gwf_fast.") or name not in _WITH_ERROR:
        raise TypeError(f"fn must be one of {', '.join(_WITH_ERROR)}, got {name}")
    if has_array((*args, method, *kwargs.values())):
        crossed: tuple[Tensor, Tensor] = with_tensors(
            fn, functools.partial(with_error, fn), args, kwargs | {"method": method}
        )
        return crossed
    found = as_method(method)
    if not isinstance(found, Sliced):
        raise ValueError(f"method must be gwf.Sliced(...), whose sums are estimates, got {method!r}")
    estimated = _Estimated(found)
    out = fn(*args, method=estimated, **kwargs)
    return out, estimated.errors[0]


def _explain(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """By which method the sums of a call would be done and, where they are exact, by whom."""
    given = arguments(fn, args, kwargs)
    method, name = as_method(given.get("method", "exact"), given.get("backend")), fn.__name__
    if method is None:
        return by_table(fn, given)
    x = first_tensor(name, given)
    y = given.get("y", given.get("sources"))
    y = x if y is None else y
    u, v = members(x, given.get("x_lengths")), members(y, given.get("y_lengths"))
    kernel = given["kernel"] if "kernel" in given else Gaussian(given["bandwidth"])
    weights = given.get("weights")
    channels = weights.shape[-1] if weights is not None and weights.ndim == x.ndim else 1
    options = FastOptions("sliced") if isinstance(method, (Sliced, _Estimated)) else method._options(x)
    order = int("gradient" in name or "velocity" in name or "step" in name)
    chosen = choose(options, u, v, kernel.terms, kernel.spec, order, channels)
    transforms, slices = refusal(u, v, kernel.terms, kernel.spec), sliced_refusal(u, v, kernel.terms, order)
    if chosen == "exact":
        priced = "the cost model, which expects no transform to be faster" if x.is_cpu else "the cost model knows CPUs"
        why = f"auto: {priced if transforms is None else f'nufft {transforms}'}"
        return [header(name, x, chosen, False, why), *(line for line in by_table(fn, given))]
    why = "auto: by the cost model" if isinstance(method, Auto) else ORDER
    line = header(name, x, chosen, not isinstance(method, Auto), why)
    return [line, *others(chosen, {"exact": None, "nufft": transforms, "sliced": slices}, _SUMMARIES)]


_SUMMARIES = {
    "exact": "sums over all pairs by a backend",
    "nufft": "transforms that keep a tolerance",
    "sliced": "estimates by random directions",
}


def _explain_estimate(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    estimated, *rest = args
    return explain(estimated, *rest, **{"method": "sliced"} | kwargs).split("\n")


_BELONGS = {"tolerance": "gwf.NUFFT or gwf.Auto"} | dict.fromkeys(
    ("n_projections", "sampling", "directions", "generator"), "gwf.Sliced"
)
"""Options that stood beside ``method=`` in version 0.1, and whose they are."""

P = ParamSpec("P")
T = TypeVar("T", bound=type)


def method_options(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorator of functions with ``method=``: options beside it go on working, and ``explain`` knows of methods."""
    return explained_by(_explain)(former(*_BELONGS, "return_error", call=_call_with_options)(function))


_STEPS = ("exact", "nufft", "auto")


def check_steps_method(method: Any) -> None:
    """Of a functional: no sums that are drawn, since explicit steps go on bit for bit from a checkpoint.

    Raises:
        ValueError: It is not one of these.
    """
    if not isinstance(method, (NUFFT, Auto)) and method not in _STEPS:
        raise ValueError(f"method must be one of {', '.join(_STEPS)}, gwf.NUFFT and gwf.Auto, got {method!r}")


def steps_tolerance(cls: T) -> T:
    """Class decorator of functionals with ``method=``: a ``tolerance=`` beside it goes on working, in files too."""
    cls.former_fields = staticmethod(_fields_with_tolerance)  # type: ignore[attr-defined]
    return former("tolerance", call=_call_with_tolerance)(cls)


def _fields_with_tolerance(found: dict[str, Any]) -> dict[str, Any]:
    """Fields of a functional, its tolerance in its method where that is a name that has one."""
    rest = {name: value for name, value in found.items() if name != "tolerance"}
    named = _NAMED.get(found["method"]) if isinstance(found.get("method"), str) else None
    if "tolerance" in found and named:
        rest["method"] = named(found["tolerance"])
    return rest


def _call_with_tolerance(init: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    rest = dict(kwargs)
    tolerance = rest.pop("tolerance")
    bound = inspect.signature(init).bind(*args, **rest)
    method = bound.arguments.get("method", "auto")
    new = _fields_with_tolerance({"method": method, "tolerance": tolerance})["method"]
    if not isinstance(new, (NUFFT, Auto)) or new is method:
        raise ValueError(f"tolerance goes with method={_BELONGS['tolerance']}(...), got method={method!r}")
    warn_former(called(init), ["tolerance"], f"method=gwf.{type(new).__name__}(tolerance=...)")
    bound.arguments["method"] = new
    return init(*bound.args, **bound.kwargs)


def _call_with_options(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    name, rest = function.__name__, dict(kwargs)
    method = rest.pop("method", "exact")
    named = [option for option in (*_BELONGS, "return_error") if option in rest]
    given = {option: rest.pop(option) for option in named}
    wants_error = given.pop("return_error", False)
    given = {option: value for option, value in given.items() if value is not None}
    found = as_method(method)
    for option in given:
        if found is None or option not in {each.name for each in fields(found)}:
            raise ValueError(f"{option} goes with method={_BELONGS[option]}(...), got method={method!r}")
    if wants_error and not isinstance(found, Sliced):
        raise ValueError(f"return_error=True goes with method=gwf.Sliced(...), got method={method!r}")
    if wants_error and name not in _WITH_ERROR:
        raise ValueError(f"return_error must be False: {name} has no error of its own, ask {', '.join(_WITH_ERROR)}")
    if given:
        assert found is not None
        found = replace(found, **given)
    spelled = ", ".join(f"{option}=..." for option in given)
    instead = [f"method=gwf.{type(found).__name__}({spelled})"] if found is not None else []
    instead += [f"gwf.with_error({name}, ...)"] if wants_error else []
    warn_former(name, named, " and ".join(instead) or "nothing: they say nothing")
    if wants_error:
        assert isinstance(found, Sliced)
        return with_error(function, *args, method=found, **rest)
    return function(*args, method=found or "exact", **rest)
