"""Flows of kernel discrepancies: squared MMD, energy distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gwf_fast.drift._checks import check_sets, inverse_counts
from gwf_fast.drift.sliced import sliced_energy
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.sharding import drawn_rows
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.fast.directions import DEFAULT_SAMPLING, Sampling, check_sampling
from gwf_fast.pairs.kernels import Kernel, Riesz
from gwf_fast.pairs.reductions import kernel_gradient
from gwf_fast.pairs.validation import as_integer, as_number, check_counts
from gwf_fast.randomness.seeded import own_generator


@entry
@widens
def mmd(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    noise: float = 0.0,
    exclude_self: bool = False,
    generator: torch.Generator | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """Minus the gradient of the witness E_q k - E_p k: the Wasserstein flow of MMD^2 / 2 (Arbel et al. 2019).

    Args:
        x: Particles [*B, N, D], samples of q.
        y: Targets [*B, M, D], samples of p.
        kernel: k.
        noise: Standard deviation b >= 0 of the noise injected (Arbel et al. 2019, section 4): the gradient is taken
            at x + b u, u ~ N(0, I), while the particles of the witness stay where they are.
        exclude_self: Average the repulsion over the other N - 1 particles, as the U-statistic does.
        generator: Source of the noise; None means torch's global one.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``gwf_fast.backends()``).

    Returns:
        [*B, N, D].

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or noise is negative.
    """
    check_sets(x, y, exclude_self, backend=backend)
    check_counts("x_lengths", x_lengths, x, 1 + exclude_self)
    check_counts("y_lengths", y_lengths, y, 1)
    noise = as_number("noise", noise, "a number >= 0", least=0)
    at = x
    options: dict[str, Any]
    if noise:
        generator = own_generator(x.device) if generator is None else generator
        options = {"dtype": x.dtype, "device": x.device, "generator": generator}
        at = x + noise * drawn_rows(lambda shape: torch.randn(shape, **options), x, backend)
    options = {"kernel": kernel, "x_lengths": x_lengths, "backend": backend}
    attraction = kernel_gradient(at, y, y_lengths=y_lengths, **options)
    repulsion = kernel_gradient(at, x, y_lengths=x_lengths, exclude_self=exclude_self, **options)
    own = inverse_counts(x, x_lengths, int(exclude_self), backend)
    return attraction * inverse_counts(y, y_lengths, 0, backend) - repulsion * own


@entry
@widens
def energy(
    x: Tensor,
    y: Tensor,
    *,
    exponent: float = 1.0,
    sliced: int | None = None,
    generator: torch.Generator | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    directions: Tensor | None = None,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """The flow of half the (generalised) energy distance, 2 E|x - y|^e - E|x - x'|^e - E|y - y'|^e (Szekely 2003).

    Args:
        x: Particles [*B, N, D].
        y: Targets [*B, M, D].
        exponent: e, 0 < e < 2; 1 is the energy distance. Coincident points exert no force.
        sliced: A number P of directions, drawn afresh: the forces are then estimated along them, without bias, in
            O(P (N + M) D), as minus half the gradient of ``sliced_energy_distance`` times N (Hertrich et al. 2024); not
            with ``exclude_self``. For e <= 1/2 the estimate has no variance: the largest of its terms are all of it.
        generator: Source of the directions; None means torch's global one.
        sampling: "orthogonal", "normal" or "quasi", as in ``sliced_wasserstein2``.
        directions: [P, D] of unit length, instead of drawn ones; ``sliced`` may then be left out.
        exclude_self: Average the repulsion over the other N - 1 particles.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``gwf_fast.backends()``).

    Returns:
        [*B, N, D].

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    if sliced is not None or directions is not None:
        if exclude_self:
            raise ValueError("exclude_self must be False with sliced, got True")
        drawing: dict[str, Any] = {"generator": generator, "sampling": sampling, "directions": directions}
        if sliced is not None:
            drawing["n_projections"] = as_integer("sliced", sliced)
        rest = {"x_lengths": x_lengths, "y_lengths": y_lengths, "backend": backend}
        return sliced_energy(x, y, exponent=exponent, **drawing, **rest)
    if generator is not None:
        raise ValueError("generator must be None where sliced is: nothing is drawn")
    check_sampling(sampling, None, None)
    options = {"exclude_self": exclude_self, "x_lengths": x_lengths, "y_lengths": y_lengths, "backend": backend}
    return mmd(x, y, kernel=Riesz(exponent), **options)  # type: ignore[arg-type]
