"""Reading points and labelled data from .npy, .csv and .mat; every problem is one line that names the file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_POINTS = ("data", "X", "x", "points", "features")
_LABELS = ("target", "labels", "y", "Y", "label", "t")


def read_points(path: str | Path) -> Tensor:
    """Points [N, D] in float32.

    Args:
        path: .npy with an array [N, D] or [N]; .csv with one point a line, a header line allowed; .mat with a
            variable called data, X, x, points or features, or a single matrix.

    Raises:
        ValueError: If the file can't be read, is ragged, holds text, NaN or infinity, or fewer than two points.
    """
    path = Path(path)
    return _checked(path, _read(path)[0])


def read_labelled(path: str | Path) -> tuple[Tensor, Tensor]:
    """Features [S, n] in float32 and labels [S] in {-1, +1}; {0, 1} is mapped to it.

    Args:
        path: .mat with variables called as data and target; else the last column is the label.
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
    readers = {".npy": _read_npy, ".csv": _read_csv, ".mat": _read_mat}
    if path.suffix.lower() not in readers:
        raise ValueError(f"input: {path} has the ending {path.suffix!r}, expected .npy, .csv or .mat")
    return readers[path.suffix.lower()](path)


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    try:
        return np.load(path, allow_pickle=False), None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"input: can't read {path} ({str(error).splitlines()[0]})") from None


def _read_csv(path: Path) -> tuple[np.ndarray, None]:
    rows: list[list[float]] = []
    try:
        with open(path, newline="") as file:
            for number, cells in enumerate(csv.reader(file), 1):
                if not cells:
                    continue
                try:
                    row = [float(cell) for cell in cells]
                except ValueError:
                    if number == 1:
                        continue  # a header
                    raise ValueError(
                        f"input: {path}, line {number}: not a number in {','.join(cells)[:60]!r}"
                    ) from None
                if rows and len(row) != len(rows[0]):
                    raise ValueError(
                        f"input: {path}, line {number} has {len(row)} values, the first one has {len(rows[0])}"
                    )
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"input: can't read {path} ({error})") from None
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0), None


def _read_mat(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(f"input: reading {path} needs SciPy: pip install scipy") from None
    try:
        content = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    except Exception as error:  # loadmat raises whatever the bytes lead it to
        raise ValueError(f"input: can't read {path} ({str(error).splitlines()[0]})") from None
    numeric = {k: v for k, v in content.items() if v.dtype.kind in "biuf"}
    name = next((k for k in _POINTS if k in numeric), None)
    if name is None and len(numeric) == 1:
        (name,) = numeric
    if name is None:
        raise ValueError(
            f"input: {path} has the variables {', '.join(content) or 'none'}, expected one called data or X"
        )
    label = next((k for k in _LABELS if k in numeric and k != name), None)
    return numeric[name], None if label is None else numeric[label]


def _checked(path: Path, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"input: {path} holds {array.dtype}, expected numbers")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1:
        raise ValueError(f"input: {path} has shape {list(array.shape)}, expected at least two points [N, D]")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).any(1).argmax())
        raise ValueError(f"input: {path} contains NaN or infinity, first in row {bad + 1}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
