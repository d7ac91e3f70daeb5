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
