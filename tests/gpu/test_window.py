"""Sums of weights are relative to the weights of a few columns: right also where those say nothing of the others."""

import pytest
import torch

pytest.importorskip("triton")

from gwf_fast.kernels.reference import pairs as reference
from gwf_fast.kernels.triton import pairs as backend
from gwf_fast.kernels.triton import pairs as triton_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-12}
PROFILES = {"gaussian": (0.0, 1.0, 1.0, 0.0), "laplace": (1.0, 1.0, 0.5, 0.0)}


@pytest.fixture(autouse=True)
def short_groups(monkeypatch):
    """128 columns a group, not 2,048: the interpreter is slow."""
    monkeypatch.setattr(backend, "GROUP", 4)


def clouds(kind, dtype):
    """x [1, 9, 2], y [1, 300, 2] and logarithms of weights [1, 300]: more columns than a group of tiles has."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 9, 2, dtype=torch.float64, generator=generator)
    y = torch.randn(1, 300, 2, dtype=torch.float64, generator=generator)
    beta = torch.randn(1, 300, dtype=torch.float64, generator=generator)
    if kind == "far first":  # the first group of tiles has nothing near
        y[:, :260] += 40.0
    elif kind == "near first":
        y[:, 40:] += 40.0
    elif kind == "one heavy":  # where no probe looks
        beta[0, 200] = 900.0
    elif kind == "steep":
        beta *= 300.0
    elif kind == "absent":
        beta[0, :280] = -torch.inf
    elif kind == "all far":
        x += 60.0
    return x.to(DEVICE, dtype), y.to(DEVICE, dtype), beta.to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", ["plain", "far first", "near first", "one heavy", "steep", "absent", "all far"])
def test_averages_and_logarithms(kind, profile, dtype):
    x, y, beta = clouds(kind, dtype)
    spec = PROFILES[profile]
    mean, logarithm = triton_backend.pair_average(x, y, None, beta, spec)
    want_mean, want = reference.pair_average(x.double(), y.double(), None, beta.double(), spec)
    # exponents up to `large` are what rounding errors are relative to
    large = max(1.0, want.abs().max().item())
    assert (logarithm.double() - want).abs().max() <= TOLERANCE[dtype] * large
    assert (mean.double() - want_mean).abs().max() <= TOLERANCE[dtype] * large * y.abs().max().item()
    alone = triton_backend.pair_logsumexp(x, y, beta, spec).double()
    assert (alone - want).abs().max() <= TOLERANCE[dtype] * large


def test_what_is_not_finite_stays_in_its_row():
    x, y, beta = clouds("plain", torch.float32)
    x[0, 4, 1] = float("nan")
    mean, logarithm = triton_backend.pair_average(x, y, None, beta, PROFILES["gaussian"])
    assert logarithm[0].isnan().nonzero().tolist() == [[4]]
    assert mean[0].isnan().any(1).nonzero().tolist() == [[4]]


def test_nothing_to_sum():
    x, y, beta = clouds("plain", torch.float32)
    out = triton_backend.pair_logsumexp(x, y, torch.full_like(beta, -torch.inf), PROFILES["gaussian"])
    assert (out == -torch.inf).all()
