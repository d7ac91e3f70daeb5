"""Keeps the states of a run in its folder, and what is needed to go on from one: what both trainers share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from gwf_fast.checkpoint.portable import NotPortableError, pack, unpack
from gwf_fast.checkpoint.run_folder import RunFolder, serialize
from gwf_fast.version import __version__

State = TypeVar("State")


@dataclass(frozen=True)
class Snapshot:
    """A state as a folder holds it.

    Attributes:
        label: Begins the name of the file of what changes.
        values: What is in it: tensors, and plain data. Nobody may change them before they are written.
        progress: What the manifest says of the state, JSON.
        parts: What does not change any more, and is written once: (label, module) by entry of the manifest.
    """

    label: str
    values: Mapping[str, Any]
    progress: Mapping[str, Any]
    parts: Mapping[str, Sequence[tuple[str, nn.Module]]] = field(default_factory=dict)


class Keeper(Generic[State]):
    """Writes the states of a run, at once or from time to time; what is left is written when it is left, however.

    Args:
        folder: Where to, held; None to do nothing.
        head: What the manifest says of the whole run, JSON.
        fixed: Tensors of the whole run.
        snapshot: Of a state; where the state changes in place, a copy.
        seconds: Between two writes; 0 to write each state, before ``keep`` returns.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        head: Mapping[str, Any],
        fixed: Mapping[str, Tensor],
        snapshot: Callable[[State], Snapshot],
        seconds: float = 0.0,
    ) -> None:
        self._folder, self._fixed, self._snapshot, self._seconds = folder, fixed, snapshot, seconds
        self._head = {**head, "torch": torch.__version__, "gwf_fast": __version__}
        self._written = -float("inf")  # when
        self._left: Snapshot | None = None

    def keep(self, state: State) -> None:
        """Remember a state that is good, and write it if it is time; parts that are there are not written again.

        Raises:
            OSError: If the folder can't be written; it then holds what it held before.
        """
        if self._folder is None:
            return
        self._left = self._snapshot(state)
        if self._seconds == 0 or time.monotonic() - self._written > self._seconds:
            self._write()

    def _write(self) -> None:
        snapshot, self._left = self._left, None
        if self._folder is None or snapshot is None:
            return
        put = self._folder.put
        files: dict[str, Any] = {"fixed": put("problem", lambda: self._fixed, owner=self)}
        for name, modules in snapshot.parts.items():
            files[name] = [put(label, module.state_dict, owner=module) for label, module in modules]
        files["moving"] = put(snapshot.label, lambda: snapshot.values)
        self._folder.commit({**self._head, **snapshot.progress, "files": files})
        self._written = time.monotonic()

    def __enter__(self) -> Keeper[State]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()


def packed_or_named(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """What :func:`gwf_fast.checkpoint.portable.pack` makes of a value; of one that is code, what is missing."""
    try:
        return pack(value, tensors, name)
    except NotPortableError as reason:
        return {"missing": str(reason)}


def given_or_stored(part: str, value: Any, stored: Any, fixed: dict[str, Tensor]) -> Any:
    """An argument of ``resume``, or where it is None what the checkpoint holds of it.

    Raises:
        ValueError: If that is nothing but a name.
    """
    if value is not None:
        return value
    if isinstance(stored, dict) and "missing" in stored:
        raise ValueError(f"checkpoint: {stored['missing']}; give resume() the argument {part}=")
    return unpack(stored, fixed)


def require_storable(name: str, module: nn.Module | None) -> None:
    """Raise NotPortableError, before a run, where a checkpoint could not hold the state of such a module."""
    if module is not None:
        serialize(under(name, module.state_dict()))


def under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under names of the form PREFIX.NAME."""
    return {f"{prefix}.{name}": value for name, value in values.items()}


def nested(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values under PREFIX, by the rest of their names."""
    return {k[len(prefix) + 1 :]: v for k, v in values.items() if k.startswith(prefix + ".")}


def load_into(module: nn.Module, values: dict[str, Any], path: Path) -> nn.Module:
    """Fill a module with what was read from ``path``.

    Raises:
        ValueError: If the tensors do not fit it.
    """
    try:
        module.load_state_dict(values)
    except RuntimeError as error:
        raise ValueError(
            f"checkpoint: {path} does not fit the network ({str(error).splitlines()[-1].strip()})"
        ) from None
    return module
