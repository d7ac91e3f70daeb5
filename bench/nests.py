"""Loops of GPU machine code as a nest, and how many instructions an iteration of one takes along a path.

A branch that all threads take alike (the form of distances that the device decides on) makes several ways through a
loop, which pass different loops inside.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from bench import sass


@dataclasses.dataclass
class Block:
    """Instructions without a jump into or out of them, and the blocks that may follow."""

    code: list[str]
    following: list[int]


@dataclasses.dataclass(eq=False)
class Loop:
    """A natural loop: the block at its head, all blocks, and the loops right inside."""

    head: int
    blocks: set[int]
    inside: list[Loop] = dataclasses.field(default_factory=list)

    def nested(self) -> Iterator[Loop]:
        """This loop and all those in it."""
        yield self
        for loop in self.inside:
            yield from loop.nested()


class Way(NamedTuple):
    """The loops that a way through another one passes, before the exponentials and from there on."""

    before: tuple[Loop, ...]
    after: tuple[Loop, ...]


Counts = dict[str, float]


class Function:
    """The control flow of one kernel."""

    def __init__(self, listing: str) -> None:
        self.blocks = _blocks(listing)
        self.loops = _nest(self.blocks)

    def all_loops(self) -> list[Loop]:
        """Every loop, outer ones first."""
        return [loop for outer in self.loops for loop in outer.nested()]

    def code(self, loop: Loop) -> list[str]:
        """All instructions of a loop, those of loops in it included."""
        return [line for index in sorted(loop.blocks) for line in self.blocks[index].code]

    def parent(self, loop: Loop) -> Loop | None:
        """The loop around a loop."""
        return next((outer for outer in self.all_loops() if any(inner is loop for inner in outer.inside)), None)

    def path(self, loop: Loop) -> Counts:
        """Instructions by kind of one iteration along the cheapest path, loops inside taken once."""
        ways = self.ways(loop)
        totals = [
            _add(code, *(tuple(self.path(inner).items()) for inner in (*way.before, *way.after)))
            for way, code in ways.items()
        ]
        cheapest = min(totals, key=_weight)
        return dict(cheapest)

    def ways(
        self, loop: Loop, mark: str = "MUFU.EX2", without: tuple[Loop, ...] = ()
    ) -> dict[Way, tuple[tuple[str, float], ...]]:
        """The ways through one iteration of a loop, and the instructions by kind of the cheapest of each.

        Ways differ by the loops inside that they pass, before a kind of instruction and from there on; their
        instructions are without those of the loops passed. A way that skips loops which another one passes is left out:
        it is for when there is nothing to do in them. Ways that pass a loop in ``without`` are left out too.
        """
        closed = {k for k, inner in enumerate(loop.inside) if any(inner is other for other in without)}
        owner = {index: k for k, inner in enumerate(loop.inside) for index in inner.blocks}

        def node(index: int) -> int:
            return loop.inside[owner[index]].head if index in owner else index

        def following(index: int) -> set[int]:
            members = loop.inside[owner[index]].blocks if index in owner else {index}
            ways = {node(n) for m in members for n in self.blocks[m].following if n in loop.blocks and n not in members}
            return ways - {loop.head}

        @functools.cache
        def onwards(index: int) -> dict[tuple[frozenset[int], frozenset[int], bool], tuple]:
            """From a block to the end: (loops before the mark, loops after, whether the mark comes) to instructions."""
            counts = {} if index in owner else sass.kinds(self.blocks[index].code)
            here, marked = tuple(counts.items()), mark in counts
            rest = [item for n in following(index) for item in onwards(n).items()]
            found: dict = {}
            ends = not following(index)
            if index in owner and owner[index] in closed:
                return {}
            for (before, after, comes), code in [((frozenset(), frozenset(), False), ())] if ends else rest:
                if marked and not comes:
                    before, after = frozenset(), before
                if index in owner:
                    before = before | {owner[index]}
                key, total = (before, after, comes or marked), _add(here, code)
                if key not in found or _weight(total) < _weight(found[key]):
                    found[key] = total
            return found

        found = onwards(node(loop.head))
        largest = {
            key: code
            for key, code in found.items()
            if not any(key != o and key[0] <= o[0] and key[1] <= o[1] and key[2] <= o[2] for o in found)
        }
        pick = lambda of: tuple(loop.inside[k] for k in sorted(of))  # noqa: E731
        return {Way(pick(before), pick(after)): code for (before, after, _), code in largest.items()}


def _weight(counts: tuple[tuple[str, float], ...]) -> float:
    return sum(count for _, count in counts)


def _add(*parts: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
    total: dict[str, float] = {}
    for part in parts:
        for kind, count in part:
            total[kind] = total.get(kind, 0.0) + count
    return tuple(total.items())


def functions(cubin: bytes, name: str = "") -> list[Function]:
    """The functions whose names contain ``name``."""
    text = sass.disassembly(cubin)
    sections = re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]
    return [Function(section) for section in sections if name in section.split(",", 1)[0]]


def _blocks(listing: str) -> list[Block]:
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in listing.splitlines():
        if label := re.match(r"^(\.L_\S+):", line):
            labels[label.group(1)] = len(code)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            code.append(instruction.group(1))
    jumps: dict[int, tuple[int | None, bool]] = {}  # position: (target, whether the next instruction may follow)
    for position, line in enumerate(code):
        jump = re.search(r"\bBRA\b.*?(\.L_[A-Za-z0-9_]+)", line)
        conditional = line.startswith("@") or bool(re.search(r"\bBRA(\.U\w*)?\s+!?U?P\w+,", line))
        if jump:
            jumps[position] = (labels.get(jump.group(1)), conditional)
        elif re.search(r"\b(EXIT|RET)\b", line):
            jumps[position] = (None, conditional)
    starts = sorted({0, *labels.values(), *(position + 1 for position in jumps)} & set(range(len(code))))
    index = {start: k for k, start in enumerate(starts)}
    blocks = []
    for start, end in zip(starts, [*starts[1:], len(code)]):
        target, falls = jumps.get(end - 1, (None, True))
        following = [index[target]] if target in index else []
        if falls and end in index:
            following.append(index[end])
        blocks.append(Block(code[start:end], following))
    return blocks


def _nest(blocks: list[Block]) -> list[Loop]:
    """Natural loops of back edges, those with one head merged; loops are sorted into those around them."""
    reachable, waiting = set(), [0]
    while waiting:
        k = waiting.pop()
        if k not in reachable:
            reachable.add(k)
            waiting += blocks[k].following
    before: dict[int, set[int]] = {k: set() for k in reachable}
    for k in reachable:
        for n in blocks[k].following:
            before[n].add(k)
    dominators = {k: set(reachable) for k in reachable} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for k in sorted(reachable - {0}):
            new = {k} | set.intersection(*(dominators[p] for p in before[k]))
            changed, dominators[k] = changed or new != dominators[k], new
    found: dict[int, set[int]] = {}
    for k in reachable:
        for head in blocks[k].following:
            if head in dominators[k]:
                body, waiting = {head, k}, [k] if k != head else []
                while waiting:
                    for p in before[waiting.pop()] - body:
                        body.add(p)
                        waiting.append(p)
                found[head] = found.get(head, set()) | body
    loops = [Loop(head, body) for head, body in sorted(found.items(), key=lambda item: len(item[1]))]
    outermost: list[Loop] = []
    for k, loop in enumerate(loops):
        around = next((outer for outer in loops[k + 1 :] if loop.blocks < outer.blocks), None)
        (outermost if around is None else around.inside).append(loop)
    return outermost
