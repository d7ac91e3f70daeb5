"""Bad input: one line that names the argument, what came and what was expected."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.pairs import validation as _validation

K = gwf.Gaussian(1.0)
X, Y = torch.randn(4, 2), torch.randn(3, 2)
REDUCTIONS = [gwf.kernel_sum, gwf.kernel_gradient, gwf.kernel_logsumexp, gwf.kernel_average]

POINTS = [
    (X[0], Y, {}, ValueError, r"x must have shape \[\*B, N, D\]"),
    (X, torch.randn(3, 5), {}, ValueError, "y must have the dimension of x, D = 2"),
    (X.long(), Y.long(), {}, TypeError, "x must have a floating dtype"),
    (X.tolist(), Y, {}, TypeError, "x must be a torch.Tensor, got list"),
    (X, None, {}, TypeError, "y must be a torch.Tensor, got NoneType"),
    (X, Y.to("meta"), {}, TypeError, "y must have values, got a meta tensor"),
    (X.to("meta"), Y.to("meta"), {}, TypeError, "x must have values, got a meta tensor"),
    (X.expand(5, 4, 2), Y.expand(2, 3, 2), {}, ValueError, r"y must have the batch dimensions of x, \[5\]"),
    (X[:, :0], Y[:, :0], {}, ValueError, "D >= 1"),
    (X, Y, {"kernel": 1.0}, TypeError, "kernel must be a kernel"),
    (X, Y, {"exclude_self": True}, ValueError, "exclude_self=True needs x and y to be the same set"),
    (X, Y, {"backend": "fortran"}, ValueError, "backend must be None or one of cpp, cuda"),
    (X, Y, {"backend": "cuda"}, ValueError, "backend='cuda' can't serve torch.float32 tensors on cpu"),
    (X, Y, {"x_lengths": torch.tensor([4])}, ValueError, "x_lengths must have the batch shape"),
    (X[None], Y[None], {"x_lengths": torch.tensor([5])}, ValueError, r"x_lengths must lie in 0\.\.4"),
    (
        X[None],
        Y[None],
        {"x_lengths": torch.tensor([5]), "backend": "torch"},
        ValueError,
        r"x_lengths must lie in 0\.\.4",
    ),
    (
        X[None],
        Y[None],
        {"y_lengths": torch.tensor([-1]), "backend": "torch"},
        ValueError,
        r"y_lengths must lie in 0\.\.3",
    ),
    (X[None], Y[None], {"y_lengths": torch.tensor([3.0])}, TypeError, "y_lengths must be an int64 tensor"),
    (X[None], Y[None], {"y_lengths": [3]}, TypeError, "y_lengths must be an int64 tensor, got list"),
]


@pytest.mark.parametrize(("x", "y", "options", "error", "message"), POINTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_points_and_options(reduction, x, y, options, error, message):
    with pytest.raises(error, match=message) as caught:
        reduction(x, y, **{"kernel": K, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("device", "other"), [("cpu", "cuda:0"), ("cuda:0", "cuda:1")])
def test_two_devices(device, other):
    """Stand-ins: where there is no second device, no tensor with values is on one."""
    x, y = (SimpleNamespace(dtype=torch.float32, device=torch.device(name)) for name in (device, other))
    message = f"y must be on the device of x, {device}, got {other}: move it there"
    with pytest.raises(ValueError, match=message) as caught:
        _validation._check_same("y", y, x)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reduction", REDUCTIONS[:2])
def test_method(reduction):
    with pytest.raises(ValueError, match="method must be one of exact, nufft"):
        reduction(X, Y, kernel=K, method="magic")


@pytest.mark.parametrize(
    ("reduction", "name", "value", "error", "message"),
    [
        (gwf.kernel_sum, "weights", torch.ones(4), ValueError, r"must have shape \[3\] or \[3, C\] .* got \[4\]"),
        (gwf.kernel_sum, "weights", torch.ones(1, 3, 2), ValueError, r"must have shape \[3\]"),
        (gwf.kernel_sum, "weights", [1.0] * 3, TypeError, "must be a torch.Tensor"),
        (gwf.kernel_sum, "weights", torch.ones(3, dtype=torch.int64), TypeError, "must have a floating dtype"),
        (gwf.kernel_gradient, "weights", torch.ones(3, 2), ValueError, r"must have shape \[3\] to go"),
        (gwf.kernel_logsumexp, "log_weights", torch.ones(3, 1), ValueError, r"must have shape \[3\] to go"),
        (gwf.kernel_average, "log_weights", torch.ones(2), ValueError, r"must have shape \[3\] to go"),
        (gwf.kernel_average, "values", torch.ones(3), ValueError, r"must have shape \[\*B, M, C\]"),
        (gwf.kernel_average, "values", torch.ones(4, 2), ValueError, "values must have shape"),
    ],
)
def test_companions(reduction, name, value, error, message):
    with pytest.raises(error, match=message):
        reduction(X, Y, kernel=K, **{name: value})


@pytest.mark.parametrize("kernel", [gwf.Riesz(), gwf.Gaussian(1.0) - gwf.Laplace(1.0), gwf.PowerLaw(2, 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS[2:])
def test_logarithm_of_a_kernel_that_is_not_positive(reduction, kernel):
    with pytest.raises(ValueError, match="kernel must be positive in every term"):
        reduction(X, Y, kernel=kernel)


def test_average_over_nothing():
    with pytest.raises(ValueError, match="something to average over"):
        gwf.kernel_average(X, Y[:0], kernel=K)
    with pytest.raises(ValueError, match="no other point"):
        gwf.kernel_average(X[:1], X[:1], kernel=K, exclude_self=True)
    with pytest.raises(ValueError, match="something to average over"):
        gwf.kernel_average(X[None], Y[None], kernel=K, y_lengths=torch.tensor([0]))


def test_discrepancies():
    with pytest.raises(ValueError, match="x must have at least two points for unbiased=True"):
        gwf.mmd2(X[:1], Y, kernel=K, unbiased=True)
    with pytest.raises(ValueError, match="y must have at least one point"):
        gwf.mmd2(X, Y[:0], kernel=K)
    with pytest.raises(ValueError, match=r"x_weights must have shape \[4\] to go with x"):
        gwf.mmd2(X, Y, kernel=K, x_weights=torch.ones(3))
    with pytest.raises(TypeError, match="kernel must be a kernel"):
        gwf.mmd2(X, Y, kernel=None)
    with pytest.raises(ValueError, match="bandwidth must be a positive number"):
        gwf.parzen_score(X, Y, 0.0)
    with pytest.raises(ValueError, match="a sample other than"):
        gwf.parzen_log_density(X[:1], X[:1], 1.0, exclude_self=True)
    with pytest.raises(ValueError, match="x must have at least two points"):
        gwf.median_bandwidth(X[:1])
