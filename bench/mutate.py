"""Mutations: which small changes of the code no test notices. ``python -m bench.mutate --sample 40 --seed 1``.

A mutation is applied in a copy of the tree, csrc is built there, and the tests that ``tests/importmap.py`` puts
nearest run until one fails. A sample is drawn from all places of csrc, kernels and gwf_fast by a seed; ``--known`` runs
those of ``mutations.json`` instead, which once lived, each against the test that was written for it. Every outcome is a
line of the journal: a run that was stopped goes on after the last one, and ``--report`` prints what it holds. A
survivor may be equivalent: whether it changes a result is for the reader to say.
"""

from __future__ import annotations

import argparse
import ast
import collections
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.importmap import ImportMap, sources

ROOT = Path(__file__).resolve().parents[1]
KNOWN = ROOT / "bench" / "mutations.json"
SHIPPED = ("gwf_fast", "kernels", "csrc")
NATIVE = (".h", ".cpp")
SKIPPED = re.compile(r"_generated|/experiments/|csrc/gpu/|kernels/cuda|/cli\.py$|selftest")
"""What runs on a device, what only prints or draws, and the package's check of itself."""


@dataclass(frozen=True)
class Mutation:
    """A change of one place.

    Attributes:
        path: The file.
        start: Position of the first character.
        old: What stands there.
        new: What is put there.
        name: What it is called, of a known one.
        test: The test that is to notice it, of a known one.
    """

    path: str
    start: int
    old: str
    new: str
    name: str = ""
    test: str = ""

    @property
    def key(self) -> str:
        """The same for the same change."""
        return hashlib.sha256(f"{self.path}:{self.start}:{self.old}:{self.new}".encode()).hexdigest()[:12]

    def applied(self, text: str) -> str:
        """The text of the file with it."""
        assert text[self.start : self.start + len(self.old)] == self.old
        return text[: self.start] + self.new + text[self.start + len(self.old) :]


# --- places ----------------------------------------------------------------------------------------------------------

COMPARISONS = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
COMPARISONS |= {ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")}
ARITHMETIC = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
NAMES = {"amin": "amax", "amax": "amin", "min": "max", "max": "min", "any": "all", "all": "any"}
TOKENS = {
    " + ": " - ", " - ": " + ", " * ": " / ", " / ": " * ", " < ": " <= ", " <= ": " < ", " > ": " >= ",
    " >= ": " > ", " == ": " != ", " && ": " || ", " || ": " && ", " += ": " = ", " -= ": " = ", "true": "false",
    "false": "true", "std::min": "std::max", "std::max": "std::min", "smaller(": "larger(", "larger(": "smaller(",
}  # fmt: skip


def python_mutations(path: Path, text: str) -> Iterator[Mutation]:
    """Comparisons, arithmetic, and/or, not, numbers, truth values, min and max; statements that are left out."""
    tree = ast.parse(text)
    lines = [0, *(m.end() for m in re.finditer("\n", text))]
    encoded = text.splitlines(keepends=True)

    def at(line: int, column: int) -> int:
        """Position of a column, which Python counts in bytes."""
        return lines[line - 1] + len(encoded[line - 1].encode()[:column].decode())

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def between(left: ast.expr, right: ast.expr, old: str, new: str) -> Iterator[Mutation]:
        start, end = span(left)[1], span(right)[0]
        found = re.search(rf"(?<![\w*/<>=!]){re.escape(old)}(?![\w*/<>=])", text[start:end])
        if found:
            yield Mutation(str(path), start + found.start(), old, new)

    silent = {id(n) for node in ast.walk(tree) if isinstance(node, (ast.Raise, ast.JoinedStr)) for n in ast.walk(node)}
    for node in ast.walk(tree):  # annotations are no code
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                silent |= {id(n) for n in ast.walk(getattr(node, name))}
    for node in ast.walk(tree):
        if id(node) in silent:
            continue
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
            yield from between(node.left, node.comparators[0], *COMPARISONS[type(node.ops[0])])
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            yield from between(node.left, node.right, *ARITHMETIC[type(node.op)])
        elif isinstance(node, ast.BoolOp):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            yield from between(node.values[0], node.values[1], old, new)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            start, end = span(node)
            sign = 1 if isinstance(node.op, ast.USub) else len("not ")
            yield Mutation(str(path), start, text[start:end], text[start + sign : end])
        elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
            start, end = span(node)
            new = str(not node.value) if isinstance(node.value, bool) else f"{node.value + 1}"
            new = f"{2 * node.value or 1.0!r}" if isinstance(node.value, float) else new
            yield Mutation(str(path), start, text[start:end], new)
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            end = span(node)[1]
            yield Mutation(str(path), end - len(node.attr), node.attr, NAMES[node.attr])
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            start, end = span(node)
            yield Mutation(str(path), start, text[start:end], "pass")


def native_mutations(path: Path, text: str) -> Iterator[Mutation]:
    """The same by tokens: C++ is laid out by clang-format, with a space on both sides of an operator."""
    code = re.sub(r'//[^\n]*|"[^"\n]*"|#[^\n]*', lambda m: " " * len(m[0]), text)
    for old, new in TOKENS.items():
        word = rf"\b{old}\b" if old.isalpha() else re.escape(old)
        yield from (Mutation(str(path), m.start(), old, new) for m in re.finditer(word, code))
    for m in re.finditer(r"(?<![\w.])(\d+)(?![\w.])", code):
        yield Mutation(str(path), m.start(), m[1], str(int(m[1]) + 1))
    for m in re.finditer(r"^ +([a-z_]+\([^\n;{}]*\);)$", code, re.MULTILINE):
        yield Mutation(str(path), m.start(1), text[m.start(1) : m.end(1)], ";")


def all_mutations(root: Path = ROOT) -> list[Mutation]:
    """Every place of what is shipped."""
    found: list[Mutation] = []
    for path in sources(root):
        if path.parts[0] in SHIPPED and not SKIPPED.search(str(path)):
            text = (root / path).read_text()
            if path.suffix == ".py":
                found += python_mutations(path, text)
            elif path.suffix in NATIVE:
                found += native_mutations(path, text)
    return found


def known_mutations(root: Path = ROOT) -> tuple[list[Mutation], list[str]]:
    """Those of ``mutations.json``, wherever their text is now; and the names of those whose text has changed.

    Raises:
        ValueError: If a text is there more than once.
    """
    texts = {path: (root / path).read_text() for path in sources(root) if path.parts[0] in SHIPPED}
    found, gone = [], []
    for name, (old, new, test) in json.loads(KNOWN.read_text()).items():
        places = [(path, m.start()) for path, text in texts.items() for m in re.finditer(re.escape(old), text)]
        if len(places) > 1:
            raise ValueError(f"{KNOWN.name}: {name!r}: expected its text in one place, found {len(places)}: {old}")
        if places:
            found.append(Mutation(str(places[0][0]), places[0][1], old, new, name, test))
        else:
            gone.append(name)
    return found, gone


# --- trials ----------------------------------------------------------------------------------------------------------


class Copy:
    """A copy of the tree with what was built, where one mutation at a time is tried."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        for path in sources(ROOT):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
        for built in (ROOT / "gwf_fast").glob("*.so"):
            shutil.copy2(built, folder / "gwf_fast")
        (folder / "gwf_fast" / "kernels").symlink_to("../kernels")  # as importing from the tree wants it
        if (ROOT / "build" / "objects").is_dir():
            shutil.copytree(ROOT / "build" / "objects", folder / "build" / "objects", copy_function=os.link)
        subprocess.run(["git", "init", "--quiet", "."], cwd=folder, check=True)

    def build(self) -> bool:
        """Whether the extension compiles; objects of the other instruction sets than the newest count as made."""
        now = time.time() + 1
        best = "avx512" if "avx512f" in Path("/proc/cpuinfo").read_text() else "avx2"
        for made in (self.folder / "build" / "objects").rglob("*.o"):
            if made.stem.rpartition("_")[2] in {"avx512", "avx2", "baseline"} - {best}:
                os.utime(made, (now, now))
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, check=False).returncode == 0

    def test(self, tests: list[Path], name: str, seconds: float) -> tuple[str, str]:
        """(outcome, the test that failed); of one test, where it is named."""
        if name:
            tests = [path for path in tests if f"def {name}(" in (self.folder / path).read_text()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-k", name]
        command += map(str, tests)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.folder)}
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "timeout", ""
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        if process.returncode == 0:
            return "survived", ""
        if process.returncode == 5:
            return "no test", ""
        return "killed", failed[1] if failed else said[-200:]

    def trial(self, mutation: Mutation, tests: list[Path], seconds: float) -> tuple[str, str]:
        """Apply, build, test, put back."""
        file = self.folder / mutation.path
        text = file.read_text()
        try:
            file.write_text(mutation.applied(text))
            if file.suffix in NATIVE and not self.build():
                return "no build", ""
            return self.test(tests, mutation.test, seconds)
        finally:
            file.write_text(text)


def report(journal: Path) -> None:
    """Counts by outcome, and the survivors."""
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    counts = collections.Counter(row["outcome"] for row in rows)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    for row in rows:
        if row["outcome"] == "survived":
            line = (ROOT / row["path"]).read_text()[: row["start"]].count("\n") + 1
            print(f"{row['path']}:{line}: {row['name']} {row['old']!r} -> {row['new']!r}")


def main() -> None:
    """Try mutations one by one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose path has this, or whose suffix it is")
    parser.add_argument("--known", action="store_true", help="those of bench/mutations.json")
    parser.add_argument("--tests", type=int, default=8, help="test files that a mutation meets, nearest first")
    parser.add_argument("--seconds", type=float, default=600, help="for the tests of one")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "mutations.jsonl")
    parser.add_argument("--report", action="store_true", help="print what the journal holds")
    arguments = parser.parse_args()
    if arguments.report:
        return report(arguments.journal)
    if arguments.known:
        found, gone = known_mutations()
        print("\n".join(f"the code has changed, write it down anew: {name}" for name in gone))
    else:
        found = all_mutations()
    found = [m for m in found if arguments.only in m.path or arguments.only in m.name]
    if not arguments.known:
        found = random.Random(arguments.seed).sample(found, min(arguments.sample, len(found)))
    arguments.journal.parent.mkdir(exist_ok=True, parents=True)
    done = arguments.journal.read_text().splitlines() if arguments.journal.exists() else []
    finished = {json.loads(line)["key"] for line in done}
    graph, copy = ImportMap(), Copy(ROOT / "build" / f"mutant-{os.getpid()}")
    for mutation in found:
        if mutation.key in finished:
            continue
        tests = graph.tests([Path(mutation.path)])[: None if mutation.test else arguments.tests]
        outcome, killer = copy.trial(mutation, tests, arguments.seconds)
        row = {**asdict(mutation), "key": mutation.key, "outcome": outcome, "killer": killer}
        with arguments.journal.open("a") as journal:
            journal.write(json.dumps(row) + "\n")
        print(f"{outcome:9} {mutation.path} {mutation.name or mutation.old!r} -> {mutation.new!r} {killer}", flush=True)
    shutil.rmtree(copy.folder)
    return report(arguments.journal)


if __name__ == "__main__":
    main()
