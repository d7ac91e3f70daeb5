"""What PyTorch is doing around a call: plain eager execution, or compiling, transforming, faking."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter)


def is_concrete(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors in ordinary eager execution, so that their memory may be read directly.

    Not so while compiling, under functorch transforms, forward-mode AD, fake tensors or other modes.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
    ):
        return False
    for tensor in tensors:  # noqa: SIM110 (a loop is half the price of all() here)
        if tensor is not None and type(tensor) not in _PLAIN:
            return False
    return True


def is_transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is at work, other than inside torch.compile."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def check_forward_mode() -> None:
    """Forward mode over forward mode: PyTorch silently returns 0 for an autograd.Function there."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1:
        raise NotImplementedError(
            "forward-mode derivatives of forward-mode derivatives are not available: use torch.func.hessian"
            " (jacfwd of jacrev), or jacrev of either"
        )
