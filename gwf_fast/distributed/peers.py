"""The processes of a group, and what they tell each other beside particles: sizes, agreement, faults.

Every exchange begins with three numbers of each process: whether it failed, what it is about to do, and a number of it.
So a process that failed tells the others wherever they are, all raise in the same place, and none waits for one that is
not coming; where one is gone without a word, the group's own timeout ends the waiting.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from gwf_fast.distributed.traffic import count_all_gather, count_all_reduce, count_sent

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
_TEXT = 512
"""Bytes of a message between processes."""


class PeerError(RuntimeError):
    """Another process of the group failed, or is gone; the message names its rank and the cause."""


class DisagreementError(ValueError):
    """All raise it together."""


class Peers:
    """A group of processes as one of them sees it.

    Args:
        group: The group; None for the default one, of all processes.

    Raises:
        ValueError: There is no group, or this process is not in it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                "group must be one of torch.distributed, which is not initialised: start with torchrun, and call"
                " torch.distributed.init_process_group()"
            )
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise ValueError(f"group must be a process group that this process is in, got {type(group).__name__}")
        known = dist.group.WORLD if group is None else group
        assert known is not None, "it is initialised"
        self.group = known
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        on_cuda = "nccl" in dist.get_backend(self.group)
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")

    # -------------------------------------------------------------------------------------------- words

    def exchange(self, what: str, number: int = 0, failure: str | None = None) -> list[int]:
        """A number of each process, all of which do the same thing.

        Raises:
            PeerError: One of them failed.
            ValueError: They do not do the same.
        """
        mine = torch.tensor([failure is not None, zlib.crc32(what.encode()), number], device=self.device)
        table = self.gathered(mine).tolist()
        if any(failed for failed, _, _ in table):
            words = self._words(failure or "")
            if failure is None:
                said = "; ".join(f"rank {r}: {text}" for r, text in enumerate(words) if text)
                raise PeerError(f"{what.partition('(')[0]} ended, for another process of the group failed: {said}")
            return []
        if len({digest for _, digest, _ in table}) > 1:
            words = self._words(what)
            other = next(r for r, text in enumerate(words) if text != words[0])
            raise DisagreementError(
                f"all processes of the group must make the same call, got {words[0]} on rank 0 and {words[other]} on"
                f" rank {other}"
            )
        return [number for _, _, number in table]

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """A call that all make: what one raises ends it on all."""
        try:
            yield
        except (PeerError, DisagreementError):
            raise
        except Exception as error:
            self.exchange(what, failure=_said(error))
            raise
        self.exchange(f"the end of {what}")

    def settle(self, what: str, error: Exception | None) -> None:
        """The end of a passage in which each kept up with the others whatever happened to it.

        Raises:
            PeerError: To this process its own error happened, or to another.
        """
        self.exchange(what, failure=None if error is None else _said(error))
        if error is not None:
            raise PeerError(f"{what} failed on rank {self.rank}, which is this: {_said(error)}") from error

    def _words(self, text: str) -> list[str]:
        mine = torch.zeros(_TEXT, dtype=torch.uint8, device=self.device)
        content = torch.tensor(list(text.encode()[:_TEXT]), dtype=torch.uint8)
        mine[: len(content)] = content
        return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in self.gathered(mine).tolist()]

    # -------------------------------------------------------------------------------------------- numbers

    def gathered(self, mine: Tensor) -> Tensor:  # [*n] -> [size, *n]
        """What each process has, of one shape."""
        found = mine.new_empty(self.size * mine.numel())
        with _named():
            _all_gather(found, mine.reshape(-1), group=self.group)
        count_all_gather(mine, self.size)
        return found.view(self.size, *mine.shape)

    def summed(self, mine: Tensor) -> Tensor:
        """The sum over processes, a constant."""
        out = mine.detach().clone(memory_format=torch.contiguous_format)
        with _named():
            dist.all_reduce(out, group=self.group)
        count_all_reduce(out, self.size)
        return out

    def shift(self, held: Tensor, coming: Tensor) -> list[dist.Work]:
        """Send what is held to the next process, and receive from the one before; not waited for."""
        ends = (coming, dist.irecv, self.rank - 1), (held, dist.isend, self.rank + 1)
        moves = [
            dist.P2POp(move, tensor, dist.get_global_rank(self.group, rank % self.size), group=self.group)
            for tensor, move, rank in ends
            if tensor.numel()
        ]
        if not moves:
            return []
        count_sent(held)
        with _named():
            work: list[dist.Work] = dist.batch_isend_irecv(moves)
        return work

    @staticmethod
    def wait(work: list[dist.Work]) -> None:
        """The end of a shift."""
        with _named():
            for each in work:
                each.wait()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """What torch.distributed says of a process that is gone, or late, by our name."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).split("\n")[0]
        raise PeerError(f"a process of the group is gone, or did not answer within its timeout: {first}") from error
