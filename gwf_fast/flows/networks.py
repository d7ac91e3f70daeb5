"""The networks of a flow: new ones from the user's templates, and the defaults."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from gwf_fast.nn import MLP
from gwf_fast.randomness.seeded import asked


def default_map(dim: int, inputs: int | None = None) -> MLP:
    """The network that a flow in D dimensions uses where none is given; residual where it has D inputs."""
    width, inputs = _default_width(dim), dim if inputs is None else inputs
    return MLP([inputs, *[width] * 4, dim], residual=inputs == dim)


def default_critic(dim: int) -> MLP:
    """The critic that a flow in D dimensions uses where none is given."""
    width = _default_width(dim)
    return MLP([dim, *[width] * 3, 1])


def _default_width(dim: int) -> int:
    return next((width for limit, width in ((2, 16), (8, 32), (32, 64)) if dim <= limit), 128)


def make_module(template: nn.Module | Callable[[], nn.Module], name: str) -> nn.Module:
    """A new module from a template, or from a callable that makes one.

    A template is copied with its weights; a plain ``MLP`` gives its configuration, and weights are drawn anew.

    Raises:
        TypeError: If that isn't a module; names the argument ``name``.
    """
    if type(template) is MLP and not template.is_changed():
        return asked(lambda: MLP(**template.config))  # new weights for each, drawn from the flow's own generator
    module = copy.deepcopy(template) if isinstance(template, nn.Module) else asked(template)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module or a callable that makes one, got {type(module).__name__}")
    return module
