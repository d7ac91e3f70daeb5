"""The regression loss that trains a one-step generator along a drift."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import mse_loss

from gwf_fast.ops.ambient import entry
from gwf_fast.pairs.validation import check_points


@entry
def drifting_loss(x: Tensor, velocity: Tensor) -> Tensor:
    """Mean of |x - stopgrad(x + v)|^2 over the samples (Deng et al. 2026): its gradient in x_i is -2 v_i / N.

    Args:
        x: Generated samples [*B, N, D], with their graph.
        velocity: The drift at x, [*B, N, D]; taken as a constant.

    Returns:
        A scalar, mean |v|^2.

    Raises:
        ValueError, TypeError: If the velocity has not the shape of x.
    """
    check_points("x", x)
    check_points("velocity", velocity)
    if velocity.shape != x.shape:
        raise ValueError(f"velocity must have the shape of x, {list(x.shape)}, got {list(velocity.shape)}")
    count = math.prod(x.shape[:-1])
    if not count:
        return x.sum(-1).mean()
    # Not x - (x + v): far from the origin that has lost digits of v. Divided before the sum, which may overflow where
    # the mean does not. One operation for the squares and their sum: at tens of samples their number is the time.
    share = count**-0.5
    return mse_loss((x - x.detach()) * share, velocity.detach() * share, reduction="sum")
