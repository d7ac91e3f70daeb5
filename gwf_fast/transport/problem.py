"""Entropic optimal transport between two samples, as streaming sums: what the solver and the derivatives share.

With the cost c = r^2/2 (p = 2) or r (p = 1), a softened minimum over the other side is one ``kernel_logsumexp``,
    min^eps_j (c_ij - g_j) = -eps log sum_j b_j exp((g_j - c_ij) / eps),
since exp(-c/eps) is the Gaussian of bandwidth sqrt(eps), or the Laplace kernel of bandwidth eps; of a cost that a user
wrote it is a formula. An average under the transport plan is one ``kernel_average``. Nothing of size N x M exists.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.formula import Boltzmann
from gwf_fast.pairs.kernels import Gaussian, Kernel, Laplace
from gwf_fast.pairs.passes import over, times
from gwf_fast.pairs.reductions import kernel_average, kernel_logsumexp
from gwf_fast.transport.shares import Shares


def _kernel(epsilon: float, p: int, formula: str | None) -> Kernel:
    if formula is not None:
        return Boltzmann(formula, epsilon)
    return Gaussian(math.sqrt(epsilon)) if p == 2 else Laplace(epsilon)


_kept = functools.lru_cache(maxsize=256)(_kernel)


def cost_kernel(epsilon: float, p: int, formula: str | None = None) -> Kernel:
    """exp(-r^p / (p eps)), or exp(-c / eps) of a formula."""
    make = _kernel if torch.compiler.is_compiling() else _kept  # a trace warns of caches
    return make(epsilon, p, formula)


@dataclass(frozen=True)
class Entropic:
    """One entropic transport problem, or a batch of them.

    Attributes:
        x: [*B, N, D].
        y: [*B, M, D]; x itself for the problem of a sample with itself.
        a: Weights [*B, N] of x.
        b: Weights [*B, M] of y.
        p: The cost is r^p / p, p = 1 or 2.
        strength: rho, the weight of the Kullback-Leibler divergence between the marginals of the plan and a, b; None
            for marginals that hold exactly.
        backend: Who sums; None picks.
        formula: The name of the profile of a cost that a user wrote (``CostFormula``), in place of p.
    """

    x: Tensor
    y: Tensor
    a: Tensor
    b: Tensor
    p: int = 2
    strength: float | None = None
    backend: BackendName | None = None
    formula: str | None = None

    def kernel(self, epsilon: float) -> Kernel:
        """exp(-c / eps)."""
        return cost_kernel(epsilon, self.p, self.formula)

    def damping(self, epsilon: float) -> float:
        """rho / (rho + eps): what a finite marginal strength leaves of an update (Chizat et al. 2018)."""
        return 1.0 if self.strength is None else self.strength / (self.strength + epsilon)

    @property
    def log_b(self) -> Tensor:
        """log b [*B, M]; -inf for weights of 0, unless a derivative in them is wanted.

        exp(log b + ...) has a derivative in b at 0, which 0 times infinity would lose: there log b is that of a number
        too small to be seen in any sum.
        """
        b = self.b
        if not (torch.is_grad_enabled() and b.requires_grad):
            return b.log()
        unseen = torch.finfo(b.dtype).tiny * (1e18 if b.dtype == torch.float64 else 1e8)
        return torch.where(b == 0, b + unseen, b).log()

    def row_update(self, g: Tensor | None, epsilon: float) -> Tensor:
        """The best f [*B, N] for a given g [*B, M]; None is 0."""
        log_weights = self.log_b if g is None else self.log_b + over(g, epsilon)
        sums = kernel_logsumexp(self.x, self.y, log_weights, kernel=self.kernel(epsilon), backend=self.backend)
        return times(sums, -epsilon * self.damping(epsilon))

    def row_average(self, values: Tensor | None, g: Tensor, epsilon: float) -> Tensor:
        """sum_j pi_ij v_j / sum_j pi_ij [*B, N, C] of values [*B, M, C]; None averages y: the barycentric map."""
        log_weights = self.log_b + over(g, epsilon)
        kernel = self.kernel(epsilon)
        return kernel_average(self.x, self.y, values, log_weights, kernel=kernel, backend=self.backend)

    def row_slope(self, g: Tensor, epsilon: float) -> Tensor:
        """sum_j pi_ij grad_x c(x_i, y_j) / sum_j pi_ij [*B, N, D]; x - T(x), T the barycentric map, for r^2/2."""
        if self.p == 2 and self.formula is None:
            return self.x - self.row_average(None, g, epsilon)
        shares = Shares.of(self.x, self.y, self.log_b + over(g, epsilon), self.kernel(epsilon), self.backend)
        return times(shares.slope(), -epsilon)

    def row_cost(self, g: Tensor, epsilon: float) -> Tensor:
        """sum_j pi_ij c(x_i, y_j) / sum_j pi_ij [*B, N]."""
        shares = Shares.of(self.x, self.y, self.log_b + over(g, epsilon), self.kernel(epsilon), self.backend)
        if self.formula is not None:
            return shares.mean(Boltzmann(self.formula, epsilon, times_cost=True))
        # along (x, y) a cost that is homogeneous of degree p grows by p times itself
        return times(shares.growth(), -epsilon / self.p)

    def row_mass(self, f: Tensor) -> Tensor:
        """sum_j pi_ij [*B, N] where f is the best for some g."""
        return self.a if self.strength is None else self.a * self.row_share(f)

    def row_share(self, f: Tensor) -> Tensor:
        """What a finite marginal strength leaves of a row's weight [*B, N], where f is the best for some g."""
        assert self.strength is not None
        return torch.exp(-over(f, self.strength))

    def swapped(self) -> Entropic:
        """The same problem seen from y."""
        return replace(self, x=self.y, y=self.x, a=self.b, b=self.a)

    def of_itself(self, points: Tensor, weights: Tensor) -> Entropic:
        """The problem of one of its samples with itself."""
        return replace(self, x=points, y=points, a=weights, b=weights)

    def detached(self) -> Entropic:
        """The same problem without a graph; a sample with itself stays one."""
        x = self.x.detach()
        y = x if self.y is self.x else self.y.detach()
        a = self.a.detach()
        return replace(self, x=x, y=y, a=a, b=a if self.b is self.a else self.b.detach())

    def marginal_error(self, f: Tensor, best: Tensor, epsilon: float) -> Tensor:
        """sum_i |sum_j pi_ij - the marginal wanted| / sum_i a_i [*B], where ``best`` is the row update for the g."""
        wanted = self.row_mass(best)
        return (wanted * torch.expm1(over(f - best, epsilon)).abs()).sum(-1) / self.a.sum(-1)

    def dual(self, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
        """Value [*B] of the dual at potentials that are row updates: <a, f> + <b, g>, or its unbalanced form."""
        if self.strength is None:
            return (self.a * f).sum(-1) + (self.b * g).sum(-1)
        rho = self.strength
        # each factor rho + eps/2: half of eps times the mass of the plan goes to either side (Sejourne et al. 2019)
        lost = -(self.a * torch.expm1(-over(f, rho))).sum(-1) - (self.b * torch.expm1(-over(g, rho))).sum(-1)
        a, b = self.a.sum(-1), self.b.sum(-1)
        return times(lost, rho + 0.5 * epsilon) + times(a * b - 0.5 * (a + b), epsilon)
