"""One operator: its torch.library registration, and a short path for eager calls.

``torch.library`` makes an operator known to torch.compile, functorch and opcheck, at some 10 us a call from
Python. Ordinary eager calls need none of that: they go to an ``autograd.Function`` with the same formulas, or
straight to the backend where no gradient is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._validation import is_concrete

_LIBRARY = torch.library.Library("gwf_fast", "DEF")


class Operator:
    """A batched operator; all its tensor arguments and results have one leading batch dimension.

    Args:
        schema: Name, arguments and results as torch.library writes them; optional tensors and the tensors first.
        run: The implementation, on real tensors.
        fake: Shapes of the results, on fake tensors.
        setup_context: Saves what backward needs, as ``torch.autograd.Function.setup_context``.
        backward: The vector-Jacobian product, written with operators so that it is differentiable itself.
    """

    def __init__(
        self,
        schema: str,
        *,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        setup_context: Callable[..., None],
        backward: Callable[..., Any],
    ) -> None:
        name = schema[: schema.index("(")]
        qualified = f"gwf_fast::{name}"
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for device in ("CPU", "CUDA"):
            _LIBRARY.impl(name, run, device)
        torch.library.register_fake(qualified, fake, lib=_LIBRARY)
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIBRARY)
        torch.library.register_vmap(qualified, self._vmap, lib=_LIBRARY)
        self.library_op = getattr(torch.ops.gwf_fast, name).default
        self.run = run
        self.function = _function(name, run, setup_context, backward)
        # Differentiable tensors come first in every schema; only they are looked at for requires_grad.
        arguments = self.library_op._schema.arguments
        kinds = [str(argument.type) in ("Tensor", "Optional[Tensor]") for argument in arguments]
        self.n_tensors = kinds.index(False)

    def __call__(self, *args: Any) -> Any:
        tensors = args[: self.n_tensors]
        if not is_concrete(*tensors):
            return self.library_op(*args)
        if torch.is_grad_enabled():
            for tensor in tensors:
                if tensor is not None and tensor.requires_grad:
                    return self.function.apply(*args)
        return self.run(*args)

    def _vmap(self, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Fold the mapped dimension into the batch dimension that every tensor has."""
        size = info.batch_size
        folded = [_fold(arg, dim, size) if isinstance(arg, Tensor) else arg for arg, dim in zip(args, in_dims)]
        out = self.library_op(*folded)
        if isinstance(out, Tensor):
            return out.unflatten(0, (size, -1)), 0
        return tuple(value.unflatten(0, (size, -1)) for value in out), (0,) * len(out)


def _fold(value: Tensor, dim: int | None, size: int) -> Tensor:  # [.., V at dim, ..] -> [V * B, ...]
    value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return value.flatten(0, 1)


def _function(name: str, run: Callable, setup_context: Callable, backward: Callable) -> type[torch.autograd.Function]:
    def forward(ctx: Any, *args: Any) -> Any:
        # Not the separate setup_context of torch.autograd.Function: binding its signature costs 10 us a call.
        out = run(*args)
        setup_context(ctx, args, out)
        return out

    return type(name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})
