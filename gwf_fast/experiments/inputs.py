"""Reading points and labelled data from files; every problem is one line that names the file.

Nothing that a file says of itself is believed: shapes are held to the bytes that are there before memory is taken.
"""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ENDINGS = ".npy, .npz, .csv, .tsv or .mat"
_POINTS = ("data", "X", "x", "points", "features")
_LABELS = ("target", "labels", "y", "Y", "label", "t")
_NUMERIC = (
    "double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical", "sparse",
)  # fmt: skip
_BEGINS_AS_A_NUMBER = re.compile(r"\s*[+-]?\.?\d")
_NUMERIC = (
    "double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical", "sparse",
)  # fmt: skip
_BEGINS_AS_A_NUMBER = re.compile(r"\s*[+-]?\.?\d")
_SMALL, _RATIO = 1 << 26, 100
"""Bytes that any file may unfold to, and how many times its own size others may: numbers do not compress better."""


def read_points(path: str | Path) -> Tensor:
    """Points [N, D] in float32.

    Args:
        path: .npy with an array [N, D] or [N]; .csv or .tsv with one point a line, separated by commas, semicolons or
            tabs, a header line and comments (#) allowed; .mat or .npz with a variable called data, X, x, points or
            features, or a single matrix.

    Raises:
        ValueError: If the file can't be read, is ragged, holds text, NaN or infinity, or fewer than two points.
    """
    path = Path(path)
    return _checked(path, _read(path)[0])


def read_labelled(path: str | Path) -> tuple[Tensor, Tensor]:
    """Features [S, n] in float32 and labels [S] in {-1, +1}; {0, 1} is mapped to it.

    Args:
        path: .mat or .npz with variables called as data and target; else the last column is the label.
    """
    path = Path(path)
    features, labels = _read(path)
    if labels is None:
        if features.ndim != 2 or features.shape[1] < 2:
            raise ValueError(
                f"input: {path} needs features and, in the last column, a label; got shape {features.shape}"
            )
        features, labels = features[:, :-1], features[:, -1]
    labels = np.asarray(labels).reshape(-1)
    if len(labels) != len(features):
        raise ValueError(f"input: {path} has {len(features)} rows of features and {len(labels)} labels")
    if set(np.unique(labels).tolist()) not in ({0, 1}, {-1, 1}):
        raise ValueError(f"input: {path} has labels {np.unique(labels)[:5].tolist()}, expected 0 and 1, or -1 and 1")
    signs = torch.from_numpy(np.where(labels > 0, 1, -1).astype(np.float32))
    return _checked(path, features), signs


def _read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    if not path.is_file():
        raise ValueError(f"input: no such file: {path}")
    readers = {".npy": _read_npy, ".npz": _read_npy, ".csv": _read_csv, ".tsv": _read_csv, ".mat": _read_mat}
    if path.suffix.lower() not in readers:
        raise ValueError(f"input: {path} has the ending {path.suffix!r}, expected {ENDINGS}")
    try:
        return readers[path.suffix.lower()](path)
    except Unreadable as error:
        raise ValueError(f"input: {error}") from None
    except Exception as error:  # the libraries' readers raise whatever the bytes lead them to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"input: can't read {path} ({reason})") from None


class Unreadable(Exception):  # noqa: N818 - its text is what the user is told
    """A problem in our own words."""


def require_size(path: Path, name: str, size: int, stored: int) -> None:
    """What is to be read unfolds to ``size`` bytes, from ``stored`` ones in the file."""
    if size > max(_SMALL, _RATIO * stored):
        raise Unreadable(f"{name} of {path} would be {size} bytes, out of {stored} in the file")


def _read_npy(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    if zipfile.is_zipfile(path):  # whatever it is called
        return _read_npz(path)
    with open(path, "rb") as file:
        array = _read_array(file, path.stat().st_size, path.name)
        return array, None


def _read_array(file: Any, size: int, name: str) -> np.ndarray:
    """The array in .npy format that fills a stream of ``size`` bytes."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    rest = size - file.tell()
    if dtype.hasobject:
        raise Unreadable(f"can't read {name} (it holds Python objects, expected numbers)")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != rest:
        raise Unreadable(f"can't read {name} (it says {list(shape)} of {dtype}, but {rest} bytes follow)")
    return np.frombuffer(file.read(rest), dtype).reshape(shape, order="F" if fortran else "C")


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

        def read(name: str) -> np.ndarray:
            info = members[name]
            require_size(path, name, info.file_size, info.compress_size)
            content = archive.read(info)
            return _read_array(io.BytesIO(content), len(content), f"{name} of {path}")

        points, labels = _choose(path, list(members), list(members))
        return read(points), None if labels is None else read(labels)


def _choose(path: Path, names: list[str], numeric: list[str]) -> tuple[str, str | None]:
    """Which variables are the points and, if any are, the labels."""
    points = next((name for name in _POINTS if name in numeric), None)
    if points is None and len(numeric) == 1:
        (points,) = numeric
    if points is None:
        raise Unreadable(f"{path} has the variables {', '.join(names) or 'none'}, expected one called data or X")
    return points, next((name for name in _LABELS if name in numeric and name != points), None)


def _read_csv(path: Path) -> tuple[np.ndarray, None]:
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    lines = ["" if line.lstrip().startswith("#") else line for line in text.split("\n")]
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((each for each in (";", "\t") if each in first), ",")
    rows: list[list[float]] = []
    is_first = True
    reader = csv.reader(lines, delimiter=delimiter)
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        row = [_number(cell) for cell in cells]
        is_header = is_first and not any(n is not None or _BEGINS_AS_A_NUMBER.match(c) for n, c in zip(row, cells))
        is_first = False
        if is_header:
            continue
        if None in row:
            raise Unreadable(f"{path}, line {reader.line_num}: not a number in {delimiter.join(cells)[:60]!r}")
        if rows and len(row) != len(rows[0]):
            raise Unreadable(f"{path}, line {reader.line_num} has {len(row)} values, the first one has {len(rows[0])}")
        rows.append(row)  # type: ignore[arg-type]  # there is no None
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0), None


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_0 as 10
    except ValueError:
        return None


def _read_mat(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        from scipy.io import loadmat, whosmat
        from scipy.sparse import issparse
    except ImportError:
        raise Unreadable(f"reading {path} needs SciPy: pip install scipy") from None
    found = {name: (shape, kind) for name, shape, kind in whosmat(path)}
    chosen = _choose(path, list(found), [name for name, (_, kind) in found.items() if kind in _NUMERIC])
    arrays: list[np.ndarray | None] = []
    for name in chosen:
        if name is not None:
            require_size(path, name, 8 * math.prod(found[name][0]), path.stat().st_size)
        value: Any = None if name is None else loadmat(path, variable_names=[name])[name]
        arrays.append(value.toarray() if issparse(value) else value)
    points, labels = arrays
    assert points is not None  # chosen
    return points, labels


def _checked(path: Path, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"input: {path} holds {array.dtype}, expected numbers")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1:
        raise ValueError(f"input: {path} has shape {list(array.shape)}, expected at least two points [N, D]")
    with np.errstate(over="ignore"):
        narrow = np.array(array, dtype=np.float32, order="C")
    for kept, problem in ((array, "NaN or infinity"), (narrow, "a number beyond the range of float32, 3.4e38")):
        if not np.isfinite(kept).all():
            bad = int((~np.isfinite(kept)).any(1).argmax())
            raise ValueError(f"input: {path} contains {problem}, first in row {bad + 1}")
    return torch.from_numpy(narrow)
