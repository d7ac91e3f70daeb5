"""What training along a drift changes, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gwf_fast.checkpoint.optimizer_state import optimizer_tensors
from gwf_fast.drift.learned import is_stateful
from gwf_fast.functionals.evaluation import Target
from gwf_fast.ops.ambient import entry
from gwf_fast.randomness.seeded import own_generator

if TYPE_CHECKING:
    from gwf_fast.flows.drifting import DriftingModel

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


@dataclass(repr=False)
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

    def __repr__(self) -> str:
        return f"DriftingState({self.step} updates, {type(self.generator).__name__})"

    def values(self) -> dict[str, Any]:
        """All of it that is tensors, or what modules have in its place, by name."""
        parts = {"generator": self.generator.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        if is_stateful(self.drift):
            parts["drift"] = self.drift.state_dict()  # type: ignore[attr-defined]
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


@dataclass(frozen=True, repr=False)
class DriftingResult:
    """A trained generator.

    Attributes:
        generator: G: latent noise [N, L] -> samples [N, D], the moving average where there is one; in evaluation mode.
        history: One ``DriftingRecord`` every ``record_every`` updates.
        latent_dim: L.
        step: Updates done.
        state: The last state; ``model.run(..., state=)`` may go on from it.
        model: What was trained, and how.
        target: What ``run`` was given.
    """

    generator: nn.Module
    history: tuple[DriftingRecord, ...]
    latent_dim: int
    step: int
    state: DriftingState
    model: DriftingModel
    target: Target

    def __repr__(self) -> str:
        last = f", |V|^2 {self.history[-1].drift:.4g}" if self.history else ""
        return f"DriftingResult({self.step} updates, {type(self.generator).__name__}{last})"

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint, which ``gwf.load`` reads, and ``DriftingModel.resume`` goes on from.

        Args:
            folder: Is made; one that holds another run is refused.
        """
        self.model.save(self.state, folder, self.target)

    @entry
    def sample(self, n: int) -> Tensor:
        """n new samples [n, D], their noise from torch's global generator."""
        return sampled(self.generator, self.latent_dim, n)


def sampled(generator: nn.Module, latent_dim: int, n: int) -> Tensor:
    """n new samples [n, D] of a generator; their noise is that of the block, or torch's global one."""
    parameter = next(generator.parameters())
    options: dict[str, Any] = {"dtype": parameter.dtype, "device": parameter.device}
    z = torch.randn(n, latent_dim, generator=own_generator(parameter.device), **options)
    with torch.no_grad():
        return generator(z)
