"""Few rows and many columns: how many programs share the columns of a row, so that a GPU is filled.

A program (a Triton program, a CUDA block) owns a tile of rows and sweeps all columns. Where there are fewer programs
than a GPU runs at once, the columns are cut into ranges of whole tiles, each swept by a program of its own, and the
partial results are combined in the order of the ranges. No atomics: results are the same in every run on a device.
"""

from __future__ import annotations

WAVES = 2
"""Programs a multiprocessor should have: one to compute while another waits for memory."""

MIN_COLUMNS = 512
"""A range is not shorter: below, starting a program costs more than its sweep."""


def column_splits(programs: int, columns: int, tile: int, multiprocessors: int) -> int:
    """The number of ranges that columns are cut into.

    The rule: enough ranges for WAVES programs a multiprocessor, none shorter than MIN_COLUMNS, and none empty; one
    range where rows alone fill the device. Partial results take at most about
    WAVES * multiprocessors * (rows of a tile) rows of memory, whatever the sizes.

    Args:
        programs: Programs that rows, channels and batches make.
        columns: Columns M.
        tile: Columns of a tile.
        multiprocessors: Of the device.

    Returns:
        At least 1.
    """
    wanted = WAVES * multiprocessors
    if programs <= 0 or programs >= wanted:
        return 1
    tiles = -(-columns // tile)
    splits = min(-(-wanted // programs), max(1, columns // MIN_COLUMNS), tiles)
    if splits <= 1:
        return 1
    return -(-tiles // -(-tiles // splits))  # whole tiles a range: the last ranges of a rounded-up share may be empty
