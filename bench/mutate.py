"""Mutations: which small changes of the code no test notices. ``python -m bench.mutate --sample 40 --seed 1``.

A mutation is applied in a copy of the tree (``mutant.py``), csrc is built there, and the tests that
``tests/importmap.py`` puts nearest run until one fails. A sample is drawn from all places of csrc, kernels and gwf_fast
by a seed; ``--known`` runs those of ``mutations.json``, which once lived, each against the test written for it. Every
outcome is a line of the journal: a run that was stopped goes on after the last one; ``--report`` prints what it holds.
A survivor may be equivalent, or its tests beyond the time: what it is, is for the reader to say.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.mutant import Copy
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
        elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
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


def report(journal: Path) -> None:
    """Counts by outcome, and the survivors."""
    if not journal.exists():
        raise SystemExit(f"{journal} is not there: nothing has been tried yet")
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
    parser.add_argument("--part", default="1/1", help="K/N: the K-th of N processes that share a sample and a journal")
    parser.add_argument("--known", action="store_true", help="those of bench/mutations.json")
    parser.add_argument("--tests", type=int, default=8, help="test files that a mutation meets, nearest first")
    parser.add_argument("--seconds", type=float, default=60, help="of the processor, for the tests of one")
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
    part, parts = map(int, arguments.part.split("/"))
    found = found[part - 1 :: parts]
    arguments.journal.parent.mkdir(exist_ok=True, parents=True)
    done = arguments.journal.read_text().splitlines() if arguments.journal.exists() else []
    finished = {json.loads(line)["key"] for line in done}
    graph, copy = ImportMap(), Copy(ROOT, ROOT / "build" / f"mutant-{os.getpid()}")
    for mutation in found:
        if mutation.key in finished:
            continue
        tests = graph.tests([Path(mutation.path)])[: None if mutation.test else arguments.tests]
        mutated = mutation.applied((ROOT / mutation.path).read_text())
        outcome, killer = copy.trial(mutation.path, mutated, tests, mutation.test, arguments.seconds)
        row = {**asdict(mutation), "key": mutation.key, "outcome": outcome, "killer": killer}
        with arguments.journal.open("a") as journal:
            journal.write(json.dumps(row) + "\n")
        print(f"{outcome:9} {mutation.path} {mutation.name or mutation.old!r} -> {mutation.new!r} {killer}", flush=True)
    done = [json.loads(line) for line in arguments.journal.read_text().splitlines()]
    killers = sorted({row["killer"] for row in done if row["outcome"] == "killed" and "::" in row["killer"]})
    print("\n".join(f"fails without a mutation too: {test}" for test in copy.fails(killers)))
    shutil.rmtree(copy.folder)
    return report(arguments.journal)


if __name__ == "__main__":
    main()
