"""Reads GPU machine code: registers, spills, and the instructions of the inner loop."""

from __future__ import annotations

import collections
import os
import re
import subprocess
import tempfile
from pathlib import Path


def tool(name: str) -> str:
    """cuobjdump and nvdisasm come with Triton."""
    import triton

    return os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", name)


def _run(name: str, *options: str, cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return subprocess.run([tool(name), *options, str(path)], capture_output=True, text=True, check=True).stdout


def usage(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes of local memory (stack): anything but 0 is a spill."""
    text = _run("cuobjdump", "-res-usage", cubin=cubin)
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    return {
        "registers": max(int(row[0]) for row in found),
        "spills": max(int(row[1]) + int(row[3]) for row in found),
    }


def amd_usage(assembly: str) -> dict[str, int]:
    """Vector registers, bytes of scratch memory (spills), and scalar registers parked in lanes of a vector register.

    The last costs an instruction and no memory: the code object reports it as scalar spills.
    """

    def field(name: str) -> int:
        return max((int(value) for value in re.findall(rf"\.{name}:\s+(\d+)", assembly)), default=0)

    return {
        "registers": field("vgpr_count"),
        "spills": field("private_segment_fixed_size") + 4 * field("vgpr_spill_count"),
        "parked": field("sgpr_spill_count"),
    }


def disassembly(cubin: bytes) -> str:
    """The machine code of a cubin, with labels."""
    return _run("nvdisasm", "-c", cubin=cubin)


def loops(cubin: bytes, function: str = "") -> list[list[str]]:
    """The bodies of all loops of the functions whose name contains `function`: backward branches."""
    text = disassembly(cubin)
    bodies = []
    for section in re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]:
        if function not in section.split(",", 1)[0]:
            continue
        labels: dict[str, int] = {}
        code: list[str] = []
        for line in section.splitlines():
            if label := re.match(r"^(\.L_\S+):", line):
                labels[label.group(1)] = len(code)
            elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
                code.append(found.group(1))
        for position, instruction in enumerate(code):
            target = re.search(r"\bBRA\b.*?(\.L_[A-Za-z0-9_]+)", instruction)
            if target and labels.get(target.group(1), position + 1) <= position and labels[target.group(1)] != position:
                bodies.append(code[labels[target.group(1)] : position + 1])
    return bodies


def opcodes(body: list[str]) -> collections.Counter[str]:
    """Instructions by kind, predicates and modifiers left out."""
    return collections.Counter(re.sub(r"^@!?U?P\w+\s+", "", line).split()[0].split(".")[0] for line in body)


def kinds(code: list[str]) -> collections.Counter[str]:
    """Instructions by kind, with the modifiers that tell their work (HMMA.1688, MUFU.EX2, LDS.128)."""
    found: collections.Counter[str] = collections.Counter()
    for line in code:
        name, *modifiers = re.sub(r"^@!?U?P\w+\s+", "", line).split()[0].split(".")
        detail = {"HMMA": modifiers[:1], "HGMMA": modifiers[:1], "MUFU": modifiers[:1]}.get(name, [])
        if name in ("LDS", "STS", "LDL", "STL"):
            detail = [m for m in modifiers if m in ("64", "128")]
        found[".".join([name, *detail])] += 1
    return found


def multiply_adds(counts: dict[str, float]) -> float:
    """Multiply-adds of a warp in these instructions."""
    total = 0.0
    for kind, count in counts.items():
        name, _, detail = kind.partition(".")
        if name in ("FFMA", "DFMA"):
            total += 32 * count
        elif name == "FFMA2":
            total += 64 * count
        elif name == "DMMA":  # m8n8k4, or m16n8kK from sm_90 on
            rows, cols, depth = map(int, detail.split("x")) if "x" in detail else (8, 8, 4)
            total += rows * cols * depth * count
        elif name == "HMMA":  # m16n8k8 is 1688, m16n8k16 is 16816
            total += 16 * 8 * int(detail[3:]) * count
        elif name == "HGMMA":  # 64xNxK by four warps, each of which issues it
            rows, cols, depth = map(int, detail.split("x"))
            total += rows * cols * depth / 4 * count
    return total


def inner_loops(cubin: bytes, function: str = "") -> list[list[str]]:
    """The loops that do floating-point arithmetic and contain no other loop."""
    bodies = [body for body in loops(cubin, function) if opcodes(body)["FFMA"] + opcodes(body)["DFMA"] > 0]
    return [body for body in bodies if not any(other is not body and within(other, body) for other in bodies)]


def within(inner: list[str], outer: list[str]) -> bool:
    """Whether a loop is a part of a longer one."""
    return len(inner) < len(outer) and any(
        outer[k : k + len(inner)] == inner for k in range(len(outer) - len(inner) + 1)
    )


def per_pair(cubin: bytes, pairs: float, function: str = "") -> float | None:
    """Instructions of the inner loops per pair, for loops that cover `pairs` pairs a thread and iteration."""
    bodies = inner_loops(cubin, function)
    return sum(map(len, bodies)) / pairs if bodies else None
