"""Densities with closed forms: targets of flows, usable wherever a ``log_density`` is.

Each has ``log_density(x)`` [*B, N, D] -> [*B, N], ``score(x)`` = grad log density [*B, N, D], and ``sample(n)``
-> [n, D] from torch's global generator where exact sampling is known. Parameters decide dtype and device. A new one
derives from :class:`Density`; what it computes in a flow's compiled loop is a class of ``csrc/primal_dual/density.h``,
whose name and parameters its ``compiled`` tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from gwf_fast.checkpoint.portable import portable
from gwf_fast.errors import NonFiniteError
from gwf_fast.kernels.table.mlp import CompiledDensity
from gwf_fast.ops.ambient import entry
from gwf_fast.pairs.validation import as_positive, check_kind
from gwf_fast.randomness.seeded import own_generator

__all__ = ["BayesianLogisticRegression", "Density", "Gaussian", "GaussianMixture"]

_LOG_2PI = math.log(2 * math.pi)
_BOTH = ("cpu", "cuda")


class Density:
    """A density that is known by a formula, up to a constant.

    Its methods are functions of tensors alone, and draw from ``randomness.seeded.own_generator``: so a flow may record
    them, and need not watch what they draw.
    """

    @property
    def dim(self) -> int:
        """D."""
        raise NotImplementedError

    def log_density(self, x: Tensor) -> Tensor:
        """The logarithm of the density at x [*B, N, D], [*B, N]."""
        raise NotImplementedError

    def compiled(self) -> CompiledDensity | None:
        """What the compiled loops are told; None where they don't know it, and call ``log_density`` back instead."""
        return None


@portable
@dataclass(frozen=True, eq=False)
class Gaussian(Density):
    """The normal distribution N(mean, covariance), normalised.

    Args:
        mean: [D].
        covariance: [D, D], symmetric positive definite.
    """

    mean: Tensor
    covariance: Tensor
    _scale: Tensor = field(init=False, repr=False, metadata={"derived": True})  # Cholesky factor
    _inverse: Tensor = field(init=False, repr=False, metadata={"derived": True})  # and its inverse
    _log_norm: float = field(init=False, repr=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        _floating("mean", self.mean, 1)
        _floating("covariance", self.covariance, 2)
        d = len(self.mean)
        if self.covariance.shape != (d, d):
            raise ValueError(f"covariance must be [{d}, {d}] for a mean [{d}], got {list(self.covariance.shape)}")
        scale, info = torch.linalg.cholesky_ex(self.covariance)
        if info.item() or not scale.isfinite().all():
            raise ValueError("covariance must be a positive definite matrix")
        inverse = torch.linalg.solve_triangular(scale, torch.eye(d).to(scale), upper=False)
        object.__setattr__(self, "_scale", scale)
        object.__setattr__(self, "_inverse", inverse)
        object.__setattr__(self, "_log_norm", -scale.diagonal().log().sum().item() - d * _LOG_2PI / 2)

    @classmethod
    def fit(cls, x: Tensor) -> Gaussian:
        """The Gaussian with the mean and covariance of samples x [N, D].

        A ridge of 1e-6 of the mean variance keeps it positive definite for few or degenerate samples.

        Raises:
            NonFiniteError: If the samples are one point to rounding: they have no density.
        """
        mean = x.mean(0)
        centred = x - mean
        covariance = centred.T @ centred / max(len(x) - 1, 1)
        variance = covariance.diagonal().mean()
        resolution = 4 * torch.finfo(x.dtype).eps * mean.abs().max()
        if variance <= resolution**2 or variance < torch.finfo(x.dtype).tiny / 1e-6:
            spread = float(centred.abs().max())
            raise NonFiniteError(
                f"{len(x)} samples have collapsed to a point (largest distance from their mean: {spread:.1e}); "
                "a functional of densities is infinite there"
            )
        covariance.diagonal().add_(1e-6 * variance)
        return cls(mean, covariance)

    @property
    @override
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    @override
    def compiled(self) -> CompiledDensity:
        return CompiledDensity("gaussian", (self.mean, self._inverse), (self._log_norm,), _BOTH)

    @entry
    def whiten(self, x: Tensor) -> Tensor:
        """Coordinates in which this distribution is N(0, I)."""
        check_kind("x", x)
        return (x - self.mean) @ self._inverse.T

    @entry
    @override
    def log_density(self, x: Tensor) -> Tensor:
        """log N(x; mean, covariance), [*B, N]."""
        return self._log_norm - self.whiten(x).square().sum(-1) / 2

    @entry
    def score(self, x: Tensor) -> Tensor:
        """-covariance^-1 (x - mean), [*B, N, D]."""
        return -self.whiten(x) @ self._inverse

    def sample(self, n: int) -> Tensor:
        """n independent samples, [n, D]."""
        like = self.mean
        return self.colour(
            torch.randn(n, len(like), dtype=like.dtype, device=like.device, generator=own_generator(like.device))
        )

    @entry
    def colour(self, w: Tensor) -> Tensor:
        """The inverse of :meth:`whiten`."""
        return self.mean + w @ self._scale.T

    def kl(self, other: Gaussian) -> float:
        """KL(self | other) in closed form; with KL(other | self) added, the symmetric one (SymKL)."""
        ratio = other._inverse @ self._scale
        log_det = self._scale.diagonal().log().sum() - other._scale.diagonal().log().sum()
        quadratic = ratio.square().sum() + other.whiten(self.mean).square().sum()
        return float((quadratic - len(self.mean)) / 2 - log_det)


@portable
@dataclass(frozen=True, eq=False)
class GaussianMixture(Density):
    """A mixture of spherical Gaussians, normalised.

    Args:
        means: [K, D].
        scales: Standard deviations, a float or [K]; positive.
        weights: [K], positive, normalised here; None for equal weights.
    """

    means: Tensor
    scales: Tensor | float = 1.0
    weights: Tensor | None = None
    _s: Tensor = field(init=False, repr=False, metadata={"derived": True})
    _log_w: Tensor = field(init=False, repr=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        _floating("means", self.means, 2)
        k, d = self.means.shape
        s = torch.as_tensor(self.scales).to(self.means)
        w = (torch.ones(k) if self.weights is None else torch.as_tensor(self.weights)).to(self.means)
        for name, value in (("scales", s.expand(k) if s.ndim == 0 else s), ("weights", w)):
            if value.shape != (k,) or not (value > 0).all() or not value.isfinite().all():
                raise ValueError(f"{name} must be {k} positive numbers for means [{k}, {d}], got {value.tolist()}")
        s = s.expand(k)
        object.__setattr__(self, "_s", s)
        object.__setattr__(self, "_log_w", w.log() - w.sum().log() - d * (s.log() + _LOG_2PI / 2))

    @property
    @override
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    @override
    def compiled(self) -> CompiledDensity:
        return CompiledDensity("mixture", (self.means, self._s**-2, self._log_w), devices=_BOTH)

    def _log_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_kind("x", x)
        d = x.unsqueeze(-2) - self.means  # [*B, N, K, D]
        return d, self._log_w - d.square().sum(-1) / (2 * self._s**2)

    @entry
    @override
    def log_density(self, x: Tensor) -> Tensor:
        """log sum_k w_k N(x; m_k, s_k^2 I), [*B, N]."""
        return self._log_terms(x)[1].logsumexp(-1)

    @entry
    def score(self, x: Tensor) -> Tensor:
        """Gradient of :meth:`log_density`, [*B, N, D]."""
        d, log_terms = self._log_terms(x)
        return -((log_terms.softmax(-1) / self._s**2).unsqueeze(-1) * d).sum(-2)

    def sample(self, n: int) -> Tensor:
        """n independent samples, [n, D]."""
        w = (self._log_w + self.means.shape[1] * self._s.log()).softmax(0)
        generator = own_generator(w.device)
        options: dict[str, Any] = {"dtype": self.means.dtype, "device": self.means.device}
        k = torch.multinomial(w, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, **options)
        return self.means[k] + self._s[k].unsqueeze(-1) * noise


@portable
@dataclass(frozen=True, eq=False)
class BayesianLogisticRegression(Density):
    """Posterior of logistic regression over x = (w, log a): weights w [D - 1] and the log of their precision a.

    Prior w ~ N(0, I/a) and a ~ Gamma(1, rate), of density rate e^{-rate a} (Gershman et al., 2012, use 0.01). Up to
    the evidence, log p(x) = -a |w|^2/2 + (n/2) log a - rate a + log a + sum_i log sigmoid(y_i w.f_i) + const: the
    last log a is the Jacobian of a -> log a.

    Args:
        features: [S, n].
        labels: [S], -1 and +1.
        rate: Rate of the Gamma prior, positive.
    """

    features: Tensor
    labels: Tensor
    rate: float = 0.01
    _signed: Tensor = field(init=False, repr=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        _floating("features", self.features, 2)
        labels = self.labels.to(self.features)
        if labels.shape != self.features.shape[:1] or not (labels.abs() == 1).all():
            raise ValueError(
                f"labels must be [{len(self.features)}] values -1 or +1, got {list(labels.shape)} with values in "
                f"{labels.unique()[:5].tolist()}"
            )
        object.__setattr__(self, "rate", as_positive("rate", self.rate))
        object.__setattr__(self, "_signed", self.features * labels.unsqueeze(-1))

    @property
    @override
    def dim(self) -> int:
        """Dimension of x: the number of features, and one for log a."""
        return self.features.shape[1] + 1

    @override
    def compiled(self) -> CompiledDensity:
        return CompiledDensity("logistic", (self._signed,), (self.rate,), _BOTH)

    @entry
    @override
    def log_density(self, x: Tensor) -> Tensor:
        """The log posterior up to the evidence, [*B, N]."""
        check_kind("x", x)
        w, log_a = x[..., :-1], x[..., -1]
        n = w.shape[-1]
        a = log_a.exp()
        prior = -a * w.square().sum(-1) / 2 + (n / 2) * (log_a - _LOG_2PI)
        hyper = math.log(self.rate) - self.rate * a + log_a
        return prior + hyper + logsigmoid(w @ self._signed.T).sum(-1)

    @entry
    def score(self, x: Tensor) -> Tensor:
        """Gradient of :meth:`log_density`, [*B, N, D]."""
        check_kind("x", x)
        w, log_a = x[..., :-1], x[..., -1:]
        a = log_a.exp()
        gw = -a * w + torch.sigmoid(-(w @ self._signed.T)) @ self._signed
        ga = -a * w.square().sum(-1, keepdim=True) / 2 + w.shape[-1] / 2 - self.rate * a + 1
        return torch.cat((gw, ga), -1)


def _floating(name: str, value: Tensor, ndim: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    check_kind(name, value)
    if value.ndim != ndim or not value.is_floating_point():
        raise ValueError(f"{name} must be {ndim} dimension(s) of floating point, got {value.dtype} {list(value.shape)}")
    if not value.isfinite().all():
        raise ValueError(f"{name}: contains NaN or infinity")
