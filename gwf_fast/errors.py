"""Exceptions that a user may want to catch by name, and where warnings stand."""

from __future__ import annotations

import sys
from types import FrameType


def caller_level() -> int:
    """``stacklevel`` of a warning that is to stand at the first line outside this package."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "gwf_fast":
        level, frame = level + 1, frame.f_back
    return level


class NonFiniteError(ArithmeticError):
    """A flow produced NaN or infinity.

    The message names the step; the last good state, and the last checkpoint, are kept.
    """
