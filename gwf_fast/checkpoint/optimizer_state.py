"""An optimiser's state as named tensors, which is what a checkpoint without pickle holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and counters under INDEX.SLOT; empty before the first step."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{slot}": tensor for index, slots in state.items() for slot, tensor in slots.items()}


def require_moments(slots: Mapping[int, Mapping[str, Any]], parameters: Sequence[Tensor]) -> None:
    """Raise ValueError where a moment has not the shape and type of the parameter that it goes with."""
    for index, moments in slots.items():
        if not 0 <= index < len(parameters):
            raise ValueError(f"moments of parameter {index}, of which there are {len(parameters)}")
        like = parameters[index]
        for name, value in moments.items():
            number = isinstance(value, Tensor) and value.ndim == 0  # a counter
            if not number and not (
                isinstance(value, Tensor) and value.shape == like.shape and value.dtype == like.dtype
            ):
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{index}.{name} must be {like.dtype} {list(like.shape)}, got {got}")


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave; rates and the like are the optimiser's own.

    Raises:
        ValueError: If it does not fit the optimiser's parameters.
    """
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, slot = key.split(".", 1)
        slots.setdefault(int(index), {})[slot] = tensor
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):  # who knows what another one keeps
        require_moments(slots, [parameter for group in optimizer.param_groups for parameter in group["params"]])
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
