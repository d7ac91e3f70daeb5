"""Only what pyproject.toml can't say: the compiled module, and kernels/ -> gwf_fast.kernels."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))  # pip's isolated builds do not look here
import build_cuda

X86 = platform.machine().lower() in ("x86_64", "amd64")

# No -ffast-math: it folds the rounding tricks of the exponential away.
COMMON = ["-O3", "-std=c++20", "-fopenmp", "-fvisibility=hidden", "-g0", "-Icsrc"]
COMMON += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]

# GWF_FAST_SANITIZE=address,undefined: what `make sanitize` runs the fuzzer on. Such objects have a folder of their own.
# GWF_FAST_SANITIZE_ISA=avx512: only these instruction sets are compiled so, the others as ever.
SANITIZERS = os.environ.get("GWF_FAST_SANITIZE", "")
SANITIZED_SETS = os.environ.get("GWF_FAST_SANITIZE_ISA", "avx512,avx2,baseline").split(",")
SANITIZED = [flag for flag in COMMON if flag not in ("-O3", "-g0")]
SANITIZED += ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]

# One translation unit an instruction set, chosen at run time; other processors build the baseline alone.
INSTRUCTION_SETS = {
    # GCC 12 takes its own _mm512_undefined_ps for an uninitialised variable.
    "_avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-Wno-uninitialized", "-Wno-maybe-uninitialized"],
    "_avx2": ["-mavx2", "-mfma"],
    "_baseline": [],
}


def cpu_sources() -> list[str]:
    """Sources of gwf_fast._cpu; the first is the module itself.

    Those that any processor runs come first: of a function that several files hold, as they do the standard library's
    templates, the linker takes the first.
    """
    sources = [
        "csrc/bindings/module.cpp",
        "csrc/team.cpp",
        "csrc/bindings/direct.cpp",
        "csrc/bindings/direct_measures.cpp",
        "csrc/bindings/drift.cpp",
        "csrc/bindings/mlp.cpp",
        "csrc/bindings/nearest.cpp",
        "csrc/bindings/primal_dual.cpp",
        "csrc/bindings/sliced.cpp",
        "csrc/bindings/svgd.cpp",
        "csrc/bindings/transport.cpp",
        *sorted((str(path) for path in Path("csrc/isa").glob("*.cpp")), key=lambda path: ("_avx" in path, path)),
    ]
    return [path for path in sources if X86 or not Path(path).stem.endswith(("_avx512", "_avx2"))]


def flags(source: str) -> list[str]:
    """Compiler flags of one source file, from its name."""
    common = SANITIZED if is_sanitized(source) else COMMON
    for suffix, extra in INSTRUCTION_SETS.items():
        if Path(source).stem.endswith(suffix):
            return [*common, *extra]
    return list(common)


def is_sanitized(source: str) -> bool:
    """Whether a source file is compiled for sanitizers."""
    instruction_set = Path(source).stem.rpartition("_")[2]
    return bool(SANITIZERS) and (f"_{instruction_set}" not in INSTRUCTION_SETS or instruction_set in SANITIZED_SETS)


def is_current(target: Path, depfile: Path, stamp: Path, command: str) -> bool:
    """Whether ``target`` was made by this very command and is newer than every file in its depfile."""
    if not (target.exists() and depfile.exists() and stamp.exists()) or stamp.read_text() != command:
        return False
    prerequisites = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    made = target.stat().st_mtime
    return all(os.path.exists(path) and os.path.getmtime(path) <= made for path in prerequisites)


class BuildExtension(build_ext):
    """build_ext that compiles in parallel, with flags a file, and only what has changed."""

    def build_extension(self, ext: Extension) -> None:
        """Compile what has changed and link it."""
        if ext.name == "gwf_fast._cuda":
            return build_cuda.build(ext, self.compiler, self.get_ext_fullpath(ext.name))
        import pybind11

        missing = [path for path in ext.sources if not os.path.exists(path)]
        if missing:
            raise FileNotFoundError(f"setup.py: {missing[0]} is missing; the source tree is incomplete")
        # The compiler that setuptools found; a fixed folder, because pip's editable builds get a temporary one.
        compiler = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so

        def compile_one(source: str) -> str:
            kind = SANITIZERS if is_sanitized(source) else ""
            folder = Path("build", "objects", "-".join(filter(None, (self.plat_name, ext.name, kind))))
            target = folder / Path(source).with_suffix(".o")
            depfile, stamp = target.with_suffix(".d"), target.with_suffix(".command")
            target.parent.mkdir(parents=True, exist_ok=True)
            command = [*compiler, *flags(source), "-MMD", "-c", source, "-o", str(target)]
            if Path(source).parent.name == "bindings":  # the only files that know Python
                command += [f"-I{path}" for path in (pybind11.get_include(), *self.include_dirs)]
            if not is_current(target, depfile, stamp, " ".join(command)):
                stamp.unlink(missing_ok=True)  # an interrupted compilation must not look finished
                self.announce(" ".join(command), level=2)
                subprocess.run(command, check=True)
                stamp.write_text(" ".join(command))
            return str(target)

        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with ThreadPoolExecutor(jobs) as pool:
            # libgomp's way to synchronise is unknown to ThreadSanitizer
            own_threads = ["tests/sanitize/threads.cpp"] if SANITIZERS == "thread" else []
            objects = list(pool.map(compile_one, ext.sources + own_threads))
        link = [] if own_threads else ["-fopenmp"]
        link += [f"-fsanitize={SANITIZERS}"] if SANITIZERS else []
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=link, target_lang="c++"
        )


setup(
    packages=(
        find_packages(include=["gwf_fast", "gwf_fast.*"])
        + ["gwf_fast.kernels"]
        + [f"gwf_fast.kernels.{p}" for p in find_packages("kernels")]
    ),
    package_dir={"gwf_fast.kernels": "kernels"},
    ext_modules=[
        Extension("gwf_fast._cpu", cpu_sources(), depends=[str(p) for p in Path("csrc").rglob("*.h")]),
        *([build_cuda.extension()] if build_cuda.wanted() else []),
    ],
    cmdclass={"build_ext": BuildExtension},
)
