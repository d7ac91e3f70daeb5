"""What a CUDA graph does, on the CPU: the operations of a call, again on the same tensors, and no Python of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gwf_fast.randomness.seeded import own_generator


class Tape(TorchDispatchMode):
    """Notes operations with the tensors they took and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and note it."""
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        fresh = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        is_view = bool(fresh) and all(t.untyped_storage().data_ptr() in given for t in fresh)
        if not is_view or func._schema.is_mutable:
            self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """All of them again, results to where they were."""
        with torch.no_grad():
            for func, args, kwargs, out in self.operations:
                if kwargs.get("generator") is not None:  # as CUDA graphs draw from the generator as it is then
                    kwargs = {**kwargs, "generator": own_generator(torch.device("cpu"))}
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


def taped(call: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A recorder for ``Repeated``. Unlike a capture it runs what it notes; a trial begins by putting things back."""
    tape = Tape()
    with tape:
        call()
    return tape.replay
