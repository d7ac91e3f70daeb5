"""Reading images and labels in IDX, the format of MNIST and its kin, plain or compressed with gzip."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from gwf_fast.experiments.inputs import Unreadable, require_size

_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file.

    Raises:
        ValueError: If the file can't be read or is not IDX; names it.
    """
    if not path.is_file():
        raise ValueError(f"input: no such file: {path}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return _read(file, path)
    except Unreadable as error:
        raise ValueError(f"input: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"input: can't read {path} ({error})") from None


def _read(file: BinaryIO | gzip.GzipFile, path: Path) -> np.ndarray:
    """The array; no more is unfolded than the header says that there is."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:
        raise Unreadable(f"{path} is not an IDX file")
    dtype, rank = np.dtype(_TYPES[head[2]]), head[3]
    sizes = file.read(4 * rank)
    shape = tuple(int.from_bytes(sizes[4 * k : 4 * k + 4], "big") for k in range(rank))
    expected = math.prod(shape) * dtype.itemsize
    require_size(path, f"the array {list(shape)}", expected, path.stat().st_size)
    content = file.read(expected + 1)
    if len(content) != expected:
        more = "more" if len(content) > expected else len(content)
        raise Unreadable(f"{path} says it has shape {list(shape)}, {expected} bytes, but has {more}")
    return np.frombuffer(content, dtype).reshape(shape)


def read_digits(path: str | Path) -> tuple[Tensor, Tensor]:
    """Images [N, H, W] from 0 to 1 in float32, and their labels [N].

    Args:
        path: A folder with one file each of images and labels, called as MNIST's are, or more (training and test set),
            which are joined; or one file of images, with its labels beside it.

    Raises:
        ValueError: If something is missing or does not fit.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"input: no such file: {path}")
    files = sorted(path.glob(f"*{_IMAGES}*")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"input: {path} holds no file called *{_IMAGES} or *{_IMAGES}.gz")
    images, labels = [], []
    for file in files:
        beside = file.with_name(file.name.replace(_IMAGES, _LABELS))
        if beside == file:
            raise ValueError(f"input: {file} must be called *{_IMAGES} or *{_IMAGES}.gz, with *{_LABELS} beside it")
        images.append(read_idx(file))
        labels.append(read_idx(beside))
        if images[-1].ndim != 3 or labels[-1].shape != images[-1].shape[:1]:
            raise ValueError(
                f"input: {file} has shape {list(images[-1].shape)} and {beside.name} {list(labels[-1].shape)}, "
                "expected [N, H, W] and [N]"
            )
    if min(int(each.min(initial=0)) for each in labels) < 0:
        raise ValueError(f"input: {path} has negative labels")
    scale = 255.0 if images[0].dtype == np.uint8 else 1.0
    pixels = np.concatenate(images).astype(np.float32) / scale
    return torch.from_numpy(pixels), torch.from_numpy(np.concatenate(labels).astype(np.int64))
