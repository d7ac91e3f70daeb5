"""The extension gwf_fast._cuda, for setup.py: built where GWF_FAST_CUDA=1, never guessed from a visible GPU.

GWF_FAST_CUDA=1 pip install .                                   # nvcc from the path
GWF_FAST_CUDA=1 GWF_FAST_CUDA_ARCHITECTURES="80;90;100" ...      # the default list
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension

# 2**x is one instruction where results below 2**-126 are 0; pairs can do with roots and quotients to two last bits
SOURCES = {
    "csrc/gpu/pairwise.cu": ["-prec-div=false", "-prec-sqrt=false"],
    "csrc/gpu/primal_dual.cu": [],
}
OBJECTS = Path("build", "objects", f"{sysconfig.get_platform()}-cuda")
FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Icsrc"]
FLAGS += ["-ftz=true"]  # not -use_fast_math
TYPES = ("FLOAT", "DOUBLE")  # one object each, compiled side by side


def wanted() -> bool:
    """Whether the user asked for the CUDA module."""
    return os.environ.get("GWF_FAST_CUDA") == "1"


def architectures() -> list[str]:
    """Compute capabilities to compile for."""
    return [name for name in os.environ.get("GWF_FAST_CUDA_ARCHITECTURES", "80;90;100").split(";") if name]


def extension() -> Extension:
    """The extension; its CUDA objects are made by ``compile_objects``."""
    return Extension(
        "gwf_fast._cuda", ["csrc/gpu/module.cpp"], depends=[*SOURCES, *map(str, Path("csrc").rglob("*.h"))]
    )


def nvcc() -> str:
    """The CUDA compiler.

    Raises:
        FileNotFoundError: GWF_FAST_CUDA=1 but there is none.
    """
    found = shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    if found is None:
        raise FileNotFoundError("GWF_FAST_CUDA=1 needs nvcc on the path, which was not found")
    return found


def commands(folder: Path) -> dict[Path, list[str]]:
    """The nvcc command of each object."""
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures()]
    newest = architectures()[-1]
    targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")  # for GPUs that come later
    todo = {}
    for source, extra in SOURCES.items():
        for name in TYPES:
            target = folder / f"{Path(source).stem}_{name.lower()}.o"
            todo[target] = [
                nvcc(), *FLAGS, *extra, *targets, "-t", "0", f"-DGWF_ONLY_{name}", "-c", source, "-o", str(target),
            ]  # fmt: skip
    return todo


def compile_objects(folder: Path, spawn: Callable[[list[str]], Any]) -> list[str]:
    """Compiles the CUDA objects with ``spawn`` (setuptools' runner of commands); those that are newer stay."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = ("pairwise/profiles_generated.h", "mlp/*.h", "primal_dual/*.h", "gpu/*.h", "random/*.h")
    sources: list[str | Path] = [*SOURCES, *(path for pattern in headers for path in Path("csrc").glob(pattern))]
    newest = max(os.path.getmtime(path) for path in sources)
    todo = commands(folder)

    def is_current(path: Path) -> bool:
        stamp = path.with_suffix(".command")  # other architectures are another object
        made_so = stamp.exists() and stamp.read_text() == " ".join(todo[path])
        return made_so and path.exists() and path.stat().st_mtime >= newest

    def compile_one(path: Path) -> None:
        spawn(todo[path])
        path.with_suffix(".command").write_text(" ".join(todo[path]))

    with ThreadPoolExecutor(len(TYPES)) as pool:
        list(pool.map(compile_one, [path for path in todo if not is_current(path)]))
    return [str(path) for path in todo]


def build(ext: Extension, compiler: Any, target: str) -> None:
    """Builds the module at ``target`` with setuptools' ``compiler``: CUDA objects, the pybind11 file, the link."""
    import pybind11

    objects = compile_objects(OBJECTS, compiler.spawn)
    module = OBJECTS / "module.o"
    includes = [f"-I{path}" for path in ("csrc", pybind11.get_include(), sysconfig.get_path("include"))]
    cxx = getattr(compiler, "compiler_so_cxx", None) or compiler.compiler_so
    options = ["-std=c++20", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", *includes]
    compiler.spawn([*cxx, *options, "-c", ext.sources[0], "-o", str(module)])
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    host = [f"-ccbin={os.environ['CXX']}"] if "CXX" in os.environ else []
    # nvcc links its static runtime: the module needs the driver only.
    compiler.spawn([nvcc(), *host, "-shared", "-cudart=static", *objects, str(module), "-o", target])


if __name__ == "__main__":  # builds the module, and installs nothing: what CI runs where there is no GPU
    import subprocess
    import time

    from setuptools._distutils import ccompiler
    from setuptools._distutils.sysconfig import customize_compiler

    os.chdir(Path(__file__).resolve().parent)
    start = time.perf_counter()
    toolchain: Any = ccompiler.new_compiler()
    customize_compiler(toolchain)
    toolchain.spawn = lambda command: subprocess.run([str(part) for part in command], check=True)
    module = Path("build", "cuda", "gwf_fast", "_cuda" + sysconfig.get_config_var("EXT_SUFFIX"))
    build(extension(), toolchain, str(module))
    print(f"{module} for sm_{', sm_'.join(architectures())} in {time.perf_counter() - start:.0f} s")
    sys.exit(0)
