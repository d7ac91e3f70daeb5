"""Sets whose particles lie in shards on several processes: a backend that asks another for each block of pairs.

A formula stands once, for one process and for many. What it takes of a whole set, how many points there are, a sum over
them, a decision by their values, it asks for here; of any other backend that is the set's own. Two rules make
derivatives those of the whole, equal on all processes where values are:

* a sum over shards (``total``) is the same on all, and so is what comes back to it: every shard takes that as it is;
* a value that is the same on all and goes into rows of a shard (``spread``) gets back the sum of what they send.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor


class Sharded(str):
    """The name of a backend that serves sets in shards; ``gwf_fast.distributed.ring`` has the one there is."""

    def resolved(self, *kind: Any) -> Sharded:
        """The same, with the backend decided that each process asks."""
        raise NotImplementedError

    def function(self, name: str) -> Callable[..., Any]:
        """A function of the backend: of this shard's rows, and the columns of all shards."""
        raise NotImplementedError

    def place(self, rows: int) -> tuple[int, int]:
        """Where this shard's rows begin among those of all, and how many these are."""
        raise NotImplementedError

    def total(self, values: Tensor) -> Tensor:
        """The sum over shards, the same on all."""
        raise NotImplementedError

    def spread(self, value: Tensor) -> Tensor:
        """A value that is the same on all, for use in rows."""
        raise NotImplementedError

    def agreed(self, flag: bool) -> bool:
        """Whether it holds on any."""
        raise NotImplementedError

    def gathered(self, rows: Tensor) -> Tensor:  # [*B, n, D] -> [*B, sum n, D]
        """A few constant rows of each shard, together."""
        raise NotImplementedError


def count_of(points: Tensor, backend: str | None) -> int:  # [*B, N, D]
    """How many points a set has."""
    n = points.shape[-2]
    return backend.place(n)[1] if isinstance(backend, Sharded) else n


def total_of(values: Tensor, backend: str | None) -> Tensor:
    """What was summed over a set's own rows."""
    return backend.total(values) if isinstance(backend, Sharded) else values


def mean_of(values: Tensor, count: int, backend: str | None) -> Tensor:  # [*B, N] -> [*B]
    """The mean over a set of ``count`` points."""
    return backend.total(values.sum(-1)) / count if isinstance(backend, Sharded) else values.mean(-1)


def spread(value: Any, backend: str | None) -> Any:
    """What is the same for all rows, tensor or not, where it goes into them."""
    return backend.spread(value) if isinstance(backend, Sharded) and isinstance(value, Tensor) else value


def agreed(flag: bool, backend: str | None) -> bool:
    """A decision by values of a set, which must be one for all shards."""
    return backend.agreed(flag) if isinstance(backend, Sharded) else flag


def drawn_rows(draw: Callable[[tuple[int, ...]], Tensor], x: Tensor, backend: str | None) -> Tensor:
    """Random numbers of the shape of x [*B, N, D]; of shards those of the whole, by generators that agree."""
    if not isinstance(backend, Sharded):
        return draw(tuple(x.shape))
    first, count = backend.place(x.shape[-2])
    return draw((*x.shape[:-2], count, x.shape[-1])).narrow(-2, first, x.shape[-2])


# ------------------------------------------------------------------------------------------------ ordinary calls


def are_shards(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is one of shards: it has a group, or DTensors."""
    if "group" in kwargs:
        return True
    module = sys.modules.get("torch.distributed.tensor")  # what is not imported has made no tensor
    return module is not None and any(isinstance(t, module.DTensor) for t in (*args, *kwargs.values()))


def of_shards(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call of the same name that takes shards, imported on first use.

    Raises:
        TypeError: There is none.
    """
    name, room = function.__name__, "gwf_fast.distributed"
    if function.__module__.startswith("gwf_fast.drift."):
        room += ".drift"
    counterpart = getattr(importlib.import_module(room), name, None)
    if counterpart is None:
        given = "group=" if "group" in kwargs else "DTensor arguments"
        raise TypeError(f"{name} takes no particles in shards, got {given}: gather them first")
    if "group" in kwargs:
        return counterpart(*args, **kwargs)
    return importlib.import_module("gwf_fast.distributed.dtensors").call(counterpart, args, kwargs)
