"""Exceptions that a user may want to catch by name."""


class NonFiniteError(ArithmeticError):
    """A flow produced NaN or infinity.

    The message names the step; the last good state, and the last checkpoint, are kept.
    """
