"""Points and what goes with them brought to one dtype and one batch shape, by PyTorch's rules of both.

A dimension that is 1 or missing is the same for all. Where the sources are the same for problems that differ in their
targets alone, these become rows of one problem and nothing is copied; else sets are expanded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from gwf_fast.pairs.validation import check_companion, check_device, check_floating, check_points

Shape = tuple[int, ...]


class Companion(NamedTuple):
    """Numbers that go with the sources: [*B, M], and [*B, M, C] where ``channels`` ("all" or "some") says so."""

    name: str
    value: Tensor | None
    channels: str = "none"


def goes_into(shape: Sequence[int], batch: Sequence[int]) -> bool:
    """Whether a batch shape can be expanded to another."""
    extra = len(batch) - len(shape)
    return extra >= 0 and all(a in (1, b) for a, b in zip(shape, batch[extra:], strict=True))


def aligned(
    call: Callable[..., Any],
    x: Tensor,
    y: Tensor,
    companions: Sequence[Companion],
    batch: Sequence[int] = (),
    **lengths: Tensor | None,
) -> Any:
    """``call(x, y, *values, **lengths)`` with arguments of one dtype and batch shape, and results of that shape.

    Args:
        call: Takes them, and gives tensors [*B, N, ...], or a named tuple of such.
        x: Targets [*B, N, D].
        y: Sources [*B, M, D].
        companions: What else it takes.
        batch: Problems that something else tells apart.
        **lengths: Sizes of ragged sets [*B], by name.

    Raises:
        ValueError, TypeError: If they do not go together.
    """
    check_points("x", x)
    check_points("y", y)
    present = [(each.name, each.value) for each in companions if each.value is not None]
    for name, value in (("y", y), *present):
        check_floating(name, value)
        check_device(name, value, x)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"y must have the dimension of x, D = {x.shape[-1]}, got shape {list(y.shape)}")
    wide = functools.reduce(torch.promote_types, (value.dtype for _, value in present), _common(x, y))
    same = x is y  # it stays so: reductions use it
    x, y = x.to(wide), y.to(wide)
    companions = [each if each.value is None else each._replace(value=each.value.to(wide)) for each in companions]

    whole = together(x.shape[:-2], y.shape[:-2])
    if whole is None:
        _refuse("y", f"shape {list(y.shape)}", x.shape[:-2])
    shapes = [_batch_of(each, y, whole) for each in companions]
    of_kernel = whole = functools.reduce(_joined, shapes, whole)
    whole = together(whole, batch)
    if whole is None:
        _refuse("kernel", f"bandwidths for problems {list(batch)}", of_kernel)
    x, y = _expandable(x, x.shape[:-2], whole), _expandable(y, y.shape[:-2], whole)
    values = [
        None if each.value is None else _expandable(each.value, shape, whole)
        for each, shape in zip(companions, shapes, strict=True)
    ]
    given = {name: t.expand(whole) if _fits(t, whole) else t for name, t in lengths.items() if t is not None}
    if same or given or batch:
        x = _expanded(x, whole)
        return call(x, x if same else _expanded(y, whole), *_all_expanded(values, whole), **given)
    return _by_rows(call, x, y, values, whole)


def _by_rows(call: Callable[..., Any], x: Tensor, y: Tensor, values: list[Tensor | None], whole: Shape) -> Any:
    """Problems that differ in their targets alone are rows of one."""
    fixed = [t for t in (y, *values) if t is not None]
    folded = [d for d in range(len(whole)) if x.shape[d] != 1 and all(t.shape[d] == 1 for t in fixed)]
    kept = [d for d in range(len(whole)) if d not in folded]
    rows = [x.shape[d] for d in (*folded, len(whole))]
    if folded:
        x = x.permute(*kept, *folded, -2, -1).reshape(*(x.shape[d] for d in kept), math.prod(rows), x.shape[-1])
        y, values = y.squeeze(tuple(folded)), [None if t is None else t.squeeze(tuple(folded)) for t in values]
    batch = [whole[d] for d in kept]
    out = call(_expanded(x, batch), _expanded(y, batch), *_all_expanded(values, batch))
    if not folded:
        return out
    back = functools.partial(_unfolded, kept=kept, folded=folded, rows=rows)
    return back(out) if isinstance(out, Tensor) else type(out)(*map(back, out))


def _unfolded(out: Tensor, kept: list[int], folded: list[int], rows: list[int]) -> Tensor:
    """[*kept, prod(folded) N, ...] -> [*B, N, ...]."""
    out = out.unflatten(len(kept), rows)
    order = [*kept, *folded]
    rest = range(len(order), out.ndim)
    return out.permute(*(order.index(d) for d in range(len(order))), *rest)


def _common(x: Tensor, y: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, y.dtype)


def _batch_of(companion: Companion, y: Tensor, whole: Shape) -> Shape:
    """Its batch shape; with channels it has as many dimensions as points, and all of the batch's."""
    value = companion.value
    if value is None:
        return ()
    some = companion.channels == "some" and value.ndim == len(whole) + 2
    at = value.ndim - 1 - (companion.channels == "all" or some)
    fits = 0 <= at <= len(whole) or (at > len(whole) and companion.channels != "some")
    if fits and value.shape[at] == y.shape[-2] and together(value.shape[:at], whole) is not None:
        return tuple(value.shape[:at])
    sources = y.expand(*whole, *y.shape[-2:])
    if companion.channels == "all" and value.ndim != sources.ndim:
        expected = f"values must have shape [*B, M, C] to go with y {list(y.shape)}"
        raise ValueError(f"{expected}, got {list(value.shape)}")
    check_companion(companion.name, value, sources, channels=companion.channels != "none")
    raise AssertionError("unreachable: what fits was returned")


def together(a: Sequence[int], b: Sequence[int]) -> Shape | None:
    """The batch shape that two broadcast to; None where they do not."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    extra = len(longer) - len(shorter)
    pairs = list(zip(longer[extra:], shorter, strict=True))
    if any(one != other and 1 not in (one, other) for one, other in pairs):
        return None
    return (*longer[:extra], *(other if one == 1 else one for one, other in pairs))


def _joined(a: Shape, b: Shape) -> Shape:
    found = together(a, b)
    assert found is not None, "each was compared with the points"
    return found


def _refuse(name: str, got: str, batch: Sequence[int]) -> NoReturn:
    raise ValueError(
        f"{name} must have the batch dimensions of x, {list(batch)}, or such that broadcast with them, got {got}"
    )


def _fits(lengths: Any, whole: Shape) -> bool:
    return isinstance(lengths, Tensor) and goes_into(lengths.shape, whole)


def _expandable(value: Tensor, shape: Sequence[int], whole: Shape) -> Tensor:
    """With a dimension of size 1 for each of the batch that it does not have."""
    missing = len(whole) - len(shape)
    return value[(None,) * missing] if missing else value


def _expanded(value: Tensor, batch: Sequence[int]) -> Tensor:
    return value.expand(*batch, *value.shape[len(batch) :])


def _all_expanded(values: Sequence[Tensor | None], batch: Sequence[int]) -> list[Tensor | None]:
    return [None if t is None else _expanded(t, batch) for t in values]
