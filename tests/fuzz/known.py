"""Findings that stand: what is not right yet, said aloud by the suite. There is none; this list is to stay short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.fuzz.arguments import Call


class Known(NamedTuple):
    """A finding that stands.

    Attributes:
        name: What is wrong, in a phrase.
        matches: Whether a call that went wrong is of this kind; takes the call and its result, or None where it died.
    """

    name: str
    matches: Callable[[Call, dict[str, Any] | None], bool]


KNOWN: tuple[Known, ...] = ()


def known_finding(call: Call, result: dict[str, Any] | None = None) -> str | None:
    """The name of the kind that a finding is of."""
    return next((k.name for k in KNOWN if k.matches(call, result)), None)
