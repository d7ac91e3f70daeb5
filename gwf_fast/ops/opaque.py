"""Computations that torch.compile takes as one node: what they decide on the way needs the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gwf_fast.ops.registry import _LIBRARY


class Opaque:
    """A function of tensors that has no derivative, such as an iteration until a tolerance is met.

    Args:
        schema: Name, arguments and results as torch.library writes them.
        run: The implementation, on real tensors; its results share no memory with each other or the arguments.
        fake: Shapes of the results, on fake tensors.
    """

    def __init__(self, schema: str, *, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        name = schema[: schema.index("(")]
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"gwf_fast::{name}", fake, lib=_LIBRARY)
        self._op = getattr(torch.ops.gwf_fast, name).default

    def __call__(self, *args: Any) -> Any:
        """Run as the node that it is in a graph."""
        return self._op(*args)
