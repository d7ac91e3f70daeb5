"""``out=``: results in a tensor that is there already."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gwf_fast.pairs.kernels import Kernel
from gwf_fast.pairs.terms import Term
from gwf_fast.pairs.validation import check_kind


def written(out: Tensor, call: Callable[[], Tensor], kernel: Kernel, *tensors: Tensor | None) -> Tensor:
    """``out`` with the result of a call, which is complete before it is written: ``out`` may be one of its arguments.

    Raises:
        ValueError, TypeError: If a gradient is wanted, or ``out`` is not as the result.
    """
    check_kind("out", out)
    involved = [out, *tensors, *(t for term in getattr(kernel, "terms", ()) for t in _tensors(term))]
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in involved):
        raise ValueError("out must be None where a gradient is wanted: writing into a tensor is not differentiable")
    result = call()
    if out.shape != result.shape or out.dtype != result.dtype or out.device != result.device:
        raise ValueError(
            f"out must be as the result, {list(result.shape)} {result.dtype} on {result.device},"
            f" got {list(out.shape)} {out.dtype} on {out.device}"
        )
    return out.copy_(result)


def _tensors(term: Term) -> list[Tensor]:
    return [t for t in (term.bandwidth, term.length_scale, *term.factors) if isinstance(t, Tensor)]
