"""Samples of several classes as one ragged batch: a problem for each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from gwf_fast.ops.ambient import entry
from gwf_fast.pairs.validation import check_kind, check_pair

__all__ = ["LabelGroups", "by_label"]


class _Lengths(TypedDict):
    x_lengths: Tensor
    y_lengths: Tensor


@dataclass(frozen=True)
class LabelGroups:
    """Two sets, class by class, of ``by_label``.

    Attributes:
        x: The particles of each class [C, N, D], padded with zeros.
        y: The samples of each class [C, M, D], likewise.
        x_lengths: How many there are, [C] int64.
        y_lengths: The same of y.
        labels: The classes [C], in ascending order: those of the particles.
        x_places: Where each particle went, [n] int64: N times its class plus its place there.
        y_places: The same of the samples that went somewhere, [m]; one that several classes meet went to each.
        y_indices: Which samples these are, [m].
    """

    x: Tensor
    y: Tensor
    x_lengths: Tensor
    y_lengths: Tensor
    labels: Tensor
    x_places: Tensor
    y_places: Tensor
    y_indices: Tensor

    @property
    def lengths(self) -> _Lengths:
        """The arguments ``x_lengths`` and ``y_lengths`` of whatever takes ragged sets."""
        return {"x_lengths": self.x_lengths, "y_lengths": self.y_lengths}

    def group_x(self, values: Tensor) -> Tensor:
        """What goes with each particle, [n, ...], class by class: [C, N, ...], padded with zeros."""
        return _placed(values, self.x_places, self.x)

    def group_y(self, values: Tensor) -> Tensor:
        """What goes with each sample, such as its weight, [k, ...], class by class: [C, M, ...]."""
        return _placed(values[self.y_indices], self.y_places, self.y)

    def ungroup(self, values: Tensor) -> Tensor:
        """What came out for each particle, [C, N, ...], in the order that the particles had: [n, ...]."""
        return values.flatten(0, 1)[self.x_places]


@entry
def by_label(x: Tensor, labels_x: Tensor, y: Tensor, labels_y: Tensor, *, pairs: Tensor | None = None) -> LabelGroups:
    """Group particles and samples by class, so that one call moves each class towards its own.

        groups = gwf.by_label(x, labels_x, y, labels_y)
        v = groups.ungroup(gwf.drift.gmd(groups.x, groups.y, temperature=0.1, **groups.lengths))

    With ``pairs``, classes are clusters of points, and a sum is taken over pairs of clusters that matter to each other:
    it is then sparse in blocks. A class of samples is copied for each class of particles that meets it.

        clusters = gwf.by_label(x, cluster_of_x, y, cluster_of_y, pairs=near)
        s = clusters.ungroup(gwf.kernel_sum(clusters.x, clusters.y, kernel=kernel, **clusters.lengths))

    Differentiable: gradients of what is grouped are those of x and y. Whatever takes ``x_lengths`` and ``y_lengths``
    takes the groups; a drift whose particles repel each other asks for two of them in a class.

    Args:
        x: Particles [n, D].
        labels_x: Their classes [n], integers.
        y: Samples [k, D]; those of a class without particles are left out.
        labels_y: Their classes [k].
        pairs: [K, 2], integers: a class of particles and one of samples that it meets; a pair that is there twice
            counts once. A class of particles may meet none. None: each class of particles meets the samples of its own.

    Returns:
        The groups, padded to the largest of each side, and the way back.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, or, without ``pairs``, a class of particles has
            no sample.
    """
    check_pair(x, y)
    if x.ndim != 2:
        raise ValueError(f"x must have shape [n, D], got {list(x.shape)}")
    for name, labels, points in (("labels_x", labels_x, x), ("labels_y", labels_y, y)):
        _check_labels(name, labels, points)
    if pairs is not None:
        _check_pairs(pairs, x)
    labels, classes = labels_x.unique(return_inverse=True)
    x_lengths, x_places, n = _places(classes, len(labels))
    owners, here = _met(labels, labels_y, torch.stack((labels, labels), -1) if pairs is None else pairs)
    y_lengths, y_places, m = _places(owners, len(labels))
    if pairs is None and bool((y_lengths == 0).any()):
        missing = labels[y_lengths == 0].tolist()
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise ValueError(f"labels_y must have every class of labels_x, got no sample of {shown}")
    grouped_x = x.new_zeros(len(labels), n, x.shape[1])
    grouped_y = y.new_zeros(len(labels), m, y.shape[1])
    return LabelGroups(
        _placed(x, x_places, grouped_x), _placed(y[here], y_places, grouped_y), x_lengths, y_lengths, labels,
        x_places, y_places, here,
    )  # fmt: skip


def _check_labels(name: str, labels: Tensor, points: Tensor) -> None:
    check_kind(name, labels)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name} must be integers, got {labels.dtype}")
    if labels.shape != points.shape[:1]:
        raise ValueError(
            f"{name} must have shape {list(points.shape[:1])}, one for each point, got {list(labels.shape)}"
        )
    if labels.device != points.device:
        raise ValueError(f"{name} must be on the device of its points, {points.device}, got {labels.device}")


def _check_pairs(pairs: Tensor, x: Tensor) -> None:
    check_kind("pairs", pairs)
    if pairs.is_floating_point() or pairs.is_complex() or pairs.dtype is torch.bool:
        raise TypeError(f"pairs must be integers, got {pairs.dtype}")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must have shape [K, 2], two classes each, got {list(pairs.shape)}")
    if pairs.device != x.device:
        raise ValueError(f"pairs must be on the device of the points, {x.device}, got {pairs.device}")


def _met(labels: Tensor, labels_y: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Of every sample that a class of particles meets, once for each: the number of that class, and the sample's."""
    kinds, of_y = labels_y.unique(return_inverse=True)
    pairs = pairs.long().unique(dim=0)
    (owner, is_owner), (kind, is_kind) = (_found(pairs[:, side], known) for side, known in ((0, labels), (1, kinds)))
    there = is_owner & is_kind
    owner, kind = owner[there], kind[there]
    counts = torch.bincount(of_y, minlength=len(kinds))
    order, starts, sizes = of_y.argsort(stable=True), counts.cumsum(0) - counts, counts[kind]
    first = (starts[kind] - (sizes.cumsum(0) - sizes)).repeat_interleave(sizes)
    return owner.repeat_interleave(sizes), order[first + torch.arange(len(first), device=first.device)]


def _found(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Where each value is among the known ones, which ascend, and whether it is."""
    if not len(known):
        return torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
    known = known.long()
    at = torch.searchsorted(known, values.contiguous()).clamp(max=len(known) - 1)
    return at, known[at] == values


def _places(classes: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
    """Members of each class [C], where each point goes in a table of the largest size, and that size."""
    lengths = torch.bincount(classes, minlength=count)
    largest = int(lengths.max()) if count else 0
    order = classes.argsort(stable=True)  # in a class, members keep their order
    rank = torch.arange(len(classes), device=classes.device) - (lengths.cumsum(0) - lengths)[classes[order]]
    places = torch.empty_like(order)
    places[order] = classes[order] * largest + rank
    return lengths, places, largest


def _placed(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    table = values.new_zeros(like.shape[0] * like.shape[1], *values.shape[1:])
    return table.index_copy(0, places, values).unflatten(0, like.shape[:2])
