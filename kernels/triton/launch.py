"""Launch configurations: one short table instead of autotuning, so that a first call compiles one kernel."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

FEW = 4
"""Up to this many coordinates or channels are unrolled and kept in registers."""

GROUP = 64
"""Tiles summed before they are added to the total: rounding errors grow with the number of groups."""

PRECISIONS = ("fp16x3", "ieee", "tf32x3", "tf32")


@dataclass(frozen=True)
class Config:
    """A tile of pairs, and what ptxas is told about registers.

    Attributes:
        rows: Rows of a tile.
        cols: Columns of a tile.
        channels: Channels of a program.
        warps: Warps of a program.
        thrift: ptxas' level of thrift with registers, 0 to 10.
        registers: Registers a thread may use; 0 leaves that to ptxas.
    """

    rows: int
    cols: int
    channels: int
    warps: int
    thrift: int = 0
    registers: int = 0


CONFIGS = {
    # Up to FEW coordinates and channels, by the number of values that a thread keeps for each row.
    ("sum", "light"): Config(128, 32, 16, 4, thrift=5, registers=255),
    ("sum", "few"): Config(64, 32, 16, 4, thrift=5, registers=255),
    ("gradient", "lean"): Config(128, 32, 16, 4, thrift=5, registers=255),
    ("gradient", "light"): Config(64, 32, 16, 4, thrift=5, registers=255),
    ("gradient", "few"): Config(64, 16, 16, 4, thrift=5, registers=255),
    ("mmd", "few"): Config(64, 16, 16, 4, thrift=5, registers=255),
    ("average", "light"): Config(64, 32, 16, 4, thrift=5, registers=255),
    ("average", "three"): Config(64, 32, 16, 4, thrift=5, registers=255),
    ("average", "few"): Config(64, 16, 16, 4, thrift=5, registers=255),
    ("jet0", "few"): Config(32, 32, 16, 4, thrift=5, registers=255),
    ("jet1", "few"): Config(16, 16, 16, 4, thrift=5, registers=255),
    ("jet2", "few"): Config(16, 16, 16, 4, thrift=5, registers=255),
    # Any number of them.
    ("jet0", "many"): Config(32, 32, 32, 8, registers=255),
    ("jet1", "many"): Config(32, 16, 32, 8, registers=255),
    ("jet2", "many"): Config(32, 16, 32, 8, thrift=5),
}


LEAN = ("gaussian", "laplace", "imq")
"""Profiles whose derivative takes hardly more registers than their value."""


def config(kernel: str, dim: int, channels: int, dtype: torch.dtype, profiles: tuple[str, ...] = ()) -> Config:
    """The configuration of a kernel; float64 has a smaller tile, since registers hold half as many numbers.

    Args:
        kernel: Its name in the table.
        dim: Coordinates.
        channels: Values of a column.
        dtype: Of the computation.
        profiles: Of a kernel that may be lean: one of LEAN, and nothing but the gradient is wanted.
    """
    size = "many" if max(dim, channels) > FEW else "light" if dim + 2 * channels <= 5 else "few"
    if size == "light" and len(profiles) == 1 and profiles[0] in LEAN:
        size = "lean"
    if kernel == "average" and size == "few" and max(dim, channels) <= 3:
        size = "three"
    found = CONFIGS.get((kernel, size)) or CONFIGS[kernel, "few"]
    if dtype != torch.float64:
        return found
    rows, cols = min(32, found.rows // 2), max(16, found.cols // 2)
    return dataclasses.replace(found, rows=rows, cols=cols, channels=16, registers=255)


def compiler_options(config: Config) -> dict:
    """Options of a launch that the compiler reads.

    Floating-point fusion is set because its default is about to change. On NVIDIA GPUs, ptxas keeps all values of the
    unrolled kernels in registers if told not to be thrifty with them; of the others it loads so much ahead that it
    spills, unless it is thrifty or may use all there are. With this table, nothing spills (docs/gpu.md).
    """
    options = {"num_warps": config.warps, "enable_fp_fusion": True}
    if torch.version.hip:
        return options
    options["ptx_options"] = f"--register-usage-level={config.thrift}"
    return options | ({"maxnreg": config.registers} if config.registers else {})


def channel_block(channels: int, largest: int) -> int:
    """Channels of one program: a power of two from 16 on."""
    return min(largest, max(16, triton.next_power_of_2(channels)))


def check_precision(precision: str) -> str:
    """How tile products with more than a few coordinates or channels are computed.

    "fp16x3" (default), also called "tf32x3": on tensor cores, as accurate as float32 arithmetic (wide_tiles.py).
    "ieee": float64 where tensor cores have it, else float32. "tf32": one product of halves, with 11 bits; for those who
    have checked that they can afford it.

    Raises:
        ValueError: There is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(PRECISIONS)}")
    return precision


def dot_precision(precision: str) -> str:
    """The same for tl.dot of float32, as the compiler of this machine's GPU names it."""
    check_precision(precision)
    if precision in ("tf32x3", "tf32"):
        return "bf16x6" if precision == "tf32x3" and torch.version.hip else precision
    return "ieee"


def products(precision: str) -> int:
    """Products of halves that make a distance with many coordinates: 3, 1 where speed is asked for, 0 for none.

    Raises:
        ValueError: There is no such precision.
    """
    return {"ieee": 0, "tf32": 1}.get(check_precision(precision), 3)


_KEPT: dict[tuple, Tensor] = {}
_IN_GRAPHS: set[tuple] = set()
_MOST_KEPT = 256
_KEEPING = threading.Lock()


def numbers(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers that kernels read on a device, [len(values)]: kept from call to call.

    Those that a CUDA graph was captured with are kept for good, since its replays read them. Where they are new at the
    capture, they are filled on the device, in the graph: nothing may be copied from the host then.
    """
    key = (values, dtype, device)
    captures = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    with _KEEPING:  # flows may run in several threads
        found = _KEPT.pop(key, None)
        if found is None:
            if captures:
                return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])
            found = torch.tensor(values, dtype=dtype, device=device)
        _KEPT[key] = found  # the last one used is the last in the table
        if captures:
            _IN_GRAPHS.add(key)
        elif len(_KEPT) > _MOST_KEPT + len(_IN_GRAPHS):
            del _KEPT[next(old for old in _KEPT if old not in _IN_GRAPHS)]
        return found


def multiprocessors(device: torch.device) -> int:
    """How many programs of a device run side by side; 1 under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def check_device(x: Tensor) -> None:
    """Triton runs on GPUs, or on CPU tensors under its interpreter."""
    if x.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"x: got a tensor on {x.device}, the triton backend expects a CUDA device "
            "(or TRITON_INTERPRET=1 in the environment before Python starts, for tests)"
        )


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Launches go to the current device: make it that of x."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
