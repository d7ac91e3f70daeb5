"""``make check``: lint of what changed, and the tests that it can turn red, nearest first, until the time is up.

What changed is counted from the last commit that main has too; on a clean main it is the last commit. Tests are chosen
by ``importmap.py``; those beyond the time are counted, for ``make test`` to run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
DEADLINE = "GWF_FAST_CHECK_DEADLINE"
ALWAYS = "test_layering.py"  # reads all files, so nothing leads to it


def git(*arguments: str) -> list[str]:
    """Lines that git prints; none where it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def base() -> str:
    """The commit that changes are counted from."""
    head = git("rev-parse", "HEAD")
    for main in ("origin/main", "main"):
        common = git("merge-base", "HEAD", main)
        if common and common != head:
            return common[0]
    return "HEAD" if git("status", "--porcelain") else "HEAD~1"


def changed_since(commit: str) -> list[Path]:
    """Files of the tree that differ, new ones included."""
    names = git("diff", "--name-only", commit) + git("ls-files", "--others", "--exclude-standard")
    return sorted(Path(name) for name in set(names) if (ROOT / name).is_file())


def lint(changed: list[Path]) -> Iterator[list[str]]:
    """The commands that hold what changed to the style; ruff and mypy remember what they have seen."""
    python = [str(path) for path in changed if path.suffix == ".py"]
    native = [str(path) for path in changed if path.suffix in (".h", ".cpp") and "_generated" not in path.name]
    if python:
        yield [str(BIN / "ruff"), "check", *python]
        yield [str(BIN / "ruff"), "format", "--check", *python]
    if any(path.parts[0] == "csrc" for path in map(Path, native)):
        yield [str(BIN / "clang-format"), "--dry-run", "--Werror", *(n for n in native if n.startswith("csrc"))]
    if any(path.parts[0] == "kernels" and {"profiles", "codegen"} & {path.stem, *path.parts} for path in changed):
        yield [sys.executable, "-m", "gwf_fast.kernels.table.codegen", "--check"]
    if any(path.parts[0] in ("gwf_fast", "kernels") or path.name == "pyproject.toml" for path in changed):
        yield ["make", "--no-print-directory", "types"]


beyond = 0
"""Tests that there was no time for."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol() -> bool | None:
    """As a plugin: what is left when the time is up is counted, without a report each."""
    global beyond
    is_late = time.time() > float(os.environ.get(DEADLINE, "inf"))
    beyond += is_late
    return is_late or None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells how many were left."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["beyond"] = beyond


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The numbers of the workers are added."""
    global beyond
    beyond += getattr(node, "workeroutput", {}).get("beyond", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not run."""
    if beyond:
        terminalreporter.write_line(f"the time was up for {beyond} tests, which make test runs")


def main() -> int:
    """Run it; the exit status says whether all was well."""
    from tests.importmap import ImportMap  # a plugin has no need of it

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="commit to count changes from")
    parser.add_argument("--seconds", type=float, default=40, help="for the tests")
    parser.add_argument("--jobs", default=str(os.cpu_count()))
    arguments = parser.parse_args()
    changed = changed_since(arguments.base or base())
    if not changed:
        print("nothing has changed")
        return 0
    codes = [subprocess.run(command, cwd=ROOT, check=False).returncode for command in lint(changed)]
    graph = ImportMap()
    always = [path for path in graph.files if path.name == ALWAYS]
    tests = [str(path) for path in dict.fromkeys([*always, *graph.tests(changed)])]
    print(
        f"{len(changed)} files changed, which {len(tests)} test files can notice: {' '.join(tests[:6])} ...", flush=True
    )
    # A file a time, in this order, for the fixtures that its tests share.
    command = [sys.executable, "-m", "pytest", "-p", "tests.check", "-m", "not slow", "-q", "-rfE", "--maxfail=20"]
    command += ["--numprocesses", arguments.jobs, "--dist", "loadfile", "--no-loadscope-reorder", *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", DEADLINE: str(time.time() + arguments.seconds)}
    codes.append(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
