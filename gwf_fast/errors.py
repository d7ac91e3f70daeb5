"""Exceptions that a user may want to catch by name, where warnings stand, and former spellings of arguments."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any, ParamSpec, TypeVar

__all__ = ["NonFiniteError", "called", "caller_level", "former", "renamed", "warn_former"]

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


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


# ------------------------------------------------------------------------------------------------ former spellings


def former(
    *names: str, call: Callable[[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], Any]
) -> Callable[[C], C]:
    """Decorator of functions and classes: calls with keyword arguments that a function had once are made by ``call``.

    Args:
        names: The former arguments. They are in no signature.
        call: ``call(function, args, kwargs)``, which warns (:func:`warn_former`) and calls the function as it is now.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in names:
                if name in kwargs:
                    result: T = call(function, args, kwargs)
                    return result
            return function(*args, **kwargs)

        wrapped.former_names, wrapped.without_former = names, function  # type: ignore[attr-defined]
        return wrapped

    def mark(function: C) -> C:
        if isinstance(function, type):
            function.__init__ = decorate(function.__init__)  # type: ignore[misc]
            return function
        return decorate(function)  # type: ignore[return-value]

    return mark


def renamed(**names: str) -> Callable[[C], C]:
    """Decorator of functions and classes: with ``@renamed(old="new")``, ``old=`` is ``new=`` and a warning."""

    def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        given = [old for old in names if old in kwargs]
        name = called(function)
        warn_former(name, given, ", ".join(f"{names[old]}=" for old in given))
        for old in given:
            if names[old] in kwargs:
                raise TypeError(f"{name}() got {names[old]} twice: {old} is its former name")
        return function(*args, **{names.get(argument, argument): value for argument, value in kwargs.items()})

    def mark(function: C) -> C:
        known = former(*names, call=call)(function)
        known.renamed_from = names  # type: ignore[attr-defined]
        return known

    return mark


def called(function: Callable[..., Any]) -> str:
    """The name by which people call it: of an ``__init__``, that of its class."""
    return function.__qualname__.removesuffix(".__init__")


def warn_former(function: str, given: Iterable[str], instead: str) -> None:
    """Warn, at the first line outside this package, of arguments in a former spelling."""
    shown = ", ".join(f"{name}=" for name in given)
    verb = "are" if "," in shown else "is"
    message = f"{function}: {shown} {verb} deprecated; use {instead}"
    warnings.warn(message, DeprecationWarning, stacklevel=caller_level())
