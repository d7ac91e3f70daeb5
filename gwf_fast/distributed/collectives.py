"""The two collectives that are differentiated, each the other's derivative."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from gwf_fast.distributed.peers import Peers


class Total(Function):
    """The sum over processes. What comes back to it is the same on all, and goes to each."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, peers: Peers) -> Tensor:
        """All-reduce."""
        ctx.peers = peers
        return peers.summed(mine)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        """To each."""
        return Spread.apply(u, ctx.peers), None


class Spread(Function):
    """A value that is the same on all processes, for use in the rows of each. What comes back is summed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, peers: Peers) -> Tensor:
        """Itself."""
        ctx.peers = peers
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        """From each."""
        return Total.apply(u, ctx.peers), None
