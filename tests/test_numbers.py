"""Numbers are of any kind: Python's, NumPy's, or a tensor or array without dimensions, wherever one is an argument."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import gwf_fast as gwf
from gwf_fast.compat.pot import sliced_wasserstein_distance
from gwf_fast.pairs.validation import as_integer, as_number

GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(n, 2, generator=GENERATOR) for n in (12, 15))
K = gwf.Gaussian(1.0)
THETA = torch.eye(2)
NET = gwf.nn.MLP([2, 4, 1], "silu")

REAL: dict[str, Callable[[Any], Any]] = {  # at 0.5
    "Gaussian": lambda n: gwf.kernel_sum(X, Y, kernel=gwf.Gaussian(n)),
    "Riesz": lambda n: gwf.Riesz(n),
    "RationalQuadratic": lambda n: gwf.RationalQuadratic(n, n) if not isinstance(n, torch.Tensor) else None,
    "Morse": lambda n: gwf.Morse(n, n, n, n),
    "PowerLaw": lambda n: gwf.PowerLaw(n, n),
    "multiple": lambda n: K * n,
    "multiple from the left": lambda n: n * K,
    "quotient": lambda n: K / n,
    "NUFFT": lambda n: gwf.NUFFT(tolerance=n * 0.125),
    "parzen_score": lambda n: gwf.parzen_score(X, Y, n),
    "forward_step": lambda n: gwf.forward_step(X, n, kernel=K),
    "blob_velocity": lambda n: gwf.blob_velocity(X, n, m=n + 1),
    "sinkhorn": lambda n: gwf.sinkhorn(X, Y, epsilon=n, tolerance=n, marginal_strength=n, scaling=n).f,
    "drift.sinkhorn": lambda n: gwf.drift.sinkhorn(X, Y, epsilon=n, marginal_strength=n),
    "barycentric_map": lambda n: gwf.barycentric_map(X, Y, torch.zeros(15), epsilon=n),
    "sliced_energy_distance": lambda n: gwf.sliced_energy_distance(X, Y, exponent=n, directions=THETA),
    "drift.energy": lambda n: gwf.drift.energy(X, Y, exponent=n),
    "drift.mmd": lambda n: gwf.drift.mmd(X, Y, kernel=K, noise=n, generator=torch.Generator().manual_seed(0)),
    "drift.parzen_kl": lambda n: gwf.drift.parzen_kl(X, Y, n),
    "drift.f_divergence": lambda n: gwf.drift.f_divergence(X, Y, n, divergence=("alpha", n)),
    "drift.coupling": lambda n: gwf.drift.coupling(X, Y, temperature=[n]),
    "drift.gmd": lambda n: gwf.drift.gmd(X, Y, temperature=n, clip=n),
    "drift.gmd_multi": lambda n: gwf.drift.gmd_multi(X, Y, temperatures=[n], clip=n).velocity,
    "drift.critic": lambda n: gwf.drift.critic(X, NET, transform="minimax", shift=n),
    "drift.critic_step": lambda n: gwf.drift.critic_step(X, NET, n, bounds=(-n, n)),
    "critic_objective": lambda n: gwf.nn.critic_objective(
        NET, X, Y, divergence=("entropy", n + 1), penalty=n, mixing=torch.ones(12)
    ),
    "ICNNGradient": lambda n: gwf.nn.ICNNGradient(2, convexity=n).config,
    "Training": lambda n: gwf.Training(lr=n, critic_lr=n, gamma=n, dropout=n, weight_decay=n, ema=n, betas=(n, n)),
    "JKOFlow": lambda n: gwf.JKOFlow(gwf.JensenShannon(Y), 2, n).step_size,
    "DriftingModel": lambda n: vars(gwf.DriftingModel("energy", 2, lr=n, ema=n, betas=(n, n)))["lr"],
    "IPM": lambda n: gwf.IPM(Y, penalty=n).penalty,
    "MMDUnbalanced": lambda n: gwf.MMDUnbalanced(Y, K, n).strength,
    "GeneralizedEntropy": lambda n: (gwf.GeneralizedEntropy(n + 1, n).m, gwf.GeneralizedEntropy(2, n).bandwidth),
    "multiple of a functional": lambda n: [c for c, _ in (n * gwf.Interaction(K)).terms],
    "BayesianLogisticRegression": lambda n: gwf.potentials.BayesianLogisticRegression(X, torch.ones(12), n).rate,
    "sliced_wasserstein_distance": lambda n: sliced_wasserstein_distance(X, Y, p=n + 1, projections=THETA),
}
WHOLE: dict[str, Callable[[Any], Any]] = {  # at 4
    "Sliced": lambda n: gwf.Sliced(n).n_projections,
    "sliced_wasserstein2": lambda n: gwf.sliced_wasserstein2(X, Y, n_projections=n, generator=seeded()),
    "drift.sliced_wasserstein": lambda n: gwf.drift.sliced_wasserstein(X, Y, n_projections=n, generator=seeded()),
    "sinkhorn": lambda n: gwf.sinkhorn(X, Y, epsilon=9.0, max_iterations=n).f,
    "LearnedCritic": lambda n: gwf.drift.LearnedCritic(2, steps=n).steps,
    "ICNNGradient": lambda n: gwf.nn.ICNNGradient(n, [n]).config,
    "MLP": lambda n: gwf.nn.MLP([n, n]).config,
    "Training": lambda n: gwf.Training(batch_size=n, iterations=n, critic_steps=n, pool_size=n, milestones=(n,)),
    "JKOFlow": lambda n: gwf.JKOFlow(gwf.JensenShannon(Y), n, 1.0).dim,
    "DriftingModel": lambda n: gwf.DriftingModel("energy", n, batch_size=n).batch_size,
}
REALS: dict[str, Callable[[Any], Any]] = {
    "float32": np.float32, "float64": np.float64, "array": np.array, "tensor": torch.tensor, "fraction": Fraction,
    "wide tensor": lambda v: torch.tensor(v, dtype=torch.float64),
}  # fmt: skip
INTEGERS: dict[str, Callable[[Any], Any]] = {
    "int32": np.int32,
    "uint8": np.uint8,
    "array": np.array,
    "tensor": torch.tensor,
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def same(got: Any, want: Any) -> bool:
    if isinstance(want, torch.Tensor):
        return torch.equal(got, want)
    return bool(got == want) and repr(got) == repr(want)  # kinds too: JSON knows Python's only


@pytest.mark.parametrize("kind", REALS)
@pytest.mark.parametrize("name", REAL)
def test_reals(name: str, kind: str) -> None:
    number = REALS[kind](0.5)
    if isinstance(number, torch.Tensor) and name in ("Gaussian", "RationalQuadratic", "parzen_score"):
        pytest.skip("a bandwidth that is a tensor is one that may be differentiated")
    assert same(REAL[name](number), REAL[name](0.5))


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", WHOLE)
def test_integers(name: str, kind: str) -> None:
    assert same(WHOLE[name](INTEGERS[kind](4)), WHOLE[name](4))


NO_NUMBERS = (True, "1", None, 1j, np.bool_(True), torch.ones(1), torch.tensor(True), np.ones(1), [1.0])


@pytest.mark.parametrize("value", [*NO_NUMBERS, torch.tensor(1.0, requires_grad=True)], ids=str)
def test_what_is_no_number(value: Any) -> None:
    """A tensor that requires grad is none: its gradient would be lost in silence."""
    with pytest.raises(TypeError, match=r"^epsilon must be a positive number, got \w"):
        gwf.sinkhorn(X, Y, epsilon=value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 2.0, np.float64(2), torch.tensor(2.0)], ids=str)
def test_what_is_no_integer(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^n must be a positive integer, got \w"):
        as_integer("n", value)


@pytest.mark.parametrize(
    ("limits", "good", "bad"),
    [
        ({}, (-1e300, 0), (float("inf"), float("nan"))),
        ({"above": 0}, (1e-300, 5), (0, -1.0, float("inf"))),
        ({"least": 0}, (0, 5), (-1e-300, float("nan"))),
        ({"below": 1}, (0.999, -5), (1, 2.0, float("-inf"))),
        ({"most": 1}, (1, -5), (1.001, float("nan"))),
    ],
)
def test_ranges(limits: dict[str, Any], good: tuple[float, ...], bad: tuple[float, ...]) -> None:
    for value in good:
        assert as_number("n", value, **limits) == value and type(as_number("n", value, **limits)) is float
    for value in bad:
        with pytest.raises(ValueError, match=r"^n must be a finite number, got "):
            as_number("n", value, **limits)
