"""What an experiment runs: something that can be killed at any moment, and goes on from its folder."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gwf_fast.checkpoint import run_folder
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.state import FlowResult, Source, StepRecord

Say = Callable[[str], None]
"""Receives lines for the user."""


class Computation(Protocol):
    """The long part of an experiment."""

    def describe(self) -> str:
        """One line for the user: what is about to run, and how much of it."""

    def configuration(self) -> dict[str, Any]:
        """What run.json keeps beside the settings; JSON."""

    def solve(self, folder: Path, say: Say) -> Any:
        """Run, or go on with what is in the folder, and return the result.

        Whenever the process is killed the folder holds what is needed to go on, and a run in two pieces gives bit for
        bit the result of one. Finished work costs next to nothing to ask for again.

        Args:
            folder: For checkpoints; the computation alone writes there. May not exist yet.
            say: Receives lines for the user.
        """

    def save(self, result: Any, out: Path) -> None:
        """Leave the artefacts of a result (samples, maps, history) in a folder that exists."""


@dataclass(frozen=True)
class Flow:
    """One run of a ``JKOFlow``.

    Attributes:
        flow: What to run.
        source: Samples of P_0 [N, D], or a callable n -> samples from torch's global generator.
        steps: JKO steps.
        decode: Particles of the flow [N, D] to what a user wants to see and save.
    """

    flow: JKOFlow
    source: Source
    steps: int
    decode: Callable[[Tensor], Tensor] = lambda x: x

    def describe(self) -> str:
        """See ``Computation``."""
        flow = self.flow
        return (
            f"D = {flow.dim}, {flow.training.pool_size} particles, {self.steps} JKO steps of size {flow.step_size:g}, "
            f"seed {flow.seed}"
        )

    def configuration(self) -> dict[str, Any]:
        """See ``Computation``."""
        flow = self.flow
        return {
            "dim": flow.dim,
            "step_size": flow.step_size,
            "scheme": flow.scheme,
            "training": dataclasses.asdict(flow.training),
        }

    def solve(self, folder: Path, say: Say) -> FlowResult:
        """See ``Computation``."""
        if not (folder / run_folder.MANIFEST).exists():  # a new run, or one that was killed before its first checkpoint
            return self.flow.run(self.source, self.steps, checkpoint=folder)
        flow = self.flow
        return type(flow).resume(
            folder,
            n_steps=self.steps,
            functional=flow.functional,
            map=flow.map,
            critic=flow.critic,
            x0=self.source,
        )

    def save(self, result: FlowResult, out: Path) -> None:
        """Samples, maps and history."""
        save_samples(self.decode(result.particles), out)
        save_modules({f"{k:05d}": m for k, m in enumerate(result.maps, 1)}, out / "maps.safetensors")
        save_history(StepRecord, result.history, out)


@dataclass(frozen=True)
class Study:
    """Several computations whose results stand in one figure.

    Each has a sub-folder of its own for checkpoints and for artefacts. The result is a dictionary of theirs.

    Attributes:
        members: Computations by name; names are folder names.
    """

    members: Mapping[str, Computation]

    def describe(self) -> str:
        """See ``Computation``."""
        return f"{len(self.members)} runs: {', '.join(self.members)}"

    def configuration(self) -> dict[str, Any]:
        """See ``Computation``."""
        return {"runs": {name: member.configuration() for name, member in self.members.items()}}

    def solve(self, folder: Path, say: Say) -> dict[str, Any]:
        """See ``Computation``."""
        results = {}
        for position, (name, member) in enumerate(self.members.items(), 1):
            say(f"[{position}/{len(self.members)}] {name}: {member.describe()}")
            results[name] = member.solve(folder / name, say)
        return results

    def save(self, result: dict[str, Any], out: Path) -> None:
        """Each member's artefacts in a sub-folder."""
        for name, member in self.members.items():
            (out / name).mkdir(exist_ok=True)
            member.save(result[name], out / name)


def save_samples(samples: Tensor, out: Path) -> None:
    """Leave samples.npy."""
    content = io.BytesIO()
    np.save(content, samples.detach().cpu().numpy())
    run_folder.write_atomically(out / "samples.npy", content.getvalue())


def save_modules(modules: Mapping[str, torch.nn.Module], path: Path) -> None:
    """Leave the parameters of modules in one safetensors file, under NAME.PARAMETER."""
    values = {f"{name}.{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}
    run_folder.write_atomically(path, run_folder.serialize(values))


def save_history(kind: type, records: Sequence[Any], out: Path) -> None:
    """Leave history.csv, one line a record; ``kind`` is their dataclass."""
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, [field.name for field in dataclasses.fields(kind)])
    writer.writeheader()
    writer.writerows(dataclasses.asdict(record) for record in records)
    run_folder.write_atomically(out / "history.csv", content.getvalue().encode())
