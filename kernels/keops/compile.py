"""Access to KeOps: imported on first use, silent, and never compiling in two processes at once.

KeOps compiles a formula when it is first called and keeps the result in a folder shared by all processes, without a
lock: cold processes that start together can load each other's half-written files. A lock of ours covers the import
(which compiles too) and the first call of each formula.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

_threads = threading.RLock()


@contextlib.contextmanager
def compilation_lock() -> Iterator[None]:
    """Held by one thread of one process of this user at a time; released by the system if the process dies."""
    path = Path(tempfile.gettempdir()) / f"gwf_fast_keops_{os.getuid() if hasattr(os, 'getuid') else 'user'}.lock"
    with _threads, open(path, "a+") as file:
        _lock_file(file)
        yield


def _lock_file(file: Any) -> None:  # released when the file is closed
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


@functools.cache
def _keops() -> Any:
    """The module pykeops.torch, quiet.

    Raises:
        ImportError: It isn't installed; says how to install it.
    """
    quiet = [name for name in ("KEOPS_VERBOSE", "PYKEOPS_VERBOSE") if name not in os.environ]
    os.environ.update(dict.fromkeys(quiet, "0"))  # read while importing
    try:
        with compilation_lock():
            import pykeops.torch
    except ImportError as error:
        message = f"the keops backend needs KeOps (pip install pykeops), which does not import: {error}"
        raise ImportError(message) from error
    finally:
        for name in quiet:
            del os.environ[name]
    return pykeops.torch


class Reduction:
    """One KeOps formula summed over j, compiled on the first call of each type and device."""

    def __init__(self, formula: str, aliases: tuple[str, ...], operation: str, weight: str | None) -> None:
        keops = _keops()
        options = {} if weight is None else {"formula2": weight}
        with compilation_lock():  # builds the formula, and may write to the cache
            self._run = keops.Genred(formula, list(aliases), reduction_op=operation, axis=1, **options)
        self._compiled: set[tuple] = set()

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The reduction of contiguous 2-d (or, for parameters, 1-d) tensors."""
        key = (arguments[0].dtype, arguments[0].device)
        call: Callable[[], Tensor] = functools.partial(self._run, *arguments)
        if key in self._compiled:
            return call()
        with compilation_lock():
            result = call()
        self._compiled.add(key)
        return result


@functools.lru_cache(maxsize=512)
def reduction(formula: str, aliases: tuple[str, ...], operation: str = "Sum", weight: str | None = None) -> Reduction:
    """The reduction of a formula, made once in a process."""
    return Reduction(formula, aliases, operation, weight)
