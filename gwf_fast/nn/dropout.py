"""Dropout from counters: which units of which rows a pass drops depends on the pass alone, in every engine."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from typing_extensions import override

from gwf_fast.nn import MLP
from gwf_fast.randomness.draws import Draws

MAP_PASSES, ASCENTS, DESCENTS = 0x80000000, 0x90000000, 0xA0000000
"""Streams of the map's passes, and of the critic's in its own ascents and in the map's descents."""


class Thinned(nn.Module):
    """An MLP while it trains, with hidden units dropped (Srivastava et al. 2014); what is left grows to make up for it.

    Args:
        net: The network; its parameters are used.
        rate: At which units are dropped.
        draws: Decide which, with the number of the pass.
    """

    def __init__(self, net: MLP, rate: float, draws: Draws) -> None:
        super().__init__()
        self.net, self.rate, self._draws = net, rate, draws

    @classmethod
    def of(cls, module: nn.Module, rate: float, draws: Draws) -> nn.Module:
        """One network, or each of a list."""
        if isinstance(module, nn.ModuleList):
            return nn.ModuleList(cls(cast(MLP, net), rate, draws) for net in module)
        return cls(cast(MLP, module), rate, draws)

    def begin(self, passes: int, step: int) -> None:
        """Start a pass; rows that go through the network in one go or in several are counted on."""
        self._stream, self._row = passes | step << 8, 0

    @override
    def forward(self, x: Tensor) -> Tensor:
        modules: list[Any] = list(self.net)
        depth, layer, out = len(self.net.spec.functions), 0, x
        for module in modules:
            out = module(out)
            is_hidden = layer < depth and not isinstance(module, nn.Linear) and layer > 0
            layer += isinstance(module, nn.Linear)
            if is_hidden:
                out = out * self._mask(layer - 1, out)
        self._row += len(x)
        return x + out if self.net.spec.residual else out

    def _mask(self, layer: int, like: Tensor) -> Tensor:
        rows, width = like.shape
        kept = self._draws.kept(self._stream | layer, self._row * width, rows * width, self.rate, like)
        return kept.view(rows, width) / (1 - self.rate)


def begin_pass(module: nn.Module | None, passes: int, step: int) -> None:
    """Tell the networks of a module, where they are :class:`Thinned`, which pass comes next."""
    for part in module.children() if isinstance(module, nn.ModuleList) else (module,):
        if isinstance(part, Thinned):
            part.begin(passes, step)
