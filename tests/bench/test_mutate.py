"""The mutation tool: its places are code, and the mutations on record still have their text and their test."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("bench", reason="needs the source tree")
from bench import mutate

ROOT = Path(__file__).resolve().parents[2]
PYTHON = '''
def f(x: int, flag=True) -> float:
    """Not 3 < 4."""
    if x < 2 and not flag:
        raise ValueError("x < 2" + str(1))
    log(x)
    return x * 0.5 - x.amin(-1)
'''
NATIVE = """
// 3 < 4
#include <8>
int f(int x) {
    fill(x);
    return x + std::min(x, 7);
}
"""


def test_places_of_python():
    found = list(mutate.python_mutations(Path("a.py"), PYTHON))
    assert {(m.old, m.new) for m in found} == {
        ("True", "False"), ("<", "<="), ("2", "3"), ("and", "or"), ("not flag", "flag"), ("log(x)", "pass"),
        ("*", "/"), ("0.5", "1.0"), ("-", "+"), ("amin", "amax"), ("-1", "1"), ("1", "2"),
    }  # fmt: skip
    for mutation in found:
        changed = mutation.applied(PYTHON)
        ast.parse(changed)
        assert changed != PYTHON


def test_places_of_cpp():
    found = {(m.old, m.new) for m in mutate.native_mutations(Path("a.h"), NATIVE)}
    assert found == {(" + ", " - "), ("std::min", "std::max"), ("7", "8"), ("fill(x);", ";")}


def test_all_python_mutations_parse():
    for path in ("pairs/reductions.py", "reductions.py", "schemes.py"):
        found = [p for p in mutate.sources(ROOT) if p.name == path and p.parts[0] == "gwf_fast"]
        for each in found:
            text = (ROOT / each).read_text()
            for mutation in mutate.python_mutations(each, text):
                ast.parse(mutation.applied(text))


def test_known_mutations_have_their_text_and_their_test():
    """Nearly all: code goes on changing, and the tool says which are to be written down anew."""
    known, gone = mutate.known_mutations(ROOT)
    assert len(gone) < 0.2 * len(known), gone
    tests = [(ROOT / path).read_text() for path in mutate.sources(ROOT) if path.name.startswith("test_")]
    missing = [m.test for m in known if not any(f"def {m.test}(" in text for text in tests)]
    assert missing == []


def test_published_outcomes_have_their_counts_and_their_reasons():
    """Of those that change a result at most one in twenty may live; what is said of the others names a test."""
    published = json.loads((ROOT / "bench" / "results" / "mutations.json").read_text())
    counts = Counter(row["outcome"] for row in published["mutations"])
    assert counts == {name: count for name, count in published["counts"].items() if count}
    assert set(counts) <= {"killed", "closed", "equivalent", "no build", "survived"} and counts.total() == 200
    assert counts["survived"] <= 0.05 * (counts["killed"] + counts["closed"] + counts["survived"])
    for row in published["mutations"]:
        if row["outcome"] == "closed":
            path, name = re.search(r"(tests/\S+)::(\w+)", row["note"]).groups()
            assert f"def {name}(" in (ROOT / path).read_text(), row["note"]
        assert row["note"] or row["outcome"] in ("no build", "killed"), row


@pytest.mark.slow  # a copy, a build, its tests
def test_a_mutation_is_tried_in_a_copy(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    (tree / "gwf_fast").mkdir(parents=True)
    (tree / "gwf_fast" / "sums.py").write_text("def total(a, b):\n    return a + b\n")
    (tree / "gwf_fast" / "__init__.py").write_text("")
    two = "def test_zero(): assert total(3, 0) == 3\ndef test_two(): assert total(3, 2) == 5"
    (tree / "test_sums.py").write_text(f"from gwf_fast.sums import total\n{two}")
    subprocess.run(["git", "init", "--quiet", "."], cwd=tree, check=True)
    monkeypatch.setattr(mutate, "ROOT", tree)
    copy = mutate.Copy(tree, tmp_path / "copy")
    mutation = mutate.all_mutations(tree)[0]
    tests = [Path("test_sums.py")]
    mutated = mutation.applied((tree / mutation.path).read_text())
    assert copy.trial(mutation.path, mutated, tests, "", 60) == ("killed", "test_sums.py::test_two")
    assert copy.test(tests, "", 60) == ("survived", "2 passed, 0 left")  # put back
    assert copy.trial(mutation.path, mutated, tests, "test_zero", 60) == ("survived", "1 passed, 0 left")
    assert copy.trial(mutation.path, mutated, tests, "test_none", 60) == ("no test", "")
    assert copy.test(tests, "", -1) == ("survived", "0 passed, 2 left")  # the time was up
    assert copy.fails(["test_sums.py"]) == []
    (copy.folder / mutation.path).write_text(mutated)
    assert copy.fails(["test_sums.py::test_zero", "test_sums.py::test_two"]) == ["test_sums.py::test_two"]
    assert (tree / "gwf_fast" / "sums.py").read_text() == "def total(a, b):\n    return a + b\n"
