"""Checkpoints of a ``DriftingModel``: a folder with ``checkpoint.json`` and safetensors files, as in ``checkpoint``."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from gwf_fast.checkpoint import (
    MANIFEST,
    given_or_stored,
    read_manifest,
    read_tensors,
    refuse_occupied,
    write_atomically,
)
from gwf_fast.drifting_model import DriftingModel
from gwf_fast.drifting_state import DriftingRecord, DriftingState
from gwf_fast.portable import NotPortableError, pack, unpack
from gwf_fast.samples import Target

KIND = "drifting"
FORMAT = 1
_FIXED = "problem.safetensors"
_PARTS = ("drift", "generator", "target")
_NUMBERS = (
    "dim", "latent_dim", "batch_size", "n_targets", "lr", "lr_schedule", "betas", "ema", "record_every", "seed",
)  # fmt: skip


class Keeper:
    """Keeps a copy of the last good state, and writes it from time to time and when it is left, however that is.

    Args:
        folder: Where to; None to do nothing.
        model: What is being trained.
        target: Samples of the target; stored if they are a tensor.
        n_steps: Updates the run was started for.
        seconds: Between two writes.
        is_new: Whether the folder must not hold a run yet.
    """

    def __init__(
        self,
        folder: str | Path | None,
        model: DriftingModel,
        target: Target,
        n_steps: int,
        seconds: float,
        is_new: bool,
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._seconds = seconds
        self._written = -torch.inf  # when
        self._kept: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        if self._folder is None:
            return
        if is_new:
            refuse_occupied(self._folder)
        fixed: dict[str, Tensor] = {}
        self._head = {
            "format": FORMAT,
            "kind": KIND,
            "n_steps": n_steps,
            "model": _configuration(model, target, fixed),
            "torch": torch.__version__,
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        if is_new or not (self._folder / _FIXED).exists():
            write_atomically(self._folder / _FIXED, save_tensors(fixed))

    def keep(self, state: DriftingState) -> None:
        """Remember a state that is good, and write it if it is time."""
        if self._folder is None:
            return
        tensors = {name: tensor.detach().clone() for name, tensor in state.tensors().items()}
        self._kept = (
            tensors,
            {
                "step": state.step,
                "seconds": state.seconds,
                "pending": list(state.pending),
                "history": list(state.history),
            },
        )
        if time.monotonic() - self._written > self._seconds:
            self._write()

    def _write(self) -> None:
        if self._folder is None or self._kept is None:
            return
        tensors, progress = self._kept
        name = f"state-{progress['step']:07d}.safetensors"
        write_atomically(self._folder / name, save_tensors(tensors))
        progress = {**progress, "history": [dataclasses.asdict(record) for record in progress["history"]]}
        manifest = {**self._head, **progress, "files": {"fixed": _FIXED, "moving": name}}
        write_atomically(self._folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        for stale in self._folder.glob("state-*.safetensors"):
            if stale.name != name:
                stale.unlink()
        self._written = time.monotonic()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()


def load(
    folder: str | Path, given: Mapping[str, Any], model_class: type[DriftingModel] = DriftingModel
) -> tuple[DriftingModel, DriftingState, int, Target]:
    """Read a checkpoint: the model, its state, the updates it was started for, and the target.

    Args:
        folder: Where a run wrote.
        given: What the checkpoint could not hold, by name: drift, generator, target; None where it could.
        model_class: The class to make.

    Raises:
        ValueError: If there is no checkpoint, it can't be read, or something is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if (manifest.get("kind"), manifest.get("format")) != (KIND, FORMAT):
        raise ValueError(f"checkpoint: {folder} is not that of a DriftingModel of format {FORMAT}")
    fixed = read_tensors(folder / manifest["files"]["fixed"])
    config = dict(manifest["model"])
    config["options"] = {name: unpack(value, fixed) for name, value in config["options"].items()}
    for part in _PARTS:
        config[part] = given_or_stored(part, given.get(part), config[part], fixed)
    target = config.pop("target")
    model = model_class(config.pop("drift"), config.pop("dim"), **config)
    path = folder / manifest["files"]["moving"]
    moving = read_tensors(path)
    parameter = next(tensor for name, tensor in moving.items() if name.startswith("generator."))
    state = model.init(parameter)
    try:
        model.restore(state, moving)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"checkpoint: {path} does not fit the networks ({reason})") from None
    state.step, state.seconds, state.pending = manifest["step"], manifest["seconds"], manifest["pending"]
    state.history = [DriftingRecord(**record) for record in manifest["history"]]
    return model, state, manifest["n_steps"], target


def _configuration(model: DriftingModel, target: Target, fixed: dict[str, Tensor]) -> dict[str, Any]:
    config: dict[str, Any] = {name: getattr(model, name) for name in _NUMBERS}
    config["options"] = {}
    try:
        config["options"] = {name: pack(value, fixed, f"options.{name}") for name, value in model.options.items()}
    except NotPortableError as reason:
        raise ValueError(f"checkpoint: {reason}; give the drift as a function instead") from None
    for name, value in (("drift", model.drift), ("generator", model.generator), ("target", target)):
        try:
            config[name] = pack(value, fixed, name)
        except NotPortableError as reason:
            config[name] = {"missing": str(reason)}
    return config
