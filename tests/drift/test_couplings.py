"""Drifts along couplings against dense float64 transcriptions of their papers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import gwf_fast as gwf
from tests.drift import dense
from tests.drift.dense import F64, draw

COUPLINGS, FORMS = ("row", "two_sided", "sinkhorn"), ("split", "joint")
ALL = list(itertools.product(COUPLINGS, ("l2", "l2_sq"), FORMS))
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def sets(*batch: int, n: int = 9, p: int = 13, m: int = 11, dim: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return draw(*batch, n, dim, seed=0), draw(*batch, p, dim, seed=1) + 0.4, draw(*batch, m, dim, seed=2)


@pytest.mark.parametrize(("coupling", "metric", "form"), ALL)
def test_couplings_are_what_papers_write(coupling: str, metric: str, form: str) -> None:
    x, y, z = sets(2)
    logs = draw(2, 13, seed=3), draw(2, 11, seed=4)
    logs[0][0, 2] = logs[1][1, 10] = -math.inf
    options: dict[str, Any] = {"coupling": coupling, "metric": metric, "form": form, "n_sweeps": 7}
    cases: list[tuple[Tensor | None, bool]] = [
        (None, False), (z, False), (z, True), (torch.cat((x, z[:, :2]), 1), True)
    ]  # fmt: skip
    for negatives, weighted in cases:
        given: dict[str, Any] = {"y_log_weights": logs[0], "negatives_log_weights": logs[1]} if weighted else {}
        first = negatives is not None and negatives.shape[1] == 11 and bool((negatives[:, 0] == x[:, 0]).all())
        own = (negatives is None and coupling != "sinkhorn") or first
        got = gwf.drift.coupling(
            x, y, temperature=0.8, negatives=negatives, exclude_self=True if first else None, **given, **options
        )
        for b in range(2):
            parts: dict[str, Any] = {"y_logs": logs[0][b], "negatives_logs": logs[1][b]} if weighted else {}
            others = x[b] if negatives is None else negatives[b]
            want = dense.drift(x[b], y[b], others, 0.8, own=own, **parts, **options)
            torch.testing.assert_close(got[b], want, **CLOSE)


def test_the_row_coupling_is_the_drift_that_was_proposed() -> None:
    """E_p[k (y - x)] / E_p k - E_q[k (y - x)] / E_q k, k = e^(-r/T)."""
    x, y, _ = sets(n=20, p=30)
    mean = torch.zeros_like(x)
    for points, own, sign in ((y, False, 1), (x, True, -1)):
        k = dense.exponents(x, points, 0.7, own=own).exp()
        steps = points[None] - x[:, None]
        mean += sign * (k[..., None] * steps).mean(1) / k.mean(1, keepdim=True)
    torch.testing.assert_close(gwf.drift.coupling(x, y, temperature=0.7), mean, **CLOSE)


def test_the_joint_two_sided_coupling_is_gmd() -> None:
    x, y, z = sets(3)
    for negatives in (None, z):
        got = gwf.drift.coupling(x, y, temperature=0.5, coupling="two_sided", form="joint", negatives=negatives)
        torch.testing.assert_close(got, gwf.drift.gmd(x, y, temperature=0.5, negatives=negatives), **CLOSE)


def test_many_sweeps_are_the_converged_plan() -> None:
    """Of the squared distance over T, half of which is Sinkhorn's cost at T / 2."""
    x, y, _ = sets(n=12, p=12)
    got = gwf.drift.coupling(x, y, temperature=2.0, coupling="sinkhorn", metric="l2_sq", n_sweeps=300)
    want = gwf.drift.sinkhorn(x, y, epsilon=1.0, tolerance=1e-13, max_iterations=2000)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_more_points_than_a_cache_holds() -> None:
    x, y, _ = sets(n=400, p=390)
    for coupling, form in itertools.product(COUPLINGS, FORMS):
        options: dict[str, Any] = {"coupling": coupling, "form": form, "n_sweeps": 3}
        want = dense.drift(x, y, x, 0.6, own=coupling != "sinkhorn", **options)
        got = gwf.drift.coupling(x.float(), y.float(), temperature=0.6, **options)
        assert (got - want).norm() / want.norm() < 1e-4


@pytest.mark.parametrize(("coupling", "form"), list(itertools.product(COUPLINGS, FORMS)))
def test_ragged_sets_are_their_members(coupling: str, form: str) -> None:
    x, y, z = sets(3, n=6, p=8, m=7)
    lengths = [torch.tensor(sizes) for sizes in ([6, 2, 4], [8, 1, 5], [7, 3, 2])]
    logs = draw(3, 8, seed=3), draw(3, 7, seed=4)
    named: dict[str, Any] = dict(zip(("x_lengths", "y_lengths", "negatives_lengths"), lengths, strict=True))
    weights: dict[str, Any] = dict(zip(("y_log_weights", "negatives_log_weights"), logs, strict=True))
    for points, size in zip((x, y, z, *logs), (*lengths, *lengths[1:]), strict=True):
        for b in range(3):
            points[b, size[b] :] = math.nan
    choices: list[dict[str, Any]] = [{}, {"negatives": z, **weights}]
    for options in choices:
        some: dict[str, Any] = named if options else {name: named[name] for name in ("x_lengths", "y_lengths")}
        how: dict[str, Any] = {
            "temperature": [0.5, 2.0],
            "coupling": coupling,
            "form": form,
            "normalization": "problem",
            "n_sweeps": 4,
        }
        got = gwf.drift.coupling(x, y, **options, **some, **how)
        sizes = {"y_log_weights": lengths[1], "negatives": lengths[2], "negatives_log_weights": lengths[2]}
        for b in range(3):
            n, m = int(lengths[0][b]), int(lengths[1][b])
            each = {k: v[b, : sizes[k][b]] for k, v in options.items()}
            want = gwf.drift.coupling(x[b, :n], y[b, :m], **each, **how)
            torch.testing.assert_close(got[b, :n], want, **CLOSE)
            assert (got[b, n:] == 0).all()


@pytest.mark.parametrize(("coupling", "metric", "form"), ALL)
def test_derivatives_are_those_of_the_dense_formula(coupling: str, metric: str, form: str) -> None:
    """Of first and second order, in points and logarithms of weights, through the sweeps."""
    x, y, z = sets(n=4, p=5, m=6, dim=2)
    inputs = [x, y, z, draw(5, seed=3), draw(6, seed=4)]
    u, w = draw(4, 2, seed=5), [draw(*t.shape, seed=6) for t in inputs]
    options: dict[str, Any] = {"coupling": coupling, "metric": metric, "form": form, "n_sweeps": 3}

    def ours(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        given: dict[str, Any] = {"negatives": z, "y_log_weights": a, "negatives_log_weights": b}
        return gwf.drift.coupling(x, y, temperature=0.9, **given, **options)

    def theirs(x: Tensor, y: Tensor, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return dense.drift(x, y, z, 0.9, y_logs=a, negatives_logs=b, **options)

    found = []
    for function in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in inputs]
        first = torch.autograd.grad((u * function(*leaves)).sum(), leaves, create_graph=True)
        slope = torch.stack([(c * g).sum() for c, g in zip(w, first, strict=True)]).sum()
        found.append([*first, *torch.autograd.grad(slope, leaves)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


PAIR = torch.zeros(2, 3)
NONE = torch.full((2,), -math.inf)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coupling": "column"}, "coupling must be one of row, two_sided, sinkhorn, got 'column'"),
        ({"metric": "l1"}, "metric must be one of l2, l2_sq, got 'l1'"),
        ({"form": "both"}, "form must be one of split, joint, got 'both'"),
        ({"n_sweeps": 0}, "n_sweeps must be a positive integer, got 0"),
        ({"temperature": []}, "temperature must be a positive number or a list of them, got none"),
        ({"temperature": [1.0, -1.0]}, "temperature must be a positive number, got -1.0"),
        ({"normalization": "batch"}, "normalization must be None or \"problem\", got 'batch'"),
        ({"y_log_weights": NONE}, "y_log_weights must be above -inf somewhere in each set, got values in -inf..-inf"),
        ({"y_log_weights": -NONE}, "y_log_weights must be less than infinity"),
        ({"y_log_weights": PAIR}, r"y_log_weights must have shape \[2\]"),
        (
            {"negatives_log_weights": torch.tensor([-math.inf, 0.0])},
            "negatives_log_weights must be above -inf somewhere in each set besides the particle itself",
        ),
        ({"negatives": PAIR[:1], "exclude_self": True}, "exclude_self=True needs at least as many negatives"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gwf.drift.coupling(PAIR, PAIR + 1, **{"temperature": 1.0, **options})


@pytest.mark.parametrize("scale", [1e-28, 1e27])
def test_costs_that_float32_does_not_have(scale: float) -> None:
    """Potentials are of the size of squared distances: 1e-56 and 1e54 became 0 and NaN where plans are compiled."""
    options: dict[str, Any] = {"coupling": "sinkhorn", "metric": "l2_sq", "n_sweeps": 3}
    x, y, _ = sets(n=7, p=5)
    want = gwf.drift.coupling(x, y, temperature=1.0, **options)
    got = gwf.drift.coupling((x * scale).float(), (y * scale).float(), temperature=scale**2, **options)
    torch.testing.assert_close(got.double() / scale, want, rtol=0, atol=1e-5)


def test_nothing_moves_nothing() -> None:
    coupling: Any
    for coupling in COUPLINGS:
        none = gwf.drift.coupling(PAIR[:0], PAIR[:0], temperature=1.0, coupling=coupling)
        assert none.shape == (0, 3)
    assert gwf.drift.coupling(torch.zeros(0, 2, 3), torch.zeros(0, 4, 3), temperature=1.0).shape == (0, 2, 3)
    none, z = torch.zeros(0, 4, 3), torch.zeros(0, 2, 3)
    sizes = torch.zeros(0, dtype=torch.int64)
    choices: list[dict[str, Any]] = [
        {},
        {"x_lengths": sizes},
        {"clip": 1e-6, "y_log_weights": none[..., 0], "negatives": z},
    ]
    for options in choices:
        assert gwf.drift.gmd(z, none, temperature=[1.0, 2.0], **options).shape == z.shape
    x = torch.zeros(4, 2, dtype=F64)
    assert torch.equal(gwf.drift.coupling(x, x, temperature=1.0, normalization="problem"), x)
