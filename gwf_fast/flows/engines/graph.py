"""One iteration of a training loop, captured as a CUDA graph and replayed, where that is the same thing.

A graph repeats what an iteration launched on the device, and nothing of what it did on the host. So before one is
trusted, two iterations are watched for reads on the host, and a replay is compared with the second of them: both from
the same state, with the same draws. Where anything speaks against it, the loop stays what it is, and says why.
"""

from __future__ import annotations

import contextlib
import functools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gwf_fast.randomness.seeded import own_generator

WARM_UP = 2
"""Iterations before one is watched: what is compiled, allocated or copied to the device once is done by then."""

FEWEST = 10
"""Iterations of a loop that is worth a capture."""

Body = Callable[[int], None]
"""An iteration, given its number. What it needs of the number must be on the device as well."""

Recorder = Callable[[Callable[[], None], torch.device], Callable[[], Any]]
"""Takes a call and a device; returns what repeats the call's launches there. Runs none of them."""


def capture(call: Callable[[], None], device: torch.device) -> Callable[[], Any]:
    """Capture what a call launches on the current stream; returns the replay.

    Raises:
        RuntimeError: If something in it can't be captured; the device is as it was.
    """
    graph, pool, stream = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream(device)
    try:
        # thread_local: what other threads do (pinning memory, say) is none of this capture's business
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            call()
    except RuntimeError:
        _abandon(device, pool)
        raise
    return graph.replay


def _abandon(device: torch.device, pool: Any) -> None:
    """Tell PyTorch that a capture is over. One that failed leaves its allocator and generator as if it went on."""
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)
    generator = _generator(device)
    generator.graphsafe_set_state(generator.clone_state())


class Repeated:
    """Calls a function with 0, 1, 2, ..., on a CUDA device by replays of a graph as soon as that is proven.

    Args:
        body: The function. Capture runs its Python once more than it is called; replays don't.
        tensors: Returns the tensors that carry a state from call to call.
        device: Where they are.
        total: Calls to come, if there are no more than so many.
        refusal: Why not to capture, if that is known; None to find out.
        record: How to capture; None for :func:`capture` on CUDA devices, and not at all elsewhere.
        begin: What the host does before each call and each replay, given the number.
        settings: Returns what a call reads on the host and a replay does not; where it changes, replays end.
    """

    def __init__(
        self,
        body: Body,
        tensors: Callable[[], Sequence[Tensor]],
        device: torch.device,
        *,
        total: int,
        refusal: str | None = None,
        record: Recorder | None = None,
        begin: Callable[[int], None] | None = None,
        settings: Callable[[], object] | None = None,
    ) -> None:
        self._begin, self._settings = begin or _nothing, settings or (lambda: None)
        self._captured_with: object = None
        self._body, self._tensors, self._device = body, tensors, device
        self._record = record or (capture if device.type == "cuda" else None)
        self._is_plain = self._record is None or total < FEWEST
        self._replay: Callable[[], Any] | None = None
        self._done = 0
        self.refusal = None if self._is_plain else refusal
        """Why calls are not replayed, in a line; None while nothing speaks against it."""

    @property
    def is_replaying(self) -> bool:
        """Whether the next call will be a replay."""
        return self._replay is not None

    def __call__(self, count: int) -> None:
        """The next so many calls."""
        if self._replay is not None and self._settings() != self._captured_with:
            self._replay, self.refusal = None, "an attribute of a module or functional has changed since the capture"
        with _side_stream(self._device):
            for _ in range(count):
                self._next()
                self._done += 1

    def _next(self) -> None:
        self._begin(self._done)
        if self._replay is not None:
            self._replay()
        elif self._is_plain or self.refusal is not None or self._done < WARM_UP:
            self._body(self._done)
        elif self._done == WARM_UP:
            with HostReads(self._device) as reads:
                self._body(self._done)
            self.refusal = reads.found
        else:
            self._prove()

    def _prove(self) -> None:
        """A call, and whether its replay from the same state does the same."""
        assert self._record is not None
        tensors, host = list(self._tensors()), _host_generators(self._device)
        before = _State.of(tensors, self._device)
        with _waits(self._device) as waits:
            self._body(self._done)
        if waits:
            self.refusal = waits[0]
        elif [id(t) for t in self._tensors()] != [id(t) for t in tensors]:
            self.refusal = "an iteration puts new tensors in the place of those that hold its state"
        elif _host_generators(self._device) != host:
            self.refusal = "an iteration draws random numbers on the host"
        if self.refusal is not None:
            return
        after = _State.of(tensors, self._device)
        try:
            replay = self._record(functools.partial(self._body, self._done), self._device)
        except RuntimeError as error:
            self.refusal = f"capture failed: {str(error).strip().splitlines()[0]}"
            return
        before.restore()
        replay()
        if after.agrees():
            self._replay, self._captured_with = replay, self._settings()
        else:
            after.restore()
            self.refusal = "a replay differs from the iteration: something in it changes on the host from call to call"


def _nothing(number: int) -> None:
    pass


def plain_attributes(owners: Iterable[object]) -> list[dict[str, object]]:
    """Numbers, strings and flags that objects hold: of modules, those of the modules in them as well."""
    parts = [part for owner in owners for part in (owner.modules() if isinstance(owner, nn.Module) else (owner,))]
    plain = (bool, int, float, str, type(None))
    return [{key: value for key, value in vars(part).items() if isinstance(value, plain)} for part in parts]


class HostReads(TorchDispatchMode):
    """Notices operations that make the host wait for a device, or bring something from the host to it.

    Attributes:
        found: The first of them, in a line; None if there was none.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.found: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.found is None:
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            self.found = self._reads(func, given) or self._crosses(
                func, [*given, *(t for t in tree_leaves(out) if isinstance(t, Tensor))]
            )
        return out

    def _reads(self, func: Any, given: list[Tensor]) -> str | None:
        on_device = [t for t in given if t.device.type == self._device.type]
        depends = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
        if not depends or not on_device:
            return None
        name = func.name().removeprefix("aten::")
        if name.startswith("index.") and not any(t.dtype in (torch.bool, torch.uint8) for t in on_device[1:]):
            return None  # the shape is known, unless an index is a mask
        return f"the host reads a result of the device ({name})"

    def _crosses(self, func: Any, tensors: list[Tensor]) -> str | None:
        name = func.name().removeprefix("aten::")
        kinds = {
            t.device.type for t in tensors if t.ndim or "copy" in name
        }  # a number of the host's goes with a launch
        if self._device.type not in kinds or len(kinds) == 1:
            return None
        return f"every iteration brings a tensor from one device to another ({name})"


@contextlib.contextmanager
def _waits(device: torch.device) -> Iterator[list[str]]:
    """Notices what makes the host wait for a CUDA device, in kernels of their own too; the list has a line for each."""
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in seen:
        message = str(warning.message)
        if "called a synchronizing" in message:
            found.append(f"the host waits for the device at {warning.filename}:{warning.lineno}")
        elif "Synchronization debug mode" not in message:  # which says that it is a prototype
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


class _State:
    """What tensors held, and the generator of their device."""

    def __init__(self, tensors: list[Tensor], values: list[Tensor], device: torch.device) -> None:
        self._tensors, self._values, self._device = tensors, values, device
        self._generator = _generator(device).get_state()

    @classmethod
    def of(cls, tensors: list[Tensor], device: torch.device) -> _State:
        return cls(tensors, [t.detach().clone() for t in tensors], device)

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, value in zip(self._tensors, self._values, strict=True):
                tensor.copy_(value)
        _generator(self._device).set_state(self._generator)

    def agrees(self) -> bool:
        """Whether the tensors hold this again, up to what an order of additions that is not fixed may change."""
        found = [_is_near(t.detach(), value) for t, value in zip(self._tensors, self._values, strict=True) if t.numel()]
        return bool(torch.stack(found).all())


def _is_near(x: Tensor, y: Tensor) -> Tensor:
    if not y.is_floating_point():
        return (x == y).all()
    return (x - y).abs().max() <= torch.finfo(y.dtype).eps ** 0.5 * y.abs().max()


def _generator(device: torch.device) -> torch.Generator:
    """What draws without a generator come from on a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return own_generator(device) or torch.default_generator


def _host_generators(device: torch.device) -> tuple[Any, ...]:
    """States of the generators that a capture knows nothing of."""
    if device.type == "cpu":
        return (random.getstate(),)
    own = own_generator(torch.device("cpu"))
    states = (torch.get_rng_state(), *([] if own is None else [own.get_state()]))
    return random.getstate(), *(state.numpy().tobytes() for state in states)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream that can be captured, in its turn after what is queued and before what will be."""
    if device.type != "cuda":
        yield
        return
    side = _stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(side)
