"""Tensors as kernels read them, by address."""

from torch import Tensor


def plain(tensor: Tensor) -> Tensor:
    """In order, and without a sign that is yet to change (the imaginary part of a conjugate)."""
    return tensor.resolve_neg().contiguous()
