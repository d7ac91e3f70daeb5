"""The progress of a run: a bar on a terminal or in a notebook, elsewhere a line from time to time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TextIO

_SECONDS = 10.0  # between two lines


class Progress(Protocol):
    """What a loop tells."""

    def set_postfix_str(self, s: str) -> object:
        """Say how it is going."""

    def update(self, n: int = 1) -> object:
        """So many more are done."""


def progress(total: int, initial: int, *, shown: bool, name: str) -> Any:
    """A context that gives a :class:`Progress`.

    Args:
        total: Steps in all.
        initial: Steps that are done already.
        shown: Whether to show anything.
        name: What the steps are.
    """
    if shown and not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        return Lines(total, initial, name, sys.stderr)
    from tqdm.auto import tqdm  # a progress bar is no reason to make `import gwf_fast` slower

    return tqdm(total=total, initial=initial, disable=not shown, desc=name, unit="step")


def inner_progress(bar: Progress, iterations: int) -> Callable[[int, float], None]:
    """What shows the iterations within a step."""

    def show(iteration: int, loss: float) -> None:
        bar.set_postfix_str(f"{iteration}/{iterations}, loss {loss:.4g}")

    return show


class Lines:
    """Progress for a log: a line every ten seconds, and one at the end."""

    def __init__(self, total: int, initial: int, name: str, file: TextIO) -> None:
        self._total, self._done, self._name, self._file = total, initial, name, file
        self._postfix = ""
        self._start = self._told = time.monotonic()

    def set_postfix_str(self, s: str) -> None:
        """Say how it is going."""
        self._postfix = f", {s}"
        self._tell_now_and_then()

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self._done += n
        self._tell_now_and_then()

    def _tell_now_and_then(self) -> None:
        if time.monotonic() - self._told >= _SECONDS:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        seconds = int(self._told - self._start)
        line = f"{self._name}: {self._done}/{self._total} after {seconds // 60}:{seconds % 60:02d}{self._postfix}"
        print(line, file=self._file, flush=True)

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell()
