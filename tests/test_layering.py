"""The house keeps its shape: imports flow one way and never in a circle, importing is free, files stay short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import house

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 400  # lines
MOST_ROOMS, MOST_ARROWS = 20, 80

# From the top: a room may import from its own floor and from those below it. Rooms of one floor do not know each other.
FLOORS = (
    ("cli",),
    ("compat", "experiments", "jax"),
    ("flows",),
    ("distributed",),
    ("drift", "functionals", "selftest"),
    ("nn", "transport", "measures", "potentials"),
    ("pairs",),
    ("randomness",),
    ("checkpoint", "ops"),
    ("kernels",),
    ("_cpu", "_cuda", "errors", "version"),
)
"""Where each room of gwf_fast stands."""

KERNEL_FLOORS = (("cuda",), ("cpp", "triton", "keops"), ("reference",), ("table", "occupancy", "plain"))
"""The same within kernels: a backend knows the reference and the table, and no other backend but "cuda" the host's."""

ALL = [(name, path.read_text(), path.name == "__init__.py") for name, path in house.modules().items()]
IDS = [name for name, _, _ in ALL]


def room(module: str) -> str | None:
    """The room of a module; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def floor(name: str, floors: tuple[tuple[str, ...], ...]) -> int:
    (found,) = (i for i, names in enumerate(floors) if name in names)
    return found


def imported(module: str, source: str, is_package: bool) -> list[str]:
    """Dotted names that a module imports; ``from a import b`` counts as ``a.b``, since b may be a module."""
    return list(house.imported(module, ast.parse(source), is_package))


def upward_imports(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a module imports from rooms on higher floors, or from others on its own."""
    own, wrong = room(module), []
    if own is None:
        return []
    for name in imported(module, source, is_package):
        other = room(name)
        if not name.startswith("gwf_fast") or other == own:
            continue
        if other is None or other not in sum(FLOORS, ()):  # a name of the package itself, which stands above all
            wrong += [name] if own not in ("cli", "compat", "experiments", "jax") else []
        elif floor(other, FLOORS) <= floor(own, FLOORS):
            wrong.append(name)
    return wrong


def sideways_imports(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a backend imports from another."""
    parts = module.split(".")
    if len(parts) < 3 or parts[1] != "kernels":
        return []
    names = [n.split(".") for n in imported(module, source, is_package) if n.startswith("gwf_fast.kernels.")]
    return [
        ".".join(n) for n in names
        if n[2] != parts[2] and floor(n[2], KERNEL_FLOORS) <= floor(parts[2], KERNEL_FLOORS)
    ]  # fmt: skip


def registrations(source: str) -> list[str]:
    """Statements at import that change what was imported: ``TABLE["x"] = y``, ``TABLE.update(x)``, ``module.x = y``."""
    tree = ast.parse(source)
    foreign = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }  # fmt: skip

    def base(node: ast.expr) -> str | None:
        while isinstance(node, (ast.Subscript, ast.Attribute)):
            node = node.value
        return node.id if isinstance(node, ast.Name) else None

    found = []
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            targets = [node.value.func]
        own = () if isinstance(node, ast.AugAssign) else ast.Name  # a name of its own may be given a value
        found += [ast.unparse(node) for target in targets if not isinstance(target, own) and base(target) in foreign]
    return found


def uses_torch_library(source: str) -> bool:
    names = imported("module", source, False)
    names += [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return any(f"{name}.".startswith("torch.library.") for name in names)


@pytest.mark.parametrize(("module", "source", "is_package"), ALL, ids=IDS)
def test_nothing_imports_from_above(module, source, is_package):
    assert upward_imports(module, source, is_package) == []
    assert sideways_imports(module, source, is_package) == []


def test_there_is_no_circle():
    """Neither between rooms nor between modules, imports inside functions included."""
    modules = house.graph()
    assert house.circles(house.rooms(modules)) == []
    assert house.circles(modules) == []


def test_the_house_has_few_rooms_and_arrows():
    drawn = house.rooms(house.graph())
    assert set(drawn) - {f"gwf_fast.{name}" for name in sum(FLOORS, ())} == set()
    assert len(drawn) <= MOST_ROOMS
    assert sum(map(len, drawn.values())) <= MOST_ARROWS


@pytest.mark.parametrize(("module", "source", "is_package"), ALL, ids=IDS)
def test_nothing_registers_itself_by_being_imported(module, source, is_package):
    if not module.startswith("gwf_fast.ops"):  # torch.library's own way
        assert registrations(source) == []


@pytest.mark.parametrize(("module", "source", "is_package"), ALL, ids=IDS)
def test_only_kernels_load_compiled_modules(module, source, is_package):
    compiled = [name for name in imported(module, source, is_package) if name.startswith(house.COMPILED)]
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
        ("gwf_fast.ops.sums", "from gwf_fast.pairs import kernels"),
        ("gwf_fast.ops.sums", "def f():\n    from gwf_fast.pairs.reductions import kernel_sum"),
        ("gwf_fast.flows.jko", "from gwf_fast.experiments import digits"),
        ("gwf_fast.measures.stein", "from gwf_fast.transport.cost import transport_cost"),
        ("gwf_fast.pairs.passes", "from gwf_fast import kernel_sum"),
    ],
)
def test_the_check_sees_a_violation(module, source):
    assert upward_imports(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gwf_fast.kernels.reference.mlp", "from gwf_fast.kernels.cpp import mlp"),
        ("gwf_fast.kernels.triton.drift", "from gwf_fast.kernels.keops import kernel"),
    ],
)
def test_the_check_sees_one_backend_in_another(module, source):
    assert sideways_imports(module, source)


@pytest.mark.parametrize(
    "source",
    [
        "from a import TABLE\nTABLE['x'] = 1",
        "from a import TABLE\nTABLE.update(x=1)",
        "import a\na.hook = print",
        "from a import TABLE\nTABLE |= {'x': 1}",
    ],
)
def test_the_check_sees_a_module_that_registers_itself(source):
    assert registrations(source)


def test_the_check_sees_a_circle():
    assert house.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert house.floors({"a": {"b"}, "b": set(), "c": {"a", "b"}}) == [["b"], ["a"], ["c"]]


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
    return sorted(_sources(*patterns))


def _sources(*patterns: str) -> Iterator[Path]:
    for pattern in patterns:
        for path in ROOT.glob(pattern):
            top = path.relative_to(ROOT).parts[0]
            if "generated" not in path.name and not top.startswith((".", "build", "dist")):
                yield path


def test_csrc_knows_no_torch():
    # The wheel would need torch to build, and one build would serve one version of it only.
    includes = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10|caffe2)/', re.MULTILINE)
    files = sources("csrc/**/*.*")
    assert files
    assert [p.name for p in files if includes.search(p.read_text())] == []


def test_headers_are_named_from_csrc():
    """One way to name a header, whoever includes it; and only bindings/ and the GPU's own module know Python."""
    for path in sources("csrc/**/*.*"):
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
            assert (ROOT / "csrc" / name).is_file(), f"{path.name}: {name}"
        if path.parent.name not in ("bindings", "gpu"):
            assert "pybind11" not in path.read_text(), path.name


def test_files_stay_short():
    files = sources("*.py", "gwf_fast/**/*.py", "kernels/**/*.py", "tests/**/*.py", "bench/**/*.py", "csrc/**/*.*")
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert lengths
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


FILES_TO_OPEN = {"kernel_sum, forward and backward": 16, "a fused JKO step": 20}
"""The most whose functions a call enters: those that a reader opens to follow it."""


def test_calls_are_followed_in_few_files():
    walks = house.walks()
    assert set(walks) == set(FILES_TO_OPEN)
    for name, call in walks.items():
        files = house.followed(call)
        assert len(files) <= FILES_TO_OPEN[name], (name, sorted(files))
        # it came to the compiled code, which a call on plain tensors enters at once (csrc/bindings/direct.cpp)
        assert {"kernels/cpp/pairs.py", "gwf_fast/ops/direct.py", "kernels/cpp/primal_dual.py"} & set(files)


def included(path: Path) -> set[str]:
    """What a file of csrc includes, however far, by its name in csrc."""
    csrc, found, todo = ROOT / "csrc", set(), [path]
    while todo:
        for name in re.findall(r'#include "([^"]+)"', todo.pop().read_text()):
            if name not in found and (csrc / name).exists():
                found.add(name)
                todo.append(csrc / name)
    return found


def test_a_change_in_one_kind_of_kernel_compiles_no_other():
    """The folders of csrc that an object is made of, but for what all of them share."""
    own = {
        name: {name} for name in ("drift", "mlp", "nearest", "pairwise", "primal_dual", "sliced", "svgd", "transport")
    }
    own |= {"near_field": {"near"}, "sliced_sum": {"sliced"}}
    for name, folder in (
        ("pairwise", "stein"),
        ("near_field", "pairwise"),
        ("nearest", "pairwise"),
        ("drift", "pairwise"),
        ("primal_dual", "mlp"),
    ):
        own[name].add(folder)
    shared = {"simd", "random"}
    for path in sorted((ROOT / "csrc" / "isa").glob("*_baseline.cpp")):
        names = included(path)
        assert "simd/vector.h" in names
        folders = {name.split("/")[0] for name in names if "/" in name}
        assert folders - shared <= own[path.stem.removesuffix("_baseline")], (path.name, folders)
