"""Bayesian logistic regression (Fan et al., 2022, section 5.3): KL to the posterior of weights and precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gwf_fast.experiments import base, inputs
from gwf_fast.experiments.computation import Flow
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.state import FlowResult
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import KL
from gwf_fast.nn import MLP
from gwf_fast.potentials import BayesianLogisticRegression


@dataclass(frozen=True, kw_only=True)
class _Settings(base.FlowSettings):
    input: str = base.option(f"data file: {inputs.ENDINGS}; default scikit-learn's breast cancer data", "")


# The posterior is about 1/sqrt(S) wide, so a step of the flow is counted in units of 1/S.
_DEFAULTS = _Settings(particles=4096, steps=12, step_size=4.0, iterations=250, batch_size=512)


def load(path: str) -> tuple[Tensor, Tensor]:
    """Features [S, n] and labels [S] in {-1, +1}: of a file, or scikit-learn's breast cancer data."""
    if path:
        return inputs.read_labelled(path)
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise ValueError(
            "the default data of 'blr' needs scikit-learn: pip install scikit-learn; or give --input"
        ) from None
    data = load_breast_cancer()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(2.0 * data.target - 1, dtype=torch.float32)


def split(features: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features standardised by the training part and a constant appended, labels, training and test rows, 4:1."""
    order = torch.randperm(len(features), generator=base.generator(seed))
    n_train = round(0.8 * len(features))
    train, test = order[:n_train], order[n_train:]
    mean, scale = features[train].mean(0), features[train].std(0)
    scale = torch.where(scale > 0, scale, 1.0)  # a constant column stays constant
    features = torch.cat(((features - mean) / scale, torch.ones(len(features), 1)), 1)
    return features, labels, train, test


def build(settings: _Settings) -> base.Problem:
    """Prior and posterior over the weights of all features and the log of their precision."""
    features, labels, train, test = split(*load(settings.input), settings.seed)
    n_train = len(train)
    if n_train < 2 or len(test) == 0:
        raise ValueError(
            f"input must have at least 3 labelled rows, to train on 4 of 5 and test on the others, got {len(labels)}"
        )
    posterior = BayesianLogisticRegression(features[train], labels[train])
    dim = posterior.dim
    width = 32 if dim <= 32 else 128
    flow = JKOFlow(
        KL(posterior),
        dim,
        settings.step_size / n_train,
        map=MLP([dim, *[width] * 4, dim], residual=True),
        critic=MLP([dim, *[width] * 3, 1]),
        training=Training(
            batch_size=settings.batch_size,
            iterations=settings.iterations,
            critic_steps=3,
            map_steps=1,
            lr=1e-3,
            critic_lr=3e-4,  # at 1e-3 a batch with a large e^v spoils Adam's second moments: splice diverged
            lr_schedule="cosine",
            gradient_clip=10.0,
            pool_size=settings.particles,
        ),
        seed=settings.seed,
    )

    def source(n: int) -> Tensor:
        return torch.randn(n, dim)

    def probabilities(x: Tensor) -> Tensor:
        """Posterior predictive P(y = 1) of the test rows, [S_test]."""
        return torch.sigmoid(features[test] @ x[:, :-1].T).mean(1)

    def metrics(result: FlowResult) -> dict[str, float]:
        p = probabilities(result.particles)
        signs = labels[test]
        return {
            "test_accuracy": ((p > 0.5) == (signs > 0)).float().mean().item(),
            "test_log_likelihood": torch.where(signs > 0, p, 1 - p).log().mean().item(),
            "n_train": len(train),
            "n_test": len(test),
        }

    def figure(result: FlowResult, path: Path) -> None:
        trajectory = result.trajectory(source(512))
        accuracy = [((probabilities(x) > 0.5) == (labels[test] > 0)).float().mean().item() for x in trajectory]
        _draw(result, probabilities(result.particles), labels[test] > 0, accuracy, path)

    return base.Problem(Flow(flow, source, settings.steps), figure, metrics)


def _draw(result: FlowResult, p: Tensor, positive: Tensor, accuracy: list[float], path: Path) -> None:
    plt = base.pyplot()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 3.8), layout="constrained")
    steps = [record.step for record in result.history]
    left.plot(steps, [record.value for record in result.history], "o-", color="#35618f", markersize=4)
    left.set(xlabel="JKO step", ylabel="KL to the posterior + constant", title="Functional along the flow")
    middle.plot(range(len(accuracy)), accuracy, "o-", color="#d1495b", markersize=4)
    middle.set(xlabel="JKO step", ylabel="test accuracy", title=f"Predictive accuracy, at the end {accuracy[-1]:.3f}")
    edges = torch.linspace(0, 1, 7)
    which = torch.bucketize(p, edges[1:-1])
    counts = torch.bincount(which, minlength=6)
    filled = counts > 0
    predicted = torch.bincount(which, weights=p, minlength=6)[filled] / counts[filled]
    observed = torch.bincount(which, weights=positive.float(), minlength=6)[filled] / counts[filled]
    right.plot([0, 1], [0, 1], color="grey", linewidth=1)
    error = (observed * (1 - observed) / counts[filled]).sqrt()
    right.errorbar(
        *(base.as_array(x) for x in (predicted, observed, error)), fmt="o", color="#3b7a57", markersize=5, capsize=3
    )
    for x, y, n in zip(predicted.tolist(), observed.tolist(), counts[filled].tolist(), strict=True):
        right.annotate(f"{n}", (x, y), textcoords="offset points", xytext=(6, -11), fontsize=8)
    right.set(xlabel="predicted P(y = 1)", ylabel="observed frequency", title="Calibration on the test set")
    base.save_figure(figure, path)


EXPERIMENT = base.Experiment(
    "blr",
    "Bayesian logistic regression: breast cancer data, or a labelled file (--input)",
    _DEFAULTS,
    build,
)
