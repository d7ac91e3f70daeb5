"""The nearest sources of each target in plain PyTorch, chunked over rows, on any device and in any floating type.

Squares are formed in float64, whatever the points are: those of short and of long distances leave float32, and then
nothing tells which is less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gwf_fast.kernels.reference.pairs import CHUNK


def nearest(
    x: Tensor,  # [B?, N, D]
    y: Tensor,  # [B?, M, D]
    count: int,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared distances, ascending, and indices of the ``count`` nearest sources, [B?, N, count].

    Of equal distances the lowest index comes first, and NaN before every number. Rows that do not exist read 0 and -1,
    sources that do not exist infinity and -1.
    """
    u, v = x.double(), y.double()
    n, (m, dim) = u.shape[-2], v.shape[-2:]
    step = max(1, CHUNK.get(x.device.type, CHUNK["cuda"]) // max(1, u.shape[:-2].numel() * m * dim))
    columns = torch.arange(m, device=x.device)
    parts = []
    for start in range(0, max(n, 1), step):
        rows = torch.arange(start, min(start + step, n), device=x.device)
        squares = (u[..., start : start + step, None, :] - v[..., None, :, :]).square().sum(-1)  # [B?, n, M]
        absent = (rows[:, None] == columns) & exclude_self
        if y_lengths is not None:
            absent = absent | (columns >= y_lengths[..., None])[..., None, :]
        key = torch.where(squares.isnan(), -1.0, squares)
        key = torch.where(absent, torch.nan, key)  # what sorts last
        key, order = key.sort(dim=-1, stable=True)
        key, order = key[..., :count], order[..., :count]
        found = torch.where(key < 0, torch.nan, torch.where(key.isnan(), torch.inf, key))
        order = torch.where(key.isnan(), -1, order)
        if x_lengths is not None:
            beyond = (rows >= x_lengths[..., None])[..., None]
            found, order = torch.where(beyond, 0.0, found), torch.where(beyond, -1, order)
        parts.append((found.to(x.dtype), order))
    squares, indices = (torch.cat(each, -2) for each in zip(*parts, strict=True))
    return squares, indices
