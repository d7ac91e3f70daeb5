"""The ring: sources go round the processes while each sums over those that it holds.

A process has the rows (targets) of its shard for good, and the columns (sources) of one shard after another. It sends
on what it holds and receives the next while compiled code works, in two buffers: memory is that of a few shards,
whatever the number of processes. Derivatives of reductions are reductions (``ops/jet.py``), and go round likewise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gwf_fast.distributed.collectives import Spread, Total
from gwf_fast.distributed.peers import Peers
from gwf_fast.ops import dispatch
from gwf_fast.ops.sharding import Sharded

Columns = Sequence[Tensor | None]
Parts = tuple[Tensor, ...]


class Ring(Sharded):
    """Pairwise functions of sets in shards, made of those of a backend on pairs of shards.

    Args:
        peers: The processes.
        inner: The backend that each asks; None picks.
    """

    peers: Peers
    inner: str | None

    def __new__(cls, peers: Peers, inner: str | None) -> Ring:
        """A name, with what it stands for."""
        made = super().__new__(cls, f"a ring of {peers.size}")
        made.peers, made.inner = peers, inner
        return made

    def resolved(self, *kind: Any) -> Ring:
        """With the backend that each process asks."""
        return Ring(self.peers, dispatch.resolve(self.inner, *kind))

    def function(self, name: str) -> Callable[..., Any]:
        """A pairwise function, round the ring."""
        assert self.inner is not None, "resolved comes first"
        return functools.partial(_REDUCTIONS[name], self, name, dispatch.function(self.inner, name))

    def place(self, rows: int) -> tuple[int, int]:
        """Where this process's rows begin, and how many there are of all."""
        counts = self.peers.exchange("counting", rows)
        return sum(counts[: self.peers.rank]), sum(counts)

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        self.peers.exchange(f"a sum of {list(values.shape)} {values.dtype}")
        total: Tensor = Total.apply(values, self.peers)
        return total

    def spread(self, value: Tensor) -> Tensor:
        """The same value, with the sum of what comes back."""
        spread: Tensor = Spread.apply(value, self.peers)
        return spread

    def agreed(self, flag: bool) -> bool:
        """Whether it holds on any process."""
        return any(self.peers.exchange("a decision", int(flag)))

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes."""
        counts = self.peers.exchange("a sample", rows.shape[-2])
        padded = rows.new_zeros((*rows.shape[:-2], max(counts), rows.shape[-1]))
        padded[..., : rows.shape[-2], :] = rows
        found = self.peers.gathered(padded)
        return torch.cat([part[..., :n, :] for part, n in zip(found, counts, strict=True)], -2)

    def stream(
        self, what: str, columns: Columns, evaluate: Callable[..., Parts], merge: Callable[[Parts, Parts], Parts]
    ) -> Parts:
        """Evaluate on the columns of each shard in turn, this one's first.

        Args:
            what: The function, in which all processes must agree.
            columns: What goes round, [*B?, M, ...] or [*B?, M]; the first has points.
            evaluate: ``evaluate(*columns, own)``, of a shard's columns, and whether they are this shard's.
            merge: What two shards make together.
        """
        peers, layout = self.peers, _Layout(columns)
        counts = peers.exchange(f"{what} of {layout}", layout.rows)
        if peers.size == 1:
            return evaluate(*columns, True)
        held = layout.packed(columns)
        buffers = [held.new_empty(max(counts) * layout.width) for _ in range(min(2, peers.size - 1))]
        result: Parts | None = None
        failure: Exception | None = None
        for step in range(peers.size):
            owner, last = (peers.rank - step) % peers.size, step + 1 == peers.size
            work = []
            if not last:
                coming = buffers[step % 2][: counts[owner - 1] * layout.width]
                work = peers.shift(held, coming)
            try:  # whatever happens to this process, the others' columns go on
                if failure is None and (counts[owner] or (last and result is None)):
                    block = columns if step == 0 else layout.unpacked(held, counts[owner])
                    part = evaluate(*block, step == 0)
                    result = part if result is None else merge(result, part)
            except Exception as error:
                failure = error
            peers.wait(work)
            held = coming
        peers.settle(what, failure)
        assert result is not None
        return result


class _Layout:
    """How columns lie in one buffer: one after the other, each [B?, M, C] in order."""

    def __init__(self, columns: Columns) -> None:
        points = columns[0]
        assert points is not None
        self.batch, self.rows = points.shape[:-2], points.shape[-2]
        self.channels = [None if t is None else () if t.ndim < points.ndim else t.shape[-1:] for t in columns]
        self.dtype = points.dtype
        sizes = (math.prod(c) for c in self.channels if c is not None)
        self.width = math.prod(self.batch) * sum(sizes)

    def __str__(self) -> str:
        channels = ", ".join("none" if c is None else str(list(c)) for c in self.channels)
        return f"{self.dtype} columns {channels} in {list(self.batch)} problems"

    def packed(self, columns: Columns) -> Tensor:
        """The buffer; of one tensor its own memory."""
        flat = [t.detach().reshape(-1) for t in columns if t is not None]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def unpacked(self, buffer: Tensor, rows: int) -> list[Tensor | None]:
        """The columns of a shard of so many rows, as views."""
        found: list[Tensor | None] = []
        at = 0
        for channels in self.channels:
            if channels is None:
                found.append(None)
                continue
            shape = (*self.batch, rows, *channels)
            size = math.prod(shape)
            found.append(buffer[at : at + size].view(shape))
            at += size
        return found


# ------------------------------------------------------------------------------------------------ reductions


def _add(one: Parts, other: Parts) -> Parts:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _add_logarithms(one: Parts, other: Parts) -> Parts:
    return (torch.logaddexp(one[0], other[0]),)


def _join_averages(one: Parts, other: Parts) -> Parts:
    """Means and log-sum-exps [B?, N, C], [B?, N]; a mean of no weight does not count, whatever it is."""
    share = torch.sigmoid(other[1] - one[1])[..., None]
    rest = torch.sigmoid(one[1] - other[1])[..., None]
    mean = torch.where(rest == 0, 0.0, rest * one[0]) + torch.where(share == 0, 0.0, share * other[0])
    return mean, torch.logaddexp(one[1], other[1])


def _plain_options(options: dict[str, Any]) -> bool:
    ragged = [name for name in ("x_lengths", "y_lengths") if options.get(name) is not None]
    assert not ragged, "shards have no lengths"
    return bool(options.get("exclude_self", False))


def _reduction(merge: Callable[[Parts, Parts], Parts]) -> Callable[..., Any]:
    """A function f(x, y, *others, spec, exclude_self=...) whose others go with y."""

    def reduce(ring: Ring, name: str, f: Callable[..., Any], x: Tensor, *rest: Any, **options: Any) -> Any:
        *columns, spec = rest
        exclude_self = _plain_options(options)
        single = True

        def evaluate(*block: Any) -> Parts:
            nonlocal single
            *columns, own = block
            out = f(x, *columns, spec, exclude_self=True) if exclude_self and own else f(x, *columns, spec)
            single = isinstance(out, Tensor)
            return (out,) if single else out

        found = ring.stream(_said(name, spec, exclude_self), columns, evaluate, merge)
        return found[0] if single else found

    return reduce


def _jet(
    ring: Ring,
    name: str,
    f: Callable[..., Any],
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    tangents: Sequence[tuple[Tensor | None, ...]],
    spec: Any,
    **options: Any,
) -> Parts:
    """``pair_jet``, of which each tangent (dx, dy, da, db) has two parts that stay and two that go round."""
    exclude_self = _plain_options(options)

    def evaluate(y: Tensor, b: Tensor, beta: Tensor | None, *rest: Any) -> Parts:
        *moved, own = rest
        along = [
            (dx, dy, da, db)
            for (dx, _, da, _), dy, db in zip(tangents, moved[::2], moved[1::2], strict=True)
        ]  # fmt: skip
        out: Parts = f(x, y, a, b, alpha, beta, along, spec, exclude_self=exclude_self and own)
        return out

    columns = [y, b, beta, *(part for _, dy, _, db in tangents for part in (dy, db))]
    return ring.stream(_said(name, spec, exclude_self), columns, evaluate, _add)


def _said(name: str, spec: Any, exclude_self: bool) -> str:
    return f"{name}({', '.join(f'{number:g}' for number in spec)}{', exclude_self' * exclude_self})"


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "pair_sum": _reduction(_add),
    "pair_gradient": _reduction(_add),
    "pair_sum_gradient": _reduction(_add),
    "pair_logsumexp": _reduction(_add_logarithms),
    "pair_average": _reduction(_join_averages),
    "pair_jet": _jet,
}
