"""The folder of a run: one writer at a time, files that are never overwritten, and a manifest that names them.

A writer holds the folder's lock. Every file is written under a temporary name, flushed to the disk and renamed; its
name ends with a digest of its content, so that a file is what its name says, whichever run, machine or attempt wrote
it, or it is refused. ``checkpoint.json`` comes last, and the files that it no longer names are removed after it. So
whenever the process is killed the folder holds a complete checkpoint, of this moment or of the one before, and what
else lies there is swept by the next writer. Nothing is pickled: reading can't run code.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from gwf_fast.checkpoint.portable import pack_plain, unpack_plain
from gwf_fast.errors import caller_level

MANIFEST = "checkpoint.json"
_LOCK = ".lock"
_TEMPORARY = ".*.tmp"
_DIGITS = 16  # of the digest, in a name: 64 bits
_ON_CUDA = "on_cuda"  # the note of a file that names these tensors
_PLAIN = "in:"  # begins the names of tensors inside plain data
_OWN = re.compile(rf"(problem|state|map)(-\d+)?(-[0-9a-f]{{{_DIGITS}}})?\.safetensors")
_NAMED = re.compile(rf".*-([0-9a-f]{{{_DIGITS}}})\.safetensors")
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class RunFolder:
    """A folder that one writer holds while it is entered; entering again what is held already does nothing.

    Args:
        path: Made when it is entered, if it isn't there.
        what: What the messages call it.
    """

    def __init__(self, path: str | Path, what: str = "checkpoint") -> None:
        self.path = Path(path)
        self._what = what
        self._depth = 0
        self._lock: int | None = None
        self._whole: set[str] = set()  # names of files that this writer wrote
        self._names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """The folder of a run that has begun.

        Raises:
            ValueError: If there is no checkpoint.
        """
        read_manifest(Path(path))
        return cls(path)

    @classmethod
    def of(cls, folder: str | Path | RunFolder) -> RunFolder:
        """The folder itself where it is one already, as where ``resume`` hands its own to ``run``."""
        return folder if isinstance(folder, RunFolder) else cls(folder)

    def __enter__(self) -> RunFolder:
        if self._depth == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            for leftover in self.path.glob(_TEMPORARY):  # of writers that were killed: there is no other one now
                leftover.unlink()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0 and self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _acquire(self) -> None:
        lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                message = f"{self._what}: the file system of {self.path} has no locks; write from one process only"
                warnings.warn(message, stacklevel=caller_level())
            else:
                owner = os.read(lock, 100).decode(errors="replace").strip()
                os.close(lock)
                if not isinstance(error, BlockingIOError):
                    raise
                by = f" (process {owner})" if owner else ""
                raise BlockingIOError(
                    f"{self._what}: {self.path} is being written by another run{by}; choose another folder, or wait"
                ) from None
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        self._lock = lock

    def refuse_occupied(self) -> None:
        """Raise FileExistsError if a checkpoint is in the folder already."""
        if (self.path / MANIFEST).exists():
            raise FileExistsError(f"{self._what}: {self.path} holds another run; choose another folder, or resume it")

    def put(self, label: str, values: Callable[[], Mapping[str, Any]], owner: Any = None) -> str:
        """Write tensors, and plain data such as ``get_extra_state`` gives; returns the name of the file.

        Args:
            label: How the name begins.
            values: What to write.
            owner: An object that they belong to and that never changes: what was put, or got, once for it is not
                asked for again.

        Raises:
            NotPortableError: If a value is neither.
            OSError: If it can't be written.
        """
        name = None if owner is None else self._names.get(owner)
        if name is not None:
            return name
        content = serialize(values())
        name = f"{label}-{_digest(content)}.safetensors"
        if name not in self._whole:
            write_atomically(self.path / name, content)
            self._whole.add(name)
        if owner is not None:
            self._names[owner] = name
        return name

    def belongs(self, name: str, owner: Any) -> None:
        """Say that a file of the manifest holds what ``put`` would write for this owner."""
        if _NAMED.fullmatch(name):  # an older version's name does not say what the file holds
            self._names[owner] = name

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Make a manifest the folder's, and remove the files of former ones that it does not name.

        Args:
            manifest: JSON; ``files`` has the names of its files, or lists of them.
        """
        checked = {**manifest, "checksum": _checksum(manifest)}
        write_atomically(self.path / MANIFEST, json.dumps(checked, indent=1).encode())
        named: set[str] = set()
        for names in manifest["files"].values():
            named.update([names] if isinstance(names, str) else names)
        for file in self.path.glob("*.safetensors"):
            if file.name not in named and _OWN.fullmatch(file.name):
                file.unlink()
        self._whole &= named


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        OSError: If it can't be written; names the file, and leaves no part of it.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed writer left is written over
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # a full disk does not say whose write it refused
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must reach the disk
    finally:
        os.close(folder)


def serialize(values: Mapping[str, Any]) -> bytes:
    """Tensors and plain data as a safetensors file, with a note of which tensors are on a CUDA device.

    Tensors that share memory, as tied weights do, are each written.

    Raises:
        NotPortableError: If a value is neither.
    """
    tensors: dict[str, Tensor] = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    plain = {name: pack_plain(value, tensors, _PLAIN + name) for name, value in others.items()}
    seen: set[tuple[Any, int]] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = (tensor.device, tensor.untyped_storage().data_ptr())
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    notes = {"plain": plain, _ON_CUDA: [name for name, tensor in tensors.items() if tensor.is_cuda]}
    return save_tensors(tensors, {key: json.dumps(note) for key, note in notes.items() if note} or None)


def read_values(path: Path) -> dict[str, Any]:
    """What :func:`serialize` was given, on the kind of device it was on, or the CPU where there is none.

    Raises:
        ValueError: If the file can't be read, or its content is not the one that its name promises.
    """
    try:
        content = path.read_bytes()
        named = _NAMED.fullmatch(path.name)
        if named and named[1] != _digest(content):
            raise ValueError(f"checkpoint: {path} is damaged: its content is not what was written")
        values: dict[str, Any] = load_tensors(content)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint: can't read {path} ({error})") from None
    header = json.loads(
        content[8 : 8 + int.from_bytes(content[:8], "little")]
    )  # that tensors were read says it is whole
    notes = header.get("__metadata__", {})
    if torch.cuda.is_available():  # a run goes on where it was, or its random numbers would be others
        values |= {name: values[name].cuda() for name in json.loads(notes.get(_ON_CUDA, "[]"))}
    plain = json.loads(notes.get("plain", "{}"))
    others = {name: unpack_plain(value, values) for name, value in plain.items()}
    return {name: value for name, value in values.items() if not name.startswith(_PLAIN)} | others


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``checkpoint.json`` of a folder says.

    Raises:
        ValueError: If it isn't there, not JSON, or damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"checkpoint: no {MANIFEST} in {folder}") from None
    except OSError as error:
        raise ValueError(f"checkpoint: can't read {path} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint: {path} is not JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise ValueError(f"checkpoint: {path} is not the manifest of a run")
    return manifest


def verify(manifest: dict[str, Any], folder: Path) -> None:
    """Hold a manifest to its checksum; those of older versions have none.

    Raises:
        ValueError: If it was changed after it was written.
    """
    if manifest.get("checksum", checksum := _checksum(manifest)) != checksum:
        raise ValueError(f"checkpoint: {folder / MANIFEST} is damaged: its content is not what was written")


@contextlib.contextmanager
def told_in_one_line(folder: Path) -> Iterator[None]:
    """Around what reads a manifest: one that is not as a run writes it ends in a ValueError that says so."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError, ValueError) as error:
        if str(error).startswith("checkpoint: "):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"checkpoint: {folder / MANIFEST} is not as a run writes it ({reason})") from None


def _checksum(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return _digest(json.dumps(rest, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content).hexdigest()[:_DIGITS]
