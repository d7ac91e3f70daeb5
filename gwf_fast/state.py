"""What a flow carries from step to step, and what a run gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Source = Tensor | Callable[[int], Tensor]
"""P_0: samples [N, D], or a callable n -> [n, D]."""

_CHUNK = 1 << 16  # rows pushed at once: bounds the memory of the activations


@dataclass(frozen=True)
class StepRecord:
    """What one JKO step did.

    Attributes:
        step: k, from 1.
        loss: w2^2 / (2a) + value, the objective of the step.
        value: Estimate of F(P_k), up to the functional's constant.
        w2: sqrt(E |x - T x|^2), the distance moved; W2(P_k, P_{k-1}) where T is optimal.
        seconds: Wall time.
    """

    step: int
    loss: float
    value: float
    w2: float
    seconds: float


@dataclass(frozen=True)
class FlowState:
    """Everything a flow needs to go on.

    Attributes:
        step: JKO steps done.
        seed: Seed of the whole run; with ``step`` it is the state of the generator.
        particles: Samples of P_k, [N, D].
        maps: T_1, ..., T_k.
        critic: The critic after step k, or None.
        map_optimizer: ``state_dict`` of Adam for the last map; None before the first step.
        critic_optimizer: The same for the critic.
        history: One record a step.
    """

    step: int
    seed: int
    particles: Tensor
    maps: tuple[nn.Module, ...] = ()
    critic: nn.Module | None = None
    map_optimizer: dict[str, Any] | None = None
    critic_optimizer: dict[str, Any] | None = None
    history: tuple[StepRecord, ...] = ()


@dataclass(frozen=True)
class FlowResult:
    """The outcome of a run.

    Attributes:
        state: The last state; ``flow.run`` of a longer flow may go on from it.
        source: P_0 as it was given.
    """

    state: FlowState
    source: Source = field(repr=False)

    @property
    def particles(self) -> Tensor:
        """Samples of the last P_k, [N, D]."""
        return self.state.particles

    @property
    def history(self) -> tuple[StepRecord, ...]:
        """One record a JKO step."""
        return self.state.history

    @property
    def maps(self) -> tuple[nn.Module, ...]:
        """T_1, ..., T_k."""
        return self.state.maps

    def push(self, z: Tensor) -> Tensor:
        """Carry samples of P_0 [N, D] through all maps."""
        return push(self.maps, z)

    def trajectory(self, z: Tensor) -> Tensor:
        """The same samples after 0, 1, ..., k maps, [k + 1, N, D]."""
        rows = [z]
        for transport in self.maps:
            rows.append(push((transport,), rows[-1]))
        return torch.stack(rows)

    def sample(self, n: int) -> Tensor:
        """n new samples of the last P_k, [n, D]; P_0 must have been a callable.

        Raises:
            ValueError: If P_0 was given by samples: there are no new ones to draw.
        """
        if isinstance(self.source, Tensor):
            raise ValueError("sample: x0 was a tensor; give run() a callable n -> samples, or push() samples of P_0")
        return self.push(self.source(n))


def push(maps: tuple[nn.Module, ...], x: Tensor) -> Tensor:
    """Carry x [N, D] through the maps, in evaluation mode, chunk by chunk."""
    for transport in maps:
        transport.eval()
    out = torch.empty_like(x)
    with torch.no_grad():
        for rows, result in zip(x.split(_CHUNK), out.split(_CHUNK), strict=True):
            for transport in maps:
                rows = transport(rows)
            result.copy_(rows)
    return out
