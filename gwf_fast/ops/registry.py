"""One operator: its torch.library registration, and a short path for eager calls.

``torch.library`` makes an operator known to torch.compile and opcheck, at some 10 us a call from Python.
Ordinary eager calls need none of that: they go to an ``autograd.Function`` with the same formulas, or straight
to the backend where no gradient is wanted. Under torch.func transforms and forward-mode AD, to which
``torch.library.register_autograd`` does not reach, a second ``autograd.Function`` serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gwf_fast.ops.modes import PLAIN, check_forward_mode, is_eager, is_transformed

_LIBRARY = torch.library.Library("gwf_fast", "DEF")


def register_autocast(qualified: str) -> None:
    """Under autocast an operator takes and gives float32: sums over pairs cancel."""
    if hasattr(torch.library, "register_autocast"):  # torch >= 2.7
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(qualified, device, torch.float32, lib=_LIBRARY)


class Operator:
    """An operator whose tensors all have one leading batch dimension, or all have none.

    Args:
        schema: Name, arguments and results as torch.library writes them; optional tensors and the tensors first.
        run: The implementation, on real tensors.
        fake: Shapes of the results, on fake tensors.
        setup_context: Saves what backward needs, as ``torch.autograd.Function.setup_context``.
        backward: The vector-Jacobian product, written with operators so that it is differentiable itself.
        jvp: The Jacobian-vector product, likewise.
    """

    def __init__(
        self,
        schema: str,
        *,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        setup_context: Callable[..., None],
        backward: Callable[..., Any],
        jvp: Callable[..., Any],
    ) -> None:
        name = schema[: schema.index("(")]
        qualified = f"gwf_fast::{name}"
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for device in ("CPU", "CUDA"):
            _LIBRARY.impl(name, run, device)
        torch.library.register_fake(qualified, fake, lib=_LIBRARY)
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIBRARY)
        register_autocast(qualified)
        self.library_op = getattr(torch.ops.gwf_fast, name).default
        torch.library.register_vmap(qualified, _vmap_rule(self.library_op), lib=_LIBRARY)
        self.run = run
        self.function = _eager_function(name, run, setup_context, backward)
        self.transformed = _transformed_function(name, self, setup_context, backward, jvp)
        # Differentiable tensors come first in every schema; only they are looked at for requires_grad.
        arguments = self.library_op._schema.arguments
        kinds = [str(argument.type) in ("Tensor", "Optional[Tensor]") for argument in arguments]
        self.n_tensors = kinds.index(False)

    def __call__(self, *args: Any) -> Any:
        """Run on the arguments of the schema, by the shortest path that serves."""
        if not is_eager():
            return self._elsewhere(*args)
        needs_grad = False
        for tensor in args[: self.n_tensors]:
            if tensor is not None:
                if type(tensor) not in PLAIN:
                    return self._elsewhere(*args)
                needs_grad |= tensor.requires_grad
        return self.function.apply(*args) if needs_grad and torch.is_grad_enabled() else self.run(*args)

    def _elsewhere(self, *args: Any) -> Any:
        if not is_transformed():
            return self.library_op(*args)
        check_forward_mode()
        return self.transformed.apply(*args)


def _vmap_rule(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The mapped dimension becomes the batch dimension, or is folded into the one that is there."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        size = info.batch_size
        has_batch = args[0].ndim - (in_dims[0] is not None) == 3  # the first argument of every operator is x

        def fold(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            return value.flatten(0, 1) if has_batch else value

        out = operator(*map(fold, args, in_dims))
        if isinstance(out, Tensor):
            return out.unflatten(0, (size, -1)) if has_batch else out, 0
        return tuple(value.unflatten(0, (size, -1)) if has_batch else value for value in out), (0,) * len(out)

    return rule


def _eager_function(name: str, run: Callable, setup_context: Callable, backward: Callable) -> type[Function]:
    def forward(ctx: Any, *args: Any) -> Any:
        # Not the separate setup_context of torch.autograd.Function: binding its signature costs 10 us a call.
        out = run(*args)
        setup_context(ctx, args, out)
        return out

    return type(name, (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def _transformed_function(
    name: str, operator: Operator, setup_context: Callable, backward: Callable, jvp: Callable
) -> type[Function]:
    def forward(*args: Any) -> Any:
        # With one transform peeled off: either there are more, or these are ordinary tensors at last.
        return operator(*args) if torch._C._are_functorch_transforms_active() else operator.run(*args)

    methods = {
        "forward": forward,
        "setup_context": setup_context,
        "backward": backward,
        "jvp": jvp,
        "vmap": _vmap_rule(operator),
    }
    return type(f"{name}_transformed", (Function,), {key: staticmethod(value) for key, value in methods.items()})
