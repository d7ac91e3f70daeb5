"""What PyTorch is doing around a call: plain eager execution, or compiling, transforming, faking."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_dispatch_stack_at,
    _is_fwd_grad_enabled,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.autograd import forward_ad

PLAIN = (Tensor, torch.nn.Parameter)
"""The types that have no __torch_function__ or __torch_dispatch__ of their own."""


def is_eager() -> bool:
    """Whether nothing but ordinary eager execution is going on.

    Not so while compiling or tracing, under functorch transforms, forward-mode AD, fake tensors or other modes.
    """
    return not (
        torch.compiler.is_compiling()
        or _are_functorch_transforms_active()
        or _len_torch_function_stack()
        or (_len_torch_dispatch_stack() and _is_dispatched())
        or _is_forward_mode()
    )


def _is_dispatched() -> bool:
    """Whether a dispatch mode is on, but those of ``randomness/seeded.py``, which leave all but draws as it is."""
    stack = range(_len_torch_dispatch_stack())
    return any(not getattr(_get_dispatch_stack_at(at), "is_transparent", False) for at in stack)


def is_concrete(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors in eager execution, so that their memory may be read directly."""
    return is_eager() and all(tensor is None or type(tensor) in PLAIN for tensor in tensors)


def is_strided(tensor: Tensor) -> bool:
    """Whether a tensor is dense. While a backward pass is traced, torch.compile does not tell its layout itself."""
    if torch.compiler.is_compiling():
        return not (tensor.is_sparse or tensor.is_sparse_csr or tensor.is_mkldnn)
    return tensor.layout is torch.strided


def is_readable(tensor: Tensor) -> bool:
    """Whether the host may look at the values.

    Not while a graph is traced, or captured on CUDA, which has none yet; nor of one of the many that vmap maps over.
    """
    if torch.compiler.is_compiling() or is_mapped():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def is_mapped() -> bool:
    """Whether torch.func.vmap is at work, other than inside torch.compile."""
    if not _are_functorch_transforms_active():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)


def _is_forward_mode() -> bool:
    """Whether forward-mode AD is on; it is off where PyTorch runs an autograd.Function, on plain tensors."""
    return forward_ad._current_level >= 0 and _is_fwd_grad_enabled()


def is_transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is at work, other than inside torch.compile."""
    if torch.compiler.is_compiling():
        return False
    return _are_functorch_transforms_active() or _is_forward_mode()


def may_need_tangents() -> bool:
    """The same, asked in ``setup_context``, for which PyTorch switches forward mode off."""
    return is_transformed() or (forward_ad._current_level >= 0 and not torch.compiler.is_compiling())


def check_forward_mode() -> None:
    """Forward mode over forward mode: PyTorch silently returns 0 for an autograd.Function there."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1:
        raise NotImplementedError(
            "forward-mode derivatives of forward-mode derivatives are not available: use torch.func.hessian"
            " (jacfwd of jacrev), or jacrev of either"
        )
