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
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from bench.problem import Problem, truth
from bench.registry import Contender, Result

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
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import keops_code

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


def reduction(operation: str, problem: Problem) -> Contender:
    """One of the four reductions on the device of the problem, as a call.

    Raises:
        ImportError: There is no nvcc.
        RuntimeError: The driver refuses.
    """
    x, y = problem.x.contiguous(), problem.y.contiguous()
    n, m, dim = len(x), len(y), x.shape[1]
    major, minor = torch.cuda.get_device_capability(x.device)
    function, threads, shared = _kernel(operation, problem.kernel.lower(), dim, f"{major}{minor}")
    rate = x.new_tensor([problem.g])
    inputs = [x, y, rate] if operation in ("logsumexp", "average") else [x, y, problem.weights.contiguous(), rate]
    width = {"sum": 1, "gradient": dim, "logsumexp": 2, "average": 1 + dim}[operation]
    pointers = torch.tensor([tensor.data_ptr() for tensor in inputs], device=x.device)
    out = x.new_empty(n, width)
    values = (ctypes.c_long(n), ctypes.c_long(m), ctypes.c_void_p(out.data_ptr()), ctypes.c_void_p(pointers.data_ptr()))
    places = (ctypes.c_void_p * 4)(*(ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values))
    blocks = -(-n // threads)

    def call() -> Result:
        stream = ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream)
        sizes = (blocks, 1, 1, threads, 1, 1, shared)
        _checked(_driver().cuLaunchKernel(function, *sizes, stream, places, None), "cuLaunchKernel")
        return (_finished(operation, problem, out),)

    call.keep = (inputs, pointers, values)  # type: ignore[attr-defined]
    return call


def _finished(operation: str, problem: Problem, out: Tensor) -> Tensor:
    """What its formula leaves to the user; not for the average, whose denominators KeOps' formula does not have."""
    if operation == "sum":
        return out[:, 0]
    if operation == "logsumexp":
        return out[:, 0] + out[:, 1].log()
    if operation == "gradient":
        return out * (2.0 if problem.kernel == "Gaussian" else 1.0)
    return out


def average_check(call: Contender, problem: Problem, rows: Tensor) -> Result:
    """The average's numerators over the true denominators, on the checked rows."""
    (out,) = call()
    few = Problem(problem.x[rows], problem.y, problem.weights, problem.kernel, problem.bandwidth)
    shift = out[rows, :1].double() - truth(few, "kernel_logsumexp")[:, None]
    full = torch.full((len(out), problem.x.shape[1]), float("nan"), dtype=torch.float64, device=out.device)
    full[rows] = out[rows, 1:].double() * shift.exp()
    return (full,)
