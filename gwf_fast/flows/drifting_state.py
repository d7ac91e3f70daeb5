"""What training along a drift changes, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gwf_fast.checkpoint.optimizer_state import optimizer_tensors
from gwf_fast.drift.learned import is_stateful
from gwf_fast.ops.ambient import entry
from gwf_fast.randomness.seeded import own_generator

Drift = Callable[[Tensor, Tensor], Any]
"""(x [N, D], y [M, D]) -> velocity [N, D], or a ``MultiDrift``."""


@dataclass(frozen=True)
class DriftingRecord:
    """What the updates since the last record did.

    Attributes:
        step: Updates done.
        drift: Mean of |V|^2 over samples and over these updates, before any normalisation of V: what falls as the
            generator comes to rest. The value of a normalised loss says nothing.
        value: What ``evaluate`` returned, None where there is none.
        seconds: Training time so far, without evaluations and checkpoints.
    """

    step: int
    drift: float
    value: float | None
    seconds: float


@dataclass
class DriftingState:
    """Everything that training changes.

    Attributes:
        step: Updates done.
        generator: G.
        optimizer: Adam for it.
        drift: The drift; one that learns is part of the state.
        average: Moving average of the parameters of G, or None.
        history: The records.
        seconds: Training time so far.
        pending: |V|^2 of each update since the last record.
    """

    step: int
    generator: nn.Module
    optimizer: torch.optim.Optimizer
    drift: Drift
    average: nn.Module | None = None
    history: list[DriftingRecord] = field(default_factory=list)
    seconds: float = 0.0
    pending: list[float] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """All of it that is tensors, or what modules have in its place, by name."""
        parts = {"generator": self.generator.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        if is_stateful(self.drift):
            parts["drift"] = self.drift.state_dict()  # type: ignore[attr-defined]
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class DriftingResult:
    """A trained generator.

    Attributes:
        generator: G: latent noise [N, L] -> samples [N, D], the moving average where there is one; in evaluation mode.
        history: One ``DriftingRecord`` every ``record_every`` updates.
        latent_dim: L.
        step: Updates done.
    """

    generator: nn.Module
    history: tuple[DriftingRecord, ...]
    latent_dim: int
    step: int

    @entry
    def sample(self, n: int) -> Tensor:
        """n new samples [n, D], their noise from torch's global generator."""
        parameter = next(self.generator.parameters())
        options: dict[str, Any] = {"dtype": parameter.dtype, "device": parameter.device}
        z = torch.randn(n, self.latent_dim, generator=own_generator(parameter.device), **options)
        with torch.no_grad():
            return self.generator(z)
