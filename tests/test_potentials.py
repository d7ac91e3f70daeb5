"""Potentials: densities integrate, scores are gradients, samples have the right moments."""

import math

import pytest
import torch

from gwf_fast.potentials import BayesianLogisticRegression, Gaussian, GaussianMixture

DTYPE = torch.float64


def _gaussian(d: int = 3) -> Gaussian:
    a = torch.randn(d, d, dtype=DTYPE)
    return Gaussian(torch.randn(d, dtype=DTYPE), a @ a.T + 0.5 * torch.eye(d, dtype=DTYPE))


def _mixture() -> GaussianMixture:
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DTYPE)
    return GaussianMixture(2 * torch.randn(4, 3, dtype=DTYPE), torch.tensor([0.5, 1.0, 1.5, 0.7], dtype=DTYPE), weights)


def _regression() -> BayesianLogisticRegression:
    return BayesianLogisticRegression(torch.randn(50, 2, dtype=DTYPE), torch.randn(50).sign(), rate=0.3)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("make", [_gaussian, _mixture, _regression])
@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 3), (1, 3)])
def test_score_is_the_gradient(make, shape):
    q = make()
    x = torch.randn(shape, dtype=DTYPE, requires_grad=True)
    value = q.log_density(x)
    assert value.shape == shape[:-1]
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(q.score(x), gradient, rtol=1e-12, atol=1e-12)
    torch.autograd.gradcheck(q.log_density, (x,))


def test_gaussian_against_torch():
    q = _gaussian()
    truth = torch.distributions.MultivariateNormal(q.mean, q.covariance)
    x = torch.randn(11, 3, dtype=DTYPE)
    torch.testing.assert_close(q.log_density(x), truth.log_prob(x), rtol=1e-12, atol=1e-12)


def test_gaussian_fit_and_whiten():
    x = torch.randn(500, 3, dtype=DTYPE) @ torch.randn(3, 3, dtype=DTYPE) + 100
    q = Gaussian.fit(x)
    torch.testing.assert_close(q.mean, x.mean(0))
    torch.testing.assert_close(q.covariance, torch.cov(x.T), rtol=1e-4, atol=1e-5)  # up to the ridge
    torch.testing.assert_close(torch.cov(q.whiten(x).T), torch.eye(3, dtype=DTYPE), rtol=1e-4, atol=1e-4)


def test_gaussian_fit_of_a_degenerate_cloud_is_finite():
    line = torch.linspace(0, 1, 50, dtype=DTYPE)[:, None] * torch.ones(1, 3, dtype=DTYPE)
    assert Gaussian.fit(line).log_density(line).isfinite().all()


def test_mixture_density_integrates_to_one():
    q = GaussianMixture(torch.tensor([[-1.0], [2.0]], dtype=DTYPE), torch.tensor([0.5, 1.0]), torch.tensor([1.0, 3.0]))
    x = torch.linspace(-10, 12, 20001, dtype=DTYPE)
    assert torch.trapezoid(q.log_density(x[:, None]).exp(), x).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("make", [_gaussian, _mixture])
def test_samples_have_the_moments_of_the_density(make):
    q = make()
    x = q.sample(200_000)
    if isinstance(q, Gaussian):
        mean, covariance = q.mean, q.covariance
    else:
        w = q.weights / q.weights.sum()
        mean = w @ q.means
        centred = q.means - mean
        covariance = (centred.T * w) @ centred + (w @ q.scales**2) * torch.eye(3, dtype=DTYPE)
    largest = covariance.diagonal().max().item()
    error = 5 * math.sqrt(largest / len(x))  # five standard errors
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=error)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=1.5 * error * math.sqrt(largest))


def test_regression_against_its_factors():
    """The posterior as a product of textbook densities, in the coordinate log a."""
    q = _regression()
    x = torch.randn(4, 3, dtype=DTYPE)
    w, log_a = x[:, :2], x[:, 2]
    prior = torch.distributions.Normal(0, (-log_a / 2).exp()[:, None]).log_prob(w).sum(-1)
    gamma = torch.distributions.Gamma(torch.tensor(1.0, dtype=DTYPE), q.rate).log_prob(log_a.exp())
    labels = (q.labels.to(DTYPE) + 1) / 2
    likelihood = torch.distributions.Bernoulli(logits=w @ q.features.T).log_prob(labels).sum(-1)
    torch.testing.assert_close(q.log_density(x), prior + gamma + log_a + likelihood, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Gaussian(torch.zeros(2), torch.eye(3)), "covariance"),
        (lambda: Gaussian(torch.zeros(2), -torch.eye(2)), "covariance"),
        (lambda: Gaussian(torch.tensor([0.0, math.nan]), torch.eye(2)), "mean"),
        (lambda: Gaussian(torch.zeros(2, dtype=torch.int64), torch.eye(2)), "mean"),
        (lambda: GaussianMixture(torch.zeros(3, 2), scales=0.0), "scales"),
        (lambda: GaussianMixture(torch.zeros(3, 2), weights=torch.ones(2)), "weights"),
        (lambda: BayesianLogisticRegression(torch.zeros(3, 2), torch.tensor([0, 1, 1])), "labels"),
        (lambda: BayesianLogisticRegression(torch.zeros(3, 2), torch.ones(3), rate=-1.0), "rate"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(ValueError, match=f"^{name}(:| must be) "):
        make()
