"""Checkpoints of a ``DriftingModel``: ``checkpoint.json`` and safetensors files, as ``run_folder.py`` keeps them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gwf_fast.checkpoint import keeper
from gwf_fast.checkpoint.portable import NotPortableError, pack, unpack
from gwf_fast.checkpoint.run_folder import RunFolder, read_manifest, read_values, told_in_one_line, verify
from gwf_fast.flows.drifting_state import DriftingRecord, DriftingState
from gwf_fast.functionals.evaluation import Target

if TYPE_CHECKING:
    from gwf_fast.flows.drifting import DriftingModel

KIND = "drifting"
FORMAT = 1
_PARTS = ("drift", "generator", "target", "lr_schedule", "optimizer")
_NUMBERS = (
    "dim", "latent_dim", "batch_size", "n_targets", "lr", "betas", "ema", "record_every", "seed",
)  # fmt: skip


class Keeper(keeper.Keeper[DriftingState]):
    """Writes the states of a training from time to time.

    Args:
        folder: Where to; None to do nothing.
        model: What is being trained.
        target: Samples of the target; stored if they are a tensor.
        n_steps: Updates the run was started for.
        seconds: Between two writes.
    """

    def __init__(
        self, folder: RunFolder | None, model: DriftingModel, target: Target, n_steps: int, seconds: float
    ) -> None:
        fixed: dict[str, Tensor] = {}
        config = {} if folder is None else _configuration(model, target, fixed)
        head = {"format": FORMAT, "kind": KIND, "n_steps": n_steps, "model": config}
        super().__init__(folder, head, fixed, _snapshot, seconds)


def _snapshot(state: DriftingState) -> keeper.Snapshot:
    """Of a state that changes in place: a copy."""
    values = {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.values().items()
    }
    history = [dataclasses.asdict(record) for record in state.history]
    progress = {"step": state.step, "seconds": state.seconds, "pending": list(state.pending), "history": history}
    return keeper.Snapshot(f"state-{state.step:07d}", values, progress)


def save(folder: str | Path, model: DriftingModel, state: DriftingState, n_steps: int, target: Target) -> None:
    """Write the state of a training once; see :class:`Keeper`."""
    with RunFolder(folder) as held:
        held.refuse_occupied()
        Keeper(held, model, target, n_steps, 0.0).keep(state)


def load(
    folder: RunFolder, given: Mapping[str, Any], model_class: type[DriftingModel]
) -> tuple[DriftingModel, DriftingState, int, Target]:
    """Read a checkpoint: the model, its state, the updates it was started for, and the target.

    Args:
        folder: Where a run wrote.
        given: What the checkpoint could not hold, by name: drift, generator, target, lr_schedule, optimizer; None where
            it could.
        model_class: The class to make.

    Raises:
        ValueError: If there is no checkpoint, it can't be read, or something is missing.
    """
    manifest = read_manifest(folder.path)
    if (manifest.get("kind"), manifest.get("format")) != (KIND, FORMAT):
        raise ValueError(f"checkpoint: {folder.path} is not that of a DriftingModel of format {FORMAT}")
    verify(manifest, folder.path)
    with told_in_one_line(folder.path):
        fixed = read_values(folder.path / manifest["files"]["fixed"])
        config = dict(manifest["model"])
        config["options"] = {name: unpack(value, fixed) for name, value in config["options"].items()}
        for part in _PARTS:
            stored = config.get(part) if part == "optimizer" else config[part]  # it came after 0.1
            config[part] = keeper.given_or_stored(part, given.get(part), stored, fixed)
        target = config.pop("target")
        leading = config.pop("drift"), config.pop("dim")
    model = model_class(*leading, **config)
    with told_in_one_line(folder.path):
        return model, _state(folder, manifest, model), manifest["n_steps"], target


def _state(folder: RunFolder, manifest: dict[str, Any], model: DriftingModel) -> DriftingState:
    path = folder.path / manifest["files"]["moving"]
    moving = read_values(path)
    ours = (value for name, value in moving.items() if name.startswith("generator.") and isinstance(value, Tensor))
    state = model.init(next(tensor for tensor in ours if tensor.is_floating_point()))  # a counter says no precision
    try:
        model.restore(state, moving)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"checkpoint: {path} does not fit the networks ({reason})") from None
    state.step, state.seconds, state.pending = manifest["step"], manifest["seconds"], manifest["pending"]
    state.history = [DriftingRecord(**record) for record in manifest["history"]]
    return state


def _configuration(model: DriftingModel, target: Target, fixed: dict[str, Tensor]) -> dict[str, Any]:
    config: dict[str, Any] = {name: getattr(model, name) for name in _NUMBERS}
    config["options"] = {}
    try:
        config["options"] = {name: pack(value, fixed, f"options.{name}") for name, value in model.options.items()}
    except NotPortableError as reason:
        raise ValueError(f"checkpoint: {reason}; give the drift as a function instead") from None
    for name in _PARTS:
        value = target if name == "target" else getattr(model, name)
        config[name] = keeper.packed_or_named(value, fixed, name)
    return config
