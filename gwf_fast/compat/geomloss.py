"""``SamplesLoss`` with the arguments, conventions and numbers of geomloss (Feydy et al. 2019).

    from gwf_fast.compat.geomloss import SamplesLoss

In place of ``from geomloss import SamplesLoss``. What differs: nothing is ever stored N x M and nothing is compiled;
second derivatives are exact, by implicit differentiation of the optimality conditions; ``r`` is not clamped at 1e-4
under "laplacian", "energy" and p = 1; with ``reach`` the gradient is that of the value (geomloss scales it by
(rho + eps/2) / (rho + eps)). ``backend``, ``truncate``, ``cluster_scale`` and ``verbose`` are taken and change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gwf_fast.measures.discrepancy import mmd2
from gwf_fast.pairs.kernels import Gaussian, Kernel, Laplace, Riesz
from gwf_fast.pairs.passes import centre_of
from gwf_fast.pairs.reductions import kernel_sum
from gwf_fast.pairs.validation import check_pair
from gwf_fast.transport import small
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.solve import anneal, bounding_diameter, schedule

__all__ = ["SamplesLoss"]

_LOSSES = ("sinkhorn", "gaussian", "laplacian", "energy")


class SamplesLoss(nn.Module):
    """A loss between weighted samples, called as ``loss(x, y)`` or ``loss(a, x, b, y)``.

    Args:
        loss: "sinkhorn", "gaussian", "laplacian" or "energy".
        p: The cost of "sinkhorn" is r^p / p, p = 1 or 2.
        blur: Bandwidth of a kernel; for "sinkhorn" epsilon = blur^p.
        reach: rho = reach^p relaxes the marginals of "sinkhorn"; None keeps them.
        diameter: Where the descent of epsilon starts; None for the diagonal of the box around the data.
        scaling: Factor of the descent, between 0 and 1: one sweep for each blur.
        truncate: Taken for geomloss' sake.
        cost: Not served; None.
        kernel: Not served; None.
        cluster_scale: Taken for geomloss' sake.
        debias: Whether "sinkhorn" subtracts the transport of each measure to itself.
        potentials: Return the dual potentials, or for a kernel the two witness functions, in place of the value.
        verbose: Taken for geomloss' sake.
        backend: Taken for geomloss' sake.

    Raises:
        ValueError: If the loss is unknown, or an option is one that is not served.
    """

    def __init__(
        self,
        loss: str = "sinkhorn",
        p: int = 2,
        blur: float = 0.05,
        reach: float | None = None,
        diameter: float | None = None,
        scaling: float = 0.5,
        truncate: float | None = 5,
        cost: object = None,
        kernel: object = None,
        cluster_scale: float | None = None,
        debias: bool = True,
        potentials: bool = False,
        verbose: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if loss not in _LOSSES:
            raise ValueError(f"loss must be one of {', '.join(_LOSSES)}, got {loss!r}")
        if p not in (1, 2):
            raise ValueError(f"p must be 1 or 2, got {p!r}")
        if cost is not None or kernel is not None:
            raise ValueError("cost and kernel must be None: a cost or kernel of your own is not served here")
        for name, value in (("blur", blur), ("reach", reach), ("diameter", diameter)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        if not 0 < scaling < 1:
            raise ValueError(f"scaling must lie between 0 and 1, got {scaling!r}")
        self.loss, self.p, self.blur, self.reach = loss, p, blur, reach
        self.diameter, self.scaling, self.debias, self.potentials = diameter, scaling, debias, potentials

    def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The loss.

        Args:
            *args: x [N, D], y [M, D], or a [N], x, b [M], y; or all with one batch dimension.

        Returns:
            A scalar, or [B]; with ``potentials`` two tensors of the shapes of a and b.
        """
        a: Tensor | None = None
        b: Tensor | None = None
        if len(args) == 2:
            x, y = args
        elif len(args) == 4:
            a, x, b, y = args
        else:
            raise ValueError(f"a SamplesLoss takes (x, y) or (a, x, b, y), got {len(args)} arguments")
        if x.ndim not in (2, 3):
            raise ValueError(f"x must have shape [N, D] or [B, N, D], got {list(x.shape)}")
        if self.loss == "sinkhorn" and not self.potentials and (value := self._small_sinkhorn(a, x, b, y)) is not None:
            return value
        if a is None or b is None:
            a, b = _equal(x), _equal(y)
        shapes = a.shape, b.shape
        a, b = a.reshape(x.shape[:-1]), b.reshape(y.shape[:-1])
        diameter = self.diameter
        if diameter is None and self.loss == "sinkhorn":
            diameter = bounding_diameter(x.detach(), y.detach())
        centre = centre_of(y)
        x, y = x - centre, y - centre
        result = self._sinkhorn(a, x, b, y, diameter) if self.loss == "sinkhorn" else self._kernel_norm(a, x, b, y)
        if isinstance(result, Tensor):
            return result
        return result[0].reshape(shapes[0]), result[1].reshape(shapes[1])

    def _kernel_norm(self, a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        kernels: dict[str, Kernel] = {
            "gaussian": Gaussian(self.blur),
            "laplacian": Laplace(self.blur),
            "energy": Riesz(1.0),
        }
        kernel = kernels[self.loss]
        if not self.potentials:
            return 0.5 * mmd2(x, y, kernel=kernel, x_weights=a, y_weights=b)

        def witness(points: Tensor) -> Tensor:
            return kernel_sum(points, x, a, kernel=kernel) - kernel_sum(points, y, b, kernel=kernel)

        return witness(x), -witness(y)

    def _small_sinkhorn(self, a: Tensor | None, x: Tensor, b: Tensor | None, y: Tensor) -> Tensor | None:
        """In one compiled call, where there is one for such problems."""
        check_pair(x, y)

        def problem(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> Entropic:
            a, b = (_equal(t) if w is None else w for t, w in ((x, a), (y, b)))
            centre = centre_of(y)
            return Entropic(x - centre, y - centre, a, b, self.p, strength)

        strength = None if self.reach is None else self.reach**self.p
        if a is not None and b is not None:
            a, b = a.reshape(x.shape[:-1]), b.reshape(y.shape[:-1])
        found = small.divergence(
            small.Sets(x, y, a, b), small.NO_STARTS, problem, debias=self.debias, keep=False,
            epsilon=self.blur**self.p, p=self.p, strength=strength, scaling=self.scaling,
            diameter=self.diameter, only_anneal=True,
        )  # fmt: skip
        if found is None:
            return None
        return self._with_masses(found[0], a, b)

    def _with_masses(self, value: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        """geomloss leaves the masses out of the biased loss, and has their square in the other."""
        if self.reach is None:
            return value
        epsilon = self.blur**self.p
        total_a, total_b = (1.0 if w is None else w.sum(-1) for w in (a, b))
        if self.debias:
            return value + 0.5 * epsilon * (total_a - total_b) ** 2
        return value - epsilon * (total_a * total_b - 0.5 * (total_a + total_b))

    def _sinkhorn(
        self, a: Tensor, x: Tensor, b: Tensor, y: Tensor, diameter: float | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        strength = None if self.reach is None else self.reach**self.p
        epsilon = self.blur**self.p
        epsilons = schedule(max(diameter or 0.0, 1e-30), self.blur, self.scaling, self.p)
        problem = Entropic(x, y, a, b, self.p, strength)
        with torch.no_grad():
            f, g = anneal(problem.detached(), epsilons)
        own = []
        if self.debias:
            for points, weights in ((x, a), (y, b)):
                itself = problem.of_itself(points, weights)
                with torch.no_grad():
                    own.append((itself, anneal(itself.detached(), epsilons)[0]))
        if self.potentials:
            at_x, at_y = problem.row_update(g, epsilon), problem.swapped().row_update(f, epsilon)
            if own:
                at_x = at_x - own[0][0].row_update(own[0][1], epsilon)
                at_y = at_y - own[1][0].row_update(own[1][1], epsilon)
            return at_x, at_y
        value = small.value_at(problem, epsilon, f, g, *([potential for _, potential in own] or (None, None)))
        return self._with_masses(value, a, b)


def _equal(points: Tensor) -> Tensor:
    return points.new_full(points.shape[:-1], 1 / max(points.shape[-2], 1))
