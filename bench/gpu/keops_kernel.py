"""KeOps' own kernels without KeOps' own binding.

KeOps 2.3 compiles at run time through a binding of its own to NVRTC, which ends the process where CUDA is 13 (it fails
in that binding, before any kernel). What it would compile is known: its generated CUDA, here compiled by nvcc with its
options, and launched as it launches it. The time is that of the kernel alone, less than KeOps' users wait.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from bench.problem import Problem, truth
from bench.registry import Result

MAX_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def _checked(code: int, what: str) -> None:
    if code:
        raise RuntimeError(f"{what} failed with code {code} of the CUDA driver")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def _kernel(operation: str, kernel: str, dim: int, arch: str) -> tuple[ctypes.c_void_p, int, int]:
    """The function, threads of a block, bytes of shared memory."""
    from bench import keops_code

    made = keops_code.source(operation, kernel, dim)
    compiler = shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    if compiler is None:
        raise ImportError("KeOps' kernels are compiled by nvcc, which is not here")
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder, "code.cu"), Path(folder, "code.cubin")
        path.write_text(made.code)
        command = [compiler, "-cubin", f"-arch=sm_{arch}", *keops_code.OPTIONS, str(path), "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True)
        image = target.read_bytes()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _checked(_driver().cuModuleLoadData(ctypes.byref(module), image), "cuModuleLoadData")
    _checked(_driver().cuModuleGetFunction(ctypes.byref(function), module, b"GpuConv1DOnDevice"), "cuModuleGetFunction")
    shared = made.threads * made.shared * 4
    _checked(_driver().cuFuncSetAttribute(function, MAX_SHARED, shared), "cuFuncSetAttribute")
    return function, made.threads, shared


class Reduction:
    """One of the four reductions on the device of the problem: a call launches the kernel and nothing else.

    Args:
        operation: Its name.
        problem: The inputs.
        rows: Which rows are checked.

    Raises:
        ImportError: There is no nvcc.
        RuntimeError: The driver refuses.
    """

    def __init__(self, operation: str, problem: Problem, rows: Tensor) -> None:
        self._operation, self._problem, self._rows = operation, problem, rows
        x, y = problem.x.contiguous(), problem.y.contiguous()
        n, m, dim = len(x), len(y), x.shape[1]
        major, minor = torch.cuda.get_device_capability(x.device)
        self._function, threads, shared = _kernel(operation, problem.kernel.lower(), dim, f"{major}{minor}")
        self._grid = (-(-n // threads), 1, 1, threads, 1, 1, shared)
        weights = [] if operation in ("logsumexp", "average") else [problem.weights.contiguous()]
        self._inputs = [x, y, *weights, x.new_tensor([problem.g])]
        self._pointers = torch.tensor([tensor.data_ptr() for tensor in self._inputs], device=x.device)
        self._out = x.new_empty(n, {"sum": 1, "gradient": dim, "logsumexp": 2, "average": 1 + dim}[operation])
        addresses = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (self._out, self._pointers))
        self._values = (ctypes.c_long(n), ctypes.c_long(m), *addresses)
        places = (ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in self._values)
        self._places = (ctypes.c_void_p * 4)(*places)

    def __call__(self) -> Result:
        """The call that is timed: what the formula leaves to the user is not done."""
        stream = ctypes.c_void_p(torch.cuda.current_stream(self._out.device).cuda_stream)
        _checked(_driver().cuLaunchKernel(self._function, *self._grid, stream, self._places, None), "cuLaunchKernel")
        return (self._out,)

    def check(self) -> Result:
        """The result. Of the average, whose denominators the formula does not have, with the true ones."""
        (out,), problem = self(), self._problem
        if self._operation == "sum":
            return (out[:, 0],)
        if self._operation == "logsumexp":
            return (out[:, 0] + out[:, 1].log(),)
        if self._operation == "gradient":
            return (out * (2.0 if problem.kernel == "Gaussian" else 1.0),)
        rows = self._rows
        few = Problem(problem.x[rows], problem.y, problem.weights, problem.kernel, problem.bandwidth)
        shift = out[rows, :1].double() - truth(few, "kernel_logsumexp")[:, None]
        full = torch.full((len(out), out.shape[1] - 1), float("nan"), dtype=torch.float64, device=out.device)
        full[rows] = out[rows, 1:].double() * shift.exp()
        return (full,)
