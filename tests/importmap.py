"""Which tests a change can turn red, nearest first: ``python -m tests.importmap FILE...``.

An arrow goes from a file to what it uses: modules that it imports, also in the programs that it keeps as strings;
through a package to the module that defines the name; files that it names; compiled functions to the source that binds
them, and from there to headers. A test's distance from a change is the number of arrows between them; files whose names
have a word in common with the change's count as its neighbours, since tables and dispatch are on nearly every path.
"""

from __future__ import annotations

import ast
import functools
import heapq
import re
import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"gwf_fast": "gwf_fast", "kernels": "gwf_fast.kernels", "tests": "tests", "bench": "bench"}
COMPILED = ("gwf_fast._cpu", "gwf_fast._cuda")
COMMON_WORDS = frozenset(
    ["test", "tests", "gwf", "fast", "kernels", "csrc", "py", "init", "module", "bindings", "base", "bench"]
    + ["cpu", "gpu", "cpp", "cuda", "cu", "triton", "host", "isa", "avx2", "avx512", "baseline", "generated"]
    + ["entry", "reference"]
)


def sources(root: Path) -> list[Path]:
    """Files of the tree that git knows or could add, relative to it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return sorted(Path(name) for name in set(listed) if (root / name).is_file())


@dataclass
class Names:
    """What the names at a module's top level stand for: modules, or (module, name)."""

    modules: dict[str, str] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)


class ImportMap:
    """The arrows of a tree.

    Attributes:
        uses: For every file, those that it uses.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.files = sources(root)
        self._nodes = functools.cache(self._walked)
        self._headers = functools.cache(self._included)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in self.files:
            self._by_name[path.name].append(path)
        self._modules = {name: path for path in self.files for name in _module_names(path)}
        self._names = {name: self._top_level(name) for name in self._modules}
        self._loaded_by_name = self._dynamic_prefixes()
        self._bound = self._bindings()
        self.uses: dict[Path, set[Path]] = {path: set(self._arrows(path)) - {path} for path in self.files}

    def distances(self, changed: Iterable[Path]) -> dict[Path, int]:
        """Of every file that uses a changed one, by the fewest arrows; names that agree are near."""
        users: dict[Path, list[Path]] = defaultdict(list)
        for user, used in self.uses.items():
            for path in used:
                users[path].append(user)
        best: dict[Path, int] = {}
        for origin in changed:
            reached, words = _walk(users, {origin: 0}), _words(origin)
            akin = [path for path in reached if path != origin and words & _words(path)]
            starts = {path: 0 if is_test(path) else 1 for path in akin} | {origin: 0}
            for path, distance in _walk(users, starts).items():
                best[path] = min(distance, best.get(path, distance))
        return best

    def tests(self, changed: Iterable[Path]) -> list[Path]:
        """Test files, those that a change is likeliest to turn red first."""
        distances = self.distances(changed)
        return sorted(filter(is_test, distances), key=lambda path: (distances[path], len(self.uses[path]), path))

    def tested(self) -> set[Path]:
        """What a test uses, straight or through others."""
        return set(_walk(self.uses, dict.fromkeys(filter(is_test, self.files), 0)))

    # --- Python ---------------------------------------------------------------------------------------------------

    def _walked(self, path: Path) -> list[ast.AST]:
        return _telling(ast.parse((self.root / path).read_text()))

    def _top_level(self, module: str) -> Names:
        names = Names()
        for node in self._nodes(self._modules[module]):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._learn(names, node, module)
        return names

    def _learn(self, names: Names, node: ast.Import | ast.ImportFrom, module: str) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                known = alias.name if alias.asname else alias.name.split(".")[0]
                names.modules[alias.asname or known] = known
            return
        origin = self._origin(node, module)
        for alias in node.names:
            names.imported[alias.asname or alias.name] = (origin, alias.name)

    def _origin(self, node: ast.ImportFrom, module: str) -> str:
        """The absolute name of the module that a ``from`` names."""
        if not node.level:
            return node.module or ""
        is_package = self._modules[module].name == "__init__.py"
        base = module.split(".")[: None if is_package else -1]
        base = base[: len(base) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _resolve(self, module: str, name: str, depth: int = 0) -> Iterator[Path]:
        """The file that defines ``module.name``, through packages that pass it on; the module itself besides."""
        yield from [self._modules[parent]] if (parent := module.rpartition(".")[0]) in self._modules else []
        if module in COMPILED:
            yield from self._bound.get(name, ())
        elif f"{module}.{name}" in self._modules:
            yield self._modules[f"{module}.{name}"]
            yield from [self._modules[module]] if module in self._modules else []
        elif module in self._modules:
            yield self._modules[module]
            passed_on = self._names[module].imported.get(name)
            if passed_on and self._modules[module].name == "__init__.py" and depth < 8:
                yield from self._resolve(*passed_on, depth + 1)

    def _arrows(self, path: Path) -> Iterator[Path]:
        if path.suffix == ".py":
            name = next(iter(_module_names(path)), "")
            yield from self._python(self._nodes(path), name, path)
        elif path.suffix in (".h", ".cpp", ".cu", ".cuh"):
            yield from self._includes(path)

    def _python(self, nodes: list[ast.AST], module: str, path: Path) -> Iterator[Path]:
        passes_on = path.name == "__init__.py"  # what a package re-exports is an arrow of those who use it
        names = Names()
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (self._modules[alias.name] for alias in node.names if alias.name in self._modules)
                self._learn(names, node, module)
            elif isinstance(node, ast.ImportFrom):
                self._learn(names, node, module)
                origin = self._origin(node, module)
                for alias in node.names if not passes_on else ():
                    yield from self._resolve(origin, alias.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from self._named(node.value, path)
        for node in nodes:
            if isinstance(node, ast.Attribute):
                yield from self._attribute(node, names)

    def _attribute(self, node: ast.Attribute, names: Names) -> Iterator[Path]:
        """``gwf.drift.mmd``: the names of packages are followed as far as they are modules."""
        chain = [node.attr]
        value = node.value
        while isinstance(value, ast.Attribute):
            chain.append(value.attr)
            value = value.value
        if not isinstance(value, ast.Name):
            return
        module: str | None = names.modules.get(value.id)
        if value.id in names.imported:
            module = self._module(*names.imported[value.id])
        for attribute in reversed(chain):
            if module is None:
                return
            yield from self._resolve(module, attribute)
            module = self._module(module, attribute)

    def _module(self, module: str, name: str, depth: int = 0) -> str | None:
        """The module that ``module.name`` is, if it is one."""
        full = f"{module}.{name}"
        if full in self._modules or full in COMPILED:
            return full
        passed_on = self._names[module].imported.get(name) if module in self._names else None
        return self._module(*passed_on, depth + 1) if passed_on and depth < 8 else None

    def _dynamic_prefixes(self) -> set[str]:
        """``gwf_fast.kernels.``, where some module imports f"gwf_fast.kernels.{name}"; its names are in tables."""
        prefixes: set[str] = set()
        for path in self._modules.values():
            for node in self._nodes(path):
                if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                    prefix = str(node.values[0].value)
                    if prefix.endswith(".") and prefix[:-1] in self._modules and path.parts[0] == "gwf_fast":
                        prefixes.add(prefix)
        return prefixes

    def _named(self, text: str, path: Path) -> Iterator[Path]:
        """Modules and files that a string names, and what a program in it imports."""
        if "import " in text and len(text) > 20:
            try:
                program = ast.parse(textwrap.dedent(text))
            except SyntaxError:
                return
            if not (len(program.body) == 1 and isinstance(program.body[0], ast.Expr)):
                yield from self._python(_telling(program), next(iter(_module_names(path)), ""), path)
        elif re.fullmatch(r"[\w.-]+(/[\w.-]+)*", text):
            dotted = text.split(".")
            for length in range(len(dotted), 1, -1):
                if (name := ".".join(dotted[:length])) in self._modules:
                    yield self._modules[name]
                    return
            names = (f"{prefix}{text.replace('-', '_')}" for prefix in self._loaded_by_name)
            yield from (self._modules[name] for name in names if name in self._modules)
            if "." in text:
                ends = [known for known in self._by_name[Path(text).name] if known.match(text)]
                yield from ends if len(ends) == 1 else ()

    # --- C++ ------------------------------------------------------------------------------------------------------

    def _includes(self, path: Path) -> Iterator[Path]:
        yield from self._headers(path)
        if (self.root / path).read_text().find("PYBIND11_MODULE") >= 0 or path in self._binders:
            yield from self._implementations(path)

    def _included(self, path: Path) -> list[Path]:
        found = []
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', (self.root / path).read_text(), re.MULTILINE):
            candidates = (path.parent / name, Path("csrc") / name)
            found += [_normal(candidate) for candidate in candidates if (self.root / candidate).is_file()][:1]
        return found

    def _bindings(self) -> dict[str, list[Path]]:
        """The sources that bind a name of the compiled modules."""
        bound: dict[str, list[Path]] = defaultdict(list)
        self._binders = set()
        for path in self.files:
            if path.suffix in (".cpp", ".cu"):
                text = (self.root / path).read_text()
                for name in re.findall(r'(?:\bm\.(?:def|attr)\(|py::class_<[^>]*>\(m,)\s*"(\w+)"', text):
                    bound[name].append(path)
                    self._binders.add(path)
        return bound

    def _implementations(self, binder: Path) -> Iterator[Path]:
        """Sources without bindings that implement a header of the binder's own: one that few others include."""
        compiled = [p for p in self.files if p.suffix == ".cpp" and p.parts[0] == "csrc"]
        own = set(self._headers(binder))
        for path in compiled:
            if path not in self._binders:
                reached = set(self._reached(path))
                if any(sum(h in self._headers(b) for b in self._binders) == 1 for h in own & reached):
                    yield path

    def _reached(self, path: Path) -> Iterator[Path]:
        seen, left = set(), [path]
        while left:
            for header in self._headers(left.pop()):
                if header not in seen:
                    seen.add(header)
                    left.append(header)
        return iter(seen)


def _telling(tree: ast.AST) -> list[ast.AST]:
    """The nodes that may hold an arrow, in the order of ``ast.walk``: a tree is walked once."""
    kinds = (ast.Import, ast.ImportFrom, ast.Attribute, ast.Constant, ast.JoinedStr)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def is_test(path: Path) -> bool:
    """Whether pytest collects it."""
    return path.name.startswith("test_") and path.suffix == ".py"


def _walk(users: Mapping[Path, Iterable[Path]], starts: dict[Path, int]) -> dict[Path, int]:
    """Shortest distances from the starts, each of which has one already."""
    best, queue = {}, [(distance, path) for path, distance in starts.items()]
    heapq.heapify(queue)
    while queue:
        distance, path = heapq.heappop(queue)
        if path not in best:
            best[path] = distance
            for user in users[path]:
                heapq.heappush(queue, (distance + 1, user))
    return best


def _normal(path: Path) -> Path:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return Path(*parts)


def _module_names(path: Path) -> Iterator[str]:
    if path.suffix == ".py" and path.parts[0] in PACKAGES:
        parts = path.with_suffix("").parts[1:]
        yield ".".join([PACKAGES[path.parts[0]], *(parts[:-1] if parts[-1] == "__init__" else parts)])


def _words(path: Path) -> frozenset[str]:
    words = re.split(r"[^a-z0-9]+", str(path.with_suffix("")).lower())
    return frozenset(word for word in words if len(word) > 1) - COMMON_WORDS


if __name__ == "__main__":
    for test in ImportMap().tests(Path(name) for name in sys.argv[1:]):
        print(test)
