"""``make test-versions``: import, operators, cold compilation and interpreter with the oldest and the newest packages.

    python tests/versions.py                 # every pair below, each in an environment of its own under build/versions
    python tests/versions.py torch-2.6       # only this one
    python tests/versions.py --check         # in this environment

On Linux, torch from the package index is a build for GPUs: an environment takes gigabytes, and minutes the first time.
That is why neither the suite nor CI does this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "versions"

PAIRS = {
    "torch-2.6": (
        "torch==2.6.0",
        "numpy<2.3",
    ),  # the oldest that the CPU needs; with it comes triton 3.2, which is refused
    # the oldest for GPUs; the interpreters of triton 3.5 and 3.6 make numbers of arrays, which NumPy 2.4 refuses
    "torch-2.9": ("torch==2.9.0", "triton==3.5.0", "numpy<2.4"),
    "torch-2.11": ("torch==2.11.0", "triton==3.6.0", "numpy<2.4"),
    "newest": ("torch", "triton"),
}
"""Environments by name: what is pinned in each."""

OTHERS = ("numpy", "finufft", "sympy", "safetensors", "tqdm", "typer", "typing_extensions", "matplotlib", "setuptools")


def prepare(name: str) -> Path:
    """The Python of an environment, made where it is missing."""
    folder = HOME / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-cache-dir"]
        subprocess.run([*install, *PAIRS[name], *OTHERS], check=True)
        (folder / "ready").touch()
    return python


def package() -> Path:
    """The package as it is installed; its compiled module needs this Python only, and no torch."""
    library = HOME / "library"
    shutil.rmtree(library, ignore_errors=True)
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(library)], cwd=ROOT, check=True)
    for compiled in (ROOT / "gwf_fast").glob("_cpu*.so"):
        shutil.copy(compiled, library / "gwf_fast")
    return library


def main() -> int:
    """Makes the environments and checks each; the number that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {chr(44).join(PAIRS)}; default: all")
    parser.add_argument("--check", action="store_true", help="this environment")
    options = parser.parse_args()
    if options.check:
        return check()
    library, failed = package(), []
    for name in options.names or PAIRS:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment |= {"PYTHONPATH": str(library), "TRITON_INTERPRET": "1"}
        start = time.perf_counter()
        try:
            python = prepare(name)
        except subprocess.CalledProcessError as problem:
            print(f"{name}: FAILED to install: {problem}")
            failed.append(name)
            continue
        done = subprocess.run([str(python), str(Path(__file__).resolve()), "--check"], cwd=HOME, env=environment)
        print(
            f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}, {time.perf_counter() - start:.0f} s\n", flush=True
        )
        failed += [name] * (done.returncode != 0)
    print(f"{len(failed)} of {len(options.names or PAIRS)} failed: {', '.join(failed) or 'none'}")
    return len(failed)


# --------------------------------------------------------------------------------------- in each environment


def check() -> int:
    """Runs every check here; the number that failed."""
    warnings.simplefilter("error")
    import torch

    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    print(", ".join(f"{name} {value}" for name, value in versions.items()), flush=True)
    failed = 0
    for test in (imports, operators, selftests, triton, compiles):
        start = time.perf_counter()
        try:
            said = test()
        except Exception as problem:  # the other checks still run
            failed += 1
            said = f"FAILED {type(problem).__name__}: {str(problem)[-1500:]}"
        print(f"  {test.__name__:10} {time.perf_counter() - start:6.1f} s  {said}", flush=True)
    return failed


def imports() -> str:
    """Silent, with warnings as errors."""
    code = "import warnings; warnings.simplefilter('error'); import torch; import gwf_fast; gwf_fast.backends()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gwf_fast" not in done.stdout + done.stderr
    return "ok"


def operators() -> str:
    """Schemas, fakes and derivatives of the operators."""
    import torch

    import gwf_fast as gwf

    x, y = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    kernel = gwf.Gaussian(1.3)
    spec = list(kernel.spec)
    arguments = (x, y, None, spec, False, None, None, "cpp")
    # opcheck's own, from torch 2.14 on: it reads gradients of tensors that are not leaves
    warnings.filterwarnings(
        "ignore", message="The .grad attribute of a Tensor that is not a leaf Tensor is being accessed"
    )
    for name in ("pair_sum", "pair_gradient", "pair_logsumexp"):
        torch.library.opcheck(getattr(torch.ops.gwf_fast, name), arguments)
    for function in (gwf.kernel_sum, gwf.kernel_gradient, gwf.kernel_logsumexp):
        assert torch.autograd.gradcheck(lambda x, y, f=function: f(x, y, kernel=kernel), (x, y))
    return "opcheck and gradcheck ok"


def selftests() -> str:
    """Both backends of the CPU against float64."""
    from gwf_fast.selftest import run as selftest_run

    lines: list[str] = []
    for match in ("x2-float", "1x33x70x17-float", "mlp-silu", "drift", "sliced"):
        assert selftest_run.run(["cpp", "torch"], "cpu", match, lines.append) == 0, "\n".join(lines)
    return f"{sum(int(line.split()[0]) for line in lines if ' failures; ' in line)} cases ok"


def triton() -> str:
    """Its interpreter on cases of every operation; or, where it is too old, one line that says so."""
    import torch

    import gwf_fast as gwf
    from gwf_fast.ops.table import BACKENDS
    from gwf_fast.selftest import run as selftest_run

    absence = BACKENDS["triton"].absence()
    if absence is None:
        import numpy

        warnings.filterwarnings("ignore", message="Conversion of an array with ndim > 0", category=DeprecationWarning)
        lines: list[str] = []
        with numpy.errstate(all="ignore"):
            failures = selftest_run.run(["triton"], "cpu", match="x2-float32", echo=lines.append)
            failures += selftest_run.run(["triton"], "cpu", match="1x33x40x17-float64", echo=lines.append)
        assert failures == 0, "\n".join(lines)
        return f"{sum(int(line.split()[0]) for line in lines if ' failures; ' in line)} cases ok"
    said = ""
    try:
        gwf.kernel_sum(torch.zeros(3, 2), torch.zeros(3, 2), kernel=gwf.Gaussian(1.0), backend="triton")
    except ValueError as refused:
        said = str(refused)
    assert "pip install" in said and "\n" not in said, said or f"{absence}, and yet it ran"
    return f"refused: {absence}"


def compiles() -> str:
    """``torch.compile`` with nothing warm: each call is the first of its kind in a process."""
    calls = {
        "kernel_sum": "gwf.kernel_sum(x, y, kernel=k)",
        "kernel_gradient": "gwf.kernel_gradient(x, y, kernel=k)",
        "kernel_logsumexp": "gwf.kernel_logsumexp(x, y, kernel=k)",
        "mmd2": "gwf.mmd2(x, y, kernel=k)",
    }
    for name, call in calls.items():
        code = (
            "import torch, gwf_fast as gwf\nk = gwf.Gaussian(1.0)\nx, y = torch.randn(9, 3), torch.randn(11, 3)\n"
            f"f = torch.compile(lambda x, y: {call}, fullgraph=True, backend='aot_eager')\n"
            f"cold = f(x, y)\ntorch.testing.assert_close(cold, {call})\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr[-1200:]}"
    return f"{', '.join(calls)} ok"


if __name__ == "__main__":
    sys.exit(main())
