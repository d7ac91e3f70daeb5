"""``SamplesLoss`` with the arguments, conventions and numbers of geomloss (Feydy et al. 2019).

    from gwf_fast.compat.geomloss import SamplesLoss

In place of ``from geomloss import SamplesLoss``. What differs: nothing is ever stored N x M, but under a cost or a
kernel of your own, and nothing is compiled; second derivatives are exact, by implicit differentiation of the optimality
conditions (under a cost of your own, and of "hausdorff", first ones only: a second is refused); ``r`` is not clamped at
1e-4 under "laplacian", "energy" and p = 1; with ``reach`` the gradient is that of the value (geomloss scales it by
(rho + eps/2) / (rho + eps)). "hausdorff" without a kernel, which geomloss documents and fails on, is the divergence of
the papers. ``truncate``, ``cluster_scale``, ``verbose`` and the values of labels are taken and change nothing: the sums
that they shorten are done in full. ``backend`` decides about shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gwf_fast.compat import dense
from gwf_fast.measures.discrepancy import mmd2
from gwf_fast.pairs.kernels import Gaussian, Kernel, Laplace, Riesz
from gwf_fast.pairs.passes import centre_of
from gwf_fast.pairs.reductions import kernel_sum
from gwf_fast.pairs.validation import check_companion, check_pair
from gwf_fast.transport import small
from gwf_fast.transport.cost import moving_own_potential
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.solve import anneal, average, bounding_diameter, schedule

__all__ = ["SamplesLoss"]

_LOSSES = ("sinkhorn", "hausdorff", "gaussian", "laplacian", "energy")
_BACKENDS = ("auto", "tensorized", "online", "multiscale")


class SamplesLoss(nn.Module):
    """A loss between weighted samples, called as ``loss(x, y)`` or ``loss(a, x, b, y)``.

    Args:
        loss: "sinkhorn", "hausdorff", "gaussian", "laplacian" or "energy". The Hausdorff divergence is
            <a - b, q - p> / 2, p and q the potentials of each measure's transport to itself (Feydy & Trouve 2018).
        p: The cost of "sinkhorn" and "hausdorff" is r^p / p, p = 1 or 2.
        blur: Bandwidth of a kernel; for these two epsilon = blur^p.
        reach: rho = reach^p relaxes the marginals of these two; None keeps them.
        diameter: Where the descent of epsilon starts; None for the diagonal of the box around the data.
        scaling: Factor of the descent, between 0 and 1: one sweep for each blur. geomloss fails at 1.
        truncate: Taken for geomloss' sake.
        cost: A function of x [B, N, D] and y [B, M, D] that gives the costs [B, N, M] of "sinkhorn".
        kernel: A function of x and y as these, and of the keywords blur, use_keops and ranges, that gives the values of
            a symmetric kernel [B, N, M], in place of that of a kernel's loss or of "hausdorff".
        cluster_scale: Taken for geomloss' sake.
        debias: Whether "sinkhorn" subtracts the transport of each measure to itself.
        potentials: Return the dual potentials, or for a kernel the two witness functions, in place of the value.
        verbose: Taken for geomloss' sake.
        backend: "auto", "tensorized", "online" or "multiscale": whose shapes potentials have.

    Raises:
        ValueError: If the loss or backend is unknown, or a number is out of range.
        TypeError: If a cost or kernel is no function.
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
        cost: Callable[[Tensor, Tensor], Tensor] | None = None,
        kernel: Callable[..., Tensor] | None = None,
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
        if backend not in _BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
        for name, function in (("cost", cost), ("kernel", kernel)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function of x and y, got {function!r}")
        if cost is not None and loss != "sinkhorn":
            raise ValueError(f'cost must be None but for loss "sinkhorn", which alone has one, got it for {loss!r}')
        for name, value in (("blur", blur), ("reach", reach), ("diameter", diameter)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        if not 0 < scaling < 1:
            raise ValueError(f"scaling must lie between 0 and 1, got {scaling!r}")
        self.loss, self.p, self.blur, self.reach, self.cost, self.kernel = loss, p, blur, reach, cost, kernel
        self.diameter, self.scaling, self.debias, self.potentials = diameter, scaling, debias, potentials
        self.backend = backend

    def forward(self, *args: Any) -> Tensor | tuple[Tensor, Tensor]:
        """The loss.

        Args:
            *args: x [N, D], y [M, D], or a [N], x, b [M], y; or all with one batch dimension, and weights also [N, 1].
                Or l_x [N], a, x, l_y [M], b, y with labels of clusters.

        Returns:
            A scalar, or [B]; with ``potentials`` two tensors [1, N] and [1, M], or [B, N] and [B, M]. For labels, and
            where geomloss goes by clusters, [N] and [M].

        Raises:
            ValueError, TypeError: If the arguments do not fit each other.
            NotImplementedError: Labels of a batch.
        """
        given = _Measures.of(args)
        a, x, b, y = given.a, given.x, given.b, given.y
        flat = self._by_clusters(given)
        if self.loss == "sinkhorn" and not self.potentials and self.cost is None:
            value = self._small_sinkhorn(a, x, b, y)
            if value is not None:
                return value
        a, b = _equal(x) if a is None else a, _equal(y) if b is None else b
        if self._has_matrices():
            result = self._of_matrices(a, x, b, y)
        else:
            centre = centre_of(y)  # one a problem, while the diameter is that of the batch, where it lies
            epsilons = self._epsilons(x, y) if self.loss in ("sinkhorn", "hausdorff") else []
            losses = {"sinkhorn": self._sinkhorn, "hausdorff": self._hausdorff}
            result = losses.get(self.loss, self._kernel_norm)(a, x - centre, b, y - centre, epsilons)
        if isinstance(result, Tensor):
            return result
        at_x, at_y = result
        return (at_x, at_y) if x.ndim == 3 and not flat else (_rows(at_x, flat), _rows(at_y, flat))

    def _by_clusters(self, given: _Measures) -> bool:
        """Whether geomloss would go by clusters, with potentials of another shape."""
        x, y = given.x, given.y
        if given.labelled and self.backend not in ("auto", "multiscale"):
            raise ValueError(f'backend must be "auto" or "multiscale" for labels, got {self.backend!r}')
        if given.labelled and x.ndim == 3:
            raise NotImplementedError("labels are not available for batches")
        pairs = x.shape[-2] * y.shape[-2]
        large = self.loss == "sinkhorn" and self.p == 2 and x.shape[-1] <= 3 and pairs > 10_000**2
        chosen = self.backend == "multiscale" or (self.backend == "auto" and large)
        return given.labelled or (chosen and (x.ndim == 2 or len(x) == 1))

    def _has_matrices(self) -> bool:
        return (self.cost if self.loss == "sinkhorn" else self.kernel) is not None

    def _of_matrices(self, a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The loss under a cost or kernel of the user's own, whose functions see one batch dimension."""
        single = x.ndim == 2
        if single:
            a, x, b, y = (t[None] for t in (a, x, b, y))
        if self.loss == "sinkhorn":
            assert self.cost is not None
            costs = dense.Costs.of(self.cost, x, y, self.debias)
            epsilons, strength = self._epsilons(x, y), self._strength()
            found = dense.divergence(costs, a, b, epsilons, strength, self.potentials)
        else:
            assert self.kernel is not None
            value, *witness = dense.kernel_norm(dense.kernel_matrices(self.kernel, x, y, self.blur), a, b)
            found = (witness[0], witness[1]) if self.potentials else value
        if not single:
            return found
        return found[0] if isinstance(found, Tensor) else (found[0][0], found[1][0])

    def _strength(self) -> float | None:
        return None if self.reach is None else self.reach**self.p

    def _epsilons(self, x: Tensor, y: Tensor) -> list[float]:
        diameter = bounding_diameter(x.detach(), y.detach()) if self.diameter is None else self.diameter
        return schedule(max(diameter, 1e-30), self.blur, self.scaling, self.p)

    def _kernel_norm(
        self, a: Tensor, x: Tensor, b: Tensor, y: Tensor, epsilons: list[float]
    ) -> Tensor | tuple[Tensor, Tensor]:
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

        def problem(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> Entropic:
            a, b = (_equal(t) if w is None else w for t, w in ((x, a), (y, b)))
            centre = centre_of(y)
            return Entropic(x - centre, y - centre, a, b, self.p, strength)

        strength = self._strength()
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
        self, a: Tensor, x: Tensor, b: Tensor, y: Tensor, epsilons: list[float]
    ) -> Tensor | tuple[Tensor, Tensor]:
        epsilon = self.blur**self.p
        problem = Entropic(x, y, a, b, self.p, self._strength())
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

    def _hausdorff(
        self, a: Tensor, x: Tensor, b: Tensor, y: Tensor, epsilons: list[float]
    ) -> Tensor | tuple[Tensor, Tensor]:
        """<a - b, q - p> / 2, each potential at its own points and, by one update, at the other's."""
        epsilon, strength = self.blur**self.p, self._strength()
        cross = Entropic(x, y, a, b, self.p, strength)
        p, q = (self._own_potential(cross.of_itself(*side), epsilons) for side in ((x, a), (y, b)))
        at_x = self._slope(cross.row_update(q, epsilon), epsilon) - self._slope(p, epsilon)
        at_y = self._slope(cross.swapped().row_update(p, epsilon), epsilon) - self._slope(q, epsilon)
        return (at_x, at_y) if self.potentials else 0.5 * ((a * at_x).sum(-1) + (b * at_y).sum(-1))

    def _own_potential(self, itself: Entropic, epsilons: list[float]) -> Tensor:
        tolerance = 1e-11 if itself.x.dtype == torch.float64 else 1e-6
        with torch.no_grad():
            fixed = itself.detached()
            start, _ = anneal(fixed, epsilons)
            f = average(fixed, epsilons[-1], start, max_iterations=200, tolerance=tolerance).f
        return moving_own_potential(itself, epsilons[-1], f)

    def _slope(self, potential: Tensor, epsilon: float) -> Tensor:
        """The derivative in the weights of half a measure's transport to itself, but for a constant."""
        rho = self._strength()
        return potential if rho is None else -(rho + epsilon) * torch.expm1(-potential / rho)


class _Measures(NamedTuple):
    """What a loss is called with: weights of the points' shapes, None for equal ones."""

    a: Tensor | None
    x: Tensor
    b: Tensor | None
    y: Tensor
    labelled: bool

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> _Measures:
        """The arguments, looked at."""
        if len(args) not in (2, 4, 6):
            raise ValueError(
                f"a SamplesLoss takes (x, y), (a, x, b, y) or (l_x, a, x, l_y, b, y), got {len(args)} arguments"
            )
        half = len(args) // 2  # of x, then of y: the points last, before them weights, before them labels
        labels_x, a, x = (None,) * (3 - half) + args[:half]
        labels_y, b, y = (None,) * (3 - half) + args[half:]
        check_pair(x, y)
        if x.ndim not in (2, 3):
            raise ValueError(f"x must have shape [N, D] or [B, N, D], got {list(x.shape)}")
        a, b = _weights("a", a, x, "x"), _weights("b", b, y, "y")
        for name, labels, points in (("l_x", labels_x, x), ("l_y", labels_y, y)):
            if labels is not None and list(labels.shape) not in ([points.shape[-2]], [points.shape[-2], 1]):
                raise ValueError(f"{name} must have shape [{points.shape[-2]}], got {list(labels.shape)}")
        return cls(a, x, b, y, labels_x is not None or labels_y is not None)


def _weights(name: str, weights: Tensor | None, points: Tensor, points_name: str) -> Tensor | None:
    if weights is None:
        return None
    if isinstance(weights, Tensor) and weights.shape == (*points.shape[:-1], 1):
        weights = weights[..., 0]
    check_companion(name, weights, points, channels=False, y_name=points_name)
    return weights


def _rows(potential: Tensor, flat: bool) -> Tensor:
    return potential.reshape(-1) if flat else potential[None]


def _equal(points: Tensor) -> Tensor:
    return points.new_full(points.shape[:-1], 1 / max(points.shape[-2], 1))
