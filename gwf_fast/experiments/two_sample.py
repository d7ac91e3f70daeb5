"""Are generated images distributed like real ones? Distances between samples, and what a classifier makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gwf_fast.measures.discrepancy import median_bandwidth, mmd2
from gwf_fast.pairs.kernels import Gaussian, Riesz


def two_sample_checks(images: Tensor, labels: Tensor, clouds: dict[str, Tensor]) -> dict[str, Any]:
    """Clouds of images against one half of the real ones, beside what the other half gives.

    The squared energy distance and the squared MMD (Gaussian kernel, median bandwidth), both unbiased: around 0 for two
    samples of one distribution. And a classifier of real digits: how sure it is of its answers, and how far the
    frequencies of the answers are from those of real digits, as a total variation.

    Args:
        images: Real ones [N, D].
        labels: Theirs [N], from 0.
        clouds: Other images [n, D] by name; "real" is taken.

    Returns:
        Numbers by CHECK_CLOUD.
    """
    from sklearn.linear_model import LogisticRegression

    train, held = torch.randperm(len(images)).chunk(2)
    classifier = LogisticRegression(max_iter=1000).fit(images[train].numpy(), labels[train].numpy())
    seen = torch.from_numpy(classifier.classes_)  # of a rare class the half may have none
    classes = int(labels.max()) + 1
    frequencies = torch.bincount(labels, minlength=classes) / len(labels)
    gaussian = Gaussian(float(median_bandwidth(images[train])))
    checks: dict[str, Any] = {
        "classifier_accuracy": float(classifier.score(images[held].numpy(), labels[held].numpy()))
    }
    for name, cloud in {**clouds, "real": images[held]}.items():
        probabilities = torch.from_numpy(classifier.predict_proba(cloud.numpy()))
        answers = torch.bincount(seen[probabilities.argmax(1)], minlength=classes) / len(cloud)
        checks[f"energy_distance_{name}"] = mmd2(cloud, images[train], kernel=Riesz(), unbiased=True).item()
        checks[f"mmd2_{name}"] = mmd2(cloud, images[train], kernel=gaussian, unbiased=True).item()
        checks[f"classifier_confidence_{name}"] = probabilities.max(1)[0].mean().item()
        checks[f"classifier_variation_{name}"] = (answers - frequencies).abs().sum().item() / 2
    return checks
