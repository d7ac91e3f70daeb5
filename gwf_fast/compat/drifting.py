"""``compute_drift`` of the drifting notebooks (Deng et al. 2026), without its N x M matrices."""

from __future__ import annotations

from torch import Tensor

from gwf_fast.drift import gmd

__all__ = ["compute_drift"]


def compute_drift(x: Tensor, y: Tensor, T: float = 0.05) -> Tensor:
    """The drift of Algorithm 2 at generated samples x towards data y.

    The notebooks bound the product of the row's and the column's sum of e^(-r / T) from below by 1e-12, so that their
    drift fades where both are tiny; here both softmaxes are taken in the logarithm, as Algorithm 2 has them.

    Args:
        x: Generated samples [N, D]; any leading batch dimensions.
        y: Data [P, D].
        T: Temperature.

    Returns:
        [N, D]; a constant to autograd.
    """
    return gmd(x.detach(), y.detach(), temperature=T)
