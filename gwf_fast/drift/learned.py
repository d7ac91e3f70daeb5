"""A drift whose critic learns as the particles move: WGAN, MonoFlow and VGrow as drifts like the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gwf_fast.checkpoint.optimizer_state import optimizer_tensors, restore_optimizer
from gwf_fast.drift._checks import check_sets
from gwf_fast.drift.critics import TRANSFORMS, Transform, critic
from gwf_fast.nn import MLP
from gwf_fast.nn.descent import descend
from gwf_fast.ops.ambient import entry
from gwf_fast.pairs.validation import as_integer, as_number, as_positive
from gwf_fast.randomness.seeded import own_generator

_WIDTH = 128


class LearnedCritic:
    """``drift(x, y)``: takes a few steps of Adam with the critic on x and y, then returns its drift at x.

    The critic of "wgan" maximises E_y phi - E_x phi - penalty E (|grad phi| - 1)^2, the penalty on random segments
    between x and y (Gulrajani et al. 2017); that of any other transform is a logistic classifier, at its best
    d = log p/q.

    Args:
        dim: D.
        transform: As in :func:`gwf_fast.drift.critic`.
        network: [N, D] -> [N, 1], trained in place; None for an MLP with three hidden layers of 128.
        steps: Of Adam, a call.
        lr: Its learning rate.
        betas: Its decay rates.
        penalty: lambda of "wgan".
        shift: C of "minimax".

    Raises:
        ValueError, TypeError: If the transform is unknown, or a number out of range.
    """

    @entry(differentiates=True)
    def __init__(
        self,
        dim: int,
        transform: Transform = "wgan",
        *,
        network: nn.Module | None = None,
        steps: int = 5,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.9),
        penalty: float = 10.0,
        shift: float = 0.0,
    ) -> None:
        if transform not in TRANSFORMS:
            raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}")
        self.transform = transform
        self.network = MLP([dim, *[_WIDTH] * 3, 1], "silu") if network is None else network
        self.steps = as_integer("steps", steps)
        self.penalty = as_positive("penalty", penalty)
        self.shift = as_number("shift", shift)
        rate = as_positive("lr", lr)
        self._optimizer = torch.optim.Adam(
            self.network.parameters(), lr=rate, betas=(float(betas[0]), float(betas[1])), fused=True
        )

    @entry(differentiates=True)
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on x [N, D] against y [M, D]; the drift at x, [N, D]."""
        check_sets(x, y, exclude_self=False)
        x, y = x.detach(), y.detach()
        self.network.to(x)
        objective = self._wgan if self.transform == "wgan" else self._logistic
        with torch.enable_grad():
            parameters = [p for p in self.network.parameters() if p.requires_grad]
            for _ in range(self.steps):
                descend(self._optimizer, objective(x, y), parameters)
        return critic(x, self.network, transform=self.transform, shift=self.shift)

    def state_dict(self) -> dict[str, Tensor]:
        """Network and optimiser, as tensors by name."""
        network = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        return network | {f"optimizer.{name}": t for name, t in optimizer_tensors(self._optimizer).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state_dict`` gave."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}}
        for name, tensor in state.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["network"])
        restore_optimizer(self._optimizer, parts["optimizer"])

    def _logistic(self, x: Tensor, y: Tensor) -> Tensor:
        d = self.network(torch.cat((x, y))).view(-1)
        return softplus(d[: len(x)]).mean() + softplus(-d[len(x) :]).mean()

    def _wgan(self, x: Tensor, y: Tensor) -> Tensor:
        phi = self.network(torch.cat((x, y))).view(-1)
        n = min(len(x), len(y))
        between = torch.lerp(
            y[:n], x[:n], torch.rand(n, 1, dtype=x.dtype, device=x.device, generator=own_generator(x.device))
        )
        slope = self._gradient(between).norm(dim=1)
        return phi[: len(x)].mean() - phi[len(x) :].mean() + self.penalty * (slope - 1).square().mean()

    def _gradient(self, at: Tensor) -> Tensor:
        """Gradient of the critic, differentiable in its parameters; compiled where the network offers it."""
        at.requires_grad_()
        if isinstance(self.network, MLP):
            return self.network.value_and_grad(at)[1]
        (gradient,) = torch.autograd.grad(self.network(at).sum(), at, create_graph=True)
        return gradient


def is_stateful(drift: object) -> bool:
    """Whether a drift learns, and so has something that a checkpoint must hold."""
    return hasattr(drift, "state_dict") and hasattr(drift, "load_state_dict")
