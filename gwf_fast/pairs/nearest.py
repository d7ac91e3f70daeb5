"""The nearest sources of each target: what is least over the pairs, and where. Never stores N x M values."""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor

from gwf_fast import ops
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.alignment import aligned
from gwf_fast.pairs.arguments import agree, check_sizes, is_readable_on_host
from gwf_fast.pairs.batches import flat, fold, unfold
from gwf_fast.pairs.validation import as_integer, check_pair


class Nearest(NamedTuple):
    """Of each target the k nearest sources, the nearest first.

    Attributes:
        squared_distances: |x_i - y_j|^2, [*B, N, k], ascending.
        indices: j, int64 [*B, N, k].
    """

    squared_distances: Tensor
    indices: Tensor


@entry
@widens
def kernel_min(
    x: Tensor,
    y: Tensor,
    *,
    k: int = 1,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Nearest:
    """The k nearest sources of each target by Euclidean distance, by looking at every pair.

    Of equal distances the lower index comes first. Distances of floats are formed from differences in float64: two that
    agree to float32's rounding may come in either order, and have the right values.

    A NaN distance comes before every number, as in ``torch.min``: a NaN target has nothing else, and a NaN source is
    among the nearest of all targets, whose results say so. (An infinite source is infinitely far.)

    Args:
        x: Targets [*B, N, D].
        y: Sources [*B, M, D]. A batch dimension that one set lacks, or has once, is the same for all problems.
        k: How many, from 1 to M; to M - 1 with ``exclude_self``.
        exclude_self: Drop j = i; x and y are then the same set (N = M).
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0, and -1 for an index.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M; sources beyond do not exist.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        ``squared_distances`` [*B, N, k], ascending, and ``indices`` [*B, N, k], int64. Distances are differentiable in
        x and y to any order: the neighbours are held fixed, which is exact wherever no two sources tie.

    Raises:
        ValueError, TypeError: If an argument does not fit the others, if there are fewer than k sources, or if the
            backend can't serve.
    """
    k = as_integer("k", k)
    if not agree(x, y, (), exclude_self=exclude_self):
        again = functools.partial(kernel_min, k=k, exclude_self=exclude_self, backend=backend)
        found: Nearest = aligned(again, x, y, (), x_lengths=x_lengths, y_lengths=y_lengths)
        return found
    check_pair(x, y)
    check_sizes(x, y, x_lengths, y_lengths)
    _check_count(k, y.shape[-2] - exclude_self, f"sources of y {list(y.shape)}", exclude_self)
    if y_lengths is not None and is_readable_on_host(y_lengths) and y_lengths.numel():
        _check_count(k, int(y_lengths.min()) - exclude_self, f"sources of y_lengths {y_lengths.tolist()}", exclude_self)
    name = ops.resolve(backend, x.device, x.dtype, False, "nearest", x.shape[-1])
    squares, indices = ops.pair_nearest(fold(x), fold(y), flat(x_lengths), flat(y_lengths), k, exclude_self, name)
    return Nearest(unfold(squares, x), unfold(indices, x))


def _check_count(k: int, available: int, what: str, exclude_self: bool) -> None:
    if k > available:
        others = f" but itself (exclude_self={exclude_self})" if exclude_self else ""
        raise ValueError(f"k must be at most the number of {what}{others}, {max(available, 0)}, got {k}")
