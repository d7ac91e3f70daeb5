"""Draws the house: which room of gwf_fast imports which, on what floor each stands, and whether there is a circle.

A room is what stands at the top of gwf_fast: a package or a module. Imports inside functions count like the others;
those for type checkers alone do not.

.venv/bin/python bench/house.py            # floors, arrows, circles
.venv/bin/python bench/house.py --modules  # the same between modules
.venv/bin/python bench/house.py --follow   # files to open to follow a call: those whose functions it enters
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
Graph = dict[str, set[str]]
COMPILED = ("gwf_fast._cpu", "gwf_fast._cuda")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Files of the shipped modules, by dotted name."""
    found = {}
    for folder, package in ((root / "gwf_fast", "gwf_fast"), (root / "kernels", "gwf_fast.kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))
            found[name] = path
    return found


def imported(name: str, tree: ast.Module, is_package: bool) -> Iterator[str]:
    """Dotted names that a module imports, but for what only type checkers read.

    ``from a import b`` counts as ``a.b``, since b may be a module.
    """
    here = name.split(".") if is_package else name.split(".")[:-1]
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def graph(root: Path = ROOT) -> Graph:
    """Which module imports which; what a package re-exports is an import of the package."""
    known, drawn = modules(root), {}
    for name, path in known.items():
        names = imported(name, ast.parse(path.read_text()), path.name == "__init__.py")
        found = (n if n in known else n.rpartition(".")[0] for n in names if n not in COMPILED)
        drawn[name] = {n for n in found if n in known} - {name}
    return drawn


def rooms(drawn: Graph) -> Graph:
    """The graph of the rooms; the package itself, which re-exports, is none."""

    def room(name: str) -> str:
        return ".".join(name.split(".")[:2])

    arrows: Graph = defaultdict(set)
    for name, targets in drawn.items():
        if room(name) != "gwf_fast":
            arrows[room(name)] |= {room(t) for t in targets} - {room(name), "gwf_fast"}
    return dict(arrows)


def circles(drawn: Graph) -> list[set[str]]:
    """The sets of those that reach one another."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for target in drawn.get(todo.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    reach = {name: reached(name) for name in drawn}
    groups = {frozenset({b for b in reach[a] if a in reach.get(b, ())}) for a in drawn}
    return [set(group) for group in groups if group]


def floors(drawn: Graph) -> list[list[str]]:
    """From the ground up: each stands above all that it imports; those of a circle stand together."""
    together = {name: min(group) for group in circles(drawn) for name in group}
    merged: Graph = defaultdict(set)
    for name, targets in drawn.items():
        head = together.get(name, name)
        merged[head] |= {together.get(t, t) for t in targets} - {head}
    height: dict[str, int] = {}
    for name in TopologicalSorter(merged).static_order():
        height[name] = 1 + max((height[t] for t in merged.get(name, ())), default=-1)
    levels: list[list[str]] = [[] for _ in range(1 + max(height.values()))]
    for name in sorted(drawn):
        levels[height[together.get(name, name)]].append(name)
    return levels


def followed(call: Callable[[], object]) -> dict[str, set[str]]:
    """Functions that a call enters, by file; what is imported, compiled or kept the first time is not counted."""
    folders = {str(ROOT / "gwf_fast") + "/": "gwf_fast/", str(ROOT / "kernels") + "/": "kernels/"}
    folders[str(ROOT / "gwf_fast" / "kernels") + "/"] = "kernels/"  # as the mapping of an editable install has it
    entered: dict[str, set[str]] = defaultdict(set)

    def see(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        folder = max((f for f in folders if name.startswith(f)), key=len, default=None)
        if event == "call" and folder is not None:
            entered[folders[folder] + name.removeprefix(folder)].add(frame.f_code.co_name)

    call()
    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(None)
    return dict(entered)


def walks() -> dict[str, Callable[[], object]]:
    """The calls that a reader follows."""
    import torch

    import gwf_fast as gwf

    x, y = torch.randn(300, 3, requires_grad=True), torch.randn(300, 3)
    target = gwf.potentials.GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 1.0]]))
    training = gwf.Training(batch_size=32, iterations=2)
    flow = gwf.JKOFlow(gwf.KL(target), 2, 0.5, engine="fused", training=training)
    state = flow.step(flow.init(torch.randn(64, 2)))
    return {
        "kernel_sum, forward and backward": lambda: gwf.kernel_sum(x, y, kernel=gwf.Gaussian(1.0)).sum().backward(),
        "a fused JKO step": lambda: flow.step(state),
    }


def main() -> None:
    """Prints the drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", action="store_true", help="draw modules, not rooms")
    parser.add_argument("--root", type=Path, default=ROOT, help="another tree of the same shape")
    parser.add_argument("--follow", action="store_true", help="files that calls go through, and their functions")
    options = parser.parse_args()
    if options.follow:
        for name, call in walks().items():
            files = followed(call)
            print(f"{name}: {len(files)} files")
            for file in sorted(files):
                print(f"  {file:36} {' '.join(sorted(f for f in files[file] if not f.startswith('<')))}")
        return
    drawn = graph(options.root)
    drawn = drawn if options.modules else rooms(drawn)
    levels = floors(drawn)
    for height, level in reversed(list(enumerate(levels))):
        print(f"floor {height}")
        for name in level:
            print(f"  {name.removeprefix('gwf_fast.'):28} -> "
                  + " ".join(sorted(t.removeprefix("gwf_fast.") for t in drawn[name])))  # fmt: skip
    arrows = sum(map(len, drawn.values()))
    found = circles(drawn)
    print(f"{len(drawn)} rooms, {len(levels)} floors, {arrows} arrows, {len(found)} circles")
    for group in found:
        print("  circle:", " ".join(sorted(group)))


if __name__ == "__main__":
    main()
