"""From JAX to PyTorch and back: a function of tensors as one of arrays, and its derivatives as such functions too.

A derivative is the vector-Jacobian product that autograd has, as a function of the arrays and the vectors. It crosses
like the function itself, and so has a derivative in turn.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
import torch
from jax import numpy as jnp
from torch import Tensor

from gwf_fast.pairs.validation import check_companion, check_pair

Shape = tuple[int, ...]
F = TypeVar("F", bound=Callable[..., Any])

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
    "int64": torch.int64,
}


def on_arrays(function: F, *, shape: Callable[..., Shape], without: tuple[str, ...] = ()) -> F:
    """A function of tensors as one of JAX arrays.

    Args:
        function: Gives one tensor; its arguments are tensors, and what is no array to JAX.
        shape: That of the result, given those of the arrays by name.
        without: Arguments that it does not take here.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name in without:
            if given.get(name):
                raise TypeError(f"{name} must not be given here: results are single arrays, got {given[name]!r}")
        arrays = {name: jnp.asarray(value) for name, value in given.items() if _is_array(value)}
        options = {name: value for name, value in given.items() if name not in arrays}
        traced = any(isinstance(value, jax.core.Tracer) for value in arrays.values())
        if traced:
            _check(arrays)
        dimensions = {name: tuple(value.shape) for name, value in arrays.items()}
        problem = _Crossing(function, tuple(arrays), options, None, shape(**dimensions) if traced else ())
        (out,) = _apply(problem, *arrays.values())
        return out

    return call  # type: ignore[return-value]


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray)) and np.ndim(value) > 0


def _check(arrays: dict[str, Any]) -> None:
    """What can be said before the values are there: a message from within a callback is hard to read.

    Raises:
        ValueError, TypeError: If arrays do not fit each other.
    """
    blank = {name: _blank(name, value) for name, value in arrays.items()}
    if not {"x", "y"} <= blank.keys():
        return  # which the signature asks for: they are no arrays, and told so
    check_pair(blank["x"], blank["y"])
    if "negatives" in blank:
        check_pair(blank["x"], blank["negatives"], "negatives")
    for name, value in blank.items():
        side = "x" if name.startswith("x_") else "negatives" if name.startswith("negatives_") else "y"
        if name.endswith("weights"):
            check_companion(name, value, blank[side], channels=name == "weights", y_name=side)
        elif name == "values":
            check_companion(name, value, blank["y"], channels=True)


def _blank(name: str, value: Any) -> Tensor:
    """A tensor of the shape and type of an array, of one number's memory."""
    if value.dtype.name not in _DTYPES:
        raise TypeError(f"{name} must have a floating dtype (float32, float64, float16, bfloat16), got {value.dtype}")
    return torch.zeros((), dtype=_DTYPES[value.dtype.name]).expand(tuple(value.shape))


@dataclass(frozen=True, eq=False)
class _Crossing:
    """What is called on the other side.

    Attributes:
        function: Of tensors by name.
        names: Of the arrays, in their order.
        options: The other arguments.
        inner: What this is the derivative of: its arrays come first, and then the vectors. None for the function.
        shape: Of the function's result; only under transformations.
    """

    function: Callable[..., Tensor]
    names: tuple[str, ...]
    options: dict[str, Any]
    inner: _Crossing | None
    shape: Shape

    def derivative(self) -> _Crossing:
        return _Crossing(self.function, self.names, self.options, self, self.shape)

    def results(self, arrays: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        """Shapes and types of what comes back."""
        if self.inner is None:
            return [jax.ShapeDtypeStruct(self.shape, arrays[0].dtype)]
        return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.inner.differentiated(arrays)]

    def count(self) -> int:
        """Arrays that it takes."""
        inner = self.inner
        return len(self.names) if inner is None else inner.count() + inner.n_results()

    def n_results(self) -> int:
        """Results: of a derivative one for each floating array of what it is of. Lengths are integers."""
        if self.inner is None:
            return 1
        return self.inner.count() - sum(name.endswith("lengths") for name in self.names)

    def differentiated(self, values: Sequence[Any]) -> list[Any]:
        """Those of its arrays in which there is a derivative."""
        taken = values[: self.count()]
        return [v for k, v in enumerate(taken) if k >= len(self.names) or not self.names[k].endswith("lengths")]

    def __call__(self, tensors: list[Tensor], graph: bool = False) -> tuple[Tensor, ...]:
        """The results; with a graph to what requires grad, where one is wanted."""
        if self.inner is None:
            return (self.function(**dict(zip(self.names, tensors)), **self.options),)
        count = self.inner.count()
        with torch.enable_grad():
            inputs = [t if t.requires_grad or not t.is_floating_point() else t.detach() for t in tensors[:count]]
            leaves = self.inner.differentiated(inputs)
            for leaf in leaves:
                leaf.requires_grad_()
            outputs = self.inner(inputs, graph=True)
            return torch.autograd.grad(
                outputs, leaves, tensors[count:], create_graph=graph, allow_unused=True, materialize_grads=True
            )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(crossing: _Crossing, *arrays: Any) -> tuple[Any, ...]:
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        # each of a batch is a problem of its own, and leading dimensions are batches on the other side too
        return tuple(
            jax.pure_callback(
                functools.partial(_called_back, crossing),
                crossing.results(arrays),
                *arrays,
                vmap_method="broadcast_all",
            )
        )
    return tuple(jnp.from_dlpack(t.contiguous()) for t in _run(crossing, arrays))


def _forward(crossing: _Crossing, *arrays: Any) -> tuple[Any, Any]:
    return _apply(crossing, *arrays), arrays


def _backward(crossing: _Crossing, arrays: tuple[Any, ...], vectors: tuple[Any, ...]) -> tuple[Any, ...]:
    found = _apply(crossing.derivative(), *arrays, *vectors)
    slopes = dict(zip(crossing.differentiated(range(len(arrays))), found))
    return tuple(slopes.get(k) for k in range(len(arrays)))


_apply.defvjp(_forward, _backward)


def _run(crossing: _Crossing, arrays: Sequence[Any]) -> list[Tensor]:
    tensors = [torch.from_dlpack(array) for array in arrays]
    tensors = [t if t.is_floating_point() else t.long() for t in tensors]  # JAX has int32 by default
    return [t.detach() for t in crossing(tensors)]


def _called_back(crossing: _Crossing, *arrays: Any) -> list[np.ndarray]:
    """On the host, in a thread of the runtime, in which nothing is asked of JAX: it might wait for this very thread."""
    return [_as_numpy(t, like.dtype) for t, like in zip(_run(crossing, arrays), crossing.results(arrays))]


def _as_numpy(t: Tensor, dtype: np.dtype) -> np.ndarray:
    """Also of numbers that NumPy knows by name only, as bfloat16."""
    flat = t.contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().view(dtype).reshape(tuple(t.shape))
