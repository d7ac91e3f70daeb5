"""An ordinary function made one of shards: the same formula, with a ring for its backend."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gwf_fast.distributed.peers import Peers
from gwf_fast.distributed.ring import Ring
from gwf_fast.ops.modes import is_eager

WHOLE = ("bandwidth", "directions")
"""Arguments that may be tensors, and are the same on all processes."""
POINTS = ("x", "y", "sources", "negatives", "score", "values")
"""Tensors [*B, N, D]."""
_ABSENT = ("x_lengths", "y_lengths", "negatives_lengths", "out", "clip", "sliced")
"""Arguments that a function of shards does not have."""

_DOC = """

    Of shards: tensors are this process's rows, of which there may be any number, and so is a result of rows; what is
    not of rows, a bandwidth or a discrepancy, is the same on all processes. All of the group make the call, with the
    same options, and all of them differentiate, or none. Gradients are those of the whole in this process's rows; of a
    loss that is made of rows, they are those of the sum of all processes' losses.

    Further arguments:
        group: A group of torch.distributed; None for all processes.

    Further errors:
        ValueError: There is no group, or processes do not make the same call.
        PeerError: Another process failed.
"""


def of_shards(function: Callable[..., Any], *, rows: bool = True) -> Callable[..., Any]:
    """The function of shards that stands beside one of whole sets, which takes its backend as ``backend``.

    Args:
        function: Of whole sets.
        rows: Whether results are of rows, those of x; else they are the same on all processes.
    """
    signature = inspect.signature(function)
    name = function.__name__

    @functools.wraps(function)
    def call(*args: Any, group: dist.ProcessGroup | None = None, **kwargs: Any) -> Any:
        peers = Peers(group)
        with peers.together(name):
            for absent in _ABSENT:
                if kwargs.get(absent) is not None:
                    raise ValueError(f"{absent} must be None with shards, got a {type(kwargs[absent]).__name__}")
            if not is_eager():
                raise NotImplementedError(f"{name} of shards runs eagerly: not in torch.compile, torch.func or fakes")
            ring = Ring(peers, kwargs.pop("backend", None))
            bound = signature.bind(*args, **kwargs)
            peers.exchange(_described(name, bound.arguments))
            return function(*bound.args, **bound.kwargs, backend=ring)

    parameters = [p for p in signature.parameters.values() if p.name not in (*_ABSENT, "backend")]
    added = inspect.Parameter("group", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="ProcessGroup | None")
    backend = signature.parameters["backend"]
    call.__signature__ = signature.replace(parameters=[*parameters, added, backend])  # type: ignore[attr-defined]
    call.__doc__ = (function.__doc__ or "").rstrip() + _DOC
    call.__module__ = __name__
    call.gives_rows = rows  # type: ignore[attr-defined]
    return call


def _described(name: str, arguments: dict[str, Any]) -> str:
    """A call as all processes make it: what its arguments are but for rows and values."""
    rank = max((t.ndim for key, t in arguments.items() if isinstance(t, Tensor) and key not in WHOLE), default=0)
    shown = (f"{key}={_shown(key, value, rank)}" for key, value in arguments.items())
    return f"{name}({', '.join(shown)}){', with gradients' * torch.is_grad_enabled()}"


def _shown(name: str, value: Any, rank: int) -> str:
    if not isinstance(value, Tensor):
        return "..." if isinstance(value, torch.Generator) else repr(value)
    shape: list[Any] = list(value.shape)
    if name not in WHOLE and shape:
        points = name in POINTS or value.ndim == rank  # numbers of rows may have channels, and then as many dimensions
        shape[-2 if points and value.ndim > 1 else -1] = "rows"
    grad = " that requires grad" if value.requires_grad else ""
    return f"{value.dtype} [{', '.join(map(str, shape))}] on {value.device.type}{grad}"
