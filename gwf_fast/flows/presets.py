"""Flows under the names of the generative models that they are.

With an infinite step size nothing holds the generator to its previous self, so that one JKO step of a functional is
adversarial training of it: ``presets.gan(target, dim).run(noise, n_steps=1)`` trains a GAN for
``training.iterations`` updates, and further steps go on from there. Give ``JKOFlow`` the same functional and a finite
step size for the model's generative Wasserstein flow.

Each preset takes ``JKOFlow``'s keyword arguments (``map``, ``critic``, ``latent_dim``, ``training``, ``seed``,
``engine``). Hyperparameters are those of the paper named, of ``gan`` those of Radford et al. (2015); the ascents of a
critic within an iteration share a batch, where the papers draw one for each.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.training import Training
from gwf_fast.functionals.adversarial import IPM
from gwf_fast.functionals.base import FDivergence, Functional, JensenShannon, SquaredMMD
from gwf_fast.functionals.evaluation import Target
from gwf_fast.nn.divergences import ParametricName, VariationalName
from gwf_fast.pairs.kernels import Gaussian, Kernel

__all__ = ["f_gan", "gan", "gmmn", "wgan_gp", "wgan_sn"]

BANDWIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Of the mixture of Gaussian kernels of Li et al. (2017)."""


def gan(target: Target, dim: int, **options: Any) -> JKOFlow:
    """The GAN of Goodfellow et al. (2014), min over G of max over D of E log D(z) + E log(1 - D(G(u))).

    The discriminator is D = sigmoid(-v), with v the critic's raw output; the loss of G is the saturating one.

    Args:
        target: Samples of Q, [M, D] or a callable n -> [n, D].
        dim: D.
        options: For ``JKOFlow``.
    """
    return _flow(
        JensenShannon(target), dim, Training(critic_steps=1, lr=2e-4, betas=(0.5, 0.999), gradient_clip=None), options
    )


def f_gan(
    name: VariationalName | ParametricName,
    target: Target,
    dim: int,
    *,
    parameter: float | None = None,
    **options: Any,
) -> JKOFlow:
    """f-GAN (Nowozin et al. 2016), with the model first: their KL is our reverse KL, their Pearson our Neyman.

    Args:
        name: A row of ``gwf_fast.nn.divergences.DIVERGENCES``.
        target: Samples of Q, [M, D] or a callable n -> [n, D].
        dim: D.
        parameter: alpha or m, for the two rows that have one.
        options: For ``JKOFlow``.
    """
    return _flow(
        FDivergence(name, target, parameter), dim, Training(critic_steps=1, lr=1e-4, gradient_clip=None), options
    )


def wgan_gp(target: Target, dim: int, *, penalty: float = 10.0, **options: Any) -> JKOFlow:
    """WGAN with gradient penalty (Gulrajani et al. 2017): five ascents an iteration, Adam without momentum.

    Args:
        target: Samples of Q, [M, D] or a callable n -> [n, D].
        dim: D.
        penalty: lambda.
        options: For ``JKOFlow``.
    """
    training = Training(batch_size=64, critic_steps=5, lr=1e-4, betas=(0.0, 0.9), gradient_clip=None)
    return _flow(IPM(target, "gradient_penalty", penalty), dim, training, options)


def wgan_sn(target: Target, dim: int, **options: Any) -> JKOFlow:
    """WGAN whose critic is 1-Lipschitz by spectral normalisation (Miyato et al. 2018).

    Args:
        target: Samples of Q, [M, D] or a callable n -> [n, D].
        dim: D.
        options: For ``JKOFlow``.
    """
    training = Training(batch_size=64, critic_steps=5, lr=2e-4, betas=(0.0, 0.9), gradient_clip=None)
    return _flow(IPM(target, "spectral_norm"), dim, training, options)


def gmmn(target: Target, dim: int, *, kernel: Kernel | None = None, **options: Any) -> JKOFlow:
    """Generative moment matching network (Li et al. 2015; Dziugaite et al. 2015): G minimises MMD^2(G # rho, Q) / 2.

    MMD-GAN (Li et al. 2017) puts this kernel on features that it learns; here it acts on the samples.

    Args:
        target: Samples of Q, [M, D] or a callable n -> [n, D].
        dim: D.
        kernel: Of the MMD; None for a mixture of Gaussians of the bandwidths of MMD-GAN.
        options: For ``JKOFlow``.
    """
    if kernel is None:
        kernel = functools.reduce(operator.add, (Gaussian(h) for h in BANDWIDTHS))
    return _flow(
        SquaredMMD(target, kernel),
        dim,
        Training(batch_size=1000, lr=1e-3, pool_size=16384, gradient_clip=None),
        options,
    )


def _flow(functional: Functional, dim: int, training: Training, options: dict[str, Any]) -> JKOFlow:
    return JKOFlow(functional, dim, math.inf, parametrization="generator", **{"training": training, **options})
