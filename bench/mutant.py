"""The copy of the tree in which mutations are tried, one at a time: see ``mutate.py``.

Quick by four means. Torch and the other packages are imported once, and every trial is a fork of that process. Of csrc
the objects that include the mutated file are compiled, for the instruction set that this processor takes, lightly
optimised; what is linked for a trial is put away after it. Of tests with many parameters a few of each come first. And
a trial ends when its time is up, without a verdict on the tests that it left.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.importmap import sources

PRELOADED = ["torch", "numpy", "scipy.stats", "scipy.spatial", "scipy.optimize", "sympy", "triton"]
PRELOADED += ["triton.language", "finufft", "matplotlib.pyplot", "safetensors.torch"]
SETS = ("avx512", "avx2", "baseline")
FIRST = 2
"""Parameters of a test that are tried before the others."""
UNKNOWN = 0.3
"""Seconds of a test that has not run yet."""


class Trial:
    """As a plugin of pytest: the order of the tests, the end of their time, and what failed."""

    def __init__(self, name: str, seconds: float, known: dict[str, float]) -> None:
        """Of one test, where it is named."""
        self.name, self.end = name, time.process_time() + seconds
        self.known, self.took = known, dict[str, float]()
        self.failed: list[str] = []
        self.passed, self.left = 0, 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.name:
            items[:] = [item for item in items if item.name.split("[")[0] == self.name]
        shuffled = list(range(len(items)))
        random.Random(len(items)).shuffle(shuffled)
        seen: Counter[str] = Counter()
        early = set()
        for place in shuffled:
            function = items[place].nodeid.split("[")[0]
            early |= {place} if seen[function] < FIRST else set()
            seen[function] += 1
        seconds = [self.known.get(item.nodeid.split("[")[0], UNKNOWN) for item in items]
        places = sorted(range(len(items)), key=lambda place: (place not in early, seconds[place]))
        items[:] = [items[place] for place in places]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.process_time() > self.end:
            self.left += 1
            pytest.skip("the time is up")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.passed += report.passed
            self.took[report.nodeid.split("[")[0]] = report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Copy:
    """A copy of the tree with what was built.

    Attributes:
        folder: Where it is.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        shutil.rmtree(folder, ignore_errors=True)
        for path in sources(root):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / path, folder / path)
        (folder / "gwf_fast" / "kernels").symlink_to("../kernels")  # as importing from the tree wants it
        subprocess.run(["git", "init", "--quiet", "."], cwd=folder, check=True)
        self._built = [path.name for path in (root / "gwf_fast").glob("_cpu*.so")]
        self._best = "avx512" if "avx512f" in Path("/proc/cpuinfo").read_text() else "avx2"
        self._seconds: dict[str, float] = {}
        self._restore()
        os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ.setdefault("TRITON_INTERPRET", "1")
        for name in PRELOADED:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    def _restore(self) -> None:
        for name in self._built:
            shutil.copy2(self.root / "gwf_fast" / name, self.folder / "gwf_fast" / name)

    # --- csrc ---------------------------------------------------------------------------------------------------------

    def _compile(self, stamp: Path, changed: str) -> tuple[str, bool]:
        """The object for a link, and whether it could be made: that of the tree, unless it includes the change."""
        theirs = stamp.with_suffix(".o")
        needed = stamp.with_suffix(".d").read_text().replace("\\\n", " ").split()
        others = {name for name in SETS if name != self._best}
        if changed not in needed or stamp.stem.rpartition("_")[2] in others:
            return str(theirs), True
        ours = self.folder / "build" / f"{stamp.stem}.o"
        ours.parent.mkdir(exist_ok=True)
        command = [word if word != "-O3" else "-O1" for word in stamp.read_text().split() if word != "-MMD"]
        command[command.index("-o") + 1] = str(ours)
        done = subprocess.run(command, cwd=self.folder, capture_output=True, check=False)
        return str(ours), done.returncode == 0

    def build(self, changed: str) -> bool:
        """Whether the extension compiles, and links, with a changed file."""
        if not self._built:
            raise SystemExit("gwf_fast/_cpu*.so is not there, to which a change of csrc is compiled: make build")
        stamps = sorted((self.root / "build" / "objects").glob("*_cpu/**/*.command"))
        stamps = [stamp for stamp in stamps if (self.folder / stamp.read_text().split(" -c ")[1].split()[0]).exists()]
        stamps.sort(key=lambda stamp: ("_avx" in stamp.stem, stamp))  # as setup.py does
        made = [self._compile(stamp, changed) for stamp in stamps]
        if not all(good for _, good in made):
            return False
        target = self.folder / "gwf_fast" / self._built[0]
        target.unlink()
        command = ["g++", "-shared", "-fopenmp", *(name for name, _ in made), "-o", str(target)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    # --- tests --------------------------------------------------------------------------------------------------------

    def test(self, tests: list[Path], name: str = "", seconds: float = 60) -> tuple[str, str]:
        """(outcome, the test that failed), of one test where it is named; seconds are the processor's."""
        if name:
            tests = [path for path in tests if f"def {name}(" in (self.folder / path).read_text()]
        return self._forked(["-x", *map(str, tests)], name, seconds) if tests else ("no test", "")

    def fails(self, tests: list[str], seconds: float = 600) -> list[str]:
        """Of tests given by their ids, those that fail in the copy as it is."""
        outcome, failed = self._forked(tests, "", seconds)
        return failed.split("\n") if outcome == "killed" else []

    def _forked(self, arguments: list[str], name: str, seconds: float) -> tuple[str, str]:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            self._run(arguments, name, seconds, writer)
        os.close(writer)
        end = time.monotonic() + 10 * seconds + 60  # only what hangs takes so long
        while not os.waitpid(child, os.WNOHANG)[0]:
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                os.close(reader)
                return "timeout", ""
            time.sleep(0.05)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        if not said:
            return "killed", "the process died"
        outcome, detail, took = json.loads(said)
        self._seconds |= took
        return outcome, detail

    def _run(self, arguments: list[str], name: str, seconds: float, writer: int) -> None:
        """In the child: run them, say what came, and end."""
        try:
            os.setsid()
            os.chdir(self.folder)
            os.environ["PYTHONPATH"] = str(self.folder)
            sys.path[:] = [str(self.folder), *(p for p in sys.path if p not in ("", str(self.root)))]
            for module in [m for m in sys.modules if m.split(".")[0] in ("tests", "bench", "gwf_fast")]:
                del sys.modules[module]
            trial = Trial(name, seconds, self._seconds)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov"]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                code = pytest.main([*options, *arguments], plugins=[trial])
            outcome: tuple[str, Any] = ("survived", f"{trial.passed} passed, {trial.left} left")
            if code == pytest.ExitCode.NO_TESTS_COLLECTED:
                outcome = ("no test", "")
            elif code != pytest.ExitCode.OK:
                outcome = ("killed", "\n".join(trial.failed) or f"pytest ended with {code}")
            os.write(writer, json.dumps([*outcome, trial.took]).encode())
        except BaseException:  # pytest itself failed, which says nothing of the mutation
            os.write(writer, json.dumps(["error", traceback.format_exc(), {}]).encode())
        finally:
            os._exit(0)

    def trial(self, path: str, mutated: str, tests: list[Path], name: str, seconds: float) -> tuple[str, str]:
        """Apply, build, test, put back."""
        file = self.folder / path
        text, native = file.read_text(), file.suffix in (".h", ".cpp")
        try:
            file.write_text(mutated)
            if native and not self.build(path):
                return "no build", ""
            return self.test(tests, name, seconds)
        finally:
            file.write_text(text)
            if native:
                self._restore()
