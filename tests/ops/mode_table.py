"""Every public function of tensors in every mode of PyTorch: where it works, and what it says where it does not.

``python -m tests.ops.mode_table`` writes the table into docs/torch_compile.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.ops.compile_cases import EXCEPTED, TRACED

DOCS = Path(__file__).resolve().parents[2] / "docs" / "torch_compile.md"
MODES = ("compile", "dynamic", "vmap", "grad", "jvp", "inference", "autocast")
CASES = TRACED | EXCEPTED


class Refusal(NamedTuple):
    """What a function says in a mode, and what the documentation says of it."""

    words: str  # none where it works, otherwise than others
    note: str


_EAGER = Refusal("runs in plain eager mode only", "plans from the points: call it outside of the transform")

EXCEPTIONS: dict[tuple[str, str], Refusal] = {
    ("with_error", "vmap"): _EAGER,
    ("with_error", "grad"): _EAGER,
    ("with_error", "jvp"): _EAGER,
    ("by_label", "vmap"): Refusal("dynamic shape", "has sizes that are those of the classes: call it outside"),
    ("nn.MLP", "autocast"): Refusal("", "in bfloat16, as the modules that it stands for"),
}
"""By case and mode; where torch.compile does not trace is in ``EXCEPTED``, and why in the text before the table."""


def rows() -> dict[str, dict[str, str]]:
    """Of each function, by mode: "yes", or the number of a note."""
    notes = _notes()
    found: dict[str, dict[str, str]] = {}
    for case in CASES:
        row = found.setdefault(case.split(",")[0], dict.fromkeys(MODES, "yes"))
        for mode in MODES:
            if mode in ("compile", "dynamic") and case in EXCEPTED:
                row[mode] = "in part" if any(other.split(",")[0] == case.split(",")[0] for other in TRACED) else "no"
            if (case, mode) in EXCEPTIONS:
                words, note = EXCEPTIONS[case, mode]
                row[mode] = f"{'no' if words else 'yes'} ({notes.index(note) + 1})"
    return found


def _notes() -> list[str]:
    return list(dict.fromkeys(exception.note for exception in EXCEPTIONS.values()))


def table() -> list[str]:
    """In Markdown."""
    lines = [f"| | {' | '.join(MODES)} |", "|" + "---|" * (len(MODES) + 1)]
    lines += [f"| `{name}` | {' | '.join(row[mode] for mode in MODES)} |" for name, row in sorted(rows().items())]
    return [*lines, "", *(f"{k}. {note[0].upper()}{note[1:]}." for k, note in enumerate(_notes(), 1))]


MARKERS = ("<!-- table: python -m tests.ops.mode_table -->", "<!-- end of the table of modes -->")


def documented(text: str) -> str:
    """The document with the table between its markers brought up to date."""
    before, rest = text.split(MARKERS[0])
    return "\n".join([before + MARKERS[0], "", *table(), "", MARKERS[1] + rest.split(MARKERS[1])[1]])


if __name__ == "__main__":
    DOCS.write_text(documented(DOCS.read_text()))
