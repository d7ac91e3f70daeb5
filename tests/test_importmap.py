"""The map by which `make check` finds the tests of a change: arrows of each kind, on a small tree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import check, importmap

TREE = {
    "gwf_fast/__init__.py": "from .sums import total\nfrom . import drift",
    "gwf_fast/sums.py": "from . import ops\ndef total(x): return ops.run(x)",
    "gwf_fast/drift/__init__.py": "from .energy import energy\nfrom .parzen import parzen",
    "gwf_fast/drift/energy.py": "def energy(): from ..late import f; return f()",
    "gwf_fast/drift/parzen.py": "def parzen(): pass",
    "gwf_fast/late.py": "def f(): pass",
    "gwf_fast/alone.py": "",
    "gwf_fast/ops/__init__.py": "from .table import TABLE\nfrom .run import run",
    "gwf_fast/ops/table.py": "TABLE = {'sum': 'compiled'}",
    "gwf_fast/ops/run.py": (
        "from importlib import import_module\nfrom .table import TABLE\n"
        "def run(x): return import_module(f'gwf_fast.kernels.{TABLE[x]}')"
    ),
    "kernels/__init__.py": "",
    "kernels/compiled.py": "from gwf_fast import _cpu\ndef total(x): return _cpu.total(x)",
    "kernels/lines.py": "from .compiled import _cpu\ndef lines(x): return _cpu.lines(x)",
    "csrc/bindings/module.cpp": '#include "bindings/all.h"\n#include "total.h"\nvoid f() { m.def(\n    "total", 1); }',
    "csrc/module_lines.cpp": '#include "bindings/all.h"\n#include "lines.h"\nvoid g() { m.def("lines", 1); }',
    "csrc/bindings/all.h": "",
    "csrc/total.h": "",
    "csrc/lines.h": "",
    "csrc/isa/lines_avx2.cpp": '#include "../lines_entry.h"',
    "csrc/lines_entry.h": '#include "lines.h"\n#include "power.h"',
    "csrc/power.h": "",
    "bench/measure.py": "",
    "docs/guide.md": "",
    "tests/test_sums.py": "import gwf_fast as gwf\ndef test(): gwf.total(1)",
    "tests/drift/test_drift.py": "import gwf_fast as gwf\ndef test(): gwf.drift.energy()",
    "tests/test_parzen.py": "from gwf_fast.drift import parzen",
    "tests/test_program.py": "CODE = '''\nimport gwf_fast as gwf\ngwf.total(2)\n'''",
    "tests/test_guide.py": "text = open('docs/guide.md')\nscript = 'measure.py'",
    "tests/test_late.py": "def test(monkeypatch): monkeypatch.setattr('gwf_fast.late.f', None)",
    "tests/test_lines.py": "from gwf_fast.kernels import lines",
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for name, text in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", "."], cwd=root, check=True)
    return importmap.ImportMap(root)


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("gwf_fast/sums.py", {"sums", "program"}),
        ("gwf_fast/drift/energy.py", {"drift"}),  # not what else the package has
        ("gwf_fast/drift/parzen.py", {"parzen"}),
        ("gwf_fast/late.py", {"late", "drift"}),  # by a name in a string, and by an import within a function
        ("gwf_fast/alone.py", set()),
        ("kernels/compiled.py", {"sums", "program", "lines"}),  # by the table of operations
        ("csrc/total.h", {"sums", "program", "lines"}),  # kernels/lines.py has _cpu from kernels/compiled.py
        ("csrc/power.h", {"lines"}),  # header, source, binding, function
        ("csrc/bindings/all.h", {"sums", "program", "lines"}),
        ("bench/measure.py", {"guide"}),
        ("docs/guide.md", {"guide"}),
        ("tests/test_late.py", {"late"}),
    ],
)
def test_arrows(graph, changed, tests):
    assert {path.stem.removeprefix("test_") for path in graph.tests([Path(changed)])} == tests


def test_the_nearest_come_first(graph):
    assert graph.tests([Path("csrc/lines.h")])[0] == Path("tests/test_lines.py")
    both = graph.distances([Path("csrc/lines.h"), Path("gwf_fast/sums.py")])
    assert both[Path("tests/test_lines.py")] == 0 and both[Path("tests/test_sums.py")] == 0
    assert both[Path("tests/test_program.py")] == 1


def test_what_no_test_reaches(graph):
    shipped = [path for path in graph.files if path.parts[0] in ("gwf_fast", "csrc")]
    assert [str(p) for p in shipped if p not in graph.tested()] == ["gwf_fast/alone.py"]
    assert {path for path in shipped if graph.tests([path])} == graph.tested() & set(shipped)


def test_every_module_of_this_tree_is_tested():
    """What no test can reach would be changed unseen."""
    graph = importmap.ImportMap()
    shipped = [p for p in graph.files if p.parts[0] in ("gwf_fast", "kernels", "csrc") and p.suffix in (".py", ".h")]
    assert len(shipped) > 200
    tested = graph.tested()
    assert [str(path) for path in shipped if path not in tested] == []


def test_what_is_linted():
    def tools(*names):
        return [Path(command[0]).name + " " + command[1] for command in check.lint([Path(n) for n in names])]

    assert tools("README.md") == []
    assert tools("tests/test_a.py") == ["ruff check", "ruff format"]
    assert tools("csrc/a.h", "tests/fibers.h") == ["clang-format --dry-run"]
    assert tools("csrc/a_generated.h") == []
    assert tools("gwf_fast/a.py") == ["ruff check", "ruff format", "make --no-print-directory"]
    assert [t.split()[-1] for t in tools("kernels/table/profiles.py")] == [
        "check",
        "format",
        "-m",
        "--no-print-directory",
    ]


def test_tests_beyond_the_time_are_counted(tmp_path):
    for name in "ab":
        (tmp_path / f"test_{name}.py").write_text("def test_it(): pass\ndef test_another(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.check", "-p", "no:cacheprovider", str(tmp_path)]
    command += ["--numprocesses", "2", "--dist", "loadfile"]

    def said(deadline):
        environment = {**os.environ, "PYTHONPATH": str(check.ROOT), check.DEADLINE: deadline}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        ).stdout

    assert "4 passed" in said("inf")
    late = said("0")
    assert "passed" not in late and "the time was up for 4 tests" in late
