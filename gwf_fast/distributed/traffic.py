"""What a process sends, counted where it is sent."""

from __future__ import annotations

from torch import Tensor

_COUNTING: list[Traffic] = []


class Traffic:
    """Counts what calls of ``gwf.distributed`` send from this process, while it is open: ``with Traffic() as sent``.

    Collectives count as in their ring forms, which move the least: (P - 1) times the data for an all-gather of it from
    P processes, 2 (P - 1) / P for an all-reduce.

    Attributes:
        bytes: Sent so far.
        messages: How often.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.messages = 0

    def __enter__(self) -> Traffic:
        _COUNTING.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _COUNTING.remove(self)


def _count(size: int) -> None:
    for each in _COUNTING:
        each.bytes += size
        each.messages += 1


def count_sent(tensor: Tensor) -> None:
    """To one other process."""
    _count(tensor.numel() * tensor.element_size())


def count_all_gather(mine: Tensor, size: int) -> None:
    """To all others."""
    _count(mine.numel() * mine.element_size() * (size - 1))


def count_all_reduce(whole: Tensor, size: int) -> None:
    """Each part once to be summed, and once as the sum."""
    _count(2 * whole.numel() * whole.element_size() * (size - 1) // size)
