"""Grouping by class: members, the way back, gradients, and what bad labels are told."""

from __future__ import annotations

import pytest
import torch

import gwf_fast as gwf

F64 = torch.float64
G = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 3, dtype=F64, generator=G), torch.randn(31, 3, dtype=F64, generator=G)
OF_X, OF_Y = torch.tensor([7, -2, 7, 4] * 5), torch.tensor([4, 7, 9, -2, 7] * 6 + [4])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_groups_are_the_members_of_a_class(dtype: torch.dtype) -> None:
    of_x, of_y = ((t + 2).to(dtype) for t in (OF_X, OF_Y))
    groups = gwf.by_label(X, of_x, Y, of_y)
    assert groups.labels.tolist() == [0, 6, 9]
    for c, label in enumerate(groups.labels):
        for grouped, lengths, points, labels in (
            (groups.x, groups.x_lengths, X, of_x),
            (groups.y, groups.y_lengths, Y, of_y),
        ):
            members = points[labels == label]
            assert torch.equal(grouped[c, : lengths[c]], members) and int(lengths[c]) == len(members)
            assert (grouped[c, lengths[c] :] == 0).all()
    assert torch.equal(groups.ungroup(groups.x), X)
    assert torch.equal(groups.group_x(X), groups.x) and torch.equal(groups.group_y(Y), groups.y)
    assert groups.group_y(torch.ones(31)).sum() == (of_y != 11).sum()


def test_one_call_is_a_loop_over_classes() -> None:
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    groups = gwf.by_label(x, OF_X, y, OF_Y)
    v = groups.ungroup(gwf.drift.gmd(groups.x, groups.y, temperature=0.5, **groups.lengths))
    for label in (-2, 4, 7):
        here = label == OF_X
        torch.testing.assert_close(v[here], gwf.drift.gmd(X[here], Y[label == OF_Y], temperature=0.5))
    u = torch.randn(20, 3, dtype=F64, generator=G)
    got = torch.autograd.grad((u * v).sum(), (x, y))
    a, b = X.clone().requires_grad_(), Y.clone().requires_grad_()
    classes = [(k == OF_X, k == OF_Y) for k in (-2, 4, 7)]
    loop = torch.stack([(u[i] * gwf.drift.gmd(a[i], b[j], temperature=0.5)).sum() for i, j in classes]).sum()
    for g, h in zip(got, torch.autograd.grad(loop, (a, b)), strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-12)


def test_pairs_of_clusters_are_a_sum_that_is_sparse_in_blocks() -> None:
    """Against a dense sum with the other blocks left out, and its derivatives."""
    pairs = torch.tensor([[7, 4], [7, 9], [4, -2], [7, 4], [4, 4], [8, 4], [4, 8]])  # one twice; 8 is nowhere, -2 alone
    listed = {tuple(pair) for pair in pairs.tolist()}
    mask = torch.tensor([[(int(a), int(b)) in listed for b in OF_Y] for a in OF_X], dtype=F64)
    x, y, w = X.clone().requires_grad_(), Y.clone().requires_grad_(), torch.rand(31, dtype=F64, generator=G)
    w.requires_grad_()
    clusters, kernel = gwf.by_label(x, OF_X, y, OF_Y, pairs=pairs), gwf.Gaussian(0.8)
    assert clusters.labels.tolist() == [-2, 4, 7] and clusters.y_lengths.tolist() == [0, 13, 13]
    given = clusters.x, clusters.y, clusters.group_y(w)
    got = clusters.ungroup(gwf.kernel_sum(*given, kernel=kernel, **clusters.lengths))
    want = (torch.exp(-torch.cdist(x, y).square() / (2 * 0.8**2)) * mask) @ w
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    u = torch.randn(20, dtype=F64, generator=G)
    for a, b in zip(*(torch.autograd.grad(value @ u, (x, y, w)) for value in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_no_pairs_are_no_sum() -> None:
    clusters = gwf.by_label(X, OF_X, Y, OF_Y, pairs=torch.empty(0, 2, dtype=torch.int64))
    assert clusters.y.shape == (3, 0, 3)
    none = gwf.kernel_sum(clusters.x, clusters.y, kernel=gwf.Gaussian(1.0), **clusters.lengths)
    assert (clusters.ungroup(none) == 0).all()


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        (torch.zeros(3, 2), TypeError, "pairs must be integers, got torch.float32"),
        (torch.zeros(4, dtype=torch.int64), ValueError, r"pairs must have shape \[K, 2\], two classes each, got \[4\]"),
        ([[0, 0]], TypeError, "pairs must be a torch.Tensor, got list"),
    ],
)
def test_bad_pairs_are_named(pairs: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gwf.by_label(X, OF_X, Y, OF_Y, pairs=pairs)  # type: ignore[arg-type]


def test_nobody_has_no_class() -> None:
    groups = gwf.by_label(X[:0], OF_X[:0], Y, OF_Y)
    assert groups.x.shape == (0, 0, 3) and groups.ungroup(groups.x).shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, OF_X, Y[:3], OF_Y[:3]), r"labels_y must have every class of labels_x, got no sample of -2$"),
        ((X, OF_X[:4], Y, OF_Y), r"labels_x must have shape \[20\], one for each point, got \[4\]"),
        ((X[None], OF_X, Y[None], OF_Y), r"x must have shape \[n, D\], got \[1, 20, 3\]"),
        ((X, OF_X, Y[:, :2], OF_Y), "y must have the dimension of x"),
    ],
)
def test_bad_labels_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gwf.by_label(*arguments)
    with pytest.raises(TypeError, match=r"labels_y must be integers, got torch.float64"):
        gwf.by_label(X, OF_X, Y, Y[:, 0])
