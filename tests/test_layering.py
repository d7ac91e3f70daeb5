"""The house keeps its shape: imports flow one way, importing is free, files stay short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 400  # lines

# From the top: a module may import from its own layer and from those after it, never from one before it.
LAYERS = (
    ("gwf_fast.cli", "gwf_fast.experiments"),
    ("gwf_fast",),
    ("gwf_fast.ops",),
    ("gwf_fast.kernels",),
    ("gwf_fast._cpu", "gwf_fast._cuda"),
    ("gwf_fast.errors",),  # for every layer, and so below all
)
COMPILED = ("gwf_fast._cpu", "gwf_fast._cuda")


def layer(module: str) -> int:
    """Position of a module's layer: that of the longest prefix in LAYERS."""
    prefixes = [(len(p), i) for i, names in enumerate(LAYERS) for p in names if f"{module}.".startswith(f"{p}.")]
    return max(prefixes)[1]


def modules() -> Iterator[tuple[str, str, bool]]:
    """(dotted name, source, whether it is a package) of every module that is shipped."""
    for folder, package in ((ROOT / "gwf_fast", "gwf_fast"), (ROOT / "kernels", "gwf_fast.kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            yield ".".join((package, *(parts[:-1] if is_package else parts))), path.read_text(), is_package


def imported(module: str, source: str, is_package: bool) -> Iterator[str]:
    """Dotted names that a module imports; ``from a import b`` counts as ``a.b``, since b may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: None if is_package else -1]
            base = base[: len(base) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def upward_imports(module: str, source: str, is_package: bool = False) -> list[str]:
    own = [name for name in imported(module, source, is_package) if f"{name}.".startswith("gwf_fast.")]
    return [name for name in own if layer(name) < layer(module)]


def uses_torch_library(source: str) -> bool:
    names = [*imported("module", source, False)]
    names += [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return any(f"{name}.".startswith("torch.library.") for name in names)


ALL = list(modules())
IDS = [name for name, _, _ in ALL]


@pytest.mark.parametrize(("module", "source", "is_package"), ALL, ids=IDS)
def test_nothing_imports_from_above(module, source, is_package):
    assert upward_imports(module, source, is_package) == []


@pytest.mark.parametrize(("module", "source", "is_package"), ALL, ids=IDS)
def test_only_kernels_load_compiled_modules(module, source, is_package):
    compiled = [name for name in imported(module, source, is_package) if name.startswith(COMPILED)]
    assert not compiled or module.startswith("gwf_fast.kernels"), f"{module} imports {compiled}"


@pytest.mark.parametrize(("module", "source", "is_package"), ALL, ids=IDS)
def test_only_ops_registers_operators(module, source, is_package):
    if not module.startswith("gwf_fast.ops"):
        assert not uses_torch_library(source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gwf_fast.kernels.cpp.pairs", "from gwf_fast.ops import pair_sum"),
        ("gwf_fast.kernels.cpp.pairs", "import gwf_fast"),
        ("gwf_fast.kernels.triton.sums", "from ...ops import pair_sum"),
        ("gwf_fast.ops.sums", "from .. import radial"),
        ("gwf_fast.ops.sums", "def f():\n    from gwf_fast.pairs.reductions import kernel_sum"),
        ("gwf_fast.flows.jko", "from gwf_fast.experiments import digits"),
    ],
)
def test_the_check_sees_a_violation(module, source):
    assert upward_imports(module, source)


@pytest.mark.parametrize(
    "source", ["import torch.library", "from torch.library import Library", "lib = torch.library.Library('a', 'DEF')"]
)
def test_the_check_sees_a_registration(source):
    assert uses_torch_library(source)


def test_import_is_silent_and_light():
    heavy = ["matplotlib", "sympy", "triton", "pykeops", "geomloss", "typer", "tqdm", "scipy", "sklearn"]
    code = (
        "import sys, torch; before = set(sys.modules); import gwf_fast; "
        f"sys.exit(' '.join(sorted({{m.split('.')[0] for m in set(sys.modules) - before}} & set({heavy!r}))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def sources(*patterns: str) -> list[Path]:
    found = [p for pattern in patterns for p in ROOT.glob(pattern) if "generated" not in p.name]
    return sorted(p for p in found if not p.relative_to(ROOT).parts[0].startswith((".", "build", "dist")))


def test_csrc_knows_no_torch():
    # The wheel would need torch to build, and one build would serve one version of it only.
    includes = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10|caffe2)/', re.MULTILINE)
    files = sources("csrc/**/*.*")
    assert files
    assert [p.name for p in files if includes.search(p.read_text())] == []


def test_files_stay_short():
    files = sources("*.py", "gwf_fast/**/*.py", "kernels/**/*.py", "tests/**/*.py", "bench/**/*.py", "csrc/**/*.*")
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert lengths
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}
